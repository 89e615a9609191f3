"""Answers about compounds on plates: hits against on-plate negatives, dose-response curves."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Engine

from db import queries
from sesmo_live import results
from sesmo_live.answers import Answer, Row, nearest
from sesmo_live.errors import StatisticsError, UnknownNameError, UsageError
from sesmo_live.screening import (
    DoseResponse,
    Effect,
    controls_apart,
    effect_against,
    false_discovery,
    fit_dose_response,
    over_plates,
)
from sesmo_live.screening.checks import Numbers
from sesmo_live.screens import Screen, load_screen
from sesmo_live.wells import well_position

HIT_LEVEL = 0.05
"""False-discovery rate below which a compound is called a hit unless the user says otherwise."""

TOXIC_SHARE = 0.5
"""Wells with fewer than this share of the negative controls' cells are marked: a drug that kills is no rescue."""

HIT_COLUMNS = (
    *("rank", "compound", "dose", "plates", "wells", "score", "effect", "effect_low", "effect_high", "effect_sd"),
    *("p", "q", "hit", "percent_of_control", "cells_percent", "toxic", "model"),
)
"""The columns of `hits`; effects are differences from the negative controls of the same plate."""


@dataclass(frozen=True, slots=True)
class _OnPlate:
    effect: Effect
    score: float
    imaged: int
    percent: float | None
    cells_percent: float


def hits(
    engine: Engine,
    plates: Sequence[str],
    *,
    timepoint: int | None = None,
    run: str | None = None,
    model: str | None = None,
    level: float = HIT_LEVEL,
) -> Answer:
    """Rank the compounds (each dose by itself) of plates by their effect against the negatives of the same plate.

    At `timepoint`, else at each plate's last one. Over several plates a compound's effects are combined
    (`over_plates`); the false-discovery rate is that of all compounds asked about. Plates must have been scored by one
    model; raises UsageError otherwise, StatisticsError for a plate without enough negative controls.
    """
    if not 0 < level < 1:
        raise UsageError(f"a false-discovery rate of {level:g} is not between 0 and 1; give 0.05, say")
    screens = [load_screen(engine, name, run=run, model=model, timepoint=timepoint, last=True) for name in plates]
    if len({screen.plate.plate_id for screen in screens}) < len(screens):
        raise UsageError("a plate is named twice, and its wells are no replicates of themselves; name each plate once")
    models = list(dict.fromkeys(screen.model[1] for screen in screens))
    if len(models) > 1:
        raise UsageError(f"these plates were scored by different models, {', '.join(models)}; name one with --model")
    found: dict[tuple[str, str], list[_OnPlate]] = defaultdict(list)
    said = dict.fromkeys(note for screen in screens for note in screen.notes)
    for screen in screens:
        for key, effect in _effects(screen, screen.index(timepoint), said).items():
            found[key].append(effect)
    rows = [_hit_row(key, several, models[0]) for key, several in found.items()]
    for row, q in zip(rows, false_discovery([row["p"] for row in rows]), strict=True):
        row["q"], row["hit"] = float(q), bool(q < level)
    rows.sort(key=lambda row: (row["q"], row["p"], -abs(row["effect_sd"])))
    ranked = [{name: row.get(name) for name in HIT_COLUMNS} | {"rank": rank} for rank, row in enumerate(rows, 1)]
    notes = tuple(said)
    toxic = sum(row["toxic"] for row in rows if row["hit"])
    if toxic:
        notes += (f"{toxic} of the hits have less than half of the negative controls' cells (toxic)",)
    return Answer(ranked, notes)


def groups(screen: Screen, roles: Sequence[str] = ("treatment",)) -> dict[tuple[str, str], list[int]]:
    """Return the rows of the wells of each (compound, dose), those with these roles and one or more compounds.

    Of compounds that the plate map names and that have no image in the screen there are no rows.
    """
    what = results.contents([row for rows in screen.treatments.values() for row in rows])
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    place_of = {well: place for place, well in enumerate(screen.wells)}
    for well, content in sorted(what.items(), key=lambda item: well_position(item[0])):
        if screen.roles.get(well) in roles and content["compound"]:
            dose = content["dose"]
            amount = dose if isinstance(dose, str) else "" if dose is None else f"{dose:g}"
            places = found[content["compound"], f"{amount} {content['dose_unit']}".strip()]
            places += [place_of[well]] if well in place_of else []
    return dict(found)


