"""Wells over time: when one leaves the band of its negative controls, how fast it rises, what it adds up to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sesmo_live.errors import StatisticsError
from sesmo_live.screening.checks import ROUNDING, Numbers, numbers, same_length

FEWEST_CONTROLS = 4
"""Negative control wells below which a band would be too wide to leave."""

LOOKS_POOLED = 10
"""The spread of the controls is that of this look or of so many of the last ones, whichever is larger."""

CONTROLS = (4, 6, 8, 12, 16, 24, 48)
WELLS = (24, 96, 384)
LOOKS = (10, 100)
LIMITS = np.array(
    [
        [
            [8.43, 5.75, 5.00, 4.39, 4.28, 4.01, 3.89],
            [9.50, 6.87, 5.87, 5.08, 4.78, 4.57, 4.22],
            [10.74, 7.54, 6.49, 5.50, 5.29, 4.96, 4.65],
        ],
        [
            [8.61, 6.20, 5.24, 4.86, 4.70, 4.47, 4.31],
            [10.90, 7.56, 6.29, 5.52, 5.12, 5.01, 4.69],
            [10.92, 7.87, 7.07, 5.95, 5.68, 5.32, 5.00],
        ],
    ]
)
"""Half-width of the band in standard deviations, for LOOKS × WELLS × CONTROLS.

Simulated with `false_alarm_limit`: 1 000 runs without any effect, at the correlation between looks (0 to 0.95) that
needs the widest band; 4 % of the runs have any well outside at any look, so that with the error of the simulation it
stays below 5 %.
"""


@dataclass(frozen=True, slots=True)
class Onset:
    """When a well left the band of the negative controls: `look` counts from 0, `rising` says to which side."""

    look: int
    rising: bool


@dataclass(frozen=True, slots=True)
class Band:
    """The negative controls' band at each look, `mean` ± `half_width` for a further well; NaN without controls."""

    mean: Numbers
    half_width: Numbers
    limit: float
    """Half-width in standard deviations of a further well."""


def band_limit(controls: int, wells: int, looks: int) -> float:
    """Return how many standard deviations a band must be wide so that at most 5 % of plates without effect leave it.

    That is, any of `wells` wells at any of `looks` looks, both sides; interpolated in `LIMITS` over 1/controls, log
    wells and log looks, beyond its ends as it goes there; more than 48 controls count as 48. Raises StatisticsError
    for fewer than four controls.
    """
    if controls < FEWEST_CONTROLS:
        raise StatisticsError(
            f"there are {controls} negative control wells and at least {FEWEST_CONTROLS} are needed for a band "
            "that a well can be said to leave"
        )
    over_controls = np.array([[_line(1 / controls, 1 / np.array(CONTROLS), row) for row in rows] for rows in LIMITS])
    over_wells = np.array([_line(np.log(max(1, wells)), np.log(WELLS), row) for row in over_controls])
    return max(float(over_wells[0]), _line(np.log(max(1, looks)), np.log(LOOKS), over_wells))


def _line(x: float, points: Numbers, values: Numbers) -> float:
    """Interpolate; beyond the last point of rising `points` go on with the last slope, below the first stay."""
    order = np.argsort(points)
    points, values = points[order], values[order]
    if x > points[-1]:
        slope = (values[-1] - values[-2]) / (points[-1] - points[-2])
        return float(values[-1] + slope * (x - points[-1]))
    return float(np.interp(x, points, values))


def control_band(negative: ArrayLike, wells: int, looks: int = 100) -> Band:
    """Return the band of the negative control wells (wells × looks, NaN where a well has no score).

    At each look mean ± limit · s √(1 + 1/n), with s the larger of the standard deviation at this look and the pooled
    one of the last ten. The limit (`band_limit`) holds for all `wells` and for `looks` planned looks together, so
    the band may be looked at as the plate grows. Raises StatisticsError for fewer than four controls.
    """
    table = np.atleast_2d(np.asarray(negative, dtype=np.float64))
    counts = np.isfinite(table).sum(axis=0)
    if table.shape[1] == 0 or counts.max(initial=0) < FEWEST_CONTROLS:
        band_limit(int(counts.max(initial=0)), wells, looks)
    known = counts >= FEWEST_CONTROLS
    filled = np.where(known, table, 0.0)
    mean = np.where(known, np.nanmean(filled, axis=0), np.nan)
    variance = np.where(known, np.nanvar(filled, axis=0, ddof=1), 0.0)
    weight = np.where(known, counts - 1, 0)
    pooled = _trailing(variance * weight) / np.maximum(1, _trailing(weight.astype(np.float64)))
    spread = np.sqrt(np.maximum(variance, pooled))
    spread[spread <= ROUNDING * np.abs(np.nan_to_num(mean))] = 0.0
    if known.any() and not spread[known].any():
        raise StatisticsError("the negative control wells all have the same scores, so their band has no width")
    limit = band_limit(int(counts[known].min()), wells, max(looks, table.shape[1]))
    half = np.where(known, limit * spread * np.sqrt(1 + 1 / np.maximum(1, counts)), np.nan)
    return Band(mean, half, limit)


