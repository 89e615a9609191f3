"""Finding images in a folder: those that are there and those that land.

The scan is the truth. Events of the file system lose files (queue overflow, watch limits, shares that send none), so a
watchdog observer only wakes the next scan early.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from acquisition.alarm import Alarm, alarm
from acquisition.ndtiff import INDEX_NAME
from acquisition.shares import filesystem_of
from acquisition.tree import TIFF_SUFFIXES, Entry, Found, SeenFile, list_tree, suffix_of, time_ns
from sesmo_live.errors import UsageError

MIN_PAUSE_S = 0.1
"""Shortest pause between two scans, however many events arrive."""
STOP_CHECK_S = 0.1
"""How often a waiting watch looks whether it should stop."""

_log = logging.getLogger(__name__)
_WARNED_AT_ONCE = 5
"""So many unreadable folders are logged one by one at a scan; the others are counted."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one scan found.

    `new`: first seen or changed since. `settled`: ready to be read, handed out once for each size and time. `gone`: no
    longer there. `growing`: TIFFs that have grown and not settled, each at most once per `settle_s`, so that the pages
    of a slow stack can be taken as they come. `trouble`: one sentence while the folder cannot be reached (then nothing
    else is said); an empty one tells that it is over. `mode`: how the folder is watched, in words. `scanned_at`:
    seconds by the monotonic clock when the scan was over, a sign of life.
    """

    new: list[SeenFile]
    settled: list[SeenFile]
    gone: list[Path]
    growing: list[SeenFile] = field(default_factory=list)
    trouble: str = ""
    mode: str = ""
    scanned_at: float = field(default=0.0, compare=False)


@dataclass(slots=True)
class _Rest:
    """An image that has not settled: since when it rests, and its size and time when it was last said to have grown."""

    entry: Entry
    seen: SeenFile
    since: float
    told_size: int
    told_at: float


def scan(root: Path) -> list[SeenFile]:
    """Return the images under `root` at any depth, sorted by path; NDTiff folders count as one image file each.

    Hidden files and folders, and names that begin with `~` or end as unfinished copies do, are left out. Links to
    folders are followed, each folder once. A folder that cannot be read is logged and passed over; raises UsageError
    if that is `root` itself.
    """
    try:
        found = list_tree(root)
    except OSError as error:
        raise UsageError(f"{root} cannot be read ({error.strerror}); give a folder that exists and is yours") from error
    _warn_once(found.unreadable, set())
    return [entry.seen() for entry in sorted(found.images)]


def watch(
    root: Path,
    *,
    interval_s: float,
    settle_s: float,
    stop: threading.Event,
    arrival: Literal["settle", "rename"] = "settle",
    events: bool = True,
    network: bool = False,
) -> Iterator[Sighting]:
    """Scan `root` every `interval_s` seconds until `stop` is set, and yield what each scan found (perhaps nothing).

    The first scan is made at once; later ones come early when the file system reports a change (unless `events` is
    off, or `root` lies on a `network` share, which reports nothing), and when a file can have settled. A file has
    settled when its size and time have not changed for `settle_s` seconds by the monotonic clock; on the first scan
    also when it is older than that by the wall clock. With `arrival` "rename", and for NDTiff folders, whose index
    names only what is written, a file has settled once it is seen.
    While `root` cannot be read, or another file system with none of the known images lies there (what an unmounted
    share leaves behind), each scan yields a sighting that says so, and nothing counts as gone; afterwards unchanged
    files are not new again.
    """
    silent = "" if events else "events are turned off"
    if network:
        silent = f"network share ({filesystem_of(root).kind}), which sends no events"
    return _watch(root, interval_s, settle_s if arrival == "settle" else 0.0, stop, silent)


def _watch(root: Path, interval_s: float, settle_s: float, stop: threading.Event, silent: str) -> Iterator[Sighting]:
    images, warned = _Images(settle_s), set[str]()
    trouble = mode = ""
    with alarm(root, silent) as bell:
        while not stop.is_set():
            bell.rung.clear()
            started = time.monotonic()
            try:
                found = images.recognise(list_tree(root, images.known))
            except OSError as error:
                trouble = _trouble(root, error, interval_s, logged=bool(trouble))
                now = time.monotonic()
                yield Sighting([], [], [], trouble=trouble, mode=mode or _mode(bell, interval_s), scanned_at=now)
                _wait(stop, bell.rung, now + interval_s, now + interval_s, now + interval_s)
                continue
            if trouble:
                _log.warning("%s can be read again", root)
                trouble = ""
                images.rest_anew(started)
                bell.restart()
            pause = max(MIN_PAUSE_S, 3 * (time.monotonic() - started))
            bell.check(found.place, found.folders)
            mode = _say(root, _mode(bell, interval_s), mode, alarming=not silent and bool(bell.silent))
            _warn_once(found.unreadable, warned)
            now = time.monotonic()
            yield Sighting(
                new=images.note(found.images, now),
                settled=images.settle(started),
                gone=images.forget(found),
                growing=images.grown(started),
                mode=mode,
                scanned_at=now,
            )
            _wait(stop, bell.rung, now + pause, images.next_settles(), now + interval_s)


def _mode(bell: Alarm, interval_s: float) -> str:
    """Return in words how a folder is watched."""
    return f"scanned every {interval_s:g} s{': ' + bell.silent if bell.silent else ', sooner on events'}"


def _say(root: Path, mode: str, before: str, *, alarming: bool) -> str:
    """Log how a folder is watched where that changed, and return it."""
    if mode != before:
        _log.log(logging.WARNING if alarming else logging.INFO, "%s is %s", root, mode)
    return mode


def _trouble(root: Path, error: OSError, interval_s: float, *, logged: bool) -> str:
    """Return what is the matter with a root that cannot be read, and log it when it begins."""
    reason = f"{root} cannot be read ({error.strerror or error})"
    sentence = f"{reason}; it is tried every {interval_s:g} s and goes on by itself when the share or disk is back"
    if not logged:
        _log.warning("%s", sentence)
    return sentence


class _Images:
    """The images that a watch knows of, and which of them have not settled yet; times are the monotonic clock's."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._oldest_ns = time.time_ns() - int(settle_s * 1e9)
        self.known: dict[str, Entry] = {}
        self._resting: dict[str, _Rest] = {}
        self._device: int | None = None

    def recognise(self, found: Found) -> Found:
        """Return `found` unless it comes from another file system and holds nothing that is known: raise OSError."""
        changed = self._device not in (None, found.place[0])
        if changed and self.known and not any(entry.path in self.known for entry in found.images):
            text = f"another file system lies there, with none of the {len(self.known)} known images: mount it again"
            raise OSError(errno.ESTALE, text)
        self._device = found.place[0]
        return found

    def note(self, found: list[Entry], now: float) -> list[SeenFile]:
        """Take in what is new or changed and return it by path; it rests from `now`, or did so before if it is old."""
        changed = sorted(entry for entry in found if self.known.get(entry.path) != entry)
        for entry in changed:
            rested = not self._settle_s or entry.ndtiff or entry.mtime_ns < self._oldest_ns
            size = self.known.get(entry.path, entry).size
            rest = self._resting.get(entry.path)
            told_size, told_at = (rest.told_size, rest.told_at) if rest else (size, now)
            since = float("-inf") if rested else now
            self._resting[entry.path] = _Rest(entry, entry.seen(), since, min(told_size, entry.size), told_at)
            self.known[entry.path] = entry
        self._oldest_ns = 0  # the wall clock counts once only: it may jump
        return [self._resting[entry.path].seen for entry in changed]

    def settle(self, started: float) -> list[SeenFile]:
        """Return what has rested for `settle_s` before `started`, unless a last look denies it.

        The last look matters on Windows, where a folder's listing lags behind a file that is being written.
        """
        settled = []
        for rest in [rest for rest in self._resting.values() if rest.since <= started - self._settle_s]:
            if _unchanged(rest.entry):
                del self._resting[rest.entry.path]
                settled.append(rest.seen)
            else:
                rest.since = started
        return settled

    def grown(self, started: float) -> list[SeenFile]:
        """Return the TIFFs that have not settled and are larger than when they were first seen or last returned here.

        Each is returned `settle_s` after its first sighting and after each return, at the earliest.
        """
        grown = []
        for path, rest in self._resting.items():
            due = started - rest.told_at >= self._settle_s > 0 and rest.entry.size > rest.told_size
            if due and not rest.entry.ndtiff and suffix_of(path) in TIFF_SUFFIXES:
                rest.told_size, rest.told_at = rest.entry.size, started
                grown.append(rest.seen)
        return grown

    def forget(self, found: Found) -> list[Path]:
        """Drop what is no longer there and return it; what cannot be read now, or lies in such a folder, may be."""
        if len(self.known) == len(found.images):  # all that was found is known by now
            return []
        closed = tuple(folder + os.sep for folder in found.unreadable)
        there = {entry.path for entry in found.images} | found.unreadable.keys()
        gone = [path for path in self.known if path not in there and not path.startswith(closed)]
        for path in gone:
            del self.known[path]
            self._resting.pop(path, None)
        return [Path(path) for path in gone]

    def rest_anew(self, now: float) -> None:
        """Let what has not settled wait from `now` on: whoever was writing it may go on."""
        for rest in self._resting.values():
            rest.since = now

    def next_settles(self) -> float:
        """Return when the next image can have settled; infinity if none waits."""
        return min((rest.since for rest in self._resting.values()), default=float("inf")) + self._settle_s


