"""SQLite's own ways: its file, connections that write (WAL) or only read, and places where it cannot work."""

import os
import re
import sqlite3
from pathlib import Path
from urllib.parse import quote

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from sesmo_live.errors import StoreError, UsageError

BUSY_TIMEOUT_S = 30
"""How long a reader or a short writer (a plate map, a migration) waits for the daemon before it gives up."""

WAL_LIMIT_BYTES = 64 * 2**20
"""A write-ahead log that readers let grow longer than this is emptied as soon as they let go."""

LOG_WAIT_S = 0.5
"""How long a transaction of the daemon may wait for readers to let go of a log that is too long."""


def database_url(path_or_url: str | Path) -> str:
    """Return a SQLAlchemy URL for a SQLite file path, or the URL itself."""
    text = str(path_or_url)
    if "://" in text:
        return text.replace("postgres://", "postgresql://", 1) if text.startswith("postgres://") else text
    return f"sqlite:///{Path(text).expanduser().absolute().as_posix()}"


def sqlite_path(url: str) -> Path | None:
    """Return the file behind a SQLite URL, None for a PostgreSQL one; raise UsageError for what is neither."""
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database:
            return Path(parsed.database).absolute()
        if parsed.get_backend_name() == "postgresql" and parsed.database:
            return None
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        pass
    raise UsageError(
        f"{_without_password(url)} is no database of ours; give a file such as sesmo.db, or a URL such as "
        "postgresql://user@server/sesmo"
    )


def _without_password(url: str) -> str:
    hidden = re.sub(r"(://[^/@]*?:)[^/]*@", r"\1***@", url)
    return re.sub(r"(?i)([?&](?:[^=&]*(?:password|secret)|scram_\w+_key)=)[^&#]*", r"\1***", hidden)


def display_name(path_or_url: str | Path) -> str:
    """Return a database's name for people: a SQLite file's path, else the URL without its passwords."""
    url = database_url(path_or_url)
    return str(sqlite_path(url) or _without_password(make_url(url).render_as_string(hide_password=True)))


def existing_file(path_or_url: str | Path) -> Path | None:
    """Return the file behind a SQLite URL, None for another database; raise UsageError when it is not there."""
    file = sqlite_path(database_url(path_or_url))
    if file is not None and not file.is_file():
        raise UsageError(f"there is no database {file}; run or score something first, or give --db PATH")
    return file


def check_folder(file: Path | None) -> None:
    """Raise UsageError when the folder for a SQLite file does not exist."""
    if file is not None and not file.parent.is_dir():
        raise UsageError(f"the folder {file.parent} for the database does not exist; create it or give another path")


def connect_writer(file: Path, wait_s: float, *, create: bool, checkpoint: bool) -> sqlite3.Connection:
    """Return a writing connection in WAL mode; a missing file is made only with `create`."""
    uri = file_uri(file, "mode=rwc" if create else "mode=rw")
    # Who uses the connection says BEGIN, not the driver.
    connection = sqlite3.connect(uri, uri=True, timeout=wait_s, isolation_level=None, check_same_thread=False)
    try:
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",  # NORMAL can lose the last commits on power loss
            "foreign_keys = ON",
            f"journal_size_limit = {WAL_LIMIT_BYTES}",
            *(() if checkpoint else ("wal_autocheckpoint = 0",)),
        ):
            connection.execute(f"PRAGMA {pragma}")
        if checkpoint:
            _shorten_log(connection, file, wait_s)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _shorten_log(connection: sqlite3.Connection, file: Path, wait_s: float) -> None:
    """Empty a log that is too long: readers that overlap all the time keep SQLite's own checkpoints from it."""
    if log_bytes(file) > WAL_LIMIT_BYTES:
        connection.execute(f"PRAGMA busy_timeout = {round(LOG_WAIT_S * 1000)}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.execute(f"PRAGMA busy_timeout = {round(wait_s * 1000)}")


def log_file(file: Path) -> Path:
    """Return where SQLite keeps a file's write-ahead log."""
    return Path(f"{file.resolve()}-wal")  # beside the file itself, not beside a link to it


def log_bytes(file: Path) -> int:
    """Return the size of a file's write-ahead log, 0 where there is none: it goes when the last connection closes."""
    try:
        return log_file(file).stat().st_size
    except FileNotFoundError:
        return 0


def unlogged(file: Path) -> bool:
    """Say whether everything committed is in the file itself, as after a clean end."""
    return log_bytes(file) == 0


def connect_reader(file: Path, share: str | None, wait_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    """Return a connection that leaves the file as it is: it never checkpoints, also not when it closes.

    `share` is the kind of network share that the file lies on. Raises StoreError for a file in use there.
    """
    uri = _reading_uri(file, share)
    return sqlite3.connect(uri, uri=True, timeout=wait_s, isolation_level=None, check_same_thread=False)


def file_uri(file: Path, options: str) -> str:
    """Return SQLite's URI of a file, with options as `mode=ro`."""
    path = file.as_posix()
    return f"file://{'' if path.startswith('/') else '/'}{quote(path, safe='/:')}?{options}"


def _reading_uri(file: Path, share: str | None) -> str:
    # Where no log can be made beside the file (a read-only folder) and none lies there, nobody is writing, and SQLite
    # may read the file as it stands; so is a copy on a share read.
    if unlogged(file) and (share or not os.access(file.resolve().parent, os.W_OK)):
        return file_uri(file, "mode=ro&immutable=1")
    if share:
        refuse_share(file, share)
    return file_uri(file, "mode=ro")


def refuse_share(file: Path, share: str | None) -> None:
    """Raise StoreError when a SQLite file lies on a network share, where its write-ahead log does not work."""
    if share:
        raise StoreError(
            f"{file} lies on a network share ({share}): SQLite's WAL does not work there; give --db a path on a local "
            "disk (back it up to the share with: sesmo-live db backup)"
        )
