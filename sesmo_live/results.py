"""One place for answers: what the command line, the API and the page show comes from here."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, Engine, RowMapping

from db import queries
from db.queries import PlateRow, TreatmentRow
from sesmo_live.answers import Answer as Answer
from sesmo_live.answers import Row as Row
from sesmo_live.answers import model_named, nearest
from sesmo_live.errors import UnknownNameError
from sesmo_live.history import HISTORY_COLUMNS as HISTORY_COLUMNS
from sesmo_live.history import compound_history as compound_history
from sesmo_live.reasons import group_reasons, not_counted
from sesmo_live.records import WellScore
from sesmo_live.screening.checks import or_none
from sesmo_live.screening.intervals import mean_intervals
from sesmo_live.wells import parse_well, well_position


def find_plate(connection: Connection, name: str, run: str | None = None) -> tuple[PlateRow, tuple[str, ...]]:
    """Return one run of a plate, the latest unless named; raise UsageError naming what exists."""
    runs = queries.plate_runs(connection, name)
    if not runs:
        known = sorted({plate.name for plate in queries.plate_runs(connection)})
        raise UnknownNameError(f"there is no plate {name!r}; {nearest(name, known, 'plates')}")
    if run is None:
        imaged = [plate for plate in runs if plate.first_timepoint is not None] or runs
        others = ", ".join(plate.run for plate in runs if plate is not imaged[-1])
        note = f"run {imaged[-1].run} of plate {runs[0].name}; its other runs: {others} (--run)" if others else ""
        return imaged[-1], (note,) if note else ()
    for plate in runs:
        if plate.run == run:
            return plate, ()
    raise UnknownNameError(f"plate {name} has no run {run!r}; {nearest(run, [plate.run for plate in runs], 'runs')}")


def pick_model(
    connection: Connection, plate: PlateRow, wanted: str | None = None
) -> tuple[tuple[int, str] | None, tuple[str, ...]]:
    """Return (key, model id) of the model whose scores are shown, the latest unless named; None if nothing is scored.

    Scores of different models are never mixed. `wanted` is a model id or its beginning.
    """
    found = queries.plate_models(connection, plate.plate_id)
    if wanted is not None:
        names = [model[1] for model in found]
        name = model_named(wanted, names)
        if name is None:
            raise UnknownNameError(f"no model {wanted!r} scored plate {plate.name}; {nearest(wanted, names, 'models')}")
        chosen = [model for model in found if model[1] == name]
    else:
        chosen = found
    apart = not_counted(connection, plate)
    if not chosen:
        return None, (f"no image of plate {plate.name} is scored yet", *apart)
    key, model_id, demonstration = chosen[-1]
    notes = [f"model {model_id}: {demonstration}"] if demonstration else []
    if wanted is None and len(found) > 1:
        others = ", ".join(model[1] for model in found[:-1])
        notes.append(f"scores of {model_id}, the latest model; also scored by {others} (--model)")
    return (key, model_id), (*notes, *apart)


def timecourse(
    engine: Engine, plate: str, well: str | None = None, *, run: str | None = None, model: str | None = None
) -> tuple[list[WellScore], tuple[str, ...]]:
    """Return the scores of one well, or of all wells, of a plate over its time points."""
    with engine.connect() as connection:
        found, notes = find_plate(connection, plate, run)
        chosen, more = pick_model(connection, found, model)
        name = parse_well(well) if well else None
        if name and not queries.has_images(connection, found.plate_id, name):
            raise UnknownNameError(
                f"plate {found.name} has no image of well {name}; see: sesmo-live plate {found.name}"
            )
        if chosen is None:
            return [], notes + more
        scores = courses(connection, found, chosen, [name] if name else None)
        return scores, notes + more + before_treatment(found, scores)


def courses(
    connection: Connection,
    plate: PlateRow,
    model: tuple[int, str],
    wells: Sequence[str] | None = None,
    timepoint: int | None = None,
) -> list[WellScore]:
    """Return the scores of wells (all unless given) over their time points (all unless one is given)."""
    treated = treated_at(queries.treatments(connection, plate.plate_id, wells))
    rows = queries.well_scores(connection, plate.plate_id, model[0], wells, timepoint)
    sums = np.array([[row[name] for name in SUMS] for row in rows], dtype=float).reshape(len(rows), len(SUMS))
    limits = zip(*map(or_none, mean_intervals(sums)), strict=True)
    scores = [
        _well_score(plate, model[1], row, treated.get(row["well"]), found)
        for row, found in zip(rows, limits, strict=True)
    ]
    return sorted(scores, key=lambda score: (well_position(score.well), score.timepoint))


SUMS = ("n_fields", "n_cells", "score_sum", "score_sum_sq", "field_ss", "field_sn", "field_nn")
"""What `mean_intervals` takes of a well, in its order."""

LOOK_BACK = 3
"""Last time points at which whole plates are looked up; the wells still missing are then looked up alone."""


def latest_scores(
    connection: Connection, plate: PlateRow, model: tuple[int, str], wells: Iterable[str]
) -> dict[str, WellScore]:
    """Return the score of each well at its own latest time point; wells without a score are left out."""
    found: dict[str, WellScore] = {}
    missing = set(wells)
    for timepoint in queries.last_timepoints(connection, plate.plate_id, LOOK_BACK):
        found = {score.well: score for score in courses(connection, plate, model, None, timepoint)} | found
        missing -= found.keys()
        if not missing:
            return found
    # Scores come in the order of their time points, so the last one of a well stays.
    return {score.well: score for score in courses(connection, plate, model, sorted(missing))} | found


def before_treatment(plate: PlateRow, scores: Iterable[WellScore]) -> tuple[str, ...]:
    """Return a warning where images were taken before the treatment: so it should be, or the time is wrong."""
    early = [(score.hours, score) for score in scores if score.hours is not None and score.hours < 0]
    if not early:
        return ()
    hours, first = min(early, key=lambda item: item[0])
    at = first.acquired_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if first.acquired_at else ""
    return (
        f"plate {plate.name}: its first image ({at}) was taken {-hours:.1f} h before the treatment, so hours begin "
        "below zero; if that is wrong, import the plate map again with the right --treated-at",
    )


def treated_at(treatments: list[TreatmentRow]) -> dict[str, datetime]:
    """Return when each well was first treated, where that is known."""
    moments: dict[str, datetime] = {}
    for row in treatments:
        if row.treated_at is not None:
            moments[row.well] = min(row.treated_at, moments.get(row.well, row.treated_at))
    return moments


def _well_score(
    plate: PlateRow,
    model_id: str,
    row: RowMapping,
    treated_at: datetime | None,
    limits: tuple[float | None, float | None, float | None],
) -> WellScore:
    score, low, high = limits
    by_file_time = row["n_file_times"] == row["n_images"]
    moment, hours = queries.hours_since(plate, treated_at, row["timepoint"], row["acquired_at"], by_file_time)
    return WellScore(
        plate=plate.name,
        well=row["well"],
        timepoint=row["timepoint"],
        acquired_at=moment,
        hours=hours,
        n_images=row["n_images"],
        n_cells=row["n_cells"],
        score=score,
        ci_low=low,
        ci_high=high,
        fraction_senescent=row["n_over"] / row["n_cells"] if row["n_cells"] else None,
        model=model_id,
    )


def plate_table(
    engine: Engine, plate: str, *, timepoint: int | None = None, run: str | None = None, model: str | None = None
) -> Answer:
    """Return one row a well, at its latest time point or at the one asked for.

    Wells that were imaged and have no score are listed without one.
    """
    with engine.connect() as connection:
        found, notes = find_plate(connection, plate, run)
        chosen, more = pick_model(connection, found, model)
        wells = queries.imaged_wells(connection, found.plate_id)
        scores = scores_shown(connection, found, chosen, wells, timepoint)
        warnings = first_hours(connection, found, chosen)
        what = contents(queries.treatments(connection, found.plate_id))
    rows = [plate_row(well, scores.get(well), what.get(well, NOTHING)) for well in sorted(wells, key=well_position)]
    return Answer(rows, notes + more + warnings)


def scores_shown(
    connection: Connection,
    plate: PlateRow,
    model: tuple[int, str] | None,
    wells: Iterable[str],
    timepoint: int | None = None,
) -> dict[str, WellScore]:
    """Return the score of each well at `timepoint`, or at its own latest one; raise UnknownNameError for an unknown."""
    if model is None:
        return {}
    if timepoint is None:
        return latest_scores(connection, plate, model, wells)
    found = {score.well: score for score in courses(connection, plate, model, None, timepoint)}
    known = [] if found else [stop for stop, _ in queries.time_points(connection, plate.plate_id)]
    if known and timepoint not in known:
        raise UnknownNameError(f"plate {plate.name} has no scored time point {timepoint}; it has {_spans(known)}")
    return found


def first_hours(connection: Connection, plate: PlateRow, model: tuple[int, str] | None) -> tuple[str, ...]:
    """Return a warning where the plate's first images were taken before the treatment."""
    if model is None or plate.first_timepoint is None:
        return ()
    return before_treatment(plate, courses(connection, plate, model, None, plate.first_timepoint))