def _effects(screen: Screen, column: int, said: dict[str, None]) -> dict[tuple[str, str], _OnPlate]:
    """Return the effect of each compound and dose on one plate; those without a score are left out and told in `said`.

    Wells whose images show no cells have no score, and count among the cells: a drug may have killed them.
    """
    negatives = screen.known(screen.of_role("negative"), column)
    low_cells = _imaged(screen, screen.of_role("negative"), column)
    positives = screen.known(screen.of_role("positive"), column)
    try:
        controls_apart(negatives, positives)
        apart = float(positives.mean() - negatives.mean())
    except StatisticsError as error:
        said.setdefault(f"plate {screen.plate.name}: {error}")
        apart = 0.0
    found = {}
    dead: list[str] = []
    unseen: list[str] = []
    for key, rows in groups(screen, ("treatment", "positive")).items():
        values, cells = screen.known(rows, column), _imaged(screen, rows, column)
        if not len(values):
            (dead if len(cells) else unseen).append(" ".join(key).strip())
            continue
        try:
            effect = effect_against(values, negatives)
        except StatisticsError as error:
            raise StatisticsError(f"plate {screen.plate.name}: {error}") from error
        percent = 100 * effect.effect / apart if apart else None
        share = 100 * float(cells.mean() / low_cells.mean())
        found[key] = _OnPlate(effect, float(values.mean()), len(cells), percent, share)
    where = f"plate {screen.plate.name}, time point {screen.timepoints[column]}"
    if dead:
        said.setdefault(f"{where}: not ranked, since no cells are left to be scored (toxic?): {', '.join(dead)}")
    if unseen:
        said.setdefault(f"{where}: not ranked, since no image of its wells is scored: {', '.join(unseen)}")
    return found


def _imaged(screen: Screen, rows: Sequence[int], column: int) -> Numbers:
    """Return the cells an image of those of the wells that have an image at a time point, 0 where it shows none."""
    cells: Numbers = screen.cells[list(rows), column]
    return cells[np.isfinite(cells)]


def _hit_row(key: tuple[str, str], several: list[_OnPlate], model: str) -> Row:
    weights = [item.effect.n_wells for item in several]

    def mean(values: Sequence[float]) -> float:
        return float(np.average(values, weights=weights))

    one = several[0].effect if len(several) == 1 else None
    effect_sd, p = over_plates([item.effect for item in several])
    percents = [item.percent for item in several if item.percent is not None]
    cells = float(np.average([item.cells_percent for item in several], weights=[item.imaged for item in several]))
    return {
        "compound": key[0], "dose": key[1], "plates": len(several), "wells": sum(weights),
        "score": mean([item.score for item in several]), "effect": mean([item.effect.effect for item in several]),
        "effect_low": one.low if one else None, "effect_high": one.high if one else None,
        "effect_sd": effect_sd, "p": one.p if one else p,
        "percent_of_control": mean(percents) if len(percents) == len(several) else None,
        "cells_percent": cells, "toxic": cells < 100 * TOXIC_SHARE, "model": model,
    }  # fmt: skip


DOSE_COLUMNS = (
    *("compound", "plate", "run", "timepoint", "hours", "ec50", "ec50_low", "ec50_high", "unit", "slope", "bottom"),
    *("top", "is_flat", "p_flat", "doses", "wells", "note", "model"),
)
"""The columns of `dose_responses`."""


def dose_responses(
    engine: Engine,
    plate: str,
    compound: str | None = None,
    *,
    timepoint: int | None = None,
    over_time: bool = False,
    run: str | None = None,
    model: str | None = None,
) -> Answer:
    """Fit a dose-response curve to each compound of a plate (or to one), the negative controls being dose zero.

    At `timepoint` (the last one unless given), or at every time point. Compounds that cannot be fitted are told in the
    notes. Raises UsageError for a compound that is not on the plate.
    """
    found, notes = curves(engine, plate, compound, timepoint=timepoint, over_time=over_time, run=run, model=model)
    return Answer([curve.row for curve in found], notes)


@dataclass(frozen=True, slots=True)
class Curve:
    """A fitted curve: its line with `DOSE_COLUMNS`, and the doses and scores of the wells behind it."""

    row: Row
    fit: DoseResponse
    doses: Numbers
    scores: Numbers


def curves(
    engine: Engine,
    plate: str,
    compound: str | None = None,
    *,
    timepoint: int | None = None,
    over_time: bool = False,
    run: str | None = None,
    model: str | None = None,
) -> tuple[list[Curve], tuple[str, ...]]:
    """Return what `dose_responses` tells, each line with its curve and its wells, and the notes."""
    stop = None if over_time else timepoint
    screen = load_screen(engine, plate, run=run, model=model, timepoint=stop, last=not over_time)
    wanted = _compounds(engine, screen, compound)
    columns = range(len(screen.timepoints)) if over_time else [screen.index(timepoint)]
    said: dict[str, None] = {}
    found = []
    for name in wanted:
        for column in columns:
            try:
                fit, unit, doses, scores = fit_at(screen, name, column)
            except StatisticsError as error:
                said.setdefault(f"{name}: {error}")
                continue
            found.append(Curve(_fit_row(screen, name, column, fit, unit, doses), fit, doses, scores))
    return found, screen.notes + tuple(said)


