"""Where events fail, the scan finds every file: bursts, watch limits, dead threads, new folders, trees moved in."""

import ctypes
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from watchdog.events import FileCreatedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer, inotify_c
from watchdog.observers.api import BaseObserver

from acquisition import alarm as alarm_module
from acquisition.folder import Sighting, scan, watch
from tests.figures import figure
from tests.test_folder import Watching, land, watchdogs

pytestmark = pytest.mark.alone  # it measures how soon a file is known

LIMIT = "the limit of inotify watches is reached (raise fs.inotify.max_user_watches)"

BURST = """
import os, sys
for number in range(int(sys.argv[2])):
    os.close(os.open(os.path.join(sys.argv[1], f"{number:05d}.tif"), os.O_CREAT | os.O_WRONLY))
"""

LIMITED = """
import json, sys, threading, time
from pathlib import Path
from acquisition.folder import watch
root, stop, found, modes = Path(sys.argv[1]), threading.Event(), set(), []
for number, sighting in enumerate(watch(root, interval_s=1.0, settle_s=60, stop=stop, events=True)):
    found.update(str(file.path) for file in sighting.new)
    modes.append(sighting.mode)
    if number == 0:
        for folder in range(10, 200):
            (root / f"{folder}").mkdir()
            (root / f"{folder}" / "a.tif").touch()
        written = time.monotonic()
        after = 0
    else:
        after += sighting.scanned_at > written
    if len(found) == 200 or time.monotonic() > written + 30:
        break
print(json.dumps({"found": len(found), "scans": after, "first": modes[0], "last": modes[-1]}))
"""


def scans_until_all_are_in(watching: Watching, wanted: set[str], written: float, limit_s: float = 30) -> str:
    """Return in how many scans after `written` (monotonic) all files were new once; more than two fail."""

    def found(sightings: list[tuple[float, Sighting]]) -> set[str]:
        return {str(file.path.relative_to(watching.root)) for _, sighting in sightings for file in sighting.new}

    watching.until(lambda: wanted <= found(list(watching.seen)), limit_s)
    before = [item for item in watching.seen if item[1].scanned_at <= written]
    after = watching.seen[len(before) :]
    scans = next(n for n in range(len(after) + 1) if wanted <= found([*before, *after[:n]]))
    seconds = after[scans - 1][1].scanned_at - written if scans else 0.0
    assert scans <= 2
    assert set(watching.counts("new")) == wanted
    return f"{len(wanted)} files known {scans} scans and {seconds:.2f} s after the last one was written"


class Counting(FileSystemEventHandler):
    """What a program that trusts events would know of."""

    def __init__(self) -> None:
        self.created: set[str] = set()
        self.last = time.monotonic()

    def on_any_event(self, event: FileSystemEvent) -> None:
        self.last = time.monotonic()
        if isinstance(event, FileCreatedEvent):
            self.created.add(os.fsdecode(event.src_path))


@pytest.fixture
def trusting(tmp_path: Path) -> Iterator[Callable[[], set[str]]]:
    """Watch by events alone; return a function that waits until they are quiet and says which files they told of."""
    (tmp_path / "root").mkdir()
    handler, observer = Counting(), Observer()
    observer.schedule(handler, str(tmp_path / "root"), recursive=True)
    observer.start()

    def told() -> set[str]:
        while time.monotonic() < handler.last + 1.0:
            time.sleep(0.05)
        return {path for path in handler.created if path.endswith(".tif")}

    yield told
    observer.stop()
    observer.join(10)


def test_a_burst_of_twenty_thousand_files(tmp_path: Path) -> None:
    with Watching(tmp_path, interval_s=1.0, settle_s=60, events=True) as watching:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", BURST, str(tmp_path), "20000"], check=True, timeout=60)
        written = time.monotonic()
        wanted = {f"{number:05d}.tif" for number in range(20_000)}
        after = scans_until_all_are_in(watching, wanted, written)
    figure(f"burst of {written - began:.1f} s: {after}")


def test_what_events_alone_tell_of_a_burst(tmp_path: Path, trusting: Callable[[], set[str]]) -> None:
    """The queue of inotify holds 16 384 events as a rule; how many are lost depends on how fast they are read."""
    root = tmp_path / "root"
    subprocess.run([sys.executable, "-c", BURST, str(root), "20000"], check=True, timeout=60)
    lost = 20_000 - len(trusting())
    assert len(scan(root)) == 20_000
    figure(f"events alone lost {lost} of 20 000 files; the scan none")


