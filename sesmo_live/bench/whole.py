"""The service as a whole: images a second, seconds from a file's appearance to its committed score, peak memory."""

import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from sesmo_live.bench.images import link, names
from sesmo_live.children import child, child_environment
from sesmo_live.config import Settings, settings_from
from sesmo_live.errors import SesmoError
from sesmo_live.service import run, score_folder

WARM_SHARE = 0.25
"""The share of the images, the first ones, whose time is not counted: the network starts and the queue fills."""

_POLL_S = 0.005
_PATIENCE_S = 120.0


def ms_per_image(source: Path, model: Path, number: int) -> float:
    """Return the ms between two commits when `number` images of one kind are back-filled, read to stored.

    The database's own times are taken, without start-up: see WARM_SHARE.
    """
    with _folder(source, number) as folder:
        db = folder.parent / "bench.db"
        summary = score_folder(_settings(folder, db, model))
        moments = _scored_at(db)
    if len(moments) != number:
        raise SesmoError(f"{number - len(moments)} of {number} images were not scored: {summary.failures[:1]}")
    first = int(number * WARM_SHARE)
    return (moments[-1] - moments[first]).total_seconds() * 1e3 / (number - 1 - first)


def latencies_s(source: Path, model: Path, number: int, per_s: float) -> list[float]:
    """Return for each of `number` images, `per_s` a second, the s from its rename to when another process can see it.

    The folder is watched with `arrival = "rename"`. The first four are not counted: the network starts.
    """
    with _folder(source, 0) as folder:
        db = folder.parent / "bench.db"
        stop = threading.Event()
        failures: list[BaseException] = []

        def serve() -> None:
            try:
                run(_settings(folder, db, model, arrival="rename"), stop)
            except BaseException as error:  # noqa: BLE001 — told by the thread that waits
                failures.append(error)

        service = threading.Thread(target=serve, name="bench service")
        service.start()
        try:
            appeared = _deliver(source, folder, db, number, per_s, failures)
        finally:
            stop.set()
            service.join(_PATIENCE_S)
    return appeared[4:]


def _deliver(
    source: Path, folder: Path, db: Path, number: int, per_s: float, failures: list[BaseException]
) -> list[float]:
    """Let files appear one by one and return how long each took to be seen as scored, in s."""
    renamed: dict[str, float] = {}
    took: dict[str, float] = {}
    deadline = time.monotonic() + _PATIENCE_S
    while not _is_watched(db):
        _give_up(failures, deadline, "the service did not start to watch")
    start = time.monotonic()
    waiting = list(names(number))
    with closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as reader:
        version = None
        while len(took) < number:
            now = time.monotonic()
            if waiting and now >= start + len(renamed) / per_s:
                name = waiting.pop(0)
                part = folder / f"{name}.part"
                link(source, part)
                part.replace(folder / name)
                renamed[name] = time.monotonic()
            current = reader.execute("PRAGMA data_version").fetchone()[0]
            if current != version:
                version = current
                seen = reader.execute("SELECT name FROM image WHERE state = 'scored'").fetchall()
                took |= {name: now - renamed[name] for (name,) in seen if name not in took}
            _give_up(failures, deadline + number / per_s, f"{number - len(took)} of {number} images were not scored")
    return list(took.values())


def _give_up(failures: list[BaseException], deadline: float, sentence: str) -> None:
    if failures:
        raise failures[0]
    if time.monotonic() > deadline:
        raise SesmoError(f"{sentence} within {_PATIENCE_S:g} s")
    time.sleep(_POLL_S)


def _is_watched(db: Path) -> bool:
    """Say whether a daemon has looked at the folder, so that its network is loaded and its observer runs."""
    if not db.exists():
        return False
    try:
        with closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as reader:
            return bool(
                reader.execute("SELECT count(*) FROM watched_folder WHERE scanned_at IS NOT NULL").fetchone()[0]
            )
    except sqlite3.OperationalError:  # it is being made
        return False


def memory_of_score(source: Path, model: Path, number: int, fields: int = 1) -> tuple[list[float], list[datetime]]:
    """Back-fill `number` images by `sesmo-live score` in a process of its own; return its memory and its commits.

    Memory is MiB resident, taken fifty times a second; the times are those at which each image was scored.
    """
    with _folder(source, number, fields) as folder:
        db = folder.parent / "bench.db"
        words = ("score", str(folder), "--db", str(db), "--model", str(model), "--layout", "sesmo", "--no-refuse")
        process = subprocess.Popen(
            child("sesmo_live.cli:main", *words),
            env=child_environment(),
            cwd=folder.parent,  # where no configuration lies
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        memory = []
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                memory.append(psutil.Process(process.pid).memory_info().rss / 2**20)
            time.sleep(0.02)
        if process.returncode:
            raise SesmoError(f"sesmo-live score ended with {process.returncode} while its memory was measured")
        return memory, _scored_at(db)


@contextmanager
def _folder(source: Path, number: int, fields: int = 1) -> Iterator[Path]:
    """Give a folder with so many links to one image, which vanishes afterwards with what lies beside it."""
    with tempfile.TemporaryDirectory(prefix="sesmo-bench-", dir=source.parent, ignore_cleanup_errors=True) as place:
        folder = Path(place) / "images"
        folder.mkdir()
        for name in names(number, fields):
            link(source, folder / name)
        yield folder


def _settings(folder: Path, db: Path, model: Path, **watch: Any) -> Settings:
    data = {
        "database": {"url": str(db)},
        "scoring": {"model": str(model), "refuse": False},
        "watch": [{"folder": folder, "layout": "sesmo", **watch}],
    }
    return settings_from(data, "the benchmark")


def _scored_at(db: Path) -> list[datetime]:
    with closing(sqlite3.connect(db)) as reader:
        rows = reader.execute("SELECT scored_at FROM field_score ORDER BY scored_at").fetchall()
    return [datetime.fromisoformat(moment) for (moment,) in rows]
