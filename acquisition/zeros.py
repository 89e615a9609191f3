"""Zeros where pixels may still come: room that a copy has set aside and not yet filled, or a hole that it left."""

import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from acquisition.completeness import Directory, open_bytes, walk
from sesmo_live.errors import ZeroTailError

ZERO_TAIL = 8
"""So many zero bytes at an end may be room that a copy has set aside and not yet filled."""
ZERO_TAILS = {5: 2, 34926: 3, 50000: 3}
"""The same by TIFF compression: LZW ends in a mark that has a one in its last two bytes, zstd in 0 or 1 zero (seen)."""
BLOCK = 512
"""Smallest room, in bytes, that a file system sets aside; a hole amid raw pixels is made of whole ones."""


def zero_tail(path: Path) -> bool:
    """Say whether the whole TIFF at `path` has zeros where a copy may not have filled it yet; `check_zero_tail` why."""
    return bool(_seen(path))


def check_zero_tail(path: Path) -> None:
    """Raise ZeroTailError when the whole TIFF at `path` has zeros where a copy may not have filled it yet.

    That is so when the file, the last strip or tile of any page, or any compressed strip ends in 8 or more zero bytes
    (LZW 2, zstd 3), or when an uncompressed strip ends in a block of 512 zeros amid the page. Deflated strips whose
    checksum agrees are vouched for, and zeros that end a directory are its own. Black images end in zeros too.
    Raises as `check_complete` does besides.
    """
    what = _seen(path)
    if what:
        raise ZeroTailError(
            f"{path} {what}, as a file does whose copy is not finished; vouch for it by a transfer_manifest.jsonl or "
            'arrival = "rename", export it compressed, or set black_edges = true if its images do end in black'
        )


def pages_with_zeros(path: Path, directories: list[Directory]) -> set[int]:
    """Return the places in `directories`, all wholly in the file at `path`, whose pixels end in zeros."""
    with open_bytes(path, buffering=0) as handle:
        return {place for place, directory in enumerate(directories) if _hole(handle, directory) is not None}


def _seen(path: Path) -> str:
    directories = list(walk(path))
    with open_bytes(path, buffering=0) as handle:
        for directory in directories:
            end = _hole(handle, directory)
            if end is not None:
                return f"has zeros where the pixels of image {directory.index + 1} end (byte {end})"
        size = handle.seek(0, 2)
        ours = {directory.end for directory in directories} | {_furthest(directory) for directory in directories}
        return "ends in zeros" if size not in ours and _is_zero(handle, size, ZERO_TAIL) else ""


def _hole(handle: BinaryIO, directory: Directory) -> int | None:
    """Return the byte after the first strip, tile or image of `directory` that ends in zeros, or None."""
    ends, widths = _ends(directory)
    last = int(np.argmax(ends)) if directory.planes == 1 else -1
    for piece, (end, zeros) in enumerate(zip(ends.tolist(), widths.tolist(), strict=True)):
        if not _is_zero(handle, end, zeros):
            continue
        amid = directory.compression == 1 and directory.planes == 1 and piece != last
        if (amid and not _is_zero_block(handle, end)) or _vouched(handle, directory, piece):
            continue
        return int(end)
    return None


def _ends(directory: Directory) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the strips, tiles or images behind `directory` end, and how many zeros there are too many."""
    if directory.planes > 1:
        ends = directory.starts[0] + directory.plane_bytes * np.arange(1, directory.planes + 1)
        return ends, np.full(len(ends), min(ZERO_TAIL, directory.plane_bytes))
    most = ZERO_TAILS.get(directory.compression, ZERO_TAIL)
    return directory.ends, np.minimum(most, directory.ends - directory.starts)


def _furthest(directory: Directory) -> int:
    if directory.planes > 1:
        return int(directory.starts[0]) + directory.planes * directory.plane_bytes
    return int((directory.starts + directory.sizes).max())


def _is_zero(handle: BinaryIO, end: int, count: int) -> bool:
    handle.seek(end - count)
    return not any(handle.read(count))


def _is_zero_block(handle: BinaryIO, end: int) -> bool:
    handle.seek((end - 1) // BLOCK * BLOCK)
    return not any(handle.read(BLOCK))


def _vouched(handle: BinaryIO, directory: Directory, piece: int) -> bool:
    """Say whether strip `piece` of `directory` is deflated and ends in a checksum that agrees."""
    if directory.compression not in (8, 32946):
        return False
    handle.seek(int(directory.starts[piece]))
    data, stream = handle.read(int(directory.sizes[piece])), zlib.decompressobj()
    try:
        while not stream.eof and data:
            stream.decompress(data, 2**20)
            data = stream.unconsumed_tail
    except zlib.error:
        return False
    return stream.eof
