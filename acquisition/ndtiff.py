"""NDTiff folders, the format that pycromanager and Micro-Manager write while they acquire.

The folder's `NDTiff.index` gets one entry for each image once it is written, so that a growing data set can be read
as far as its index goes. The entries and pixels are read by Micro-Manager's own `ndstorage`.
"""

import json
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from acquisition.completeness import MAX_BYTES
from acquisition.metadata import PageInfo, as_int, micro_manager_info
from sesmo_live.errors import ImageError, IncompleteImageError
from sesmo_live.records import Pixels

INDEX_NAME = "NDTiff.index"
"""The file that makes a folder an NDTiff data set."""

_STACK_NAME = re.compile(r"[^/\\:\0]+\.tiff?", re.IGNORECASE)
_SAMPLE_BYTES = {0: 1, 1: 2, 2: 3, 3: 2, 4: 2, 5: 2, 6: 2}
"""Bytes a pixel by NDTiff pixel type; 2 is RGB."""


class _Image(NamedTuple):
    axes: dict[str, Any]
    entry: Any


def is_ndtiff(folder: Path) -> bool:
    """Say whether `folder` is an NDTiff data set at full resolution."""
    # os.path.isfile takes every error for a no, where Path.is_file raises some
    return not folder.name.startswith("Downsampled") and os.path.isfile(folder / INDEX_NAME)  # noqa: PTH113


def ndtiff_pages(folder: Path, start: int = 0) -> list[PageInfo]:
    """Return what the NDTiff data set in `folder` says of each image from page `start` on, in the order of its index.

    A page keeps its number while the data set grows. `timepoint`, `z`, `channel` and `position` are its axes (a channel
    axis in numbers gives way to the channel's name). Raises IncompleteImageError when the index is empty, names a stack
    file that is not there or promises images that are not written yet, and ImageError when an entry cannot be good.
    """
    infos = []
    for page, image in enumerate(_index(folder)[start:], start):
        with _reader(folder, image) as reader:
            record = _record(folder, reader, image)
        info = micro_manager_info({**record, "Axes": image.axes}, page)
        tile = "_".join(str(image.axes[axis]) for axis in ("row", "column") if axis in image.axes)
        infos.append(
            replace(
                info,
                timepoint=as_int(image.axes.get("time")),
                z=as_int(image.axes.get("z")),
                position=tile if tile and "position" not in image.axes else info.position,
            )
        )
    return infos


def ndtiff_pixels(folder: Path, page: int = 0) -> Pixels:
    """Return the grey pixels (uint8 or uint16, height × width) of `page` of the NDTiff data set in `folder`.

    Of RGB it is channel 0. Raises as `ndtiff_pages`, and ImageError where there is no such page.
    """
    images = _index(folder)
    if not 0 <= page < len(images):
        raise ImageError(f"{folder} has {len(images)} images and no image {page} (counted from 0); scan it again")
    with _reader(folder, images[page]) as reader:
        _record(folder, reader, images[page])  # written after the pixels, so it vouches for them
        try:
            pixels = reader.read_image(images[page].entry)
        except (OSError, ValueError) as error:
            raise IncompleteImageError(f"{folder} changed while it was read ({error}); it is read again") from error
    grey: Pixels = np.array(pixels[..., 0] if pixels.ndim == 3 else pixels)
    return grey


def _index(folder: Path) -> tuple[_Image, ...]:
    try:
        state = (folder / INDEX_NAME).stat()
        return _read_index(folder, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise IncompleteImageError(
            f"{folder / INDEX_NAME} cannot be read now ({error.strerror or error}); it is read again"
        ) from error


@lru_cache(maxsize=8)
def _read_index(folder: Path, size: int, mtime_ns: int) -> tuple[_Image, ...]:  # noqa: ARG001 size, mtime: the key
    """Return the images in the order of their first entries; the last entry may still be half written."""
    from ndstorage.ndtiff_index import NDTiffIndexEntry  # 1.5 s: it brings dask

    data = (folder / INDEX_NAME).read_bytes()
    images: dict[frozenset[tuple[str, Any]], _Image] = {}
    place = 0
    while any(data[place : place + 4]):
        try:
            place, axes, entry = NDTiffIndexEntry.unpack_single_index_entry(data, place)
            images[frozenset(axes.items())] = _Image(axes, entry)
        except (struct.error, ValueError):
            break
        except (AttributeError, TypeError) as error:
            raise ImageError(f"{folder / INDEX_NAME} is damaged; copy the data set again") from error
    if not images:
        raise IncompleteImageError(f"{folder / INDEX_NAME} names no image yet; it is read again when it has grown")
    return tuple(images.values())


@contextmanager
def _reader(folder: Path, image: _Image) -> Iterator[Any]:
    """Open the stack file of `image` after a check that it is in `folder` and holds all of the image."""
    from ndstorage.ndtiff_file import SingleNDTiffReader

    entry, path = image.entry, folder / image.entry.filename
    if not _STACK_NAME.fullmatch(entry.filename):
        raise ImageError(f"{folder / INDEX_NAME} names {entry.filename!r} outside the data set; copy it again")
    bytes_each = _SAMPLE_BYTES.get(entry.pixel_type, 0)
    length = entry.image_width * entry.image_height * bytes_each
    if not 0 < length <= MAX_BYTES:
        raise ImageError(
            f"{path} holds an image of {entry.image_width} × {entry.image_height} pixels of NDTiff type "
            f"{entry.pixel_type}, which cannot be scored; acquire 8- or 16-bit grey up to {MAX_BYTES} bytes"
        )
    try:
        size = path.stat().st_size
        reader = SingleNDTiffReader(str(path), summary_md={})
    except OSError as error:
        raise IncompleteImageError(
            f"{folder} has an index but not its images in {entry.filename} ({error.strerror}); copy the whole folder"
        ) from error
    try:
        if max(entry.pix_offset + length, entry.metadata_offset + entry.metadata_length) > size:
            raise IncompleteImageError(f"{path} ends before the images that its index lists; it is read again")
        yield reader
    finally:
        reader.close()


def _record(folder: Path, reader: Any, image: _Image) -> dict[str, Any]:
    """Return the metadata of `image`; zeros in their place mean that the image is not written yet."""
    try:
        record = reader.read_metadata(image.entry)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IncompleteImageError(
            f"{folder / image.entry.filename} has not all of its images yet; it is read again, else copy it anew"
        ) from error
    return record if isinstance(record, dict) else {}
