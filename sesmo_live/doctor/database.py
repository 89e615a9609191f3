"""The database: only looked at, never written, so that a running daemon notices nothing."""

import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from filelock import Timeout
from sqlalchemy import Connection, func, select

from db.disks import network_filesystem
from db.engine import head_revision, ingest_lock, open_engine, schema_revision, store_errors, utc_now
from db.folders import watched_folders
from db.ledger import image_counts
from db.schema import Image, Plate
from db.sqlite import database_url, display_name, sqlite_path
from sesmo_live.doctor.findings import Check, Findings, duration
from sesmo_live.errors import StoreError

QUICK_CHECK_S = 30.0
"""A larger database is left to `sesmo-live db check`."""

SILENT = timedelta(minutes=5)
"""A running daemon that has given no sign of life for so long hangs."""

BUSY_S = 2.0
"""How long the doctor waits for a lock in the database; it is a guest there."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a run fills disks; `frame_interval_s` is its rhythm, None where it is not known."""

    bytes_per_h: float
    images_per_h: float
    frame_interval_s: float | None = None


def database_file(path_or_url: str) -> Path | None:
    """Return the SQLite file, None for a server's database; raise UsageError for what is neither."""
    return sqlite_path(database_url(path_or_url))


@contextmanager
def looking(path_or_url: str) -> Iterator[Connection | None]:
    """Give a connection that only reads, None when there is no SQLite file yet; raise StoreError if it is refused."""
    url = database_url(path_or_url)
    file = database_file(path_or_url)
    if file is not None and not file.is_file():
        yield None
        return
    engine = open_engine(url, busy_s=BUSY_S)
    try:
        with store_errors(url), engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def check_database(path_or_url: str) -> Findings:
    """Look at the place, schema, soundness and user of the database."""
    url = database_url(path_or_url)
    file = database_file(path_or_url)
    if file is not None:
        yield from _check_place(file)
    with looking(path_or_url) as connection:
        if connection is None:
            yield Check("database", "ok", f"{display_name(url)} is not there yet; the first run makes it")
            return
        revision = schema_revision(connection.engine)
        counts = image_counts(connection) if revision else {}
        found = f"{display_name(url)}: schema {revision}, {sum(counts.values())} images"
        found += f" ({', '.join(f'{count} {state}' for state, count in counts.items())})" if counts else ""
        if revision == head_revision():
            yield Check("database", "ok", found)
        elif revision is None or revision < head_revision():
            yield Check("database", "warn", f"{found}; this program has {head_revision()}", "sesmo-live db upgrade")
        else:
            yield Check(
                "database", "fail", f"{found}; this program has {head_revision()}", "install a newer sesmo-live"
            )
        yield _server(connection) if file is None else _soundness(connection)
        if revision == head_revision():
            yield from _check_daemon(connection, file)


def _check_place(file: Path) -> Findings:
    folder = file.parent
    if not folder.is_dir():
        yield Check("database folder", "fail", f"{folder} does not exist", "create it, or change url in [database]")
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"sesmo")
    except OSError as error:
        remedy = "give this user the right to write there, or free some space"
        yield Check("database folder", "fail", f"nothing can be written in {folder} ({error.strerror})", remedy)
        return
    if share := network_filesystem(file):
        found = f"{folder} lies on a network share ({share}), where SQLite loses data"
        yield Check("database folder", "fail", found, "give a path on a local disk in [database], or PostgreSQL")
    else:
        yield Check("database folder", "ok", f"{folder} is writable, on a local disk")


def _server(connection: Connection) -> Check:
    """Look whether a server's database can be written, and hold every letter."""
    columns = "pg_is_in_recovery(), has_schema_privilege('public', 'CREATE')"
    asked = f"SELECT {columns}, current_setting('server_version'), current_setting('server_encoding')"
    replica, may_write, version, encoding = connection.exec_driver_sql(asked).one()
    found = f"PostgreSQL {version}, {encoding}"
    if replica:
        return Check("database server", "fail", f"{found}, a read-only replica", "give the URL of its primary server")
    if encoding != "UTF8":
        return Check("database server", "fail", found, "make the database with: createdb --encoding UTF8")
    if not may_write:
        return Check("database server", "warn", f"{found}; this user may not make tables", "see docs/postgres.md")
    return Check("database server", "ok", found)


