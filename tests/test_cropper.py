"""The `deep-sesmo` cropper: the golden crops byte for byte, and equality with the plain way on made-up images."""

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from models.cropper import CROPPERS, crop_cells, crop_dark_or_bright_cells, shows_bright_cells
from sesmo_live.bench.original import crop_as_the_original
from sesmo_live.errors import ImageError, SesmoError, UsageError


def clouds(seed: int, shape: tuple[int, int], levels: int = 256, grain_px: float = 4) -> NDArray[np.uint8]:
    """Return smooth noise with `levels` grey values: patches of every size and shape, rings and holes among them."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=shape), (0, 0), grain_px)
    ranks = noise.ravel().argsort().argsort().reshape(shape)
    return np.asarray(ranks * levels // noise.size * (255 // (levels - 1)), np.uint8)


def drawn_cells(seed: int, background: int) -> NDArray[np.uint8]:
    """Return rings, discs and bars on a faintly noisy background: thin outlines enclose much with few pixels."""
    rng = np.random.default_rng(seed)
    image = np.full((240, 260), background, np.uint8)
    for x, y, radius, thickness in zip(*rng.integers((0, 0, 3, 1), (260, 240, 23, 4), (28, 4)).T, strict=True):
        grey = int(rng.integers(0, 256))
        if radius % 3:
            cv2.circle(image, (int(x), int(y)), int(radius), grey, int(thickness))
        else:
            cv2.ellipse(image, (int(x), int(y)), (int(radius), int(thickness)), float(x), 0, 360, grey, -1)
    return np.asarray(np.clip(image + rng.normal(0, 2, image.shape), 0, 255), np.uint8)


@pytest.mark.realdata
@pytest.mark.parametrize("case", range(48))
def test_crops_are_the_originals_byte_for_byte(shared: Path, case: int) -> None:
    folder = shared / "golden/deep_sesmo_crops"
    expected = json.loads((folder / "expected.json").read_text())[case]
    settings = {key: expected[key] for key in ("percentile", "min_area_px", "fluorescence")}
    crops, centres = crop_cells(tifffile.imread(folder / expected["image"]), **settings)
    assert len(crops) == expected["n"]
    assert (centres.astype(int) - 25)[:, ::-1].tolist() == expected["top_left"]
    assert hashlib.sha256(crops.tobytes()).hexdigest() == expected["crops_sha256"]


@pytest.mark.parametrize("shape", [(211, 180), (50, 300), (97, 51)])
@pytest.mark.parametrize(
    ("percentile", "min_area_px", "fluorescence"),
    [
        (5, 50, False),
        (1, 20, False),
        (33.3, 0, False),
        (12, 130, False),
        (95, 50, True),
        (80, 90, True),
        (100, 0, False),
    ],
)
@pytest.mark.parametrize(("levels", "grain_px"), [(256, 4), (256, 1.2), (4, 5)])
def test_crops_equal_the_plain_way(
    shape: tuple[int, int], percentile: float, min_area_px: int, fluorescence: bool, levels: int, grain_px: float
) -> None:
    image = clouds(min_area_px, shape, levels, grain_px)
    crops, centres = crop_cells(image, percentile=percentile, min_area_px=min_area_px, fluorescence=fluorescence)
    rgb = np.repeat(image[:, :, None], 3, axis=2)
    plain, plain_centres = crop_as_the_original(rgb, percentile, min_area_px, fluorescence)
    assert len(crops) == len(plain)
    np.testing.assert_array_equal(crops, plain[..., 0])
    np.testing.assert_array_equal(centres, np.reshape(plain_centres, (-1, 2)))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    ("percentile", "min_area_px", "fluorescence", "background"),
    [(5, 50, False, 200), (2, 20, False, 220), (3.7, 120, False, 180), (95, 50, True, 40), (98.2, 90, True, 60)],
)
def test_crops_of_drawn_cells_equal_the_plain_way(
    seed: int, percentile: float, min_area_px: int, fluorescence: bool, background: int
) -> None:
    image = drawn_cells(seed, background)
    crops, centres = crop_cells(image, percentile=percentile, min_area_px=min_area_px, fluorescence=fluorescence)
    rgb = np.repeat(image[:, :, None], 3, axis=2)
    plain, plain_centres = crop_as_the_original(rgb, percentile, min_area_px, fluorescence)
    np.testing.assert_array_equal(centres, np.reshape(plain_centres, (-1, 2)))
    np.testing.assert_array_equal(crops, plain[..., 0])


def test_the_made_up_images_do_hold_cells() -> None:
    assert sum(len(crop_cells(drawn_cells(seed, 200))[0]) for seed in range(12)) > 20
    found = [
        len(crop_cells(clouds(50, (211, 180), 256, 4), percentile=p, min_area_px=a)[0]) for p, a in ((5, 50), (33.3, 0))
    ]
    assert min(found) >= 3


@pytest.mark.parametrize("shape", [(1, 1), (49, 400), (400, 49), (0, 0), (50, 50)])
@pytest.mark.parametrize("grey", [0, 128, 255])
@pytest.mark.parametrize("fluorescence", [False, True])
def test_small_and_constant_images_give_no_crops(shape: tuple[int, int], grey: int, fluorescence: bool) -> None:
    crops, centres = crop_cells(np.full(shape, grey, np.uint8), fluorescence=fluorescence)
    assert crops.shape == (0, 50, 50)
    assert crops.dtype == np.uint8
    assert centres.shape == (0, 2)
    assert centres.dtype == np.float64


@pytest.mark.parametrize("grey", [0, 255])
def test_large_constant_images_give_no_crops(grey: int) -> None:
    for percentile in (0, 5, 100):
        assert len(crop_cells(np.full((200, 200), grey, np.uint8), percentile=percentile)[0]) == 0


@pytest.mark.parametrize("crop_px", [20, 40, 51, 120])
def test_other_crop_sizes_cut_whole_squares_around_the_centres(crop_px: int) -> None:
    image = clouds(1, (260, 240))
    crops, centres = crop_cells(image, crop_px=crop_px, percentile=20)
    assert len(crops) > 0
    assert crops.shape[1:] == (crop_px, crop_px)
    for crop, (x, y) in zip(crops, centres.astype(int) - crop_px // 2, strict=True):
        np.testing.assert_array_equal(crop, image[y : y + crop_px, x : x + crop_px])


def test_views_and_read_only_images_are_cropped_too() -> None:
    image = clouds(2, (220, 200))
    image.flags.writeable = False
    for view in (image[:, ::-1], image[::-1], image[10:, 7:], np.asfortranarray(image)):
        np.testing.assert_array_equal(crop_cells(view)[0], crop_cells(np.ascontiguousarray(view))[0])
        assert len(crop_cells(view)[0]) > 0


def test_crops_do_not_share_memory_with_the_image() -> None:
    image = clouds(3, (220, 200))
    assert not np.shares_memory(crop_cells(image)[0], image)


@pytest.mark.parametrize(
    ("image", "settings", "error", "words"),
    [
        (np.zeros((90, 90), np.uint16), {}, ImageError, "uint16"),
        (np.zeros((90, 90, 3), np.uint8), {}, ImageError, "(90, 90, 3)"),
        (np.zeros((90, 90), np.uint8), {"percentile": 101}, UsageError, "between 0 and 100"),
        (np.zeros((90, 90), np.uint8), {"percentile": -1}, UsageError, "percentile -1"),
        (np.zeros((90, 90), np.uint8), {"percentile": float("nan")}, UsageError, "percentile nan"),
        (np.zeros((90, 90), np.uint8), {"min_area_px": -5}, UsageError, "min_area_px -5"),
        (np.zeros((90, 90), np.uint8), {"crop_px": 3}, UsageError, "crop_px 3"),
    ],
)
def test_impossible_images_and_settings_are_named(
    image: Any, settings: dict[str, Any], error: type[SesmoError], words: str
) -> None:
    with pytest.raises(error) as raised:
        CROPPERS["deep-sesmo"](image, **settings)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("bright", [False, True])
def test_either_kind_of_cells_is_cropped(bright: bool) -> None:
    """Dark cells on grey are cropped as the original does; bright ones on black as it does for fluorescence."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:300, :300]
    spots = sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 120) for cx, cy in ((60, 70), (200, 90), (120, 220)))
    image = rng.normal(6, 1, (300, 300)) + 200 * spots if bright else rng.normal(150, 5, (300, 300)) - 90 * spots
    image = image.clip(0, 255).astype(np.uint8)
    assert shows_bright_cells(image) is bright
    crops, centres = crop_dark_or_bright_cells(image)
    share = 95 if bright else 5
    expected, places = crop_cells(image, percentile=share, fluorescence=bright)
    assert np.array_equal(crops, expected)
    assert np.array_equal(centres, places)
    for place in ((60, 70), (200, 90), (120, 220)):
        assert np.hypot(*(centres - place).T).min() < 6


@pytest.mark.realdata
def test_real_images_show_the_kind_of_cells_they_hold(shared: Path) -> None:
    phase = [tifffile.imread(path) for path in (shared / "golden/deep_sesmo_crops").glob("*.tif")]
    quantitative = sorted((shared / "data/timelapse_treated/cellphe_mdamb231_docetaxel/images").glob("*.tif"))
    assert not any(shows_bright_cells(image) for image in phase)
    counts = []
    for path in quantitative:
        image = tifffile.imread(path)
        assert shows_bright_cells(image)
        counts.append(len(crop_dark_or_bright_cells(image)[0]))
    assert min(counts) > 0
