"""Is a TIFF all there? A walk along its directories with plain reads, before any decoder sees the file.

TIFF 6.0 and BigTIFF: https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf, https://www.awaresystems.be/imaging/tiff/bigtiff.html
"""

import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sesmo_live.errors import ImageError, IncompleteImageError

MAX_BYTES = 512 * 2**20
"""Largest decoded page, in bytes; a larger one is refused before decoding."""
EXPANSION = (64 * 2**20, 250)
"""A page above so many bytes may unpack to so many times its size: images do to 3 times, black ones to 1000."""
MAX_PAGES = 2**14
"""Most directories in one file, thumbnails included, and most images behind one; as many are walked in about 1 s."""
MAX_PIECES = 2**18
"""Most strips or tiles of one page."""
MAX_TEXT = 16 * 2**20
"""Longest description, in bytes."""
MAX_TAGS = 4096
"""Most tags in one directory."""

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_UIC2 = 33629
_IMAGEJ = re.compile(rb"ImageJ=[^\n]*\nimages=(\d{1,9})\n")
_TIFFFILE = re.compile(rb'\{"shape": \[([\d, ]{1,200})\]')


@dataclass(frozen=True, slots=True)
class Directory:
    """One image file directory (IFD) of a TIFF that is wholly in the file, its pixels included.

    `index` counts the chain from 0. `starts`, `sizes` and `ends` (int64 S) say where its strips or tiles lie, in bytes;
    an uncompressed tile ends (`ends`) where its last sample inside the image does, before the filling to its full size.
    `planes` > 1: ImageJ, MetaMorph and tifffile may put many images of `plane_bytes` behind one directory.
    `promised`: how many images its description announces. `reduced`: a thumbnail, pyramid level or mask.
    """

    index: int
    offset: int
    end: int
    compression: int
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    ends: NDArray[np.int64]
    plane_bytes: int
    planes: int
    promised: int
    reduced: bool


class _Tag(NamedTuple):
    kind: int
    number: int
    offset: int
    value: bytes


class _Tiff(NamedTuple):
    """An open TIFF: its handle, name, size in bytes, byte order and the sizes that BigTIFF doubles."""

    handle: BinaryIO
    name: str
    size: int
    order: str
    big: bool

    def read(self, offset: int, count: int, what: str) -> bytes:
        """Return `count` bytes from `offset`; raise IncompleteImageError if the file ends before."""
        self.reach(offset + count, what)
        self.handle.seek(offset)
        data = self.handle.read(count)
        if len(data) < count:
            raise IncompleteImageError(f"{self.name} became shorter while it was read; it is read again")
        return data

    def reach(self, end: int, what: str) -> None:
        """Raise IncompleteImageError unless the file has `end` bytes, which `what` needs."""
        if end > self.size:
            raise IncompleteImageError(
                f"{self.name} ends at byte {self.size} and {what} should reach to byte {end}; "
                "it is read again when it has grown, else copy it anew"
            )

    def word(self, data: bytes) -> int:
        """Return the offset or count that `data` holds."""
        return int(struct.unpack(self.order + ("Q" if self.big else "I"), data)[0])


def check_complete(path: Path, *, max_bytes: int = MAX_BYTES) -> int:
    """Return the number of pages of the TIFF at `path` when every one of them is wholly in the file.

    Thumbnails, masks and pyramid levels do not count; several images behind one directory count each.
    Raises IncompleteImageError when the file may still be growing (truncated, empty, strips outside) and ImageError
    when it never can be good (no TIFF, directories in a ring, a page above `max_bytes` once decoded).
    """
    pages = sum(directory.planes for directory in walk(path, max_bytes=max_bytes) if not directory.reduced)
    if pages == 0:
        raise ImageError(f"{path} holds thumbnails or masks only; give the folder of the full images")
    return pages


