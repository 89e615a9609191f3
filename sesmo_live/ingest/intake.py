"""The intake of one watched folder: sightings in, jobs out, outcomes into the ledger.

One thread calls everything here, with the one write connection; work runs elsewhere and comes back as messages.
"""

import heapq
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from acquisition.folder import SeenFile, Sighting
from acquisition.metadata import PageInfo
from acquisition.ndtiff import is_ndtiff
from db import ledger, scores
from db.engine import utc_now
from db.ledger import LedgerRow
from sesmo_live.errors import ImageError, IncompleteImageError, SesmoError
from sesmo_live.ingest.choice import NOT_CHOSEN
from sesmo_live.ingest.placing import TURN, WAITING, Page, WatchPlan, classify, inspect, place_pages, sight
from sesmo_live.ingest.plates import PlateBook, PlateState
from sesmo_live.ingest.rows import FileState, change, insert, is_misplaced, match_pages, measured, new_row, place_of
from sesmo_live.pipeline import Job, Outcome, Pipeline
from sesmo_live.records import ImageFile, ImageState

log = logging.getLogger(__name__)

RETRY_AFTER_S = 5.0
"""Seconds before the first new attempt at a file that was incomplete or unreadable; doubled each time."""

FILES_UNDER_WAY = 64
"""Files handed out at a time; the others wait, so that a large folder costs no memory and gives scores at once."""