def test_files_in_new_nested_folders(tmp_path: Path, trusting: Callable[[], set[str]]) -> None:
    root = tmp_path / "root"
    wanted = {f"run/{a}/{b}/{c}/{name}.tif" for a in range(8) for b in range(5) for c in range(5) for name in range(10)}
    with Watching(root, interval_s=1.0, settle_s=60, events=True) as watching:
        for name in sorted(wanted):
            land(root / name)
        written = time.monotonic()
        after = scans_until_all_are_in(watching, wanted, written)
    figure(f"new nested folders: {after}; events alone lost {len(wanted) - len(trusting())}")


def test_a_tree_that_is_moved_in(tmp_path: Path, trusting: Callable[[], set[str]]) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    names = {f"TimePoint_{a}/{b}/{name}.tif" for a in range(10) for b in range(10) for name in range(20)}
    for name in sorted(names):
        land(outside / name, age_s=3600)
    with Watching(root, interval_s=1.0, settle_s=60, events=True) as watching:
        outside.rename(root / "plate")
        written = time.monotonic()
        wanted = {f"plate/{name}" for name in names}
        after = scans_until_all_are_in(watching, wanted, written)
    figure(f"a tree moved in: {after}; events alone lost {len(wanted) - len(trusting())}")


@pytest.fixture
def fifty_watches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the system give 50 inotify watches, and then refuse as the kernel does; return the number that may be had."""
    add, remove = inotify_c.inotify_add_watch, inotify_c.inotify_rm_watch
    given: set[tuple[int, int]] = set()
    limit, lock = [50], threading.Lock()

    def limited(descriptor: int, path: bytes, mask: int) -> int:
        with lock:
            number = add(descriptor, path, mask)
            if number != -1 and (descriptor, number) not in given:
                if len(given) >= limit[0]:
                    remove(descriptor, number)
                    ctypes.set_errno(errno.ENOSPC)
                    return -1
                given.add((descriptor, number))
            return number

    def give_back(descriptor: int, number: inotify_c.WatchDescriptor) -> int:
        with lock:
            given.discard((descriptor, number))
            return remove(descriptor, number)

    monkeypatch.setattr(inotify_c, "inotify_add_watch", limited)
    monkeypatch.setattr(inotify_c, "inotify_rm_watch", give_back)
    return limit


@pytest.mark.parametrize("before", [10, 200])
def test_two_hundred_folders_and_fifty_watches(
    tmp_path: Path,
    before: int,
    fifty_watches: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alarm_module, "RETRY_S", 2.0)
    for number in range(before):
        (tmp_path / f"{number}").mkdir()
    with Watching(tmp_path, interval_s=0.5, settle_s=60, events=True) as watching:
        first = watching.seen[0][1].mode
        wanted = {f"{number}/{name}.tif" for number in range(200) for name in range(5)}
        for name in sorted(wanted):
            land(tmp_path / name)
        written = time.monotonic()
        after = scans_until_all_are_in(watching, wanted, written)
        watching.until(lambda: LIMIT in watching.seen[-1][1].mode)
        fifty_watches[0] = 1000  # somebody raises the limit
        watching.until(lambda: "sooner on events" in watching.seen[-1][1].mode, 10)
    assert first == ("scanned every 0.5 s, sooner on events" if before == 10 else f"scanned every 0.5 s: {LIMIT}")
    figure(f"{before} folders, then 200, limit of 50: {after}")


def test_the_kernels_own_limit_of_fifty_watches(tmp_path: Path) -> None:
    """A user namespace has a limit of its own; where the system lets nobody make one, the injected limit must do."""
    for folder in range(10):
        land(tmp_path / f"{folder}" / "a.tif")
    setting = "echo 50 > /proc/sys/user/max_inotify_watches"
    inside = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    try:
        allowed = subprocess.run([*inside, setting], check=False, capture_output=True, timeout=20).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        figure("no user namespaces here: the limit of the kernel itself was not tried")
        return
    command = [*inside, f'{setting} && exec "$@"', "sh", sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["first"] == "scanned every 1 s, sooner on events"
    assert result["last"] == f"scanned every 1 s: {LIMIT}"
    assert result["found"] == 200
    assert result["scans"] <= 2
    figure(f"the kernel's own limit of 50 watches: 200 files in 200 folders known after {result['scans']} scans")


def kill(kind: str, wake: Path) -> None:
    """Make the watchdog thread of that class end, as an error in its loop would, without anybody having stopped it."""
    (thread,) = [thread for thread in watchdogs() if type(thread).__name__ == kind]
    thread.should_keep_running = lambda: False  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while thread.is_alive():
        assert time.monotonic() < deadline
        land(wake)
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["InotifyObserver", "InotifyEmitter", "InotifyFD"])
def test_a_thread_of_the_observer_is_killed(
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(alarm_module, "RETRY_S", 3.0)
    with Watching(tmp_path, interval_s=0.5, settle_s=60, events=True) as watching:
        kill(kind, tmp_path / "wake.txt")
        died = f"scanned every 0.5 s: the observer died (its {kind} ended)"
        watching.until(lambda: watching.seen[-1][1].mode == died)
        wanted = {f"{folder}/{name}.tif" for folder in range(20) for name in range(50)}
        for name in sorted(wanted):
            land(tmp_path / name)
        written = time.monotonic()
        after = scans_until_all_are_in(watching, wanted, written)
        back = watching.until(lambda: "sooner on events" in watching.seen[-1][1].mode)
    last = max(when for when, sighting in watching.seen if sighting.mode == died)
    began = min(when for when, sighting in watching.seen if sighting.mode == died)
    assert caplog.text.count(died) == 1
    assert 3.0 <= back - began + 0.1 < 8
    figure(f"{kind} killed: {after}; events again {last - began:.1f} s later (here tried every 3 s)")


def test_events_that_came_back_wake_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarm_module, "RETRY_S", 0.1)
    with Watching(tmp_path, interval_s=2.0, settle_s=60, events=True) as watching:
        kill("InotifyEmitter", tmp_path / "wake.txt")
        watching.until(lambda: "died" in watching.seen[-1][1].mode)
        watching.until(lambda: "sooner on events" in watching.seen[-1][1].mode)
        landed = time.monotonic() - watching.started
        land(tmp_path / "a.tif")
        assert watching.until(lambda: watching.counts("new") == {"a.tif": 1}) < landed + 1.5


def test_an_observer_that_cannot_be_stopped_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that dies holding a lock of watchdog's makes `stop` wait for ever; seen when an emitter was killed."""
    stuck, real = threading.Event(), BaseObserver.stop

    def stop(observer: BaseObserver) -> None:
        if alarm_module._dead_thread(observer):
            stuck.wait(30)
        real(observer)

    monkeypatch.setattr(alarm_module, "RETRY_S", 1.0)
    monkeypatch.setattr(BaseObserver, "stop", stop)
    try:
        with Watching(tmp_path, interval_s=0.3, settle_s=60, events=True) as watching:
            kill("InotifyEmitter", tmp_path / "wake.txt")
            watching.until(lambda: "died" in watching.seen[-1][1].mode)
            land(tmp_path / "a.tif")
            watching.until(lambda: watching.counts("new") == {"a.tif": 1}, 5)
            watching.until(lambda: "sooner on events" in watching.seen[-1][1].mode)
            watching.others |= watchdogs()
    finally:
        stuck.set()
        for thread in watchdogs():
            thread.join(10)


