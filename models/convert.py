"""The pinned 16-to-8-bit conversions; a passport names the one its model was trained with."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from sesmo_live.errors import ImageError, UsageError
from sesmo_live.records import Pixels

DEFAULT = "min-max"
"""The conversion of the golden crops: each image's own darkest pixel becomes 0, its brightest 255, rounded down."""

_EXACT_FLOAT32 = 1 << 24
"""`cv2.calcHist` counts in float32, exact below this many pixels."""


def to_uint8(pixels: Pixels, conversion: str = DEFAULT) -> NDArray[np.uint8]:
    """Return the 8-bit form of a grey image under the named conversion; 8-bit images pass untouched.

    `pixels` is uint8 or uint16, height by width. Raises UsageError for an unknown conversion and ImageError for
    pixels of another kind.
    """
    if conversion not in CONVERSIONS:
        raise UsageError(f"conversion {conversion!r} is unknown; use one of {', '.join(CONVERSIONS)}")
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"an image of {pixels.dtype} with shape {pixels.shape} cannot be scored; give one grey 8- or 16-bit page"
        )
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    return CONVERSIONS[conversion](pixels)


def counts_of(pixels: Pixels) -> NDArray[np.int64]:
    """Return how many pixels have each grey value: 256 counts for uint8, 65 536 for uint16."""
    levels = int(np.iinfo(pixels.dtype).max) + 1
    if pixels.size >= _EXACT_FLOAT32:
        return np.bincount(pixels.ravel(), minlength=levels).astype(np.int64)
    counts = cv2.calcHist([pixels], [0], None, [levels], [0, levels])
    return counts.ravel().astype(np.int64)


def percentile_of_counts(counts: NDArray[np.int64], percentile: float) -> float:
    """Return the linearly interpolated percentile of the pixels behind `counts`, as `np.percentile` gives it."""
    below = np.cumsum(counts)
    rank = (int(below[-1]) - 1) * (percentile / 100)
    low, high = np.searchsorted(below, [np.floor(rank), np.ceil(rank)], side="right")
    return float(interpolate(low, high, rank % 1))


def interpolate(
    low: NDArray[np.integer] | float, high: NDArray[np.integer] | float, share: float
) -> NDArray[np.float64]:
    """Return the value `share` of the way from `low` to `high`, rounded as NumPy rounds its percentiles."""
    step = np.subtract(high, low, dtype=np.float64)
    return np.where(share < 0.5, low + step * share, high - step * (1 - share))


def _stretch(pixels: Pixels, black: int, white: int) -> NDArray[np.uint8]:
    """Map `black` and below to 0, `white` and above to 255, and what lies between linearly, rounded down."""
    grey = np.clip(np.arange(65536), black, white) - black
    table = (grey * 255 // max(white - black, 1)).astype(np.uint8)
    return np.asarray(cv2.LUT(pixels, table), np.uint8)


def _min_max(pixels: Pixels) -> NDArray[np.uint8]:
    return _stretch(pixels, int(pixels.min()), int(pixels.max()))


def _saturated(pixels: Pixels) -> NDArray[np.uint8]:
    counts = counts_of(pixels)
    black, white = (round(percentile_of_counts(counts, percentile)) for percentile in (0.35, 99.65))
    return _stretch(pixels, black, white)


CONVERSIONS: dict[str, Callable[[Pixels], NDArray[np.uint8]]] = {
    "min-max": _min_max,
    "percentile-0.35-99.65": _saturated,
}
"""Conversions of uint16 images by the name that passports use; the second bears hot pixels and dust."""
