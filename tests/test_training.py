"""The trainer: groups never split, draws repeatable, and it learns."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.metrics import area_under_roc, grouped_auc
from models.network import build_scoring_network
from models.training import Trained, augment, split_by_group, train_network
from sesmo_live.errors import UsageError

PX = 20


def blobs(n: int = 240) -> tuple[NDArray[np.uint8], NDArray[np.int_], list[str]]:
    """Return small crops with a narrow (0) or a wide (1) bright blob, from eight groups of either label."""
    rng = np.random.default_rng(9)
    labels = np.arange(n) % 2
    y, x = np.mgrid[:PX, :PX] - (PX - 1) / 2
    widths = np.where(labels, 6.0, 2.0)[:, None, None]
    crops = 60 + 150 * np.exp(-(x**2 + y**2) / (2 * widths**2)) + rng.normal(0, 5, (n, PX, PX))
    return (
        crops.clip(0, 255).astype(np.uint8),
        labels,
        [f"{'CS'[label]}{(i // 2) % 8}" for i, label in enumerate(labels)],
    )


@pytest.fixture(scope="module")
def epochs_seen() -> list[int]:
    return []


@pytest.fixture(scope="module")
def trained(epochs_seen: list[int]) -> Trained:
    crops, labels, groups = blobs()
    return train_network(
        crops, labels, groups, epochs=12, batch=16, seed=2, progress=lambda epoch, _figures: epochs_seen.append(epoch)
    )


def test_it_learns_a_plain_difference(trained: Trained, epochs_seen: list[int]) -> None:
    assert trained.auc > 0.95
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
    assert epochs_seen == list(range(1, 13))
    assert set(trained.history[0]) == {"loss", "accuracy", "held_out_loss", "held_out_accuracy"}


def test_the_held_out_cells_are_whole_groups(trained: Trained) -> None:
    _, labels, groups = blobs()
    held = set(trained.held_out.tolist())
    assert trained.groups == [groups[i] for i in trained.held_out]
    assert not set(trained.groups) & {group for i, group in enumerate(groups) if i not in held}
    np.testing.assert_array_equal(trained.labels, labels[trained.held_out])
    assert trained.n_trained + len(trained.held_out) == len(labels)
    assert {group[0] for group in set(trained.groups)} == {"C", "S"}
    assert len(set(trained.groups)) == 4


def test_the_reported_probabilities_are_those_of_the_weights(trained: Trained) -> None:
    crops, _, _ = blobs()
    model = build_scoring_network("deep-sesmo", PX, trained.weights)
    logits = np.asarray(model(crops[trained.held_out][..., None].astype(np.float32)))
    expected = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    np.testing.assert_allclose(trained.probabilities, expected, atol=1e-5)


def test_the_same_seed_gives_the_same_weights() -> None:
    crops, labels, groups = blobs(80)
    first, again, other = (train_network(crops, labels, groups, epochs=1, batch=16, seed=seed) for seed in (4, 4, 5))
    np.testing.assert_allclose(again.weights["conv1/kernel"], first.weights["conv1/kernel"], atol=1e-6)
    assert np.abs(other.weights["conv1/kernel"] - first.weights["conv1/kernel"]).max() > 0.01


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_no_group_is_on_both_sides_and_no_class_is_missing(seed: int, share: float) -> None:
    groups = [*("a" * 30), *("b" * 5), *("c" * 20), *("d" * 9), *("e" * 40), *("f" * 3), *("g" * 3)]
    labels = np.array([{"a": 0, "b": 0, "c": 0, "d": 1, "e": 1}.get(group, i % 2) for i, group in enumerate(groups)])
    tested = split_by_group(labels, groups, share, seed)
    for name in set(groups):
        assert len({bool(side) for side, group in zip(tested, groups, strict=True) if group == name}) == 1
    assert set(labels[tested]) == set(labels[~tested]) == {0, 1}


def test_about_the_share_of_groups_is_held_out() -> None:
    groups = [f"w{i}" for i in range(100)]
    tested = split_by_group(np.arange(100) % 2, groups, 0.2, 0)
    assert tested.sum() == 20
    assert (split_by_group(np.arange(100) % 2, groups, 0.2, 1) != tested).any()


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        ([0, 0, 1, 1], ["a", "a", "b", "b"]),
        ([0, 0, 1, 1], ["a", "b", "c", "c"]),
        ([0, 1, 0, 1], ["a", "a", "a", "a"]),
    ],
)
def test_too_few_groups_are_refused(labels: list[int], groups: list[str]) -> None:
    with pytest.raises(UsageError, match="at least two groups"):
        split_by_group(np.array(labels), groups, 0.2, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crops": np.zeros((4, 20, 20))}, "float64"),
        ({"crops": np.zeros((4, 20, 24), np.uint8)}, r"\(4, 20, 24\)"),
        ({"labels": np.array([0, 1, 1])}, "3 labels"),
        ({"groups": ["a"]}, "1 groups"),
        ({"labels": np.zeros(4, int)}, "both healthy"),
        ({"labels": np.array([0, 1, 2, 1])}, "no other label"),
        ({"epochs": 0}, "epochs 0"),
    ],
)
def test_what_cannot_be_trained_on_is_named(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {
        "crops": np.zeros((4, 20, 20), np.uint8),
        "labels": np.array([0, 1, 0, 1]),
        "groups": list("abcd"),
        "epochs": 1,
    }
    with pytest.raises(UsageError, match=words):
        train_network(**{**given, **change})


def test_augmented_crops_keep_kind_and_differ() -> None:
    crops, _, _ = blobs(64)
    changed = augment(crops, np.random.default_rng(0))
    assert changed.dtype == np.uint8
    assert changed.shape == crops.shape
    assert (changed != crops).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(changed, augment(crops, np.random.default_rng(0)))


def test_augmentation_of_a_plain_crop_only_shifts_its_grey_value() -> None:
    plain = np.full((300, PX, PX), 128, np.uint8)
    changed = augment(plain, np.random.default_rng(0))
    assert (changed == changed[:, :1, :1]).all()  # edges are repeated, not filled with black
    levels = changed[:, 0, 0].astype(int)
    assert levels.min() < 113
    assert levels.max() > 143
    assert np.abs(levels - 128).max() <= 21


def test_augmentation_turns_and_shifts_within_its_bounds() -> None:
    spot = np.zeros((400, 41, 41), np.uint8)
    spot[:, 18:23, 30:35] = 250  # 12 px right of the centre
    changed = augment(spot, np.random.default_rng(1)).astype(float)
    bright = np.maximum(changed - 110, 0)
    total = bright.sum(axis=(1, 2))
    y, x = np.mgrid[:41, :41] - 20.0
    seen = total > 0
    places = np.stack([(bright * axis).sum(axis=(1, 2))[seen] / total[seen] for axis in (x, y)], axis=1)
    distances = np.hypot(*places.T)
    assert seen.mean() > 0.95
    assert distances.max() < 12 + np.hypot(8.2, 8.2) + 2
    assert np.abs(places.mean(axis=0)).max() < 2  # every direction is as likely
    assert places.std() > 7


def test_mirroring_happens_in_half_of_the_crops() -> None:
    crop = np.zeros((600, 41, 41), np.uint8)
    crop[:, 8:33, 12] = 200
    crop[:, 8:11, 12:30] = 200  # the letter gamma: its mirror image is no turn of it
    changed = augment(crop, np.random.default_rng(2)).astype(float)
    heavy = np.maximum(changed - 90, 0)
    y, x = np.mgrid[:41, :41] - 20.0
    total = heavy.sum(axis=(1, 2))
    dx, dy = (axis - ((heavy * axis).sum(axis=(1, 2)) / total)[:, None, None] for axis in (x, y))
    a, b = (heavy * dx * (dx**2 + dy**2)).sum(axis=(1, 2)), (heavy * dy * (dx**2 + dy**2)).sum(axis=(1, 2))
    p, q = (heavy * (dx**3 - 3 * dx * dy**2)).sum(axis=(1, 2)), (heavy * (3 * dx**2 * dy - dy**3)).sum(axis=(1, 2))
    handed = np.imag((a + 1j * b) ** 3 * np.conj(p + 1j * q))  # changes sign under mirroring, not under turning
    assert 0.3 < (handed > 0).mean() < 0.7


def test_the_area_under_the_curve_counts_ordered_pairs() -> None:
    rng = np.random.default_rng(3)
    labels, scores = rng.integers(0, 2, 60), rng.integers(0, 8, 60) / 8
    pairs = [(one > zero) + (one == zero) / 2 for one in scores[labels == 1] for zero in scores[labels == 0]]
    assert area_under_roc(labels, scores) == pytest.approx(np.mean(pairs), abs=1e-12)
    weights = rng.integers(0, 4, 60)
    repeated = area_under_roc(np.repeat(labels, weights), np.repeat(scores, weights))
    assert area_under_roc(labels, scores, weights.astype(float)) == pytest.approx(repeated, abs=1e-12)
    assert np.isnan(area_under_roc(np.zeros(5, int), np.ones(5)))


def test_the_interval_is_of_groups_and_not_of_cells() -> None:
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(12), 50)
    labels = (groups % 2).astype(int)
    scores = labels * 0.8 + rng.normal(0, 1, 12)[groups] + rng.normal(0, 0.3, 600)
    auc, low, high = grouped_auc(labels, scores, [f"g{group}" for group in groups])
    as_if_alone = grouped_auc(labels, scores, [str(i) for i in range(600)])
    assert low is not None
    assert high is not None
    assert as_if_alone[1] is not None
    assert as_if_alone[2] is not None
    assert low < auc < high
    assert high - low > 2 * (as_if_alone[2] - as_if_alone[1])


def test_one_group_a_class_gives_no_interval() -> None:
    labels = np.array([0, 0, 1, 1])
    assert grouped_auc(labels, np.array([0.1, 0.2, 0.8, 0.9]), ["a", "a", "b", "b"]) == (1.0, None, None)
