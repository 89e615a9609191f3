"""Where a network looks: Grad-CAM of cells and of a field, with the very pixels and weights that scoring uses."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.backend import start_keras, without_chatter
from models.network import build_scoring_network
from models.passport import read_passport, read_weights
from sesmo_live.errors import ImageError, ModelError

LEAST_MAP_PX = 6
"""Coarsest map of a network's features that still says where in a cell something is."""
_CHUNK = 64
_FEATURES = ("Conv2D", "ReLU", "Activation", "Add")
"""Layers whose output may be explained: pooling and drop-out only thin them."""


class Explainer:
    """Says which parts of a cell speak for senescence and which against it, by Grad-CAM."""

    def __init__(self, folder: Path) -> None:
        """Load the model in `folder`; raises ModelError where it cannot be trusted or used."""
        self.passport = read_passport(folder)
        weights = read_weights(folder, self.passport)
        keras = start_keras()
        if keras.backend.backend() != "tensorflow":
            raise ModelError("Grad-CAM needs TensorFlow's gradients; unset KERAS_BACKEND")
        model = build_scoring_network(self.passport.network, self.passport.input_px, weights)
        self._body, self._head = _cut(keras, model, self.passport.network)

    def explain(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return a map of each crop (uint8 N×H×W), float32 N×H×W: above 0 speaks for senescent, below 0 for healthy.

        Values are shares of what the network's features at that place add to the difference of its two outputs, so
        they compare within a cell and between cells. Source: Selvaraju et al., ICCV 2017, without its cut at 0.
        Raises ImageError for crops of another size than the model's.
        """
        size = self.passport.input_px
        if crops.dtype != np.uint8 or crops.ndim != 3 or crops.shape[1:] != (size, size):
            raise ImageError(
                f"crops of {crops.dtype} with shape {crops.shape} cannot be explained by model {self.passport.name}; "
                f"give uint8 N×{size}×{size}"
            )
        maps = np.empty(crops.shape, np.float32)
        with without_chatter():
            for start in range(0, len(crops), _CHUNK):
                for place, coarse in enumerate(self._maps(crops[start : start + _CHUNK]), start):
                    maps[place] = _spread(coarse, size)
        return maps

    def _maps(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return features weighted by the mean gradient of (senescent − healthy), as coarse as the features are."""
        import tensorflow as tf

        features = self._body(tf.cast(crops, tf.float32)[..., None], training=False)
        with tf.GradientTape() as tape:
            tape.watch(features)
            logits = self._head(features, training=False)
            difference = tf.reduce_sum(logits[:, 1] - logits[:, 0])
        weights = tf.reduce_mean(tape.gradient(difference, features), axis=(1, 2), keepdims=True)
        return np.asarray(tf.reduce_sum(weights * features, axis=-1), np.float32)


def explain_field(
    shape: tuple[int, ...], centres: NDArray[np.float64], maps: NDArray[np.float32], *, scale: float = 1.0
) -> NDArray[np.float32]:
    """Return one map of a field (float32, `shape` H×W): the mean of its cells' maps where they lie, 0 elsewhere.

    `centres` are x and y in px of the field, N×2, of which `maps` (N×h×w) show everything `scale` times as large.
    """
    total = np.zeros(shape, np.float32)
    count = np.zeros(shape, np.float32)
    for (x, y), shown in zip(centres, maps, strict=True):
        cell = shown if scale == 1 else np.asarray(cv2.resize(shown, None, fx=1 / scale, fy=1 / scale), np.float32)
        top, left = int(y) - cell.shape[0] // 2, int(x) - cell.shape[1] // 2
        rows = slice(max(top, 0), min(top + cell.shape[0], shape[0]))
        columns = slice(max(left, 0), min(left + cell.shape[1], shape[1]))
        total[rows, columns] += cell[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        count[rows, columns] += 1
    return np.asarray(total / np.maximum(count, 1), np.float32)


def _spread(coarse: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return a feature map in crop pixels: each feature where it looked, the rim (seen by none) as its neighbours.

    Unpadded convolutions see less than the crop: features lie a power of two apart, around the crop's middle.
    """
    step = 2 ** int(np.log2(size / max(coarse.shape)))
    shown = cv2.resize(coarse, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    before = [(size - n) // 2 for n in shown.shape]
    around = [(n, size - seen - n) for n, seen in zip(before, shown.shape, strict=True)]
    return np.pad(np.asarray(shown, np.float32), around, mode="edge")


def _cut(keras: Any, model: Any, name: str) -> tuple[Any, Any]:
    """Part a network behind its deepest feature map that is fine enough and that everything later passes through."""
    for layer in reversed(model.layers):
        shape = layer.output.shape
        if type(layer).__name__ not in _FEATURES or len(shape) != 4 or min(shape[1:3]) < LEAST_MAP_PX:
            continue
        try:
            head = keras.Model(layer.output, model.output)
        except ValueError:  # a branch of a residual block: the other branch goes round it
            continue
        return keras.Model(model.input, layer.output), head
    raise ModelError(f"network {name} has no feature map that could be explained; use deep-sesmo or compact")
