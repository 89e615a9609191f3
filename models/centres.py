"""Find the cells of a field: their centres, with a trained detector or, without one, by their texture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from models.detector_passport import Detector
from models.heatmap import STRIDE, Map, normalise
from models.matching import Points
from models.texture import find_by_texture, guess_by_texture
from sesmo_live.errors import ImageError, UsageError
from sesmo_live.records import Pixels

DIAMETERS_PX = (6.0, 400.0)
"""Cell diameters that can be declared, in image px."""
TAILS = 0.6
"""Excess kurtosis of details around a cell at least; that of noise is 0, of confluent cells 2 and more."""
AROUND = 3.0
"""How far around counts for that, in cell diameters."""
GUESSED_PX = tuple(12 * 2 ** (k / 2) for k in range(9))
"""Diameters that are tried where none is declared: 12 to 192 px."""
GUESS_PX = 384
"""Side of the middle of the image that is looked at for a guess, in px at the network's scale."""
LIKELY = 0.6
"""Share of the detector's threshold from which a peak has a say in the guess."""
NO_CELLS_PX = 40.0
"""The guess for an image in which no cell is seen at any scale."""

_TO_TWO_PX = 0.5 * 3**0.5
"""Blur, at half the size, that makes 2 px of the blur of 1 px that halving brings."""


@dataclass(frozen=True, slots=True)
class Centres:
    """The cells of one field, the surest first.

    `xy` float64 N×2 (px of the image as given), `scores` float32 N in [0, 1], `diameters` float32 N in px (NaN where
    the way of finding gives none), `cell_diameter_px` the typical diameter that was looked for, `guessed` whether that
    was a guess, `how` the way in words.
    """

    xy: Points
    scores: NDArray[np.float32]
    diameters: NDArray[np.float32]
    cell_diameter_px: float
    guessed: bool
    how: str

    def __len__(self) -> int:
        return len(self.xy)


def find_centres(image: Pixels, *, cell_diameter_px: float | None = None, model: Detector | None = None) -> Centres:
    """Return the centres of the cells in a grey image (uint8 or uint16, H×W).

    `cell_diameter_px` is the diameter of a typical cell in px, 2·√(area/π); within a third is good enough. None: it
    is guessed from the image, and the answer says so. `model` is a loaded detector; None finds by texture, without a
    network. Raises ImageError for an image of another kind and UsageError for an impossible diameter.
    """
    return find_centres_in_fields([image], cell_diameter_px=cell_diameter_px, model=model)[0]


def find_centres_in_fields(
    images: Sequence[Pixels], *, cell_diameter_px: float | None = None, model: Detector | None = None
) -> list[Centres]:
    """Do as `find_centres` for several fields; those of one shape go through the network together."""
    for image in images:
        _check(image, cell_diameter_px)
    diameters = [cell_diameter_px or guess_cell_diameter(image, model) for image in images]
    guessed = cell_diameter_px is None
    if model is None:
        return [_textured(image, diameter, guessed) for image, diameter in zip(images, diameters, strict=True)]
    shrunk = [_at_scale(image, model.cell_px / diameter) for image, diameter in zip(images, diameters, strict=True)]
    pictures = [normalise(picture, model.cell_px) for picture in shrunk]
    return [
        _read_map(map_, image.shape, picture, diameter, guessed, model)
        for map_, image, picture, diameter in zip(_run_alike(pictures, model), images, pictures, diameters, strict=True)
    ]


def crop_cells_at(image: NDArray[Any], xy: Points, size_px: int) -> tuple[NDArray[Any], Points]:
    """Return squares of `size_px` around the centres (N×size×size, of the image's type) and the centres they have.

    Cells whose square would leave the image are dropped, as the original study drops them: a mirrored or blackened
    rim would be scored as if it were cell.
    """
    if size_px < 2:
        raise UsageError(f"crops of {size_px} px hold nothing; give the side of a crop in px, such as 50")
    corner = np.floor(np.asarray(xy, np.float64).reshape(-1, 2)).astype(np.intp) - size_px // 2
    fits = ((corner >= 0) & (corner + size_px <= image.shape[::-1])).all(axis=1)
    if not fits.any():
        return np.empty((0, size_px, size_px), image.dtype), np.empty((0, 2))
    left, top = corner[fits].T
    return sliding_window_view(image, (size_px, size_px))[top, left], np.asarray(xy, np.float64)[fits]


def guess_cell_diameter(image: Pixels, model: Detector | None = None) -> float:
    """Return a sensible cell diameter in px for an image whose scale nobody declared; a guess, no measurement.

    With a detector, the image is looked at as if its cells had each of several diameters; where the detector is
    surest, the sizes that it sees tell the diameter. An image without cells gets `NO_CELLS_PX`.
    """
    _check(image, None)
    if model is None:
        return guess_by_texture(image)
    votes = [_vote(image, diameter, model) for diameter in GUESSED_PX if 2 * diameter <= min(image.shape)]
    best = max(votes, default=(0.0, NO_CELLS_PX))
    # The scale next to the surest one adds what it sees in proportion to how sure it is.
    near = [vote for vote in votes if vote[0] > 0.8 * best[0] and abs(np.log2(vote[1] / best[1])) < 0.5]
    weights = [sureness for sureness, _ in near] if best[0] > 0 else []
    guess = 2 ** np.average(np.log2([size for _, size in near]), weights=weights) if weights else NO_CELLS_PX
    return float(np.clip(guess, *DIAMETERS_PX))