WENT_AWAY = "the file went away before it was scored; put it back to have it scored"


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a reader thread found in a file: its pages, or why it cannot be read."""

    file: SeenFile
    pages: list[PageInfo] | SesmoError | OSError


class Intake:
    """Decides what every file of a watched folder is, hands out work, and keeps the ledger true."""

    def __init__(self, plan: WatchPlan, pipeline: Pipeline, post: Callable[[Any], None]) -> None:
        self.plan = plan
        self.cells = 0
        """Cells scored in this run."""
        self._pipeline = pipeline
        self._post = post
        self._book = PlateBook(plan)
        self._files: dict[str, FileState] = {}
        self._touched: set[int] = set()
        self._ready: deque[SeenFile] = deque()
        self._under_way = 0
        self._due: list[tuple[float, Path]] = []

    # -- sightings -------------------------------------------------------------------------------------------------

    def load(self, connection: Connection) -> None:
        """Read what the ledger already knows of this folder."""
        for row in ledger.known_images(connection, self.plan.root):
            self._files.setdefault(row.path, FileState(Path(row.path))).rows[row.page] = row

    def missing(self, files: Iterable[SeenFile]) -> list[Path]:
        """Return the known files that the first scan did not find."""
        found = {str(file.path) for file in files}
        return [state.path for path, state in self._files.items() if path not in found]

    def see(self, connection: Connection, sighting: Sighting) -> None:
        """Enter new files, start settled ones, and mark those that went away unscored."""
        self._enter(connection, sighting.new)
        for plate in self._book.review(connection):
            self._change_sides(connection, plate)
        self._ready.extend(sighting.settled)
        for path in sighting.gone:
            self._lose(connection, path)
        self._feed()

    def _enter(self, connection: Connection, files: list[SeenFile]) -> None:
        """Give new files their rows, and known ones another look: names are parsed anew, failures get a chance."""
        fresh: list[FileState] = []
        values: list[dict[str, Any]] = []
        for seen in files:
            state = self._files.setdefault(str(seen.path), FileState(seen.path))
            named, verdict, reason = classify(self.plan, seen.path)
            state.present, state.attempts = True, 0
            state.named = named if verdict == "pending" else None
            state.plate = self._book.plate_of(connection, state.named, seen) if state.named else None
            place: dict[str, Any] = {}
            if state.named and state.plate:
                place = {"plate_id": state.plate.plate_id, "channel": state.named.channel, "z": state.named.z}
                if state.named.well is not None:
                    where = ("well", "field", "timepoint")
                    place |= {name: getattr(state.named, name) for name in where}
            if not state.rows:
                fresh.append(state)
                values.append(new_row(seen, verdict, reason, place))
                continue
            rows = state.rows.values()
            if verdict != "pending":
                self._set(connection, [row for row in rows if row.state != "scored"], verdict, reason)
                continue
            again = [row for row in rows if row.state == "failed" or (row.state == "skipped" and row.well is None)]
            change(connection, again, state="pending", reason=WAITING)
            state.misplaced = is_misplaced(state, place)
        for state, row in zip(fresh, insert(connection, values), strict=True):
            state.rows[0] = row
            self._touched.add(row.image_id)

    def _lose(self, connection: Connection, path: Path) -> None:
        """Note that a file is no longer there; what was scored of it stays."""
        state = self._files.get(str(path))
        if state is not None:
            state.present = False
            self._set(connection, [row for row in state.rows.values() if row.state == "pending"], "failed", WENT_AWAY)

    def retry_due(self, connection: Connection) -> None:
        """Start again the files whose waiting time is over."""
        while self._due and self._due[0][0] <= time.monotonic():
            path = heapq.heappop(self._due)[1]
            try:
                self._ready.append(sight(path))
            except OSError:
                self._lose(connection, path)
        self._feed()

    @property
    def has_due(self) -> bool:
        """Say whether a file's waiting time is over."""
        return bool(self._due) and self._due[0][0] <= time.monotonic()

    # -- work ------------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Say whether files are handed out or wait to be."""
        return bool(self._under_way or self._ready)

    def _feed(self) -> None:
        while self._ready and self._under_way < FILES_UNDER_WAY:
            self._start(self._ready.popleft())

    def _start(self, seen: SeenFile) -> None:
        """Have a settled file inspected, unless all of it is done already."""
        state = self._files[str(seen.path)]
        if state.under_way:
            state.again = seen
            return
        if state.named is None or self._finished(state, seen):
            return

        def task() -> None:
            try:
                found: list[PageInfo] | SesmoError | OSError = inspect(seen.path)
            except (SesmoError, OSError) as error:
                found = error
            except Exception as error:  # noqa: BLE001 — a worker's top: one file's surprise must not end the night
                found = ImageError(f"{seen.path} could not be read: {type(error).__name__}: {error}; please report it")
            self._post((self, Inspected(seen, found)))

        state.under_way = 1
        self._under_way += 1
        self._pipeline.call(task)

    def _back(self, state: FileState) -> None:
        """Note that something handed out is back; start the file again if it was sighted anew meanwhile."""
        state.under_way -= 1
        if state.under_way == 0:
            self._under_way -= 1
            state.pages.clear()
            if state.again is not None:
                self._ready.appendleft(state.again)
                state.again = None
            self._feed()

    def _finished(self, state: FileState, seen: SeenFile) -> bool:
        unchanged = all((row.size, row.mtime_ns) == (seen.size, seen.mtime_ns) for row in state.rows.values())
        return unchanged and not state.misplaced and all(self._final(row) for row in state.rows.values())

    def _final(self, row: LedgerRow) -> bool:
        return self.plan.model_key in row.scored_by if row.state == "scored" else row.state != "pending"

    def inspected(self, connection: Connection, found: Inspected) -> None:
        """Place the pages of a file, enter those that are new, and hand the chosen ones to the pipeline."""
        state = self._files[str(found.file.path)]
        if isinstance(found.pages, Exception):
            self._trouble(connection, state, list(state.rows.values()), found.file, found.pages)
        else:
            self._take_up(connection, state, found.file, found.pages)
        self._back(state)

    def _take_up(self, connection: Connection, state: FileState, seen: SeenFile, infos: list[PageInfo]) -> None:
        plate, named = state.plate, state.named
        if plate is None or named is None:  # its name was judged anew since it was handed out
            return
        try:
            pages = place_pages(self.plan, seen, plate.name, plate.run, named, infos)
        except ImageError as error:
            self._trouble(connection, state, list(state.rows.values()), seen, error)
            return
        entered, lost = match_pages(connection, state, plate.plate_id, seen, pages)
        self._touched.update(row.image_id for row in entered)
        self._set(connection, lost, "superseded", f"the file was changed and has {len(pages)} pages now")
        if self._book.choose(connection, plate, [(p.site.channel, p.channel_label, p.site.z) for p in pages]):
            self._change_sides(connection, plate)
        for page in pages:
            self._submit(connection, state, state.rows[page.page], page, seen)

    def _submit(self, connection: Connection, state: FileState, row: LedgerRow, page: Page, seen: SeenFile) -> None:
        """Hand one page to the pipeline, unless it is done, or not to be scored."""
        reason = state.plate.not_chosen(row.channel, row.z) if state.plate else ""
        if reason:
            self._set(connection, [row], "skipped", reason)
            change(connection, [row], size=seen.size, mtime_ns=seen.mtime_ns)
            return
        unchanged = (row.size, row.mtime_ns) == (seen.size, seen.mtime_ns)
        # NDTiff is only ever appended to: what was scored of it is not read again when it grows.
        if self._final(row) and (unchanged or (row.state == "scored" and is_ndtiff(seen.path))):
            change(connection, [row], size=seen.size, mtime_ns=seen.mtime_ns)
            return
        image = ImageFile(seen.path, row.page, page.site, seen.size, seen.mtime_ns, page.acquired_at, page.pixel_um)
        state.pages[row.page] = page
        state.under_way += 1
        self._pipeline.submit(Job(row.image_id, image, self.plan.recipe))

    def _change_sides(self, connection: Connection, plate: PlateState) -> None:
        """Let go images of a channel that was scored until a better one turned up, and take up the others."""
        for state in self._files.values():
            for row in state.rows.values():
                if row.plate_id != plate.plate_id or not state.present:
                    continue
                reason = plate.not_chosen(row.channel, row.z)
                if row.state == "scored" and reason:
                    self._set(connection, [row], "skipped", reason)
                elif row.state == "skipped" and row.reason.startswith(NOT_CHOSEN) and not reason:
                    self._set(connection, [row], "pending", TURN)
                    self._ready.append(SeenFile(state.path, row.size, row.mtime_ns))

    # -- outcomes --------------------------------------------------------------------------------------------------

    def finish(self, connection: Connection, outcome: Outcome) -> None:
        """Write what became of one image: scores, cells and state in the caller's one transaction."""
        state = self._files[str(outcome.job.file.path)]
        row = state.rows.get(outcome.job.file.page)
        if row is not None and row.image_id == outcome.job.image_id:
            if outcome.error is not None:
                file = outcome.job.file
                self._trouble(connection, state, [row], SeenFile(file.path, file.size, file.mtime_ns), outcome.error)
            else:
                self._record(connection, state, row, outcome)
        self._back(state)

    def _record(self, connection: Connection, state: FileState, row: LedgerRow, outcome: Outcome) -> None:
        if outcome.prepared is None or outcome.scores is None or state.plate is None:
            raise TypeError("an outcome without an error carries scores, for a file that has a plate")
        file, sha256, page = outcome.job.file, outcome.prepared.sha256, state.pages[row.page]
        reason = state.plate.not_chosen(row.channel, row.z)
        if reason:  # a better channel turned up while this one was being scored
            self._set(connection, [row], "skipped", reason)
            return
        if row.sha256 not in (None, sha256):
            row = self._next_generation(connection, state, row, page, file)
        known = row.sha256 is not None
        row = row if known else self._adopted(connection, state, row, file, sha256)
        place = place_of(page, state.plate.plate_id)
        if row.state != "scored" and not self._wins(connection, row, place, sha256):
            change(connection, [row], size=file.size, mtime_ns=file.mtime_ns)
            return
        if self.plan.model_key not in row.scored_by:
            quality, threshold = outcome.prepared.quality, self.plan.threshold
            scores.save_scores(connection, row.image_id, self.plan.model_key, outcome.scores, threshold, quality)
            row.scored_by.add(self.plan.model_key)
            self._touched.add(row.image_id)
            self.cells += len(outcome.scores.values)
        state.attempts = 0
        done = {"state": "scored", "reason": "", "sha256": sha256, "size": file.size, "mtime_ns": file.mtime_ns}
        change(connection, [row], **done, attempts=0, **measured(page), done_at=utc_now())

    def _adopted(
        self, connection: Connection, state: FileState, row: LedgerRow, file: ImageFile, sha256: str
    ) -> LedgerRow:
        """Return the row of the same image where it was scored before it moved here, else `row` itself."""
        for old_id, old_path in ledger.moved_from(connection, row.image_id, file, row.page, sha256):
            if not Path(old_path).exists():
                return self._adopt(connection, state, row, old_id, old_path)
        return row

    def _adopt(self, connection: Connection, state: FileState, row: LedgerRow, old_id: int, old_path: str) -> LedgerRow:
        ledger.adopt(connection, row.image_id, old_id, str(state.path))
        old = self._files.get(old_path)
        if old is not None:
            old.rows.pop(row.page, None)
        state.rows[row.page] = ledger.row_of(connection, old_id)
        return state.rows[row.page]

    def _wins(self, connection: Connection, row: LedgerRow, place: dict[str, Any], sha256: str) -> bool:
        """Say whether an image may count at its place; if another one does, one of the two says why not."""
        owner = ledger.site_owner(connection, row.image_id, place)
        if owner is None:
            return True
        owner_id, path, owner_sha256 = owner
        if owner_sha256 == sha256:
            self._set(connection, [row], "skipped", f"a copy of {path}, which is scored")
            return False
        if Path(path).exists():
            remedy = "remove one and run again, or give this plate another name"
            self._set(connection, [row], "failed", f"a second image for the place of {path}; {remedy}")
            return False
        (old,) = owners = [ledger.row_of(connection, owner_id)]
        self._set(connection, owners, "superseded", f"its file is gone and {row.path} took its place")
        if path in self._files:
            self._files[path].rows.pop(old.page, None)
        return True

    def _next_generation(
        self, connection: Connection, state: FileState, old: LedgerRow, page: Page, file: ImageFile
    ) -> LedgerRow:
        """Supersede the row of a file whose pixels changed; return the new row that takes its place."""
        changed = datetime.fromtimestamp(file.mtime_ns / 1e9, UTC).isoformat(timespec="seconds")
        self._set(connection, [old], "superseded", f"the file was changed at {changed} and scored anew")
        seen = SeenFile(file.path, file.size, file.mtime_ns)
        place = place_of(page, old.plate_id or 0)
        (row,) = insert(connection, [new_row(seen, "pending", TURN, place)])
        state.rows[old.page] = row
        log.warning("%s was changed after it was scored; the old scores are superseded", file.path)
        return row

    def _trouble(
        self,
        connection: Connection,
        state: FileState,
        rows: list[LedgerRow],
        seen: SeenFile,
        error: SesmoError | OSError,
    ) -> None:
        """Try an incomplete or unreadable file again later, then fail it; other errors fail at once.

        What was scored of a file stays scored while the file is only incomplete, as when a stack grows.
        """
        passing = isinstance(error, IncompleteImageError | OSError)
        if passing and not state.path.exists():
            self._lose(connection, state.path)
            return
        rows = [row for row in rows if row.state != "scored"]
        if passing and state.attempts < self.plan.retries:
            wait_s = RETRY_AFTER_S * 2**state.attempts
            state.attempts += 1
            change(connection, rows, state="pending", reason=str(error), attempts=state.attempts)
            heapq.heappush(self._due, (time.monotonic() + wait_s, state.path))
            return
        if rows or not passing:
            log.warning("failed: %s", error)
        self._set(connection, rows, "failed", str(error))
        change(connection, rows, size=seen.size, mtime_ns=seen.mtime_ns)

    def _set(self, connection: Connection, rows: Iterable[LedgerRow], state: ImageState, reason: str) -> None:
        """Put rows into a state, with its reason in words."""
        different = [row for row in rows if (row.state, row.reason) != (state, reason)]
        change(connection, different, state=state, reason=reason)
        self._touched.update(row.image_id for row in different)

    # -- answers ---------------------------------------------------------------------------------------------------

    def _counted(self) -> Iterable[LedgerRow]:
        """Return the rows of the files that are there, and of those that went away in this run."""
        for state in self._files.values():
            for row in state.rows.values():
                if state.present or row.image_id in self._touched:
                    yield row

    def summary(self) -> dict[str, int]:
        """Return how many of the folder's images this run scored, refused, failed, skipped or left unchanged."""
        counts = Counter(
            row.state if row.image_id in self._touched or row.state in ("failed", "pending") else "unchanged"
            for row in self._counted()
        )
        names = ("scored", "refused", "failed", "skipped", "unchanged", "pending")
        return {"images": counts.total(), **{name: counts[name] for name in names}}

    def failures(self) -> list[tuple[str, str]]:
        """Return (path, reason) of every failed image of the folder."""
        return [(row.path, row.reason) for row in self._counted() if row.state == "failed"]