def _unchanged(entry: Entry) -> bool:
    """Say whether an image has the size and time that the scan saw."""
    path = os.path.join(entry.path, INDEX_NAME) if entry.ndtiff else entry.path  # noqa: PTH118 as in _place
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:  # the next scan says that it is gone
        return False
    return (status.st_size, time_ns(status)) == (entry.size, entry.mtime_ns)


def _wait(stop: threading.Event, rung: threading.Event, earliest: float, settled: float, latest: float) -> None:
    """Return when `stop` is set, at the time `settled` or `latest`, or once `rung` is set after `earliest`."""
    until = max(earliest, min(settled, latest))
    while not stop.is_set():
        now = time.monotonic()
        if now >= until or (now >= earliest and rung.is_set()):
            return
        pause = min(STOP_CHECK_S, (until if now >= earliest else earliest) - now)
        (rung if now >= earliest else stop).wait(pause)


def _warn_once(unreadable: dict[str, str], warned: set[str]) -> None:
    """Log what cannot be read when it is first met, and again after it could be read in between."""
    fresh = sorted(unreadable.keys() - warned)
    for path in fresh[:_WARNED_AT_ONCE]:
        _log.warning("%s cannot be read (%s); give the service the right to see its images", path, unreadable[path])
    if len(fresh) > _WARNED_AT_ONCE:
        _log.warning("%d more files and folders cannot be read", len(fresh) - _WARNED_AT_ONCE)
    warned.intersection_update(unreadable)
    warned.update(unreadable)
