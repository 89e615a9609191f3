"""What a scored image counts for: a new image, the same one again, a copy, a moved file, a changed one."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from acquisition.tree import SeenFile
from db import ledger, scores
from db.engine import utc_now
from db.ledger import LedgerRow
from sesmo_live.ingest.files import Files
from sesmo_live.ingest.placing import TURN, Page, WatchPlan, moment_of
from sesmo_live.ingest.reach import is_there
from sesmo_live.ingest.rows import PLACE, FileState, change, measured, new_row, place_of
from sesmo_live.pipeline import Prepared
from sesmo_live.records import CellScores, ImageFile, ImageState

COPY = "a copy of {}, which is scored"
"""Why the second of two equal images of one site is skipped."""

FLAGGED = "scored all the same: "
"""How the reason of an image begins that is not fit to be scored and was, as nothing was to be refused."""

log = logging.getLogger(__name__)


class Judge:
    """Writes scores, cells and state of one watched folder's images, each once for a site and a model."""

    def __init__(self, plan: WatchPlan, files: Files) -> None:
        self._plan = plan
        self._files = files
        self.cells = 0
        """Cells scored so far."""
        self._cells_kept = 0
        self.ended: list[tuple[ImageState, str]] = []
        """States and reasons that images came to since somebody took them."""

    def committed(self) -> None:
        """Note that all that was written is kept."""
        self._cells_kept = self.cells

    def go_on_for(self, before: "Judge") -> None:
        """Take over the count of an earlier judge, without what it wrote in a transaction that was not kept."""
        self.cells = self._cells_kept = before._cells_kept

    def put(self, connection: Connection, rows: Iterable[LedgerRow], state: ImageState, reason: str) -> None:
        """Put rows into a state, with its reason in words."""
        different = [row for row in rows if (row.state, row.reason) != (state, reason)]
        change(connection, different, state=state, reason=reason)
        self._files.touch(different)
        self.ended += [(state, reason) for _ in different if state in ("failed", "refused")]

    def record(
        self, connection: Connection, state: FileState, row: LedgerRow, prepared: Prepared, found: CellScores
    ) -> None:
        """Write what was scored of one image in the caller's one transaction, unless it does not count here."""
        current = self._current(connection, state, row, prepared)
        if state.plate is None or current is None:
            return
        file, sha256, row = found.file, prepared.sha256, current
        page = state.pages[row.page]
        place = place_of(page, state.plate.plate_id)
        if row.sha256 is None:
            row = self._adopted(connection, state, row, file, sha256)
            if row.state == "scored" and self._elsewhere(row, place) and self._wins(connection, row, place, sha256):
                change(connection, [row], **place)
        if row.state != "scored" and not self._wins(connection, row, place, sha256):
            change(connection, [row], size=file.size, mtime_ns=file.mtime_ns)
            return
        model_key = self._plan.model_key
        if model_key not in row.scored_by:
            quality = {**prepared.quality, "unfit": list(prepared.unfit)} if prepared.unfit else prepared.quality
            scores.save_scores(connection, row.image_id, model_key, found, self._plan.threshold, quality)
            row.scored_by |= {model_key}
            self._files.touch([row])
            self.cells += len(found.values)
            self.ended.append(("scored", ""))
        state.attempts, state.held = 0, None
        reason = FLAGGED + "; ".join(prepared.unfit) if prepared.unfit else ""
        change(connection, [row], state="scored", reason=reason, **_done(file, sha256, page))

    def refuse(self, connection: Connection, state: FileState, row: LedgerRow, prepared: Prepared) -> None:
        """Note why an image is not fit to be scored; what another model scored of it stays, with that note."""
        current = self._current(connection, state, row, prepared)
        if current is None:
            return
        file, page, reason = prepared.cells.file, state.pages[current.page], "; ".join(prepared.unfit)
        if current.sha256 is None and state.plate:
            current = self._adopted(connection, state, current, file, prepared.sha256, "refused")
            change(connection, [current], **place_of(page, state.plate.plate_id))
        if current.state == "scored":
            change(connection, [current], reason=f"refused by model {self._plan.recipe.model_id}: {reason}")
        else:
            self.put(connection, [current], "refused", reason)
        change(connection, [current], **_done(file, prepared.sha256, page))
        state.attempts, state.held = 0, None

    def _current(
        self, connection: Connection, state: FileState, row: LedgerRow, prepared: Prepared
    ) -> LedgerRow | None:
        """Return the row that an image's outcome belongs to: another one if its pixels changed, None if to none."""
        if state.plate is None:  # its name was judged anew while it was being scored
            return None
        reason = state.plate.not_chosen(row.channel, row.z)
        if reason:  # a better channel turned up while this one was being scored
            self.put(connection, [row], "skipped", reason)
            return None
        if row.sha256 not in (None, prepared.sha256):
            return self._next_generation(connection, state, row, state.pages[row.page], prepared.cells.file)
        return row

    def _adopted(
        self,
        connection: Connection,
        state: FileState,
        row: LedgerRow,
        file: ImageFile,
        sha256: str,
        was: ImageState = "scored",
    ) -> LedgerRow:
        """Return the row of the same image where it was scored (or refused) before it moved here, else `row` itself."""
        for old_id, old_path in ledger.moved_from(
            connection, row.image_id, file, row.page, sha256, was, self._plan.source
        ):
            if not is_there(Path(old_path)):
                return self._adopt(connection, state, row, old_id, old_path)
        return row

    def _adopt(self, connection: Connection, state: FileState, row: LedgerRow, old_id: int, old_path: str) -> LedgerRow:
        self._files.recall(connection, [old_path])
        ledger.adopt(connection, row.image_id, old_id, str(state.path))
        old = self._files.get(old_path)
        if old is not None:
            old.rows.pop(row.page, None)
            self._files.rest(old)
        state.rows[row.page] = ledger.row_of(connection, old_id)
        return state.rows[row.page]

    def _wins(self, connection: Connection, row: LedgerRow, place: dict[str, Any], sha256: str) -> bool:
        """Say whether an image may count at its place; if another one does, one of the two says why not."""
        owner = ledger.site_owner(connection, row.image_id, place)
        if owner is None:
            return True
        owner_id, path, owner_sha256 = owner
        if owner_sha256 == sha256:
            self.put(connection, [row], "skipped", COPY.format(path))
            return False
        if is_there(Path(path)):
            remedy = "remove one and run again, or give this plate another name"
            self.put(connection, [row], "failed", f"a second image for the place of {path}; {remedy}")
            return False
        self._files.recall(connection, [path])
        (old,) = owners = [ledger.row_of(connection, owner_id)]
        self._supersede(connection, owners, f"its file is gone and {row.path} took its place")
        if (state := self._files.get(path)) is not None:
            state.rows.pop(old.page, None)
        return True

    def _supersede(self, connection: Connection, rows: list[LedgerRow], reason: str) -> None:
        """Put rows out of use; copies of them, which were skipped because of them, are to be judged again."""
        self.put(connection, rows, "superseded", reason)
        for row in rows:
            ledger.ask_again(connection, {"reason": COPY.format(row.path)}, states=("skipped",))

    def _elsewhere(self, row: LedgerRow, place: dict[str, Any]) -> bool:
        return any(getattr(row, name) != place[name] for name in PLACE)

    def _next_generation(
        self, connection: Connection, state: FileState, old: LedgerRow, page: Page, file: ImageFile
    ) -> LedgerRow:
        """Supersede the row of a file whose pixels changed; return the new row that takes its place."""
        changed = moment_of(file.mtime_ns).isoformat(timespec="seconds")
        if ledger.path_of(connection, old.image_id) == str(state.path):  # else it moved to another watched folder
            self._supersede(connection, [old], f"the file was changed at {changed} and read anew")
        seen = SeenFile(file.path, file.size, file.mtime_ns)
        place = place_of(page, old.plate_id or 0)
        (row,) = self._files.insert(connection, [new_row(seen, "pending", TURN, place)])
        state.rows[old.page] = row
        log.warning("%s was changed after it was scored; the old scores are superseded", file.path)
        return row


def _done(file: ImageFile, sha256: str, page: Page) -> dict[str, Any]:
    """Return the columns that say what was read of an image and when."""
    # A page of a growing stack is looked at again, with the whole file, when that rests.
    time_ns = 0 if file.growing else file.mtime_ns
    read = {"sha256": sha256, "size": file.size, "mtime_ns": time_ns, "attempts": 0, "done_at": utc_now()}
    return read | measured(page)
