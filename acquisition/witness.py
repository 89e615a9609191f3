"""Which file killed us? Each thread notes in a file what it is reading; the next start reads that apart.

A decoder that crashes, or an image that brings the system to kill the process, would otherwise do so again at every
start. The note survives the death of the process (not of the computer, which no image causes), and costs microseconds.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

SLOT_BYTES = 8192
"""Room for the path that one thread is reading."""


class Witness:
    """Reads files through `apart`, a reader in another process, if they were being read when this program last died."""

    def __init__(self, note: Path | None, apart: Callable[..., Any]) -> None:
        """Take up the `note` that an earlier process left; without one nothing is noted and nothing suspected."""
        self._apart = apart
        self._note = None if note is None else note.open("r+b" if note.exists() else "w+b", buffering=0)
        data = b"" if self._note is None else self._note.read()
        self.suspects: dict[str, list[int]] = {}
        """Files that were being read when this program last died, and where that is noted."""
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._slots = -(-len(data) // SLOT_BYTES)
        for slot in range(self._slots):
            text = data[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES].rstrip(b"\0").decode("utf-8", "replace")
            if text:
                self.suspects.setdefault(text, []).append(slot)
            else:
                self._free.append(slot)

    def read(self, function: Callable[..., Any], path: Path, *arguments: Any, **options: Any) -> Any:
        """Return `function(path, ...)`, called in another process if the file is suspect."""
        if str(path) in self.suspects:
            try:
                return self._apart(function, path, *arguments, **options)
            finally:
                self._clear(str(path))
        with self._noted(path):
            return function(path, *arguments, **options)

    @contextmanager
    def _noted(self, path: Path) -> Iterator[None]:
        if self._note is None:
            yield
            return
        with self._lock:
            slot = self._free.pop() if self._free else self._slots
            self._slots = max(self._slots, slot + 1)
            self._write(slot, str(path).encode("utf-8", "replace"))
        try:
            yield
        finally:
            with self._lock:
                self._write(slot, b"")
                self._free.append(slot)

    def _clear(self, path: str) -> None:
        """Forget that a file was noted: it was read apart, and is suspect no more than any other at the next start."""
        with self._lock:
            for slot in self.suspects[path]:
                self._write(slot, b"")
            self._free += self.suspects[path]
            self.suspects[path] = []

    def _write(self, slot: int, text: bytes) -> None:
        if self._note is not None:
            self._note.seek(slot * SLOT_BYTES)
            self._note.write(text[:SLOT_BYTES].ljust(SLOT_BYTES, b"\0"))

    def close(self) -> None:
        """End well: nothing is suspect any more."""
        if self._note is not None:
            self._note.close()
            os.unlink(self._note.name)  # noqa: PTH108 the name is what the file knows of itself
            self._note = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
