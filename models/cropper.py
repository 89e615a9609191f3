"""Croppers: from a field image to the crops of its cells. `deep-sesmo` is the original study's, byte for byte."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, cast

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from models.centres import crop_cells_at, find_centres
from models.convert import counts_of, interpolate, percentile_of_counts
from models.detector_passport import (
    DEFAULT_DETECTOR,
    Detector,
    find_detector,
    load_detector,
    read_detector_passport,
)
from sesmo_live.errors import ImageError, ModelError, UsageError

Cropper = Callable[..., tuple[NDArray[np.uint8], NDArray[np.float64]]]
"""Takes an image (uint8, height by width) and settings by keyword; returns crops and centres (x, y in px)."""

_BLUR_PX = 5
_RIM_PX = _BLUR_PX // 2
BRIGHT_TAIL = 25.0
"""How many times longer than the dark tail the bright one of a histogram is where cells are bright on black."""


def crop_cells(
    image: NDArray[np.uint8],
    *,
    percentile: float = 5,
    min_area_px: int = 50,
    fluorescence: bool = False,
    crop_px: int = 50,
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Cut a square around each dark (with `fluorescence`: bright) patch, as the original study did.

    `image` is uint8, height by width. Returns crops (uint8 N×crop_px×crop_px) and centres (float64 N×2, x and y in
    px), both in the order of the contours. Patches are pixels of the blurred image beyond its `percentile`, with a
    contour area of at least `min_area_px`; a crop must hold such an area by its own percentile too. Raises
    ImageError for an image of another kind and UsageError for impossible settings. Source: Kusumoto et al., Nat
    Commun 12:257 (2021), and its published notebooks.
    """
    _check(image, percentile, min_area_px, crop_px)
    if min(image.shape) < crop_px:
        return np.empty((0, crop_px, crop_px), np.uint8), np.empty((0, 2))
    blurred = cv2.GaussianBlur(image, (_BLUR_PX, _BLUR_PX), 0)
    limit = percentile_of_counts(counts_of(blurred.astype(np.uint8, copy=False)), percentile)
    # Comparing whole numbers with a fraction is comparing them with the whole number beside it.
    cut, kind = (np.floor(limit), cv2.THRESH_BINARY) if fluorescence else (np.ceil(limit) - 1, cv2.THRESH_BINARY_INV)
    mask = cv2.threshold(blurred, float(cut), 255, kind)[1]
    centres = _centres(_contours(mask), min_area_px)
    half = crop_px // 2
    margin = np.array(image.shape[::-1]) - half - crop_px % 2
    centres = centres[((centres >= half) & (centres <= margin)).all(axis=1)]
    left, top = centres.astype(np.intp).T - half
    crops = sliding_window_view(image, (crop_px, crop_px))[top, left]
    kept = _hold_patch(crops, percentile, min_area_px, fluorescence)
    return crops[kept], centres[kept]


