"""What a compound did on every plate: one model's scores, or several models bridged by their control wells."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
from sqlalchemy import Connection, Engine

from db import queries, screening
from db.queries import PlateRow, TreatmentRow
from db.screening import WellSums
from sesmo_live.answers import Answer, Row, model_named, nearest
from sesmo_live.errors import StatisticsError, UnknownNameError
from sesmo_live.screening import controls_apart, percent_of_control
from sesmo_live.screening.checks import Numbers, or_none
from sesmo_live.screening.intervals import mean_intervals

HISTORY_COLUMNS = (
    *("compound", "plate", "run", "well", "role", "dose", "dose_unit", "dose_um", "timepoint", "acquired_at", "hours"),
    *("score", "ci_low", "ci_high", "n_cells", "fraction_senescent", "n_images", "model"),
)
"""The columns of `compound_history`."""

BRIDGE_COLUMNS = (
    *HISTORY_COLUMNS,
    *("percent_of_control", "mean_negative", "n_negative", "mean_positive", "n_positive"),
)
"""Its columns with `bridge`: percent of control, and the control wells of that plate, time point and model."""

TOLD = 5
"""Plates and time points without a bridge of which the reason is told one by one."""


def compound_history(engine: Engine, name: str, *, model: str | None = None, bridge: bool = False) -> Answer:
    """Return every plate, well, dose and time point of a compound, by name, alias or InChIKey.

    Scores of different models are not mixed: the rows are those of `model` (an id or its beginning), else of the
    latest model (`_latest`), and a note says what is left out. With `bridge` the rows are of all models, each plate
    under the last one that scored it, in percent between the control wells of the same plate, time point and model;
    rows without two wells of both controls have none. Raises UnknownNameError for an unknown compound or model.
    """
    with engine.connect() as connection:
        compounds = queries.find_compounds(connection, name)
        if not compounds:
            known = queries.compound_names(connection)
            raise UnknownNameError(f"there is no compound {name!r}; {nearest(name, known, 'compounds')}")
        wells: dict[tuple[int, str], list[TreatmentRow]] = defaultdict(list)
        for treatment in queries.treatments_of(connection, [key for key, _ in compounds]):
            wells[treatment.plate_id, treatment.well].append(treatment)
        sums = screening.history_sums(connection, [key for key, _ in compounds])
        models = screening.models(connection)
        if not sums:
            return Answer([], (f"no image of a well with {compounds[0][1]} is scored yet",))
        chosen, notes = _choose(connection, sums, models, model, bridge=bridge)
        plates = _plates(connection, chosen, wells)
        courses = _in_order(chosen, plates, wells)
        rows = _rows(courses, plates, models, wells)
        notes += _early(rows)
        if bridge:
            notes += _bridge(connection, rows, courses, models)
    return Answer(rows, notes)


Course = tuple[list[WellSums], TreatmentRow]
"""What rows tell of: a well over its time points, and one of the compound's treatments in it."""


def _in_order(
    chosen: Sequence[WellSums],
    plates: Mapping[int, PlateRow],
    wells: Mapping[tuple[int, str], list[TreatmentRow]],
) -> list[Course]:
    """Return the courses by plate (the first imaged first), dose and well."""
    place = {plate.plate_id: number for number, plate in enumerate(sorted(plates.values(), key=_first))}
    courses: dict[tuple[int, str], list[WellSums]] = defaultdict(list)
    for item in chosen:
        courses[item.plate_id, item.well].append(item)
    treated = sorted(
        ((place[key[0]], *_dose(treatment), key[1]), number, key, treatment)
        for key in courses
        for number, treatment in enumerate(wells[key])
    )
    for course in courses.values():
        course.sort(key=lambda item: item.timepoint)
    return [(courses[key], treatment) for _, _, key, treatment in treated]


def _dose(treatment: TreatmentRow) -> tuple[bool, float]:
    dose = treatment.dose if treatment.dose_um is None else treatment.dose_um
    return treatment.dose_um is None, -1.0 if dose is None else dose


def _first(plate: PlateRow) -> tuple[bool, float, int]:
    return plate.first_at is None, plate.first_at.timestamp() if plate.first_at else 0.0, plate.plate_id