def compound_curves(engine: Engine, name: str, *, model: str | None = None, over_time: bool = False) -> Answer:
    """Fit a dose-response curve to a compound on each plate that it is on; raise UsageError for an unknown compound."""
    rows: list[Row] = []
    notes: dict[str, None] = {}
    for plate, run in plates_with(engine, name):
        try:
            found = dose_responses(engine, plate, name, over_time=over_time, run=run, model=model)
        except UsageError as error:  # not scored, or not by this model
            notes.setdefault(str(error))
            continue
        rows += found.rows
        notes.update(dict.fromkeys(found.notes))
    return Answer(rows, tuple(notes))


def plates_with(engine: Engine, name: str) -> list[tuple[str, str]]:
    """Return (name, run) of the plates with a compound, the earliest imaged first; raise UnknownNameError."""
    with engine.connect() as connection:
        compounds = queries.find_compounds(connection, name)
        if not compounds:
            raise UnknownNameError(
                f"there is no compound {name!r}; {nearest(name, queries.compound_names(connection), 'compounds')}"
            )
        on = {row.plate_id for row in queries.treatments_of(connection, [key for key, _ in compounds])}
        return [(plate.name, plate.run) for plate in queries.plate_runs(connection) if plate.plate_id in on]


def _compounds(engine: Engine, screen: Screen, compound: str | None) -> list[str]:
    on_plate = list(
        dict.fromkeys(row.compound for rows in screen.treatments.values() for row in rows if row.role == "treatment")
    )
    if compound is None:
        return on_plate
    with engine.connect() as connection:
        known = [name for _, name in queries.find_compounds(connection, compound)]
    found = [name for name in on_plate if name in known]
    if not found:
        raise UnknownNameError(
            f"plate {screen.plate.name} treats no well with {compound!r}, but with {', '.join(on_plate[:20])}"
        )
    return found


def fit_at(screen: Screen, compound: str, column: int) -> tuple[DoseResponse, str, Numbers, Numbers]:
    """Return (curve, unit of the doses, doses, scores) of a compound at a time point of a plate.

    Doses are µM where the plate map gives them so, else in its own unit. Raises StatisticsError for doses without
    or with several units, and as `fit_dose_response`.
    """
    alone = {well: rows[0] for well, rows in screen.treatments.items() if len(rows) == 1}
    places = {place: alone[well] for place, well in enumerate(screen.wells) if well in alone}
    wells = [place for place, row in places.items() if row.compound == compound and row.role == "treatment"]
    in_um = all(places[place].dose_um is not None for place in wells)
    units = {places[place].dose_unit for place in wells}
    if not in_um and (len(units) > 1 or any(places[place].dose is None for place in wells)):
        raise StatisticsError("its doses have no unit in common, so they make no curve; give them in one unit")
    if not wells:
        raise StatisticsError("it stands in no well by itself, so there is no curve of it alone")
    zero = [place for place in screen.of_role("negative") if np.isfinite(screen.scores[place, column])]
    wells = [place for place in wells if np.isfinite(screen.scores[place, column])]
    doses = [places[place].dose_um if in_um else places[place].dose for place in wells]
    dose = np.array([0.0] * len(zero) + [float(value or 0.0) for value in doses])
    values = screen.scores[[*zero, *wells], column]
    return fit_dose_response(dose, values), "µM" if in_um else units.pop(), dose, values


def _fit_row(screen: Screen, name: str, column: int, fit: DoseResponse, unit: str, doses: Numbers) -> Row:
    hours = screen.hours[:, column]
    known = hours[np.isfinite(hours)]
    row: Row = {
        "compound": name, "plate": screen.plate.name, "run": screen.plate.run,
        "timepoint": screen.timepoints[column], "hours": float(np.median(known)) if len(known) else None,
        "ec50": fit.ec50_um, "ec50_low": fit.ec50_low_um or None, "unit": unit,
        "ec50_high": None if fit.ec50_high_um == math.inf else fit.ec50_high_um,
        "slope": fit.slope, "bottom": fit.bottom, "top": fit.top, "is_flat": fit.is_flat, "p_flat": fit.p_flat,
        "doses": len(np.unique(doses)), "wells": fit.n_points, "note": fit.note, "model": screen.model[1],
    }  # fmt: skip
    return {column_: row[column_] for column_ in DOSE_COLUMNS}
