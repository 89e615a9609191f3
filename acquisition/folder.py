"""Finding images in a folder: those that are there and those that land.

The scan is the truth. Events of the file system lose files (queue overflow, watch limits, shares that send none), so a
watchdog observer only wakes the next scan early.
"""

import logging
import os
import stat
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

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

from acquisition.ndtiff import INDEX_NAME, is_ndtiff
from sesmo_live.errors import UsageError

TIFF_SUFFIXES = frozenset((".tif", ".tiff"))
"""Suffixes, in lower case, of the files that are read as images."""
OTHER_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".nd2", ".czi", ".lif", ".lsm", ".oib", ".oif", ".oir", ".vsi", ".stk", ".ims")
)
"""Suffixes of other images; they are reported too, so that the service can say why it skips them."""
UNFINISHED_SUFFIXES = frozenset((".tmp", ".part", ".partial", ".crdownload", ".filepart"))
"""Suffixes of files and folders that somebody is still writing under a passing name."""
MIN_PAUSE_S = 0.1
"""Shortest pause between two scans, however many events arrive."""
STOP_CHECK_S = 0.1
"""How often a waiting watch looks whether it should stop."""

_log = logging.getLogger(__name__)
_IMAGE_SUFFIXES = TIFF_SUFFIXES | OTHER_SUFFIXES
_WAKING = [
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileClosedEvent,
    FileDeletedEvent,
    DirCreatedEvent,
    DirMovedEvent,
]


@dataclass(frozen=True, slots=True)
class SeenFile:
    """An image file, or an NDTiff folder with the size and time of its index; `size` in bytes."""

    path: Path
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one scan found.

    `new`: first seen or changed since. `settled`: ready to be read, handed out once for each size and time. `gone`: no
    longer there.
    """

    new: list[SeenFile]
    settled: list[SeenFile]
    gone: list[Path]


class _Entry(NamedTuple):
    """An image as the scan sees it, cheap enough for 100 000 of them; `ndtiff`: `path` is a folder."""

    path: str
    size: int
    mtime_ns: int
    ndtiff: bool = False

    def seen(self) -> SeenFile:
        return SeenFile(Path(self.path), self.size, self.mtime_ns)


@dataclass(slots=True)
class _State:
    entry: _Entry
    since: float
    handed: bool = False


class _Alarm(FileSystemEventHandler):
    """Wakes the next scan, and does nothing else."""

    def __init__(self) -> None:
        self.rung = threading.Event()

    def on_any_event(self, event: FileSystemEvent) -> None:  # noqa: ARG002 which file it was is for the scan to see
        self.rung.set()


def scan(root: Path) -> list[SeenFile]:
    """Return the images under `root` at any depth, sorted by path; NDTiff folders count as one image file each.

    Hidden files and folders, and names that begin with `~` or end as unfinished copies do, are left out. Links to
    folders are followed, each folder once. A folder that cannot be read is logged and passed over; raises UsageError
    if that is `root` itself.
    """
    try:
        found, unreadable = _scan(root)
    except OSError as error:
        raise UsageError(f"{root} cannot be read ({error.strerror}); give a folder that exists and is yours") from error
    _warn_once(unreadable, set())
    return [entry.seen() for entry in found]


def watch(
    root: Path,
    *,
    interval_s: float,
    settle_s: float,
    stop: threading.Event,
    arrival: Literal["settle", "rename"] = "settle",
    events: bool = True,
) -> Iterator[Sighting]:
    """Scan `root` every `interval_s` seconds until `stop` is set, and yield what each scan found (perhaps nothing).

    The first scan is made at once; later ones come early when the file system reports a change (unless `events` is
    off), and when a file can have settled. A file has settled when its size and time have not changed for `settle_s`
    seconds by the monotonic clock; on the first scan also when it is older than that by the wall clock. With `arrival`
    "rename", and for NDTiff folders, whose index names only what is written, a file has settled once it is seen.
    While `root` cannot be read nothing is yielded, and nothing counts as gone. Raises UsageError if `root` is no
    folder to begin with.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; create it, or give the folder that the images land in")
    return _watch(root, interval_s, settle_s if arrival == "settle" else 0.0, stop, events=events)


def _watch(
    root: Path, interval_s: float, settle_s: float, stop: threading.Event, *, events: bool
) -> Iterator[Sighting]:
    known: dict[str, _State] = {}
    warned: set[str] = set()
    lost, oldest_ns = False, time.time_ns() - int(settle_s * 1e9)
    with _alarm(root, interval_s, events=events) as rung:
        while not stop.is_set():
            rung.clear()
            started = time.monotonic()
            try:
                found, unreadable = _scan(root)
            except OSError as error:
                if not lost:
                    _log.warning("%s cannot be read (%s); it is tried every %g s", root, error.strerror, interval_s)
                lost = True
                _wait(stop, rung, started + interval_s, started + interval_s, started + interval_s)
                continue
            if lost:
                _log.warning("%s can be read again", root)
                lost = False
            _warn_once(unreadable, warned)
            now = time.monotonic()
            yield Sighting(
                new=_note(found, known, now if settle_s > 0 else float("-inf"), oldest_ns),
                settled=_settle(known, started, settle_s),
                gone=_forget(found, known, unreadable),
            )
            oldest_ns = 0
            waiting = (state.since + settle_s for state in known.values() if not state.handed)
            earliest = now + max(MIN_PAUSE_S, 3 * (now - started))
            _wait(stop, rung, earliest, min(waiting, default=now + interval_s), now + interval_s)


