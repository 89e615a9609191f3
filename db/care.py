"""Care of a database: migrations after a backup, online backups, checks for damage."""

import os
import sqlite3
from contextlib import closing, suppress
from itertools import count
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError

from db import postgres
from db.disks import network_filesystem
from db.engine import (
    MIGRATIONS,
    error_code,
    head_revision,
    is_damage,
    known_revision,
    open_engine,
    store_errors,
)
from db.sqlite import (
    check_folder,
    connect_reader,
    database_url,
    display_name,
    existing_file,
    file_uri,
    refuse_share,
    sqlite_path,
    unlogged,
)
from sesmo_live.errors import StoreError, StorePausedError, UsageError

MIGRATION_WAIT_S = 600
"""How long a migration of a server's database waits for another one."""

ALWAYS_CHECKED_BYTES = 2**30
"""Up to this size a database is checked at every start (about 4 s), above it only after an unclean end."""


def upgrade(path_or_url: str | Path, *, create: bool = True) -> Path | None:
    """Bring the schema to the newest revision, after a backup (SQLite); return the backup's path if one was made.

    All migrations are one transaction. Raises StoreError when the database was written by a newer program or by
    another one, lies on a share or cannot be opened; UsageError when there is none and `create` is false.
    """
    url = database_url(path_or_url)
    file = sqlite_path(url)
    check_folder(file)
    if not create:
        existing_file(url)
    if file is not None:
        refuse_share(file, network_filesystem(file))
    current = None
    if file is None or file.is_file():
        current = known_revision(open_engine(url), url)  # by reading alone: another program's file stays as it is
    if current == head_revision():
        return None
    engine = open_engine(url, write=True, checkpoint=False, create=create, busy_s=None if file else MIGRATION_WAIT_S)
    copy = backup(file, _backup_name(file)) if file and current else None
    try:
        if file:  # a table that is replaced would take the rows with it that refer to it
            event.listen(engine, "connect", _drop_references)
        with store_errors(url), engine.begin() as connection:
            migrate(connection, url)
    except BaseException:
        if copy:
            copy.unlink()  # the database is as it was; a daemon that starts again and again must not fill the disk
        raise
    engine.dispose()
    return copy


def _drop_references(raw: sqlite3.Connection, _record: object) -> None:
    raw.execute("PRAGMA foreign_keys = OFF")


def migrate(connection: Connection, url: str) -> None:
    """Bring the schema to the newest revision within a transaction, unless another process just has.

    Raises StoreError when a server's database cannot hold every letter, or daemons are at work on it.
    """
    if sqlite_path(url) is None:
        name = display_name(url)
        postgres.check_encoding(connection, name)
        if MigrationContext.configure(connection).get_current_revision() == head_revision():
            return
        postgres.exclude_daemons(connection, name)
    command.upgrade(migration_config(connection), "head")


def migration_config(connection: Connection | None = None) -> Config:
    """Return Alembic's settings; its migrations run on `connection`."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _backup_name(file: Path) -> Path:
    """Return a free name beside the file, as sesmo.before-0002.db, sesmo.before-0002-2.db."""
    names = (f"{file.stem}.before-{head_revision()}{'' if n == 1 else f'-{n}'}.db" for n in count(1))
    return next(file.with_name(name) for name in names if not file.with_name(name).exists())


def backup(source: Path, target: Path) -> Path:
    """Copy a SQLite database that may be in use to `target` with SQLite's online backup; return `target`.

    The copy is one file without a log, and has its name only when it is whole. Raises UsageError when there is no
    `source` or already a `target`, StoreError when the copy cannot be made.
    """
    existing_file(source)
    if target.exists():
        raise UsageError(f"{target} exists already; name a new file")
    if not target.parent.is_dir():
        raise UsageError(f"the folder {target.parent} for the backup does not exist; create it or name another")
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        _copy(source, partial)
        partial.replace(target)
    except (OSError, sqlite3.Error) as error:
        raise _backup_error(source, target, error) from error
    finally:
        with suppress(OSError):  # as when its disk went away: what is told is why the copy could not be made
            partial.unlink(missing_ok=True)
    return target


def _copy(source: Path, target: Path) -> None:
    # No locks on the copy: nobody knows it yet, and on a share they may not work. No journal: a killed copy is thrown
    # away. One step, hence one state of the database: between steps a busy writer would start the copy anew.
    uri = file_uri(target.absolute(), "mode=rwc&nolock=1")
    with (
        closing(connect_reader(source, network_filesystem(source))) as live,
        closing(sqlite3.connect(uri, uri=True)) as copy,
    ):
        copy.execute("PRAGMA journal_mode = OFF")
        live.backup(copy)
    with target.open("r+b") as file:
        file.seek(18)  # the header's two format bytes: 1 is a file without a log, which can be read anywhere
        file.write(b"\x01\x01")
        file.flush()
        os.fsync(file.fileno())


def _backup_error(source: Path, target: Path, error: OSError | sqlite3.Error) -> StoreError:
    if is_damage(error):
        return StoreError(damage_sentence(source))
    if error_code(error) == sqlite3.SQLITE_FULL:
        return StorePausedError(f"the disk of the backup {target} is full; make room on it or name another disk")
    return StoreError(f"the backup {target} cannot be written: {error}; name a file in a folder where this user may")


def check(path_or_url: str | Path) -> list[str]:
    """Return what is wrong with a SQLite database: damaged pages, broken references; empty if nothing is."""
    url = database_url(path_or_url)
    if existing_file(url) is None:
        raise UsageError(f"{display_name(url)} is not a SQLite file; use its server's own check")
    damage = _damage(url, "PRAGMA integrity_check")
    if damage:
        return damage
    with store_errors(url), open_engine(url).connect() as connection:
        broken = [tuple(row) for row in connection.exec_driver_sql("PRAGMA foreign_key_check")]
    return [f"row {row} of {table} refers to a missing row of {parent}" for table, row, parent, _ in broken]


def check_quickly(path_or_url: str | Path) -> bool:
    """Raise StoreError when a SQLite database is damaged; return whether it was looked at.

    To be called before `upgrade`: a damaged database must not be migrated, and the log that an unclean end left
    lies there only until the next writer. A missing file and a server's database are not looked at, nor is a large
    file after a clean end.
    """
    url = database_url(path_or_url)
    file = sqlite_path(url)
    if file is None or not file.is_file():
        return False
    if unlogged(file) and file.stat().st_size > ALWAYS_CHECKED_BYTES:
        return False
    if _damage(url, "PRAGMA quick_check(1)"):
        raise StoreError(damage_sentence(file))
    return True


def _damage(url: str, pragma: str) -> list[str]:
    with store_errors(url):
        try:
            with open_engine(url).connect() as connection:
                return [row[0] for row in connection.exec_driver_sql(pragma) if row[0] != "ok"]
        except DBAPIError as error:
            if is_damage(error):
                return [str(error.orig)]
            raise


def damage_sentence(file: Path) -> str:
    """Return the sentence for a damaged SQLite file, naming the newest backup beside it (sesmo.*.db) if one is."""
    backups = sorted(file.parent.glob(f"{file.stem}.*.db"), key=lambda path: path.stat().st_mtime)
    others = [path for path in backups if path != file]
    remedy = f"put the newest backup in its place: {others[-1]}" if others else "restore a backup of it"
    return f"the database {file} is damaged; move it away with its -wal and -shm files and {remedy}"
