"""Is a field fit to be scored? Measures of an image and its cells, and the limits that a model's training sets them.

A model's reference says how its training cells look: ten textures of each crop, how they vary together, and how far
the typical cell of one training field lies from the typical cell of all. A new field is measured in the same way.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from models.convert import counts_of, percentile_of_counts
from sesmo_live.records import Pixels

Floats = NDArray[np.float64]
Stack = NDArray[np.float32]
"""Pictures, N×h×w, or rows of their values."""

_CELLS = 144
"""Crops that are measured at most, evenly picked: enough for a median."""
_GRID = 10
"""Tiles along each side of a field."""
_TILE_PX = 48
FEWEST_TILES = 16
"""Tiles below which a field, smaller than 192 px, is not judged by them: they may well miss all of its cells."""
_LIVELY = 0.6
"""Share of the tiles, counted from the flattest, that is left out where tiles stand for cells."""
_STRUCTURED = 0.6
"""Ratio of 4-px to 1-px contrast above which a tile shows more than noise, which gives 0.25."""
_DENSE = 0.3
"""Share of the lively tiles' contrast above which a tile counts as covered."""
_SAMPLED = 1 << 19
"""Pixels of which the grey values are counted, about."""


class Texture(NamedTuple):
    """A texture of a crop, whether it is kept as a logarithm, and what too little or too much of it tells."""

    name: str
    log2: bool
    low: str
    high: str


TEXTURES = (
    Texture("contrast", True, "out of focus or low in contrast", "high in contrast"),
    Texture("grain", True, "out of focus", "noisy or out of focus"),
    Texture("sharpness", True, "out of focus or enlarged", "noisy or reduced"),
    Texture("detail", True, "out of focus or enlarged", "reduced in size"),
    Texture("body", True, "reduced in size or noisy", "enlarged or out of focus"),
    Texture("fine_skew", False, "out of focus, clipped or inverted", "unlike in contrast"),
    Texture("middle_skew", False, "out of focus, clipped or inverted", "unlike in contrast"),
    Texture("coarse_skew", False, "clipped or unlike in contrast", "inverted or unlike in contrast"),
    Texture("centre", False, "unlike in contrast", "inverted or unlike in contrast"),
    Texture("skew", False, "clipped or inverted", "unlike in contrast"),
)
"""Contrast: the standard deviation of the grey values. Grain, sharpness, detail and body: details at 1 px over those at
2 px, 2 over 4, 4 over 8, and 8 px over the contrast; they are kept as logarithms to base 2. Skews: the asymmetry of the
details at 2, 4 and 8 px and of the grey values. Centre: how much brighter the middle is than the whole."""


def measure_field(pixels: Pixels, crops: NDArray[np.uint8], *, scale: float = 1.0) -> dict[str, float]:
    """Return what can be measured of a field (uint8 or uint16 H×W) and its crops (uint8 N×h×w), by name.

    `scale` is the image's µm per pixel over the model's, by which it was resampled before it was cropped. Textures of
    cells have the prefix `cell_`, those of the liveliest tiles of the image `tile_`; they are left out where there is
    no cell, or the image is constant or smaller than a tile.
    """
    figures, cells, tiles = measure_parts(pixels, crops, scale=scale)
    return figures | _typical("cell_", cells) | _typical("tile_", tiles)


def measure_parts(
    pixels: Pixels, crops: NDArray[np.uint8], *, scale: float = 1.0
) -> tuple[dict[str, float], Floats, Floats]:
    """Return the figures of a field, the textures of its cells (N×10), and those of its lively tiles (M×10)."""
    counts = _counts(pixels)
    figures = _grey_figures(counts)
    figures["cells"] = float(len(crops))
    figures["cells_per_megapixel"] = len(crops) / (pixels.size * scale**2) * 1e6
    more, tiles = _tile_figures(_tiles(pixels, scale), counts, figures["brightest"])
    return figures | more, textures_of(_spread_out(crops, _CELLS)), tiles