def _note(found: list[_Entry], known: dict[str, _State], since: float, oldest_ns: int) -> list[SeenFile]:
    """Enter what is new or changed into `known` and return it; it rests from `since`, or is older than `oldest_ns`."""
    new = []
    for entry in found:
        state = known.get(entry.path)
        if state is None or state.entry != entry:
            rested = entry.ndtiff or entry.mtime_ns < oldest_ns
            known[entry.path] = _State(entry, float("-inf") if rested else since)
            new.append(entry.seen())
    return new


def _settle(known: dict[str, _State], started: float, settle_s: float) -> list[SeenFile]:
    """Return what has rested for `settle_s` before `started` and was not handed out yet, unless a last look denies it.

    The last look matters on Windows, where a folder's listing lags behind a file that is being written.
    """
    settled = []
    for state in known.values():
        if not state.handed and state.since <= started - settle_s:
            entry = state.entry
            path = Path(entry.path, INDEX_NAME) if entry.ndtiff else Path(entry.path)
            try:
                status = path.stat()
                state.handed = (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime_ns)
            except OSError:  # the next scan says that it is gone
                state.handed = False
            if state.handed:
                settled.append(entry.seen())
            else:
                state.since = started
    return settled


def _forget(found: list[_Entry], known: dict[str, _State], unreadable: dict[str, str]) -> list[Path]:
    """Drop from `known` what is no longer there and return it; what lies in a folder `unreadable` now may still be."""
    closed = tuple(folder + os.sep for folder in unreadable)
    there = {entry.path for entry in found}
    gone = [path for path in known if path not in there and not path.startswith(closed)]
    for path in gone:
        del known[path]
    return [Path(path) for path in gone]


def _wait(stop: threading.Event, rung: threading.Event, earliest: float, settled: float, latest: float) -> None:
    """Return when `stop` is set, at the time `settled` or `latest`, or once `rung` is set after `earliest`."""
    until = max(earliest, min(settled, latest))
    while not stop.is_set():
        now = time.monotonic()
        if now >= until or (now >= earliest and rung.is_set()):
            return
        pause = min(STOP_CHECK_S, (until if now >= earliest else earliest) - now)
        (rung if now >= earliest else stop).wait(pause)


@contextmanager
def _alarm(root: Path, interval_s: float, *, events: bool) -> Iterator[threading.Event]:
    """Give the event that the file system sets when something happens under `root`, if it can tell."""
    alarm = _Alarm()
    observer: BaseObserver | None = None
    try:
        if events:
            # watchdog warns when two of its threads meet at a new folder; it does no harm, and must not reach the user
            warnings.filterwarnings("ignore", "Callback with id .* already exists", RuntimeWarning)
            observer = Observer()
            observer.schedule(alarm, str(root), recursive=True, event_filter=_WAKING)
            observer.start()
        _log.info("%s is scanned every %g s%s", root, interval_s, ", sooner on events" if events else "")
    except OSError as error:
        _log.warning("%s gives no events (%s); it is scanned every %g s only", root, error.strerror, interval_s)
    try:
        yield alarm.rung
    finally:
        if observer is not None:
            observer.stop()
            if observer.is_alive():
                observer.join()


def _warn_once(unreadable: dict[str, str], warned: set[str]) -> None:
    """Log each folder that cannot be read when it is first met, and again after it could be read in between."""
    for folder in unreadable.keys() - warned:
        _log.warning("%s cannot be read (%s); give the service the right to see its images", folder, unreadable[folder])
    warned.intersection_update(unreadable)
    warned.update(unreadable)


def _scan(root: Path) -> tuple[list[_Entry], dict[str, str]]:
    """Return the images under `root` sorted by path, and the folders that could not be read with the reason."""
    found: list[_Entry] = []
    unreadable: dict[str, str] = {}
    folders, links = [str(root)], list[str]()
    visited: set[tuple[int, int]] = set()
    while folders or links:
        folder = folders.pop() if folders else links.pop()  # links last, so that a folder goes by its own name
        try:
            place = os.stat(folder)  # noqa: PTH116 strings keep a scan of 100 000 files short
            if (place.st_dev, place.st_ino) not in visited:
                visited.add((place.st_dev, place.st_ino))
                found += _list(folder, folders, links)
        except OSError as error:
            if folder == str(root):
                raise
            if not isinstance(error, FileNotFoundError):
                unreadable[folder] = error.strerror or str(error)
    found.sort()
    return found, unreadable


def _list(folder: str, folders: list[str], links: list[str]) -> list[_Entry]:
    """Return the images of one folder; add its sub-folders to `folders`, or to `links` where they are links."""
    images: list[_Entry] = []
    index: _Entry | None = None
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
            if name[0] in ".~" or suffix in UNFINISHED_SUFFIXES:
                continue
            try:
                if suffix in _IMAGE_SUFFIXES or name == INDEX_NAME:
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        if name == INDEX_NAME:
                            index = _Entry(folder, status.st_size, status.st_mtime_ns, ndtiff=True)
                        else:
                            images.append(_Entry(entry.path, status.st_size, status.st_mtime_ns))
                        continue
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(entry.path)
            except OSError:  # it vanished after it was listed, or is a link to nowhere
                continue
    if index is None:
        return images
    return [index] if is_ndtiff(Path(folder)) else []
