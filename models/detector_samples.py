"""What the detector learns from: labelled fields turned, scaled and disturbed at random, and pictures without cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.heatmap import STRIDE, Map, normalise
from models.matching import Points
from sesmo_live.errors import ImageError, UsageError
from sesmo_live.records import Pixels

CELL_PX = 24.0
"""Diameter of a typical cell, in px, where the network sees it."""
PATCH_PX = 192
"""Side of a training picture."""

SCALE_SPREAD = 0.22
"""Standard deviation of the log of the declared cell diameter in training: users measure it roughly."""
MILD_SHARE = 0.5
"""Share of pictures that stay as the microscope showed them, but for a little noise."""
EMPTY_SHARE = 0.15
"""Share of training pictures made up without cells."""
BACKGROUND_SHARE = 0.08
"""Share of training pictures taken from where a labelled field shows no cell."""

Sample = tuple[Map, Map]
"""A normalised picture (H×W) and its target (H/2×W/2×6), in the order of `TARGETS`."""

TARGETS = ("centre", "weight", "size", "sized", "depth", "deep")
"""Chance of a centre and whether it is known; log2 size and whether; depth inside a cell (0 to 1) and whether."""

SPREAD = 0.5
"""Width of a centre's bump as a share of its cell's own spread (a disc's is a quarter of its diameter)."""


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """A field image with its cells, shrunk to about the network's scale.

    `image` is float32 H×W, `centres` float64 N×2 (x, y in px of it), `diameters` float64 N in px (NaN: unknown),
    `spreads` float64 N×2×2 the covariance of each cell's pixels, `depth` float32 H×W how deep inside its cell a pixel
    lies (0 at the rim, 1 deepest, −1 unknown), `cell_px` the typical diameter, `known` uint8 H×W (0 where cells may
    lie that nobody labelled), `occupied` uint8 H×W (1 on and near cells). `group` names what it shares with others.
    """

    image: Map
    centres: Points
    diameters: NDArray[np.float64]
    spreads: NDArray[np.float64]
    depth: Map
    cell_px: float
    known: NDArray[np.uint8]
    occupied: NDArray[np.uint8]
    group: str


def from_masks(
    image: Pixels, labels: NDArray[Any], group: str, *, known: NDArray[np.bool_] | None = None
) -> LabelledImage:
    """Return a field labelled by instance masks (whole numbers H×W, 0 is background), without the unknown places.

    The typical diameter is the median of 2·√(area/π). Raises ImageError where sizes differ or no cell is labelled.
    """
    if labels.shape != image.shape:
        raise ImageError(f"the masks of {group} are {labels.shape} px, its image {image.shape}; give masks of its size")
    shapes = [_shape(labels, int(ident)) for ident in np.unique(labels[labels > 0])]
    if not shapes:
        raise ImageError(f"the masks of {group} hold no cell; leave the field out or label its cells")
    centres, diameters, spreads = (np.array(part) for part in zip(*[shape[:3] for shape in shapes], strict=True))
    depth = np.zeros(labels.shape, np.float32)
    for _, _, _, part, inside in shapes:
        depth[part] = np.maximum(depth[part], inside)
    occupied = (labels > 0) if known is None else (labels > 0) | ~known
    return _shrunk(image, centres, diameters, spreads, depth, float(np.median(diameters)), known, occupied, group)


def from_points(image: Pixels, centres: Points, cell_diameter_px: float, group: str) -> LabelledImage:
    """Return a field labelled by one point a cell (x, y in px): its cells teach where they are, not how large."""
    if not cell_diameter_px > 0:
        raise UsageError(f"a cell diameter of {cell_diameter_px} px is impossible; give the diameter of a typical cell")
    strange = ~((centres >= -0.5) & (centres < np.array(image.shape[::-1]) - 0.5)).all(axis=1)
    if strange.any():
        x, y = centres[strange][0]
        height, width = image.shape
        raise UsageError(f"the point x {x:g}, y {y:g} lies outside {group} ({width}×{height} px); give points in px")
    occupied = np.zeros(image.shape, np.uint8)
    for x, y in np.rint(centres).astype(int).tolist():
        cv2.circle(occupied, (x, y), round(cell_diameter_px), 1, -1)
    sizes = np.full(len(centres), np.nan)
    spreads = np.tile(np.eye(2) * (cell_diameter_px / 4) ** 2, (len(centres), 1, 1))
    depth = np.full(image.shape, -1, np.float32)
    return _shrunk(image, centres, sizes, spreads, depth, cell_diameter_px, None, occupied > 0, group)


_Shape = tuple[tuple[float, float], float, NDArray[np.float64], tuple[slice, slice], Map]


def _shape(labels: NDArray[Any], ident: int) -> _Shape:
    """Return the inner point (x, y), diameter and covariance of one instance, its window, and the depth in it.

    The inner point is the pixel nearest to the middle, the middle being drawn to where the cell is wide.
    """
    mask = labels == ident
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    window = (slice(top, int(rows[-1]) + 1), slice(left, int(columns[-1]) + 1))
    part = np.pad(mask[window].astype(np.uint8), 1)
    depth = cv2.distanceTransform(part, cv2.DIST_L2, 3)
    y, x = np.nonzero(part)
    weight = depth[y, x].astype(np.float64) ** 2
    middle = np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()
    near = np.argmin((x - middle[0]) ** 2 + (y - middle[1]) ** 2)
    spread = np.cov(np.stack([x, y]), bias=True) + np.eye(2) / 12
    centre = (float(x[near] - 1 + left), float(y[near] - 1 + top))
    inside = np.asarray(depth[1:-1, 1:-1] / depth.max(), np.float32)
    return centre, float(2 * np.sqrt(len(x) / np.pi)), spread, window, inside


def draw_sample(field: LabelledImage, rng: np.random.Generator) -> Sample:
    """Return one training picture: mostly of `field`, sometimes of its background, sometimes made up."""
    kind = rng.random()
    if kind < EMPTY_SHARE:
        return _empty_sample(rng)
    if kind < EMPTY_SHARE + BACKGROUND_SHARE and (background := _background_window(field, rng)) is not None:
        return normalise(background, CELL_PX), _no_cells()
    return _cell_sample(field, rng)


def draw_batch(
    fields: Sequence[LabelledImage], shares: NDArray[np.float64], batch: int, rng: np.random.Generator
) -> tuple[Map, Map]:
    """Return `batch` pictures (N×H×W×1) and targets (N×H/2×W/2×4), fields being drawn in proportion to `shares`."""
    chosen = rng.choice(len(fields), batch, p=shares / shares.sum())
    samples = [draw_sample(fields[int(k)], rng) for k in chosen]
    return np.stack([picture for picture, _ in samples])[..., None], np.stack([target for _, target in samples])


def _shrunk(
    image: Pixels,
    centres: Points,
    diameters: NDArray[np.float64],
    spreads: NDArray[np.float64],
    depth: Map,
    cell_px: float,
    known: NDArray[np.bool_] | None,
    occupied: NDArray[np.bool_],
    group: str,
) -> LabelledImage:
    """Shrink a field to cells of 1.6 times the network's size: what is finer is never seen, and warping is quick."""
    scale = min(1.0, 1.6 * CELL_PX / cell_px)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = _map(cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_AREA))
    full = np.ones(image.shape, np.uint8) if known is None else known.astype(np.uint8)
    rim = 2 * round(0.3 * cell_px * scale) + 1
    grown = cv2.dilate(cv2.resize(occupied.astype(np.uint8), size), np.ones((rim, rim), np.uint8))
    places = (np.asarray(centres, np.float64).reshape(-1, 2) + 0.5) * scale - 0.5
    way = cv2.INTER_NEAREST if (depth < 0).any() else cv2.INTER_AREA
    return LabelledImage(
        small,
        places,
        diameters * scale,
        spreads * scale**2,
        _map(cv2.resize(depth, size, interpolation=way)),
        cell_px * scale,
        np.asarray(cv2.resize(full, size, interpolation=cv2.INTER_NEAREST), np.uint8),
        np.asarray(grown, np.uint8),
        group,
    )