def _spans(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) <= 12 else f"{numbers[0]} to {numbers[-1]}"


NOTHING: Row = {"role": "", "compound": "", "dose": None, "dose_unit": ""}
"""What is in a well of which nothing is known."""


def contents(treatments: list[TreatmentRow]) -> dict[str, Row]:
    """Return role, compound, dose and unit of every well; several compounds are joined by ` + `."""
    wells: dict[str, list[TreatmentRow]] = defaultdict(list)
    for row in treatments:
        wells[row.well].append(row)
    return {well: _content(rows) for well, rows in wells.items()}


def _content(rows: list[TreatmentRow]) -> Row:
    roles = list(dict.fromkeys(row.role for row in rows))
    if len(rows) == 1:
        return {
            "role": roles[0],
            "compound": rows[0].compound,
            "dose": rows[0].dose,
            "dose_unit": rows[0].dose_unit,
        }
    return {
        "role": " + ".join(roles),
        "compound": " + ".join(row.compound for row in rows),
        "dose": " + ".join("" if row.dose is None else f"{row.dose:g}" for row in rows),
        "dose_unit": " + ".join(row.dose_unit for row in rows),
    }


def plate_row(well: str, score: WellScore | None, content: Row) -> Row:
    """Return a well's line: what is in it, and its score if it has one."""
    return {
        "well": well,
        **content,
        "timepoint": score.timepoint if score else None,
        "hours": score.hours if score else None,
        "score": score.score if score else None,
        "ci_low": score.ci_low if score else None,
        "ci_high": score.ci_high if score else None,
        "n_cells": score.n_cells if score else 0,
        "fraction_senescent": score.fraction_senescent if score else None,
        "n_images": score.n_images if score else 0,
        "model": score.model if score else "",
    }


