"""Makers of damaged TIFFs, and the whole inspection that each of them has to survive."""

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tifffile
from numpy.typing import NDArray

from acquisition.completeness import check_complete
from acquisition.tiff import companions_of, read_pages, read_pixels
from acquisition.zeros import check_zero_tail
from sesmo_live.errors import ImageError

Array = NDArray[Any]

KINDS: dict[str, dict[str, Any]] = {
    "raw": {},
    "raw strips": {"rowsperstrip": 7},
    "raw one strip a row": {"rowsperstrip": 1},
    "raw big endian": {"byteorder": ">"},
    "raw tiles": {"tile": (16, 16)},
    "LZW": {"compression": "lzw"},
    "LZW predictor strips": {"compression": "lzw", "predictor": True, "rowsperstrip": 9},
    "deflate": {"compression": "zlib"},
    "deflate tiles": {"compression": "zlib", "tile": (32, 16), "predictor": True},
    "zstd": {"compression": "zstd"},
    "zstd predictor strips": {"compression": "zstd", "predictor": True, "rowsperstrip": 9},
    "PackBits": {"compression": "packbits"},
    "BigTIFF": {"bigtiff": True},
    "BigTIFF LZW big endian": {"bigtiff": True, "compression": "lzw", "byteorder": ">"},
    "OME": {"ome": True},
    "OME deflate": {"ome": True, "compression": "zlib"},
    "ImageJ": {"imagej": True},
    "ImageJ behind one directory": {"imagej": True, "truncate": True},
    "a directory before each page": {"contiguous": False, "metadata": None},
    "a directory before each page, zstd": {"contiguous": False, "metadata": None, "compression": "zstd"},
}
"""How tifffile is asked to write; each kind as a single image and as a stack."""


@dataclass(frozen=True)
class Sample:
    """A whole file: what it is called, its bytes, and the images in it (N × height × width)."""

    name: str
    data: bytes
    images: Array


@cache
def pictures() -> Array:
    """Return uint16 5 × 33 × 40: grey blobs with noise, so that compression has something to do, and no zeros."""
    rng = np.random.default_rng(11)
    y, x = np.mgrid[:33, :40]
    smooth = 3000 + 900 * np.sin(x / 7) * np.cos(y / 5)
    noise = rng.normal(0, 1, (5, 33, 40)) * np.array([1, 30, 300, 30, 1])[:, None, None]
    images: Array = (smooth + noise).clip(1, 65_535).astype(np.uint16)
    return images


def write(path: Path, images: Array, options: dict[str, Any]) -> None:
    """Write `images` as single image or stack, page by page where the options ask for it."""
    options = dict(options)
    if options.pop("contiguous", True):
        tifffile.imwrite(path, images if len(images) > 1 else images[0], photometric="minisblack", **options)
        return
    with tifffile.TiffWriter(path, bigtiff=options.pop("bigtiff", False)) as writer:
        for image in images:
            writer.write(image, contiguous=False, **options)


def samples(folder: Path) -> list[Sample]:
    """Return a whole file of each kind, as single image and as stack of five."""
    found = []
    for kind, options in KINDS.items():
        for images in (pictures()[1:2], pictures()):
            write(folder / "whole.tif", images, options)
            found.append(Sample(f"{kind}, {len(images)} pages", (folder / "whole.tif").read_bytes(), images))
    return found


def inspect(path: Path) -> list[Array]:
    """Return the pixels of every page after all that the service asks of a file; raise ImageError as it does."""
    pages = check_complete(path)
    check_zero_tail(path)
    infos = read_pages(path)
    companions_of(path)
    if len(infos) != pages:
        raise AssertionError(f"{path}: {len(infos)} infos of {pages} pages")
    return [read_pixels(path, info.page) for info in infos]


def verdict(path: Path, images: Array) -> str:
    """Return what became of a file: the error that refused it, `same`, or `wrong`."""
    try:
        pixels = inspect(path)
    except ImageError as error:
        return type(error).__name__
    return "same" if len(pixels) == len(images) and all(map(np.array_equal, pixels, images)) else "wrong"


def truncations(sample: Sample, count: int, rng: np.random.Generator) -> Iterator[bytes]:
    """Yield `count` files cut short, a third of them within the last 64 bytes."""
    for number in range(count):
        left = int(rng.integers(1, 65)) if number % 3 == 0 else int(rng.integers(1, len(sample.data) + 1))
        yield sample.data[: max(0, len(sample.data) - left)]


