"""Round after round by our own clock: image, try again, refocus what was refused, stop when it makes no sense."""

import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from acquisition.micromanager.frames import frame_prefix
from acquisition.micromanager.microscope import Microscope, connect
from acquisition.micromanager.plan import Plan
from acquisition.micromanager.plates import Position, estimate
from acquisition.micromanager.schedule import Due, State, choose, plate_folder, schedule
from acquisition.micromanager.stand import DeviceError, Heights, Pulse, Stand, StoppedError, StuckError
from acquisition.micromanager.sweep import NOT_TRIED, Sweep, focus_wells
from acquisition.micromanager.watch import watched
from sesmo_live.errors import SesmoError, UsageError

OPEN_S = 120.0
"""Seconds that loading all devices may take."""

PARK_S = 1.0
"""Seconds that parking may take before the program leaves a device that does not answer."""

LOOK_S = 0.5
"""Seconds between two looks at the clock while waiting for a round; a sleeping computer must not shift it."""


class AcquisitionError(SesmoError):
    """The acquisition was given up; the microscope is parked."""


class Watcher(Protocol):
    """Who is told of trouble, and who knows the scores; none of these may raise."""

    def trouble(self, subject: str, message: str, details: Mapping[str, object]) -> None:
        """Record that something is wrong with `subject`."""

    def over(self, subject: str) -> None:
        """Record that it is no more, if it was."""

    def unfocused(self, frames: Collection[Path], wait_s: float, stop: threading.Event) -> set[Path]:
        """Wait until `frames` are judged, and return those that were refused as out of focus or empty."""

    def moved(self, limit: float) -> set[str]:
        """Return the wells whose score moved by more than `limit` between their last two time points."""


@dataclass(slots=True)
class Done:
    """What a round came to; `bad` ones count towards giving up."""

    due: Due
    wanted: int
    seconds: float = 0.0
    written: dict[Position, Path] = field(default_factory=dict)
    failed: dict[Position, str] = field(default_factory=dict)
    again: int = 0
    trouble: str = ""