def walk(path: Path, *, max_bytes: int = MAX_BYTES) -> Iterator[Directory]:
    """Yield each directory of the TIFF at `path` once it is known to be whole, and raise where the file stops being so.

    Because the raise comes after the last good directory, the pages of a growing stack can be taken as they come.
    Pages that the file's own description promises and that are not there raise IncompleteImageError at the end.
    Raises as `check_complete` does.
    """
    with open_bytes(path) as handle:
        yield from _walk_open(handle, path, max_bytes)


@contextmanager
def open_bytes(path: Path, buffering: int = -1) -> Iterator[BinaryIO]:
    """Open `path` for bytes; an error of the system becomes IncompleteImageError, since it may well pass."""
    try:
        with path.open("rb", buffering) as handle:
            yield handle
    except OSError as error:
        raise IncompleteImageError(
            f"{path} cannot be read now ({error.strerror or error}); it is read again, else check the folder's rights"
        ) from error


def _walk_open(handle: BinaryIO, path: Path, max_bytes: int) -> Iterator[Directory]:
    tiff, offset = _header(handle, path)
    seen: set[int] = set()
    index = promised = found = spent = layered = 0
    while offset:
        directory, subs, following = _directory_at(tiff, offset, index, max_bytes)
        layers = [directory, *(_directory_at(tiff, sub, index, max_bytes)[0] for sub in subs if sub not in seen)]
        spent += sum(layer.end - layer.offset for layer in layers)
        layered += len(layers)
        if offset in seen or layered > MAX_PAGES or spent > tiff.size:
            raise ImageError(f"{path} has directories in a ring, upon each other or over {MAX_PAGES}; export it again")
        seen.update(layer.offset for layer in layers)
        if found >= promised:  # ImageJ says it anew in every directory of a stack
            promised = found + directory.promised
        found += directory.planes
        yield directory
        offset, index = following, index + 1
    if found < promised:
        raise IncompleteImageError(
            f"{path} holds {found} of the {promised} images that its description promises; it is read again when it "
            "has grown, else export it again"
        )


def _header(handle: BinaryIO, path: Path) -> tuple[_Tiff, int]:
    size = handle.seek(0, 2)
    handle.seek(0)
    data = handle.read(16)
    if not any(data[1:]):
        raise IncompleteImageError(f"{path} is empty so far; it is read again when it has grown, else copy it anew")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    version = struct.unpack(order + "H", data[2:4])[0] if order and len(data) >= 4 else 0
    big = version == 43
    if order is None or version not in (0, 42, 43) or (big and data[4:8].strip(b"\0") not in (b"\x08", b"")):
        raise ImageError(f"{path} is not a TIFF whatever its name says; export it as TIFF")
    tiff = _Tiff(handle, str(path), size, order, big)
    first = tiff.word(tiff.read(8 if big else 4, 8 if big else 4, "its header"))
    if first == 0 or version == 0:
        raise IncompleteImageError(f"{path} has no image yet; it is read again when it has grown, else copy it anew")
    return tiff, first


def _tags(tiff: _Tiff, offset: int) -> tuple[dict[int, _Tag], int, int]:
    """Return the tags of the directory at `offset`, the byte after it and where the next one is (0: there is none)."""
    width, entry = (8, 20) if tiff.big else (2, 12)
    head = tiff.read(offset, width, "a directory")
    count = struct.unpack(tiff.order + ("Q" if tiff.big else "H"), head)[0]
    if count == 0:
        raise _unwritten(tiff, f"the directory at byte {offset}")
    if count > MAX_TAGS:
        raise ImageError(f"{tiff.name} has a directory of {count} tags (at most {MAX_TAGS}); export it again")
    word = 8 if tiff.big else 4
    data = tiff.read(offset + width, count * entry + word, "a directory")
    tags: dict[int, _Tag] = {}
    layout = tiff.order + ("HHQ8s" if tiff.big else "HHI4s")
    for place, (code, kind, number, value) in enumerate(struct.iter_unpack(layout, data[:-word])):
        if kind == 0:
            raise _unwritten(tiff, f"tag {place + 1} of the directory at byte {offset}")
        where, length = offset + width + (place + 1) * entry - word, _TYPE_BYTES.get(kind, 0) * number
        if length > word:
            where = tiff.word(value)
            tiff.reach(where + length, f"the value of its tag {code}")
        tags.setdefault(code, _Tag(kind, number, where, value))
    return tags, offset + width + len(data), tiff.word(data[-word:])