def textures_of(crops: NDArray[np.uint8]) -> Floats:
    """Return the textures of each crop (uint8 N×h×w), N×10 in the order of TEXTURES; crops below 32 px give none."""
    side = min(crops.shape[1:]) // 16 * 16 if len(crops) else 0
    if side < 32:
        return np.empty((0, len(TEXTURES)))
    top, left = ((n - side) // 2 for n in crops.shape[1:])
    return _textures(*_pyramid(crops[:, top : top + side, left : left + side].astype(np.float32)))


def _pyramid(stack: Stack) -> tuple[list[Stack], list[Stack]]:
    """Halve pictures (N×h×h, h a multiple of 16) four times; return all sizes, and the details of each but the last.

    Details are what each pixel differs by from the mean of its four neighbours: a slope has none, noise the most.
    """
    levels, details = [stack], []
    for _ in range(4):
        level = levels[-1]
        around = level[:, :-2, 1:-1] + level[:, 2:, 1:-1] + level[:, 1:-1, :-2] + level[:, 1:-1, 2:]
        details.append((level[:, 1:-1, 1:-1] - np.float32(0.25) * around).reshape(len(level), -1))
        levels.append(_halved(level))
    return levels, details


def _textures(levels: list[Stack], details: list[Stack]) -> Floats:
    contrasts = [np.abs(part).mean(axis=1) + 0.05 for part in details]
    half = levels[1]
    grey = half.reshape(len(half), -1)
    deviation = grey.std(axis=1) + 0.5
    quarter = half.shape[1] // 4
    middle = half[:, quarter:-quarter, quarter:-quarter].mean(axis=(1, 2))
    ratios = [deviation] + [a / b for a, b in zip(contrasts, [*contrasts[1:], deviation], strict=True)]
    skews = [_skew(part) for part in details[1:]]
    columns = [np.log2(ratio) for ratio in ratios] + skews + [(middle - grey.mean(axis=1)) / deviation, _skew(grey)]
    return np.stack(columns, axis=1).astype(np.float64)


def _halved(stack: Stack) -> Stack:
    rows = stack[:, 0::2] + stack[:, 1::2]
    return np.asarray((rows[:, :, 0::2] + rows[:, :, 1::2]) * np.float32(0.25), np.float32)


def _skew(values: Stack) -> Stack:
    """Return the skewness of each row, held within ±3, so that one glaring speck does not decide."""
    values = values - values.mean(axis=1, keepdims=True)
    square = values * values
    skew = (square * values).mean(axis=1) / (square.mean(axis=1) + 0.05) ** 1.5
    return np.asarray(np.clip(skew, -3, 3), np.float32)


def _spread_out(items: NDArray[Any], most: int) -> NDArray[Any]:
    """Return at most so many items, evenly picked."""
    return items if len(items) <= most else items[np.linspace(0, len(items) - 1, most).astype(np.intp)]


def _typical(prefix: str, textures: Floats) -> dict[str, float]:
    if not len(textures):
        return {}
    names = (prefix + texture.name for texture in TEXTURES)
    return dict(zip(names, map(float, np.median(textures, axis=0)), strict=True))


def _counts(pixels: Pixels) -> NDArray[np.int64]:
    """Return how many pixels have each grey value, of every few rows of a large image."""
    rows: Pixels = pixels[:: max(1, pixels.size // _SAMPLED)]
    return counts_of(rows.copy())


def _grey_figures(counts: NDArray[np.int64]) -> dict[str, float]:
    """Measure bits, brightness and clipping on the grey values as they were read."""
    levels = np.flatnonzero(counts)
    shares = counts[levels] / counts.sum()
    below = np.cumsum(shares)
    brightest = float(levels[np.searchsorted(below, 0.999)])
    low, high = float(levels[0]), float(levels[-1])
    # The step between grey values that occur tells images of few bits, however far they were stretched later.
    core = levels[(below >= 0.005) & (below <= 0.999)]
    step = float(np.median(np.diff(core))) if len(core) > 1 else max(brightest - low, 1.0)
    zone = (high - low) / 200
    return {
        "bits": float(np.log2(max(brightest / step, 1.0))),
        "brightest": brightest,
        "span": high - low,
        "clipped_dark": float(shares[levels <= low + zone].sum()),
        "clipped_bright": float(shares[levels >= high - zone].sum()),
    }


def _tile_figures(tiles: Stack, counts: NDArray[np.int64], brightest: float) -> tuple[dict[str, float], Floats]:
    """Measure noise, structure and coverage on a grid of tiles, and the textures of the liveliest of them."""
    low, high = (percentile_of_counts(counts, share) for share in (0.35, 99.65))
    if high <= low or len(tiles) < FEWEST_TILES:
        return {}, np.empty((0, len(TEXTURES)))
    stretch = 255 / (high - low)
    light = max(brightest, 1.0) * stretch
    levels, details = _pyramid(np.clip((tiles - np.float32(low)) * np.float32(stretch), 0, 255))
    fine, coarse = (np.abs(details[octave]).mean(axis=1) for octave in (0, 2))
    structured = coarse > _STRUCTURED * fine
    lively = coarse >= np.quantile(coarse, _LIVELY)
    from_noise = float(np.median(levels[3].std(axis=(1, 2)))) / levels[3].shape[1]
    figures = {
        "noise_level": float(np.quantile(fine, 0.2)) / light,
        "structure": float(structured.mean()),
        "shading": float(levels[4].mean(axis=(1, 2)).std()) / max(from_noise, 1e-3),
        "coverage": float((structured & (coarse > _DENSE * np.quantile(coarse, 0.95))).mean()),
    }
    return figures, _textures([level[lively] for level in levels], [part[lively] for part in details])


def _tiles(pixels: Pixels, scale: float) -> Stack:
    """Return a grid of tiles (float32 N×48×48) that covers the image at the model's scale."""
    if abs(scale - 1) > 0.05:
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        shown = np.asarray(cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=way))
    else:
        shown = pixels
    rows, columns = (_places(n) for n in shown.shape)
    cut = [shown[y : y + _TILE_PX, x : x + _TILE_PX] for y in rows for x in columns]
    return np.stack(cut).astype(np.float32) if cut else np.empty((0, _TILE_PX, _TILE_PX), np.float32)


def _places(length: int) -> list[int]:
    n = min(_GRID, length // _TILE_PX)
    return np.linspace(0, length - _TILE_PX, n).astype(int).tolist() if n else []