def test_a_dead_observer_is_tried_again_once_a_minute_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[float] = []
    real = alarm_module._listen

    def counting(root: Path, handler: FileSystemEventHandler, *, recursive: bool) -> object:
        if recursive:
            starts.append(time.monotonic())
            if len(starts) > 1:
                raise OSError(errno.EMFILE, "inotify instance limit reached")
        return real(root, handler, recursive=recursive)

    monkeypatch.setattr(alarm_module, "_listen", counting)
    monkeypatch.setattr(alarm_module, "RETRY_S", 1.0)
    with Watching(tmp_path, interval_s=0.05, settle_s=60, events=True) as watching:
        kill("InotifyObserver", tmp_path / "wake.txt")
        watching.until(lambda: "max_user_instances" in watching.seen[-1][1].mode)
        time.sleep(2.5)
    assert 3 <= len(starts) <= 5
    assert all(later - earlier >= 1.0 for earlier, later in pairwise(starts[1:]))


def test_a_hundred_thousand_files_are_scanned_in_time(tmp_path: Path) -> None:
    for folder in range(200):
        place = tmp_path / f"TimePoint_{folder}"
        place.mkdir()
        for number in range(500):
            os.close(os.open(place / f"Plate_A{number:03d}_s1_w1.TIF", os.O_CREAT))
    stop = threading.Event()
    sightings = watch(tmp_path, interval_s=0.1, settle_s=3600, stop=stop, events=False)
    spent = []
    for _ in range(3):
        began, used = time.perf_counter(), time.process_time()
        sighting = next(sightings)
        spent.append((time.process_time() - used, time.perf_counter() - began))
        if len(spent) == 1:
            assert len(sighting.new) == 100_000
    stop.set()
    # The pause between two scans is three times their length and costs no processor: that is what is compared.
    figure(f"100 000 files: first sighting {spent[0][1]:.2f} s, later ones {spent[1][0]:.2f} and {spent[2][0]:.2f} s")
    assert min(used for used, _ in spent[1:]) < 1.5
