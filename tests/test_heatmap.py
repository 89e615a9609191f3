"""The detector's network: its size, its folded twin, and an input that no microscope's gain can change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.heatmap import build_heatmap_network, compile_heatmap, fold_batch_norm, normalise
from models.network import get_weights, set_weights
from sesmo_live.errors import ModelError
from tests.conftest import blobs
from tests.figures import figure


def restless_weights(seed: int) -> dict[str, NDArray[np.float32]]:
    """Return weights of the training network whose batch normalisation is anything but neutral."""
    rng = np.random.default_rng(seed)
    weights = get_weights(build_heatmap_network(batch_norm=True))
    for name, value in weights.items():
        if name.endswith(("beta", "moving_mean", "bias")):
            weights[name] = rng.normal(0, 0.3, value.shape).astype(np.float32)
        elif name.endswith(("gamma", "moving_variance")):
            weights[name] = rng.uniform(0.5, 1.5, value.shape).astype(np.float32)
    return weights


def test_the_network_is_small() -> None:
    parameters = build_heatmap_network().count_params()
    figure(f"{parameters} parameters")
    assert parameters <= 300_000


def test_the_folded_network_computes_what_the_trained_one_does() -> None:
    weights = restless_weights(1)
    trained = build_heatmap_network(batch_norm=True)
    set_weights(trained, weights)
    images = np.random.default_rng(2).normal(size=(2, 64, 40)).astype(np.float32)
    expected = np.asarray(trained(images[..., None], training=False))
    folded = compile_heatmap("centre-unet", fold_batch_norm(weights))(images)
    assert expected.std() > 0.1
    np.testing.assert_allclose(folded, expected, atol=2e-4 * np.abs(expected).max())


def test_sizes_that_do_not_divide_by_eight_are_filled_up_with_background() -> None:
    run = compile_heatmap("centre-unet", fold_batch_norm(restless_weights(3)))
    image = np.random.default_rng(4).normal(size=(1, 61, 37)).astype(np.float32)
    filled = np.pad(image, ((0, 0), (0, 3), (0, 3)))
    maps = run(image)
    assert maps.shape == (1, 31, 19, 3)
    np.testing.assert_allclose(maps, run(filled)[:, :31, :19], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 200), st.floats(0, 1000))
def test_gain_and_offset_of_the_camera_do_not_matter(gain: float, offset: float) -> None:
    image = blobs(1).astype(np.float32)
    np.testing.assert_allclose(normalise(image * gain + offset, 20), normalise(image, 20), atol=2e-3)


def test_an_image_of_one_grey_or_of_its_rounding_alone_shows_nothing() -> None:
    assert np.abs(normalise(np.full((64, 64), 77, np.uint8), 20)).max() < 1e-3
    ramp = np.rint(np.tile(np.linspace(100, 102, 256), (256, 1))).astype(np.uint8)
    assert np.abs(normalise(ramp, 20)[32:-32, 32:-32]).max() < 2


def test_an_unknown_network_or_alien_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="unknown to this version"):
        build_heatmap_network("unet-9000")
    weights = fold_batch_norm(restless_weights(5))
    weights.pop("centre/kernel")
    with pytest.raises(ModelError, match="centre/kernel is missing"):
        compile_heatmap("centre-unet", weights)
