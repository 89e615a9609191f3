"""How well scores tell two classes apart, with intervals that respect groups of cells."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
"""Bootstrap draws behind an interval."""


def area_under_roc(
    labels: NDArray[np.int_], scores: NDArray[np.floating], weights: NDArray[np.floating] | None = None
) -> float:
    """Return the chance that a cell labelled 1 scores above one labelled 0, ties counting half; NaN without both.

    `labels` N of 0 and 1, `scores` N, `weights` N (how often each cell counts). Source: Hanley and McNeil,
    Radiology 143:29 (1982).
    """
    values, place = np.unique(scores, return_inverse=True)
    weights = np.ones(len(labels)) if weights is None else weights
    ones = np.bincount(place, weights * (labels == 1), minlength=len(values))
    zeros = np.bincount(place, weights * (labels == 0), minlength=len(values))
    if not ones.sum() * zeros.sum():
        return float("nan")
    below = np.cumsum(zeros) - zeros / 2
    return float((ones * below).sum() / (ones.sum() * zeros.sum()))


def grouped_auc(
    labels: NDArray[np.int_], scores: NDArray[np.floating], groups: Sequence[str], seed: int = 0
) -> tuple[float, float | None, float | None]:
    """Return the area under the ROC curve and its 95 % bootstrap interval, whole groups being drawn.

    Cells of one group resemble each other: drawing cells would give too narrow an interval. The interval is None,
    None where a class has cells in fewer than two groups.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    auc = area_under_roc(labels, scores)
    if min(len(np.unique(group[labels == label])) for label in (0, 1)) < 2:
        return auc, None, None
    rng = np.random.default_rng(seed)
    n_groups = int(group.max()) + 1
    counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=DRAWS).astype(np.float64)
    drawn = [area_under_roc(labels, scores, count[group]) for count in counts]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return auc, float(low), float(high)