def _choose(
    connection: Connection,
    sums: Sequence[WellSums],
    models: Mapping[int, tuple[str, str]],
    wanted: str | None,
    *,
    bridge: bool,
) -> tuple[list[WellSums], tuple[str, ...]]:
    """Return the sums to show: of one model, or with `bridge` of each plate's latest model; and what is left out."""
    scored = {item.model_key for item in sums}
    if wanted is not None:
        names = [models[key][0] for key in sorted(scored)]
        name = model_named(wanted, names)
        if name is None:
            raise UnknownNameError(f"no model {wanted!r} scored this compound; these did: {', '.join(names)}")
        scored = {key for key in scored if models[key][0] == name}
    of_plates, key = _latest(connection, sums, scored)
    if bridge:
        chosen = [item for item in sums if of_plates.get(item.plate_id) == item.model_key]
        return chosen, _demonstrations({item.model_key for item in chosen}, models)
    chosen = [item for item in sums if item.model_key == key]
    out = len({item.plate_id for item in sums} - {item.plate_id for item in chosen})
    notes = _demonstrations({key}, models)
    if out:
        how = "--model shows another model's scores, --bridge all in percent of control"
        left = f"{out} plates that it did not score are" if out > 1 else "1 plate that it did not score is"
        notes += (f"scores of {models[key][0]}; {left} left out ({how})",)
    return chosen, notes


def _latest(connection: Connection, sums: Sequence[WellSums], scored: set[int]) -> tuple[dict[int, int], int]:
    """Return the latest model of each plate, and of all of them together.

    As everywhere (`queries.plate_models`) that is the one whose score of the newest image that it scored was made last;
    here of the images of the compound's wells.
    """
    if len(scored) == 1:
        (only,) = scored
        return {item.plate_id: only for item in sums if item.model_key == only}, only
    newest: dict[tuple[int, int], int] = {}
    for item in sums:
        if item.model_key in scored:
            place = item.plate_id, item.model_key
            newest[place] = max(item.newest, newest.get(place, 0))
    times = screening.scored_at(connection, sorted(set(newest.values())), sorted(scored))
    of_plates: dict[int, tuple[datetime, int]] = {}
    of_models: dict[int, tuple[int, datetime]] = {}
    for (plate, key), image in newest.items():
        at = times[image, key]
        of_plates[plate] = max((at, key), of_plates.get(plate, (at, key)))
        of_models[key] = max((image, at), of_models.get(key, (image, at)))
    latest = max(scored, key=lambda key: (of_models[key][1], key))
    return {plate: key for plate, (_, key) in of_plates.items()}, latest


def _demonstrations(keys: set[int], models: Mapping[int, tuple[str, str]]) -> tuple[str, ...]:
    return tuple(f"model {models[key][0]}: {models[key][1]}" for key in sorted(keys) if models[key][1])


def _plates(
    connection: Connection, chosen: Sequence[WellSums], wells: Mapping[tuple[int, str], list[TreatmentRow]]
) -> dict[int, PlateRow]:
    """Return the plates, with their first images where the hours count from them."""
    ids = list(dict.fromkeys(item.plate_id for item in chosen))
    plates = screening.plates_by_id(connection, ids)
    treated = {plate for (plate, _), rows in wells.items() if all(row.treated_at for row in rows)}
    counted = [key for key in ids if key not in treated or plates[key].frame_interval_s is not None]
    firsts = screening.first_images(connection, counted)
    seen: dict[int, datetime] = {}
    for item in chosen:
        if item.acquired_at is not None:
            seen[item.plate_id] = min(item.acquired_at, seen.get(item.plate_id, item.acquired_at))
    for key, plate in plates.items():
        at, timepoint = firsts.get(key, (seen.get(key), None))
        values = (plate.wells, plate.frame_interval_s, plate.treated_at, plate.choice)
        plates[key] = PlateRow(key, plate.name, plate.run, *values, first_at=at, first_timepoint=timepoint)
    return plates