def _numbers(tiff: _Tiff, tag: _Tag | None, most: int) -> NDArray[np.int64]:
    """Return the whole numbers of `tag` (none if there is no tag); raise ImageError if they are not such."""
    if tag is None:
        return np.zeros(0, np.int64)
    if tag.kind not in _INTEGERS or tag.number > most:
        raise ImageError(f"{tiff.name} has a damaged tag ({tag.number} values of type {tag.kind}); export it again")
    length = tag.number * _TYPE_BYTES[tag.kind]
    data = tag.value[:length] if length <= len(tag.value) else tiff.read(tag.offset, length, "a tag")
    numbers = np.frombuffer(data, tiff.order + _INTEGERS[tag.kind]).astype(np.int64)
    if (numbers < 0).any():
        raise ImageError(f"{tiff.name} has a damaged tag (a value of 2⁶³ or more); export it again")
    return numbers


def _number(tiff: _Tiff, tags: dict[int, _Tag], code: int, default: int) -> int:
    """Return the largest value of the tag `code`, or `default` where the directory has none."""
    tag = tags.get(code)
    if tag is None:
        return default
    if tag.number == 1 and tag.kind in _INTEGERS:
        length = _TYPE_BYTES[tag.kind]
        return int.from_bytes(tag.value[:length], "little" if tiff.order == "<" else "big")
    numbers = _numbers(tiff, tag, MAX_TAGS)
    return int(numbers.max()) if numbers.size else default


def _directory_at(tiff: _Tiff, offset: int, index: int, max_bytes: int) -> tuple[Directory, list[int], int]:
    """Return the directory at `offset`, the offsets of its sub-directories and of its follower (0: there is none)."""
    tags, end, following = _tags(tiff, offset)
    subs = list(dict.fromkeys(_numbers(tiff, tags.get(330), MAX_TAGS).tolist()))
    if 0 in subs:
        raise _unwritten(tiff, "the place of a pyramid level")
    alone = index == 0 and following == 0
    return _directory(tiff, tags, (index, offset, end), max_bytes, alone=alone), subs, following


def _directory(
    tiff: _Tiff, tags: dict[int, _Tag], place: tuple[int, int, int], max_bytes: int, *, alone: bool
) -> Directory:
    """Return the directory of `tags` at `place` (index, offset, end) after a check that its pixels are in the file."""
    expected, padding, pixels = _expected_sizes(tiff, tags, max_bytes)
    codes = (324, 325) if 324 in tags else (273, 279)
    if any(code not in tags or tags[code].number != expected.size for code in codes):
        raise ImageError(f"{tiff.name} does not list the {expected.size} strips that its size needs; export it again")
    starts, sizes = (_numbers(tiff, tags[code], expected.size) for code in codes)
    compression = _number(tiff, tags, 259, 1)
    if min(starts.min(), sizes.min(), compression, _number(tiff, tags, 317, 1)) <= 0:
        raise _unwritten(tiff, f"the pixels of image {place[0] + 1}")
    decoded, packed = int(expected.sum()), int(sizes.sum())
    if compression != 1 and decoded > max(EXPANSION[0], packed * EXPANSION[1]):
        raise ImageError(
            f"{tiff.name} unpacks from {packed} to {decoded} bytes, as no image of a specimen does; export it again"
        )
    if compression == 1:
        if (sizes < expected).any():
            raise ImageError(f"{tiff.name} has strips shorter than their rows; export it again")
        sizes = expected
    tiff.reach(int(max(starts.max(), sizes.max())), f"image {place[0] + 1}")  # first, lest the sum runs over
    tiff.reach(int((starts + sizes).max()), f"image {place[0] + 1}")
    promised, behind = _promised(tiff, tags, pixels)
    planes = 1
    if (alone or behind) and compression == 1 and 324 not in tags:
        planes = _planes(tiff, promised, starts, sizes)
    reduced = bool(_number(tiff, tags, 254, 0) & 0b101) or _number(tiff, tags, 255, 1) == 2
    ends = starts + sizes - (padding if compression == 1 else 0)
    return Directory(*place, compression, starts, sizes, ends, int(expected.sum()), planes, promised, reduced)


