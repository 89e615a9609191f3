"""Paint cells into a map of thickness, each in a patch of its own."""

from functools import lru_cache

import cv2
import numpy as np
from scipy import fft

from acquisition.simulator.cells import OUTLINE_POINTS, Cells, Floats, Window, debris
from acquisition.simulator.optics import Map

_FAR = np.float32(9.0)
_TEXTURE_PX = 512
_FLOOR_UM = 0.03


@lru_cache(maxsize=8)
def _texture(pixel_um: float) -> Map:
    """Return a periodic 512×512 texture of grains of 1 to 6 µm, zero mean and unit variance."""
    noise = np.random.default_rng(20210).standard_normal((_TEXTURE_PX, _TEXTURE_PX), dtype=np.float32)
    f = np.hypot(np.fft.fftfreq(_TEXTURE_PX, pixel_um)[:, None], np.fft.rfftfreq(_TEXTURE_PX, pixel_um)[None, :])
    bands = [np.exp(-((f / high) ** 2)) - np.exp(-((f / low) ** 2)) for low, high in ((0.03, 0.1), (0.12, 0.35))]
    parts = [fft.irfft2(fft.rfft2(noise) * band.astype(np.float32)) for band in bands]
    texture: Map = sum(part / part.std() for part in parts) / np.float32(np.sqrt(2))
    return texture


def paint(cells: Cells, left_um: float, top_um: float, shape: tuple[int, int], pixel_um: float) -> Map:
    """Return the thickness of `cells` in µm, float32 of `shape`, whose first pixel lies at (`left_um`, `top_um`).

    Each cell owns the points that lie, in units of its own outline, nearer to it than to any other: neighbours touch
    along a groove and do not overlap.
    """
    own = [_Patch(cells, k, left_um, top_um, shape, pixel_um) for k in range(len(cells))]
    nearest, second = np.full(shape, _FAR), np.full(shape, _FAR)
    for patch in own:
        patch.claim(nearest, second)
    thickness = np.zeros(shape, np.float32)
    for patch in own:
        patch.fill(thickness, nearest, second)
    for sigma_um, places, peak in _specks(cells):
        thickness += _stamp(places - (left_um, top_um), peak, sigma_um / pixel_um, shape, pixel_um)
    return thickness


def _unit(values: Map) -> Map:
    """Return `values` held between 0 and 1."""
    held: Map = np.minimum(np.maximum(values, np.float32(0)), np.float32(1))
    return held


class _Patch:
    """The rectangle of pixels around one cell."""

    def __init__(
        self, cells: Cells, k: int, left_um: float, top_um: float, shape: tuple[int, int], pixel_um: float
    ) -> None:
        self.cells, self.k, self.pixel_um = cells, k, pixel_um
        x, y = cells.x_um[k] - left_um, cells.y_um[k] - top_um
        reach = float(cells.outline[k].max())
        self.rows = slice(*np.clip([int((y - reach) / pixel_um), int((y + reach) / pixel_um) + 2], 0, shape[0]))
        self.columns = slice(*np.clip([int((x - reach) / pixel_um), int((x + reach) / pixel_um) + 2], 0, shape[1]))
        self.dy = (np.arange(self.rows.start, self.rows.stop) * pixel_um - y).astype(np.float32)[:, None]
        self.dx = (np.arange(self.columns.start, self.columns.stop) * pixel_um - x).astype(np.float32)[None, :]
        angle = np.arctan2(self.dy, self.dx) + np.float32(np.pi)
        step = (angle * np.float32(OUTLINE_POINTS / (2 * np.pi))).astype(np.int32) & (OUTLINE_POINTS - 1)
        self.rim = cells.outline[k][step]
        self.rho = np.sqrt(self.dx**2 + self.dy**2) / self.rim

    def claim(self, nearest: Map, second: Map) -> None:
        """Enter this cell's distances in the maps of the nearest and second nearest cell."""
        first, then = nearest[self.rows, self.columns], second[self.rows, self.columns]
        np.minimum(then, np.maximum(first, self.rho), out=then)
        np.minimum(first, self.rho, out=first)

    def fill(self, thickness: Map, nearest: Map, second: Map) -> None:
        """Add this cell's body, perinuclear mound and nucleus where the cell is the nearest one."""
        cells, k = self.cells, self.k
        first, then = nearest[self.rows, self.columns], second[self.rows, self.columns]
        inside = _unit((np.where(first == self.rho, then, first) - self.rho) * np.float32(5))
        inside *= self.rho < 1
        dx, dy = self.dx - np.float32(cells.nucleus_at[k, 0]), self.dy - np.float32(cells.nucleus_at[k, 1])
        off = (dx**2 + dy**2) / np.float32(cells.nucleus_um[k] ** 2)
        dome = np.sqrt(_unit(1 - self.rho ** np.float32(cells.flatness[k])))
        dome *= np.minimum(np.float32(1.25 * cells.outline[k].mean()) / self.rim, 1)  # tails are thin
        grain = self._grain() * np.maximum(_unit(2 * off - 1), np.float32(0.3))
        body = np.float32(cells.height_um[k]) * dome * (1 + np.float32(cells.texture[k]) * grain)
        body += np.float32(cells.mound_um[k]) * np.exp(off * np.float32(-0.25))
        body += np.float32(1.3 * cells.alive[k]) * np.sqrt(_unit(1 - off))
        thickness[self.rows, self.columns] += body * inside

    def _grain(self) -> Map:
        """Return the cell's own piece of the texture; it moves with the cell."""
        start = int(self.cells.ident[self.k] * 7919 % 262144)
        y0, x0 = divmod(start, _TEXTURE_PX)
        rows = (np.rint(self.dy[:, 0] / self.pixel_um).astype(np.int64) + y0) % _TEXTURE_PX
        columns = (np.rint(self.dx[0] / self.pixel_um).astype(np.int64) + x0) % _TEXTURE_PX
        return np.asarray(_texture(self.pixel_um)[rows[:, None], columns[None, :]])


