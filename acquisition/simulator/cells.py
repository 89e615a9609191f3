"""Who lives in a well: where the cells lie, how senescent each is, and how it looks for that.

One latent level in [0, 1] drives everything visible of a cell, each trait with its own spread and all of them with a
common one, so that no classifier can be perfect. Every draw belongs to a tile of the dish and to nothing else: any
window of the dish, at any hour and in any process, shows the same cells.
"""

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]

PITCH_UM = 34.0
"""Mean distance of the places a cell may take: 865 places per mm², a confluent endothelium."""

TILE_SITES = 8
"""Places along one side of a tile of the dish."""

TILE_UM = PITCH_UM * TILE_SITES

OUTLINE_POINTS = 256
"""Directions in which the outline of a cell is known."""

MAX_GRANULES = 44
"""Granules that a cell may show at most."""

REACH_UM = 75.0
"""No part of a cell lies further than this from its centre."""

PERSONAL_SPACE_UM = 17.0
"""No two cells settle closer than this."""

BIMODALITY = 2.0
"""How far the levels of one well lie apart: 1 spreads them evenly at half response, larger drives them to 0 and 1."""

_LAG_HOURS = 90.0


@dataclass(frozen=True, slots=True)
class Culture:
    """The state of one dish at one hour.

    `key` names the dish, `senescent` is the fraction of cells whose level exceeds one half, `occupancy` the fraction
    of places that are taken, `dying` the fraction of places whose cell has died of the treatment, `radius_um` the
    dish's own radius.
    """

    seed: int
    key: str
    senescent: float
    occupancy: float
    dying: float = 0.0
    hours: float = 0.0
    radius_um: float = float("inf")


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of a window of one dish, arrays over N cells; lengths in µm, places relative to the dish's middle.

    `ident` (int64) stays with a cell at every hour. `outline` is float32 N×256, the radius in each direction.
    `flatness` is the exponent of the body's profile (2 a dome, more a plateau), `texture` its relative roughness,
    `nucleus_um` the radius and `nucleus_at` the place of the nucleus (N×2), `nucleoli` those of its nucleoli (N×2×2),
    `mound_um` the swelling around it. `granules` is float64 N×44×3: x, y, and 1 dark, −1 a vacuole, 0 not there.
    Places within a cell count from its centre.
    """

    ident: NDArray[np.int64]
    x_um: Floats
    y_um: Floats
    level: Floats
    outline: NDArray[np.float32]
    height_um: Floats
    flatness: Floats
    texture: Floats
    nucleus_um: Floats
    nucleus_at: Floats
    nucleoli: Floats
    mound_um: Floats
    granules: Floats
    alive: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ident)


class _Draws(NamedTuple):
    """Everything random about the places of one tile, N = 64 places."""

    ident: Floats  # whole numbers below 2⁵³
    home: Floats  # N×2, µm from the dish's middle
    uniform: Floats  # N×3: susceptibility to senescence, rank of settling, what is left of a dead cell
    normal: Floats  # N×10: the spread of the traits
    wave: Floats  # N×24: phases of the outline and of the drift
    granule: Floats  # N×44×3


class Window(NamedTuple):
    """A rectangle of the dish in µm from its middle."""

    left: float
    top: float
    right: float
    bottom: float


@lru_cache(maxsize=512)
def _tile(seed: int, key: str, column: int, row: int) -> _Draws:
    rng = np.random.default_rng([seed, zlib.crc32(key.encode()), column + 2**20, row + 2**20])
    n = TILE_SITES**2
    site = np.stack(np.divmod(np.arange(n), TILE_SITES), axis=1)[:, ::-1] + rng.uniform(0.05, 0.95, (n, 2))
    return _Draws(
        ident=((column + 2**20) * 2**21 + row + 2**20) * n + np.arange(n, dtype=np.float64),
        home=site * PITCH_UM + np.array([column, row]) * TILE_UM,
        uniform=rng.uniform(size=(n, 3)),
        normal=rng.standard_normal((n, 10)),
        wave=rng.uniform(0, 2 * np.pi, (n, 24)),
        granule=rng.standard_normal((n, MAX_GRANULES, 3)),
    )


def _tiles(window: Window) -> list[tuple[int, int]]:
    """Return column and row of all tiles that touch `window`."""
    columns = range(int(np.floor(window.left / TILE_UM)), int(np.floor(window.right / TILE_UM)) + 1)
    rows = range(int(np.floor(window.top / TILE_UM)), int(np.floor(window.bottom / TILE_UM)) + 1)
    return [(column, row) for row in rows for column in columns]


def _gather(seed: int, key: str, window: Window) -> _Draws:
    """Return the places of all tiles that touch `window`, less those too close to a place settled before them."""
    tiles = [_tile(seed, key, *tile) for tile in _tiles(window)]
    draws = _Draws(*(np.concatenate(part) for part in zip(*tiles, strict=True)))
    pairs = cKDTree(draws.home).query_pairs(PERSONAL_SPACE_UM, output_type="ndarray")
    first, second = draws.uniform[pairs[:, 0], 1], draws.uniform[pairs[:, 1], 1]
    keep = np.ones(len(draws.ident), bool)
    keep[np.where(first > second, pairs[:, 0], pairs[:, 1])] = False
    return _take(draws, keep)


def _take(draws: _Draws, which: NDArray[np.bool_]) -> _Draws:
    return _Draws(*(part[which] for part in draws))


@lru_cache(maxsize=512)
def _litter(seed: int, key: str, column: int, row: int) -> Floats:
    rng = np.random.default_rng([seed, zlib.crc32(key.encode()), column + 2**20, row + 2**20, 1])
    heaps = rng.uniform(0, TILE_UM, (rng.poisson(1.5), 2)) + np.array([column, row]) * TILE_UM
    specks = np.repeat(heaps, rng.integers(1, 7, len(heaps)), axis=0)
    specks += 2.5 * rng.standard_normal(specks.shape)
    return np.column_stack([specks, rng.uniform(0.5, 3.0, len(specks))])


def debris(seed: int, key: str, window: Window) -> Floats:
    """Return the specks of dirt on the floor of a dish: x, y and thickness in µm, M×3; they never move."""
    return np.concatenate([_litter(seed, key, *tile) for tile in _tiles(window)])


def live_cells(culture: Culture, window: Window) -> Cells:
    """Return the cells of `culture` of which a part may show in `window`, the dead remains (`alive` False) last.

    A place is taken when its rank lies below the occupancy, so a growing well gains cells and a poisoned one loses
    them while all others stay who and where they are.
    """
    reach = REACH_UM + PERSONAL_SPACE_UM
    wide = Window(window.left - reach, window.top - reach, window.right + reach, window.bottom + reach)
    draws = _gather(culture.seed, culture.key, wide)
    rank, remains = draws.uniform[:, 1], draws.uniform[:, 2]
    alive = rank < culture.occupancy
    dead = ~alive & (rank < culture.occupancy + culture.dying) & (remains < 0.35)
    inside = np.hypot(*draws.home.T) < culture.radius_um - REACH_UM
    place = draws.home + _drift(draws, culture.hours)
    near = (
        (place[:, 0] > window.left - REACH_UM)
        & (place[:, 0] < window.right + REACH_UM)
        & (place[:, 1] > window.top - REACH_UM)
        & (place[:, 1] < window.bottom + REACH_UM)
    )
    chosen = (alive | dead) & inside & near
    return _looks(_take(draws, chosen), place[chosen], culture.senescent, alive[chosen])


def _drift(draws: _Draws, hours: float) -> Floats:
    """Return how far each cell has crawled from home, µm N×2: slow, smooth, never far."""
    slow, fast = draws.wave[:, 16:18], draws.wave[:, 18:20]
    turn = 2 * np.pi * hours / _LAG_HOURS
    return np.asarray(4.5 * np.sin(turn + slow) + 1.5 * np.sin(3.7 * turn + fast))


def _levels(senescent: float, susceptibility: Floats) -> Floats:
    """Return the level of each cell: above one half for exactly the fraction `senescent` of all susceptibilities."""
    fraction = min(max(senescent, 1e-4), 1 - 1e-4)
    odds = np.log(fraction / (1 - fraction)) - np.log(susceptibility / (1 - susceptibility))
    return np.asarray(1 / (1 + np.exp(-BIMODALITY * odds)))


def _looks(draws: _Draws, place: Floats, senescent: float, alive: NDArray[np.bool_]) -> Cells:
    level = _levels(senescent, draws.uniform[:, 0])
    z = draws.normal
    seen = np.clip(level + 0.25 * z[:, 0], -0.25, 1.25)  # how senescent it looks, which is not how senescent it is
    area, flat, grain, rough = (np.clip(seen + 0.18 * z[:, k], -0.3, 1.3) for k in (1, 2, 3, 4))
    radius = 13.0 * np.exp(0.72 * area + 0.1 * z[:, 5])
    outline = _outline(radius, rough, z[:, 6], draws.wave)
    outline[~alive] = (6.0 + 0.8 * z[~alive, 5:6]).astype(np.float32)
    nucleus = np.minimum(4.6 * np.exp(0.42 * area + 0.08 * z[:, 7]), 0.55 * outline.min(axis=1))
    nucleus_at = 0.12 * radius[:, None] * np.tanh(z[:, 8:10])
    return Cells(
        ident=draws.ident.astype(np.int64),
        x_um=place[:, 0],
        y_um=place[:, 1],
        level=level,
        outline=outline,
        height_um=np.where(alive, 3.2 * np.exp(-0.7 * flat + 0.12 * z[:, 8]), 20.0),
        flatness=np.where(alive, 2.0 + 2.5 * np.clip(flat, 0, 1), 2.0),
        texture=np.where(alive, 0.1 + 0.16 * np.clip(grain, 0, 1.2), 0.1),
        nucleus_um=nucleus,
        nucleus_at=nucleus_at,
        nucleoli=nucleus_at[:, None] + 0.5 * nucleus[:, None, None] * np.sin(draws.wave[:, 20:24].reshape(-1, 2, 2)),
        mound_um=np.where(alive, 0.7 + 1.3 * np.clip(grain, 0, 1.2), 0.0),
        granules=_granules(draws.granule, outline, grain, alive),
        alive=alive,
    )


def _outline(radius: Floats, rough: Floats, stretch: Floats, phases: Floats) -> NDArray[np.float32]:
    """Return the outlines of N cells: an ellipse (healthy ones drawn out to spindles) with lobes and points."""
    angle = np.linspace(-np.pi, np.pi, OUTLINE_POINTS, endpoint=False)[None, :]
    irregular = np.clip(rough, 0, 1.3)[:, None]
    aspect = np.exp(0.2 + np.abs(stretch)[:, None] * (0.5 - 0.25 * np.clip(irregular, 0, 1)))
    turned = angle - phases[:, :1]
    ellipse = 1 / np.sqrt(np.cos(turned) ** 2 / aspect + np.sin(turned) ** 2 * aspect)
    waves = sum((0.09 + 0.13 * irregular) / k**0.7 * np.sin(k * angle + phases[:, k : k + 1]) for k in (2, 3, 4, 5))
    points = sum(np.exp(9.0 * (np.cos(angle - phases[:, k : k + 1]) - 1)) for k in (8, 9, 10))
    tails = sum(
        np.exp(40.0 * (np.cos(turned + side + 0.3 * np.sin(phases[:, k : k + 1])) - 1))
        * np.sin(phases[:, k + 2 : k + 3])
        for side, k in ((0.0, 11), (np.pi, 12))
    )
    shape = ellipse * np.exp(waves + (0.05 + 0.16 * irregular) * points + 0.55 * np.maximum(tails, 0))
    size = np.sqrt(np.mean(shape**2, axis=1, keepdims=True))
    return np.asarray(np.minimum(radius[:, None] * shape / size, REACH_UM - 5), np.float32)


def _granules(draw: Floats, outline: NDArray[np.float32], grain: Floats, alive: NDArray[np.bool_]) -> Floats:
    """Return x, y and sign of the granules (1) and vacuoles (−1) around the nucleus, N×44×3, µm from the centre."""
    angle = np.pi * (np.tanh(draw[:, :, 0]) + np.sin(5 * draw[:, :, 0]))
    step = ((angle + np.pi) * (OUTLINE_POINTS / (2 * np.pi))).astype(np.int64) % OUTLINE_POINTS
    reach = np.take_along_axis(outline, step, axis=1) * np.minimum(0.2 + 0.24 * np.abs(draw[:, :, 1]), 0.85)
    count = np.clip(4 + 30 * np.clip(grain, -0.1, 1.3), 0, MAX_GRANULES) * alive
    there = np.arange(MAX_GRANULES)[None, :] < count[:, None]
    sign = np.where(draw[:, :, 2] > 1.0, -1.0, 1.0) * there
    return np.stack([reach * np.cos(angle), reach * np.sin(angle), sign], axis=2)
