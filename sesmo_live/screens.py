"""Answers about a whole plate: controls, wells beside them, onset, hits, doses. Rows for command line, API and page."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine

from db import queries, screening
from db.queries import PlateRow, TreatmentRow
from db.screening import WellSums
from sesmo_live import results
from sesmo_live.answers import Answer, Row
from sesmo_live.errors import StatisticsError, UnknownNameError, UsageError
from sesmo_live.screening import (
    Band,
    ControlStatistics,
    area_under_curve,
    b_scores,
    control_band,
    control_statistics,
    controls_apart,
    density_adjusted,
    onset,
    percent_of_control,
    plate_effects,
    robust_z,
    slope,
)
from sesmo_live.screening.checks import one_role_each
from sesmo_live.screening.intervals import FieldSums, fraction_interval
from sesmo_live.wells import PLATE_SHAPES, parse_well, smallest_plate, well_position

Numbers = NDArray[np.float64]

PLANNED_LOOKS = 100
"""Looks that the band of the controls allows for; a plate with more has its own number."""


@dataclass(frozen=True, slots=True)
class Screen:
    """One run of a plate under one model: arrays of wells × time points, NaN where a well has no cells."""

    plate: PlateRow
    model: tuple[int, str]
    wells: tuple[str, ...]
    timepoints: tuple[int, ...]
    scores: Numbers
    cells: Numbers
    hours: Numbers
    sums: dict[tuple[str, int], WellSums]
    roles: dict[str, str]
    """Each well's one role; wells that no plate map names are missing."""
    treatments: dict[str, list[TreatmentRow]]
    notes: tuple[str, ...]

    def index(self, timepoint: int | None) -> int:
        """Return the column of a time point, the last one unless given; raise UsageError for one without scores."""
        if timepoint is None:
            return len(self.timepoints) - 1
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

    Whole, or quickly at `timepoint` or at the `last` one alone; where there is no score, whole all the same.

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
        for stop in stops:
            screen = read_screen(connection, found, chosen, notes + more, stop)
            if screen.wells:
                return screen
        return read_screen(connection, found, chosen, notes + more)


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
    scores, cells, hours = (np.full((len(wells), len(timepoints)), empty) for empty in (np.nan, 0.0, np.nan))
    place_of = {well: number for number, well in enumerate(wells)}
    column_of = {timepoint: number for number, timepoint in enumerate(timepoints)}
    for row in rows:
        place = place_of[row.well], column_of[row.timepoint]
        cells[place] = row.n_cells
        if row.n_cells:
            scores[place] = row.score_sum / row.n_cells
        by_file_time = row.n_file_times == row.n_images
        _, since = queries.hours_since(plate, treated.get(row.well), row.timepoint, row.acquired_at, by_file_time)
        hours[place] = np.nan if since is None else since
    roles = one_role_each(treatments, [[item.role for item in items] for items in treatments.values()])
    sums = {(row.well, row.timepoint): row for row in rows}
    return Screen(plate, model, wells, timepoints, scores, cells, hours, sums, roles, dict(treatments), notes)


def score_sums(row: WellSums) -> FieldSums:
    """Return the sums of a well's scores."""
    return FieldSums(
        row.n_fields, row.n_cells, row.score_sum, row.score_sum_sq, row.field_ss, row.field_sn, row.field_nn
    )


def over_sums(row: WellSums) -> FieldSums:
    """Return the sums of a well's senescent cells, each counting 1."""
    return FieldSums(row.n_fields, row.n_cells, row.n_over, row.n_over, row.over_ss, row.over_sn, row.field_nn)


def _or_nan(compute: Callable[[], Numbers], size: int, what: str, said: dict[str, None]) -> Numbers:
    """Return what can be computed, else NaN, with the sentence that says why in `said`."""
    try:
        return compute()
    except StatisticsError as error:
        said.setdefault(f"no {what}: {error}")
        return np.full(size, np.nan)


