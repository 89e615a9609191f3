"""Small-sample intervals of a well's score and of its fraction of senescent cells."""

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from sesmo_live.screening.checks import Numbers, or_none

Limits = tuple[Numbers, Numbers, Numbers]
"""Estimates, lower and upper limits, one of each for each well; NaN where there is none."""


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


def mean_intervals(sums: Numbers, level: float = 0.95) -> Limits:
    """Return the mean P(senescent) over the cells of each well and its limits within [0, 1], NaN where there is none.

    `sums` has a row a well and the columns of `FieldSums`. With two or more fields with cells: the ratio estimator
    R = Σs/Σn with fields as clusters (Cochran, Sampling Techniques, 3rd ed., eq. 6.13) and Kish's effective number of
    fields k = (Σn)²/Σn² (Survey Sampling, 1965, 11.2) in place of their number m: variance k/(k−1) · Σ(sᵢ − R nᵢ)² /
    (Σn)² and Student's t on (m − 1) k/m degrees of freedom, the fields' own over Kish's design effect. Where fields
    differ twofold in their cells, m − 1 covers 91 to 94 % only and k − 1 of two fields 97.5 %, this 94 to 97 %. With
    one field: Student's t over its cells. There are no limits with fewer than two cells, and no mean without any.
    """
    from scipy.special import stdtrit  # scipy.stats would take two seconds to import

    fields, cells, total, squares, ss, sn, nn = np.asarray(sums, dtype=np.float64).T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        mean = total / cells
        kish = cells**2 / nn
        between = np.maximum(0.0, ss - 2 * mean * sn + mean**2 * nn) * kish / (kish - 1)
        within = np.maximum(0.0, squares - cells * mean**2) / (cells - 1) * cells
        several = fields >= 2
        error = np.sqrt(np.where(several, between, within)) / cells
        freedom = np.where(several, (fields - 1) * kish / fields, cells - 1)
        half = np.where(error > 0, stdtrit(freedom, 0.5 + level / 2), 0.0) * error
    mean = np.where(np.isfinite(mean), mean, np.nan)
    known = np.isfinite(mean) & np.isfinite(half) & (cells >= 2)
    low, high = np.maximum(0.0, mean - half), np.minimum(1.0, mean + half)
    return mean, np.where(known, low, np.nan), np.where(known, high, np.nan)


def fraction_intervals(sums: Numbers, level: float = 0.95) -> Limits:
    """Return the fraction of senescent cells of each well and its limits, with fields as clusters; NaN without cells.

    `sums` as for `mean_intervals`. Its interval over fields, never narrower than that of Clopper and Pearson
    (Biometrika 26:404, 1934) for as many independent cells: it has a width also when no cell, or all, are senescent.
    """
    from scipy.special import betaincinv

    table = np.asarray(sums, dtype=np.float64)
    fields, cells, over, tail = table[:, 0], table[:, 1], table[:, 2], (1 - level) / 2
    known: NDArray[np.bool_] = cells > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.where(over > 0, betaincinv(over, cells - over + 1, tail), 0.0)
        high = np.where(over < cells, betaincinv(over + 1, cells - over, 1 - tail), 1.0)
    fraction, wide_low, wide_high = mean_intervals(table, level)
    several = fields >= 2
    low = np.where(several, np.minimum(low, np.nan_to_num(wide_low, nan=0.0)), low)
    high = np.where(several, np.maximum(high, np.nan_to_num(wide_high, nan=1.0)), high)
    return fraction, np.where(known, low, np.nan), np.where(known, high, np.nan)


def mean_interval(sums: FieldSums, level: float = 0.95) -> tuple[float | None, float | None, float | None]:
    """Return `mean_intervals` of one well, None where there is none."""
    return _of_one(mean_intervals(np.array([astuple(sums)]), level))


def fraction_interval(sums: FieldSums, level: float = 0.95) -> tuple[float | None, float | None, float | None]:
    """Return `fraction_intervals` of one well, None where there is none."""
    return _of_one(fraction_intervals(np.array([astuple(sums)]), level))


def _of_one(limits: Limits) -> tuple[float | None, float | None, float | None]:
    mean, low, high = (or_none(values)[0] for values in limits)
    return mean, low, high
