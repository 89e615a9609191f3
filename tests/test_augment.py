"""Augmentation: the original's moves within their bounds, another microscope's grey values, and fast."""

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from models.augment import AUGMENTATIONS, Augmentation, augment
from tests.figures import figure

MOVES = AUGMENTATIONS["original"]
STILL = AUGMENTATIONS["none"]


def noisy(n: int, size: int = 20) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(60, 200, (n, size, size)).astype(np.uint8)


def test_augmented_crops_keep_kind_differ_and_repeat_with_the_seed() -> None:
    crops = noisy(64)
    kept = crops.copy()
    changed = augment(crops, np.random.default_rng(0))
    assert changed.dtype == np.uint8
    assert changed.shape == crops.shape
    assert (changed != crops).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(crops, kept)
    np.testing.assert_array_equal(changed, augment(crops, np.random.default_rng(0)))
    assert (changed != augment(crops, np.random.default_rng(1))).any()


def test_no_augmentation_is_none() -> None:
    crops = noisy(20)
    np.testing.assert_array_equal(augment(crops, np.random.default_rng(0), STILL), crops)


def test_a_plain_crop_only_changes_its_grey_value() -> None:
    plain = np.full((300, 20, 20), 128, np.uint8)
    changed = augment(plain, np.random.default_rng(0), Augmentation(noise=0))
    assert (changed == changed[:, :1, :1]).all()  # edges are repeated, not filled with black
    levels = changed[:, 0, 0].astype(int)
    assert levels.min() < 113
    assert levels.max() > 143
    assert np.abs(levels - 128).max() <= 21
    np.testing.assert_array_equal(augment(plain, np.random.default_rng(0), MOVES), plain)


def test_gain_stretches_contrast_within_its_bounds() -> None:
    steps = np.full((400, 20, 20), 88, np.uint8)
    steps[:, :, 10:] = 168
    changed = augment(steps, np.random.default_rng(0), Augmentation(False, 0, False, blur_px=0, noise=0)).astype(float)
    gains = (changed[:, 5, 15] - changed[:, 5, 5]) / 80
    assert 0.78 <= gains.min() < 0.84
    assert 1.2 < gains.max() <= 1.27
    assert abs(np.log(gains).mean()) < 0.03  # as often up as down


def test_half_of_the_crops_are_blurred_and_half_are_noisy() -> None:
    sharp = np.zeros((400, 21, 21), np.uint8)
    sharp[:, 10, 10] = 250
    only = Augmentation(False, 0, False, gain=1, offset=0, blur_px=1.5, noise=0)
    peaks = augment(sharp, np.random.default_rng(0), only)[:, 10, 10]
    assert 0.3 < (peaks < 245).mean() < 0.7
    assert peaks.min() < 80
    flat = np.full((400, 20, 20), 128, np.uint8)
    only = Augmentation(False, 0, False, gain=1, offset=0, blur_px=0, noise=8)
    spread = augment(flat, np.random.default_rng(0), only).astype(float).std(axis=(1, 2))
    assert 0.35 < (spread < 0.3).mean() < 0.65
    assert 6 < spread.max() < 9
    assert abs(augment(flat, np.random.default_rng(0), only).mean() - 128) < 0.3


def test_augmentation_turns_and_shifts_within_its_bounds() -> None:
    spot = np.zeros((400, 41, 41), np.uint8)
    spot[:, 18:23, 30:35] = 250  # 12 px right of the centre
    bright = augment(spot, np.random.default_rng(1), MOVES).astype(float)
    total = bright.sum(axis=(1, 2))
    y, x = np.mgrid[:41, :41] - 20.0
    seen = total > 0
    places = np.stack([(bright * axis).sum(axis=(1, 2))[seen] / total[seen] for axis in (x, y)], axis=1)
    distances = np.hypot(*places.T)
    assert seen.mean() > 0.95
    assert distances.max() < 12 + np.hypot(8.2, 8.2) + 2
    assert np.abs(places.mean(axis=0)).max() < 2  # every direction is as likely
    assert places.std() > 7


@pytest.mark.parametrize("mirror", [True, False])
def test_mirroring_happens_in_half_of_the_crops(mirror: bool) -> None:
    crop = np.zeros((600, 41, 41), np.uint8)
    crop[:, 8:33, 12] = 200
    crop[:, 8:11, 12:30] = 200  # the letter gamma: its mirror image is no turn of it
    moves = Augmentation(mirror=mirror, gain=1, offset=0, blur_px=0, noise=0)
    heavy = augment(crop, np.random.default_rng(2), moves).astype(float)
    y, x = np.mgrid[:41, :41] - 20.0
    total = heavy.sum(axis=(1, 2))
    dx, dy = (axis - ((heavy * axis).sum(axis=(1, 2)) / total)[:, None, None] for axis in (x, y))
    a, b = (heavy * dx * (dx**2 + dy**2)).sum(axis=(1, 2)), (heavy * dy * (dx**2 + dy**2)).sum(axis=(1, 2))
    p, q = (heavy * (dx**3 - 3 * dx * dy**2)).sum(axis=(1, 2)), (heavy * (3 * dx**2 * dy - dy**3)).sum(axis=(1, 2))
    handed = np.imag((a + 1j * b) ** 3 * np.conj(p + 1j * q)) > 0  # changes under mirroring, not under turning
    share = float(handed.mean())
    assert 0.4 < share < 0.6 if mirror else min(share, 1 - share) < 0.25


@pytest.mark.alone
def test_augmentation_is_fast() -> None:
    crops = noisy(1280, 50)
    rng = np.random.default_rng(0)
    augment(crops[:128], rng)
    rates = []
    for _ in range(5):
        started = time.process_time()
        for start in range(0, len(crops), 128):
            augment(crops[start : start + 128], rng)
        rates.append(len(crops) / (time.process_time() - started))
    figure(f"augmented {max(rates):,.0f} cells a second")
    assert max(rates) > 15_000  # three times as many on a quiet machine
