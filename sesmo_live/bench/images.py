"""The images that the benchmark reads: a virtual field, or a picture of one's own, in several sizes and encodings."""

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from acquisition.layouts import image_name
from acquisition.simulator import VirtualPlate, render_field
from acquisition.tiff import read_pixels
from sesmo_live.errors import ImageError, UsageError
from sesmo_live.records import Pixels, Site, Treatment
from sesmo_live.wells import well_name

SIZES = {"1024": (1024, 1024), "1360x1024": (1024, 1360), "2048": (2048, 2048)}
"""Sizes of cameras that are in use, height and width in px, by the name that the results use."""

ENCODINGS = {"raw": None, "zstd": "zstd", "lzw": "lzw"}
"""Encodings of TIFFs by name, with tifffile's word for them."""

_PIXEL_UM = 0.65
"""The scale of the virtual field: about 590 patches in 2048², where phase contrast of T98G at 10× has 530."""


def field(size: str, image: Path | None) -> Pixels:
    """Return a field (uint16 H×W) of one of SIZES: of the virtual microscope, or `image` mirrored to that size."""
    height, width = SIZES[size]
    if image is None:
        plate = VirtualPlate(
            wells=6, treatments=(Treatment("B02", "bench"),), shape=(height, width), pixel_um=_PIXEL_UM, focus_loss=0
        )
        return render_field(plate, "B02", 1, 1)
    try:
        pixels = read_pixels(image)
    except ImageError as error:
        raise UsageError(f"{error}; --image takes one grey TIFF") from error
    missing = [(0, max(0, wanted - had)) for wanted, had in zip((height, width), pixels.shape, strict=True)]
    whole: NDArray[np.generic] = np.pad(pixels, missing, mode="symmetric")[:height, :width]
    return np.ascontiguousarray(whole.astype(np.uint16))


def write_encodings(pixels: Pixels, folder: Path) -> dict[str, Path]:
    """Write a field as a TIFF of each of ENCODINGS; return their paths by the encoding's name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.tif" for name in ENCODINGS}
    for name, path in paths.items():
        tifffile.imwrite(path, pixels, compression=ENCODINGS[name])
    return paths


def names(number: int, fields: int = 1) -> Iterator[str]:
    """Yield so many file names of a 384-well plate with `fields` a well, in the layout `sesmo`."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for k in range(number):
        place, field_number = divmod(k, fields)
        well = well_name(1 + place % 384 // 24, 1 + place % 24)
        site = Site("BENCH", well, 1 + field_number, 1 + place // 384, "Phase")
        yield image_name("sesmo", site, moment).name


def link(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the disk has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
