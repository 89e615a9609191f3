"""The detector's network: a small U-Net from a grey image to a map of cell centres and of cell sizes."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.backend import TURN, start_keras, without_chatter
from models.network import Weights, set_weights
from sesmo_live.errors import ModelError

Map = NDArray[np.float32]
"""A picture or map of the detector: float32, height by width."""

STRIDE = 2
"""Pixels of the image behind one pixel of the map, each way."""
DEPTH = 8
"""The image's sides are filled up to a multiple of this, the network's coarsest stride."""

STEP = 0.25
"""Spread, in grey levels, below which an image shows nothing but the rounding of its camera."""

_BACKGROUND_SHARE = 1 / 3
_WIDTHS = (16, 32, 80)
_BODY = 3

RunHeatmap = Callable[[Map], Map]
"""Takes normalised images (float32 N×H×W) and returns centre logits, log2 sizes, depths (float32 N×H/2×W/2×3)."""


def build_heatmap_network(name: str = "centre-unet", *, batch_norm: bool = False) -> Any:
    """Return a fresh `keras.Model`: normalised grey images N×H×W×1 in, N×H/2×W/2×3 out, H and W multiples of 8.

    Output 0 is the logit that a cell's centre lies there, output 1 the log2 of the cell's diameter over the diameter
    the network was trained at, output 2 the logit of how deep inside a cell the place lies. With `batch_norm` each
    convolution is normalised, for training; `fold_batch_norm` turns such weights into those of the network without.
    Raises ModelError for an unknown name.
    """
    if name not in HEATMAP_NETWORKS:
        raise ModelError(
            f"detector network {name!r} is unknown to this version; it knows {', '.join(HEATMAP_NETWORKS)}; update it"
        )
    return HEATMAP_NETWORKS[name](batch_norm)


def fold_batch_norm(weights: Weights) -> dict[str, NDArray[np.float32]]:
    """Return the weights of the plain network that computes what the batch-normalised one with `weights` does."""
    plain = {}
    for path, value in weights.items():
        layer, _, kind = path.rpartition("/")
        if kind != "kernel":
            if kind == "bias" or f"{layer}/kernel" in weights:
                plain[path] = np.asarray(value, np.float32)
            continue
        norm = f"{layer}_norm"
        if f"{norm}/gamma" not in weights:
            plain[path] = np.asarray(value, np.float32)
            continue
        gain = weights[f"{norm}/gamma"] / np.sqrt(weights[f"{norm}/moving_variance"] + _EPSILON)
        plain[path] = np.asarray(value * gain, np.float32)
        plain[f"{layer}/bias"] = np.asarray(weights[f"{norm}/beta"] - weights[f"{norm}/moving_mean"] * gain, np.float32)
    return plain


def normalise(image: NDArray[Any], cell_px: float) -> Map:
    """Return the image freed of background, gain and offset: float32 H×W, cells of `cell_px` px at an order of 1.

    The background is the mean of about three cell diameters around; the rest is divided by its mean absolute value
    and compressed (asinh), so that neither a bright speck nor the camera's bit depth matters.
    """
    grey = np.asarray(image, np.float32)
    rest = grey - _background(grey, cell_px)
    spread = float(np.abs(rest).mean())
    return np.asarray(np.arcsinh(rest / max(spread, STEP)), np.float32)


def compile_heatmap(name: str, weights: Weights) -> RunHeatmap:
    """Return a function that runs network `name` with `weights` on normalised images of any one shape.

    Sides are filled up with zeros to a multiple of 8. Raises ModelError where the weights do not fit the network.
    """
    model = build_heatmap_network(name)
    set_weights(model, weights)
    run = _compiled(model)

    def run_heatmap(images: Map) -> Map:
        height, width = images.shape[1:]
        padded = np.pad(images, ((0, 0), (0, -height % DEPTH), (0, -width % DEPTH)))
        maps = run(np.asarray(padded, np.float32)[..., None])
        return maps[:, : -(-height // STRIDE), : -(-width // STRIDE)]

    return run_heatmap


def _compiled(model: Any) -> RunHeatmap:
    """Return the model as a function traced once; TensorFlow alone needs that to be fast."""
    keras = start_keras()
    if keras.backend.backend() != "tensorflow":
        return lambda images: np.asarray(keras.ops.convert_to_numpy(model(images, training=False)), np.float32)
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 1), tf.float32)], autograph=False)  # type: ignore[untyped-decorator]
    def run(images: tf.Tensor) -> tf.Tensor:
        return model(images, training=False)

    def one_at_a_time(images: Map) -> Map:
        with TURN:
            return np.asarray(run(images), np.float32)

    with without_chatter():
        one_at_a_time(np.zeros((1, 4 * DEPTH, 4 * DEPTH, 1), np.float32))
    return one_at_a_time


def _background(grey: Map, cell_px: float) -> Map:
    """Return the smooth part of an image, computed on a coarse copy of it."""
    height, width = grey.shape
    step = max(1, round(cell_px * _BACKGROUND_SHARE))
    small = (max(1, width // step), max(1, height // step))
    coarse = cv2.resize(grey, small, interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(coarse, (0, 0), 1.5 * cell_px / step, borderType=cv2.BORDER_REFLECT)
    return np.asarray(cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


_EPSILON = 1e-3


def _centre_unet(batch_norm: bool) -> Any:
    keras = start_keras()
    layers = keras.layers

    def conv(tensor: Any, filters: int, name: str, strides: int = 1, relu: bool = True) -> Any:
        tensor = layers.Conv2D(
            filters,
            3,
            strides,
            "same",
            use_bias=not batch_norm,
            kernel_initializer="he_normal",
            name=name,
        )(tensor)
        if batch_norm:
            tensor = layers.BatchNormalization(epsilon=_EPSILON, momentum=0.98, name=f"{name}_norm")(tensor)
        return layers.ReLU(name=f"{name}_relu")(tensor) if relu else tensor

    def grown(tensor: Any, filters: int, beside: Any, name: str) -> Any:
        tensor = layers.Conv2D(filters, 1, name=f"{name}_narrow")(tensor)
        tensor = layers.UpSampling2D(2, interpolation="nearest", name=f"{name}_up")(tensor)
        return conv(layers.Add(name=f"{name}_add")([tensor, beside]), filters, name)

    fine, middle, coarse = _WIDTHS
    grey = layers.Input((None, None, 1))
    half = conv(conv(grey, fine, "down1", strides=2), fine, "half")
    quarter = conv(conv(half, middle, "down2", strides=2), middle, "quarter")
    deep = conv(quarter, coarse, "down3", strides=2)
    for k in range(1, _BODY + 1):
        inner = conv(deep, coarse, f"body{k}", relu=False)
        deep = layers.ReLU(name=f"body{k}_out")(layers.Add(name=f"body{k}_add")([deep, inner]))
    tensor = grown(grown(deep, middle, quarter, "up2"), fine, half, "up1")
    centre = layers.Conv2D(1, 1, name="centre", bias_initializer=keras.initializers.Constant(-4.0))(tensor)
    size = layers.Conv2D(1, 1, name="size")(tensor)
    depth = layers.Conv2D(1, 1, name="depth")(tensor)
    return keras.Model(grey, layers.Concatenate(name="maps")([centre, size, depth]), name="centre-unet")


HEATMAP_NETWORKS: dict[str, Callable[[bool], Any]] = {"centre-unet": _centre_unet}
"""Detector networks by the name that passports use."""