PLATE_COLUMNS = tuple(plate_row("", None, NOTHING))
"""The columns of `plate_table`."""


IMAGE_COLUMNS = (
    *("state", "plate", "run", "well", "field", "timepoint", "channel", "z", "acquired_at", "seen_at"),
    *("path", "page", "reason", "excluded"),
)
"""The columns of `image_table`."""

REASON_COLUMNS = ("state", "images", "reason", "first")
"""The columns of `image_summary`."""


def image_table(
    engine: Engine,
    plate: str | None = None,
    *,
    state: str | None = None,
    folder: Path | None = None,
    limit: int | None = None,
    skip: int = 0,
) -> Answer:
    """Return the ledger's rows of a plate (all its runs), state and folder in the order of their paths.

    With `limit` at most so many, after the first `skip`; a note then says how many there are.
    """
    with engine.connect() as connection:
        wanted = queries.images_where(_plate_ids(connection, plate), state, folder)
        total = queries.count_images(connection, wanted)
        rows = [dict(row) for row in queries.image_rows(connection, wanted, limit=limit, skip=skip)]
    if len(rows) == total:
        return Answer(rows)
    where = f"{skip + 1} to {skip + len(rows)}" if rows else "none"
    on = f"; go on with --skip {skip + len(rows)}" if rows and skip + len(rows) < total else ""
    return Answer(rows, (f"images {where} of {total}{on}",))


def image_summary(
    engine: Engine, plate: str | None = None, *, state: str | None = None, folder: Path | None = None
) -> Answer:
    """Return how many images stand in each state and for which reason, the commonest first."""
    with engine.connect() as connection:
        wanted = queries.images_where(_plate_ids(connection, plate), state, folder)
        reasons = queries.image_reasons(connection, wanted)
    return Answer(
        [
            {"state": known, "images": group.number, "reason": group.reason, "first": group.path}
            for known, items in reasons.items()
            for group in group_reasons(items)
        ]
    )


def _plate_ids(connection: Connection, name: str | None) -> list[int] | None:
    if name is None:
        return None
    find_plate(connection, name)
    return [plate.plate_id for plate in queries.plate_runs(connection, name)]
