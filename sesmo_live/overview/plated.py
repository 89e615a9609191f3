"""A whole plate over time: its controls, and the wells that left their band."""

from dataclasses import dataclass

import numpy as np
from sqlalchemy import Engine

from sesmo_live import compounds, screens
from sesmo_live.answers import Row
from sesmo_live.compounds import Curve
from sesmo_live.errors import StatisticsError, UsageError


@dataclass(frozen=True, slots=True)
class Left:
    """A well that left the control band: its line of `plate_courses`, and where it stands at its last look."""

    row: Row
    score: float
    band_low: float
    band_high: float


@dataclass(frozen=True, slots=True)
class Plated:
    """What the page shows of a whole plate: lines of `plate_statistics`, wells that left, what cannot be said.

    `no_onset` says why no well can be said to have left the band, "" where it can; `watched` is the number of wells
    that can
    leave it and are no controls, `positive` that of the positive controls.
    """

    statistics: list[Row]
    left: list[Left]
    watched: int
    positive: int
    no_onset: str
    notes: tuple[str, ...]


def plated(engine: Engine, plate: str, *, run: str | None = None, model: str | None = None) -> Plated:
    """Return the statistics of a plate over all its time points; costs a second or two for 384 wells × 100 looks.

    Raises UnknownNameError for what the database does not hold. A plate without a score has no lines.
    """
    try:
        screen = screens.load_screen(engine, plate, run=run, model=model)
    except StatisticsError as error:
        return Plated([], [], 0, 0, str(error), (str(error),))
    statistics, courses = screens.statistics_of(screen), screens.courses_of(screen)
    try:
        band, why = screens.band_of(screen), ""
    except StatisticsError as error:
        band, why = None, str(error)
    left = []
    for row in courses.rows:
        if band and row["onset_timepoint"] is not None:
            scores = screen.scores[screen.wells.index(row["well"])]
            at = int(np.flatnonzero(np.isfinite(scores) & np.isfinite(band.half_width))[-1])
            mean, half = float(band.mean[at]), float(band.half_width[at])
            left.append(Left(row, float(scores[at]), mean - half, mean + half))
    left.sort(key=lambda item: (item.row["onset_timepoint"], -abs(item.score - item.band_low)))
    positive = len(screen.of_role("positive"))
    watched = len(screen.wells) - len(screen.of_role("negative")) - positive
    return Plated(statistics.rows, left, watched, positive, why, tuple(dict.fromkeys(statistics.notes + courses.notes)))


def newest_curves(
    engine: Engine, compound: str, *, model: str | None = None, most: int = 6
) -> tuple[list[Curve], tuple[str, ...]]:
    """Return the fitted curves of a compound on the newest plates that have one, the newest first, and the notes.

    At most `most` plates are looked at. Raises UnknownNameError for an unknown compound.
    """
    plates = compounds.plates_with(engine, compound)
    found: list[Curve] = []
    notes: dict[str, None] = {}
    for plate, run in reversed(plates[-most:]):
        try:
            curves, said = compounds.curves(engine, plate, compound, run=run, model=model)
        except UsageError as error:  # not scored, or not by this model
            notes.setdefault(str(error))
            continue
        found += curves
        notes.update(dict.fromkeys(said))
    if len(plates) > most:
        notes.setdefault(f"the newest {most} of {len(plates)} plates are fitted here; all with --fit, or the API")
    return found, tuple(notes)
