"""From a field image to its cells, exactly as a model's passport asks for it."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.convert import to_uint8
from models.cropper import CROPPERS
from models.quality import measure_field
from models.refusal import unfit
from sesmo_live.records import CellCrops, FieldImage, ModelPassport

SCALE_TOLERANCE = 0.05
"""Images whose µm per pixel differs from the model's by less than this share are not resampled."""


def prepare_field(field: FieldImage, passport: ModelPassport) -> CellCrops:
    """Convert to 8 bit, resample to the model's µm per pixel where both are known, and crop.

    The centres that come back are in pixels of the image as it was read.
    """
    image = to_uint8(field.pixels, passport.conversion)
    image, scale = at_zoom(image, scale_of(field.file.pixel_um, passport))
    crops, centres = CROPPERS[passport.cropper](image, **passport.cropper_settings)
    return CellCrops(field.file, crops, centres / scale)


def scale_of(pixel_um: float | None, passport: ModelPassport) -> float:
    """Return how many times as large as the camera's image the model wants it; 1 where either scale is unknown."""
    scale = pixel_um / passport.pixel_um if pixel_um and passport.pixel_um else 1.0
    return scale if abs(scale - 1) > SCALE_TOLERANCE else 1.0


def judge_field(field: FieldImage, cells: CellCrops, passport: ModelPassport) -> tuple[dict[str, Any], list[str]]:
    """Return what was measured on a field and its crops, and why the model cannot score it ([] if it can)."""
    quality = measure_field(field.pixels, cells.pixels, scale=scale_of(field.file.pixel_um, passport))
    return quality, unfit(quality, passport.reference)


def at_zoom(image: NDArray[np.uint8], zoom: float) -> tuple[NDArray[np.uint8], float]:
    """Return the image resampled to `zoom` times its size, and the zoom it has: 1 where it would hardly differ."""
    if abs(zoom - 1) <= SCALE_TOLERANCE:
        return image, 1.0
    way = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=way), np.uint8), zoom