class Runner:
    """A plan under way."""

    def __init__(
        self,
        plan: Plan,
        places: Sequence[Position],
        open_watcher: Callable[[], Watcher],
        stop: threading.Event,
        report: Callable[[str], None],
        open_microscope: Callable[[], Microscope] | None = None,
    ) -> None:
        self._plan = plan
        self._places = list(places)
        self._open_watcher = open_watcher
        self._stop = stop
        self._report = report
        self._open = open_microscope or (lambda: connect(plan.microscope))
        self._microscope: Microscope | None = None
        self._stand: Stand | None = None
        self._heights = Heights()
        self._bad = 0

    def run(self) -> list[Done]:
        """Take all rounds that are due until the last, or until told to stop; return what they came to.

        Nothing is put on record before the microscope has been reached and found to be the one that the plan speaks of:
        DeviceError is raised then. Raises UsageError when this plate is being acquired already, AcquisitionError after
        too many bad rounds. The microscope is parked at the end, however it comes.
        """
        folder = plate_folder(self._plan)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "acquisition.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(f"plate {self._plan.plate.name} is being acquired already; stop that one first") from error
        try:
            state = State(self._plan, datetime.now(UTC))
            self._heights = state.heights
            self._ready()
            if state.new and self._plan.start is None:
                state.start = datetime.now(UTC)
            self._watcher = self._open_watcher()
            state.write()
            return self._rounds(state)
        except (StoppedError, StuckError):
            if self._stop.is_set():
                return []
            raise
        finally:
            self._leave()
            lock.release()

    def _rounds(self, state: State) -> list[Done]:
        rounds, done = schedule(self._plan, state.start), list[Done]()
        if state.done.issuperset(due.number for due in rounds):
            self._report(
                f"the plan of plate {self._plan.plate.name} is over ({len(rounds)} of {len(rounds)} rounds); to image "
                "it again, give it another run in plate.run"
            )
        while not self._stop.is_set():
            due, missed = choose(rounds, state.done, datetime.now(UTC))
            state.finish(*(late.number for late in missed))
            whole = [late for late in missed if late.whole]
            if whole:
                self._miss(whole)
            if due is None or not self._wait(due):
                break
            outcome = self._round(due)
            if self._stop.is_set():
                self._report(
                    f"stopped in round {due.number}: {len(outcome.written)} of {outcome.wanted} frames; the same "
                    "command goes on with the others while they are due"
                )
                break
            state.finish(due.number)
            done.append(outcome)
            if not whole:
                self._watcher.over(f"{self._plan.plate.name} rounds")
            self._judge(outcome)
        return done

    def _wait(self, due: Due) -> bool:
        """Wait until a round is due; say whether to take it."""
        told = False
        while (seconds := (due.at - datetime.now(UTC)).total_seconds()) > 0:
            if not told and seconds > LOOK_S:
                self._report(f"round {due.number} begins at {due.at.astimezone():%Y-%m-%d %H:%M:%S %Z}")
                told = True
            if self._stop.wait(min(seconds, LOOK_S)):
                return False
        return not self._stop.is_set()

    def _miss(self, missed: Sequence[Due]) -> None:
        """Tell of whole rounds that are missed for good, all in one."""
        first, last = missed[0], missed[-1]
        when = f"{first.at.astimezone():%Y-%m-%d %H:%M}"
        text = f"round {first.number}, due at {when}, was missed: nothing acquired then"
        if last is not first:
            text = (
                f"{len(missed)} rounds from {first.number} to {last.number}, due from {when} to "
                f"{last.at.astimezone():%Y-%m-%d %H:%M}, were missed: nothing acquired then"
            )
        self._trouble(f"{self._plan.plate.name} rounds", text, {"rounds": [due.number for due in missed]})

    def _round(self, due: Due) -> Done:
        """Take one round; whatever happens in it is in what is returned."""
        began = time.monotonic()
        places = self._wanted(due)
        outcome = Done(due, len(places))
        if not places:
            return outcome
        try:
            self._check_room(places)
            stand = self._ready()
            self._sweeps(stand, outcome, places)
            self._refocus(stand, outcome)
            self._watch(stand.retreat, stand)
        except StoppedError:
            pass
        except DeviceError as error:
            outcome.trouble = str(error)
            self._leave()
        except OSError as error:
            outcome.trouble = f"{error.filename or self._plan.folder}: {error.strerror or error}; check the disk"
        outcome.seconds = time.monotonic() - began
        return outcome

    def _wanted(self, due: Due) -> list[Position]:
        """Return the fields that a round still lacks: of all wells, or of those that move."""
        places = self._places
        if not due.whole:
            limit = self._plan.loop.moved_by
            moving = self._watcher.moved(limit) if limit is not None else set()
            places = [place for place in places if place.well in moving]
        names = [path.name for path in plate_folder(self._plan).glob(f"*_t{due.number}_*.tif")]
        have = {name[: name.index(f"_t{due.number}_")] for name in names}
        return [place for place in places if frame_prefix(place) not in have]

    def _check_room(self, places: Sequence[Position]) -> None:
        room, needed = shutil.disk_usage(self._plan.folder).free, estimate(self._plan, places).bytes
        subject = f"{self._plan.plate.name} disk"
        if room < needed:
            text = (
                f"{self._plan.folder} has {room / 1e6:.0f} MB of room, this round needs {needed / 1e6:.0f}; make room"
            )
            self._trouble(subject, text, {"free": room, "needed": needed})
        else:
            self._watcher.over(subject)

    def _ready(self) -> Stand:
        """Return the connected and prepared microscope; raise DeviceError when it cannot be had.

        One that was left connected since the last round and does not obey any more is connected anew, once.
        """
        if self._stand is not None:
            try:
                self._watch(self._stand.prepare, self._stand)
                return self._stand
            except DeviceError:
                self._leave()
        pulse = Pulse()
        self._microscope = watched(self._open, pulse, self._stop, OPEN_S)
        stand = Stand(self._microscope.core, self._plan, self._stop, self._heights, pulse)
        self._watch(stand.prepare, stand)
        self._stand = stand
        return stand

    def _watch(self, act: Callable[[], None], stand: Stand) -> None:
        assert self._microscope is not None  # noqa: S101 — `_ready` comes first
        self._microscope.watch(act, stand.pulse, self._stop, self._plan.microscope.timeout_s)

    def _sweeps(self, stand: Stand, outcome: Done, places: Sequence[Position]) -> None:
        """Image fields, then those that failed again as often as the plan says."""
        todo = list(places)
        focus = focus_wells(self._plan, todo)
        for _ in range(1 + self._plan.faults.retries):
            outcome.failed = self._sweep(stand, outcome, todo, focus)
            todo = list(outcome.failed)
            if not todo or self._stop.is_set():
                return

    def _sweep(self, stand: Stand, outcome: Done, places: Sequence[Position], focus: set[str]) -> dict[Position, str]:
        assert self._microscope is not None  # noqa: S101 — `_ready` comes first
        sweep = Sweep(stand, self._plan, outcome.due.number, places, focus)
        try:
            sweep.take(self._microscope, self._stop)
        except StuckError as error:
            outcome.failed = {
                place: sweep.failed.get(place, str(error)) for place in places if place not in sweep.written
            }
            raise
        finally:
            outcome.written |= sweep.written
        return sweep.failed

    def _refocus(self, stand: Stand, outcome: Done) -> None:
        """Image once more, after an autofocus, the fields that were refused as out of focus or empty."""
        loop = self._plan.loop
        if not loop.refocus or self._stop.is_set() or not outcome.written:
            return
        refused = self._watcher.unfocused(list(outcome.written.values()), loop.wait_s, self._stop)
        places = [place for place, path in outcome.written.items() if path in refused]
        if places and not self._stop.is_set():
            self._report(f"round {outcome.due.number}: out of focus or empty, imaged once more: {len(places)}")
            failed = self._sweep(stand, outcome, places, {place.well for place in places})
            outcome.again = len(places) - len(failed)
            self._tell(failed, outcome.due, "out of focus or empty, and not imaged again,")

    def _judge(self, outcome: Done) -> None:
        """Tell what a round came to, and give up where the plan says so; raise AcquisitionError then."""
        plan, due = self._plan, outcome.due
        if not outcome.trouble:
            self._tell(outcome.failed, due, "missing")
        wells = {place.well for place in outcome.written} - {place.well for place in outcome.failed}
        for well in wells:
            self._watcher.over(f"{plan.plate.name} {well}")
        subject = plan.plate.name
        if outcome.trouble:
            self._trouble(subject, f"round {due.number}: {outcome.trouble}", {"round": due.number})
        elif outcome.wanted and NOT_TRIED not in outcome.failed.values():
            self._watcher.over(subject)
            self._watcher.over(f"{subject} acquisition")
        missing = outcome.wanted - len(outcome.written)
        if outcome.wanted:
            self._report(
                f"round {due.number}: {len(outcome.written)} of {outcome.wanted} frames in {outcome.seconds:.1f} s"
                + (f", {missing} missing" if missing else "")
            )
            self._bad = self._bad + 1 if missing > plan.faults.bad_share * outcome.wanted else 0
        if missing and plan.faults.then == "stop":
            self._give_up(due, f"{missing} fields could not be imaged, and the plan says to stop then")
        if self._bad >= plan.faults.bad_rounds:
            why = outcome.trouble or next(iter(outcome.failed.values()), "")
            self._give_up(due, f"{self._bad} bad rounds one after the other; the last: {why}")

    def _give_up(self, due: Due, why: str) -> None:
        subject = f"{self._plan.plate.name} acquisition"
        text = f"the acquisition of plate {self._plan.plate.name} stopped and parked after round {due.number}: {why}"
        self._watcher.trouble(subject, text, {"round": due.number})
        raise AcquisitionError(text)

    def _tell(self, failed: Mapping[Position, str], due: Due, what: str) -> None:
        """Record each well that misses fields, with the first of its reasons; wells not tried are told in one."""
        wells: dict[str, dict[str, str]] = defaultdict(dict)
        for place, reason in failed.items():
            wells[place.well][str(place.field)] = reason
        untried = [well for well, fields in wells.items() if set(fields.values()) == {NOT_TRIED}]
        for well, fields in wells.items():
            if well not in untried:
                reason = next(reason for reason in fields.values() if reason != NOT_TRIED)
                text = f"{well} {_fields(fields)} {what} in round {due.number}: {reason}"
                details = {"round": due.number, "well": well, "fields": fields}
                self._trouble(f"{self._plan.plate.name} {well}", text, details)
        if untried:
            text = f"round {due.number} was broken off: {len(untried)} wells from {untried[0]} on were {NOT_TRIED}"
            self._trouble(self._plan.plate.name, text, {"round": due.number, "wells": untried})

    def _trouble(self, subject: str, text: str, details: Mapping[str, object]) -> None:
        self._watcher.trouble(subject, text, details)
        self._report(text)

    def _leave(self) -> None:
        """Park and let the microscope go; a device that hangs is left behind."""
        microscope, stand = self._microscope, self._stand
        self._microscope = self._stand = None
        if stand is not None:
            parking = threading.Thread(target=lambda: self._said(stand.park()), name="parking", daemon=True)
            parking.start()
            parking.join(PARK_S)
            if parking.is_alive():
                self._report(f"parking does not end ({stand.pulse.doing} does not answer); look after the microscope")
        if microscope is not None:
            microscope.close()

    def _said(self, wrong: str) -> None:
        if wrong:
            self._report(f"parking failed: {wrong}; look after the microscope")


def _fields(numbers: Iterable[str]) -> str:
    several = sorted(numbers, key=int)
    return f"field {several[0]} is" if len(several) == 1 else f"fields {', '.join(several)} are"
