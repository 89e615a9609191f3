"""The database under kills, torn logs, full disks and load: what was acknowledged is there, what is there is whole."""

import contextlib
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event

from db import ledger, scores, sqlite
from db.care import backup, check, check_quickly, upgrade
from db.engine import (
    ROOM_BYTES,
    head_revision,
    open_engine,
    open_reader,
    schema_revision,
    store_answers,
    store_errors,
)
from db.schema import Base
from sesmo_live.errors import StorePausedError
from tests.faults.writer import CELLS, PASSPORT, Workers, add_scored, full_plate, old_database
from tests.figures import figure


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    crew = Workers()
    yield crew
    crew.close()


def rows(db: Path, query: str) -> list[tuple[int, ...]]:
    with contextlib.closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as raw:
        return raw.execute(query).fetchall()


def image_ids(db: Path) -> set[int]:
    return {row[0] for row in rows(db, "SELECT id FROM image")}


def assert_whole(db: Path) -> None:
    """No damage, and every image has its state, its sums and all its cells, or is not there at all."""
    assert check(db) == []
    torn = rows(
        db,
        "SELECT i.id FROM image AS i LEFT JOIN field_score AS f ON f.image_id = i.id WHERE i.state <> 'scored' OR "
        f"f.n IS NOT {CELLS} OR (SELECT count(*) FROM cell AS c WHERE c.image_id = i.id) <> {CELLS}",
    )
    assert torn == []


def kill_writers(tmp_path: Path, workers: Workers, kills: int) -> None:
    acknowledged: set[int] = set()
    total = unspoken = 0
    for number in range(kills):
        if number % 20 == 0:  # a new database now and then keeps the checks quick
            db = tmp_path / f"{number}.db"
            upgrade(db)
            acknowledged = set()
        before = image_ids(db)
        writer = workers.start("write", db)
        if number % 4:  # every fourth is killed while it opens the database
            workers.wait_for_more(writer)
        time.sleep(random.uniform(0.0, 0.1))
        spoken = {int(item) for line in workers.kill(writer) for item in line.split()}
        acknowledged |= spoken
        stored = image_ids(db)
        assert acknowledged <= stored, f"kill {number} lost {sorted(acknowledged - stored)}"
        extra = stored - before - spoken  # a commit may be done and not yet spoken of
        assert len(extra) <= 4
        assert_whole(db)
        total, unspoken = total + len(spoken), unspoken + bool(extra)
    assert total > 2 * kills
    figure(
        f"{kills} writers killed: 0 of {total} acknowledged images lost, integrity ok after each "
        f"({unspoken} kills fell between a commit and its acknowledgement)"
    )


def test_no_acknowledged_commit_is_lost_when_the_writer_is_killed(tmp_path: Path, workers: Workers) -> None:
    kill_writers(tmp_path, workers, 60)


@pytest.mark.slow
def test_no_acknowledged_commit_is_lost_in_300_kills(tmp_path: Path, workers: Workers) -> None:
    kill_writers(tmp_path, workers, 300)


def logged_database(db: Path, commits: int) -> list[int]:
    """Make a database whose commits lie in its log alone; return the count of images after each commit."""
    upgrade(db)
    keeper = sqlite3.connect(db)  # while it is open, no other connection's closing empties the log
    keeper.execute("SELECT count(*) FROM image").fetchall()
    engine = open_engine(db, write=True, checkpoint=False)
    counts = [0]
    with engine.begin() as connection:
        model = scores.ensure_model(connection, PASSPORT)
    for number in range(commits):
        with engine.begin() as connection:
            for k in range(1 + number % 4):
                add_scored(connection, model, f"/data/{number}-{k}.tif")
        counts.append(counts[-1] + 1 + number % 4)
    for end in ("", "-wal"):
        shutil.copy(f"{db}{end}", f"{db.with_name('torn.db')}{end}")
    keeper.close()
    return counts


def tear(log: Path, whole: bytes) -> None:
    """Cut the log, or leave garbage or zeros in it, as a crash of the computer does."""
    start = random.randrange(len(whole))
    length = random.randrange(1, 4096)
    torn = {
        "cut": whole[:start],
        "garbage": whole[:start] + random.randbytes(length) + whole[start + length :],
        "zeros": whole[:start] + bytes(len(whole) - start),
        "bit": whole[:start] + bytes([whole[start] ^ 1 << random.randrange(8)]) + whole[start + 1 :],
    }
    log.write_bytes(torn[random.choice(list(torn))])


