"""How well scores tell two classes apart, with intervals that respect groups of cells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
"""Bootstrap draws behind an interval."""

ECE_BINS = 10
"""Bins of equal width over [0, 1] behind the calibration error and curve."""

Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure and its 95 % interval over groups; the interval is None where there are too few groups."""

    value: float
    low: float | None
    high: float | None


def area_under_roc(labels: NDArray[np.int_], scores: Floats, weights: Floats | None = None) -> float:
    """Return the chance that a cell labelled 1 scores above one labelled 0, ties counting half; NaN without both.

    `labels` N of 0 and 1, `scores` N, `weights` N (how often each cell counts). Source: Hanley and McNeil,
    Radiology 143:29 (1982).
    """
    values, place = np.unique(scores, return_inverse=True)
    return _area(labels, place, len(values), np.ones(len(labels)) if weights is None else weights)


def grouped_auc(
    labels: NDArray[np.int_], scores: Floats, groups: Sequence[str], seed: int = 0
) -> tuple[float, float | None, float | None]:
    """Return the area under the ROC curve and its 95 % bootstrap interval, whole groups being drawn.

    Cells of one group resemble each other: drawing cells would give too narrow an interval. The interval is None,
    None where a class has cells in fewer than two groups.
    """
    group = group_numbers(groups)
    values, place = np.unique(scores, return_inverse=True)
    drawn = [_area(labels, place, len(values), count[group]) for count in _draws(labels, group, seed)]
    measured = _interval(area_under_roc(labels, scores), np.array(drawn))
    return measured.value, measured.low, measured.high


def measure(
    labels: NDArray[np.int_], scores: Floats, groups: Sequence[str], threshold: float, seed: int = 0
) -> dict[str, Measured]:
    """Return auc, f1, accuracy, precision, recall and ece, each with its grouped bootstrap interval.

    A cell is called senescent where its score reaches `threshold`; senescent (1) is the positive class. `ece` is the
    expected calibration error. Figures without a meaning (no cell called senescent) are NaN.
    """
    group = group_numbers(groups)
    counts = _draws(labels, group, seed)
    auc, low, high = grouped_auc(labels, scores, groups, seed)
    measured = {"auc": Measured(auc, low, high)}
    table = _confusions(labels, scores >= threshold, group)
    of_all, of_draws = _rates(table.sum(axis=0)), _rates(counts @ table)
    for name, value in of_all.items():
        measured[name] = _interval(float(value), of_draws[name])
    bins = _bins(labels, scores, group)
    errors = _ece(np.einsum("dg,gbk->dbk", counts, bins))
    measured["ece"] = _interval(float(_ece(bins.sum(axis=0)[None])[0]), errors)
    return measured


def confusion(labels: NDArray[np.int_], called: NDArray[np.bool_]) -> dict[str, int]:
    """Return how many cells were called what: true and false positives and negatives, senescent being positive."""
    tp, fp, fn, tn = _confusions(labels, called, np.zeros(len(labels), np.intp))[0].astype(int).tolist()
    return {"tp": tp, "fp": fp, "fn": fn, "tn": tn}


def roc_curve(labels: NDArray[np.int_], scores: Floats) -> tuple[Floats, Floats, Floats]:
    """Return thresholds (falling), false-positive and true-positive rates; the first point calls nothing senescent."""
    thresholds, tp, fp = _cumulated(labels, scores)
    return (
        np.concatenate([[np.inf], thresholds]),
        np.concatenate([[0.0], fp / max((labels == 0).sum(), 1)]),
        np.concatenate([[0.0], tp / max((labels == 1).sum(), 1)]),
    )


def precision_recall_curve(labels: NDArray[np.int_], scores: Floats) -> tuple[Floats, Floats, Floats]:
    """Return thresholds (falling), precision and recall."""
    thresholds, tp, fp = _cumulated(labels, scores)
    return thresholds, tp / (tp + fp), tp / max((labels == 1).sum(), 1)


def calibration_curve(labels: NDArray[np.int_], scores: Floats) -> tuple[Floats, Floats, NDArray[np.int_]]:
    """Return mean score, share of senescent cells and number of cells of each bin that holds cells."""
    n, ones, total = _bins(labels, scores, np.zeros(len(labels), np.intp))[0].T
    held = n > 0
    return total[held] / n[held], ones[held] / n[held], n[held].astype(int)


