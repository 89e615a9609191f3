"""What a running daemon says of its folders: that it lives, how it watches, why it waits."""

import os
import platform
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, delete, insert, select, update

from db.engine import utc_now
from db.schema import WatchedFolder


@dataclass(frozen=True, slots=True)
class FolderRow:
    """The last sign of life that a daemon gave of one folder; `trouble` says why it is not worked on, if so."""

    path: str
    pid: int
    host: str
    mode: str
    trouble: str
    started_at: datetime
    beat_at: datetime
    scanned_at: datetime | None


def watched_folders(connection: Connection) -> list[FolderRow]:
    """Return the folders that the last daemon on this database watched."""
    table = WatchedFolder.__table__
    return [FolderRow(**row) for row in connection.execute(select(table).order_by("path")).mappings()]


def start_watching(connection: Connection, folders: list[Path]) -> None:
    """Note that this process watches these folders from now on, and no others."""
    now = utc_now()
    connection.execute(delete(WatchedFolder))
    common = {"pid": os.getpid(), "host": platform.node(), "mode": "", "trouble": "", "started_at": now, "beat_at": now}
    connection.execute(insert(WatchedFolder), [{"path": str(path), **common} for path in folders])


def beat(connection: Connection, folder: Path, mode: str, trouble: str, scanned_at: datetime | None) -> None:
    """Give a sign of life of one folder."""
    values = {"mode": mode, "trouble": trouble, "beat_at": utc_now(), "scanned_at": scanned_at}
    connection.execute(update(WatchedFolder).where(WatchedFolder.path == str(folder)).values(values))


def stop_watching(connection: Connection) -> None:
    """Note that no daemon watches any more: it ended as it should."""
    connection.execute(delete(WatchedFolder))