def _specks(cells: Cells) -> list[tuple[float, Floats, Floats]]:
    """Return nucleoli, granules and vacuoles as (sigma in µm, places N×2 in µm, peak thickness in µm)."""
    middle = np.stack([cells.x_um, cells.y_um], axis=1)
    nucleoli = (middle[:, None, :] + cells.nucleoli)[cells.alive].reshape(-1, 2)
    spots = middle[:, None, :] + cells.granules[:, :, :2]
    dark, bright = cells.granules[:, :, 2] > 0, cells.granules[:, :, 2] < 0
    return [
        (0.9, nucleoli, np.full(len(nucleoli), 1.3)),
        (0.8, spots[dark], np.full(int(dark.sum()), 1.3)),
        (1.3, spots[bright], np.full(int(bright.sum()), -1.1)),
    ]


def _stamp(places_um: Floats, peak_um: Floats, sigma_px: float, shape: tuple[int, int], pixel_um: float) -> Map:
    """Return a map with a Gaussian of height `peak_um` at each place; places outside the map are dropped."""
    dots = np.zeros(shape, np.float32)
    at = places_um / pixel_um
    corner = np.floor(at).astype(np.int64)
    ok = ((corner >= 0) & (corner < np.array([shape[1], shape[0]]) - 1)).all(axis=1)
    corner, part = corner[ok], (at - np.floor(at))[ok]
    volume = peak_um[ok] * 2 * np.pi * sigma_px**2
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = np.abs(1 - i - part[:, 1]) * np.abs(1 - j - part[:, 0])
        np.add.at(dots, (corner[:, 1] + i, corner[:, 0] + j), volume * weight)
    return np.asarray(cv2.GaussianBlur(dots, (0, 0), max(sigma_px, 0.3)), np.float32)


def litter(seed: int, key: str, left_um: float, top_um: float, shape: tuple[int, int], pixel_um: float) -> Map:
    """Return the thickness in µm of what else lies in the dish: specks of debris, and the unevenness of its floor."""
    right, bottom = left_um + shape[1] * pixel_um, top_um + shape[0] * pixel_um
    specks = debris(seed, key, Window(left_um, top_um, right, bottom))
    y0, x0 = round(top_um / pixel_um), round(left_um / pixel_um)
    rows, columns = (np.arange(shape[0]) + y0) % _TEXTURE_PX, (np.arange(shape[1]) + x0) % _TEXTURE_PX
    floor: Map = np.float32(_FLOOR_UM) * _texture(pixel_um)[rows[:, None], columns[None, :]]
    return floor + _stamp(specks[:, :2] - (left_um, top_um), specks[:, 2], 1.0 / pixel_um, shape, pixel_um)