def _expected_sizes(
    tiff: _Tiff, tags: dict[int, _Tag], max_bytes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return the uncompressed bytes of each strip or tile, the filling at its end, and the samples of the page."""
    width, height = _number(tiff, tags, 256, 0), _number(tiff, tags, 257, 0)
    depth, samples = _number(tiff, tags, 32997, 1), _number(tiff, tags, 277, 1)
    bits = _number(tiff, tags, 258, 1)
    tiled = 324 in tags or 322 in tags
    columns = _number(tiff, tags, 322, 0) if tiled else width
    rows = _number(tiff, tags, 323, 0) if tiled else min(_number(tiff, tags, 278, height) or height, height)
    deep = _number(tiff, tags, 32998, 1) if tiled else 1
    if min(width, height, depth, samples, bits, columns, rows, deep) < 1:
        raise _unwritten(tiff, "the size of an image")
    separate = samples if _number(tiff, tags, 284, 1) == 2 else 1
    together, across, down = samples // separate, -(-width // columns), -(-height // rows)
    pieces = across * down * -(-depth // deep) * separate
    decoded = max(width * height * depth * samples, columns * rows * deep * together)
    if decoded * -(-bits // 8) > max_bytes:
        raise ImageError(
            f"{tiff.name} has an image of {width} × {height} × {depth} pixels of {samples} × {bits} bits, above the "
            f"limit of {max_bytes} bytes; split it into fields"
        )
    if pieces > MAX_PIECES:
        raise ImageError(f"{tiff.name} has an image in {pieces} strips (at most {MAX_PIECES}); export it again")
    row_bytes = -(-columns * together * bits // 8)
    expected = np.full(pieces, row_bytes * rows * deep, np.int64)
    padding = np.zeros((pieces // (down * across), down, across), np.int64)
    padding[:, -1] += (down * rows - height) * row_bytes
    padding[..., -1] += (across * columns - width) * together * bits // 8
    if tiled:
        return expected, padding.ravel(), width * height * depth * samples
    return expected - padding.ravel(), np.zeros(pieces, np.int64), width * height * depth * samples


def _promised(tiff: _Tiff, tags: dict[int, _Tag], pixels: int) -> tuple[int, bool]:
    """Return how many images the directory announces, and whether it says that they all lie behind it alone."""
    if _UIC2 in tags:
        return max(1, tags[_UIC2].number), True
    tag = tags.get(270)
    if tag is None or tag.kind not in (1, 2, 7):
        return 1, False
    if tag.number > MAX_TEXT:
        raise ImageError(f"{tiff.name} has a description of {tag.number} bytes (at most {MAX_TEXT}); export it again")
    text = tiff.read(tag.offset, min(tag.number, 1024), "its description")
    if match := _IMAGEJ.match(text):
        return max(1, int(match[1])), False
    if match := _TIFFFILE.match(text):
        samples = math.prod(map(int, re.findall(rb"\d+", match[1])))
        return max(1, samples // pixels), b'"truncated": true' in text
    return 1, False


def _planes(tiff: _Tiff, promised: int, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> int:
    """Return the number of images that lie one after the other behind one directory."""
    if promised == 1 or (starts[1:] != starts[:-1] + sizes[:-1]).any():
        return 1
    if promised > MAX_PAGES:
        raise ImageError(f"{tiff.name} promises {promised} images (at most {MAX_PAGES}); export it again")
    tiff.reach(int(starts[0]) + promised * int(sizes.sum()), f"the last of its {promised} images")
    return promised


def _unwritten(tiff: _Tiff, what: str) -> IncompleteImageError:
    return IncompleteImageError(
        f"{tiff.name} has zeros where {what} should be; it is read again when it has grown, else copy it anew"
    )
