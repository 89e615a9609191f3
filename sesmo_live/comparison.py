"""Two models side by side: the same wells under the scores of both."""

import numpy as np
from sqlalchemy import Engine

from db import queries, screening
from db.queries import PlateRow
from sesmo_live import results
from sesmo_live.answers import Answer, Row, model_named
from sesmo_live.errors import UnknownNameError, UsageError
from sesmo_live.screens import Screen, read_screen

COMPARE_COLUMNS = ("plate", "run", "well", "timepoint", "score_a", "score_b", "difference", "n_cells_a", "n_cells_b")
"""The columns of `compare`."""


def compare(engine: Engine, model_a: str, model_b: str, *, plate: str | None = None, run: str | None = None) -> Answer:
    """Return the scores of two models well by well, on a plate or on all plates that both scored.

    The notes tell their agreement: Pearson's correlation, the mean difference and the limits of agreement of Bland and
    Altman (Lancet 327:307, 1986). Raises UsageError for a model that scored nothing, and for one model twice.
    """
    with engine.connect() as connection:
        keys = screening.models(connection)
        first, second = _model(keys, model_a), _model(keys, model_b)
        if first == second:
            raise UsageError(f"{model_a!r} and {model_b!r} are one model, {keys[first][1]}; name two")
        plates = [results.find_plate(connection, plate, run)[0]] if plate else queries.plate_runs(connection)
        rows: list[Row] = []
        for found in plates:
            scored = {key for key, *_ in queries.plate_models(connection, found.plate_id)}
            if {first, second} <= scored:
                pair = [read_screen(connection, found, (key, keys[key][0]), ()) for key in (first, second)]
                rows += _pairs(found, *pair)
    if not rows:
        where = f"plate {plate}" if plate else "any plate"
        raise UsageError(f"{keys[first][0]} and {keys[second][0]} did not both score {where}; score it with the other")
    return Answer(rows, (f"A is {keys[first][0]}, B is {keys[second][0]}", *_agreement(rows)))


def _model(models: dict[int, tuple[str, str]], wanted: str) -> int:
    keys = {name: key for key, (name, _) in models.items()}
    found = model_named(wanted, list(keys))
    if found is None:
        raise UnknownNameError(f"no model {wanted!r} scored anything; these did: {', '.join(keys)}")
    return keys[found]


def _pairs(plate: PlateRow, a: Screen, b: Screen) -> list[Row]:
    both = sorted(a.sums.keys() & b.sums.keys(), key=lambda key: (a.wells.index(key[0]), key[1]))
    rows = []
    for well, timepoint in both:
        one, two = a.sums[well, timepoint], b.sums[well, timepoint]
        scores = [item.score_sum / item.n_cells if item.n_cells else None for item in (one, two)]
        difference = scores[1] - scores[0] if scores[0] is not None and scores[1] is not None else None
        values = (plate.name, plate.run, well, timepoint, *scores, difference, one.n_cells, two.n_cells)
        rows.append(dict(zip(COMPARE_COLUMNS, values, strict=True)))
    return rows


def _agreement(rows: list[Row]) -> tuple[str, ...]:
    pairs = np.array([(row["score_a"], row["score_b"]) for row in rows if row["difference"] is not None])
    if len(pairs) < 3:
        return (f"{len(pairs)} wells have cells under both models; agreement needs at least 3",)
    difference = pairs[:, 1] - pairs[:, 0]
    mean, sd = float(difference.mean()), float(difference.std(ddof=1))
    said = (
        f"over {len(pairs)} wells and time points B − A is {mean:+.3f} on average, "
        f"with limits of agreement {mean - 1.96 * sd:+.3f} to {mean + 1.96 * sd:+.3f}"
    )
    if (pairs.std(axis=0) == 0).any():
        return (said, "one of the models gave all wells the same score, so there is no correlation")
    return (said, f"their correlation (Pearson) is {np.corrcoef(pairs.T)[0, 1]:.3f}")