def _rows(
    courses: Sequence[Course],
    plates: Mapping[int, PlateRow],
    models: Mapping[int, tuple[str, str]],
    wells: Mapping[tuple[int, str], list[TreatmentRow]],
) -> list[Row]:
    """Return a row for each course and time point."""
    since = {
        key: min((row.treated_at for row in treatments if row.treated_at), default=None)
        for key, treatments in wells.items()
    }
    limits = zip(
        *map(or_none, mean_intervals(sums_of([item for course, _ in courses for item in course]))), strict=True
    )
    rows = []
    looks = ((item, what) for course, what in courses for item in course)
    for (item, what), (score, low, high) in zip(looks, limits, strict=True):
        plate, by_file_time = plates[item.plate_id], item.n_file_times == item.n_images
        origin = since[item.plate_id, item.well]
        moment, hours = queries.hours_since(plate, origin, item.timepoint, item.acquired_at, by_file_time)
        rows.append({
            "compound": what.compound, "plate": plate.name, "run": plate.run, "well": item.well, "role": what.role,
            "dose": what.dose, "dose_unit": what.dose_unit, "dose_um": what.dose_um, "timepoint": item.timepoint,
            "acquired_at": moment, "hours": hours, "score": score, "ci_low": low, "ci_high": high,
            "n_cells": item.n_cells, "fraction_senescent": item.n_over / item.n_cells if item.n_cells else None,
            "n_images": item.n_images, "model": models[item.model_key][0],
        })  # fmt: skip
    return rows


def sums_of(items: Sequence[WellSums]) -> Numbers:
    """Return the sums of scores of wells as `mean_intervals` takes them, a row each."""
    return np.array([item[FIRST_SUM:LAST_SUM] for item in items], dtype=float).reshape(len(items), LAST_SUM - FIRST_SUM)


FIRST_SUM, LAST_SUM = WellSums._fields.index("n_fields"), WellSums._fields.index("field_nn") + 1
"""Where the sums of a well's scores stand in `WellSums`, in the order of `FieldSums`."""


def _early(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return a warning for plates whose wells were imaged before their treatment."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["hours"] is not None and row["hours"] < 0:
            key = row["plate"], row["run"]
            if key not in found or row["hours"] < found[key]["hours"]:
                found[key] = row
    return tuple(
        f"plate {row['plate']}: its first image ({row['acquired_at']:%Y-%m-%d %H:%M} UTC) was taken "
        f"{-row['hours']:.1f} h before the treatment, so hours begin below zero; if that is wrong, import the plate "
        "map again with the right --treated-at"
        for row in found.values()
    )


def _bridge(
    connection: Connection, rows: list[Row], courses: Sequence[Course], models: Mapping[int, tuple[str, str]]
) -> tuple[str, ...]:
    """Add percent of control and the controls behind it to each row, in place; return what the bridge rests on."""
    items = [item for course, _ in courses for item in course]
    by_model: dict[int, set[int]] = defaultdict(set)
    for item in items:
        by_model[item.model_key].add(item.plate_id)
    controls: dict[tuple[int, int, str], list[float]] = {}
    for key, ids in by_model.items():
        controls |= screening.control_means(connection, sorted(ids), key)
    reasons: dict[str, None] = {}
    apart: dict[tuple[int, int], bool] = {}
    bridged: dict[int, set[int]] = defaultdict(set)
    for row, item in zip(rows, items, strict=True):
        look = item.plate_id, item.timepoint
        negative, positive = (controls.get((*look, role), []) for role in ("negative", "positive"))
        if look not in apart:
            where = f"plate {row['plate']} time point {item.timepoint}"
            apart[look] = _are_apart(negative, positive, where, reasons)
        row |= {"percent_of_control": None, "mean_negative": _mean(negative), "n_negative": len(negative)}
        row |= {"mean_positive": _mean(positive), "n_positive": len(positive)}
        if apart[look] and row["score"] is not None:
            row["percent_of_control"] = float(percent_of_control([row["score"]], negative, positive)[0])
            bridged[item.model_key].add(item.plate_id)
    return tuple(
        f"model {models[key][0]}: {len(bridged[key])} of {len(ids)} plates bridged by their own control wells"
        for key, ids in by_model.items()
    ) + _first_reasons(list(reasons))


def _first_reasons(reasons: Sequence[str]) -> tuple[str, ...]:
    """Return why plates and time points have no bridge, the first few of many."""
    more = f"; and so on for {len(reasons) - TOLD} more" if len(reasons) > TOLD else ""
    return (*reasons[: TOLD - 1], reasons[TOLD - 1] + more) if len(reasons) >= TOLD else tuple(reasons)


def _are_apart(negative: Sequence[float], positive: Sequence[float], where: str, reasons: dict[str, None]) -> bool:
    """Say whether the controls are far enough apart for a bridge; `reasons` gets the sentence when they are not."""
    try:
        controls_apart(negative, positive)
    except StatisticsError as error:
        reasons.setdefault(f"{where}: {error}")
        return False
    return True


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
