"""The transfer manifest: what a copying program promises of the files it has copied.

`transfer_manifest.jsonl` is only ever appended to: one JSON object a line, written once that file is complete:

    {"file": "TimePoint_1/plate_A01_s1.TIF", "size": 2097460, "sha256": "9f86d0…"}

`sha256` may be left out; `name` or `path` may stand for `file`. The name counts from the manifest's own folder, with
`/` or `\\`. A later line for a file replaces the earlier one. The manifest lies in the file's folder or above it; the
nearest that names the file counts. Nothing needs to wake those who wait for a line: an image that is not there yet is
tried again after a while anyway, and each try reads what has been appended meanwhile.
"""

import hashlib
import json
import logging
import os
import re
import stat
import sys
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import BinaryIO, NamedTuple

from sesmo_live.errors import IncompleteImageError

MANIFEST_NAME = "transfer_manifest.jsonl"
"""The manifest's file name."""
MAX_LINE = 64 * 1024
"""Longest line, in bytes; a longer one is passed over."""
MAX_SIZE = 2**63
"""Sizes from here on are no sizes."""
MEMORY_BYTES = 100_000_000
"""So much is remembered of all manifests together (some 300 000 files); of one that says more, the latest."""
CHECKED_FILES = 30_000
"""So many files are remembered whose SHA-256 agreed."""
MAX_WARNINGS = 20
"""So many bad lines of a manifest are logged."""
BLOCK = 1 << 20
"""Bytes read at a time."""

_log = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class _Promise(NamedTuple):
    """What a line says of a file."""

    size: int
    sha256: bytes


