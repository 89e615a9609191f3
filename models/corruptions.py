"""The corruption suite: what microscopes, cameras and exports do to images, to test that such images are refused."""

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from sesmo_live.records import Pixels

Corrupt = Callable[[Pixels, float, np.random.Generator], Pixels]
"""Takes an image, an amount, and random numbers; returns a spoilt image of the same kind."""

_FULL_SCALES = (255, 1023, 4095, 16383, 65535)


class Corruption(NamedTuple):
    """A way to spoil an image, an amount that still lets it be scored, and one at which it must be refused."""

    apply: Corrupt
    mild: float | None
    strong: float
    unit: str


def blur(pixels: Pixels, sigma_px: float, _rng: np.random.Generator) -> Pixels:
    """Blur by a Gaussian of `sigma_px`, as a lost focus or dirt on the optics does."""
    return _like(cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), sigma_px), pixels)


def noise(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Add white noise of a standard deviation of `share` of the image's contrast (0.35 to 99.65 %)."""
    low, high = np.percentile(pixels, [0.35, 99.65])
    return _like(pixels + rng.normal(0, share * (high - low), pixels.shape), pixels)


def darken(pixels: Pixels, levels: float, _rng: np.random.Generator) -> Pixels:
    """Lower the gain until the bright parts (99.9 %) reach only `levels` grey levels."""
    return _like(pixels * (levels / max(float(np.percentile(pixels, 99.9)), 1.0)), pixels)


def brighten(pixels: Pixels, share: float, _rng: np.random.Generator) -> Pixels:
    """Raise the gain until the `share` of all pixels is white."""
    full = full_scale(pixels)
    gain = full / max(float(np.percentile(pixels, 100 * (1 - share))), 1.0)
    return _like(np.minimum(pixels * gain, full), pixels)


def clip(pixels: Pixels, share: float, _rng: np.random.Generator) -> Pixels:
    """Cut off the darkest and the brightest `share` of the pixels, as a wrong contrast stretch does."""
    low, high = np.percentile(pixels, [100 * share, 100 * (1 - share)])
    return _like(np.clip(pixels, low, high), pixels)


def magnify(pixels: Pixels, factor: float, _rng: np.random.Generator) -> Pixels:
    """Show everything `factor` times as large, as another objective does; no more than the same frame."""
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    shown = np.asarray(cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=way))
    return _like(shown[: pixels.shape[0], : pixels.shape[1]], pixels)


def wrap(pixels: Pixels, bits: float, _rng: np.random.Generator) -> Pixels:
    """Keep the lowest `bits` bits alone, as a careless conversion to 8 bit does; 8-bit images count as 12-bit ones."""
    wide = pixels.astype(np.uint32) * (16 if pixels.dtype == np.uint8 else 1)
    return np.asarray(wide % 2 ** int(bits), np.uint8)


def reduce_bits(pixels: Pixels, bits: float, _rng: np.random.Generator) -> Pixels:
    """Keep 2^`bits` grey levels between the darkest and the brightest pixel."""
    low, high = float(pixels.min()), float(pixels.max())
    levels = 2 ** int(bits)
    step = np.floor((pixels.astype(np.float64) - low) / (high - low + 1) * levels)
    return _like(step * (high - low) / (levels - 1) + low, pixels)


def swap_bytes(pixels: Pixels, _amount: float, _rng: np.random.Generator) -> Pixels:
    """Read 16-bit numbers in the wrong byte order; 8-bit images are first stored as 12-bit ones."""
    wide = pixels.astype(np.uint16) * (16 if pixels.dtype == np.uint8 else 1)
    swapped: NDArray[np.uint16] = wide.byteswap()
    return swapped


def invert(pixels: Pixels, _amount: float, _rng: np.random.Generator) -> Pixels:
    """Turn bright to dark, as negative phase contrast or an inverted lookup table does."""
    return _like(float(pixels.max()) + float(pixels.min()) - pixels.astype(np.float64), pixels)


def fluoresce(pixels: Pixels, radius_px: float, rng: np.random.Generator) -> Pixels:
    """Show bright nuclei of about `radius_px` on black where the image has its structures, as a DNA stain would."""
    grey = pixels.astype(np.float32)
    lively = cv2.GaussianBlur((grey - np.median(grey)) ** 2, (0, 0), radius_px)
    side = int(4 * radius_px) | 1
    peaks = (lively == cv2.dilate(lively, np.ones((side, side)))) & (lively > np.percentile(lively, 70))
    light = np.zeros(pixels.shape, np.float32)
    for y, x in np.argwhere(peaks):
        axes = [int(n) for n in rng.uniform(0.8, 1.4, 2) * radius_px]
        cv2.ellipse(light, (int(x), int(y)), axes, float(rng.uniform(0, 180)), 0, 360, float(rng.uniform(0.4, 1)), -1)
    full = full_scale(pixels)
    shown = full * (0.03 + 0.6 * cv2.GaussianBlur(light, (0, 0), 1.2))
    return _like(shown + rng.normal(0, 0.006 * full, pixels.shape), pixels)


def full_scale(pixels: Pixels) -> int:
    """Return the largest grey value of the camera that may have taken `pixels`: of 8, 10, 12, 14 or 16 bit."""
    return next(full for full in _FULL_SCALES if int(pixels.max()) <= full)


def _like(values: NDArray[Any], pixels: Pixels) -> Pixels:
    top = np.iinfo(pixels.dtype).max
    bounded = np.clip(np.rint(values), 0, top)
    if pixels.dtype == np.uint8:
        return np.asarray(bounded, np.uint8)
    return np.asarray(bounded, np.uint16)


CORRUPTIONS: dict[str, Corruption] = {
    "blur": Corruption(blur, 0.5, 3.0, "px"),
    "noise": Corruption(noise, 0.01, 0.2, "of the contrast"),
    "gain, too dark": Corruption(darken, 160, 24, "grey levels"),
    "gain, too bright": Corruption(brighten, 0.002, 0.2, "of the pixels white"),
    "clipping": Corruption(clip, 0.002, 0.1, "of the pixels at each end"),
    "magnification, reduced": Corruption(magnify, 0.9, 0.5, "times"),
    "magnification, enlarged": Corruption(magnify, 1.1, 2.0, "times"),
    "bit depth, wrapped": Corruption(wrap, None, 8, "bits"),
    "bit depth, few": Corruption(reduce_bits, 7, 4, "bits"),
    "bit depth, bytes swapped": Corruption(swap_bytes, None, 0, ""),
    "inverted contrast": Corruption(invert, None, 0, ""),
    "fluorescence": Corruption(fluoresce, None, 6, "px radius"),
}
"""Each corruption by the name that tables give it; `mild` is None where there is no harmless amount."""
