"""A score beside what the number of cells alone would make of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sesmo_live.errors import StatisticsError
from sesmo_live.screening.checks import Numbers, numbers, same_length

FEWEST_WELLS = 6
"""Negative control wells below which score and cell count are not brought together."""


@dataclass(frozen=True, slots=True)
class DensityAdjustment:
    """How the score goes with the cell count in the negative controls, and the scores at their usual count.

    `slope` is the change of the score for each doubling of the cells; `extrapolated` marks wells with fewer or more
    cells than any negative control, whose adjusted score rests on no observation.
    """

    slope: float
    usual_cells: float
    adjusted: Numbers
    extrapolated: np.typing.NDArray[np.bool_]


def density_adjusted(
    scores: ArrayLike, cells: ArrayLike, negative_scores: ArrayLike, negative_cells: ArrayLike
) -> DensityAdjustment:
    """Return each score less what its cell count explains among the negative control wells.

    A straight line of the score over log2(cells), fitted by least squares to the negative controls alone (an analysis
    of covariance, Fisher 1932), so that an effect of a compound is not taken out with the density. Raises
    StatisticsError for fewer than six negative wells, wells without cells, and controls that all have the same count.
    """
    scores_, cells_ = numbers(scores, "scores", 0), numbers(cells, "cell counts", 0)
    same_length(scores_, cells_, "scores and cell counts")
    low = numbers(negative_scores, "negative control wells", FEWEST_WELLS)
    low_cells = numbers(negative_cells, "cell counts of negative control wells", FEWEST_WELLS)
    same_length(low, low_cells, "scores and cell counts of negative control wells")
    if (np.concatenate([cells_, low_cells]) <= 0).any():
        raise StatisticsError("a well without cells has no score to adjust; leave it out")
    x = np.log2(low_cells)
    around = x - x.mean()
    if np.ptp(low_cells) == 0:
        raise StatisticsError("the negative control wells all have the same number of cells: no density to adjust for")
    slope = float((around * low).sum() / (around**2).sum())
    adjusted = scores_ - slope * (np.log2(cells_) - x.mean())
    beyond = (cells_ < low_cells.min()) | (cells_ > low_cells.max())
    return DensityAdjustment(slope, float(2 ** x.mean()), adjusted, beyond)
