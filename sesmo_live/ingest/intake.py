"""The intake of one watched folder: sightings in, jobs out, outcomes into the ledger.

One thread calls everything here, with the one write connection; work runs elsewhere and comes back as messages.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from acquisition.folder import Sighting
from acquisition.ndtiff import is_ndtiff
from acquisition.tree import SeenFile
from db import ledger
from db.engine import utc_now
from db.ledger import LedgerRow
from sesmo_live.errors import ImageError, IncompleteImageError, SesmoError
from sesmo_live.ingest.companions import NAMED, await_companions
from sesmo_live.ingest.files import Files
from sesmo_live.ingest.judging import Judge
from sesmo_live.ingest.looking import Inspected, look_into
from sesmo_live.ingest.patience import Patience
from sesmo_live.ingest.placing import TURN, WAITING, Page, WatchPlan, place_pages, sight, surprise
from sesmo_live.ingest.plates import PlateBook, PlateState
from sesmo_live.ingest.reach import device_of, is_there
from sesmo_live.ingest.rows import (
    FileState,
    change,
    enter_withheld,
    is_misplaced,
    match_pages,
    new_row,
)
from sesmo_live.ingest.sides import change_sides, with_another_chance
from sesmo_live.pipeline import AnyPipeline, Halt, Job, Outcome
from sesmo_live.records import ImageFile, ImageState

log = logging.getLogger(__name__)

FILES_UNDER_WAY = 64
"""Files handed out at a time; the others wait, so that a large folder costs no memory and gives scores at once."""

DIED = "its decoder died"
"""What the reason of a file says whose reading killed a process; it is read apart from then on."""

WENT_AWAY = "the file went away before it was scored; put it back to have it scored"


class Intake:
    """Decides what every file of a watched folder is, hands out work, and keeps the ledger true."""

    def __init__(self, plan: WatchPlan, pipeline: AnyPipeline, post: Callable[[Any], None]) -> None:
        self.plan = plan
        self.trouble = ""  # why nothing is worked on now, in words: the folder cannot be reached
        self.mode = ""  # how the folder is watched, in words
        self.scanned_at: datetime | None = None
        self.arrivals: list[tuple[PlateState, int, bool]] = []
        """Plate and time point of images that landed since somebody took them, and whether they lay there before."""
        self._pipeline = pipeline
        self._post = post
        self._book = PlateBook(plan)
        self.files = Files(plan.root, plan.source)
        self.judge = Judge(plan, self.files)
        self._device: int | None = None  # where the folder lies, once it was seen
        self._unfinished: list[Path] = []
        self._interrupted: set[Path] = set()
        self._backlog = True
        self._ready: deque[tuple[SeenFile, bool]] = deque()
        self._late: deque[tuple[SeenFile, bool]] = deque()  # what may have killed the last process: alone, at last
        self._under_way = 0
        self._patience = Patience(plan)

    def load(self, connection: Connection, before: "Intake | None" = None) -> None:
        """Read what the ledger knows of this folder; `before` is the intake that this one goes on for."""
        if before is not None:
            self.trouble = before.trouble
            self.judge.go_on_for(before.judge)
        for row in self.files.load(connection, before.files if before else None):
            if row.state == "failed" and DIED in row.reason:
                self.plan.suspects.setdefault(row.path, [])
        self._unfinished = [state.path for state in self.files]

    def missing(self, files: Iterable[SeenFile]) -> list[Path]:
        """Return the files that are not done and that the first scan did not find."""
        found = {file.path for file in files}
        return [path for path in self._unfinished if path not in found]

    def see(self, connection: Connection, sighting: Sighting) -> None:
        """Enter new files, start settled ones, and mark those that went away unscored."""
        self.mode, self.scanned_at = sighting.mode or self.mode, utc_now()
        if sighting.trouble:
            self.trouble, self._backlog = sighting.trouble, True
            return
        self._device = device_of(self.plan.root)
        self.trouble, interrupted, self._interrupted = "", self._interrupted, set()
        for path in interrupted:
            self._again(connection, path)
        self._enter(connection, sighting.new)
        for plate in self._book.review(connection):
            self._change_sides(connection, plate)
        for seen in sighting.settled:
            (self._late if str(seen.path) in self.plan.suspects else self._ready).append((seen, False))
        self._ready.extend((seen, True) for seen in sighting.growing)
        for path in sighting.gone:
            self._lose(connection, path)
        for path in self._patience.take_vouched(self.plan.root):
            if (state := self.files.get(str(path))) is not None:
                failed = [row for row in state.rows.values() if row.state == "failed"]
                self.judge.put(connection, failed, "pending", TURN)
            self._again(connection, path, asked=True)
        self._backlog = self._backlog and bool(sighting.new)  # what lay there is told first, then what can be read
        self._feed(connection)

    def _again(self, connection: Connection, path: Path, *, asked: bool = False) -> None:
        """Start a file again, if it is as it was when it rested: one that changed is sighted anew, and rests first."""
        try:
            seen = sight(path)
        except (FileNotFoundError, NotADirectoryError):
            if self._away():
                self._interrupted.add(path)
            else:
                self._lose(connection, path)
        except OSError:  # its folder cannot be read now: it is looked for at each scan
            self._interrupted.add(path)
        else:
            state = self.files.get(str(path))
            if asked or state is None or state.tried in (None, (seen.size, seen.mtime_ns)):
                self._ready.append((seen, False))

    def _enter(self, connection: Connection, files: list[SeenFile]) -> None:
        """Give new files their rows, and known ones another look: names are parsed anew, what failed gets a chance."""
        fresh: list[FileState] = []
        values: list[dict[str, Any]] = []
        self.files.recall(connection, [str(seen.path) for seen in files])
        for seen in files:
            state = self.files.enter(seen.path)
            first, state.present, state.attempts, state.waits = not state.present, True, 0, False
            verdict, reason = self._name(connection, state, seen)
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
                self.judge.put(connection, [row for row in rows if row.state != "scored"], verdict, reason)
                continue
            again = with_another_chance(rows, state.plate, first=first)
            change(connection, again, state="pending", reason=WAITING)
            state.misplaced = is_misplaced(state, place)
        for state, row in zip(fresh, self.files.insert(connection, values), strict=True):
            state.rows[0] = row
            self.files.touch([row])
            if state.plate and row.timepoint is not None:
                self.arrivals.append((state.plate, row.timepoint, self._backlog))

    def _lose(self, connection: Connection, path: Path) -> None:
        """Note that a file is no longer there; what was scored of it stays."""
        self.files.recall(connection, [str(path)])
        state = self.files.get(str(path))
        if state is not None:
            state.present = False
            lost = [row for row in state.rows.values() if row.state == "pending" and not row.reason.startswith(NAMED)]
            self.judge.put(connection, lost, "failed", WENT_AWAY)
            self.files.rest(state)

    def retry_due(self, connection: Connection) -> None:
        """Start again the files whose waiting time is over."""
        for path in self._patience.take_due() if not self.trouble else ():
            if (state := self.files.get(str(path))) is not None:
                state.waits = False
            self._again(connection, path)
        self._feed(connection)

    def retry_asked(self, connection: Connection) -> None:
        """Start again the images that somebody asked, from outside this process, to be tried again."""
        if self._device is None:  # the first look at the folder comes before
            return
        for path, page in ledger.asked_again(connection, self.plan.root, self.plan.source):
            self.files.recall(connection, [path])
            state = self.files.get(path)
            row = state.rows.get(page) if state else None
            if state and row and row.state != "scored":
                row.state, row.reason, state.held = "pending", TURN, None
                self.files.touch([row])
                self._enter(connection, [SeenFile(state.path, row.size, row.mtime_ns)])
                self._again(connection, state.path, asked=True)

    @property
    def has_due(self) -> bool:
        """Say whether a file's waiting time is over."""
        return self._patience.has_due and not self.trouble

    @property
    def busy(self) -> bool:
        """Say whether files are handed out or wait to be."""
        return bool(self._under_way or self._ready or self._late)

    def _feed(self, connection: Connection) -> None:
        while self._ready and self._under_way < max(FILES_UNDER_WAY, self._pipeline.wanted) and not self.trouble:
            self._start(connection, *self._ready.popleft())
        if self._late and not (self._under_way or self._ready or self.trouble):
            self._start(connection, *self._late.popleft())

    def _start(self, connection: Connection, seen: SeenFile, growing: bool) -> None:
        """Have a settled or growing file inspected, unless all of it is done already."""
        self.files.recall(connection, [str(seen.path)])
        state = self.files.enter(seen.path)
        if not state.judged:  # it was at rest
            self._name(connection, state, seen)
        if state.under_way:
            state.again = state.again if growing else seen
            return
        if state.named is None or self._finished(state, seen):
            self.files.rest(state)
            return
        state.tried = state.tried if growing else (seen.size, seen.mtime_ns)
        believed = self.plan.options.black_edges and self._patience.was_held(state, seen)

        def task() -> None:
            self._post((self, look_into(self.plan, seen, growing=growing, believed=believed)))

        state.under_way = 1
        self._under_way += 1
        self._pipeline.call(task)

    def _name(self, connection: Connection, state: FileState, seen: SeenFile) -> tuple[ImageState, str]:
        """Find out what a file's name says; return the state that it puts a new file in, and the reason."""
        state.judged = True
        state.named, state.plate, verdict, reason = self._book.name(connection, seen)
        return verdict, reason

    def _back(self, connection: Connection, state: FileState) -> None:
        """Note that something handed out is back; start the file again if it was sighted anew meanwhile."""
        state.under_way -= 1
        if state.under_way == 0:
            self._under_way -= 1
            state.pages.clear()
            if state.again is not None:
                self._ready.appendleft((state.again, False))
                state.again = None
            self.files.rest(state)
            self._feed(connection)

    def _finished(self, state: FileState, seen: SeenFile) -> bool:
        unchanged = all((row.size, row.mtime_ns) == (seen.size, seen.mtime_ns) for row in state.rows.values())
        return unchanged and not state.misplaced and all(self._final(row) for row in state.rows.values())

    def _final(self, row: LedgerRow) -> bool:
        return self.plan.model_key in row.scored_by if row.state == "scored" else row.state != "pending"

    def take(self, connection: Connection, back: Outcome | Inspected) -> None:
        """Take back what was handed out: what was found in a file, or what became of an image."""
        if isinstance(back, Outcome):
            self._finish(connection, back)
        else:
            self._inspected(connection, back)

    def surprised(self, connection: Connection, back: Outcome | Inspected, error: Exception) -> None:
        """Fail the file that nobody foresaw; its rows are as they were before."""
        file = back.job.file if isinstance(back, Outcome) else back.file
        log.error("%s", file.path, exc_info=error)
        state = self.files[str(file.path)]
        state.rows = {row.page: row for row in ledger.images_at(connection, [str(file.path)], self.plan.source)}
        rows = [row for row in state.rows.values() if row.state != "scored"]
        self.judge.put(connection, rows, "failed", surprise(file.path, error))
        self._back(connection, state)

    def _inspected(self, connection: Connection, found: Inspected) -> None:
        """Place the pages of a file, enter those that are new, and hand the chosen ones to the pipeline."""
        state = self.files[str(found.file.path)]
        if found.pages:
            self._take_up(connection, state, found)
        if found.error is not None:
            released = {info.page for info in found.pages}
            self.files.touch(enter_withheld(connection, self.plan.source, state, found.file, released))
            rows = [row for row in state.rows.values() if row.page not in released]
            self._trouble(connection, state, rows, found.file, found.error)
        self._back(connection, state)

    def _take_up(self, connection: Connection, state: FileState, found: Inspected) -> None:
        plate, named, seen = state.plate, state.named, found.file
        if plate is None or named is None:  # its name was judged anew since it was handed out
            return
        try:
            more = not found.whole or is_ndtiff(seen.path)
            pages = place_pages(self.plan, seen, plate.name, plate.run, named, found.pages, stack=more)
        except ImageError as error:
            self._trouble(connection, state, list(state.rows.values()), seen, error)
            return
        entered, lost = match_pages(connection, self.plan.source, state, plate.plate_id, seen, pages)
        self.files.touch(entered)
        self.arrivals.extend((plate, row.timepoint or 0, self._backlog) for row in entered)
        if found.whole:
            state.forget(lost)
            self.judge.put(connection, lost, "superseded", f"the file was changed and has {len(pages)} pages now")
        expected = [path for path in found.companions if path.is_relative_to(self.plan.root)]
        await_companions(connection, self.files, state.path, expected)
        if all(page.acquired_from == "file" for page in pages):
            self._book.doubt_times(plate)
        if self._book.choose(connection, plate, [(p.site.channel, p.channel_label, p.site.z) for p in pages]):
            self._change_sides(connection, plate)
        for page in pages:
            self._submit(connection, state, state.rows[page.page], page, found)

    def _submit(self, connection: Connection, state: FileState, row: LedgerRow, page: Page, found: Inspected) -> None:
        """Hand one page to the pipeline, unless it is done, or not to be scored."""
        seen = found.file
        reason = state.plate.not_chosen(row.channel, row.z) if state.plate else ""
        if reason:
            self.judge.put(connection, [row], "skipped", reason)
            change(connection, [row], size=seen.size, mtime_ns=seen.mtime_ns)
            return
        if not found.whole and row.state in ("scored", "refused"):  # looked at again when the file rests
            return
        unchanged = (row.size, row.mtime_ns) == (seen.size, seen.mtime_ns)
        # NDTiff is only ever appended to: what was scored of it is not read again when it grows.
        if self._final(row) and (unchanged or (row.state in ("scored", "refused") and is_ndtiff(seen.path))):
            change(connection, [row], size=seen.size, mtime_ns=seen.mtime_ns)
            return
        image = ImageFile(
            seen.path, row.page, page.site, seen.size, seen.mtime_ns, page.acquired_at, page.pixel_um, not found.whole
        )
        state.pages[row.page] = page
        state.under_way += 1
        self._pipeline.submit(Job(row.image_id, image, self.plan.recipe))

    def _change_sides(self, connection: Connection, plate: PlateState) -> None:
        taken_up = change_sides(connection, self.files, self.judge, plate)
        self._ready.extend((seen, False) for seen in taken_up)

    def _finish(self, connection: Connection, outcome: Outcome) -> None:
        """Write what became of one image: scores, cells and state in the caller's one transaction."""
        file = outcome.job.file
        state = self.files[str(file.path)]
        row = state.rows.get(file.page)
        if row is not None and row.image_id == outcome.job.image_id:
            if outcome.prepared is not None and outcome.scores is not None:
                self.judge.record(connection, state, row, outcome.prepared, outcome.scores)
            elif outcome.prepared is not None:
                self.judge.refuse(connection, state, row, outcome.prepared)
            elif outcome.error is not None:
                seen = SeenFile(file.path, file.size, file.mtime_ns)
                self._trouble(connection, state, [row], seen, outcome.error)
        self._back(connection, state)

    def _trouble(
        self,
        connection: Connection,
        state: FileState,
        rows: list[LedgerRow],
        seen: SeenFile,
        error: SesmoError | OSError,
    ) -> None:
        """Try an incomplete or unreadable file again later, then fail it; other errors fail at once.

        What was scored of a file stays scored while the file is only incomplete, as when a stack grows. A folder that
        went away costs no file an attempt.
        """
        if self._away():
            self._interrupted.add(state.path)
            return
        if isinstance(error, IncompleteImageError | OSError) and not is_there(state.path):
            self._lose(connection, state.path)
            return
        rows = [row for row in rows if row.state != "scored"]
        if self._patience.waits(connection, state, rows, seen, error):
            return
        log.log(logging.DEBUG if self.plan.once else logging.WARNING, "failed: %s", error)  # once: told at the end
        if not rows:  # all that was there is scored; that something is missing must be told all the same
            page = max(state.rows, default=-1) + 1
            rows = self.files.insert(connection, [new_row(seen, "pending", TURN, {"page": page})])
            state.rows[rows[0].page] = rows[0]
        self.judge.put(connection, rows, "failed", str(error))
        change(connection, rows, size=seen.size, mtime_ns=seen.mtime_ns)

    def _away(self) -> bool:
        """Say whether the folder itself cannot be reached; if so, nothing more is begun until it can."""
        away = (now := device_of(self.plan.root)) is None or now != self._device
        if away and not self.trouble:
            self.trouble = f"{self.plan.root} cannot be reached; its images wait until it can"
            if self.plan.once:
                self._post(
                    Halt(SesmoError(f"{self.plan.root} went away; bring it back and run the same command again"))
                )
        return away
