"""The original study's way of scoring an image, in our own plain rendering: what the benchmark compares with.

Source: Kusumoto et al., Nat Commun 12:257 (2021), and its published notebooks; re-implemented, not taken over.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from models.backend import start_keras, without_chatter
from models.convert import to_uint8
from models.network import build_network, get_weights, set_weights
from models.passport import read_passport, read_weights

Floats = NDArray[np.float64]


def crop_as_the_original(
    rgb: NDArray[np.uint8], percentile: float = 5, min_area_px: float = 50, fluorescence: bool = False
) -> tuple[Floats, list[tuple[float, float]]]:
    """Crop cells the original's way: contour by contour, growing a float64 N×50×50×3 array with `np.append`.

    `rgb` is uint8 H×W×3. The array that grows is of float64 and the points of a contour are summed one by one, as
    there. Returns crops and centres (x, y in px).
    """

    def contours_of(grey: NDArray[np.uint8]) -> list[NDArray[np.int32]]:
        blurred = cv2.GaussianBlur(grey, (5, 5), 0)
        limit = np.percentile(blurred, percentile)
        mask = (blurred > limit if fluorescence else blurred < limit).astype(np.uint8) * 255
        return list(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0])

    height, width, _ = rgb.shape
    crops: Floats = np.empty((0, 50, 50, 3))
    centres = []
    for contour in contours_of(rgb[:, :, 0]):
        if cv2.contourArea(contour) < min_area_px:
            continue
        x = sum(point[0][0] for point in contour) / len(contour)
        y = sum(point[0][1] for point in contour) / len(contour)
        if y < 25 or y > height - 25 or x < 25 or x > width - 25:
            continue
        crop = rgb[int(y) - 25 : int(y) + 25, int(x) - 25 : int(x) + 25]
        if sum(map(cv2.contourArea, contours_of(crop[:, :, 0]))) < min_area_px:
            continue
        crops = np.append(crops, crop[None].astype(np.float64), axis=0)
        centres.append((float(x), float(y)))
    return crops, centres


def original_path(folder: Path) -> Callable[[Path], NDArray[np.float32]]:
    """Return a function that scores the TIFF at a path with the `deep-sesmo` weights in `folder`, the original's way.

    It reads, converts to 8-bit RGB, crops as above, and has Keras predict twice, for the probabilities and for the
    classes, with Keras' own batches of 32. Returns P(senescent), float32 N.
    """
    passport = read_passport(folder)
    model = _rgb_network(read_weights(folder, passport))

    def score(path: Path) -> NDArray[np.float32]:
        grey = to_uint8(tifffile.imread(path))
        crops, _ = crop_as_the_original(np.repeat(grey[:, :, None], 3, axis=2))
        if not len(crops):
            return np.empty(0, np.float32)
        scaled = (crops / 255 - 0.5) * 2
        with without_chatter():
            probabilities = np.asarray(model.predict(scaled, verbose=0))
            model.predict(scaled, verbose=0).argmax(axis=1)
        return np.asarray(probabilities[:, 1], np.float32)

    return score


def _rgb_network(weights: dict[str, NDArray[np.float32]]) -> Any:
    """Return the original's Keras model on three channels, compiled as notebooks do."""
    keras = start_keras()
    grey = build_network("deep-sesmo")
    rgb = tensor = keras.layers.Input((50, 50, 3))
    for layer in grey.layers[3:]:  # behind the input, the scaling and the channels that the grey form adds
        tensor = type(layer).from_config(layer.get_config())(tensor)
    model = keras.Model(rgb, tensor, name=grey.name)
    set_weights(model, weights)
    model.compile()
    assert get_weights(model).keys() == weights.keys()  # noqa: S101
    return model
