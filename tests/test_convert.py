"""The 16-to-8-bit conversions: the golden one exactly, no wrapping, 8-bit untouched."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.convert import CONVERSIONS, counts_of, percentile_of_counts, to_uint8
from sesmo_live.errors import ImageError, UsageError

NOISE = np.random.default_rng(7).normal(3000, 400, (64, 80)).clip(0, 65535).astype(np.uint16)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["set2", "set5", "set9", "set12", "set18", "set21", "set31", "set43"])
def test_the_default_makes_the_golden_images_from_their_raw_ones(shared: Path, name: str) -> None:
    raw = tifffile.imread(shared / "data/phase_instances/usiigaci_t98g" / name / "raw.tif")
    golden = tifffile.imread(shared / "golden/deep_sesmo_crops" / f"{name}_uint8.tif")
    np.testing.assert_array_equal(to_uint8(raw), golden)


@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_8_bit_passes_untouched(conversion: str) -> None:
    pixels = np.arange(40, 140, dtype=np.uint8).reshape(10, 10)
    np.testing.assert_array_equal(to_uint8(pixels, conversion), pixels)


@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize(
    "pixels",
    [NOISE, NOISE[::2, 3:-5], np.full((9, 9), 4095, np.uint16), np.array([[0, 65535]], np.uint16), NOISE[:1, :1]],
    ids=["noise", "strided", "constant", "extremes", "one pixel"],
)
def test_order_is_kept_and_nothing_wraps(conversion: str, pixels: NDArray[np.uint16]) -> None:
    grey = to_uint8(pixels, conversion)
    assert grey.dtype == np.uint8
    assert grey.shape == pixels.shape
    order = np.argsort(pixels, axis=None)
    assert (np.diff(grey.ravel()[order].astype(int)) >= 0).all()


def test_min_max_is_the_plain_formula_rounded_down() -> None:
    low, high = int(NOISE.min()), int(NOISE.max())
    expected = [[(int(value) - low) * 255 // (high - low) for value in row] for row in NOISE]
    assert to_uint8(NOISE, "min-max").tolist() == expected


def test_the_saturating_conversion_clips_at_its_percentiles() -> None:
    low, high = (round(float(value)) for value in np.percentile(NOISE, [0.35, 99.65]))
    grey = to_uint8(NOISE, "percentile-0.35-99.65")
    assert (grey[low >= NOISE] == 0).all()
    assert (grey[high <= NOISE] == 255).all()
    between = (low < NOISE) & (high > NOISE)
    np.testing.assert_array_equal(grey[between], (NOISE[between].astype(int) - low) * 255 // (high - low))


def test_a_hot_pixel_flattens_min_max_only() -> None:
    hot = NOISE.copy()
    hot[5, 5] = 65535
    assert to_uint8(hot, "min-max").std() < 0.2 * to_uint8(NOISE, "min-max").std()
    assert to_uint8(hot, "percentile-0.35-99.65").std() > 0.9 * to_uint8(NOISE, "percentile-0.35-99.65").std()


@pytest.mark.parametrize(
    ("pixels", "conversion", "error", "words"),
    [
        (np.zeros((4, 4)), "min-max", ImageError, "float64"),
        (np.zeros((4, 4, 3), np.uint8), "min-max", ImageError, "(4, 4, 3)"),
        (np.zeros((4, 4), np.int16), "min-max", ImageError, "int16"),
        (NOISE, "gamma", UsageError, "min-max"),
        (NOISE.astype(np.uint8), "gamma", UsageError, "'gamma'"),
    ],
)
def test_what_cannot_be_converted_is_named(pixels: Any, conversion: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        to_uint8(pixels, conversion)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=60),
    st.one_of(st.floats(0, 100), st.integers(0, 100)),
)
def test_percentiles_of_counts_are_numpys(values: list[int], percentile: float) -> None:
    pixels = np.array([values], np.uint8)
    assert percentile_of_counts(counts_of(pixels), percentile) == np.percentile(pixels, percentile)


def test_counts_stay_exact_above_the_whole_numbers_of_float32() -> None:
    pixels = np.zeros((4097, 4099), np.uint8)  # more than 2**24 pixels, an odd number
    assert counts_of(pixels)[0] == 4097 * 4099