def beside_controls(screen: Screen, column: int) -> tuple[dict[str, Numbers], tuple[str, ...]]:
    """Return percent of control, robust z, B score and density-adjusted score of each well at a time point.

    With the sentences that say what could not be computed; NaN there and for wells without cells.
    """
    said: dict[str, None] = {}
    scores, cells = screen.scores[:, column], screen.cells[:, column]
    known = np.isfinite(scores)
    negative, positive = (screen.known(screen.of_role(role), column) for role in ("negative", "positive"))
    low_cells = screen.known(screen.of_role("negative"), column, screen.cells)

    def spread(what: str, compute: Callable[[Numbers], Numbers]) -> Numbers:
        found = np.full(len(scores), np.nan)
        found[known] = _or_nan(lambda: compute(scores[known]), int(known.sum()), what, said)
        return found

    def by_place() -> Numbers:
        table = b_scores(screen.map(scores, without_controls=True))
        places = [well_position(well) for well in screen.wells]
        return np.array([table[row - 1, place - 1] for row, place in places])

    found = {
        "percent_of_control": spread("percent of control", lambda values: _percent(values, negative, positive)),
        "robust_z": spread("robust z", lambda values: robust_z(values, negative)),
        "b_score": _or_nan(by_place, len(scores), "B score", said),
        "density_adjusted": spread(
            "density-adjusted score",
            lambda values: density_adjusted(values, cells[known], negative, low_cells).adjusted,
        ),
    }
    return found, tuple(said)


def _percent(values: Numbers, negative: Numbers, positive: Numbers) -> Numbers:
    controls_apart(negative, positive)
    return percent_of_control(values, negative, positive)


WELL_COLUMNS = (
    *results.PLATE_COLUMNS,
    *("fraction_low", "fraction_high", "confluence", "percent_of_control", "robust_z", "b_score", "density_adjusted"),
)
"""The columns of `plate_wells`."""


def plate_wells(
    engine: Engine, plate: str, *, timepoint: int | None = None, run: str | None = None, model: str | None = None
) -> Answer:
    """Return `results.plate_table` with each well beside the controls of its own time point.

    What cannot be computed is None, and a note says why.
    """
    plain = results.plate_table(engine, plate, timepoint=timepoint, run=run, model=model)
    stops = sorted({row["timepoint"] for row in plain.rows if row["timepoint"] is not None})
    with engine.connect() as connection:
        found, _ = results.find_plate(connection, plate, run)
        chosen, _ = results.pick_model(connection, found, model)
        beside, said = wells_beside(connection, found, chosen, stops)
    rows = []
    for row in plain.rows:
        more = dict.fromkeys(WELL_COLUMNS) | beside.get((row["well"], row["timepoint"]), {})
        rows.append({name: row[name] if name in row else more[name] for name in WELL_COLUMNS})
    return Answer(rows, plain.notes + said)


def wells_beside(
    connection: Connection, plate: PlateRow, model: tuple[int, str] | None, timepoints: Iterable[int]
) -> tuple[dict[tuple[str, int | None], Row], tuple[str, ...]]:
    """Return what `plate_wells` adds to a well, by (well, time point), and what could not be computed."""
    found: dict[tuple[str, int | None], Row] = {}
    said: dict[str, None] = {}
    if model is None:
        return {}, ()
    for stop in timepoints:
        try:
            screen = read_screen(connection, plate, model, (), stop)
        except StatisticsError as error:
            return {}, (str(error),)
        if not screen.wells:
            continue
        values, notes = beside_controls(screen, 0)
        said.update(dict.fromkeys(notes))
        covered = screening.coverage(connection, plate.plate_id, model[0], stop)
        for place, well in enumerate(screen.wells):
            _, low, high = fraction_interval(over_sums(screen.sums[well, stop]))
            row: Row = {"fraction_low": low, "fraction_high": high, "confluence": covered.get(well)}
            found[well, stop] = row | {name: _number(numbers[place]) for name, numbers in values.items()}
    return found, tuple(said)


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


CONTROL_COLUMNS = (
    *("timepoint", "hours", "n_negative", "n_positive", "mean_negative", "mean_positive", "sd_negative"),
    *(
        "sd_positive",
        "z_prime",
        "robust_z_prime",
        "ssmd",
        "signal_window",
        "edge",
        "edge_p",
        "row_p",
        "column_p",
        "model",
    ),
)
"""The columns of `plate_statistics`."""


def plate_statistics(engine: Engine, plate: str, *, run: str | None = None, model: str | None = None) -> Answer:
    """Return one row a time point: the control statistics, and what rows, columns and rim of the plate do."""
    return statistics_of(load_screen(engine, plate, run=run, model=model))