def crop_dark_or_bright_cells(
    image: NDArray[np.uint8], *, percentile: float = 5, min_area_px: int = 50, crop_px: int = 50
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Crop as `crop_cells` does, dark cells or bright ones as the image itself tells: for images of either kind.

    Quantitative phase and fluorescence show bright cells on black, where the original's dark side holds nothing.
    """
    bright = shows_bright_cells(image)
    share = 100 - percentile if bright else percentile
    return crop_cells(image, percentile=share, min_area_px=min_area_px, fluorescence=bright, crop_px=crop_px)


def shows_bright_cells(image: NDArray[np.uint8]) -> bool:
    """Say whether the histogram has a bright tail (median to 99.5 %) over 25 times its dark one (0.5 % to median).

    Measured on the shared images: phase contrast 1.2 to 5 (13.8 in the extreme), quantitative phase 38 to 57.
    """
    if image.size == 0 or image.ndim != 2:
        return False
    dark, middle, bright = (percentile_of_counts(counts_of(image), share) for share in (0.5, 50, 99.5))
    return bright - middle > BRIGHT_TAIL * max(middle - dark, 1.0)


def crop_at_centres(
    image: NDArray[np.uint8],
    *,
    cell_diameter_px: float | None = None,
    detector: str = DEFAULT_DETECTOR,
    detector_sha256: str = "",
    crop_px: int = 50,
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Cut a square around each cell that a detector finds, the surest first; cells on the rim are left out.

    `cell_diameter_px` is the diameter of a typical cell; None guesses it for each image. `detector` is a detector's
    folder or name, or `texture` for none. With `detector_sha256` in a model's passport, another detector of the same
    name is refused, as its crops are not those that the model was trained on. Raises ImageError, UsageError and
    ModelError.
    """
    _check(image, 0, 0, crop_px)
    if min(image.shape) < crop_px:
        return np.empty((0, crop_px, crop_px), np.uint8), np.empty((0, 2))
    model = None if detector == TEXTURE else _vouched_detector(detector, detector_sha256)
    found = find_centres(image, cell_diameter_px=cell_diameter_px, model=model)
    crops, centres = crop_cells_at(image, found.xy, crop_px)
    return crops.astype(np.uint8, copy=False), centres


def settings_of_new_model(cropper: str) -> dict[str, str]:
    """Return the cropper settings that a new model's passport records: with `centres`, which detector found its cells.

    Raises ModelError where the shipped detector is not there.
    """
    if CROPPERS[cropper] is not crop_at_centres:
        return {}
    return {"detector": DEFAULT_DETECTOR, "detector_sha256": read_detector_passport(find_detector()).weights_sha256}


@lru_cache(maxsize=8)
def _vouched_detector(name: str, sha256: str) -> Detector:
    """Return a detector of this hash (empty: of any), looked for once in a process: every image asks for it."""
    folder = find_detector(name)
    if sha256 and read_detector_passport(folder).weights_sha256 != sha256:
        raise ModelError(f"detector {name} is not the one this model was made with; install that one")
    return load_detector(folder)


TEXTURE = "texture"
"""The name of the detector that needs no network."""

CROPPERS: dict[str, Cropper] = {
    "deep-sesmo": crop_cells,
    "deep-sesmo-either": crop_dark_or_bright_cells,
    "centres": crop_at_centres,
}
"""Croppers by the name that passports and the command line use."""


def _check(image: NDArray[np.uint8], percentile: float, min_area_px: int, crop_px: int) -> None:
    if image.ndim != 2 or image.dtype != np.uint8:
        raise ImageError(
            f"cells are cropped from one grey 8-bit page, not from {image.dtype} with shape {image.shape}; "
            "convert it with to_uint8 first"
        )
    if not 0 <= percentile <= 100:
        raise UsageError(f"percentile {percentile} is not between 0 and 100; 1 to 10 suits most images")
    if not min_area_px >= 0:
        raise UsageError(f"min_area_px {min_area_px} is negative; give an area in pixels such as 50")
    if crop_px < 2 * _BLUR_PX:
        raise UsageError(f"crop_px {crop_px} is too small to hold a cell; give at least {2 * _BLUR_PX} px")


def _contours(mask: NDArray[Any]) -> Sequence[NDArray[np.int32]]:
    """Return the outer contours of a mask, each with all its points as int32 N×1×2 (x, y)."""
    return cast(Sequence[NDArray[np.int32]], cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0])


def _centres(contours: Sequence[NDArray[np.int32]], min_area_px: int) -> NDArray[np.float64]:
    """Return the mean points (x, y) of the contours whose area is at least `min_area_px`."""
    # A closed path of n king's moves encloses at most n²/8 px (a diamond): the many specks need no area.
    shortest = np.sqrt(8 * min_area_px)
    large = [contour for contour in contours if len(contour) >= shortest]
    if not large:
        return np.empty((0, 2))
    points, starts, lengths = _joined(large)
    sums = np.add.reduceat(points, starts, axis=0, dtype=np.int64)
    return (sums / lengths[:, None])[_areas(points, starts, lengths) >= min_area_px]