def _vote(image: Pixels, diameter: float, model: Detector) -> tuple[float, float]:
    """Return how sure the detector is of cells of about this diameter, and which diameter it sees then."""
    side = int(GUESS_PX * diameter / model.cell_px)
    top, left = ((n - min(n, side)) // 2 for n in image.shape)
    picture = _at_scale(image[top : top + side, left : left + side], model.cell_px / diameter)
    map_ = model.run(normalise(picture, model.cell_px)[None])[0]
    _, scores, octaves = find_peaks(map_, LIKELY * model.threshold)
    if not len(scores):
        return 0.0, diameter
    return float(scores.sum() / (len(scores) + 3)), float(diameter * 2 ** np.average(octaves, weights=scores))


def _check(image: Pixels, cell_diameter_px: float | None) -> None:
    if image.ndim != 2 or image.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"cells are found in one grey 8- or 16-bit page, not in {image.dtype} with shape {image.shape}"
        )
    low, high = DIAMETERS_PX
    if cell_diameter_px is not None and not low <= cell_diameter_px <= high:
        raise UsageError(
            f"a cell diameter of {cell_diameter_px} px is out of range; give that of a typical cell in image pixels, "
            f"{low:g} to {high:g}"
        )


def _at_scale(image: Pixels, scale: float) -> Map:
    """Return the image resampled by `scale`, float32."""
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=way), np.float32)


def _run_alike(pictures: Sequence[Map], model: Detector) -> list[Map]:
    """Return the network's map of each picture, pictures of one shape having gone through it together."""
    maps: list[Map | None] = [None] * len(pictures)
    for shape in {picture.shape for picture in pictures}:
        alike = [k for k, picture in enumerate(pictures) if picture.shape == shape]
        for k, map_ in zip(alike, model.run(np.stack([pictures[k] for k in alike])), strict=True):
            maps[k] = map_
    return [map_ for map_ in maps if map_ is not None]


def _read_map(
    map_: Map, shape: tuple[int, ...], picture: Map, diameter: float, guessed: bool, model: Detector
) -> Centres:
    """Return the peaks of a map above the model's threshold, in px of the image, but those in mere noise."""
    xy, scores, octaves = find_peaks(map_, model.threshold)
    kept = _in_more_than_noise(xy, picture, model.cell_px)
    xy, scores, octaves = xy[kept], scores[kept], octaves[kept]
    scale = np.array([shape[1] / picture.shape[1], shape[0] / picture.shape[0]])
    places = np.clip((xy + 0.5) * STRIDE * scale - 0.5, 0, np.array(shape[::-1]) - 1)
    sizes = np.asarray(diameter * np.exp2(np.clip(octaves, -3, 3)), np.float32)
    return Centres(places, scores, sizes, diameter, guessed, f"detector {model.name}")


def _in_more_than_noise(xy: Points, picture: Map, cell_px: float) -> NDArray[np.bool_]:
    """Say for each peak whether the details around it are spread otherwise than Gaussian noise of any grain is.

    A few cells or their rims make the fourth moment larger than three times the squared second; noise cannot.
    """
    if not len(xy):
        return np.empty(0, np.bool_)
    smooth = cv2.pyrDown(np.sinh(picture))  # a blur of 1 px, and what follows costs a quarter
    squares = cv2.pow(smooth - cv2.GaussianBlur(smooth, (0, 0), _TO_TWO_PX), 2)
    size = (max(1, round(picture.shape[1] / cell_px)), max(1, round(picture.shape[0] / cell_px)))
    # Squared twice: NumPy takes fifty times as long for a fourth power.
    second, fourth = (cv2.resize(part, size, interpolation=cv2.INTER_AREA) for part in (squares, squares * squares))
    second, fourth = (cv2.GaussianBlur(part, (0, 0), AROUND) for part in (second, fourth))
    tails = fourth / np.maximum(second**2, 1e-12) - 3
    cell = np.minimum((xy * STRIDE / cell_px).astype(np.intp), np.array(size) - 1)
    return np.asarray(tails[cell[:, 1], cell[:, 0]] > TAILS)


def find_peaks(map_: Map, threshold: float) -> tuple[Points, NDArray[np.float32], NDArray[np.float32]]:
    """Return places (x, y in map px, float64 N×2), chances and log2 sizes of the map's peaks, the highest first."""
    chance = 1 / (1 + np.exp(-map_[..., 0]))
    smooth = np.asarray(cv2.GaussianBlur(chance, (0, 0), 0.6), np.float32)
    highest = cv2.dilate(smooth, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    rows, columns = np.nonzero((smooth >= highest) & (chance >= threshold))
    order = np.argsort(-chance[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    places = np.stack([columns + _offset(smooth, rows, columns, 1), rows + _offset(smooth, rows, columns, 0)], axis=1)
    return places, np.asarray(chance[rows, columns], np.float32), map_[rows, columns, 1]


def _offset(smooth: Map, rows: NDArray[np.intp], columns: NDArray[np.intp], axis: int) -> NDArray[np.float64]:
    """Return how far beside its pixel each peak lies along `axis`, by a parabola through three pixels."""
    padded = np.pad(smooth.astype(np.float64), 1, mode="edge")
    dy, dx = (1, 0) if axis == 0 else (0, 1)
    before, at, after = (padded[rows + 1 + k * dy, columns + 1 + k * dx] for k in (-1, 0, 1))
    bend = before - 2 * at + after
    return np.clip(np.where(bend < -1e-9, 0.5 * (before - after) / np.where(bend < -1e-9, bend, 1), 0), -0.5, 0.5)


def _textured(image: Pixels, diameter: float, guessed: bool) -> Centres:
    xy, scores = find_by_texture(image, diameter)
    return Centres(xy, scores, np.full(len(xy), np.nan, np.float32), diameter, guessed, "texture, without a network")
