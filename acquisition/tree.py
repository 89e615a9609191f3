"""Listing the images of a folder tree, cheaply enough for 100 000 of them every few seconds."""

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from acquisition.ndtiff import INDEX_NAME, is_ndtiff

TIFF_SUFFIXES = frozenset((".tif", ".tiff"))
"""Suffixes, in lower case, of the files that are read as images."""
OTHER_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".nd2", ".czi", ".lif", ".lsm", ".oib", ".oif", ".oir", ".vsi", ".stk", ".ims")
)
"""Suffixes of other images; they are reported too, so that the service can say why it skips them."""
UNFINISHED_SUFFIXES = frozenset((".tmp", ".part", ".partial", ".crdownload", ".filepart"))
"""Suffixes of files and folders that somebody is still writing under a passing name."""
_IMAGE_SUFFIXES = TIFF_SUFFIXES | OTHER_SUFFIXES
AWAY = frozenset(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ENODEV", "ENXIO", "EHOSTDOWN", "EHOSTUNREACH")
    if hasattr(errno, name)
)
"""What a share or disk that went away answers; a file that answers so is not gone."""
LATEST_NS = 2**63 - 1
"""The latest time that a database can keep."""


@dataclass(frozen=True, slots=True)
class SeenFile:
    """An image file, or an NDTiff folder with the size and time of its index; `size` in bytes."""

    path: Path
    size: int
    mtime_ns: int


class Entry(NamedTuple):
    """An image as the scan sees it, cheap enough for 100 000 of them; `ndtiff`: `path` is a folder."""

    path: str
    size: int
    mtime_ns: int
    ndtiff: bool = False

    def seen(self) -> SeenFile:
        """Return it as the service knows it."""
        return SeenFile(Path(self.path), self.size, self.mtime_ns)


class Found(NamedTuple):
    """What a scan found: images in no order, what could not be read and why, the root's device and inode."""

    images: list[Entry]
    unreadable: dict[str, str]
    place: tuple[int, int]
    folders: int


def time_ns(status: os.stat_result) -> int:
    """Return when a file was changed (ns); what odd file systems say beyond 64 bits is cut."""
    return max(-LATEST_NS, min(status.st_mtime_ns, LATEST_NS))


def list_tree(root: Path, known: Mapping[str, Entry] = MappingProxyType({})) -> Found:
    """Return the images under `root` and what could not be read; raise OSError if `root` is away, or went meanwhile.

    Images that are as they are `known` by path are returned as the same objects, so that a scan costs no memory.
    """
    images: list[Entry] = []
    unreadable: dict[str, str] = {}
    folders, links = [str(root)], list[str]()
    visited: set[tuple[int, int]] = set()
    place, away = _place(str(root)), None
    while folders or links:
        folder = folders.pop() if folders else links.pop()  # links last, so that a folder goes by its own name
        try:
            here = _place(folder)
            if here not in visited:
                visited.add(here)
                images += _list(folder, folders, links, unreadable, known)
        except OSError as error:
            if folder == str(root):
                raise
            if not isinstance(error, FileNotFoundError):
                unreadable[folder] = error.strerror or str(error)
            away = error if error.errno in AWAY else away
    if away and not images:  # the root itself may still be answered from a cache
        raise away
    if _place(str(root)) != place:  # what seemed to be missing was only not mounted any more, or not yet
        raise OSError(errno.ESTALE, "its file system changed during the scan")
    return Found(images, unreadable, place, len(visited))


def _place(folder: str) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116 strings keep a scan of 100 000 files short
    return status.st_dev, status.st_ino


def suffix_of(name: str) -> str:
    """Return what follows the last point, with it, in lower case; quicker than `splitext`."""
    return name[name.rfind(".") :].lower()


def is_passing(name: str) -> bool:
    """Say whether a name is hidden or one under which somebody is still writing: the scan leaves such out."""
    return name[0] in ".~" or suffix_of(name) in UNFINISHED_SUFFIXES


def _nameless(entry: os.DirEntry[str], unreadable: dict[str, str]) -> bool:
    """Say whether a name holds bytes that are no text, as on copies from old systems: no database can keep it."""
    if entry.name.isascii():
        return False
    try:
        entry.path.encode()
    except UnicodeEncodeError:
        unreadable[ascii(entry.path)] = "its name is no valid Unicode, rename it"
        return True
    return False


def _list(
    folder: str, folders: list[str], links: list[str], unreadable: dict[str, str], known: Mapping[str, Entry]
) -> list[Entry]:
    """Return the images of one folder; add its sub-folders to `folders`, or to `links` where they are links.

    Files whose share went away while they were looked at are entered in `unreadable`.
    """
    images: list[Entry] = []
    index: Entry | None = None
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            suffix = suffix_of(name)
            if is_passing(name) or _nameless(entry, unreadable):
                continue
            try:
                if suffix in _IMAGE_SUFFIXES or name == INDEX_NAME:
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        if name == INDEX_NAME:
                            index = Entry(folder, status.st_size, time_ns(status), ndtiff=True)
                        else:
                            image = Entry(entry.path, status.st_size, time_ns(status))
                            before = known.get(image.path)
                            images.append(before if before == image else image)
                        continue
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(entry.path)
            except OSError as error:  # it vanished after it was listed, or is a link to nowhere
                if error.errno in AWAY:
                    unreadable[entry.path] = error.strerror or str(error)
    if index is None:
        return images
    return [index] if is_ndtiff(Path(folder)) else []