def statistics_of(screen: Screen) -> Answer:
    """Return `plate_statistics` of a plate that is read already."""
    said: dict[str, None] = {}
    rows = []
    for column, timepoint in enumerate(screen.timepoints):
        controls, effects = _statistics_at(screen, column, said)
        hours = screen.hours[:, column]
        row: Row = {"timepoint": timepoint, "hours": _median(hours), "model": screen.model[1]}
        row |= {name: value for name, value in asdict(controls).items() if name != "missing"} | effects
        rows.append({name: row[name] for name in CONTROL_COLUMNS})
    return Answer(rows, screen.notes + tuple(said))


def _statistics_at(screen: Screen, column: int, said: dict[str, None]) -> tuple[ControlStatistics, Row]:
    negative, positive = (screen.known(screen.of_role(role), column) for role in ("negative", "positive"))
    controls = control_statistics(negative, positive)
    said.update(dict.fromkeys(f"no Z′, SSMD or signal window: {why}" for why in controls.missing))
    try:
        found = plate_effects(screen.map(screen.scores[:, column], without_controls=True))
        effects: Row = {"edge": found.edge, "edge_p": found.edge_p, "row_p": found.row_p, "column_p": found.column_p}
    except StatisticsError as error:
        said.setdefault(f"no effects of rows, columns and rim: {error}")
        effects = dict.fromkeys(("edge", "edge_p", "row_p", "column_p"))
    return controls, effects


def _median(values: Numbers) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


COURSE_COLUMNS = (
    *("well", "role", "compound", "dose", "dose_unit", "looks", "onset_timepoint", "onset_hours", "direction"),
    *("slope_per_hour", "slope_low", "slope_high", "area_over_negative", "model"),
)
"""The columns of `plate_courses`."""


def band_of(screen: Screen) -> Band:
    """Return the band of a plate's negative controls; raise StatisticsError where there are too few."""
    treated = [well for well in screen.wells if screen.roles.get(well) != "negative"]
    return control_band(screen.scores[screen.of_role("negative")], len(treated), PLANNED_LOOKS)


def plate_courses(
    engine: Engine, plate: str, well: str | None = None, *, run: str | None = None, model: str | None = None
) -> Answer:
    """Return one row a well: when it left the control band, its slope, and its area above the negative controls."""
    return courses_of(load_screen(engine, plate, run=run, model=model), well)


def courses_of(screen: Screen, well: str | None = None) -> Answer:
    """Return `plate_courses` of a plate that is read already."""
    name = parse_well(well) if well else None
    if name and name not in screen.wells:
        plate = screen.plate.name
        raise UnknownNameError(f"plate {plate} has no score of well {name}; see: sesmo-live plate {plate}")
    said: dict[str, None] = {}
    band: Band | None = None
    try:
        band = band_of(screen)
    except StatisticsError as error:
        said.setdefault(f"no onset: {error}")
    what = results.contents([row for rows in screen.treatments.values() for row in rows])
    rows = []
    for place, found in enumerate(screen.wells):
        if name in (None, found):
            row = {"well": found, **what.get(found, results.NOTHING), **course_of(screen, place, band, said)}
            rows.append({column: row[column] for column in COURSE_COLUMNS})
    return Answer(rows, screen.notes + tuple(said))


def course_of(screen: Screen, place: int, band: Band | None, said: dict[str, None]) -> Row:
    """Return when the well in a row of the screen left a band, its slope and its area; `said` gets what is missing."""
    scores, hours = screen.scores[place], screen.hours[place]
    known = np.isfinite(scores) & np.isfinite(hours)
    row: Row = dict.fromkeys(COURSE_COLUMNS[5:])
    row |= {"looks": int(known.sum()), "model": screen.model[1]}
    left = onset(scores, band) if band and screen.roles.get(screen.wells[place]) != "negative" else None
    if left:
        row |= {"onset_timepoint": screen.timepoints[left.look], "onset_hours": _number(hours[left.look])}
        row["direction"] = "rising" if left.rising else "falling"
    try:
        found = slope(hours[known], scores[known])
        row |= {"slope_per_hour": found[0], "slope_low": found[1], "slope_high": found[2]}
        if band:
            known &= np.isfinite(band.mean)
            row["area_over_negative"] = area_under_curve(hours[known], scores[known], band.mean[known])
    except StatisticsError as error:
        said.setdefault(f"well {screen.wells[place]}: {error}")
    return row
