"""Pixels of scored images as PNG: fields with rings by score, and single cells."""

import hashlib
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from db import shown
from models.convert import to_uint8
from sesmo_live.errors import ImageError, UnknownNameError
from sesmo_live.overview import CellView
from sesmo_live.records import ModelPassport, Pixels

SHOWN_STATES = ("scored", "refused", "skipped")
"""States of images that the daemon has read without harm; no others are decoded in the server's own process."""
CONTRAST = "percentile-0.35-99.65"
KEPT_IMAGES = 12
_turn = threading.Lock()
"""One image is decoded at a time, so that many viewers do not take the memory and the processor from the scoring."""


def field_pixels(engine: Engine, image_id: int) -> Pixels:
    """Return the pixels of an image, exactly those that were scored.

    Raises UnknownNameError for an unknown image, and for one whose file is gone, changed, or was never read.
    """
    with engine.connect() as connection:
        place = shown.image_place(connection, image_id)
    if place is None:
        raise UnknownNameError(f"there is no image {image_id}; the images of a well are listed with their numbers")
    if place.state not in SHOWN_STATES or place.sha256 is None:
        raise UnknownNameError(f"image {image_id} is {place.state}, so there are no pixels to show; see its reason")
    return _read(image_id, place.path, place.page, place.sha256)


@lru_cache(maxsize=KEPT_IMAGES)
def _read(image_id: int, path: str, page: int, sha256: str) -> Pixels:
    from acquisition.ndtiff import is_ndtiff, ndtiff_pixels  # these load slowly, and a server starts without a picture
    from acquisition.tiff import read_pixels

    name = Path(path).name
    with _turn:
        try:
            read = ndtiff_pixels if is_ndtiff(Path(path)) else read_pixels
            pixels = read(Path(path), page)
        except (ImageError, OSError) as error:
            text = f"the file {name} of image {image_id} cannot be read any more; bring it back to see it"
            raise UnknownNameError(text) from error
    digest = hashlib.sha256(repr((pixels.shape, pixels.dtype.str)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    if digest.hexdigest() != sha256:
        raise UnknownNameError(f"the file {name} was changed since image {image_id} was scored; it is not shown")
    return pixels


def field_png(pixels: Pixels, cells: Sequence[CellView], width_px: int, cell_px: float) -> bytes:
    """Return a field as PNG of at most `width_px`, with a ring in the colour of its score round each of `cells`.

    `cell_px` is the width of a crop in px of the image.
    """
    grey = to_uint8(pixels, CONTRAST)
    zoom = min(1.0, width_px / grey.shape[1])
    if zoom < 1:
        grey = np.asarray(cv2.resize(grey, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA), np.uint8)
    if not cells:
        return png(grey)
    picture: NDArray[np.uint8] = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), np.uint8)
    radius = max(2, round(cell_px / 3 * zoom))
    for cell in cells:
        centre = (round(cell.x * zoom), round(cell.y * zoom))
        colour = colour_of(cell.score)
        cv2.circle(picture, centre, radius, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.circle(picture, centre, radius, colour, 2 if width_px >= 400 else 1, cv2.LINE_AA)
    return png(picture)


def cell_png(pixels: Pixels, cell: CellView, passport: ModelPassport, pixel_um: float | None, size_px: int) -> bytes:
    """Return a cell as PNG of `size_px`, cut and converted as its model gets it; black beyond the image's edge."""
    from models.prepare import scale_of  # loads slowly

    half = passport.input_px / scale_of(pixel_um, passport) / 2
    grey = to_uint8(pixels, passport.conversion)
    side = max(2, round(2 * half))
    left, top = round(cell.x - half), round(cell.y - half)
    crop = np.zeros((side, side), np.uint8)
    height, width = grey.shape
    up, aside = max(0, top), max(0, left)
    part = grey[up : max(up, min(height, top + side)), aside : max(aside, min(width, left + side))]
    crop[up - top : up - top + part.shape[0], aside - left : aside - left + part.shape[1]] = part
    way = cv2.INTER_AREA if size_px < side else cv2.INTER_CUBIC
    return png(np.asarray(cv2.resize(crop, (size_px, size_px), interpolation=way), np.uint8))


@lru_cache(maxsize=1)
def _colours() -> NDArray[np.uint8]:
    ramp = np.arange(256, dtype=np.uint8).reshape(-1, 1)
    return np.asarray(cv2.applyColorMap(ramp, cv2.COLORMAP_VIRIDIS), np.uint8).reshape(256, 3)


def colour_of(score: float) -> tuple[int, int, int]:
    """Return blue, green and red of a score in viridis: even to the eye, safe for colour-blind readers."""
    blue, green, red = _colours()[min(255, max(0, round(score * 255)))].tolist()
    return blue, green, red


def png(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture as PNG."""
    done, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if not done:
        raise ImageError("the picture cannot be written as PNG; report this")
    return bytes(data)


def passport_of(engine: Engine, image_id: int, model: str) -> tuple[ModelPassport, float | None]:
    """Return the passport of a model that scored an image, and the image's µm per pixel."""
    with engine.connect() as connection:
        found: list[Any] = [row for row in shown.image_models(connection, image_id) if row["model_id"] == model]
        place = shown.image_place(connection, image_id)
    if not found or place is None:
        raise UnknownNameError(f"image {image_id} was not scored by a model {model!r}; leave the model out")
    return ModelPassport(**found[0]["passport"]), place.pixel_um
