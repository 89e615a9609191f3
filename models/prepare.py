"""From a field image to its cells, exactly as a model's passport asks for it."""

import cv2
import numpy as np

from models.convert import to_uint8
from models.cropper import CROPPERS
from sesmo_live.records import CellCrops, FieldImage, ModelPassport

SCALE_TOLERANCE = 0.05
"""Images whose µm per pixel differs from the model's by less than this share are not resampled."""


def prepare_field(field: FieldImage, passport: ModelPassport) -> CellCrops:
    """Convert to 8 bit, resample to the model's µm per pixel where both are known, and crop.

    The centres that come back are in pixels of the image as it was read.
    """
    image = to_uint8(field.pixels, passport.conversion)
    scale = 1.0
    if field.file.pixel_um and passport.pixel_um:
        scale = field.file.pixel_um / passport.pixel_um
    if abs(scale - 1) > SCALE_TOLERANCE:
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=way), np.uint8)
    else:
        scale = 1.0
    crops, centres = CROPPERS[passport.cropper](image, **passport.cropper_settings)
    return CellCrops(field.file, crops, centres / scale)
