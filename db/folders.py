"""What running daemons say of their folders: that they live, how they watch, why they wait; and whose they are."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, and_, delete, exists, insert, select, update
from sqlalchemy.orm import aliased

from db import postgres
from db.engine import utc_now
from db.ledger import below
from db.schema import Image, Plate, WatchedFolder

LOST = timedelta(seconds=60)
"""A daemon that gave no sign of life for so long does not watch any more."""

WAITED_FOR = "waited for"
"""How the mode of a folder begins that another daemon works on."""


@dataclass(frozen=True, slots=True)
class FolderRow:
    """The last sign of life that a daemon gave of one folder; `trouble` says why it is not worked on, if so."""

    daemon: str
    path: str
    source: str
    pid: int
    host: str
    mode: str
    trouble: str
    started_at: datetime
    beat_at: datetime
    scanned_at: datetime | None


def watched_folders(connection: Connection) -> list[FolderRow]:
    """Return the folders that the daemons on this database watch, or watched when they were last heard of."""
    table = WatchedFolder.__table__
    return [FolderRow(**row) for row in connection.execute(select(table).order_by("path", "daemon")).mappings()]


def start_watching(connection: Connection, daemon: str, folders: Mapping[Path, str]) -> None:
    """Note that this process watches these folders, each with its source; an earlier one of its name is forgotten."""
    now = utc_now()
    gone = WatchedFolder.beat_at < now - LOST
    mine = WatchedFolder.path.in_([str(path) for path in folders]) | gone
    alone = connection.dialect.name == "sqlite"  # no other daemon writes this file
    connection.execute(delete(WatchedFolder).where(*([] if alone else [WatchedFolder.daemon == daemon, mine])))
    common = {"daemon": daemon, "pid": os.getpid(), "host": platform.node(), "mode": "", "trouble": ""}
    times = {"started_at": now, "beat_at": now}
    rows = [{**common, **times, "path": str(path), "source": source} for path, source in folders.items()]
    connection.execute(insert(WatchedFolder), rows)


def beat(
    connection: Connection, daemon: str, folder: Path, mode: str, trouble: str, scanned_at: datetime | None
) -> None:
    """Give a sign of life of one folder."""
    values = {"mode": mode, "trouble": trouble, "beat_at": utc_now(), "scanned_at": scanned_at}
    here = (WatchedFolder.daemon == daemon, WatchedFolder.path == str(folder))
    connection.execute(update(WatchedFolder).where(*here).values(values))


def stop_watching(connection: Connection, daemon: str, folders: Sequence[Path]) -> None:
    """Note that a daemon does not watch these folders any more: it ended as it should."""
    here = WatchedFolder.path.in_([str(path) for path in folders])
    connection.execute(delete(WatchedFolder).where(WatchedFolder.daemon == daemon, here))


def claim(connection: Connection, source: str, folder: Path) -> bool:
    """Take a folder for this process, as long as its connection holds; say whether it could be had.

    A SQLite file has one daemon, which has taken it as a whole.
    """
    return connection.dialect.name == "sqlite" or postgres.claim_folder(connection, source, str(folder))


def holder(connection: Connection, daemon: str, folder: Path) -> str:
    """Return in words who else gave a sign of life of a folder, or of one above or below it."""
    for row in watched_folders(connection):
        here = (row.daemon, row.pid, row.host) == (daemon, os.getpid(), platform.node())
        if overlap(row, folder) and is_heard_of(row) and not here and not row.mode.startswith(WAITED_FOR):
            return f"daemon {row.daemon} (process {row.pid} on {row.host})"
    return "another sesmo-live"


def overlap(row: FolderRow, folder: Path) -> bool:
    """Say whether a watched folder is, holds or lies in `folder`."""
    return Path(row.path).is_relative_to(folder) or folder.is_relative_to(row.path)


def is_heard_of(row: FolderRow) -> bool:
    """Say whether the daemon of a folder gave a sign of life of it within the last minute."""
    return row.beat_at > utc_now() - LOST


def take_over(connection: Connection, source: str, before: str, folder: Path) -> None:
    """Give what was entered of a folder under the name `before` its present one; known paths stay as they are.

    So a SQLite file's ledger goes on in a server's database and back, and a folder that becomes shared keeps scores.
    """
    other = aliased(Image)
    known = exists().where(other.source == source, other.path == Image.path)
    here = (Image.source == before, below(folder), ~known)
    if source == before or not connection.execute(select(Image.id).where(*here).limit(1)).first():
        return
    plates = select(Image.plate_id).where(Image.source == before, below(folder))
    connection.execute(update(Plate).where(Plate.source == before, Plate.id.in_(plates)).values(source=source))
    connection.execute(update(Image).where(and_(*here)).values(source=source))