def zero_tails(sample: Sample, count: int, rng: np.random.Generator) -> Iterator[bytes]:
    """Yield `count` files whose last 8 bytes or more are zeros, a third of them less than 72, a third whole blocks."""
    size = len(sample.data)
    for number in range(count):
        room = int(rng.integers(8, 72)) if number % 3 == 0 else int(rng.integers(8, size))
        if number % 3 == 1:
            room = size - (size - room) // 512 * 512
        yield sample.data[: size - room] + bytes(room)


def mutations(sample: Sample, count: int, rng: np.random.Generator) -> Iterator[bytes]:
    """Yield `count` files with random bytes, flipped bits, or tags whose number, kind or value was changed."""
    entries = list(tag_entries(sample.data))
    for number in range(count):
        data = bytearray(sample.data)
        for _ in range(int(rng.integers(1, 6))):
            if number % 3 == 0:
                data[int(rng.integers(len(data)))] = int(rng.integers(256))
            elif number % 3 == 1:
                data[int(rng.integers(min(len(data), 600)))] ^= 1 << int(rng.integers(8))
            else:
                _edit_tag(data, entries[int(rng.integers(len(entries)))], rng)
        yield bytes(data)


def tag_entries(data: bytes) -> Iterator[tuple[int, str, bool]]:
    """Yield place, byte order and whether it is BigTIFF of every entry of every directory of a whole file."""
    order, big = ("<" if data[:2] == b"II" else ">"), data[2:4] in (b"+\0", b"\0+")
    word, width, entry = ("Q", 8, 20) if big else ("I", 2, 12)
    (offset,) = struct.unpack_from(order + word, data, 8 if big else 4)
    while offset:
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, offset)
        yield from ((offset + width + entry * number, order, big) for number in range(count))
        (offset,) = struct.unpack_from(order + word, data, offset + width + entry * count)


def _edit_tag(data: bytearray, entry: tuple[int, str, bool], rng: np.random.Generator) -> None:
    place, order, big = entry
    word = "Q" if big else "I"
    values = (0, 1, 2, 7, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1, int(rng.integers(2**32)), len(data), 8)
    value = int(values[int(rng.integers(len(values)))])
    what = int(rng.integers(4))
    if what == 0:
        struct.pack_into(order + "H", data, place, int(rng.choice([value % 65_536, 256, 257, 259, 273, 279, 322, 330])))
    elif what == 1:
        struct.pack_into(order + "H", data, place + 2, int(rng.integers(0, 20)))
    elif what == 2:
        struct.pack_into(order + word, data, place + 4, value)
    else:
        struct.pack_into(order + word, data, place + (12 if big else 8), value)


@dataclass
class Tally:
    """What became of many files; `slowest_s` and `peak_mib` are of the process that inspected them."""

    verdicts: dict[str, int]
    wrong: list[str]
    slowest_s: float = 0.0
    peak_mib: float = 0.0


def inspect_mutations(folder: Path, count: int, seed: int) -> Tally:
    """Inspect `count` mutated files; run it in a process of its own, whose memory is then theirs."""
    rng, tally = np.random.default_rng(seed), Tally({}, [])
    files = samples(folder)
    path = folder / "mutated.tif"
    for number, sample in enumerate(files):
        share = count // len(files) + (number < count % len(files))
        for data in mutations(sample, share, rng):
            path.write_bytes(data)
            started = time.monotonic()
            try:
                inspect(path)
                answer = "pixels"
            except ImageError as error:
                answer = type(error).__name__
            except Exception as error:  # noqa: BLE001 the finding of this test
                answer = f"{type(error).__name__}: {error}"
                tally.wrong.append(f"{sample.name}: {answer}")
            tally.slowest_s = max(tally.slowest_s, time.monotonic() - started)
            tally.verdicts[answer] = tally.verdicts.get(answer, 0) + 1
    tally.peak_mib = peak_mib()
    return tally


def peak_mib() -> float:
    """Return the most memory that this process has held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage on Linux also counts what the parent held when this process was begun
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:  # Windows
        return float(getattr(psutil.Process().memory_info(), "peak_wset", 0)) / 2**20
    unit = 2**20 if psutil.MACOS else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