def test_a_torn_log_gives_a_prefix_of_the_commits(tmp_path: Path) -> None:
    counts = logged_database(tmp_path / "made.db", 30)
    source = tmp_path / "torn.db"
    whole = Path(f"{source}-wal").read_bytes()
    kept = []
    for number in range(300):
        db = tmp_path / "s.db"
        for end in ("-wal", "-shm", ""):
            Path(f"{db}{end}").unlink(missing_ok=True)
        shutil.copy(source, db)
        tear(Path(f"{db}-wal"), whole)
        found = rows(db, "SELECT id FROM image ORDER BY id")
        assert found == [(k + 1,) for k in range(len(found))], f"tear {number}"
        assert len(found) in counts, f"tear {number} left a part of a commit"
        assert_whole(db)
        with open_engine(db, write=True).begin() as connection:
            add_scored(connection, scores.ensure_model(connection, PASSPORT), "/data/after.tif")
        assert len(image_ids(db)) == len(found) + 1
        kept.append(len(found))
    assert min(kept) < counts[8]  # the tears did hit
    assert max(kept) > counts[-8]
    figure(
        f"300 torn logs of {len(whole) // 1024} KiB: all opened, integrity ok, a prefix of the 30 commits each time "
        f"(images kept: {min(kept)} to {max(kept)} of {counts[-1]}, median {statistics.median(kept):.0f})"
    )


class SmallDisk:
    """A folder that can be filled up: a tmpfs where mounting is allowed, else the writer's own limit of pages."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.db = folder / "s.db"
        mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES + 2**23}", "tmpfs", str(folder)]
        self.real = sys.platform == "linux" and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        self._filler = folder / "filler"
        self._full = False
        upgrade(self.db)
        self.engine = open_engine(self.db, write=True)
        if not self.real:
            event.listen(self.engine, "connect", self._limit)

    def _limit(self, raw: sqlite3.Connection, _record: object) -> None:
        raw.execute(f"PRAGMA max_page_count = {1 if self._full else 2**30}")  # 1: no more than there are

    def fill(self) -> None:
        self._full = True
        if self.real:
            with self._filler.open("wb") as file:
                with contextlib.suppress(OSError):
                    while True:
                        os.write(file.fileno(), bytes(4096))
                os.truncate(file.fileno(), os.fstat(file.fileno()).st_size - 2**18)  # some commits still find room

    def free(self) -> None:
        self._full = False
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        if self.real:
            subprocess.run(["umount", "--lazy", str(self.db.parent)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    small = SmallDisk(tmp_path / "small")
    yield small
    small.close()


def commit(disk: SmallDisk, number: int) -> int:
    with store_errors(disk.db), disk.engine.begin() as connection:
        return add_scored(connection, scores.ensure_model(connection, PASSPORT), f"/data/{number}.tif")


def test_a_full_disk_pauses_and_the_run_can_go_on_when_there_is_room(disk: SmallDisk) -> None:
    done = {commit(disk, number) for number in range(20)}
    assert store_answers(disk.db)
    disk.fill()
    with pytest.raises(StorePausedError, match=r"the disk of the database .*s\.db is full; make room on it"):
        done.update(commit(disk, number) for number in range(20, 5000))  # takes each as it comes
    if disk.real:
        assert not store_answers(disk.db)
    disk.free()
    began = time.monotonic()
    while not store_answers(disk.db):
        assert time.monotonic() - began < 10
        time.sleep(0.1)
    done.add(commit(disk, 10_000))
    seconds = time.monotonic() - began
    assert image_ids(disk.db) == done
    assert_whole(disk.db)
    figure(
        f"disk full ({'tmpfs' if disk.real else 'page limit'}): paused, 0 of {len(done)} lost, on in {seconds:.2f} s"
    )


def read_times_ms(workers: Workers, db: Path, n: int) -> list[float]:
    readers = [workers.start("read", db) for _ in range(4)]
    for reader in readers:
        workers.wait_for(reader, n)
    answers = [
        line.split() for reader in readers for line in workers.kill(reader)[2:]
    ]  # the first ones import and open
    assert {found for _, found in answers} == {"10"}
    return sorted(float(ms) for ms, _ in answers)


@pytest.mark.alone
def test_readers_do_not_wait_for_the_writer(tmp_path: Path, workers: Workers) -> None:
    db = tmp_path / "s.db"
    full_plate(db)
    idle = read_times_ms(workers, db, 60)
    writer = workers.start("write_at_ease", db)
    workers.wait_for_more(writer)
    began, before = time.monotonic(), len(workers.said(writer))
    busy = read_times_ms(workers, db, 100)
    rate = (len(workers.said(writer)) - before) / (time.monotonic() - began)
    workers.kill(writer)
    p95, quiet = busy[int(len(busy) * 0.95)], idle[int(len(idle) * 0.95)]
    figure(
        f"4 readers of a well of 384 × 10: p95 {p95:.1f} ms, median {statistics.median(busy):.1f} ms, longest "
        f"{busy[-1]:.1f} ms beside {rate:.0f} commits/s (nobody writing: p95 {quiet:.1f} ms)"
    )
    assert rate > 3
    # Where other work makes even an undisturbed read slow, what counts is that the writer adds little to it.
    assert p95 <= max(20, 3 * quiet)


def longest_log(db: Path, first_id: int) -> float:
    """Commit 12 times about 1 MiB while somebody always reads, each for 0.1 s; return the log's longest in MiB."""
    engine, readers = open_engine(db, write=True), open_reader(db)
    numbers = "WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n LIMIT 20000)"
    cells = f"INSERT INTO cell {numbers} SELECT ?, 1, k, 0.5, 0.5, 0.5 FROM n"
    longest = 0
    for number in range(12):
        reader = readers.connect()
        ledger.image_counts(reader)
        leaving = threading.Timer(0.1, reader.close)
        leaving.start()
        with engine.begin() as connection:
            connection.exec_driver_sql(cells, (first_id + number,))
        longest = max(longest, sqlite.log_file(db).stat().st_size)
        leaving.join()
    return longest / 2**20