def _soundness(connection: Connection) -> Check:
    """Run SQLite's quick check, as long as it takes not too long."""
    raw = connection.connection.driver_connection
    until = time.monotonic() + QUICK_CHECK_S
    raw.set_progress_handler(lambda: time.monotonic() > until, 100_000)  # type: ignore[union-attr]
    try:
        answers = [str(row[0]) for row in raw.execute("PRAGMA quick_check(3)")]  # type: ignore[union-attr]
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        found = f"not checked to the end within {QUICK_CHECK_S:.0f} s"
        return Check("database soundness", "warn", found, "sesmo-live db check, when no run is due")
    finally:
        raw.set_progress_handler(None, 0)  # type: ignore[union-attr]
    if answers == ["ok"]:
        return Check("database soundness", "ok", "the quick check found nothing")
    return Check("database soundness", "fail", "; ".join(answers), "restore a backup: docs/running.md")


def _check_daemon(connection: Connection, file: Path | None) -> Findings:
    """Say whether a daemon runs on this database, and what it last said of its folders."""
    running = _locked(file)
    rows = watched_folders(connection)
    if not rows and file is None:
        yield Check("daemon", "ok", "no daemon is at work on this database")
    elif not rows:
        known = {True: "is running", False: "is not running", None: "may be running: its lock cannot be asked"}[running]
        yield Check("daemon", "ok", f"sesmo-live run {known} on this database")
    for row in rows:
        silent = utc_now() - row.beat_at
        found = f"{row.path}: {row.mode or 'starting'}, last sign of life {duration(silent.total_seconds())} ago"
        found += f" from {row.daemon} (process {row.pid} on {row.host})"
        if running is False:
            yield Check("daemon", "warn", f"{found}; it is gone without a word", "see its log; sesmo-live run goes on")
        elif row.trouble:
            yield Check("daemon", "warn", f"{found}; {row.trouble}", "mend that; the run goes on by itself")
        elif silent > SILENT:
            yield Check("daemon", "warn", f"{found}; it may hang", "see its log; stop it and run it again")
        else:
            yield Check("daemon", "ok", found)


def _locked(file: Path | None) -> bool | None:
    """Return whether a daemon holds the file; the lock is tried for an instant. None when that cannot be told."""
    if file is None:
        return None
    if not Path(f"{file.resolve()}.lock").exists():
        return False
    try:
        with ingest_lock(file):
            return False
    except StoreError as error:
        return True if isinstance(error.__cause__, Timeout) else None


def bytes_per_image(connection: Connection, file: Path) -> float:
    """Return how many bytes of the database an image takes, 0 while there are too few to tell."""
    images = connection.execute(select(func.count()).select_from(Image)).scalar_one()
    size = sum(part.stat().st_size for part in (file, Path(f"{file}-wal")) if part.exists())
    return size / images if images >= 20 else 0.0


def last_rate(connection: Connection, root: Path) -> Rate | None:
    """Return how fast the last run below `root` went, by its images' times; None if there was none to judge by."""
    below = Image.path.startswith(str(root) + os.sep, autoescape=True)
    latest = select(Image.plate_id).where(below, Image.acquired_at.is_not(None), Image.plate_id.is_not(None))
    plate_id = connection.execute(latest.order_by(Image.acquired_at.desc()).limit(1)).scalar()
    if plate_id is None:
        return None
    files = select(func.max(Image.size).label("size")).where(Image.plate_id == plate_id).group_by(Image.path).subquery()
    n, size = connection.execute(select(func.count(), func.sum(files.c.size)).select_from(files)).one()
    moments = (func.min(Image.acquired_at), func.max(Image.acquired_at), func.count(Image.timepoint.distinct()))
    first, last, frames = connection.execute(select(*moments).where(Image.plate_id == plate_id)).one()
    rounds = frames if frames > 1 else n
    if first is None or last is None or first == last or rounds < 2:
        return None
    span_s = (last - first).total_seconds()
    hours = span_s * rounds / (rounds - 1) / 3600  # the first round's images took their share of time, too
    interval = connection.execute(select(Plate.frame_interval_s).where(Plate.id == plate_id)).scalar()
    return Rate(float(size) / hours, n / hours, interval or (span_s / (frames - 1) if frames > 1 else None))


def newest_moments(connection: Connection) -> list[tuple[str, datetime]]:
    """Return the latest times in the ledger, with what they are of."""
    columns = {"the ledger's last entry": Image.seen_at, "an image's time": Image.acquired_at}
    found = {what: connection.execute(select(func.max(column))).scalar() for what, column in columns.items()}
    return [(what, when) for what, when in found.items() if when is not None]
