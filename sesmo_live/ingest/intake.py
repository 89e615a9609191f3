"""The intake of one watched folder: sightings in, jobs out, outcomes into the ledger.

One thread calls everything here, with the one write connection; work runs elsewhere and comes back as messages.
"""

import contextlib
import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from acquisition.folder import SeenFile, Sighting
from acquisition.layouts import Named
from acquisition.metadata import PageInfo
from db import ledger, scores
from db.engine import utc_now
from db.ledger import LedgerRow
from sesmo_live.errors import ImageError, IncompleteImageError, SesmoError
from sesmo_live.ingest.choice import NOT_CHOSEN
from sesmo_live.ingest.placing import (
    WAITING,
    Page,
    WatchPlan,
    classify,
    inspect,
    place_pages,
    sight,
)
from sesmo_live.ingest.plates import PlateBook, PlateState
from sesmo_live.ingest.rows import blank_row, ledger_row, place_columns
from sesmo_live.pipeline import Job, Outcome, Pipeline
from sesmo_live.records import ImageFile, ImageState

log = logging.getLogger(__name__)

RETRY_AFTER_S = 5.0
"""Seconds before the first new attempt at a file that was incomplete or unreadable; doubled each time."""


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a reader thread found in a file: its pages, or why it cannot be read."""

    file: SeenFile
    pages: list[PageInfo] | SesmoError | OSError


class Intake:
    """Decides what every file of a watched folder is, hands out work, and keeps the ledger true."""

    def __init__(self, plan: WatchPlan, pipeline: Pipeline, post: Callable[[Any], None]) -> None:
        self.plan = plan
        self._under_way: Counter[str] = Counter()  # by path: inspections and images handed out and not yet back
        self._again: dict[str, SeenFile] = {}  # files sighted anew while they were under way
        self.rows: dict[str, list[LedgerRow]] = {}
        self.cells = 0
        """Cells scored in this run."""
        self._pipeline = pipeline
        self._post = post
        self._names: dict[str, Named] = {}
        self._book = PlateBook(plan)
        self._pages: dict[int, Page] = {}
        self._touched: set[int] = set()
        self._due: list[tuple[float, Path]] = []

    # -- sightings -------------------------------------------------------------------------------------------------

    def load(self, connection: Connection) -> None:
        """Read what the ledger already knows of this folder."""
        for row in ledger.known_images(connection, self.plan.root):
            self.rows.setdefault(row.path, []).append(row)

    def see(self, connection: Connection, sighting: Sighting) -> None:
        """Enter new files, start settled ones, and mark those that went away unscored."""
        fresh = [file for file in sighting.new if self._is_fresh(connection, file)]
        rows = [self._new_row(connection, file) for file in fresh]
        for file, values, image_id in zip(fresh, rows, ledger.insert_images(connection, rows), strict=True):
            self.rows[str(file.path)] = [ledger_row(image_id, values)]
            self._touched.add(image_id)
        for plate in self._book.review(connection):
            self._change_sides(connection, plate)
        for file in sighting.settled:
            self._start(file)
        for path in sighting.gone:
            lost = [row for row in self.rows.get(str(path), []) if row.state == "pending"]
            self._set(
                connection, lost, "failed", "the file went away before it was scored; put it back to have it scored"
            )
            for row in lost:
                row.size = -1  # so that the same file is new again when it comes back

    def retry_due(self) -> None:
        """Start again the files whose waiting time is over."""
        while self._due and self._due[0][0] <= time.monotonic():
            path = heapq.heappop(self._due)[1]
            with contextlib.suppress(OSError):  # a file that went away is the next sighting's business
                self._start(sight(path))

    def _is_fresh(self, connection: Connection, file: SeenFile) -> bool:
        """Say whether a file needs a ledger row; names are parsed anew in every run, as layouts get corrected."""
        known = self.rows.get(str(file.path)) or self._moved(connection, file)
        if known is None:
            return True
        named, state, reason = classify(self.plan, file.path)
        if named is not None and not named.skip:
            self._names[str(file.path)] = named
            self._book.plate_of(connection, named, file)
        if state != "pending" and known[0].state != "scored":
            self._set(connection, [row for row in known if (row.state, row.reason) != (state, reason)], state, reason)
        elif state == "pending" and known[0].plate_id is None:
            values = self._new_row(connection, file)
            ledger.update_images(connection, [{"image_id": known[0].image_id, **values}])
            self.rows[str(file.path)] = [ledger_row(known[0].image_id, values)]
        return False

    def _moved(self, connection: Connection, file: SeenFile) -> list[LedgerRow] | None:
        """Return the rows of a file that was moved here from where it was scored, at their new path."""
        rows = ledger.images_like(connection, file.path.name, file.size, file.mtime_ns)
        rows = [row for row in rows if not Path(row.path).exists()]
        if not rows:
            return None
        rows = [row for row in rows if row.path == rows[0].path]
        ledger.update_images(connection, [{"image_id": row.image_id, "path": str(file.path)} for row in rows])
        for row in rows:
            row.path = str(file.path)
        self.rows[str(file.path)] = rows
        return rows

    def _new_row(self, connection: Connection, file: SeenFile) -> dict[str, Any]:
        named, state, reason = classify(self.plan, file.path)
        values = blank_row(file, state, reason)
        if named is not None and not named.skip:
            self._names[str(file.path)] = named
            plate = self._book.plate_of(connection, named, file)
            values |= {"plate_id": plate.plate_id, "channel": named.channel, "z": named.z}
            if named.well is not None:
                values |= {"well": named.well, "field": named.field, "timepoint": named.timepoint}
        return values

    # -- work ------------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Say whether files or images are handed out and not yet back."""
        return bool(self._under_way)

    def _back(self, path: Path) -> None:
        """Note that something handed out is back; start the file again if it was sighted anew meanwhile."""
        self._under_way -= Counter({str(path): 1})
        if str(path) not in self._under_way and str(path) in self._again:
            self._start(self._again.pop(str(path)))

    def _start(self, file: SeenFile) -> None:
        """Have a settled file inspected, unless all of it is done already."""
        if str(file.path) in self._under_way:
            self._again[str(file.path)] = file
            return
        rows = self.rows[str(file.path)]
        if str(file.path) not in self._names:
            return
        if all((row.size, row.mtime_ns) == (file.size, file.mtime_ns) and self._final(row) for row in rows):
            return

        def task() -> None:
            try:
                found: list[PageInfo] | SesmoError | OSError = inspect(file.path)
            except (SesmoError, OSError) as error:
                found = error
            except Exception as error:  # noqa: BLE001 — a worker's top: one file's surprise must not end the night
                found = ImageError(
                    f"{file.path} could not be read: {type(error).__name__}: {error}; please report this"
                )
            self._post((self, Inspected(file, found)))

        self._under_way[str(file.path)] += 1
        self._pipeline.call(task)

    def _final(self, row: LedgerRow) -> bool:
        return self.plan.model_key in row.scored_by if row.state == "scored" else row.state != "pending"

    def inspected(self, connection: Connection, found: Inspected) -> None:
        """Place the pages of a file, enter those that are new, and hand the chosen ones to the pipeline."""
        self._take_up(connection, found)
        self._back(found.file.path)

    def _take_up(self, connection: Connection, found: Inspected) -> None:
        file, rows = found.file, self.rows[str(found.file.path)]
        if isinstance(found.pages, Exception):
            self._trouble(connection, rows, file, found.pages)
            return
        named = self._names[str(file.path)]
        plate = self._book.plate_of(connection, named, file)
        try:
            pages = place_pages(self.plan, file, plate.name, plate.run, named, found.pages)
        except ImageError as error:
            self._trouble(connection, rows, file, error)
            return
        self._enter_pages(connection, plate, file, pages)
        seen = [(page.site.channel, page.channel_label, page.site.z) for page in pages]
        if self._book.choose(connection, plate, seen):
            self._change_sides(connection, plate)
        for row in self.rows[str(file.path)]:
            changed = (row.size, row.mtime_ns) != (file.size, file.mtime_ns)
            if row.state != "superseded" and (changed or not self._final(row)):
                self._submit(connection, plate, row, file)

    def _enter_pages(self, connection: Connection, plate: PlateState, file: SeenFile, pages: list[Page]) -> None:
        """Give every page its row, at the place that is now known of it."""
        rows = {row.page: row for row in self.rows[str(file.path)]}
        new = [page for page in pages if page.page not in rows]
        values = [blank_row(file, "pending", WAITING) | place_columns(page, plate.plate_id) for page in new]
        for page, row_values, image_id in zip(new, values, ledger.insert_images(connection, values), strict=True):
            rows[page.page] = ledger_row(image_id, row_values)
            self._touched.add(image_id)
        named = self._names[str(file.path)]
        for page in pages:
            row = rows[page.page]
            self._pages[row.image_id] = page
            if page not in new and (named.well is None or len(pages) > 1 or row.channel != page.site.channel):
                ledger.update_images(connection, [{"image_id": row.image_id, **place_columns(page, plate.plate_id)}])
                row.plate_id, row.channel, row.z = plate.plate_id, page.site.channel, page.site.z
        self.rows[str(file.path)] = [rows[number] for number in sorted(rows)]

    def _change_sides(self, connection: Connection, plate: PlateState) -> None:
        """Let go images of a channel that was scored until a better one turned up, and take up the others."""
        for rows in self.rows.values():
            for row in rows:
                if row.plate_id != plate.plate_id:
                    continue
                reason = plate.not_chosen(row.channel, row.z)
                if row.state == "scored" and reason:
                    self._set(connection, [row], "skipped", reason)
                elif row.state == "skipped" and row.reason.startswith(NOT_CHOSEN) and not reason:
                    self._set(connection, [row], "pending", "waiting to be scored")
                    self._start(SeenFile(Path(row.path), row.size, row.mtime_ns))

    def _submit(self, connection: Connection, plate: PlateState, row: LedgerRow, file: SeenFile) -> None:
        reason = plate.not_chosen(row.channel, row.z)
        if reason:
            if (row.state, row.reason) != ("skipped", reason):
                self._set(connection, [row], "skipped", reason)
            row.size, row.mtime_ns = file.size, file.mtime_ns
            return
        page = self._pages[row.image_id]
        image = ImageFile(file.path, row.page, page.site, file.size, file.mtime_ns, page.acquired_at, page.pixel_um)
        self._under_way[str(file.path)] += 1
        self._pipeline.submit(Job(row.image_id, image, self.plan.recipe))

    # -- outcomes --------------------------------------------------------------------------------------------------

    def finish(self, connection: Connection, outcome: Outcome) -> None:
        """Write what became of one image: scores, cells and state in the caller's one transaction."""
        self._record(connection, outcome)
        self._back(outcome.job.file.path)

    def _record(self, connection: Connection, outcome: Outcome) -> None:
        file = outcome.job.file
        rows = self.rows[str(file.path)]
        row = next(row for row in rows if row.image_id == outcome.job.image_id)
        if outcome.error is not None:
            self._trouble(connection, [row], SeenFile(file.path, file.size, file.mtime_ns), outcome.error)
            return
        if outcome.prepared is None or outcome.scores is None:
            raise TypeError("an outcome without an error carries scores")
        not_chosen = self._book.by_id(row.plate_id).not_chosen(row.channel, row.z)
        if not_chosen:  # a better channel turned up while this one was being scored
            self._set(connection, [row], "skipped", not_chosen)
            return
        same = row.sha256 in (None, outcome.prepared.sha256)
        if not same:
            row = self._next_generation(connection, rows, row, file)
        values = self._measured(outcome, row)
        if self.plan.model_key not in row.scored_by:
            owner = ledger.site_owner(connection, values)
            if owner is not None:
                self._refuse_double(connection, row, owner, outcome.prepared.sha256)
                return
            quality = outcome.prepared.quality
            scores.save_scores(
                connection, row.image_id, self.plan.model_key, outcome.scores, self.plan.threshold, quality
            )
            row.scored_by.add(self.plan.model_key)
            self._touched.add(row.image_id)
            self.cells += len(outcome.scores.values)
        values.pop("id")
        ledger.update_images(connection, [{"image_id": row.image_id, **values}])
        row.state, row.reason, row.sha256 = "scored", "", outcome.prepared.sha256
        row.size, row.mtime_ns = file.size, file.mtime_ns
        self._pages.pop(row.image_id, None)

    def _measured(self, outcome: Outcome, row: LedgerRow) -> dict[str, Any]:
        """Return the columns of a scored image."""
        page = self._pages[row.image_id]
        file, prepared = outcome.job.file, outcome.prepared
        stage = page.stage_um or (None, None)
        return {
            "id": row.image_id,
            "plate_id": row.plate_id,
            "well": page.site.well,
            "field": page.site.field,
            "timepoint": page.site.timepoint,
            "channel": page.site.channel,
            "z": page.site.z,
            "size": file.size,
            "mtime_ns": file.mtime_ns,
            "acquired_at": page.acquired_at,
            "acquired_from": page.acquired_from,
            "pixel_um": page.pixel_um,
            "stage_x_um": stage[0],
            "stage_y_um": stage[1],
            "sha256": prepared.sha256 if prepared else None,
            "state": "scored",
            "reason": "",
            "done_at": utc_now(),
        }

    def _next_generation(
        self, connection: Connection, rows: list[LedgerRow], old: LedgerRow, file: ImageFile
    ) -> LedgerRow:
        """Supersede the row of a file whose pixels changed; return the new row that takes its place."""
        changed = datetime.fromtimestamp(file.mtime_ns / 1e9, UTC).isoformat(timespec="seconds")
        self._set(connection, [old], "superseded", f"the file was changed at {changed} and scored anew")
        page = self._pages[old.image_id]
        seen = SeenFile(file.path, file.size, file.mtime_ns)
        values = blank_row(seen, "pending", "waiting to be scored") | place_columns(page, old.plate_id)
        values |= {"generation": old.generation + 1}
        row = ledger_row(ledger.insert_images(connection, [values])[0], values)
        rows[rows.index(old)] = row
        self._pages[row.image_id] = page
        log.warning("%s was changed after it was scored; the old scores are superseded", file.path)
        return row

    def _refuse_double(
        self, connection: Connection, row: LedgerRow, owner: tuple[int, str, str | None], sha256: str
    ) -> None:
        _, path, owner_sha256 = owner
        if owner_sha256 == sha256:
            self._set(connection, [row], "skipped", f"a copy of {path}, which is scored")
        else:
            self._set(
                connection,
                [row],
                "failed",
                f"a second image for the place of {path}; remove one, or give this plate another name",
            )

    def _trouble(
        self, connection: Connection, rows: list[LedgerRow], file: SeenFile, error: SesmoError | OSError
    ) -> None:
        """Try an incomplete or unreadable file again later, then fail it; other errors fail at once."""
        passing = isinstance(error, IncompleteImageError | OSError)
        for row in rows:
            row.size, row.mtime_ns = file.size, file.mtime_ns
            if passing and row.attempts < self.plan.retries:
                wait_s = RETRY_AFTER_S * 2**row.attempts
                row.attempts, row.state, row.reason = row.attempts + 1, "pending", str(error)
                change = {"image_id": row.image_id, "state": "pending", "reason": str(error), "attempts": row.attempts}
                later = utc_now() + timedelta(seconds=wait_s)
                ledger.update_images(connection, [{**change, "next_attempt_at": later}])
                heapq.heappush(self._due, (time.monotonic() + wait_s, file.path))
            else:
                log.warning("%s failed: %s", file.path, error)
                self._set(connection, [row], "failed", str(error))
                ledger.update_images(
                    connection, [{"image_id": row.image_id, "size": file.size, "mtime_ns": file.mtime_ns}]
                )

    def _set(self, connection: Connection, rows: list[LedgerRow], state: ImageState, reason: str) -> None:
        ledger.set_state(connection, [row.image_id for row in rows], state, reason)
        for row in rows:
            row.state, row.reason = state, reason
            self._touched.add(row.image_id)

    def summary(self) -> dict[str, int]:
        """Return how many of the folder's images this run scored, refused, failed, skipped or left unchanged."""
        counts = Counter(
            row.state if row.image_id in self._touched or row.state in ("failed", "pending") else "unchanged"
            for rows in self.rows.values()
            for row in rows
        )
        names = ("scored", "refused", "failed", "skipped", "unchanged", "pending")
        return {"images": counts.total(), **{name: counts[name] for name in names}}

    def failures(self) -> list[tuple[str, str]]:
        """Return (path, reason) of every failed image of the folder."""
        rows = [row for rows in self.rows.values() for row in rows if row.state == "failed"]
        return [(row.path, row.reason) for row in rows]