def _map(picture: NDArray[Any]) -> Map:
    return np.asarray(picture, np.float32)


def _cell_sample(field: LabelledImage, rng: np.random.Generator) -> Sample:
    """Return a random part of the field, turned, mirrored and scaled, as another microscope might show it."""
    scale = CELL_PX / field.cell_px * float(np.exp(np.clip(rng.normal(0, SCALE_SPREAD), -0.6, 0.6)))
    warp = _random_warp(field.image.shape, scale, rng)
    size = (PATCH_PX, PATCH_PX)
    picture = _map(cv2.warpAffine(field.image, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))
    inside = _map(cv2.warpAffine(np.ones_like(field.image), warp, size, flags=cv2.INTER_NEAREST))
    known = np.asarray(cv2.warpAffine(field.known, warp, size, flags=cv2.INTER_NEAREST, borderValue=1), np.uint8)
    centres = field.centres @ warp[:, :2].T + warp[:, 2]
    if rng.random() < 0.06:  # out of focus beyond recognition
        blurred = _map(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.45, 1.2) * CELL_PX))
        blurred += np.float32(rng.choice([0, 0.05, 0.3]) * blurred.std()) * _noise(rng, 0)
        return normalise(blurred, CELL_PX) * inside, _no_cells()
    picture = normalise(disturb(picture, rng), CELL_PX) * np.float32(np.exp(rng.normal(0, 0.2)))
    deep = _map(cv2.warpAffine(field.depth, warp, size, flags=cv2.INTER_LINEAR))
    spreads = warp[:, :2] @ field.spreads @ warp[:, :2].T
    return picture * inside, _target(centres, field.diameters * scale, spreads, deep, known)