@dataclass(slots=True)
class _Manifest:
    """A manifest as far as it was read: `offset` is where the next line begins, or goes on where it is `overlong`."""

    path: str
    stamp: tuple[int, int, int, int] = (0, 0, 0, 0)
    offset: int = 0
    overlong: bool = False
    line: int = 0
    warnings: int = 0
    cost: int = 1000
    """Bytes of memory, roughly."""
    promises: dict[str, _Promise] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def promise(self, name: str, status: os.stat_result) -> tuple[_Promise | None, bool]:
        """Return what the manifest says of a file of that name, and whether something had been appended."""
        stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        with self.lock:
            changed = stamp != self.stamp
            if changed:
                if stamp[:2] != self.stamp[:2] or status.st_size < self.offset:  # another file, or written anew
                    self.offset, self.overlong, self.line, self.warnings, self.cost = 0, False, 0, 0, 1000
                    self.promises.clear()
                with open(self.path, "rb") as handle:  # noqa: PTH123 as a string: it is one of many thousand calls
                    self._read(handle)
                self.stamp = stamp
            return self.promises.get(name), changed

    def _read(self, handle: BinaryIO) -> None:
        """Read the lines from `offset` on; one without its end yet is left for the next time."""
        handle.seek(self.offset)
        rest = b""
        while block := handle.read(BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                self.offset += len(line) + 1
                self._take(line)
            if len(rest) > MAX_LINE:
                self.offset, self.overlong, rest = self.offset + len(rest), True, b""

    def _take(self, line: bytes) -> None:
        """Enter what one line says."""
        self.line += 1
        if self.overlong or len(line) > MAX_LINE:
            self.overlong = False
            self._warn(f"it is longer than {MAX_LINE} bytes")
        elif line.strip():
            try:
                name, promise = _parse(line)
            except (ValueError, RecursionError) as error:
                self._warn(str(error))
            else:
                self._enter(name, promise)

    def _enter(self, name: str, promise: _Promise) -> None:
        """Remember a promise as the latest one, and forget the oldest where they become too many."""
        if self.promises.pop(name, None) is None:
            self.cost += _cost(name)
        self.promises[name] = promise
        while self.cost > MEMORY_BYTES:
            oldest = next(iter(self.promises))
            del self.promises[oldest]
            self.cost -= _cost(oldest)

    def _warn(self, why: str) -> None:
        self.warnings += 1
        if self.warnings <= MAX_WARNINGS:
            more = "; no more of its lines are reported" if self.warnings == MAX_WARNINGS else ""
            _log.warning("line %d of %s is passed over: %s%s", self.line, self.path, why, more)


class _Shelf:
    """The manifests and checked files that were used last; many threads ask at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._manifests: OrderedDict[str, _Manifest] = OrderedDict()
        self._checked: OrderedDict[tuple[str, int, int, bytes], None] = OrderedDict()

    def manifest(self, path: str) -> _Manifest:
        """Return the manifest at `path`."""
        with self._lock:
            manifest = self._manifests.setdefault(path, _Manifest(path))
            self._manifests.move_to_end(path)
            return manifest

    def trim(self) -> None:
        """Forget the manifests used longest ago where all together remember too much."""
        with self._lock:
            cost = sum(manifest.cost for manifest in self._manifests.values())
            while cost > MEMORY_BYTES and len(self._manifests) > 1:
                cost -= self._manifests.popitem(last=False)[1].cost

    def is_checked(self, key: tuple[str, int, int, bytes]) -> bool:
        """Say whether a file with that path, size, time and SHA-256 was found to agree."""
        with self._lock:
            return key in self._checked

    def checked(self, key: tuple[str, int, int, bytes]) -> None:
        """Remember that a file agreed; one that did not is hashed again, for its time may be too coarse to tell."""
        with self._lock:
            self._checked[key] = None
            if len(self._checked) > CHECKED_FILES:
                self._checked.popitem(last=False)


_shelf = _Shelf()


def check_manifest(root: Path, path: Path, *, hashing: bool = True) -> bool:
    """Say whether a manifest between `path` and the watched folder `root` vouches for the file at `path`.

    False: no manifest speaks of it. True: it has the promised size, and with `hashing` the promised SHA-256 where one
    is given. Raises IncompleteImageError when it has another size or SHA-256, naming both, and OSError when the file
    or a manifest cannot be read. Many threads may call it; what is appended to a manifest is read once.
    """
    found = _promise(root, path)
    if found is None:
        return False
    manifest, promise = found
    status = path.stat()
    if status.st_size != promise.size:
        raise IncompleteImageError(
            f"{path} has {status.st_size} bytes and {manifest} promises {promise.size}; it is read again when it has "
            "changed, else copy it anew"
        )
    if hashing and promise.sha256:
        _check_hash(path, status, promise.sha256, manifest)
    return True


def _promise(root: Path, path: Path) -> tuple[str, _Promise] | None:
    """Return the nearest manifest that speaks of `path`, and what it says."""
    parts = path.relative_to(root).parts if path.is_relative_to(root) else ()
    if ".." in parts:
        return None
    for depth in range(len(parts) - 1, -1, -1):
        file = os.path.join(root, *parts[:depth], MANIFEST_NAME)  # noqa: PTH118 as in _Manifest.promise
        try:
            status = os.stat(file)  # noqa: PTH116
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
                continue
            promise, changed = _shelf.manifest(file).promise(_key(parts[depth:]), status)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if changed:
            _shelf.trim()
        if promise is not None:
            return file, promise
    return None


def _check_hash(path: Path, status: os.stat_result, wanted: bytes, manifest: str) -> None:
    key = (str(path), status.st_size, status.st_mtime_ns, wanted)
    if _shelf.is_checked(key):
        return
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").digest()
    now = path.stat()
    if (now.st_size, now.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
        raise IncompleteImageError(f"{path} changed while it was compared with {manifest}; it is read again")
    if found != wanted:
        raise IncompleteImageError(
            f"{path} has the SHA-256 {found.hex()} and {manifest} promises {wanted.hex()}; it is read again when it "
            "has changed, else copy it anew"
        )
    _shelf.checked(key)


def _parse(line: bytes) -> tuple[str, _Promise]:
    """Return the file that a line names and what it promises; raise ValueError saying what is wrong with it."""
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    name = next((record[key] for key in ("file", "name", "path") if key in record), None)
    size, sha256 = record.get("size"), record.get("sha256") or ""
    if not isinstance(name, str) or not name.strip():
        raise ValueError("it names no file")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < MAX_SIZE:
        raise ValueError("its size is not a number of bytes")
    if not isinstance(sha256, str) or (sha256 and not _SHA256.fullmatch(sha256)):
        raise ValueError("its sha256 is not 64 hexadecimal digits")
    return _key(_inside(name)), _Promise(size, bytes.fromhex(sha256))


def _inside(name: str) -> tuple[str, ...]:
    """Return the parts of a relative name; raise ValueError if it leads out of the manifest's folder."""
    written = PureWindowsPath(name)  # reads both separators, and knows drives
    if written.anchor or ".." in written.parts or "\0" in name:
        raise ValueError(f"{name[:200]!r} lies outside its folder")
    if not written.parts:
        raise ValueError("it names no file")
    return written.parts


def _key(parts: Iterable[str]) -> str:
    """Return a name as names are compared: one spelling of accents, and of letters where the system knows no case."""
    return os.path.normcase(unicodedata.normalize("NFC", "/".join(parts)))


def _cost(name: str) -> int:
    """Return roughly how many bytes of memory a promise takes."""
    return sys.getsizeof(name) + 250
