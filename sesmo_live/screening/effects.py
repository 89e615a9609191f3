"""What the plate itself does to its wells: rows, columns, rim; and scores freed from it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sesmo_live.errors import StatisticsError
from sesmo_live.screening.checks import ROUNDING, Numbers, settled, spread_mad

FEWEST_ROWS = 2
FEWEST_WELLS = 6
"""Wells below which rows and columns cannot be told from the wells themselves."""

ROUNDS = 100
"""Sweeps after which a median polish is taken as it stands; five to ten are usual."""

EDGE_LEVEL = 0.01
"""Probability below which rows, columns or rim are said to have an effect."""


@dataclass(frozen=True, slots=True)
class Polish:
    """A plate taken apart: value = overall + row + column + residual; NaN where a well has no value."""

    overall: float
    rows: Numbers
    columns: Numbers
    residuals: Numbers


@dataclass(frozen=True, slots=True)
class PlateEffects:
    """Row, column and rim effects of a plate; the p-values are None where they cannot be computed."""

    rows: Numbers
    columns: Numbers
    row_p: float | None
    column_p: float | None
    edge: float | None
    """Mean of the wells at the rim less that of the others."""
    edge_p: float | None


def _table(plate: ArrayLike) -> Numbers:
    table = np.asarray(plate, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < FEWEST_ROWS:
        raise StatisticsError("a plate needs at least two rows and two columns to look for their effects")
    if np.isinf(table).any():
        raise StatisticsError("some wells of the plate are infinite; leave out those without a score (NaN)")
    if np.count_nonzero(np.isfinite(table)) < FEWEST_WELLS:
        raise StatisticsError(
            f"{np.count_nonzero(np.isfinite(table))} wells have a score and {FEWEST_WELLS} are needed to tell "
            "rows and columns from wells"
        )
    return settled(table)


def _medians(table: Numbers, axis: int) -> Numbers:
    """Return the medians over an axis, 0 for a row or column without a value (nanmedian takes ten times as long)."""
    ordered = np.sort(table if axis == 1 else table.T, axis=1)  # NaN last
    counts = np.isfinite(ordered).sum(axis=1)
    lines = np.arange(len(ordered))
    middle = (ordered[lines, np.maximum(counts - 1, 0) // 2] + ordered[lines, counts // 2]) / 2
    return np.where(counts > 0, middle, 0.0)


def median_polish(plate: ArrayLike, tolerance: float = 1e-6) -> Polish:
    """Take a plate (rows × columns, NaN for wells without a value) apart by Tukey's median polish, rows first.

    Tukey, Exploratory Data Analysis (1977), ch. 11. Sweeps until the sum of the absolute residuals changes by less
    than `tolerance` of itself. Raises StatisticsError for less than two rows or columns, or six wells.
    """
    residuals = _table(plate).copy()
    rows, columns, overall, before = np.zeros(residuals.shape[0]), np.zeros(residuals.shape[1]), 0.0, np.inf
    for _ in range(ROUNDS):
        step = _medians(residuals, 1)
        residuals -= step[:, None]
        rows += step
        centre = float(np.median(columns))
        columns -= centre
        overall += centre
        step = _medians(residuals, 0)
        residuals -= step
        columns += step
        centre = float(np.median(rows))
        rows -= centre
        overall += centre
        now = float(np.nansum(np.abs(residuals)))
        if now == 0 or abs(before - now) < tolerance * now:
            break
        before = now
    return Polish(overall, rows, columns, residuals)


def b_scores(plate: ArrayLike) -> Numbers:
    """Return the B score of each well: its median-polish residual over 1.4826 MAD of all residuals of the plate.

    Brideau et al., J Biomol Screen 8:634 (2003), in the form of Malo et al. (2006). It takes for granted that most
    wells of every row and column have no effect, so controls must not fill a column: leave them out as NaN. Raises
    StatisticsError as `median_polish`, and when the residuals do not vary.
    """
    residuals = median_polish(plate).residuals
    spread = spread_mad(residuals[np.isfinite(residuals)])
    if spread <= ROUNDING * float(np.nanmax(np.abs(plate))):
        raise StatisticsError("the wells do not vary once rows and columns are taken out, so there is no B score")
    return residuals / spread


def plate_effects(plate: ArrayLike) -> PlateEffects:
    """Return row and column effects (median polish) with one-way F tests, and the rim against the rest (Welch's t).

    Pass the wells that should be alike, with NaN elsewhere. The tests are those of Fisher (1925) and Welch,
    Biometrika 34:28 (1947). Raises StatisticsError as `median_polish`.
    """
    table = _table(plate)
    if np.nanmax(table) == np.nanmin(table):
        raise StatisticsError("all wells have the same score, so there are no effects to look for")
    polish = median_polish(table)
    edge, edge_p = _edge(table)
    return PlateEffects(polish.rows, polish.columns, _f_test(table), _f_test(table.T), edge, edge_p)


def _edge(table: Numbers) -> tuple[float | None, float | None]:
    from scipy.special import stdtr

    rim = np.ones(table.shape, bool)
    rim[1:-1, 1:-1] = False
    known = np.isfinite(table)
    outer, inner = table[rim & known], table[~rim & known]
    if len(outer) < 2 or len(inner) < 2:
        return None, None
    errors = np.array([part.var(ddof=1) / len(part) for part in (outer, inner)])
    difference = float(outer.mean() - inner.mean())
    if errors.sum() == 0:
        return difference, None
    freedom = errors.sum() ** 2 / (errors[0] ** 2 / (len(outer) - 1) + errors[1] ** 2 / (len(inner) - 1))
    return difference, float(2 * stdtr(freedom, -abs(difference) / np.sqrt(errors.sum())))


def _f_test(table: Numbers) -> float | None:
    """Return the p-value of a one-way analysis of variance with the rows as groups."""
    from scipy.special import fdtrc

    groups = [row[np.isfinite(row)] for row in table]
    groups = [group for group in groups if len(group)]
    total = np.concatenate(groups)
    between, within = len(groups) - 1, len(total) - len(groups)
    if between < 1 or within < 1:
        return None
    around = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    if around == 0:
        return None
    explained = float(((total - total.mean()) ** 2).sum()) - around
    return float(fdtrc(between, within, max(0.0, explained) / between / (around / within)))
