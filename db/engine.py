"""Opening a database: SQLite in WAL with immediate transactions, migrations at start, backups before them."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from sesmo_live.errors import StoreError, UsageError

BUSY_TIMEOUT_S = 30
"""How long a writer waits for another process's short write before it gives up."""


def database_url(path_or_url: str | Path) -> str:
    """Return a SQLAlchemy URL for a SQLite file path, or the URL itself."""
    text = str(path_or_url)
    if "://" in text:
        return text
    return f"sqlite:///{Path(text).expanduser().absolute().as_posix()}"


def sqlite_path(url: str) -> Path | None:
    """Return the file behind a SQLite URL, None for any other database."""
    parsed = make_url(url)
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


def _connect_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy's begin event below says BEGIN, not the driver
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",  # NORMAL can lose the last commits on power loss
        "foreign_keys = ON",
        f"busy_timeout = {BUSY_TIMEOUT_S * 1000}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def open_engine(path_or_url: str | Path, *, write: bool = False) -> Engine:
    """Return an engine; every transaction of a `write` engine begins immediately, so it never fails half-way.

    Only the writer checkpoints the write-ahead log: SQLite before 3.51.3 can lose data when two connections do.
    """
    try:
        url = database_url(path_or_url)
        engine = create_engine(url, poolclass=NullPool if sqlite_path(url) else None)
    except (ArgumentError, ModuleNotFoundError) as error:
        raise UsageError(f"{path_or_url} is no database ({error}); give a file such as sesmo.db") from error
    if sqlite_path(url):
        event.listen(engine, "connect", _connect_sqlite)
        if not write:
            event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA wal_autocheckpoint = 0"))
        begin = "BEGIN IMMEDIATE" if write else "BEGIN"

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

    return engine


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turn a database's refusal into one sentence."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        cause: Any = getattr(error, "orig", None) or error
        raise StoreError(f"the database {url} cannot be used: {cause}; check the file, its folder and disk") from error


def _alembic(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def head_revision() -> str:
    """Return the newest schema revision that this program knows."""
    return ScriptDirectory.from_config(_alembic()).get_current_head() or ""


def schema_revision(engine: Engine) -> str | None:
    """Return the database's schema revision, None for an empty database."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(path_or_url: str | Path) -> Path | None:
    """Bring the schema to the newest revision, after a backup; return the backup's path if one was made.

    Raises StoreError when the database was written by a newer program or cannot be opened.
    """
    url = database_url(path_or_url)
    file = sqlite_path(url)
    _check_folder(file)
    engine = open_engine(url, write=True)
    with store_errors(url):
        current = schema_revision(engine)
        known = {script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()}
        if current is not None and current not in known:
            raise StoreError(f"the database {url} has the newer schema {current}; install a newer sesmo-live")
        if current == head_revision():
            return None
        copy = backup(file, file.with_suffix(f".before-{head_revision()}.db")) if file and current else None
        with engine.begin() as connection:
            command.upgrade(_alembic(connection), "head")
    engine.dispose()
    return copy


def backup(source: Path, target: Path) -> Path:
    """Copy a SQLite database that may be in use to `target` with SQLite's online backup; return `target`."""
    if not source.is_file():
        raise UsageError(f"there is no database {source}; give the path of an existing one")
    with sqlite3.connect(source) as live, sqlite3.connect(target) as copy:
        live.backup(copy)
    live.close()
    copy.close()
    return target


def check(path_or_url: str | Path) -> list[str]:
    """Return what is wrong with a SQLite database: damaged pages, broken references; empty if nothing is."""
    url = database_url(path_or_url)
    file = sqlite_path(url)
    if file is None:
        raise UsageError(f"{url} is not a SQLite file; use its server's own check")
    if not file.is_file():
        raise UsageError(f"there is no database {file}; give the path of an existing one")
    with store_errors(url), open_engine(url).connect() as connection:
        damage = [row[0] for row in connection.exec_driver_sql("PRAGMA integrity_check") if row[0] != "ok"]
        broken = [tuple(row) for row in connection.exec_driver_sql("PRAGMA foreign_key_check")]
    return damage + [f"row {row} of {table} refers to a missing row of {parent}" for table, row, parent, _ in broken]


def _check_folder(file: Path | None) -> None:
    if file is not None and not file.parent.is_dir():
        raise UsageError(f"the folder {file.parent} for the database does not exist; create it or give another path")


@contextmanager
def ingest_lock(path_or_url: str | Path) -> Iterator[None]:
    """Hold the right to ingest into a SQLite file; raise StoreError when another daemon holds it."""
    file = sqlite_path(database_url(path_or_url))
    if file is None:
        yield
        return
    _check_folder(file)
    lock = FileLock(f"{file}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(
            f"another sesmo-live is already writing to {file}; stop it first or give this one another --db"
        ) from error
    try:
        yield
    finally:
        lock.release()


def open_reader(path_or_url: str | Path) -> Engine:
    """Return a reading engine on an existing, up-to-date database; raise UsageError when there is none."""
    url = database_url(path_or_url)
    file = sqlite_path(url)
    if file is not None and not file.is_file():
        raise UsageError(f"there is no database {file}; run or score something first, or give --db PATH")
    engine = open_engine(url)
    with store_errors(url):
        current = schema_revision(engine)
    if current != head_revision():
        raise StoreError(f"the database {url} has schema {current}, not {head_revision()}; run: sesmo-live db upgrade")
    return engine


def utc_now() -> datetime:
    """Return the present moment in UTC, for records (waiting uses the monotonic clock)."""
    return datetime.now(UTC)
