"""`deep-sesmo` is the published network, `compact` a small one; folding for scoring changes nothing that matters."""

import time
from typing import Any

import numpy as np
import pytest

from models.network import NETWORKS, build_network, build_scoring_network, get_weights, set_weights
from models.scorer import compile_network, score_in_chunks
from sesmo_live.bench.stages import operations_per_cell
from sesmo_live.errors import ModelError
from tests.figures import figure

SHAPES = {
    "conv1/kernel": (3, 3, 3, 32),
    "conv1/bias": (32,),
    "conv2/kernel": (3, 3, 32, 32),
    "conv2/bias": (32,),
    "conv3/kernel": (3, 3, 32, 64),
    "conv3/bias": (64,),
    "conv4/kernel": (3, 3, 64, 128),
    "conv4/bias": (128,),
    "dense1/kernel": (10368, 256),
    "dense1/bias": (256,),
    "dense2/kernel": (256, 2),
    "dense2/bias": (2,),
}


@pytest.fixture(scope="module")
def network() -> Any:
    model = build_network("deep-sesmo")
    rng = np.random.default_rng(5)
    set_weights(model, {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in SHAPES.items()})
    return model


def test_weights_have_the_published_shapes(network: Any) -> None:
    weights = get_weights(network)
    assert {name: array.shape for name, array in weights.items()} == SHAPES
    assert network.count_params() == 2_757_474


def test_layers_are_the_published_ones() -> None:
    model = build_network("deep-sesmo")
    body = [layer for layer in model.layers if layer.name not in ("scale", "channels")][1:]
    kinds = "Conv2D Conv2D MaxPooling2D Dropout Conv2D Conv2D MaxPooling2D Dropout Flatten Dense Dropout Dense"
    assert [type(layer).__name__ for layer in body] == kinds.split()
    assert [layer.rate for layer in body if hasattr(layer, "rate")] == [0.5, 0.5, 0.5]
    assert [layer.activation.__name__ for layer in body if hasattr(layer, "activation")] == ["relu"] * 5 + ["softmax"]
    first = get_weights(model)["conv1/kernel"]
    assert np.abs(first).max() <= np.sqrt(6 / (27 + 288)) + 1e-6  # Glorot-uniform over three channels
    assert np.abs(first).max() > 0.9 * np.sqrt(6 / (27 + 288))


def test_grey_values_are_scaled_as_in_the_study(network: Any) -> None:
    crops = np.random.default_rng(1).integers(0, 256, (4, 50, 50, 1)).astype(np.float32)
    body = [layer for layer in network.layers if layer.name not in ("scale", "channels")][1:]
    tensor: Any = np.repeat((crops / 255 - 0.5) * 2, 3, axis=3)
    for layer in body:
        tensor = layer(tensor, training=False) if "dropout" in layer.name else layer(tensor)
    np.testing.assert_allclose(network(crops, training=False), tensor, atol=1e-6)


def test_folding_for_scoring_keeps_the_scores(network: Any) -> None:
    crops = np.random.default_rng(2).integers(0, 256, (64, 50, 50, 1)).astype(np.float32)
    logits = np.asarray(build_scoring_network("deep-sesmo", 50, get_weights(network))(crops))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = np.asarray(network(crops, training=False))
    assert np.ptp(probabilities[:, 1]) > 0.01
    np.testing.assert_allclose(odds / odds.sum(axis=1, keepdims=True), probabilities, atol=1e-6)


def test_other_input_sizes_build() -> None:
    assert get_weights(build_network("deep-sesmo", 16))["dense1/kernel"].shape == (128, 256)


def test_too_small_crops_and_unknown_networks_are_named() -> None:
    with pytest.raises(ModelError, match="at least 16 px"):
        build_network("deep-sesmo", 15)
    with pytest.raises(ModelError, match="'deeper' is unknown.*deep-sesmo"):
        build_network("deeper")
    with pytest.raises(ModelError, match="at least 16 px"):
        build_network("compact", 15)
    assert list(NETWORKS) == ["deep-sesmo", "compact"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conv2/bias": None}, "conv2/bias is missing"),
        ({"conv9/bias": np.zeros(3)}, "conv9/bias belongs to another network"),
        ({"dense1/kernel": np.zeros((128, 256))}, r"dense1/kernel has shape \(128, 256\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(network: Any, change: dict[str, Any], words: str) -> None:
    weights = {name: array for name, array in {**get_weights(network), **change}.items() if array is not None}
    with pytest.raises(ModelError, match=words):
        build_scoring_network("deep-sesmo", 50, weights)


def test_compact_needs_an_eighth_of_the_operations() -> None:
    of_original, of_compact = (operations_per_cell(name, 50) for name in ("deep-sesmo", "compact"))
    figure(f"compact {of_compact / 1e6:.1f}, deep-sesmo {of_original / 1e6:.1f} million operations a cell")
    assert 115e6 < of_original < 120e6
    assert of_compact <= 15e6


@pytest.fixture(scope="module")
def compact_weights() -> dict[str, Any]:
    rng = np.random.default_rng(7)
    weights = get_weights(build_network("compact"))
    changed = {name: array + rng.normal(0, 0.05, array.shape) for name, array in weights.items()}
    for name, array in weights.items():
        if "variance" in name:
            changed[name] = array * rng.uniform(0.3, 3, array.shape)
    return {name: array.astype(np.float32) for name, array in changed.items()}


@pytest.mark.parametrize("size", [16, 50, 64])
def test_folding_compact_for_scoring_keeps_the_scores(compact_weights: dict[str, Any], size: int) -> None:
    crops = np.random.default_rng(2).integers(0, 256, (32, size, size, 1)).astype(np.float32)
    model = build_network("compact", size)
    set_weights(model, compact_weights)
    logits = np.asarray(build_scoring_network("compact", size, compact_weights)(crops))
    probabilities = np.asarray(model(crops, training=False))
    assert np.ptp(probabilities[:, 1]) > 0.01
    np.testing.assert_allclose(1 / (1 + np.exp(logits[:, 0] - logits[:, 1])), probabilities[:, 1], atol=2e-6)


def test_compact_weights_that_do_not_fit_are_named(compact_weights: dict[str, Any]) -> None:
    lacking = {name: array for name, array in compact_weights.items() if name != "block2_conv1_norm/gamma"}
    with pytest.raises(ModelError, match="block2_conv1_norm/gamma is missing"):
        build_scoring_network("compact", 50, lacking)


@pytest.mark.alone
def test_compact_scores_six_times_as_many_cells() -> None:
    crops = np.random.default_rng(0).integers(0, 256, (512, 50, 50)).astype(np.uint8)
    names = ("compact", "deep-sesmo")
    scorers = {name: compile_network(name, 50, get_weights(build_network(name))) for name in names}
    ratios = []
    for _ in range(15):  # by turns, as the machine is never quiet
        seconds = []
        for name, score in scorers.items():
            started = time.perf_counter()
            score_in_chunks(score, crops, NETWORKS[name].chunk)
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[1] / seconds[0])
    figure(f"compact scores {np.median(ratios):.1f} times as many cells")
    assert np.median(ratios) >= 6
