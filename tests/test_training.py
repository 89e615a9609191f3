"""The trainer: groups never split, draws repeatable, interruptions without a trace, and it learns."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.backend import start_keras
from models.metrics import area_under_roc
from models.network import build_scoring_network
from models.passport import find_model, read_passport, read_weights
from models.splits import grouped_folds, split_by_group, split_cells
from models.training import RECIPES, Recipe, Trained, _optimizer, train_network
from sesmo_live.errors import UsageError

PX = 20
QUICK = Recipe(batch=16, epochs=4, patience=None, least_steps=1)


def blobs(n: int = 160) -> tuple[NDArray[np.uint8], NDArray[np.int_], NDArray[np.bool_]]:
    """Return small crops with a narrow (0) or a wide (1) bright blob; the last quarter is held out."""
    rng = np.random.default_rng(9)
    labels = np.arange(n) % 2
    y, x = np.mgrid[:PX, :PX] - (PX - 1) / 2
    widths = np.where(labels, 5.0, 2.0)[:, None, None]
    crops = 60 + 150 * np.exp(-(x**2 + y**2) / (2 * widths**2)) + rng.normal(0, 5, (n, PX, PX))
    return crops.clip(0, 255).astype(np.uint8), labels, np.arange(n) >= 3 * n // 4


def same(one: Trained, other: Trained) -> bool:
    return all(np.allclose(one.weights[name], other.weights[name], atol=1e-6) for name in one.weights)


@pytest.fixture(scope="module")
def whole() -> Trained:
    return train_network(*blobs(), QUICK, seed=4)


def test_it_learns_a_plain_difference() -> None:
    crops, labels, held_out = blobs(240)
    epochs_seen = []
    recipe = dataclasses.replace(QUICK, epochs=8, learning_rate=0.005)
    trained = train_network(
        crops, labels, held_out, recipe, seed=2, progress=lambda epoch, _figures: epochs_seen.append(epoch)
    )
    logits = np.asarray(build_scoring_network("compact", PX, trained.weights)(crops[held_out][..., None].astype(float)))
    assert area_under_roc(labels[held_out], logits[:, 1] - logits[:, 0]) > 0.95
    assert epochs_seen == list(range(1, 9))
    assert set(trained.history[0]) == {"loss", "accuracy", "held_out_loss", "held_out_accuracy", "held_out_auc"}
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
    losses = [entry["held_out_loss"] for entry in trained.history]
    assert trained.best_epoch == 1 + int(np.argmin(losses))


def test_the_kept_weights_are_those_of_the_lowest_held_out_loss(whole: Trained) -> None:
    crops, labels, held_out = blobs()
    logits = np.asarray(
        build_scoring_network("compact", PX, whole.weights)(crops[held_out][..., None].astype(np.float32))
    )
    margin = (logits[:, 1] - logits[:, 0]) * (2 * labels[held_out] - 1)
    loss = float(np.log1p(np.exp(-margin)).mean())
    assert loss == pytest.approx(min(entry["held_out_loss"] for entry in whole.history), abs=1e-4)


def test_the_same_seed_gives_the_same_weights(whole: Trained) -> None:
    assert same(train_network(*blobs(), QUICK, seed=4), whole)
    assert not same(train_network(*blobs(), QUICK, seed=5), whole)


@pytest.mark.parametrize("network", ["compact", "deep-sesmo"])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path: Path, network: str) -> None:
    recipe = dataclasses.replace(QUICK if network == "compact" else RECIPES[network], batch=16, epochs=3)
    state = tmp_path / "out" / "checkpoint.npz"

    def pull_the_plug(epoch: int, _figures: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_network(*blobs(), recipe, seed=4, checkpoint=state, progress=pull_the_plug)
    seen = []
    resumed = train_network(*blobs(), recipe, seed=4, checkpoint=state, progress=lambda epoch, _: seen.append(epoch))
    straight = train_network(*blobs(), recipe, seed=4)
    assert seen == [3]
    assert same(resumed, straight)
    assert resumed.best_epoch == straight.best_epoch
    assert [entry["loss"] for entry in resumed.history] == pytest.approx([entry["loss"] for entry in straight.history])


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "checkpoint.npz"
    crops, labels, held_out = blobs()
    quick = dataclasses.replace(QUICK, epochs=1)
    train_network(crops, labels, held_out, quick, seed=4, checkpoint=state)
    for other in (
        {"crops": 255 - crops},
        {"labels": 1 - labels},
        {"held_out": ~held_out},
        {"recipe": QUICK},
    ):
        given: dict[str, Any] = {"crops": crops, "labels": labels, "held_out": held_out, "recipe": quick, **other}
        with pytest.raises(UsageError, match="other cells or settings"):
            train_network(**given, seed=4, checkpoint=state)
    with pytest.raises(UsageError, match="other cells or settings"):
        train_network(crops, labels, held_out, quick, seed=5, checkpoint=state)
    state.write_bytes(state.read_bytes()[:5000])
    with pytest.raises(UsageError, match="no whole checkpoint"):
        train_network(crops, labels, held_out, quick, seed=4, checkpoint=state)


def test_it_stops_when_patience_is_over_and_keeps_the_best() -> None:
    crops, labels, held_out = blobs()
    lying = np.where(held_out, 1 - labels, labels)  # the better it learns, the worse it does on those held out
    recipe = dataclasses.replace(QUICK, epochs=40, patience=3, learning_rate=0.005)
    trained = train_network(crops, lying, held_out, recipe, seed=1)
    assert len(trained.history) < 40
    assert len(trained.history) == trained.best_epoch + 3
    last = train_network(crops, lying, held_out, dataclasses.replace(recipe, epochs=5, keep_best=False), seed=1)
    assert last.best_epoch == 5


def test_training_starts_from_a_models_weights_but_for_its_last_layer() -> None:
    crops, labels, held_out = blobs()
    still = dataclasses.replace(QUICK, epochs=1, learning_rate=1e-12, start="demo-compact")
    weights = train_network(crops, labels, held_out, still, seed=4).weights
    folder = find_model("demo-compact")
    learned = read_weights(folder, read_passport(folder))
    kernels = [name for name in weights if name.endswith("kernel")]
    alike = {name for name in kernels if np.allclose(weights[name], learned[name], atol=1e-6)}
    assert set(kernels) - alike == {"dense/kernel"}


def test_the_original_recipe_is_the_published_one() -> None:
    recipe = RECIPES["deep-sesmo"]
    assert (recipe.learning_rate, recipe.batch, recipe.epochs, recipe.cosine) == (0.032, 128, 100, False)
    assert (recipe.patience, recipe.keep_best) == (None, False)
    optimizer = _optimizer(recipe, 10)
    assert type(optimizer).__name__ == "SGD"
    assert (optimizer.global_clipnorm, optimizer.clipnorm) == (1.0, None)
    assert not optimizer.weight_decay
    ops = start_keras().ops
    variable = start_keras().Variable(np.zeros(2, np.float32))
    other = start_keras().Variable(np.zeros(1, np.float32))
    optimizer.apply([ops.convert_to_tensor([30.0, 0.0]), ops.convert_to_tensor([40.0])], [variable, other])
    # The norm of both gradients together is 50 and becomes 1: 0.6 and 0.8 of the learning rate.
    np.testing.assert_allclose(np.asarray(variable), [-0.032 * 0.6, 0], atol=1e-7)
    np.testing.assert_allclose(np.asarray(other), [-0.032 * 0.8], atol=1e-7)


def test_a_cosine_recipe_warms_up_and_ends_quietly() -> None:
    rate = _optimizer(dataclasses.replace(QUICK, learning_rate=0.01), 100)._learning_rate
    rates = [float(rate(step)) for step in (0, 2, 5, 50, 99)]
    assert rates[0] < 0.001
    assert rates[2] == pytest.approx(0.01, rel=0.02)
    assert rates[1] < rates[2] > rates[3] > rates[4]
    assert rates[4] < 0.0001


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


@pytest.mark.parametrize("n_groups", [2, 5, 6, 40])
def test_groups_enough_make_a_third_part_that_chooses_nothing(n_groups: int) -> None:
    group = np.repeat(np.arange(2 * n_groups), 7)
    labels = group % 2
    split = split_cells(labels, [f"g{number:03d}" for number in group], 0.2, 3)
    parts = (split.train, split.held_out, split.test)
    assert (np.sum(parts, axis=0) == 1).all()
    sides = [set(group[part].tolist()) for part in parts]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert bool(sides[2]) == (n_groups >= 6)
    for part in parts[: 3 if n_groups >= 6 else 2]:
        assert set(labels[part].tolist()) == {0, 1}
    if n_groups == 40:
        assert [len(side) for side in sides] == [48, 16, 16]


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
    with pytest.raises(UsageError, match="at least two groups"):
        grouped_folds(np.array(labels), groups, 3, 0)


@pytest.mark.parametrize(
    "of_groups",
    [
        {"h": [0], "s": [1], "b": [0, 1]},
        {"h1": [0], "h2": [0], "s": [1], "b": [0, 1]},
        {"b": [0, 1], "c": [0, 1]},
    ],
)
def test_a_group_of_both_classes_helps_where_a_class_has_no_other(of_groups: dict[str, list[int]]) -> None:
    labels = np.array([label for kinds in of_groups.values() for label in kinds for _ in range(5)])
    groups = [name for name, kinds in of_groups.items() for _ in kinds for _ in range(5)]
    for seed in range(20):
        out = split_by_group(labels, groups, 0.2, seed)
        assert all(set(labels[side].tolist()) == {0, 1} for side in (out, ~out))
        assert not {g for g, held in zip(groups, out, strict=True) if held} & {
            g for g, held in zip(groups, out, strict=True) if not held
        }


@pytest.mark.parametrize("seed", range(4))
def test_folds_keep_groups_whole_and_hold_both_classes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    group = np.sort(rng.integers(0, 23, 400))
    labels = np.where(group % 5 == 0, rng.integers(0, 2, 400), group % 2)
    fold = grouped_folds(labels, [f"g{number}" for number in group], 4, seed)
    assert set(fold.tolist()) == {0, 1, 2, 3}
    for number in set(group.tolist()):
        assert len(set(fold[group == number].tolist())) == 1
    for part in range(4):
        assert set(labels[fold == part].tolist()) == {0, 1}
        assert 0.1 < (fold == part).mean() < 0.4


def test_two_groups_a_class_make_two_folds_with_both_classes_to_learn_from() -> None:
    labels = np.array([0] * 50 + [1] * 5 + [0, 1] * 10)
    groups = ["healthy"] * 50 + ["senescent"] * 5 + ["both"] * 20
    fold = grouped_folds(labels, groups, 5, 0)
    for part in set(fold.tolist()):
        assert set(labels[fold != part].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crops": np.zeros((8, 20, 20))}, "float64"),
        ({"crops": np.zeros((8, 20, 24), np.uint8)}, r"\(8, 20, 24\)"),
        ({"labels": np.array([0, 1, 1])}, "3 labels"),
        ({"held_out": np.zeros(1, bool)}, "1 places"),
        ({"labels": np.zeros(8, int)}, "both healthy"),
        ({"labels": np.array([0, 1, 2, 1, 0, 1, 0, 1])}, "no other label"),
        ({"held_out": np.zeros(8, bool)}, "to hold out"),
        ({"recipe": Recipe(epochs=0)}, "epochs 0"),
        ({"recipe": Recipe(patience=0)}, "patience 0"),
        ({"recipe": Recipe(learning_rate=float("nan"))}, "learning_rate nan"),
        ({"recipe": Recipe(network="deeper")}, "network 'deeper' is unknown; use one of deep-sesmo, compact"),
        ({"recipe": Recipe(augmentation="wild")}, "augmentation 'wild'"),
        ({"recipe": Recipe(start="demo-deep-sesmo")}, "cannot start from demo-deep-sesmo, whose network is deep-sesmo"),
        ({"recipe": Recipe(optimizer="lion")}, "optimizer 'lion'"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_trained_on_is_named(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {
        "crops": np.zeros((8, 20, 20), np.uint8),
        "labels": np.array([0, 1] * 4),
        "held_out": np.arange(8) > 5,
        "recipe": QUICK,
    }
    with pytest.raises(UsageError, match=words):
        train_network(**{**given, **change})
