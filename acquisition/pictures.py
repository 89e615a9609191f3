"""Loose pictures that users point at: PNG, JPEG, BMP and TIFF files outside any plate."""

import struct
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from acquisition.completeness import MAX_BYTES
from acquisition.tiff import read_pages, read_pixels
from sesmo_live.errors import ImageError, IncompleteImageError, UsageError
from sesmo_live.records import Pixels

PICTURE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp")
"""Suffixes, in lower case, of the pictures that `read_picture` reads."""

_PNG, _JPEG, _BMP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures in `folder` and below it, sorted; hidden files and folders are left out.

    Raises UsageError if `folder` is no folder or holds no picture.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give one that holds pictures")
    pictures = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in PICTURE_SUFFIXES
        and not any(part.startswith((".", "~")) for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not pictures:
        raise UsageError(f"{folder} holds no pictures; give a folder with {', '.join(PICTURE_SUFFIXES)} files")
    return pictures


def read_picture(path: Path) -> Pixels:
    """Return the grey pixels (uint8 or uint16, height × width) of the picture at `path`; of colour its red channel.

    Of a TIFF it is the first page. Raises IncompleteImageError when the picture is cut short, ImageError when it is
    damaged, too large, or none of TIFF, PNG, JPEG and BMP.
    """
    if path.suffix.lower() in (".tif", ".tiff"):
        return read_pixels(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"{path} cannot be read ({error.strerror}); give a picture that exists and is yours"
        ) from error
    try:
        _refuse_unfit(path, data)
        pixels = _decode(data)
    except (ValueError, RuntimeError, struct.error, cv2.error) as error:
        raise ImageError(f"{path} is damaged ({error}); export it again") from error
    if data.startswith(_JPEG) and pixels.ndim == 3 and pixels.shape[2] == 4:
        raise ImageError(f"{path} has printing colours (CMYK); save it as grey or RGB")
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    if grey.dtype == np.uint16:
        return np.ascontiguousarray(grey, np.uint16)
    return np.ascontiguousarray(grey, np.uint8)


def own_pixel_um(path: Path, page: int = 0) -> float | None:
    """Return the µm per pixel that a TIFF tells of one of its pages, None where nothing is told."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    pages = read_pages(path)
    return pages[page].pixel_um if page < len(pages) else None


def _decode(data: bytes) -> NDArray[np.generic]:
    """Return the decoded picture, colours in the order red, green, blue."""
    if not data.startswith(_BMP):
        decode = imagecodecs.png_decode if data.startswith(_PNG) else imagecodecs.jpeg_decode
        return np.asarray(decode(data))
    bitmap: NDArray[np.generic] | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if bitmap is None:
        raise ValueError("OpenCV cannot decode it")
    return bitmap if bitmap.ndim == 2 else bitmap[..., 2::-1]  # OpenCV gives blue first


def _refuse_unfit(path: Path, data: bytes) -> None:
    """Raise unless `data` is a whole picture of a size that may be decoded."""
    if data.startswith(_PNG):
        width, height = struct.unpack(">II", data[16:24])
        whole = b"IEND" in data[-16:]
    elif data.startswith(_JPEG):
        width, height = _jpeg_size(data)
        whole = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")  # the end mark after the last scan
    elif data.startswith(_BMP):
        width, height = struct.unpack("<ii", data[18:26])
        whole = len(data) >= int.from_bytes(data[2:6], "little")
    elif not any(data):
        raise IncompleteImageError(f"{path} is empty; copy it again")
    else:
        raise ImageError(f"{path} is neither TIFF, PNG, JPEG nor BMP; save it as one of these")
    if not whole:
        raise IncompleteImageError(f"{path} is cut short; copy it again")
    if abs(width * height) * 8 > MAX_BYTES:
        raise ImageError(f"{path} has {width} × {abs(height)} pixels, above the limit; split it into fields")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Return width and height in px from the frame header of a JPEG."""
    place = 2
    while place + 9 <= len(data):
        marker, length = struct.unpack(">xBH", data[place : place + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[place + 5 : place + 9])
            return width, height
        place += 2 + length
    return 0, 0
