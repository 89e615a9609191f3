"""Acquire by a plan: positions from the calibrated plate, incidents into the database, scores back from it."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from acquisition.micromanager.microscope import Microscope, connect, held
from acquisition.micromanager.plan import Plan
from acquisition.micromanager.plates import Calibration, Estimate, Position, calibrate, estimate, positions
from acquisition.micromanager.runner import Done, Runner
from acquisition.micromanager.schedule import CALIBRATION, plate_folder, reference_wells, schedule, store_calibration
from acquisition.micromanager.stand import DeviceError, asked
from db.care import upgrade
from db.engine import open_engine, open_reader, store_errors, utc_now
from db.incidents import close_incident, open_incident, open_incidents
from db.ledger import images_at
from sesmo_live.errors import ConfigError, StoreError, UsageError
from sesmo_live.results import timecourse
from sesmo_live.wells import parse_well

log = logging.getLogger(__name__)

KIND = "microscope"
"""The kind of all incidents of an acquisition."""

LOOK_S = 0.3
"""Seconds between two looks whether frames are judged."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a plan comes to, before anything moves."""

    places: list[Position]
    calibration: Calibration
    round: Estimate
    rounds: int
    warnings: tuple[str, ...]


def lay_out(plan: Plan) -> Preview:
    """Return positions, travel, time and room of a plan; raise ConfigError where the plate is not calibrated."""
    reference = reference_wells(plan)
    found = calibrate(plan.plate.wells, reference)
    places = positions(plan, found)
    one = estimate(plan, places)
    rounds = sum(due.whole for due in schedule(plan, utc_now()))
    warnings = []
    interval = timedelta(minutes=plan.rounds.every_min)
    if rounds > 1 and one.time > interval:
        warnings.append(
            f"a round takes about {_minutes(one.time)}, and the next is due after {_minutes(interval)}; plan fewer "
            "fields, or a longer rounds.every_min"
        )
    return Preview(places, found, one, rounds, tuple(warnings))


def _minutes(time_: timedelta) -> str:
    seconds = time_.total_seconds()
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.1f} s"


def acquire(
    plan: Plan,
    stop: threading.Event,
    report: Callable[[str], None],
    open_microscope: Callable[[], Microscope] | None = None,
) -> list[Done]:
    """Take all rounds of a plan that are due, until the last or until `stop` is set; return what they came to.

    Raises ConfigError for a plate that is not calibrated, DeviceError for a microscope that cannot be had at the start
    (nothing is on record then), AcquisitionError when the plan says to give up.
    """
    laid = lay_out(plan)
    for warning in laid.warnings:
        report(warning)

    def begin() -> Book:
        store_calibration(plan, reference_wells(plan), laid.calibration)
        upgrade(plan.database)
        return Book(plan)

    with held(plan.microscope):
        return Runner(plan, laid.places, begin, stop, report, open_microscope).run()


