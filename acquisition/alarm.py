"""Waking the scan of a folder when the file system reports a change there, and knowing when it no longer does."""

import errno
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.utils import BaseThread

from acquisition.tree import is_passing

RETRY_S = 60.0
"""Seconds between two attempts to get events again."""
JOIN_S = 2.0
"""Seconds that an observer has to end before it is left behind."""

_LIMITS = {
    errno.ENOSPC: "the limit of inotify watches is reached (raise fs.inotify.max_user_watches)",
    errno.EMFILE: "the limit of inotify instances is reached (raise fs.inotify.max_user_instances)",
}
_WAKING = [
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileClosedEvent,
    FileDeletedEvent,
    DirCreatedEvent,
    DirMovedEvent,
]


class _Bell(FileSystemEventHandler):
    """Rings at every event; which file it was is for the scan to see.

    Only files that get their last name later do not ring: the scan that they wake would keep the one from coming that
    their rename asks for.
    """

    def __init__(self, rung: threading.Event) -> None:
        self._rung = rung

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Ring, unless all files that the event names are passing ones."""
        names = [os.path.basename(os.fsdecode(path)) for path in (event.src_path, event.dest_path) if path]  # noqa: PTH119
        if event.is_directory or not all(map(is_passing, filter(None, names))):
            self._rung.set()


class Alarm:
    """Sets `rung` when something happens under `root`, as long as the file system tells; `silent` says why it does not.

    One thread makes, checks and closes it: the one that scans.
    """

    def __init__(self, root: Path, off: str = "") -> None:
        """Start listening, unless `off` says why not to (it is then what `silent` says)."""
        self.rung = threading.Event()
        self.silent = off
        self._root, self._wanted = root, not off
        self._observer: BaseObserver | None = None
        self._place: tuple[int, int] | None = None
        self._folders = 0
        self._retry_at = 0.0
        if self._wanted:
            self._start()

    def check(self, place: tuple[int, int], folders: int) -> None:
        """Notice what became of the observer, and try once a minute to get events again where there are none.

        `place` (device, inode) tells the root from another that took its name, which the observer does not watch;
        `folders` are below it, each of which needs a watch on Linux.
        """
        if not self._wanted:
            return
        moved = self._place not in (None, place)
        grown, self._place, self._folders = folders != self._folders, place, folders
        if moved or (self.silent and time.monotonic() >= self._retry_at):
            self._start()
        elif self._observer is not None and (dead := _dead_thread(self._observer)):
            self._fall_silent(f"the observer died (its {dead} ended)")
            self.close()
        elif self._observer is not None and grown and not self.silent:
            self._probe()

    def restart(self) -> None:
        """Listen anew: what happened to the root may have taken the observer's watches away without a word."""
        if self._wanted:
            self._start()

    def close(self) -> None:
        """End the observer and its threads."""
        observer, self._observer = self._observer, None
        if observer is not None:
            _end(observer)

    def _start(self) -> None:
        """Listen with a new observer."""
        self.close()
        try:
            self._observer = _listen(self._root, _Bell(self.rung), recursive=True)
        except OSError as error:
            self._fall_silent(_LIMITS.get(error.errno or 0, f"no events can be had ({error.strerror or error})"))
        else:
            self.silent = ""
            self._probe()

    def _probe(self) -> None:
        """Find out whether all folders can be watched: watchdog passes over those that the limit leaves out.

        Where one more watch cannot be had, the last folders have probably got none. What is watched stays so.
        """
        if sys.platform != "linux":
            return
        try:
            _end(_listen(self._root, FileSystemEventHandler(), recursive=False))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._fall_silent(_LIMITS[errno.ENOSPC])

    def _fall_silent(self, why: str) -> None:
        self.silent = why
        self._retry_at = time.monotonic() + RETRY_S


@contextmanager
def alarm(root: Path, off: str = "") -> Iterator[Alarm]:
    """Give an `Alarm` and close it at the end."""
    bell = Alarm(root, off)
    try:
        yield bell
    finally:
        bell.close()


def _listen(root: Path, handler: FileSystemEventHandler, *, recursive: bool) -> BaseObserver:
    """Return an observer at work; raise OSError, with none of its threads left, where it gets no watch."""
    # watchdog warns when two of its threads meet at a new folder; it does no harm, and must not reach the user
    warnings.filterwarnings("ignore", "Callback with id .* already exists", RuntimeWarning)
    observer = Observer()
    try:
        observer.schedule(handler, str(root), recursive=recursive, event_filter=_WAKING)
        observer.start()
    except OSError:
        _end(observer)
        raise
    return observer


def _end(observer: BaseObserver) -> None:
    """End an observer; one whose threads wait for a lock that a dead one holds is left behind without its watches."""

    def end() -> None:
        with suppress(OSError):  # its watches may have gone with the file system
            observer.stop()
        if observer.is_alive():
            observer.join()

    ender = threading.Thread(target=end, name="end of watching", daemon=True)
    ender.start()
    ender.join(JOIN_S)
    reader = _reader(observer)
    if ender.is_alive() and reader is not None:
        with suppress(OSError):
            reader.stop()


def _reader(observer: BaseObserver) -> BaseThread | None:
    """Return the thread on which watchdog 7 reads inotify: only this private name gives it; there may be none."""
    reader = getattr(observer, "_inotify_fd", None)
    return reader if isinstance(reader, BaseThread) else None


def _dead_thread(observer: BaseObserver) -> str:
    """Return the kind of the first thread of an observer that has ended, empty if they all live."""
    threads = [observer, *observer.emitters, _reader(observer)]
    return next((type(thread).__name__ for thread in threads if thread is not None and not thread.is_alive()), "")