def expected_calibration_error(labels: NDArray[np.int_], scores: Floats) -> float:
    """Return the mean distance of share and score over ten bins, weighted by their cells.

    Source: Guo et al., ICML 2017, equation 3.
    """
    return float(_ece(_bins(labels, scores, np.zeros(len(labels), np.intp)))[0])


def log_loss(labels: NDArray[np.int_], scores: Floats) -> float:
    """Return the mean negative logarithm of the probability given to the true class."""
    given = np.where(labels == 1, scores, 1 - np.asarray(scores, np.float64))
    return float(-np.log(np.clip(given, 1e-7, 1)).mean())


def group_numbers(groups: Sequence[str]) -> NDArray[np.intp]:
    """Return the number of each cell's group, from 0 in the order of their names."""
    return np.asarray(np.unique(np.asarray(groups, str), return_inverse=True)[1], np.intp)


def _draws(labels: NDArray[np.int_], group: NDArray[np.intp], seed: int) -> NDArray[np.float64]:
    """Return how often each group counts in each draw (draws × groups); no draws with too few groups a class.

    Draws without a cell of one class are left out: no figure has a meaning there.
    """
    n_groups = int(group.max()) + 1
    if min(len(np.unique(group[labels == label])) for label in (0, 1)) < 2:
        return np.empty((0, n_groups))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=DRAWS).astype(np.float64)
    of_class = np.stack([np.bincount(group, labels == label, minlength=n_groups) for label in (0, 1)], axis=1)
    return draws[(draws @ of_class > 0).all(axis=1)]


def _interval(value: float, drawn: NDArray[np.float64]) -> Measured:
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return Measured(value, None, None)
    low, high = np.percentile(known, [2.5, 97.5])
    # Draws of a calibration error lie above it, as some cells count twice: its interval must hold it all the same.
    return Measured(value, min(float(low), value), max(float(high), value))


def _area(labels: NDArray[np.int_], place: NDArray[np.intp], n_values: int, weights: Floats) -> float:
    ones = np.bincount(place, weights * (labels == 1), minlength=n_values)
    zeros = np.bincount(place, weights * (labels == 0), minlength=n_values)
    if not ones.sum() * zeros.sum():
        return float("nan")
    below = np.cumsum(zeros) - zeros / 2
    return float((ones * below).sum() / (ones.sum() * zeros.sum()))


def _confusions(labels: NDArray[np.int_], called: NDArray[np.bool_], group: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return tp, fp, fn, tn of each group (groups × 4)."""
    n_groups = int(group.max(initial=-1)) + 1
    kinds = (called & (labels == 1), called & (labels == 0), ~called & (labels == 1), ~called & (labels == 0))
    return np.stack([np.bincount(group, kind, minlength=n_groups) for kind in kinds], axis=1)


def _rates(table: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return the figures of confusions (… × 4), NaN where one divides by nothing."""
    tp, fp, fn, tn = np.moveaxis(table, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "f1": 2 * tp / (2 * tp + fp + fn),
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
        }


def _bins(labels: NDArray[np.int_], scores: Floats, group: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return cells, senescent cells and summed scores of each group and bin (groups × bins × 3)."""
    n_groups = int(group.max(initial=-1)) + 1
    place = group * ECE_BINS + np.clip((scores * ECE_BINS).astype(np.intp), 0, ECE_BINS - 1)
    weights = (np.ones(len(labels)), labels, scores)
    sums = [np.bincount(place, weight, minlength=n_groups * ECE_BINS) for weight in weights]
    return np.stack(sums, axis=1).astype(np.float64).reshape(n_groups, ECE_BINS, 3)


def _ece(bins: NDArray[np.float64]) -> NDArray[np.float64]:
    n, ones, total = np.moveaxis(bins, -1, 0)
    return np.asarray(np.abs(ones - total).sum(axis=-1) / np.maximum(n.sum(axis=-1), 1))


def _cumulated(labels: NDArray[np.int_], scores: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the scores that occur, falling, with the senescent and the healthy cells at or above each."""
    values, place = np.unique(-np.asarray(scores, np.float64), return_inverse=True)
    counts = [np.bincount(place, labels == label, minlength=len(values)).astype(np.float64) for label in (1, 0)]
    return -values, np.cumsum(counts[0]), np.cumsum(counts[1])
