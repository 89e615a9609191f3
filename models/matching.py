"""Compare found cells with the truth: one centre per cell, scored as precision, recall, F1 and count error."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from sesmo_live.errors import UsageError

Points = NDArray[np.float64]
"""Places in an image: float64 N×2, x and y in px."""

DRAWS = 2000
"""Bootstrap draws of fields behind an interval."""


@dataclass(frozen=True, slots=True)
class Match:
    """What was found in one field: cells found once, centres on no cell or on a cell found already, cells missed."""

    hits: int
    extra: int
    missed: int

    @property
    def n_true(self) -> int:
        """Return how many cells there are."""
        return self.hits + self.missed

    @property
    def n_found(self) -> int:
        """Return how many centres were found."""
        return self.hits + self.extra


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval over fields; `low` and `high` are None for a single field."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Detection:
    """How well the cells of several fields were found.

    Precision, recall and F1 are over the cells of all fields together; `count_error` is the mean over fields of
    |found − true| / true.
    """

    precision: Interval
    recall: Interval
    f1: Interval
    count_error: Interval
    n_fields: int
    n_cells: int


def match_in_masks(centres: Points, labels: NDArray[Any]) -> Match:
    """Match centres with the instances of a label image (whole numbers H×W, 0 is background), one to one.

    A cell is found when a centre (rounded to its pixel) lies in its mask; a second centre in the same mask is extra.
    Centres outside the image are extra.
    """
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(
            f"instance labels of {labels.dtype} with shape {labels.shape} are no label image; give H×W ids"
        )
    at = np.rint(np.asarray(centres, np.float64)).astype(np.int64).reshape(-1, 2)
    inside = ((at >= 0) & (at < labels.shape[::-1])).all(axis=1)
    struck = labels[at[inside, 1], at[inside, 0]]
    hits = len(np.unique(struck[struck > 0]))
    return Match(hits, len(at) - hits, len(np.unique(labels[labels > 0])) - hits)


def match_to_points(centres: Points, truth: Points, radius_px: float) -> Match:
    """Match centres with true points at most `radius_px` away, one to one, with as many pairs as can be had."""
    if not len(centres) or not len(truth):
        return Match(0, len(centres), len(truth))
    distance = cdist(centres, truth)
    cost = np.where(distance <= radius_px, distance, 1e3 * radius_px * (1 + min(distance.shape)))
    rows, columns = linear_sum_assignment(cost)
    hits = int((distance[rows, columns] <= radius_px).sum())
    return Match(hits, len(centres) - hits, len(truth) - hits)


def summarize(matches: Sequence[Match], groups: Sequence[str] | None = None, seed: int = 0) -> Detection:
    """Return precision, recall, F1 and count error over fields, each with a 95 % bootstrap interval.

    Fields of one group (the frames of one film) are drawn together; without `groups` each field is its own. Raises
    UsageError where there is no field, or no cell in any.
    """
    if not matches or not any(match.n_true for match in matches):
        raise UsageError("there is no labelled cell to compare with; give fields with labelled cells")
    names = np.unique(groups if groups is not None else np.arange(len(matches)).astype(str), return_inverse=True)[1]
    counts = np.array([(match.hits, match.extra, match.missed) for match in matches], np.float64)
    members = [np.flatnonzero(names == name) for name in range(int(names.max()) + 1)]
    rng = np.random.default_rng(seed)
    drawn = [
        counts[np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])]
        for _ in range(DRAWS if len(members) > 1 else 0)
    ]
    return Detection(
        precision=_interval(_precision, counts, drawn),
        recall=_interval(_recall, counts, drawn),
        f1=_interval(_f1, counts, drawn),
        count_error=_interval(_count_error, counts, drawn),
        n_fields=len(matches),
        n_cells=int(counts[:, [0, 2]].sum()),
    )


def _interval(
    figure: Callable[[NDArray[np.float64]], float], counts: NDArray[np.float64], drawn: list[NDArray[np.float64]]
) -> Interval:
    if not drawn:
        return Interval(figure(counts), None, None)
    low, high = np.percentile([figure(sample) for sample in drawn], [2.5, 97.5])
    return Interval(figure(counts), float(low), float(high))


def _precision(counts: NDArray[np.float64]) -> float:
    hits, extra, _ = counts.sum(axis=0)
    return float(hits / max(hits + extra, 1))


def _recall(counts: NDArray[np.float64]) -> float:
    hits, _, missed = counts.sum(axis=0)
    return float(hits / max(hits + missed, 1))


def _f1(counts: NDArray[np.float64]) -> float:
    hits, extra, missed = counts.sum(axis=0)
    return float(2 * hits / max(2 * hits + extra + missed, 1))


def _count_error(counts: NDArray[np.float64]) -> float:
    hits, extra, missed = counts.T
    return float(np.mean(np.abs(extra - missed) / np.maximum(hits + missed, 1)))
