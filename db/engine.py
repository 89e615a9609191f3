"""Opening a database: engines for writing and reading, what a refusal means, schema revisions, the daemon's lock."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from shutil import disk_usage
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, create_engine, event, inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from db import postgres
from db.disks import network_filesystem
from db.sqlite import (
    BUSY_TIMEOUT_S,
    check_folder,
    connect_reader,
    connect_writer,
    database_url,
    display_name,
    existing_file,
    refuse_share,
    sqlite_path,
)
from sesmo_live.errors import StoreError, StorePausedError

PAUSE_AFTER_S = 5
"""How long the daemon waits for another program's lock before its run pauses and says so."""

ROOM_BYTES = 16 * 2**20
"""Room on the disk that a paused run waits for, a few group commits; with less it would stop again at once."""

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PASSING = {
    sqlite3.SQLITE_FULL: "the disk of the database {} is full; make room on it",
    sqlite3.SQLITE_BUSY: "the database {} is locked by another program; close that program or wait for it",
    sqlite3.SQLITE_LOCKED: "the database {} is locked by another program; close that program or wait for it",
    sqlite3.SQLITE_PROTOCOL: "the database {} is locked by another program; close that program or wait for it",
    sqlite3.SQLITE_IOERR: "the disk of the database {} does not answer (disk I/O error); check the disk",
}
_PASSING_ONCE_WRITTEN = {  # on a path that never worked these two are a wrong path and missing rights
    sqlite3.SQLITE_CANTOPEN: "the database {} is not there any more; bring its disk or folder back",
    sqlite3.SQLITE_READONLY: "the database {} cannot be written any more; its disk became read-only, check the disk",
}
_written: set[str] = set()  # URLs that this process has committed to


def open_engine(
    path_or_url: str | Path,
    *,
    write: bool = False,
    checkpoint: bool = True,
    create: bool = False,
    busy_s: float | None = None,
    pooled: bool = False,
) -> Engine:
    """Return an engine; every transaction of a `write` engine begins immediately, so it never fails half-way.

    Only the daemon's engine checkpoints the write-ahead log (SQLite before 3.51.3 can lose data when two connections
    do); other writers say `checkpoint=False`. Without `write` the file is opened for reading alone and stays as it is,
    also when the connection closes. A missing file is made with `create` only: where a disk is gone, an empty
    database must not take its place. `pooled` keeps the connections to a server open. Raises UsageError for what is
    no URL of ours, StoreError on a network share.
    """
    url = database_url(path_or_url)
    daemon = write and checkpoint
    file = sqlite_path(url)
    if file is None:
        # Many daemons take turns on a server, so that the daemon waits as long as others do.
        engine = postgres.server_engine(url, write=write, wait_s=busy_s or BUSY_TIMEOUT_S, pooled=pooled or daemon)
        _remember_commits(engine, url)
        return engine
    wait_s = busy_s if busy_s is not None else PAUSE_AFTER_S if daemon else BUSY_TIMEOUT_S
    share = network_filesystem(file)
    if write:
        refuse_share(file, share)

    def connect() -> sqlite3.Connection:
        if write:
            return connect_writer(file, wait_s, create=create, checkpoint=checkpoint)
        return connect_reader(file, share, wait_s)

    # No pool: a file that was moved, or whose disk is gone, is noticed at the next transaction.
    engine = create_engine(url, creator=connect, poolclass=NullPool)
    begin = "BEGIN IMMEDIATE" if write else "BEGIN"

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    _remember_commits(engine, url)
    return engine


def _remember_commits(engine: Engine, url: str) -> None:
    @event.listens_for(engine, "commit")
    def _commit(_connection: Connection) -> None:
        _written.add(url)


@contextmanager
def store_errors(url: str | Path) -> Iterator[None]:
    """Turn a database's refusal into one sentence.

    Raises StorePausedError for what passes (disk full, lock held, disk or server gone), StoreError for the rest.
    """
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        name, cause = display_name(url), getattr(error, "orig", None) or error
        passing = _passing(database_url(url), error)
        if passing:
            raise StorePausedError(passing.format(name)) from error
        if isinstance(error, DBAPIError) and sqlite_path(database_url(url)) is None:
            raise StoreError(postgres.staying(error, name)) from error
        raise StoreError(f"the database {name} cannot be used: {cause}; check the file, its folder and disk") from error


def _passing(url: str, error: DBAPIError | sqlite3.Error) -> str | None:
    """Return the sentence for an error that passes, with {} for the database's name; None for one that stays."""
    code = error_code(error)
    if code == sqlite3.SQLITE_IOERR and not _has_room(url):
        code = sqlite3.SQLITE_FULL  # that is what SQLite calls it when there is no room for its shared memory
    if code is not None:
        return _PASSING.get(code) or (_PASSING_ONCE_WRITTEN.get(code) if url in _written else None)
    return postgres.passing(error, written=url in _written) if isinstance(error, DBAPIError) else None


