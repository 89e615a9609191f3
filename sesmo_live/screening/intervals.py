"""Small-sample intervals of a well's score."""

import math
from dataclasses import dataclass

from scipy.special import stdtrit  # Student's t quantile; scipy.stats would take two seconds to import


@dataclass(frozen=True, slots=True)
class FieldSums:
    """Sums over the fields of a well: each field has n cells with summed score s (and summed squares)."""

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

    With two or more fields with cells: the ratio estimator Σs/Σn with fields as clusters and Student's t on
    fields − 1 degrees of freedom, variance k/(k−1) · Σ(sᵢ − R nᵢ)² / (Σn)² (Cochran, Sampling Techniques, 3rd ed.,
    eq. 6.13, without the finite population correction). With one field: Student's t over its cells. Limits are
    None when there is nothing to estimate them from (fewer than two cells); the mean is None without cells.
    """
    if sums.n_cells == 0:
        return None, None, None
    mean = sums.score_sum / sums.n_cells
    if sums.n_fields >= 2:
        k = sums.n_fields
        squares = sums.field_ss - 2 * mean * sums.field_sn + mean**2 * sums.field_nn
        error = math.sqrt(max(0.0, squares) * k / (k - 1)) / sums.n_cells
        freedom = k - 1
    elif sums.n_cells >= 2:
        squares = sums.score_sum_sq - sums.n_cells * mean**2
        freedom = sums.n_cells - 1
        error = math.sqrt(max(0.0, squares) / freedom / sums.n_cells)
    else:
        return mean, None, None
    half = float(stdtrit(freedom, 0.5 + level / 2)) * error
    return mean, max(0.0, mean - half), min(1.0, mean + half)
