"""Processes that can be killed at any moment: they write to a database and say what was committed, or migrate it.

`python -m tests.faults.writer` has everything imported and forks a worker for each line `JOB DATABASE` on its standard
input, so that a kill hits the work and not the start; without fork (Windows) it is itself the one worker.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import numpy as np
import psutil
from alembic import command
from sqlalchemy import Connection, Engine, event, insert

from db import ledger, plates, queries, scores
from db.care import migration_config, upgrade
from db.engine import open_engine, open_reader, utc_now
from db.schema import FieldScore
from sesmo_live.records import CellScores, ImageFile, ModelPassport, Site
from sesmo_live.wells import well_name

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
ROOT = Path(__file__).parents[2]

PASSPORT = ModelPassport(
    name="m",
    version="1",
    network="deep-sesmo",
    input_px=50,
    pixel_um=None,
    conversion="c",
    cropper="deep-sesmo",
    cropper_settings={},
    threshold=0.5,
    weights_sha256="ab" * 32,
)
CELLS = 20


def add_scored(connection: Connection, model: int, path: str, plate: int | None = None) -> int:
    """Enter one image and its scores, as the service does, and return its id."""
    row = {
        **{"path": path, "name": Path(path).name, "page": 0, "generation": 1, "plate_id": plate, "well": "B03"},
        **{"field": 1, "timepoint": 1, "channel": "", "z": 0, "size": 10, "mtime_ns": 20, "state": "pending"},
        **{"reason": "waiting", "seen_at": datetime.now(UTC)},
    }
    (image_id,) = ledger.insert_images(connection, [row])
    cells = CellScores(
        ImageFile(Path(path), 0, Site("P", "B03", 1, 1), 1, 1),
        np.full(CELLS, 0.75, np.float32),
        np.zeros((CELLS, 2)),
        "m",
    )
    scores.save_scores(connection, image_id, model, cells, 0.5, {})
    ledger.update_images(connection, [{"image_id": image_id, "state": "scored", "reason": ""}])
    return image_id


def full_plate(db: Path) -> None:
    """Make a database of 384 wells × 10 time points."""
    upgrade(db)
    with open_engine(db, write=True).begin() as connection:
        plate = plates.find_or_add_plate(connection, "P", "r", "f")
        model = scores.ensure_model(connection, PASSPORT)
        images = [
            {
                **{"path": f"/d/{w}-{t}.tif", "name": f"{w}-{t}.tif", "page": 0, "generation": 1, "plate_id": plate},
                **{"well": well_name(1 + w // 24, 1 + w % 24), "field": 1, "timepoint": t, "channel": "", "z": 0},
                **{"size": 10, "mtime_ns": 20, "state": "scored", "reason": "", "seen_at": utc_now()},
            }
            for w in range(384)
            for t in range(10)
        ]
        ids = ledger.insert_images(connection, images)
        field = {
            "model_id": model,
            "n": 0,
            "sum": 0.0,
            "sum_sq": 0.0,
            "n_over": 0,
            "histogram": [0] * 32,
            "quality": {},
        }
        connection.execute(insert(FieldScore), [{**field, "image_id": key, "scored_at": utc_now()} for key in ids])


def old_database(db: Path) -> None:
    """Make a populated database of the first schema."""
    with open_engine(db, write=True, create=True).begin() as connection:
        command.upgrade(migration_config(connection), "0001")
        model = "INSERT INTO model VALUES (1, 'm', '', '{}', '2026-01-01 00:00:00')"
        connection.exec_driver_sql(model)
        for number in range(300):
            path = f"/data/{number}.tif"
            connection.exec_driver_sql(
                "INSERT INTO image (path, name, page, generation, channel, z, size, mtime_ns, acquired_from, state, "
                "reason, attempts, seen_at) "
                "VALUES (?, ?, 0, 1, '', 0, 1, 1, 'file', 'pending', 'new', 0, '2026-01-01 00:00:00')",
                (path, path),
            )
            connection.exec_driver_sql(
                "INSERT INTO incident (kind, message, details, opened_at) "
                "VALUES ('k', 'm', '{}', '2026-01-01 00:00:00')"
            )


def _say(text: str) -> None:
    os.write(1, f"{os.getpid()} {text}\n".encode())  # one write: a kill leaves a whole line or none


def write(db: Path, pause_s: float = 0.0) -> None:
    """Commit 1 to 4 scored images at a time, for ever; say their ids after each commit."""
    engine = open_engine(db, write=True)
    with engine.begin() as connection:
        model = scores.ensure_model(connection, PASSPORT)
    for number in count():
        with engine.begin() as connection:
            paths = [f"/data/{os.getpid()}/{number}-{k}.tif" for k in range(1 + number % 4)]
            ids = [add_scored(connection, model, path) for path in paths]
        _say(" ".join(map(str, ids)))
        time.sleep(pause_s)


def write_at_ease(db: Path) -> None:
    """Write about 40 images a second, twenty times what a microscope makes."""
    write(db, 0.06)


def read(db: Path) -> None:
    """Ask for the time course of one well, as the page does, for ever; say how long each answer took in ms."""
    engine = open_reader(db)
    while True:
        began = time.perf_counter()
        with engine.connect() as connection:
            rows = queries.well_scores(connection, 1, 1, ["B03"])
        _say(f"{(time.perf_counter() - began) * 1000:.3f} {len(rows)}")
        time.sleep(0.04)


def migrate(db: Path) -> None:
    """Upgrade the schema, so slowly that a kill can hit every step; say each statement before it runs, and `done`."""

    @event.listens_for(Engine, "before_cursor_execute")
    def _slow(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        _say(" ".join(statement.split()))
        time.sleep(0.01)

    @event.listens_for(Engine, "commit")
    def _commit(_: object) -> None:
        _say("COMMIT")

    upgrade(db)
    _say("done")


JOBS: dict[str, Callable[[Path], None]] = {
    "write": write,
    "write_at_ease": write_at_ease,
    "read": read,
    "migrate": migrate,
}


def serve() -> None:
    """Start a worker for each line of standard input; answer `ping`, which is heard after all that was said before."""
    if hasattr(os, "fork"):
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead leave the process table at once
    for line in sys.stdin:
        job, _, db = line.strip().partition(" ")
        if job == "ping":
            _say("pong")
        elif not hasattr(os, "fork") or os.fork() == 0:
            _work(job, Path(db))


def _work(job: str, db: Path) -> None:
    try:
        _say("began")
        JOBS[job](db)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(0)


class Workers:
    """Starts workers, hears what they say, and kills them."""

    def __init__(self) -> None:
        self._servers: list[tuple[subprocess.Popen[str], threading.Thread]] = []
        self._said: dict[int, list[str]] = {}
        self._alive: set[int] = set()
        self._begun: list[int] = []
        self._pongs = 0
        self._news = threading.Condition()

    def start(self, job: str, db: Path) -> int:
        """Start a worker and return its process id once it runs."""
        if not self._servers or not hasattr(os, "fork"):
            command = [sys.executable, "-m", "tests.faults.writer"]
            server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            listener = threading.Thread(target=self._listen, args=(server,), daemon=True)
            listener.start()
            self._servers.append((server, listener))
        with self._news:
            self._tell(f"{job} {db}")
            assert self._news.wait_for(lambda: self._begun, 60), f"no worker for {job}"
            pid = self._begun.pop()
            self._alive.add(pid)
        return pid

    def _tell(self, line: str) -> None:
        stdin = self._servers[-1][0].stdin
        assert stdin is not None
        stdin.write(f"{line}\n")
        stdin.flush()

    def _listen(self, server: "subprocess.Popen[str]") -> None:
        assert server.stdout is not None
        for line in server.stdout:
            pid, _, text = line.strip().partition(" ")
            with self._news:
                if text == "began":
                    self._said[int(pid)] = []  # the system may give a number a second time
                    self._begun.append(int(pid))
                elif text == "pong":
                    self._pongs += 1
                else:
                    self._said[int(pid)].append(text)
                self._news.notify_all()

    def said(self, pid: int) -> list[str]:
        """Return what a worker has said so far."""
        with self._news:
            return list(self._said[pid])

    def wait_for(self, pid: int, n: int = 1, timeout_s: float = 60) -> None:
        """Wait until a worker has said `n` things."""
        with self._news:
            heard = self._news.wait_for(lambda: len(self._said[pid]) >= n, timeout_s)
            assert heard, f"worker {pid} fell silent"

    def wait_for_more(self, pid: int, n: int = 1) -> None:
        """Wait until a worker has said `n` things more."""
        self.wait_for(pid, len(self.said(pid)) + n)

    def kill(self, pid: int) -> list[str]:
        """Kill a worker where it stands, if it still does, and return all that it said."""
        self._alive.remove(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, KILL)
        while psutil.pid_exists(pid):
            time.sleep(0.001)
        if hasattr(os, "fork"):
            with self._news:
                pongs = self._pongs
                self._tell("ping")
                assert self._news.wait_for(lambda: self._pongs > pongs, 60)
        else:
            self._servers[-1][1].join()
        return self.said(pid)

    def close(self) -> None:
        """End everything."""
        for pid in list(self._alive):
            self.kill(pid)
        for server, listener in self._servers:
            server.kill()
            server.wait()
            listener.join()
            for pipe in (server.stdin, server.stdout):
                if pipe is not None:
                    pipe.close()


if __name__ == "__main__":
    serve()