def test_readers_that_overlap_do_not_let_the_log_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = tmp_path / "s.db"
    full_plate(db)
    keeper = sqlite3.connect(db)  # the database is always open somewhere, so that no closing empties the log
    keeper.execute("SELECT count(*) FROM image").fetchall()
    free = longest_log(db, 1)
    monkeypatch.setattr(sqlite, "WAL_LIMIT_BYTES", 2**21)
    limited = longest_log(db, 101)
    keeper.close()
    figure(
        f"log after 12 MiB of commits beside overlapping readers: {free:.1f} MiB, with a limit of 2 MiB {limited:.1f}"
    )
    assert free > 8  # else this test shows nothing
    assert limited < 5


def schema_of(db: Path) -> list[tuple[int, ...]]:
    return rows(db, "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")


def test_a_migration_that_is_killed_leaves_the_old_schema_or_the_new_one(tmp_path: Path, workers: Workers) -> None:
    original, whole = tmp_path / "old.db", tmp_path / "whole.db"
    old_database(original)
    shutil.copy(original, whole)
    migration = workers.start("migrate", whole)
    while "done" not in workers.said(migration):
        workers.wait_for_more(migration)
    steps = workers.kill(migration)
    first = next(n for n, step in enumerate(steps) if step.startswith(("ALTER", "CREATE")))
    old, new = schema_of(original), schema_of(whole)
    assert old != new
    ends = {"old": 0, "new": 0}
    within = 0
    for number in range(50):
        db = tmp_path / f"k{number}" / "s.db"
        db.parent.mkdir()
        shutil.copy(original, db)
        migration = workers.start("migrate", db)
        anywhere, end = random.randrange(first - 2, len(steps)), random.randrange(len(steps) - 2, len(steps) + 1)
        workers.wait_for(migration, random.choice((anywhere, end)))  # the end is where old turns into new
        time.sleep(random.uniform(0, 0.01))
        within += first < len(workers.kill(migration)) < len(steps)
        found = schema_of(db)
        assert found in (old, new), f"kill {number} left a mixed schema"
        ends["old" if found == old else "new"] += 1
        assert schema_revision(open_engine(db)) == ("0001" if found == old else head_revision())
        assert_upgraded(db, old, new)
    assert min(ends.values()) > 0
    assert within > 10
    figure(
        f"50 migrations killed, {within} of them between the first change and the end: {ends['old']} left the old "
        f"schema, {ends['new']} the new one, 0 a mixed one; each could be upgraded afterwards"
    )


def assert_upgraded(db: Path, old: list[tuple[int, ...]], new: list[tuple[int, ...]]) -> None:
    """Upgrade, and see that all rows are there; a backup that the killed one left under its name is whole."""
    for copy in db.parent.glob("s.before-*.db"):
        assert schema_of(copy) == old
        assert rows(copy, "SELECT count(*) FROM image") == [(300,)]
    upgrade(db)
    assert schema_of(db) == new
    assert check(db) == []
    assert rows(db, "SELECT (SELECT count(*) FROM image), (SELECT count(*) FROM incident)") == [(300, 300)]
    with open_reader(db).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_backups_under_load_restore_to_the_count_of_their_moment(tmp_path: Path, workers: Workers) -> None:
    db = tmp_path / "s.db"
    upgrade(db)
    writer = workers.start("write", db)
    workers.wait_for_more(writer, 5)
    counts, seconds = [], []
    for number in range(20):
        before = sum(len(line.split()) for line in workers.said(writer))
        began = time.monotonic()
        copy = backup(db, tmp_path / f"copy{number}.db")
        seconds.append(time.monotonic() - began)
        workers.wait_for_more(writer, 2)  # what was committed before the copy is spoken of by now
        after = sum(len(line.split()) for line in workers.said(writer))
        assert_whole(copy)
        counts.append(len(image_ids(copy)))
        assert before <= counts[-1] <= after
    workers.kill(writer)
    assert counts == sorted(set(counts))
    assert len(list(tmp_path.glob("*.partial"))) == 0
    figure(
        f"20 backups under load: all whole, {counts[0]} to {counts[-1]} images, longest {max(seconds) * 1000:.0f} ms"
    )


def test_a_restored_backup_is_worked_with_as_any_database(tmp_path: Path) -> None:
    upgrade(tmp_path / "s.db")
    with open_engine(tmp_path / "s.db", write=True).begin() as connection:
        add_scored(connection, scores.ensure_model(connection, PASSPORT), "/data/1.tif")
    copy = backup(tmp_path / "s.db", tmp_path / "restored.db")
    assert check_quickly(copy)
    assert upgrade(copy) is None
    with open_engine(copy, write=True).begin() as connection:
        add_scored(connection, scores.ensure_model(connection, PASSPORT), "/data/2.tif")
    assert len(image_ids(copy)) == 2
