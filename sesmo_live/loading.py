"""One run of a plate under one model as arrays of wells × time points, read from the database."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine

from db import queries, screening
from db.queries import PlateRow, TreatmentRow
from db.screening import WellSums
from sesmo_live import results
from sesmo_live.errors import UnknownNameError, UsageError
from sesmo_live.screening.checks import one_role_each
from sesmo_live.wells import PLATE_SHAPES, smallest_plate, well_position

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Screen:
    """One run of a plate under one model: arrays of wells × time points, NaN where a well has no cells."""

    plate: PlateRow
    model: tuple[int, str]
    wells: tuple[str, ...]
    timepoints: tuple[int, ...]
    scores: Numbers
    cells: Numbers
    """Cells an image, which an image that is missing does not change; 0 where images show none, NaN without images."""
    hours: Numbers
    sums: dict[tuple[str, int], WellSums]
    roles: dict[str, str]
    """Each well's one role; wells that no plate map names are missing."""
    treatments: dict[str, list[TreatmentRow]]
    notes: tuple[str, ...]

    def index(self, timepoint: int | None) -> int:
        """Return the column of a time point; raise UsageError for one without scores.

        Unless one is given the last one, or the one before while the last has images of fewer than half as many wells.
        """
        if timepoint is None:
            imaged = np.isfinite(self.cells).sum(axis=0)
            return len(imaged) - 1 - int(len(imaged) > 1 and _half_imaged(imaged[-1], imaged[-2]))
        if timepoint not in self.timepoints:
            known = ", ".join(map(str, self.timepoints[:20]))
            raise UnknownNameError(f"plate {self.plate.name} has no scored time point {timepoint}; it has {known}")
        return self.timepoints.index(timepoint)

    def of_role(self, role: str) -> list[int]:
        """Return the rows of the wells with this role."""
        return [number for number, well in enumerate(self.wells) if self.roles.get(well) == role]

    def known(self, rows: Iterable[int], column: int, values: Numbers | None = None) -> Numbers:
        """Return the scores (or other values) of those of the wells that have cells at a time point."""
        found = (self.scores if values is None else values)[list(rows), column]
        return found[np.isfinite(self.scores[list(rows), column])]

    def map(self, values: Numbers, *, without_controls: bool = False) -> Numbers:
        """Return values (one a well) laid out as rows × columns of the plate, NaN elsewhere."""
        shape = PLATE_SHAPES[max(self.plate.wells or 0, smallest_plate(list(self.wells)))]
        table = np.full(shape, np.nan)
        for well, value in zip(self.wells, values, strict=True):
            if not (without_controls and self.roles.get(well) in ("negative", "positive", "blank")):
                row, column = well_position(well)
                table[row - 1, column - 1] = value
        return table


def _half_imaged(wells: int, before: int) -> bool:
    """Say whether a time point is still being imaged: fewer than half of the wells of the one before have an image."""
    return 2 * wells < before


def load_screen(
    engine: Engine,
    plate: str,
    *,
    run: str | None = None,
    model: str | None = None,
    timepoint: int | None = None,
    last: bool = False,
) -> Screen:
    """Read one run of a plate (the latest) under one model (the latest that scored it).

    Whole, or quickly at `timepoint` or at the `last` one alone (as `Screen.index` takes it, and a note says so); where
    there is no score, whole all the same.

    Raises UsageError for a plate, run or model that the database does not hold and for a plate without scores,
    StatisticsError for a well that is a negative and a positive control.
    """
    with engine.connect() as connection:
        found, notes = results.find_plate(connection, plate, run)
        chosen, more = results.pick_model(connection, found, model)
        if chosen is None:
            raise UsageError(f"no image of plate {found.name} is scored yet; run or score it first")
        stops = [] if timepoint is None else [timepoint]
        if last and timepoint is None:
            stops = queries.last_timepoints(connection, found.plate_id, results.LOOK_BACK)
        read = (read_screen(connection, found, chosen, notes + more, stop) for stop in stops)
        screens = (screen for screen in read if screen.wells)
        if (screen := next(screens, None)) is None:
            return read_screen(connection, found, chosen, notes + more)
        before = next(screens, None)
        if before is None or not _half_imaged(len(screen.wells), len(before.wells)):
            return screen
        return replace(before, notes=(*before.notes, half_imaged_note(screen, before)))


def half_imaged_note(last: Screen, taken: Screen) -> str:
    """Return the sentence that says why the time point before the last one is taken."""
    stops, wells = (last.timepoints[-1], taken.timepoints[-1]), (len(last.wells), len(taken.wells))
    return (
        f"time point {stops[0]} is still being imaged ({wells[0]} of {wells[1]} wells), so time point {stops[1]} is "
        f"shown; see it all the same with --timepoint {stops[0]}"
    )


def read_screen(
    connection: Connection,
    plate: PlateRow,
    model: tuple[int, str],
    notes: tuple[str, ...],
    timepoint: int | None = None,
    only: Sequence[str] | None = None,
) -> Screen:
    """Read a plate under a model that are both known, whole, at one time point, or some wells at all time points.

    The rest as `load_screen`.
    """
    rows = screening.well_sums(connection, plate.plate_id, model[0], timepoint, only)
    treatments: dict[str, list[TreatmentRow]] = defaultdict(list)
    for treatment in queries.treatments(connection, plate.plate_id):
        treatments[treatment.well].append(treatment)
    treated = {
        well: min((item.treated_at for item in items if item.treated_at), default=None)
        for well, items in treatments.items()
    }
    wells = tuple(sorted({row.well for row in rows}, key=well_position))
    stops = {row.timepoint for row in rows}
    if only is not None:  # the band of the controls looks back over those of the whole plate
        stops |= {stop for stop, _ in queries.time_points(connection, plate.plate_id)}
    timepoints = tuple(sorted(stops))
    scores, cells, hours = (np.full((len(wells), len(timepoints)), np.nan) for _ in range(3))
    place_of = {well: number for number, well in enumerate(wells)}
    column_of = {timepoint: number for number, timepoint in enumerate(timepoints)}
    places = [place_of[row.well] for row in rows], [column_of[row.timepoint] for row in rows]
    total, images, summed = (
        np.array([(row.n_cells, row.n_images, row.score_sum) for row in rows], float).reshape(-1, 3).T
    )
    cells[places] = total / images
    with np.errstate(invalid="ignore", divide="ignore"):
        means = summed / total
    scores[places] = np.where(np.isfinite(means), means, np.nan)
    hours[places] = [_hours(plate, treated.get(row.well), row) for row in rows]
    roles = one_role_each(treatments, [[item.role for item in items] for items in treatments.values()])
    sums = {(row.well, row.timepoint): row for row in rows}
    return Screen(plate, model, wells, timepoints, scores, cells, hours, sums, roles, dict(treatments), notes)


def _hours(plate: PlateRow, treated: datetime | None, row: WellSums) -> float:
    by_file_time = row.n_file_times == row.n_images
    _, since = queries.hours_since(plate, treated, row.timepoint, row.acquired_at, by_file_time)
    return np.nan if since is None else since


def over_sums(rows: Sequence[WellSums]) -> Numbers:
    """Return the sums of the senescent cells of wells, each counting 1, as `fraction_intervals` takes them."""
    sums = [(r.n_fields, r.n_cells, r.n_over, r.n_over, r.over_ss, r.over_sn, r.field_nn) for r in rows]
    return np.array(sums, dtype=float).reshape(len(rows), 7)
