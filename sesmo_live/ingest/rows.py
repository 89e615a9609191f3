"""What the intake remembers of a file, and the ledger rows as it writes them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from acquisition.layouts import Named
from acquisition.tree import SeenFile
from db import ledger
from db.engine import utc_now
from db.ledger import LedgerRow
from sesmo_live.ingest.placing import TURN, WAITING, Page
from sesmo_live.ingest.plates import PlateState
from sesmo_live.records import ImageState

PLACE = ("plate_id", "well", "field", "timepoint", "channel", "z")


@dataclass(slots=True)
class FileState:
    """One file of a watched folder: its live ledger rows by page, and what is under way with it."""

    path: Path
    rows: dict[int, LedgerRow] = field(default_factory=dict)
    named: Named | None = None
    """What its name says; None when the name alone keeps it from being scored."""
    plate: PlateState | None = None
    judged: bool = False
    """Whether its name was looked at since it is in memory."""
    present: bool = False
    """Whether it was sighted in this run."""
    misplaced: bool = False
    """Whether its rows say another place than its name does now."""
    tried: tuple[int, int] | None = None
    """Size and time (ns) that it rested at when it was last read."""
    attempts: int = 0
    waits: bool = False
    """Whether it waits for another attempt."""
    held: tuple[int, int, float] | None = None
    """Size, time (ns) and since when (monotonic s) it is held because it ends in zeros."""
    under_way: int = 0
    """Inspections and images handed out and not yet back."""
    again: SeenFile | None = None
    """How it was sighted anew while it was under way."""
    pages: dict[int, Page] = field(default_factory=dict)
    """Where its pages belong, while they are under way."""

    @property
    def is_busy(self) -> bool:
        """Say whether something is to be done with it, apart from what its rows say."""
        waits = self.waits or self.held is not None or self.misplaced
        return waits or self.under_way > 0 or self.again is not None

    def forget(self, lost: Iterable[LedgerRow]) -> None:
        """Drop rows whose page is gone."""
        for row in lost:
            self.rows.pop(row.page, None)


def new_row(seen: SeenFile, state: ImageState, reason: str, place: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the columns of a new row: a file's first page, unless `place` says more."""
    blank: dict[str, Any] = {
        "path": str(seen.path),
        "name": seen.path.name,
        "page": 0,
        "plate_id": None,
        "well": None,
        "field": None,
        "timepoint": None,
        "channel": "",
        "z": 0,
        "size": seen.size,
        "mtime_ns": seen.mtime_ns,
        "state": state,
        "reason": reason,
        "seen_at": utc_now(),
    }
    return blank | (place or {})


def place_of(page: Page, plate_id: int) -> dict[str, Any]:
    """Return the columns that say where a page belongs."""
    site = page.site
    return {
        "page": page.page,
        "plate_id": plate_id,
        "well": site.well,
        "field": site.field,
        "timepoint": site.timepoint,
        "channel": site.channel,
        "z": site.z,
    }


def measured(page: Page) -> dict[str, Any]:
    """Return the columns that say when, at which scale and where on the stage a page was taken."""
    stage = page.stage_um or (None, None)
    return {
        "acquired_at": page.acquired_at,
        "acquired_from": page.acquired_from,
        "pixel_um": page.pixel_um,
        "stage_x_um": stage[0],
        "stage_y_um": stage[1],
    }


def is_misplaced(state: FileState, place: dict[str, Any]) -> bool:
    """Say whether a file's rows are at another place than its name says now: a layout or plate was corrected.

    Within a stack only the plate is the name's to say, and a channel only if the name has one.
    """
    names = ["plate_id"]
    if len(state.rows) == 1:
        names += [name for name in ("well", "field", "timepoint") if name in place]
        names += ["channel"] if place["channel"] else []
    return any(getattr(row, name) != place[name] for row in state.rows.values() for name in names)


def is_unplaced(row: LedgerRow) -> bool:
    """Say whether an image is skipped although its name told no well."""
    return row.state == "skipped" and row.well is None


def match_pages(
    connection: Connection, source: str, state: FileState, plate_id: int, seen: SeenFile, pages: list[Page]
) -> tuple[list[LedgerRow], list[LedgerRow]]:
    """Give new pages rows, and rows their right place; return (rows entered, rows whose page is gone).

    A scored image moves with its scores, unless another one counts at the new place: then it waits to be judged.
    """
    values = []
    for page in pages:
        row, place = state.rows.get(page.page), place_of(page, plate_id)
        if row is None:
            values.append(new_row(seen, "pending", TURN, place))
        elif any(getattr(row, name) != place[name] for name in PLACE):
            if row.state != "scored":
                change(connection, [row], **place)
            elif (row.size, row.mtime_ns) != (seen.size, seen.mtime_ns):
                values.append(new_row(seen, "pending", TURN, place))  # another image took its path
            elif ledger.site_owner(connection, row.image_id, place):
                change(connection, [row], state="pending", reason=TURN, **place)
            else:
                change(connection, [row], **place)
    entered = insert(connection, source, values)
    for row in entered:
        state.rows[row.page] = row
    state.misplaced = False
    lost = [row for number, row in state.rows.items() if number >= len(pages)]
    return entered, lost


def enter_withheld(
    connection: Connection, source: str, state: FileState, seen: SeenFile, released: set[int]
) -> list[LedgerRow]:
    """Enter the pages that a stack must still have besides those `released`: those held back, and one more at least."""
    if not released:
        return []
    place = {"plate_id": state.plate.plate_id if state.plate else None}
    awaited = sorted(set(range(max(released) + 2)) - released - state.rows.keys())
    rows = insert(connection, source, [new_row(seen, "pending", WAITING, place | {"page": page}) for page in awaited])
    state.rows.update((row.page, row) for row in rows)
    return rows


def insert(connection: Connection, source: str, values: list[dict[str, Any]]) -> list[LedgerRow]:
    """Write new rows of a source, each as the next generation of its path and page; return them as in memory."""
    known = ledger.generations(connection, (row["path"] for row in values), source)
    values = [row | {"source": source, "generation": known.get((row["path"], row["page"]), 0) + 1} for row in values]
    names = ("path", "page", "generation", *PLACE, "size", "mtime_ns", "state", "reason")
    ids = ledger.insert_images(connection, values)
    return [
        LedgerRow(image_id=image_id, **{name: row[name] for name in names}, attempts=0, sha256=None)
        for image_id, row in zip(ids, values, strict=True)
    ]


def change(connection: Connection, rows: Iterable[LedgerRow], **columns: Any) -> None:
    """Change rows in the database and in memory alike; rows that say so already are left alone."""
    known = {name: value for name, value in columns.items() if name in LedgerRow.__slots__}
    different = [
        row
        for row in rows
        if len(known) < len(columns) or any(getattr(row, name) != value for name, value in known.items())
    ]
    ledger.update_images(connection, [{"image_id": row.image_id, **columns} for row in different])
    for row in different:
        for name, value in known.items():
            setattr(row, name, value)
