"""Small-sample intervals of a well's score and of its fraction of senescent cells."""

import math
from dataclasses import dataclass

from scipy.special import betaincinv, stdtrit  # scipy.stats would take two seconds to import


@dataclass(frozen=True, slots=True)
class FieldSums:
    """Sums over the fields of a well: each field has n cells with summed score s (and summed squares).

    For the fraction of senescent cells a cell's score is 1 or 0, so that s counts the senescent cells of a field.
    """

    n_fields: int
    n_cells: int
    score_sum: float
    score_sum_sq: float
    field_ss: float
    """Σ s²"""
    field_sn: float
    """Σ s·n"""
    field_nn: float
    """Σ n²"""


def mean_interval(sums: FieldSums, level: float = 0.95) -> tuple[float | None, float | None, float | None]:
    """Return (mean, low, high) of P(senescent) over the cells of a well, limits within [0, 1].

    With two or more fields with cells: the ratio estimator R = Σs/Σn with fields as clusters (Cochran, Sampling
    Techniques, 3rd ed., eq. 6.13) and Kish's effective number of fields k = (Σn)²/Σn² (Survey Sampling, 1965, 11.2) in
    place of their number: variance k/(k−1) · Σ(sᵢ − R nᵢ)² / (Σn)² and Student's t on k − 1 degrees of freedom. Where
    fields differ in their cells, the plain number covers 91 to 93 % only. With one field: Student's t over its
    cells. Limits are None when there is nothing to estimate them from (fewer than two cells); the mean is None
    without cells.
    """
    if sums.n_cells == 0:
        return None, None, None
    mean = sums.score_sum / sums.n_cells
    if sums.n_fields >= 2:
        error, freedom = _error_over_fields(sums, mean)
    elif sums.n_cells >= 2:
        squares = sums.score_sum_sq - sums.n_cells * mean**2
        freedom = sums.n_cells - 1.0
        error = math.sqrt(max(0.0, squares) / freedom / sums.n_cells)
    else:
        return mean, None, None
    half = float(stdtrit(freedom, 0.5 + level / 2)) * error
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def _error_over_fields(sums: FieldSums, mean: float) -> tuple[float, float]:
    """Return (standard error, degrees of freedom) of a mean over two or more fields."""
    fields = sums.n_cells**2 / sums.field_nn
    squares = sums.field_ss - 2 * mean * sums.field_sn + mean**2 * sums.field_nn
    return math.sqrt(max(0.0, squares) * fields / (fields - 1)) / sums.n_cells, fields - 1


def fraction_interval(sums: FieldSums, level: float = 0.95) -> tuple[float | None, float | None, float | None]:
    """Return (fraction, low, high) of the senescent cells of a well, with fields as clusters; all None without cells.

    The interval over fields of `mean_interval`, never narrower than that of Clopper and Pearson (Biometrika 26:404,
    1934) for as many independent cells, so that it has a width also when no cell, or every cell, is senescent.
    """
    if sums.n_cells == 0:
        return None, None, None
    cells, over, tail = sums.n_cells, sums.score_sum, (1 - level) / 2
    low = float(betaincinv(over, cells - over + 1, tail)) if over > 0 else 0.0
    high = float(betaincinv(over + 1, cells - over, 1 - tail)) if over < cells else 1.0
    if sums.n_fields < 2:
        return over / cells, low, high
    fraction, wide_low, wide_high = mean_interval(sums, level)
    return fraction, min(low, wide_low or 0.0), max(high, 1.0 if wide_high is None else wide_high)