def _random_warp(shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a 2×3 warp that brings a random point of the field near the middle of the picture."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn[:, 0] *= rng.choice([-1.0, 1.0])
    middle = rng.uniform(0.1, 0.9, 2) * np.array(shape[::-1])
    return np.column_stack([turn, np.full(2, (PATCH_PX - 1) / 2) - turn @ middle])


def disturb(picture: Map, rng: np.random.Generator) -> Map:
    """Return the picture with another contrast, focus, noise, shading or sign, as microscopes and lines differ."""
    spread = float(picture.std()) + 1e-6
    if rng.random() < MILD_SHARE:
        return picture + np.float32(rng.uniform(0, 0.1) * spread) * _noise(rng, 0)
    rest = _other_contrast((picture - np.median(picture[::4, ::4])) / spread, rng)
    if rng.random() < 0.35:
        rest = _map(cv2.GaussianBlur(rest, (0, 0), rng.uniform(0.4, 2.2)))
    elif rng.random() < 0.3:
        rest = rest + np.float32(rng.uniform(0.3, 1.5)) * (rest - cv2.GaussianBlur(rest, (0, 0), rng.uniform(1, 6)))
    if rng.random() < 0.3:  # the fill of flat cells fades, their rims stay
        rest = rest - np.float32(rng.uniform(0.3, 0.9)) * cv2.GaussianBlur(rest, (0, 0), rng.uniform(4, 10))
    if rng.random() < 0.3:
        rest = rest * (1 + np.float32(rng.uniform(0.1, 0.6)) * _noise(rng, rng.uniform(12, 40)))
    if rng.random() < 0.5:
        rest = rest + np.float32(rng.uniform(0, 0.35)) * _noise(rng, rng.choice([0, 0, 0.7, 1.5]))
    if rng.random() < 0.4:
        rest = rest + np.float32(rng.uniform(0, 1.5)) * _shade(rng)
    return _map(rest * np.float32(spread))


def _other_contrast(rest: Map, rng: np.random.Generator) -> Map:
    """Return a picture of median 0 with another sign, gamma, or balance of bright and dark."""
    if rng.random() < 0.25:
        rest = -rest
    if rng.random() < 0.3:
        power = np.exp(rng.normal(0, 0.25))
        rest = np.sign(rest) * np.abs(rest) ** np.float32(power)
    if rng.random() < 0.25:  # one side of the contrast is weaker: bright halo or dark body
        rest = np.where(rest > 0, rest * np.float32(rng.uniform(0.3, 1)), rest * np.float32(rng.uniform(0.5, 1)))
    return rest


def _target(
    centres: Points, diameters: NDArray[np.float64], spreads: NDArray[np.float64], depth: Map, known: NDArray[np.uint8]
) -> Map:
    """Return the target: at each centre a bump of its cell's own shape, and there the cell's size; depths beside."""
    side = PATCH_PX // STRIDE
    target = _no_cells()
    target[..., 1] = cv2.resize(known, (side, side), interpolation=cv2.INTER_NEAREST)
    deep = cv2.resize(depth, (side, side), interpolation=cv2.INTER_AREA)
    target[..., 4], target[..., 5] = np.maximum(deep, 0), (deep >= 0) * target[..., 1]
    grid = np.arange(side, dtype=np.float32)
    places = np.rint((centres + 0.5) / STRIDE - 0.5).astype(np.intp)
    seen = ((places >= 0) & (places < side)).all(axis=1)
    widths = np.linalg.inv(spreads[seen] * (SPREAD / STRIDE) ** 2 + 0.5 * np.eye(2))
    for (column, row), diameter, width in zip(places[seen].tolist(), diameters[seen], widths, strict=True):
        if not target[row, column, 1]:
            continue
        window = np.s_[max(0, row - 12) : row + 13, max(0, column - 12) : column + 13]
        part = target[window]
        dx, dy = grid[window[1]][None, :] - column, grid[window[0]][:, None] - row
        bump = np.exp(-0.5 * (width[0, 0] * dx**2 + 2 * width[0, 1] * dx * dy + width[1, 1] * dy**2))
        stronger = bump > part[..., 0]
        part[..., 0] = np.where(stronger, bump, part[..., 0])
        if np.isfinite(diameter):
            part[..., 2] = np.where(stronger & (bump > 0.5), np.log2(diameter / CELL_PX), part[..., 2])
            part[..., 3] = np.where(stronger, bump > 0.5, part[..., 3])
    return target


def _no_cells() -> Map:
    target = np.zeros((PATCH_PX // STRIDE, PATCH_PX // STRIDE, len(TARGETS)), np.float32)
    target[..., 1] = target[..., 5] = 1
    return target


def _background_window(field: LabelledImage, rng: np.random.Generator) -> Map | None:
    """Return a window of the field that shows no cell, mirrored over the whole picture; None where there is none."""
    scale = CELL_PX / field.cell_px * float(np.exp(rng.normal(0, 0.4)))
    side = round(rng.uniform(1.5, 6) * field.cell_px)
    height, width = field.image.shape
    if side >= min(height, width):
        return None
    for _ in range(20):
        top, left = int(rng.integers(height - side)), int(rng.integers(width - side))
        part = np.s_[top : top + side, left : left + side]
        if not field.occupied[part].any():
            small = cv2.resize(field.image[part], None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
            missing = max(0, PATCH_PX - min(small.shape))
            tiled = _map(cv2.copyMakeBorder(small, 0, missing, 0, missing, cv2.BORDER_REFLECT))[:PATCH_PX, :PATCH_PX]
            return tiled if rng.random() < 0.5 else disturb(tiled, rng)
    return None


def _empty_sample(rng: np.random.Generator) -> Sample:
    """Return a picture without a cell: noise of any grain, shading, dust, whole grey steps, or nothing at all."""
    picture = np.float32(100) + np.zeros((PATCH_PX, PATCH_PX), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        grain = 0.0 if rng.random() < 0.3 else float(np.exp(rng.uniform(np.log(0.5), np.log(40))))
        picture += np.float32(np.exp(rng.uniform(np.log(0.2), np.log(20)))) * _noise(rng, grain)
    if rng.random() < 0.4:
        picture += np.float32(np.exp(rng.uniform(np.log(1), np.log(60)))) * _shade(rng)
    if rng.random() < 0.15:
        picture = 100 + np.float32(np.exp(rng.uniform(np.log(1), np.log(60)))) * _shade(rng)
    if rng.random() < 0.3:
        _add_dust(picture, rng)
    if rng.random() < 0.5:
        picture = np.rint(picture)
    return normalise(picture, CELL_PX), _no_cells()


def _add_dust(picture: Map, rng: np.random.Generator) -> None:
    """Draw a few specks and rings, as dust on the camera or out of focus makes them, into the picture."""
    for _ in range(int(rng.integers(1, 12))):
        x, y = (int(v) for v in rng.integers(0, PATCH_PX, 2))
        shade = float(picture[y, x] + rng.choice([-1, 1]) * rng.uniform(2, 60))
        if rng.random() < 0.7:
            cv2.circle(picture, (x, y), int(rng.integers(0, 3)), shade, -1, cv2.LINE_AA)
        else:
            cv2.circle(picture, (x, y), int(rng.integers(3, 30)), shade, int(rng.integers(1, 3)), cv2.LINE_AA)


def _noise(rng: np.random.Generator, grain_px: float) -> Map:
    """Return Gaussian noise of unit spread, smoothed by `grain_px` (0: white)."""
    if grain_px < 4:
        smooth = rng.standard_normal((PATCH_PX, PATCH_PX), dtype=np.float32)
        if grain_px > 0.2:
            smooth = _map(cv2.GaussianBlur(smooth, (0, 0), grain_px))
    else:
        step = grain_px / 3
        side = int(PATCH_PX / step) + 8
        coarse = cv2.GaussianBlur(rng.standard_normal((side, side), dtype=np.float32), (0, 0), 3)
        smooth = _map(cv2.resize(coarse, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC))[:PATCH_PX, :PATCH_PX]
    return np.asarray((smooth - smooth.mean()) / (smooth.std() + 1e-6), np.float32)


def _shade(rng: np.random.Generator) -> Map:
    """Return a vignette or a gradient of unit height."""
    axis = np.linspace(-1, 1, PATCH_PX, dtype=np.float32)
    x, y = axis[None, :] - np.float32(rng.normal(0, 0.5)), axis[:, None] - np.float32(rng.normal(0, 0.5))
    if rng.random() < 0.5:
        return np.asarray(x * np.float32(rng.normal()) + y * np.float32(rng.normal()), np.float32)
    return np.asarray(-(x**2 + y**2) * np.float32(rng.choice([-1, 1, 1])), np.float32)