def _has_room(path_or_url: str | Path) -> bool:
    file = sqlite_path(database_url(path_or_url))
    return file is None or disk_usage(file.parent).free >= ROOM_BYTES


def error_code(error: Exception) -> int | None:
    """Return SQLite's primary code of an error, None for an error of another database or of the driver."""
    code: Any = getattr(getattr(error, "orig", None) or error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def is_damage(error: Exception) -> bool:
    """Say whether an error means that a SQLite file is damaged, or none at all."""
    return error_code(error) in _DAMAGE


def store_answers(path_or_url: str | Path) -> bool:
    """Say within about a second (a server: two) whether the database takes a write again; never raise.

    The probe commits a row of `alembic_version` as it was, which needs the lock, the disk and room on it. A server
    whose other writers do not let the probe in by then answers, too: the daemon itself waits longer for its turn.
    """
    begun = False
    try:
        if not _has_room(path_or_url):
            return False
        engine = open_engine(path_or_url, write=True, checkpoint=False, busy_s=0.5)
        with engine.begin() as connection:
            begun = True
            changed = connection.exec_driver_sql("UPDATE alembic_version SET version_num = version_num")
            return changed.rowcount == 1
    except (DBAPIError, sqlite3.Error, StoreError, OSError) as error:
        return not begun and postgres.is_locked(error)


MIGRATIONS = Path(__file__).parent / "migrations"
"""Where the migrations lie."""


def revisions() -> list[str]:
    """Return the schema revisions that this program knows, oldest first, without Alembic, which loads slowly."""
    return sorted(file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def head_revision() -> str:
    """Return the newest schema revision that this program knows."""
    return revisions()[-1]


def schema_revision(engine: Engine) -> str | None:
    """Return the database's schema revision, None for an empty database."""
    if not inspect(engine).has_table("alembic_version"):
        return None
    with engine.connect() as connection:
        return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()


def known_revision(engine: Engine, path_or_url: str | Path) -> str | None:
    """Return the schema revision, None for an empty database.

    Raises StoreError for another program's SQLite file and for a schema newer than this program.
    """
    url = database_url(path_or_url)
    with store_errors(url):
        current = schema_revision(engine)
        tables = set(inspect(engine).get_table_names())
    if tables and not tables >= {"alembic_version", "image"}:
        kind = "SQLite database" if sqlite_path(url) else "database"
        raise StoreError(f"{display_name(url)} is a {kind} of another program; give --db another")
    if current is not None and current not in revisions():
        raise StoreError(f"the database {display_name(url)} has the newer schema {current}; install a newer sesmo-live")
    return current


def open_reader(path_or_url: str | Path, *, busy_s: float | None = None, pooled: bool = False) -> Engine:
    """Return a reading engine on an existing, up-to-date database; raise UsageError when there is none.

    `busy_s` is how long a question waits for another program's lock on a SQLite file, half a minute unless given.
    """
    url = database_url(path_or_url)
    existing_file(url)
    engine = open_engine(url, busy_s=busy_s if sqlite_path(url) else None, pooled=pooled)
    current = known_revision(engine, url)
    if current != head_revision():
        held = f"has the older schema {current}" if current else "is empty"
        name = display_name(url)
        raise StoreError(f"the database {name} {held}; run: sesmo-live db upgrade --db {name}")
    return engine


@contextmanager
def kept_open(path_or_url: str | Path) -> Iterator[None]:
    """Keep a SQLite file open meanwhile, by a connection that does nothing.

    A connection that is the last one to close empties the write-ahead log, which waits for the disk: each of a
    daemon's transactions took twice its time.
    """
    file = sqlite_path(database_url(path_or_url))
    if file is None:
        yield
        return
    with closing(connect_reader(file, None)) as connection:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # the file is opened by the first question
        yield


@contextmanager
def ingest_lock(path_or_url: str | Path) -> Iterator[None]:
    """Hold the right to ingest into a SQLite file; raise StoreError when another daemon holds it, or on a share."""
    file = sqlite_path(database_url(path_or_url))
    if file is None:
        yield
        return
    check_folder(file)
    refuse_share(file, network_filesystem(file))
    lock = FileLock(f"{file.resolve()}.lock")  # resolved: a link to the file is the same database
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(
            f"another sesmo-live is already writing to {file}; stop it first or give this one another --db"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(
            f"the lock file {lock.lock_file} cannot be made ({reason}); let this user write in that folder, or give "
            "--db a path where it may"
        ) from error
    try:
        yield
    finally:
        lock.release()


def utc_now() -> datetime:
    """Return the present moment in UTC, for records (waiting uses the monotonic clock)."""
    return datetime.now(UTC)
