"""What a person changes: images tried again, fields taken out of their wells, plate maps, incidents seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, update

from db import incidents, ledger, queries
from db.engine import open_engine
from db.plates import import_treatments
from db.schema import Image
from db.sqlite import database_url, sqlite_path
from sesmo_live import results
from sesmo_live.errors import UnknownNameError, UsageError
from sesmo_live.platemap import PlateMap

BUSY_S = 5.0
"""Seconds that a change waits for the database; the daemon's own transactions are far shorter."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What a plate map put into the wells of a plate; `runs` are those that it holds for, none if not imaged yet."""

    plate: str
    runs: tuple[str, ...]
    wells: int
    compounds: int
    negative: int
    positive: int
    blank: int
    notes: tuple[str, ...]


def writer(url: str) -> Engine:
    """Return an engine for one short change beside a running daemon."""
    return open_engine(url, write=True, checkpoint=False, busy_s=BUSY_S if sqlite_path(database_url(url)) else None)


def retry(
    url: str,
    *,
    plate: str | None = None,
    images: Sequence[int] = (),
    folder: Path | None = None,
    reason: str | None = None,
    everything: bool = False,
) -> int:
    """Have failed images tried again, by the running daemon within seconds; return how many.

    What is given must all hold. Raises UsageError where nothing is given, UnknownNameError where no image is like that.
    """
    if not (plate or images or folder or reason or everything):
        raise UsageError("say which images to try again: a path, a plate, words of the reason, numbers, or all")
    where: dict[str, Any] = {}
    with writer(url).begin() as connection:
        if plate:
            results.find_plate(connection, plate)
            where["plate_id"] = [row.plate_id for row in queries.plate_runs(connection, plate)]
        if images:
            where["id"] = list(images)
        if folder:
            where["folder"] = folder
        if reason:
            where["reason"] = reason
        count = ledger.ask_again(connection, where)
    if not count:
        raise UnknownNameError("no failed image is like that; see: sesmo-live images --state failed")
    return count


def exclude(url: str, image_id: int, reason: str) -> None:
    """Take an image out of its well for a reason in words; with "" bring it back. Its scores are kept.

    It stays out through restarts, moves and copies of its file; a file whose pixels change is another image. Raises
    UnknownNameError for an unknown image.
    """
    with writer(url).begin() as connection:
        changed = connection.execute(
            update(Image).where(Image.id == image_id, Image.state != "superseded").values(excluded=reason)
        )
    if changed.rowcount == 0:
        raise UnknownNameError(f"there is no image {image_id}; the images of a well are listed with their numbers")


def import_map(url: str, plate: str, found: PlateMap, treated_at: datetime | None = None) -> Imported:
    """Record what is in the wells of a plate, for all its runs; a later import replaces an earlier one."""
    with writer(url).begin() as connection:
        runs = import_treatments(connection, plate, found.treatments, treated_at)
    wells = {
        role: {item.well for item in found.treatments if item.role == role}
        for role in ("negative", "positive", "blank")
    }
    return Imported(
        plate=plate,
        runs=tuple(run for run in runs if run),
        wells=len({item.well for item in found.treatments}),
        compounds=len({item.compound for item in found.treatments if item.compound}),
        negative=len(wells["negative"]),
        positive=len(wells["positive"]),
        blank=len(wells["blank"]),
        notes=found.notes,
    )


def acknowledge(url: str, incident_id: int) -> None:
    """Note that somebody has seen an incident; raise UnknownNameError when there is no such incident."""
    with writer(url).begin() as connection:
        incidents.acknowledge(connection, incident_id)
