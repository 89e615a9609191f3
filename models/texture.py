"""Find cells without a network: where an image is rougher than its background, at the scale of a cell."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.heatmap import Map, normalise
from models.matching import Points

CELL_PX = 24.0
"""Diameter of a typical cell, in px, at which textures are measured."""
ROUGHER = 3.4
"""A cell's patch is at least this many times rougher than the background."""
ROUGH_AROUND = 0.8
"""Log of how many times rougher a cell's surroundings are on average."""
SAME_CELL = 0.8
"""Peaks nearer than half of this share of a cell diameter are one cell."""
MIN_DEPTH = 0.13
"""A cell's peak lies at least this share of a diameter inside its rough patch."""
TAILS = 1.0
"""Excess kurtosis of an image's details below which it shows noise and no cells (noise of any grain: 0)."""
BRIGHT = 3.0
"""How many times longer the bright tail of an image is than its dark one where cells are bright on black."""
WIDTHS = 1.8
"""A typical cell diameter in units of how far roughness is alike; a rough guess."""


def find_by_texture(image: NDArray[Any], cell_diameter_px: float) -> tuple[Points, NDArray[np.float32]]:
    """Return centres (x, y in px, float64 N×2) and scores (float32 N in [0, 1]) of patches rough as cells are.

    A place is a centre where the smoothed roughness, or the shade that cells have in this image, is highest around.
    """
    scale = CELL_PX / cell_diameter_px
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    rest = normalise(_flattened(np.asarray(cv2.resize(image, size, interpolation=way), np.float32)), CELL_PX)
    if min(size) < CELL_PX / 2 or _tails(rest) < TAILS:
        return np.empty((0, 2)), np.empty(0, np.float32)
    rough = roughness(rest)
    depth, around = _depth(rough), _blurred(np.log(rough + np.float32(0.1)), 0.35)
    hill = 0.6 * around + 0.1 * _shade(rest)
    reach = 2 * round(SAME_CELL * CELL_PX / 2) + 1
    top = cv2.dilate(hill, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    rows, columns = np.nonzero((hill >= top) & (depth >= MIN_DEPTH * CELL_PX) & (around > ROUGH_AROUND))
    score = 1 - np.exp(-rough[rows, columns] / ROUGHER)
    order = np.argsort(-score, kind="stable")
    places = np.stack([columns, rows], axis=1)[order] + 0.5
    return places * (np.array(image.shape[::-1]) / np.array(size)) - 0.5, score[order].astype(np.float32)


def roughness(rest: Map) -> Map:
    """Return how many times rougher a normalised image is at each place than its smooth places are (1: as these)."""
    details = rest - _blurred(rest, 0.4)
    energy = np.sqrt(_blurred(details * details, 0.1))
    smooth = float(np.sqrt(np.prod(np.percentile(energy, [3, 25]))))
    return np.asarray(energy / max(smooth, 0.02), np.float32)


def guess_by_texture(image: NDArray[Any]) -> float:
    """Return a rough guess of the typical cell diameter in px: how far around the roughness of the image is alike."""
    scale = min(1.0, 1024 / max(image.shape))
    small = cv2.resize(image.astype(np.float32), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    details = small - cv2.GaussianBlur(small, (0, 0), 40)
    energy = np.sqrt(cv2.GaussianBlur(details * details, (0, 0), 2))
    energy = np.minimum(energy, np.percentile(energy, 95)).astype(np.float32)
    energy -= cv2.GaussianBlur(energy, (0, 0), 60)
    height, width = energy.shape
    energy *= np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)
    power = np.abs(np.fft.rfft2(energy, s=(2 * height, 2 * width))) ** 2
    alike = np.fft.irfft2(power)[: min(height, 200), : min(width, 200)]
    rows, columns = np.indices(alike.shape)
    radius = np.hypot(rows, columns).astype(np.intp).ravel()
    profile = np.bincount(radius, alike.ravel()) / np.bincount(radius)
    far = int(np.argmax(profile < 0.2 * profile[0])) if profile[0] > 0 else 0
    return float(np.clip(WIDTHS * far / scale, 8, 300)) if far else 40.0


def _blurred(picture: Map, share: float) -> Map:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), share * CELL_PX), np.float32)


def _flattened(picture: Map) -> Map:
    """Return the picture without the parabola that fits it best: a vignette is no texture."""
    height, width = picture.shape
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    step = max(1, min(height, width) // 64)
    rows, columns = np.meshgrid(y[::step], x[::step], indexing="ij")
    terms = np.stack([rows**0, rows, columns, rows**2, columns**2, rows * columns], axis=-1).reshape(-1, 6)
    a, b, c, d, e, f = np.linalg.lstsq(terms, picture[::step, ::step].ravel(), rcond=None)[0]
    fit = (a + b * y + d * y**2)[:, None] + (c * x + e * x**2)[None, :] + f * np.outer(y, x)
    return np.asarray(picture - fit, np.float32)


def _tails(rest: Map) -> float:
    """Return the excess kurtosis of the image's details."""
    linear = np.sinh(rest)
    details = _blurred(linear, 1 / 24) - _blurred(linear, 1 / 12)
    details -= details.mean()
    variance = float((details**2).mean())
    return float((details**4).mean()) / variance**2 - 3 if variance > 1e-12 else 0.0


def _depth(rough: Map) -> Map:
    """Return how deep, in px, each place lies in a rough patch that is no speck."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
    mask = cv2.morphologyEx((rough > ROUGHER).astype(np.uint8), cv2.MORPH_OPEN, disc)
    return np.asarray(cv2.distanceTransform(mask, cv2.DIST_L2, 5), np.float32)


def _shade(rest: Map) -> Map:
    """Return the shade that cells have in this image: bright where its histogram has a bright tail alone, else dark."""
    low, middle, high = np.percentile(rest, [0.5, 50, 99.5])
    sign = np.float32(1 if high - middle > BRIGHT * max(middle - low, 1e-3) else -1)
    return _blurred(np.clip(sign * rest, -2, 2), 0.12)
