"""Random changes of training crops: the original study's moves, and what differs from microscope to microscope."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far a crop may be changed; the first three are the original study's moves, the rest another microscope.

    `shift` is a share of the crop's side. `gain` is the largest contrast gain and its inverse the smallest; `offset`
    (grey levels) the largest brightness shift; `blur_px` the widest Gaussian (sigma) and `noise` the strongest one
    (sigma, grey levels), each given to half of the crops.
    """

    rotate: bool = True
    shift: float = 0.2
    mirror: bool = True
    gain: float = 1.25
    offset: float = 20.0
    blur_px: float = 1.0
    noise: float = 6.0


TRANSFER = Augmentation()
"""Moves, gain, offset, blur and noise: the default, for scores that shall hold on another microscope."""

AUGMENTATIONS: dict[str, Augmentation] = {
    "transfer": TRANSFER,
    "original": Augmentation(gain=1.0, offset=0.0, blur_px=0.0, noise=0.0),
    "none": Augmentation(rotate=False, shift=0.0, mirror=False, gain=1.0, offset=0.0, blur_px=0.0, noise=0.0),
}
"""Augmentations by the name that recipes use."""

_MIDDLE = 127.5
"""Gains turn around this grey value."""
_POOL_PX, _POOL_SIGMA = 256, 24.0
"""Noise is cut at random places from one pool: drawing each pixel anew takes longer than all else together."""


def augment(crops: NDArray[np.uint8], rng: np.random.Generator, how: Augmentation = TRANSFER) -> NDArray[np.uint8]:
    """Return each crop (uint8 N×H×H) turned, shifted, perhaps mirrored, edges repeated, as another camera saw it.

    Source of the moves: Kusumoto et al., Nat Commun 12:257 (2021), rotation 360°, shifts 20 %, both flips.
    """
    n, size = len(crops), int(crops.shape[1])
    moves = _moves(n, size, rng, how)
    gains = np.exp(rng.uniform(-1, 1, n) * np.log(how.gain))
    offsets = rng.uniform(-1, 1, n) * how.offset + _MIDDLE * (1 - gains)
    blurs = _half_of(rng.uniform(0, 1, n) * how.blur_px, rng)
    noises = _half_of(rng.uniform(0, 1, n) * how.noise, rng) / _POOL_SIGMA
    pool = _noise_pool(_POOL_PX + size)
    places = rng.integers(0, _POOL_PX, (n, 2))
    moved = np.empty_like(crops)
    for number, out in enumerate(moved):
        cv2.warpAffine(crops[number], moves[number], (size, size), out, borderMode=cv2.BORDER_REPLICATE)
        if blurs[number] > 0:
            cv2.GaussianBlur(out, (3, 3), blurs[number], out)
        y, x = places[number]
        noise, share = pool[y : y + size, x : x + size], noises[number]
        cv2.addWeighted(out, gains[number], noise, share, offsets[number] - 128 * share, out)
    return moved


def _moves(n: int, size: int, rng: np.random.Generator, how: Augmentation) -> NDArray[np.float64]:
    """Return an affine map (N×2×3) about the crop's centre for each crop."""
    angles = rng.uniform(0, 2 * np.pi, n) * how.rotate
    mirrors = np.where(rng.integers(0, 2, n) * how.mirror, -1.0, 1.0)
    cosines, sines = np.cos(angles), np.sin(angles)
    turns = np.stack([cosines * mirrors, -sines, sines * mirrors, cosines], axis=1).reshape(n, 2, 2)
    centre = np.full(2, (size - 1) / 2)
    shifts = centre - turns @ centre + rng.uniform(-1, 1, (n, 2)) * how.shift * size
    return np.concatenate([turns, shifts[..., None]], axis=2)


@cache
def _noise_pool(size: int) -> NDArray[np.uint8]:
    """Return a square of Gaussian noise around grey 128; the same in every process, so that runs can be repeated."""
    return np.clip(np.random.default_rng(0).normal(128, _POOL_SIGMA, (size, size)), 0, 255).astype(np.uint8)


def _half_of(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the values, a random half of them set to 0."""
    return np.asarray(values * rng.integers(0, 2, len(values)))
