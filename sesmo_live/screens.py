"""Answers about a whole plate: controls, wells beside them, onset, hits, doses. Rows for command line, API and page."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine

from db import screening
from db.queries import PlateRow
from sesmo_live import results
from sesmo_live.answers import Answer, Row, over_looks
from sesmo_live.errors import StatisticsError, UnknownNameError
from sesmo_live.loading import Numbers as Numbers
from sesmo_live.loading import Screen as Screen
from sesmo_live.loading import load_screen as load_screen
from sesmo_live.loading import over_sums
from sesmo_live.loading import read_screen as read_screen
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
from sesmo_live.screening.checks import or_none
from sesmo_live.screening.intervals import fraction_intervals
from sesmo_live.wells import parse_well, well_position

PLANNED_LOOKS = 100
"""Looks that the band of the controls allows for; a plate with more has its own number."""


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
    known = np.isfinite(scores) & (cells > 0)
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
    if np.isfinite(found["density_adjusted"]).any():
        far = known & ((2 * cells < low_cells.min()) | (cells > 2 * low_cells.max()))
        if far.any():
            names = ", ".join(well for well, beyond in zip(screen.wells, far, strict=True) if beyond)
            said.setdefault(
                f"density-adjusted scores rest on no control: fewer than half or more than twice the cells of any "
                f"negative control are in {names}"
            )
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
    said: list[tuple[int, str]] = []
    if model is None:
        return {}, ()
    stops = list(timepoints)
    for stop in stops:
        try:
            screen = read_screen(connection, plate, model, (), stop)
        except StatisticsError as error:
            return {}, (str(error),)
        if not screen.wells:
            continue
        values, notes = beside_controls(screen, 0)
        said += [(stop, note) for note in notes]
        covered = screening.coverage(connection, plate.plate_id, model[0], stop)
        _, low, high = map(or_none, fraction_intervals(over_sums([screen.sums[well, stop] for well in screen.wells])))
        for place, well in enumerate(screen.wells):
            row: Row = {"fraction_low": low[place], "fraction_high": high[place], "confluence": covered.get(well)}
            found[well, stop] = row | {name: _number(numbers[place]) for name, numbers in values.items()}
    return found, over_looks(said, len(stops))


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
    said: list[tuple[int, str]] = []
    rows = []
    for column, timepoint in enumerate(screen.timepoints):
        controls, effects, notes = _statistics_at(screen, column)
        said += [(timepoint, note) for note in notes]
        hours = screen.hours[:, column]
        row: Row = {"timepoint": timepoint, "hours": _median(hours), "model": screen.model[1]}
        row |= {name: value for name, value in asdict(controls).items() if name != "missing"} | effects
        rows.append({name: row[name] for name in CONTROL_COLUMNS})
    return Answer(rows, screen.notes + over_looks(said, len(screen.timepoints)))


def _statistics_at(screen: Screen, column: int) -> tuple[ControlStatistics, Row, list[str]]:
    negative, positive = (screen.known(screen.of_role(role), column) for role in ("negative", "positive"))
    controls = control_statistics(negative, positive)
    said = [f"not all of Z′, robust Z′, SSMD and signal window: {why}" for why in controls.missing]
    try:
        found = plate_effects(screen.map(screen.scores[:, column], without_controls=True))
        effects: Row = {"edge": found.edge, "edge_p": found.edge_p, "row_p": found.row_p, "column_p": found.column_p}
    except StatisticsError as error:
        said.append(f"no effects of rows, columns and rim: {error}")
        effects = dict.fromkeys(("edge", "edge_p", "row_p", "column_p"))
    return controls, effects, said


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


def band_beside(connection: Connection, screen: Screen) -> tuple[Numbers, Band | None, str]:
    """Return the negative controls (wells × time points) and their band beside a screen read of some wells alone.

    The numbers are those of `band_of` of the whole plate. Without a band the sentence says why.
    """
    plate, model = screen.plate.plate_id, screen.model[0]
    place_of = {well: place for place, well in enumerate(w for w, role in screen.roles.items() if role == "negative")}
    column_of = {timepoint: column for column, timepoint in enumerate(screen.timepoints)}
    table = np.full((len(place_of), len(column_of)), np.nan)
    for well, timepoint, mean in screening.mean_scores(connection, plate, model, list(place_of)):
        table[place_of[well], column_of[timepoint]] = mean
    treated = [well for well in screening.scored_wells(connection, plate, model) if well not in place_of]
    try:
        return table, control_band(table, len(treated), PLANNED_LOOKS), ""
    except StatisticsError as error:
        return table, None, f"no onset and no area: {error}"


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
        said.setdefault(f"no onset and no area: {error}")
    what = results.contents([row for rows in screen.treatments.values() for row in rows])
    rows = []
    without: dict[str, list[str]] = defaultdict(list)
    for place, found in enumerate(screen.wells):
        if name in (None, found):
            course, why = _course(screen, place, band)
            if why:
                without[why].append(found)
            row = {"well": found, **what.get(found, results.NOTHING), **course}
            rows.append({column: row[column] for column in COURSE_COLUMNS})
    for why, wells in without.items():
        more = f" and {len(wells) - 3} more wells" if len(wells) > 3 else ""
        said.setdefault(f"no slope or area of {', '.join(wells[:3])}{more}: {why}")
    return Answer(rows, screen.notes + tuple(said))


def course_of(screen: Screen, place: int, band: Band | None, said: dict[str, None]) -> Row:
    """Return when the well in a row of the screen left a band, its slope and its area; `said` gets what is missing."""
    row, why = _course(screen, place, band)
    if why:
        said.setdefault(f"no slope or area of {screen.wells[place]}: {why}")
    return row


def _course(screen: Screen, place: int, band: Band | None) -> tuple[Row, str]:
    scores, hours = screen.scores[place], screen.hours[place]
    known = np.isfinite(scores) & np.isfinite(hours)
    row: Row = dict.fromkeys(COURSE_COLUMNS[5:])
    row |= {"looks": int(np.isfinite(scores).sum()), "model": screen.model[1]}
    left = onset(scores, band) if band and screen.roles.get(screen.wells[place]) != "negative" else None
    if left:
        row |= {"onset_timepoint": screen.timepoints[left.look], "onset_hours": _number(hours[left.look])}
        row["direction"] = "rising" if left.rising else "falling"
    if not np.isfinite(hours).any():
        return row, "its images carry no time; give the plate a frame interval (--frame-interval-s)"
    try:
        found = slope(hours[known], scores[known])
        row |= {"slope_per_hour": found[0], "slope_low": found[1], "slope_high": found[2]}
        if band:
            known &= np.isfinite(band.mean)
            row["area_over_negative"] = area_under_curve(hours[known], scores[known], band.mean[known])
    except StatisticsError as error:
        return row, str(error)
    return row, ""
