"""What becomes of a plate's images when another of its channels or focal planes is scored from now on."""

from collections.abc import Iterable

from sqlalchemy import Connection

from acquisition.tree import SeenFile
from db.ledger import LedgerRow
from sesmo_live.ingest.choice import NOT_CHOSEN
from sesmo_live.ingest.files import Files
from sesmo_live.ingest.judging import Judge
from sesmo_live.ingest.placing import TURN
from sesmo_live.ingest.plates import PlateState
from sesmo_live.ingest.rows import is_unplaced


def change_sides(connection: Connection, files: Files, judge: Judge, plate: PlateState) -> list[SeenFile]:
    """Let go the images of a channel that was scored until a better one turned up; return the files to be read now."""
    taken_up = []
    files.recall_plate(connection, plate.plate_id)
    for state in list(files):
        for row in state.rows.values():
            if row.plate_id != plate.plate_id:
                continue
            if row.state in ("scored", "refused") and (reason := plate.not_chosen(row.channel, row.z)):
                judge.put(connection, [row], "skipped", reason)
            elif state.present and is_wanted_now(row, plate):
                judge.put(connection, [row], "pending", TURN)
                taken_up.append(SeenFile(state.path, row.size, row.mtime_ns))
        files.rest(state)
    return taken_up


def with_another_chance(rows: Iterable[LedgerRow], plate: PlateState | None, *, first: bool) -> list[LedgerRow]:
    """Return the rows of a file that are tried again when it is sighted; refused ones at the `first` sighting."""
    return [
        row
        for row in rows
        if row.state == "failed" or (row.state == "refused" and first) or is_unplaced(row) or is_wanted_now(row, plate)
    ]


def is_wanted_now(row: LedgerRow, plate: PlateState | None) -> bool:
    """Say whether an image was skipped for its channel or focal plane and is of the one that is scored now."""
    skipped = row.state == "skipped" and row.reason.startswith(NOT_CHOSEN)
    return skipped and plate is not None and not plate.not_chosen(row.channel, row.z)