def _trailing(values: Numbers) -> Numbers:
    """Return the sum of each value and those before it, `LOOKS_POOLED` of them at most."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    return np.asarray(sums[ends] - sums[np.maximum(0, ends - LOOKS_POOLED)], dtype=np.float64)


def onset(scores: ArrayLike, band: Band) -> Onset | None:
    """Return when a well (a score for each look, NaN where there is none) left the band, None if it never did.

    Two looks in a row on the same side make an onset at the first of them, so it is known one look later: a single
    look outside may be a bad image, which no limit for well-behaved noise foresees. Looks without a score, or
    without controls, are passed over.
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    same_length(values, band.mean, "looks of well and controls")
    beyond = (values - band.mean) / np.where(band.half_width > 0, band.half_width, np.nan)
    looks = np.flatnonzero(np.isfinite(beyond))
    sides = np.sign(beyond[looks]) * (np.abs(beyond[looks]) > 1)
    twice = np.flatnonzero((sides[1:] == sides[:-1]) & (sides[1:] != 0))
    return Onset(int(looks[twice[0]]), bool(sides[twice[0]] > 0)) if len(twice) else None


def slope(hours: ArrayLike, scores: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Return (slope, low, high) of the score per hour: a least-squares line with Student's t on n − 2.

    The looks count as independent; wells that drift make the interval too narrow. Raises StatisticsError for fewer
    than three looks or for looks at one time.
    """
    from scipy.special import stdtrit

    times, values = numbers(hours, "hours", 3), numbers(scores, "scores", 3)
    same_length(times, values, "hours and scores")
    around = times - times.mean()
    squares = float((around**2).sum())
    if np.ptp(times) == 0:
        raise StatisticsError("all looks are at one time, so there is no slope")
    found = float((around * values).sum() / squares)
    rest = values - values.mean() - found * around
    half = float(stdtrit(len(times) - 2, 0.5 + level / 2)) * float(
        np.sqrt((rest**2).sum() / (len(times) - 2) / squares)
    )
    return found, found - half, found + half


def area_under_curve(hours: ArrayLike, scores: ArrayLike, baseline: ArrayLike = 0.0) -> float:
    """Return the area between scores and baseline over time (score × hours), by trapezoids.

    `baseline` is a number or one for each look, as the mean of the negative controls. Raises StatisticsError for
    fewer than two looks, and for times that do not rise.
    """
    times, values = numbers(hours, "hours", 2), numbers(scores, "scores", 2)
    same_length(times, values, "hours and scores")
    if (np.diff(times) <= 0).any():
        raise StatisticsError("the hours do not rise from look to look; sort the looks by their time")
    return float(np.trapezoid(values - np.asarray(baseline, dtype=np.float64), times))


def false_alarm_limit(
    controls: int, wells: int, looks: int, correlations: Sequence[float], runs: int, seed: int, share: float = 0.04
) -> float:
    """Simulate runs without effect and return the band (in standard deviations) that `share` of them leave.

    Scores of a well at two looks have the given correlation; the one that needs the widest band counts. This made
    `LIMITS`.
    """
    rng = np.random.default_rng(seed)
    widest = 0.0
    for correlation in correlations:
        outermost = np.empty(runs)
        for run in range(runs):
            own = np.sqrt(correlation) * rng.standard_normal((controls + wells, 1))
            scores = own + np.sqrt(1 - correlation) * rng.standard_normal((controls + wells, looks))
            variance = scores[:controls].var(axis=0, ddof=1)
            pooled = _trailing(variance) / np.minimum(np.arange(1, looks + 1), LOOKS_POOLED)
            spread = np.sqrt(np.maximum(variance, pooled) * (1 + 1 / controls))
            outermost[run] = (np.abs(scores[controls:] - scores[:controls].mean(axis=0)) / spread).max()
        widest = max(widest, float(np.quantile(outermost, 1 - share)))
    return widest
