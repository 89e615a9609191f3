"""The binarisation check: a picture, its dark (or bright) patches, and the cells cropped from them, side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from models.convert import counts_of, percentile_of_counts
from models.cropper import crop_cells
from sesmo_live.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERCENTILES = (1.0, 3.0, 5.0, 7.0, 10.0)
"""The percentiles that are shown unless told otherwise: the original study's advice, 1 to 10."""

_INCHES = 4.0


def binarise(image: NDArray[np.uint8], percentile: float, *, fluorescence: bool = False) -> NDArray[np.bool_]:
    """Return which pixels (bool H×W) of a uint8 image the cropper `deep-sesmo` takes for patches.

    They are those of the blurred image below its percentile; with `fluorescence` above 100 − `percentile`.
    """
    blurred = cv2.GaussianBlur(image, (5, 5), 0).astype(np.uint8, copy=False)
    share = 100 - percentile if fluorescence else percentile
    limit = percentile_of_counts(counts_of(blurred), share)
    return np.asarray(blurred > limit if fluorescence else blurred < limit, np.bool_)


def find_cells(
    image: NDArray[np.uint8], percentile: float, *, min_area_px: int = 50, fluorescence: bool = False
) -> NDArray[np.float64]:
    """Return the centres (x, y in px, N×2) of the cells that `deep-sesmo` crops at a percentile."""
    share = 100 - percentile if fluorescence else percentile
    return crop_cells(image, percentile=share, min_area_px=min_area_px, fluorescence=fluorescence)[1]


def draw_check(
    pictures: Sequence[tuple[str, NDArray[np.uint8], bool]],
    percentiles: Sequence[float] = PERCENTILES,
    *,
    min_area_px: int = 50,
    crop_px: int = 50,
) -> "Figure":
    """Return a figure with a row per picture and percentile: the picture, its patches, and the cells found.

    `pictures` are names, uint8 images, and whether their cells are bright. Raises UsageError for no picture and for
    percentiles outside 0 to 50.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    if not pictures or not percentiles or not all(0 < percentile <= 50 for percentile in percentiles):
        raise UsageError("a check needs pictures and percentiles above 0 and up to 50; 1 to 10 suit most images")
    rows = [(*picture, percentile) for picture in pictures for percentile in percentiles]
    heights = [image.shape[0] / image.shape[1] for _, image, _, _ in rows]
    figure = Figure((3 * _INCHES, _INCHES * sum(heights) + 0.3 * len(rows)), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False, height_ratios=heights)
    for (name, image, bright, percentile), (plain, binary, found) in zip(rows, axes, strict=True):
        centres = find_cells(image, percentile, min_area_px=min_area_px, fluorescence=bright)
        mask = binarise(image, percentile, fluorescence=bright)
        dark, light = np.percentile(image, [0.35, 99.65])
        for axis in (plain, found):
            axis.imshow(image, cmap="gray", vmin=dark, vmax=max(light, dark + 1))
        binary.imshow(mask, cmap="gray", vmin=0, vmax=1)
        for axis in (plain, binary, found):
            axis.axis("off")
        for x, y in centres.astype(int) - crop_px // 2:
            found.add_patch(Rectangle((x, y), crop_px, crop_px, fill=False, edgecolor="#ee7733", linewidth=1.1))
        side = "brightest" if bright else "darkest"
        plain.set_title(f"{name}, {image.shape[1]} × {image.shape[0]} px", fontsize=9)
        told = f"{mask.mean():.1%} of the pixels" if image.min() < image.max() else "all pixels are equal"
        binary.set_title(f"the {side} {percentile:g} %: {told}", fontsize=9)
        found.set_title(f"{len(centres)} crops of {crop_px} × {crop_px} px", fontsize=9)
    return figure