class Book:
    """The database as an acquisition sees it: incidents go in, judgements and scores come out.

    The service owns the file; what cannot be written now is kept and tried again with the next. Nothing here raises:
    a database that is away must not stop a microscope.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._engine = open_engine(plan.database, write=True, checkpoint=False)
        self._waiting: list[Callable[[Connection], Any]] = []
        with store_errors(plan.database), self._engine.begin() as connection:
            self._open = {row.subject for row in open_incidents(connection) if row.kind == KIND}

    def trouble(self, subject: str, message: str, details: Mapping[str, object]) -> None:
        """Open an incident, unless one of this subject is open."""
        moment = utc_now()
        self._open.add(subject)
        self._write(lambda connection: open_incident(connection, KIND, subject, message, details, opened_at=moment))

    def over(self, subject: str) -> None:
        """Close the incident of this subject, if there is one."""
        if subject in self._open:
            self._open.discard(subject)
            self._write(lambda connection: close_incident(connection, KIND, subject, "imaged again"))

    def _write(self, act: Callable[[Connection], Any]) -> None:
        self._waiting.append(act)
        try:
            with store_errors(self._plan.database), self._engine.begin() as connection:
                for one in self._waiting:
                    one(connection)
            self._waiting.clear()
        except StoreError as error:
            log.warning("%s; the acquisition goes on and records this later", error)

    def unfocused(self, frames: Collection[Path], wait_s: float, stop: threading.Event) -> set[Path]:
        """Wait until the service has judged `frames`; return those refused as out of focus or empty."""
        until = time.monotonic() + wait_s
        while True:
            states = self._states(frames)
            waiting = [path for path in frames if states.get(path, ("pending", ""))[0] == "pending"]
            if not waiting or time.monotonic() > until or stop.wait(LOOK_S):
                break
        if waiting and not stop.is_set():
            log.warning(
                "%d of %d frames are not judged after %g s; is `sesmo-live run` watching %s?",
                len(waiting),
                len(frames),
                wait_s,
                self._plan.folder,
            )
        return {path for path, (state, reason) in states.items() if state == "refused" and _can_be_mended(reason)}

    def _states(self, frames: Collection[Path]) -> dict[Path, tuple[str, str]]:
        """Return state and reason of each frame that the service knows."""
        paths = {str(path.resolve()): path for path in frames}
        try:
            engine = open_reader(self._plan.database)
            with store_errors(self._plan.database), engine.connect() as connection:
                return {paths[row.path]: (row.state, row.reason) for row in images_at(connection, paths, source=None)}
        except (StoreError, UsageError) as error:
            log.warning("%s; nothing is refocused", error)
            return {}

    def moved(self, limit: float) -> set[str]:
        """Return the wells whose mean score moved by more than `limit` between their last two time points."""
        try:
            engine = open_reader(self._plan.database)
            with store_errors(self._plan.database):
                scores, _ = timecourse(engine, self._plan.plate.name, run=self._plan.plate.run or None)
        except (StoreError, UsageError):
            return set()  # nothing is scored yet
        last: dict[str, list[float]] = {}
        for score in scores:
            if score.score is not None:
                last[score.well] = [*last.get(score.well, []), score.score][-2:]
        return {well for well, values in last.items() if len(values) == 2 and abs(values[1] - values[0]) > limit}


def _can_be_mended(reason: str) -> bool:
    """Say whether an autofocus may mend what an image was refused for."""
    return "out of focus" in reason or reason.startswith("empty")


def store_here(plan: Plan, well: str) -> tuple[dict[str, tuple[float, float]], Path, Calibration | None]:
    """Keep the stage's present position as the middle of `well`; return all kept wells, the file, the calibration.

    The calibration is None as long as fewer than three wells are kept.
    """
    name = parse_well(well)
    if plan.plate.reference:
        raise ConfigError("the plan has plate.reference already; take it out to measure the wells at the microscope")
    if plan.microscope.connection != "application":
        raise UsageError(
            "--here needs the running Micro-Manager, where you steer; set microscope.connection to application"
        )
    with held(plan.microscope):
        x, y = _here(plan)
    reference = {**reference_wells(plan), name: (x, y)}
    try:
        found = calibrate(plan.plate.wells, reference) if len(reference) >= 3 else None
    except ConfigError as error:
        file = plate_folder(plan) / CALIBRATION
        raise ConfigError(f"{error}; if the plate was moved, delete {file} and measure all three anew") from error
    return reference, store_calibration(plan, reference, found), found


def _here(plan: Plan) -> tuple[float, float]:
    """Return where the stage stands."""
    microscope = connect(plan.microscope)
    try:
        core = microscope.core
        if not asked("the core", core.get_xy_stage_device):
            raise DeviceError("Micro-Manager has no XY stage; choose one in its configuration (Core-XYStage)")
        x, y = (round(float(asked("the stage", get)), 3) + 0.0 for get in (core.get_x_position, core.get_y_position))
        return x, y
    finally:
        microscope.close()
