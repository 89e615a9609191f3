"""Figures against plain counting, and intervals that are of groups."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.metrics import (
    area_under_roc,
    calibration_curve,
    confusion,
    expected_calibration_error,
    grouped_auc,
    log_loss,
    measure,
    precision_recall_curve,
    roc_curve,
)

RNG = np.random.default_rng(3)
LABELS = RNG.integers(0, 2, 200)
SCORES = (RNG.integers(0, 30, 200) + 6 * LABELS) / 36
GROUPS = [f"{'hs'[label]}{number % 9}" for number, label in enumerate(LABELS)]


def test_the_area_under_the_curve_counts_ordered_pairs() -> None:
    pairs = [(one > zero) + (one == zero) / 2 for one in SCORES[LABELS == 1] for zero in SCORES[LABELS == 0]]
    assert area_under_roc(LABELS, SCORES) == pytest.approx(np.mean(pairs), abs=1e-12)
    weights = RNG.integers(0, 4, 200)
    repeated = area_under_roc(np.repeat(LABELS, weights), np.repeat(SCORES, weights))
    assert area_under_roc(LABELS, SCORES, weights.astype(float)) == pytest.approx(repeated, abs=1e-12)
    assert np.isnan(area_under_roc(np.zeros(5, int), np.ones(5)))


def test_the_roc_curve_has_the_same_area_and_counts_at_every_threshold() -> None:
    thresholds, false, true = roc_curve(LABELS, SCORES)
    assert np.trapezoid(true, false) == pytest.approx(area_under_roc(LABELS, SCORES))
    for number in range(len(thresholds)):
        called = thresholds[number] <= SCORES
        assert true[number] == called[LABELS == 1].mean()
        assert false[number] == called[LABELS == 0].mean()
    assert (true[-1], false[-1]) == (1, 1)


def test_precision_and_recall_count_at_every_threshold() -> None:
    for threshold, precision, recall in zip(*precision_recall_curve(LABELS, SCORES), strict=True):
        called = threshold <= SCORES
        assert precision == pytest.approx(LABELS[called].mean())
        assert recall == pytest.approx(called[LABELS == 1].mean())


def test_the_figures_at_the_threshold_are_the_textbook_ones() -> None:
    figures = measure(LABELS, SCORES, GROUPS, 0.5)
    counts = confusion(LABELS, SCORES >= 0.5)
    tp, fp, fn, tn = (counts[name] for name in ("tp", "fp", "fn", "tn"))
    assert tp == int(((SCORES >= 0.5) & (LABELS == 1)).sum())
    assert tp + fp + fn + tn == 200
    assert figures["accuracy"].value == pytest.approx((tp + tn) / 200)
    assert figures["precision"].value == pytest.approx(tp / (tp + fp))
    assert figures["recall"].value == pytest.approx(tp / (tp + fn))
    assert figures["f1"].value == pytest.approx(2 / ((tp + fp) / tp + (tp + fn) / tp))
    assert figures["ece"].value == pytest.approx(expected_calibration_error(LABELS, SCORES))
    for name, figure in figures.items():
        assert figure.low is not None, name
        assert figure.high is not None, name
        assert figure.low < figure.high
        assert name == "ece" or figure.low < figure.value < figure.high


def test_the_calibration_error_is_the_distance_of_share_and_score() -> None:
    scores = np.repeat([0.12, 0.55, 1.0], [50, 30, 20])
    labels = np.concatenate([np.arange(50) < 10, np.arange(30) < 15, np.ones(20, bool)]).astype(int)
    assert expected_calibration_error(labels, scores) == pytest.approx((50 * 0.08 + 30 * 0.05) / 100)
    mean, share, n = calibration_curve(labels, scores)
    np.testing.assert_allclose(mean, [0.12, 0.55, 1.0])
    np.testing.assert_allclose(share, [0.2, 0.5, 1.0])
    assert n.tolist() == [50, 30, 20]


def test_log_loss_punishes_false_certainty_but_not_without_end() -> None:
    labels = np.array([1, 0])
    assert log_loss(labels, np.array([0.8, 0.4])) == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
    assert 10 < log_loss(labels, np.array([0.0, 1.0])) < 20


def clustered() -> tuple[NDArray[np.int_], NDArray[np.float64], list[str]]:
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(12), 50)
    labels = (groups % 2).astype(int)
    scores = labels * 0.8 + rng.normal(0, 1, 12)[groups] + rng.normal(0, 0.3, 600)
    return labels, (scores - scores.min()) / np.ptp(scores), [f"g{group}" for group in groups]


def test_the_interval_is_of_groups_and_not_of_cells() -> None:
    labels, scores, groups = clustered()
    alone = [str(i) for i in range(600)]
    auc, low, high = grouped_auc(labels, scores, groups)
    _, alone_low, alone_high = grouped_auc(labels, scores, alone)
    assert low is not None
    assert high is not None
    assert alone_low is not None
    assert alone_high is not None
    assert low < auc < high
    assert high - low > 2 * (alone_high - alone_low)
    by_group, by_cell = (
        measure(labels, scores, groups, 0.5)["accuracy"],
        measure(labels, scores, alone, 0.5)["accuracy"],
    )
    assert by_group.low is not None
    assert by_cell.low is not None
    assert by_group.value - by_group.low > 2 * (by_cell.value - by_cell.low)


def test_draws_without_a_class_say_nothing_of_precision() -> None:
    rng = np.random.default_rng(4)
    labels = np.repeat([0, 0, 1, 1], 50)
    scores = np.clip(0.2 + 0.6 * labels + rng.normal(0, 0.12, 200), 0, 1)
    figures = measure(labels, scores, np.repeat(["a", "b", "c", "d"], 50).tolist(), 0.5, 0)
    for name in ("auc", "f1", "precision", "recall"):
        low = figures[name].low
        assert low is not None, name
        assert low > 0.8, name


def test_one_group_a_class_gives_no_interval() -> None:
    labels = np.array([0, 0, 1, 1])
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    assert grouped_auc(labels, scores, ["a", "a", "b", "b"]) == (1.0, None, None)
    assert all(figure.low is None for figure in measure(labels, scores, ["a", "a", "b", "b"], 0.5).values())


def test_what_has_no_meaning_is_not_a_number() -> None:
    figures = measure(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4]), list("abcd"), 0.9)
    assert np.isnan(figures["precision"].value)
    assert figures["recall"].value == 0
