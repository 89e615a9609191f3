"""Many daemons, one PostgreSQL database: real processes that are killed, a real server that is restarted."""

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from db import folders
from db.copying import copy_database
from db.engine import open_engine
from db.schema import SHARED
from sesmo_live import claims, service, session
from sesmo_live.config import Database, Service, Settings
from sesmo_live.doctor.database import check_database
from sesmo_live.errors import StoreError, UsageError
from sesmo_live.loop import Progress
from tests.conftest import settings, write_image
from tests.postgres import Server
from tests.stub import lazy_stub, write_stub_model

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).parents[2]
CONFIG = """
[database]
url = "{url}"
[service]
name = "{name}"
[scoring]
model = "{model}"
refuse = false
[watching]
settle_s = 0.2
scan_interval_s = 0.2
[[watch]]
folder = "{own}"
[[watch]]
folder = "{shared}"
shared = true
"""


class Daemon:
    """One `sesmo-live run` with the stub scorer, a name and a configuration file of its own."""

    def __init__(self, folder: Path, name: str, url: str, own: Path, shared: Path, model: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.config = folder / f"{name}.toml"
        values = {"url": url, "name": name, "model": model, "own": own, "shared": shared}
        self.config.write_text(CONFIG.format(**values))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [sys.executable, "-m", "tests.stub", "run", "--no-page", "--config", str(self.config)]
        with self.log.open("ab") as log:
            state = {**os.environ, "STATE_DIRECTORY": str(self.config.parent)}
            self.process = subprocess.Popen(words, cwd=ROOT, stderr=log, stdout=log, env=state)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    @property
    def said(self) -> str:
        return self.log.read_text()


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()


def scored(url: str) -> int:
    return int(ask(url, "SELECT count(*) FROM image WHERE state = 'scored'")[0][0])


def wait_until(done: Callable[[], object], daemons: list[Daemon], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(psycopg.Error):  # the tables are not there yet, or the server is being restarted
            if done():
                return
        for daemon in daemons:
            assert daemon.process is None or daemon.process.poll() is None, daemon.said
        assert time.monotonic() < deadline, "\n".join(daemon.said for daemon in daemons)
        time.sleep(0.1)


def land(folder: Path, well: str, seed: int) -> None:
    """Have a file land as a microscope writes it: under another name first."""
    folder.mkdir(parents=True, exist_ok=True)
    part = write_image(folder / f".{well}.part", seed)
    part.replace(folder / f"{well}_f1_t1_cPhase_z0.tif")


EACH_ONCE = """
SELECT count(*), count(DISTINCT (source, path)), count(DISTINCT (plate_id, well)), sum(n), sum(cells)
FROM (SELECT i.*, f.n, (SELECT count(*) FROM cell c WHERE c.image_id = i.id) AS cells
      FROM image i JOIN field_score f ON f.image_id = i.id WHERE i.state = 'scored') AS scored
"""


def wells(first: int, last: int) -> list[str]:
    return [f"{'ABCDEFGH'[number // 12]}{number % 12 + 1:02d}" for number in range(first, last)]


@contextmanager
def three(folder: Path, url: str) -> Iterator[list[Daemon]]:
    model = write_stub_model(folder / "stub")
    shared = folder / "nas" / "SHARED"
    shared.mkdir(parents=True)
    daemons = []
    for name in ("scope1", "scope2", "scope3"):
        own = folder / name / "acquisition"
        own.mkdir(parents=True)
        daemons.append(Daemon(folder, name, url, own, shared.parent, model))
    try:
        yield daemons
    finally:
        for daemon in daemons:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait(30)


@pytest.mark.timeout(300)
def test_three_daemons_score_every_image_once_though_they_are_killed(tmp_path: Path, postgres_server: Server) -> None:
    url = postgres_server.new_database()
    with three(tmp_path, url) as daemons:
        for daemon in daemons:  # all of them find an empty database
            daemon.start()
        total = 0
        for first in range(0, 18, 6):
            for number, well in enumerate(wells(first, first + 6)):
                for which, daemon in enumerate(daemons):
                    land(tmp_path / daemon.name / "acquisition" / "PLATE7", well, 1000 * which + first + number)
                land(tmp_path / "nas" / "SHARED", well, 9000 + first + number)
                total += 4
            wait_until(lambda most=total - 20: scored(url) > most, daemons, 120)  # type: ignore[misc]
            if first < 12:
                victim = daemons[first // 6]
                holds = ask(url, "SELECT daemon FROM watched_folder WHERE source = '*' AND mode NOT LIKE 'waited%'")
                if first == 6 and holds:  # once surely the one that works on the shared folder
                    victim = next(daemon for daemon in daemons if daemon.name == holds[0][0])
                assert victim.end(signal.SIGKILL) == -signal.SIGKILL
                victim.start()
        wait_until(lambda: scored(url) == total, daemons, 120)
        images, paths, places, summed, cells = ask(url, EACH_ONCE)[0]
        assert (images, paths, places) == (total, total, total)
        assert summed == cells > 0
        assert ask(url, "SELECT state, count(*) FROM image GROUP BY state") == [("scored", total)]
        runs = ask(url, "SELECT source, count(*) FROM plate WHERE key = 'plate7' GROUP BY source ORDER BY source")
        assert runs == [("scope1", 1), ("scope2", 1), ("scope3", 1)], "three plates of one name and day are three runs"
        assert ask(url, "SELECT DISTINCT source FROM image ORDER BY source") == [
            ("*",),
            ("scope1",),
            ("scope2",),
            ("scope3",),
        ]
        working = ask(url, "SELECT count(*) FROM watched_folder WHERE source = '*' AND mode NOT LIKE 'waited%'")
        assert working == [(1,)], "one daemon at a time works on the shared folder"
        said = [finding.found for finding in check_database(url) if finding.state == "ok"]
        assert any("PostgreSQL" in text and "UTF8" in text for text in said), said
        assert any("schema 0004" in text and f"{total} scored" in text for text in said), said
        assert sum(f"from {daemon.name} (process" in text for daemon in daemons for text in said) == 6, said
        assert [daemon.end() for daemon in daemons] == [0, 0, 0], [daemon.said for daemon in daemons]
        assert ask(url, "SELECT * FROM watched_folder") == []
        assert not any("Traceback" in daemon.said for daemon in daemons), [daemon.said for daemon in daemons]


@pytest.mark.timeout(300)
def test_the_server_is_restarted_in_mid_run(tmp_path: Path, postgres_server: Server) -> None:
    url = postgres_server.migrated_database()
    with three(tmp_path, url) as daemons:
        running = daemons[:2]
        for daemon in running:
            daemon.start()
        wait_until(lambda: ask(url, "SELECT count(*) FROM watched_folder")[0][0] == 4, running)
        total = 0
        for number, well in enumerate(wells(0, 40)):
            land(tmp_path / "scope1" / "acquisition" / "P", well, number)
            land(tmp_path / "nas" / "SHARED", well, 500 + number)
            total += 2
            if number == 10:
                wait_until(lambda: ask(url, "SELECT 1 FROM image WHERE state = 'scored'"), running)
                postgres_server.control("restart", "-m", "immediate")
            if number == 25:
                postgres_server.control("stop", "-m", "immediate")
                time.sleep(1)
                postgres_server.control("start")
        wait_until(lambda: scored(url) == total, running, 120)
        images, paths, places, summed, cells = ask(url, EACH_ONCE)[0]
        assert (images, paths, places, summed) == (total, total, total, cells)
        kinds = ask(url, "SELECT kind, closed_at IS NOT NULL FROM incident WHERE kind = 'database-paused'")
        assert kinds, "that the database was away is remembered"
        assert all(closed for _, closed in kinds)
        said = running[0].said
        assert "paused: the server of the database postgresql://sesmo:***@" in said
        assert "the database can be written again; the work goes on" in said
        assert "secret" not in said
        assert [daemon.end() for daemon in running] == [0, 0], [daemon.said for daemon in running]
        assert not any("Traceback" in daemon.said for daemon in running), said


@pytest.fixture
def plan(tmp_path: Path, stub_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Return what makes the settings of a daemon in this process: its database, folder and name."""
    monkeypatch.setattr(service, "lazy_scorer", lazy_stub)
    monkeypatch.setattr(claims, "CLAIM_WAIT_S", 0.5)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))

    def make(url: str, folder: Path, name: str, **watch: object) -> Settings:
        made = settings(folder, tmp_path, stub_model, **watch)
        one, service_ = made.model_copy(update={"database": Database(url=url)}), Service(name=name)
        scoring = made.scoring.model_copy(update={"refuse": False})
        return one.model_copy(update={"service": service_, "scoring": scoring})

    return make


@contextmanager
def daemon_in_process(plan: Settings, seen: list[Progress]) -> Iterator[Future[Any]]:
    """Run a daemon on a thread; its failure is the test's."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        daemon = pool.submit(service.run, plan, stop, seen.append)
        try:
            yield daemon
        finally:
            stop.set()
        daemon.result(60)


def test_a_daemon_that_has_only_a_folder_of_anothers_waits_for_it(
    tmp_path: Path, postgres_server: Server, plan: Callable[..., Settings]
) -> None:
    url, nas, seen = postgres_server.migrated_database(), tmp_path / "nas", list[Progress]()
    write_image(nas / "A01_f1_t1_cPhase_z0.tif", 1)
    standby = plan(url, nas, "scope2", shared=True)
    other = open_engine(url, write=True)
    with other.begin() as connection:
        assert folders.claim(connection, SHARED, nas)
    with daemon_in_process(standby, seen) as daemon:
        wait_until(lambda: daemon.done() or len(seen) > 2, [])
        assert not daemon.done(), daemon.exception()
        assert ask(url, "SELECT count(*) FROM watched_folder WHERE mode LIKE 'waited for%'") == [(1,)]
        assert set(seen) == {Progress()}
        other.dispose()  # as when the other daemon ends
        wait_until(lambda: daemon.done() or scored(url) == 1, [])
    assert seen[-1].scored == 1


def test_a_daemon_waits_until_the_server_has_let_go_of_its_cut_connection(
    tmp_path: Path, postgres_server: Server, plan: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, own, seen = postgres_server.migrated_database(), tmp_path / "acquisition", list[Progress]()
    monkeypatch.setattr(session, "STORE_RETRY_S", 0.3)
    monkeypatch.setattr(claims, "LOST_WAIT_S", 0.6)
    write_image(own / "A01_f1_t1_cPhase_z0.tif", 1)
    cut = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'sesmo-live' "
        "AND datname = current_database() AND pid <> pg_backend_pid()"
    )
    with daemon_in_process(plan(url, own, "scope1"), seen) as daemon:
        wait_until(lambda: daemon.done() or scored(url) == 1, [])
        dead = open_engine(url, write=True)  # it keeps the locks as a server does that has not noticed yet
        with dead.begin() as connection:
            connection.exec_driver_sql(cut)
            assert folders.claim(connection, "scope1", own)
        wait_until(lambda: daemon.done() or "acquisition is worked on by" in seen[-1].trouble, [])
        assert not daemon.done(), daemon.exception()
        dead.dispose()
        write_image(own / "A02_f1_t1_cPhase_z0.tif", 2)
        wait_until(lambda: daemon.done() or scored(url) == 2, [])


def test_two_daemons_of_one_name_or_one_computers_folder_are_refused(
    tmp_path: Path, postgres_server: Server, plan: Callable[..., Settings]
) -> None:
    url, own, stop = postgres_server.migrated_database(), tmp_path / "acquisition", threading.Event()
    write_image(own / "PLATE7" / "A01_f1_t1_cPhase_z0.tif", 1)
    write_image(tmp_path / "old" / "A01_f1_t1_cPhase_z0.tif", 2)

    killed = "now() AT TIME ZONE 'UTC' - interval '61 seconds'"
    values = f"'gone', '{own}', 'gone', {os.getpid()}, '{platform.node()}', '', '', {killed}, {killed}"
    columns = "daemon, path, source, pid, host, mode, trouble, started_at, beat_at"
    with psycopg.connect(url) as connection:  # by a daemon whose process number this program has by now
        connection.execute(f"INSERT INTO watched_folder ({columns}) VALUES ({values})".encode())
    daemon = threading.Thread(target=service.run, args=(plan(url, own, "scope1"), stop))
    daemon.start()
    try:
        wait_until(lambda: scored(url) == 1, [])
        with pytest.raises(StoreError, match=r"PLATE7 is worked on by another sesmo-live; stop that"):
            service.score_folder(plan(url, own / "PLATE7", "scope1"))
        with pytest.raises(StoreError, match="is watched on this computer by daemon scope1, too; set"):
            service.score_folder(plan(url, own, "twin"))
        done = service.score_folder(plan(url, tmp_path / "old", "scope1"))  # beside the daemon, and under its name
        assert done.progress.scored == 1
        again = service.score_folder(plan(url, tmp_path / "old", "scope1"))
        assert (again.progress.scored, again.progress.unchanged) == (0, 1)
        shared = plan(url, tmp_path / "old", "scope1", shared=True)  # what was its own becomes shared, and stays scored
        local = shared.model_copy(update={"database": Database(url=str(tmp_path / "s.db"))})
        with pytest.raises(UsageError, match="cannot be shared through a SQLite file"):
            service.score_folder(local)
        assert service.score_folder(shared).progress.unchanged == 1
        alien = service.score_folder(plan(url, tmp_path / "old", "scope2"))  # another computer's path, as it says
        assert alien.progress.scored == 1
        assert service.score_folder(shared).progress.unchanged == 1, "what is shared is not taken"
    finally:
        stop.set()
        daemon.join(60)
    assert not daemon.is_alive()
    assert ask(url, "SELECT source, count(*) FROM image GROUP BY source ORDER BY source") == [
        ("*", 1),
        ("scope1", 1),
        ("scope2", 1),
    ]
    copy_database(url, back := tmp_path / "back.db")
    assert service.score_folder(plan(str(back), tmp_path / "old", "scope1")).progress.unchanged == 1