def _joined(contours: list[NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.intp], NDArray[np.intp]]:
    """Return all points of the contours (M×2), where each contour starts, and how many points it has."""
    lengths = np.fromiter(map(len, contours), np.intp, len(contours))
    return np.concatenate(contours)[:, 0], np.cumsum(lengths) - lengths, lengths


def _areas(points: NDArray[np.int32], starts: NDArray[np.intp], lengths: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the area of each polygon through pixel centres (shoelace formula), as `cv2.contourArea` does."""
    following = np.arange(1, len(points) + 1)
    following[starts + lengths - 1] = starts
    x, y = points.T
    doubled = np.add.reduceat((x + x[following]) * (y[following] - y), starts, dtype=np.int64)
    return np.abs(doubled) / 2


def _hold_patch(crops: NDArray[np.uint8], percentile: float, min_area_px: int, fluorescence: bool) -> NDArray[np.bool_]:
    """Say for each crop whether the contours of its own dark (or bright) patches enclose `min_area_px` together."""
    n = len(crops)
    if n == 0:
        return np.empty(0, np.bool_)
    blurred = _blur_each(crops)
    limits = _percentiles(blurred.transpose(1, 0, 2).reshape(n, -1), percentile)[:, None]
    masks = blurred > np.uint8(limits) if fluorescence else blurred < np.uint8(np.ceil(limits))
    held = _patch_area_at_least(masks) >= min_area_px
    for crop in np.flatnonzero(~held):
        mask = np.ascontiguousarray(masks[:, crop], np.uint8)
        held[crop] = sum(map(cv2.contourArea, _contours(mask))) >= min_area_px
    return held


def _blur_each(crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blur each crop by itself; N×H×W in, H×N×W out: the crops side by side in one wide picture."""
    # Each crop keeps the mirrored rim that the blur would give it alone.
    rim = (_RIM_PX, _RIM_PX)
    wide = np.pad(crops.transpose(1, 0, 2), (rim, (0, 0), rim), mode="reflect")
    blurred = cv2.GaussianBlur(wide.reshape(len(wide), -1), (_BLUR_PX, _BLUR_PX), 0)
    inner = slice(_RIM_PX, -_RIM_PX)
    return np.asarray(blurred, np.uint8).reshape(wide.shape)[inner, :, inner]


def _patch_area_at_least(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return for each mask (H×N×W) what its contours enclose at least: their exact area unless a patch has holes.

    A polygon through pixel centres covers a square of four neighbouring centres wholly where all four are set, by
    half where three are. Holes would add to it.
    """
    pairs = masks[1:].view(np.uint8) + masks[:-1].view(np.uint8)
    squares = pairs[..., 1:] + pairs[..., :-1]
    covered = np.maximum(squares, 2) - np.uint8(2)
    return np.asarray(covered.sum(axis=0, dtype=np.uint16).sum(axis=1) / 2)


def _percentiles(values: NDArray[np.uint8], percentile: float) -> NDArray[np.float64]:
    """Return the percentile of each row, as `np.percentile(values, percentile, axis=1)` gives it."""
    rank = (values.shape[1] - 1) * (percentile / 100)
    low = _ranked(values, int(rank))
    return interpolate(low, _ranked(values, int(np.ceil(rank))) if rank % 1 else low, rank % 1)


def _ranked(values: NDArray[np.uint8], rank: int) -> NDArray[np.uint8]:
    """Return the value of each row that `rank` others do not exceed: the sorted row's, counted from 0."""
    # Found bit by bit by counting what is smaller, which takes a sixth of the time of `np.partition`.
    found = np.zeros(len(values), np.uint8)
    for bit in (128, 64, 32, 16, 8, 4, 2, 1):
        larger = found | np.uint8(bit)
        smaller = cv2.reduce((values < larger[:, None]).view(np.uint8), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
        found = np.where(smaller.ravel() <= rank, larger, found)
    return found
