"""Finding images in real folders: what is there, what lands, what grows, what goes, and what events cannot tell."""

import errno
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from watchdog.observers.inotify import InotifyObserver

from acquisition import alarm as alarm_module
from acquisition import folder as folder_module
from acquisition import tree as tree_module
from acquisition.folder import Sighting, scan, watch
from acquisition.ndtiff import INDEX_NAME
from acquisition.shares import filesystem_of
from acquisition.tree import SeenFile
from sesmo_live.errors import UsageError
from tests.figures import figure

pytestmark = pytest.mark.alone  # it measures how soon a file is known

SETTLE_S = 0.3


def land(path: Path, data: bytes = b"pixels", *, age_s: float = 0.0) -> Path:
    """Write `data` to `path`, as it would have been done `age_s` seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if age_s:
        when = time.time() - age_s
        os.utime(path, (when, when))
    return path


def names(found: list[SeenFile], root: Path) -> list[str]:
    return [str(file.path.relative_to(root)) for file in found]


def watchdogs() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if "watchdog" in type(thread).__module__}


class Watching:
    """A watch under way in a thread, with what it saw and when."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root, self.stop = root, threading.Event()
        self.seen: list[tuple[float, Sighting]] = []
        self.others = watchdogs()
        self.started = time.monotonic()
        settings = {"interval_s": 0.1, "settle_s": SETTLE_S, "events": False, **options}
        self.thread = threading.Thread(target=self._run, args=(watch(root, stop=self.stop, **settings),))
        self.thread.start()

    def _run(self, sightings: Iterator[Sighting]) -> None:
        for sighting in sightings:
            self.seen.append((time.monotonic() - self.started, sighting))

    def counts(self, kind: str) -> Counter[str]:
        files = [file for _, sighting in self.seen for file in getattr(sighting, kind)]
        return Counter(str(getattr(file, "path", file).relative_to(self.root)) for file in files)

    def until(self, condition: Callable[[], bool], limit_s: float = 10.0) -> float:
        """Wait until `condition` holds and return the seconds since the start of the watch."""
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, [
                sighting for _, sighting in self.seen if sighting != Sighting([], [], [], mode=sighting.mode)
            ]
            time.sleep(0.005)
        return time.monotonic() - self.started

    def __enter__(self) -> "Watching":
        self.until(lambda: bool(self.seen))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()
        assert watchdogs() <= self.others


def test_scan_finds_images_at_any_depth_and_leaves_out_the_rest(tmp_path: Path) -> None:
    wanted = [
        "B.TIF",
        "a.tif",
        "deep/er/and/c.TiFf",
        "e.png",
        "f.JPG",
        "g.nd2",
        "h.czi",
        "i.lif",
        "j.oib",
        "k.vsi",
        "l.bmp",
    ]
    unwanted = [".a.tif", "~a.tif", "a.tif.tmp", "a.tif.part", "b.tif.crdownload", "c.txt", "tif", ".hidden/a.tif"]
    for name in [*wanted, *unwanted, "plate.partial/a.tif", "~copy/a.tif"]:
        land(tmp_path / name)
    (tmp_path / "folder.tif").mkdir()
    land(tmp_path / "folder.tif" / "x.tif")
    found = scan(tmp_path)
    assert names(found, tmp_path) == sorted([*wanted, "folder.tif/x.tif"])
    status = (tmp_path / "a.tif").stat()
    assert SeenFile(tmp_path / "a.tif", status.st_size, status.st_mtime_ns) in found


def test_scan_follows_links_once_and_survives_rings(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    land(root / "a" / "1.tif")
    land(other / "2.tif")
    (root / "a" / "ring").symlink_to(root)
    (root / "0 first by name").symlink_to(root / "a")
    (root / "other").symlink_to(other)
    (root / "other again").symlink_to(other)
    (root / "self").symlink_to(root / "self")
    (root / "nowhere.tif").symlink_to(tmp_path / "nowhere")
    (root / "link.tif").symlink_to(root / "a" / "1.tif")
    found = names(scan(root), root)
    assert len(found) == 3
    assert {"a/1.tif", "link.tif"} < set(found)
    assert any(name.startswith("other") and name.endswith("2.tif") for name in found)


def test_scan_leaves_pipes_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    assert scan(tmp_path) == []


def test_scan_reports_an_ndtiff_folder_once_by_its_index(tmp_path: Path) -> None:
    run = tmp_path / "run_1"
    for name in ("run_NDTiffStack.tif", "run_NDTiffStack_1.tif", "notes.txt"):
        land(run / name, bytes(500))
    land(run / INDEX_NAME, bytes(77))
    land(tmp_path / "old" / "Full resolution" / INDEX_NAME, bytes(55))
    land(tmp_path / "old" / "Downsampled_x2" / INDEX_NAME)
    land(tmp_path / "old" / "Downsampled_x2" / "a_NDTiffStack.tif")
    land(run / "snaps" / "a.tif")
    found = scan(tmp_path)
    assert names(found, tmp_path) == ["old/Full resolution", "run_1", "run_1/snaps/a.tif"]
    assert found[1] == SeenFile(run, 77, (run / INDEX_NAME).stat().st_mtime_ns)
    assert names(scan(run), tmp_path) == ["run_1", "run_1/snaps/a.tif"]


@pytest.mark.parametrize("there", [False, True])
def test_a_root_that_is_no_folder_is_wrong_usage(tmp_path: Path, there: bool) -> None:
    root = tmp_path / "plates"
    if there:
        root.touch()
    with pytest.raises(UsageError, match=r"plates cannot be read \(.*\); give a folder that exists"):
        scan(root)
    seen = next(watch(root, interval_s=1, settle_s=1, stop=threading.Event()))
    assert "plates cannot be read" in seen.trouble
    assert seen.gone == []


def test_a_name_that_is_no_text_is_passed_over_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = os.fsencode(tmp_path)
    for name in (b"A01_\xe9.tif", "A02_é.tif".encode()):
        with open(folder + b"/" + name, "wb") as file:  # noqa: PTH123 a Path cannot say it
            file.write(b"II*\0")
    assert [path.path.name for path in scan(tmp_path)] == ["A02_é.tif"]
    assert "no valid Unicode, rename it" in caplog.text


def close_folder(monkeypatch: pytest.MonkeyPatch, closed: Path) -> list[bool]:
    """Make the system refuse to list `closed` while the returned list holds something (root may list everything)."""
    refuse, real = [True], os.scandir

    def scandir(path: str) -> Any:
        if refuse and Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr("acquisition.folder.os.scandir", scandir)
    return refuse


def test_scan_names_a_folder_it_cannot_read_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    land(tmp_path / "closed" / "a.tif")
    land(tmp_path / "open" / "b.tif")
    close_folder(monkeypatch, tmp_path / "closed")
    with caplog.at_level(logging.WARNING):
        assert names(scan(tmp_path), tmp_path) == ["open/b.tif"]
    assert "closed cannot be read (Permission denied)" in caplog.text


def test_scan_survives_what_vanishes_meanwhile(tmp_path: Path) -> None:
    land(tmp_path / "stays.tif")
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for number in range(20):
                land(tmp_path / f"d{number}" / "x.tif")
            for number in range(20):
                (tmp_path / f"d{number}" / "x.tif").unlink()
                (tmp_path / f"d{number}").rmdir()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(200):
            assert "stays.tif" in names(scan(tmp_path), tmp_path)
    finally:
        stop.set()
        thread.join()


def test_scan_of_many_files_is_cheap(tmp_path: Path) -> None:
    for place in range(40):
        (tmp_path / f"TimePoint_{place}").mkdir()
        for number in range(250):
            os.close(os.open(tmp_path / f"TimePoint_{place}" / f"p_{number:03d}_w1.TIF", os.O_CREAT))
    started, spent = time.perf_counter(), time.process_time()
    assert len(scan(tmp_path)) == 10_000
    wall, cpu = time.perf_counter() - started, time.process_time() - spent
    figure(f"10 000 files scanned in {wall:.3f} s ({cpu:.3f} s of processor)")
    assert cpu < 0.8


def test_watch_begins_at_once_with_what_is_there(tmp_path: Path) -> None:
    land(tmp_path / "old.tif", age_s=60)
    land(tmp_path / "fresh.tif")
    land(tmp_path / "tomorrow.tif", age_s=-86_400)
    with Watching(tmp_path, interval_s=60) as watching:
        when, first = watching.seen[0]
        assert when < 1
        assert names(first.new, tmp_path) == ["fresh.tif", "old.tif", "tomorrow.tif"]
        assert names(first.settled, tmp_path) == ["old.tif"]
        when = watching.until(lambda: watching.counts("settled").total() == 3, 5)
        assert when >= SETTLE_S  # and long before the interval is over


def test_old_files_that_land_later_must_settle_too(tmp_path: Path) -> None:
    with Watching(tmp_path) as watching:
        landed = time.monotonic() - watching.started
        land(tmp_path / "copied.tif", age_s=3600)
        assert watching.until(lambda: watching.counts("settled") == {"copied.tif": 1}) >= landed + SETTLE_S


def test_a_growing_file_settles_when_it_rests_and_is_handed_out_once(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with Watching(tmp_path, interval_s=0.05) as watching:
        for size in range(1, 10):
            land(path, bytes(size))
            time.sleep(0.1)
        rests = path.stat()
        last_write = time.monotonic() - watching.started - 0.1
        settled = watching.until(lambda: watching.counts("settled").total() > 0)
        assert settled >= last_write + SETTLE_S
        time.sleep(2 * SETTLE_S)
        assert watching.counts("settled") == {"a.tif": 1}
        assert watching.counts("new")["a.tif"] >= 4
        (handed,) = [file for _, sighting in watching.seen for file in sighting.settled]
        assert handed == SeenFile(path, 9, rests.st_mtime_ns)
        land(path, b"another")
        watching.until(lambda: watching.counts("settled") == {"a.tif": 2})


def test_a_change_of_time_alone_is_a_change(tmp_path: Path) -> None:
    path = land(tmp_path / "a.tif", age_s=100)
    with Watching(tmp_path) as watching:
        land(path)
        watching.until(lambda: watching.counts("settled") == {"a.tif": 2})


def test_where_files_arrive_by_renaming_they_are_ready_at_once(tmp_path: Path) -> None:
    with Watching(tmp_path, interval_s=0.1, settle_s=30, arrival="rename") as watching:
        land(tmp_path / ".a.tif").replace(tmp_path / "a.tif")
        watching.until(lambda: watching.counts("settled") == {"a.tif": 1}, 3)
    (both,) = [sighting for _, sighting in watching.seen if sighting.new]
    assert both.new == both.settled


def test_an_ndtiff_folder_is_ready_whenever_its_index_grows(tmp_path: Path) -> None:
    index = land(tmp_path / "run_1" / INDEX_NAME, bytes(10))
    with Watching(tmp_path, settle_s=30) as watching:
        for size in (20, 30, 40):
            before = watching.counts("settled")["run_1"]
            land(index, bytes(size))
            watching.until(lambda before=before: watching.counts("settled")["run_1"] > before, 3)  # type: ignore[misc]
    assert watching.counts("settled") == {"run_1": 4}


def test_what_goes_is_told_and_may_come_back(tmp_path: Path) -> None:
    path = land(tmp_path / "plate" / "a.tif", age_s=60)
    with Watching(tmp_path) as watching:
        (tmp_path / "plate").rename(tmp_path / ".archive")
        watching.until(lambda: watching.counts("gone") == {"plate/a.tif": 1})
        (tmp_path / ".archive").rename(tmp_path / "plate")
        watching.until(lambda: watching.counts("settled") == {"plate/a.tif": 2})
    assert path.exists()
    assert watching.counts("gone") == {"plate/a.tif": 1}


def test_events_wake_the_next_scan_early(tmp_path: Path) -> None:
    with Watching(tmp_path, interval_s=60, events=True) as watching:
        time.sleep(0.2)
        landed = time.monotonic() - watching.started
        land(tmp_path / "new" / "nested" / "deeper" / "a.tif")
        land(tmp_path / "b.tif")
        assert watching.until(lambda: watching.counts("settled").total() == 2, 5) < landed + 3


def test_reading_the_images_wakes_nobody(tmp_path: Path) -> None:
    path = land(tmp_path / "a.tif", age_s=60)
    with Watching(tmp_path, interval_s=60, events=True) as watching:
        for _ in range(60):
            path.read_bytes()
            scan(tmp_path)
            time.sleep(0.01)
        assert len(watching.seen) == 1


def test_a_passing_name_wakes_nobody_and_its_rename_does(tmp_path: Path) -> None:
    with Watching(tmp_path, interval_s=60, events=True) as watching:
        part = land(tmp_path / "a.tif.part")
        time.sleep(0.5)
        assert len(watching.seen) == 1
        renamed = time.monotonic() - watching.started
        part.rename(tmp_path / "a.tif")
        assert watching.until(lambda: watching.counts("new") == {"a.tif": 1}, 5) < renamed + 3


def test_a_storm_of_events_does_not_make_a_storm_of_scans(tmp_path: Path) -> None:
    with Watching(tmp_path, interval_s=60, settle_s=60, events=True) as watching:
        for number in range(100):
            land(tmp_path / "a.tif", bytes(number))
            time.sleep(0.01)
        elapsed = time.monotonic() - watching.started
        assert 1 < len(watching.seen) <= elapsed / folder_module.MIN_PAUSE_S + 2


def test_where_events_cannot_be_had_it_polls_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class NoWatches(InotifyObserver):
        def start(self) -> None:
            raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr(alarm_module, "Observer", NoWatches)
    with caplog.at_level(logging.WARNING), Watching(tmp_path, events=True) as watching:
        land(tmp_path / "a.tif")
        watching.until(lambda: watching.counts("settled") == {"a.tif": 1})
    limit = "the limit of inotify watches is reached (raise fs.inotify.max_user_watches)"
    assert caplog.text.count(f"is scanned every 0.1 s: {limit}") == 1
    assert {sighting.mode for _, sighting in watching.seen} == {f"scanned every 0.1 s: {limit}"}


@pytest.mark.parametrize("events", [False, True])
def test_stop_ends_the_watch_at_once(tmp_path: Path, events: bool) -> None:
    with Watching(tmp_path, interval_s=60, events=events) as watching:
        time.sleep(0.2)
        asked = time.monotonic()
        watching.stop.set()
        watching.until(lambda: not watching.thread.is_alive())
        assert time.monotonic() - asked < 0.5  # 0.2 s and what a busy machine adds


def test_a_watch_that_was_stopped_before_yields_nothing(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    assert list(watch(tmp_path, interval_s=60, settle_s=1, stop=stop)) == []


@pytest.mark.parametrize("events", [False, True])
def test_a_root_that_vanishes_is_waited_for_and_nothing_counts_as_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, events: bool
) -> None:
    root, away = tmp_path / "share", tmp_path / "away"
    land(root / "a.tif", age_s=60)
    with caplog.at_level(logging.WARNING), Watching(root, events=events) as watching:
        before = watching.seen[-1][1].mode
        root.rename(away)
        watching.until(lambda: len(troubles(watching)) > 2)
        land(away / "b.tif")
        away.rename(root)
        watching.until(lambda: watching.counts("settled") == {"a.tif": 1, "b.tif": 1})
        assert watching.seen[-1][1].trouble == ""
        assert watching.seen[-1][1].mode == before
    sentence = "cannot be read (No such file or directory); it is tried every 0.1 s and goes on by itself"
    assert len(set(troubles(watching))) == 1
    assert sentence in troubles(watching)[0]
    assert watching.counts("gone") == {}
    assert watching.counts("new") == {"a.tif": 1, "b.tif": 1}
    assert caplog.text.count(sentence) == 1
    assert caplog.text.count("can be read again") == 1


def troubles(watching: Watching) -> list[str]:
    return [sighting.trouble for _, sighting in watching.seen if sighting.trouble]


def test_a_root_made_anew_gives_events_again(tmp_path: Path) -> None:
    root = tmp_path / "share"
    land(root / "a.tif", age_s=60)
    with Watching(root, interval_s=1.0, events=True) as watching:
        (root / "a.tif").unlink()
        root.rmdir()
        root.mkdir()
        land(root / "b.tif", age_s=60)
        watching.until(lambda: watching.counts("new")["b.tif"] == 1)
        watching.until(lambda: "sooner on events" in watching.seen[-1][1].mode or "died" in watching.seen[-1][1].mode)


@pytest.fixture
def share(tmp_path: Path) -> Iterator[tuple[Path, Path, Path]]:
    """Give a root whose file system can change under it: a link, to a folder in memory and to an empty one on disk."""
    mounted = Path(tempfile.mkdtemp(dir="/dev/shm"))
    below = tmp_path / "mount point"
    below.mkdir()
    assert mounted.stat().st_dev != below.stat().st_dev
    root = tmp_path / "share"
    root.symlink_to(mounted)
    yield root, mounted, below
    shutil.rmtree(mounted)


def mount(root: Path, place: Path) -> None:
    """Make `root` lead to `place`, at one blow."""
    link = root.with_name("link")
    link.symlink_to(place)
    link.replace(root)


@pytest.mark.parametrize("events", [False, True])
def test_an_unmounted_share_leaves_an_empty_folder_and_nothing_counts_as_gone(
    share: tuple[Path, Path, Path], events: bool
) -> None:
    root, mounted, below = share
    land(mounted / "a.tif", age_s=60)
    with Watching(root, events=events) as watching:
        mount(root, below)
        watching.until(lambda: len(troubles(watching)) > 2)
        land(below / "stray.tif", age_s=60)  # somebody writes below the mount point: that is no remount
        time.sleep(0.3)
        mount(root, mounted)
        land(mounted / "b.tif", age_s=60)
        watching.until(lambda: watching.counts("settled") == {"a.tif": 1, "b.tif": 1})
    assert "another file system lies there, with none of the 1 known images: mount it again" in troubles(watching)[0]
    assert watching.counts("gone") == {}
    assert watching.counts("new") == {"a.tif": 1, "b.tif": 1}


def test_a_share_that_comes_back_with_another_number_is_the_same_share(share: tuple[Path, Path, Path]) -> None:
    root, mounted, other = share
    for name in ("a.tif", "b.tif"):
        land(mounted / name, age_s=60)
    shutil.copy2(mounted / "a.tif", other / "a.tif")
    with Watching(root) as watching:
        mount(root, other)
        watching.until(lambda: watching.counts("gone") == {"b.tif": 1})
    assert troubles(watching) == []
    assert watching.counts("new") == {"a.tif": 1, "b.tif": 1}


def test_an_empty_root_may_change_its_file_system(share: tuple[Path, Path, Path]) -> None:
    root, mounted, below = share
    mount(root, below)
    with Watching(root) as watching:
        mount(root, mounted)
        land(mounted / "a.tif")
        watching.until(lambda: watching.counts("settled") == {"a.tif": 1})
    assert troubles(watching) == []


def test_a_share_that_goes_during_a_scan_loses_nothing(
    share: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, mounted, below = share
    land(mounted / "deep" / "a.tif", age_s=60)
    land(mounted / "b.tif", age_s=60)
    real, unmounting = tree_module._list, [False]

    def unmount(folder: str, *rest: Any) -> Any:
        found = real(folder, *rest)
        if unmounting[0] and folder == str(root):
            unmounting[0] = False
            mount(root, below)
        return found

    monkeypatch.setattr(tree_module, "_list", unmount)
    with Watching(root) as watching:
        unmounting[0] = True
        watching.until(lambda: len(troubles(watching)) > 2)
        mount(root, mounted)
        watching.until(lambda: not watching.seen[-1][1].trouble)
    assert "its file system changed during the scan" in troubles(watching)[0]
    assert watching.counts("gone") == {}
    assert watching.counts("new") == {"deep/a.tif": 1, "b.tif": 1}


@pytest.mark.parametrize("place", [".", "mounted"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN])
def test_every_way_in_which_a_share_fails_is_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, place: str
) -> None:
    land(tmp_path / "mounted" / "a.tif", age_s=60)
    failing, real = [False], os.scandir

    def scandir(path: str) -> Any:
        if failing[0] and Path(path) == tmp_path / place:
            raise OSError(number, os.strerror(number), path)
        return real(path)

    with Watching(tmp_path, interval_s=0.05) as watching:
        monkeypatch.setattr("acquisition.folder.os.scandir", scandir)
        failing[0] = True
        watching.until(lambda: len(troubles(watching)) > 2)
        failing[0] = False
        watching.until(lambda: not watching.seen[-1][1].trouble)
    assert f"({os.strerror(number)})" in troubles(watching)[0]
    assert watching.counts("gone") == {}


def test_files_that_a_failing_share_cannot_show_are_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(20):
        land(tmp_path / f"{number:02d}.tif", age_s=60)
    failing, real = [False], os.scandir

    class Stale:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path = entry.name, entry.path

        def stat(self) -> os.stat_result:
            raise OSError(errno.ESTALE, "Stale file handle", self.path)

    @contextmanager
    def scandir(path: str) -> Iterator[list[Any]]:
        with real(path) as entries:
            yield [Stale(entry) if failing[0] and entry.name != "00.tif" else entry for entry in entries]

    monkeypatch.setattr("acquisition.folder.os.scandir", scandir)
    with caplog.at_level(logging.WARNING), Watching(tmp_path, interval_s=0.05) as watching:
        failing[0] = True
        watching.until(lambda: "more files and folders cannot be read" in caplog.text)
        (tmp_path / "00.tif").unlink()
        watching.until(lambda: watching.counts("gone") == {"00.tif": 1})
        failing[0] = False
        time.sleep(0.2)
    assert watching.counts("gone") == {"00.tif": 1}
    assert watching.counts("new").total() == 20
    assert caplog.text.count("Stale file handle") == 5


def test_after_trouble_a_half_copied_file_rests_anew(share: tuple[Path, Path, Path]) -> None:
    root, mounted, below = share
    land(mounted / "old.tif", age_s=60)
    with Watching(root, settle_s=0.6) as watching:
        land(mounted / "half.tif")
        watching.until(lambda: watching.counts("new")["half.tif"] == 1)
        mount(root, below)
        watching.until(lambda: bool(troubles(watching)))
        time.sleep(1.0)
        back = time.monotonic() - watching.started
        mount(root, mounted)
        assert watching.until(lambda: watching.counts("settled")["half.tif"] == 1) >= back + 0.6


def test_a_stack_that_grows_is_handed_out_as_it_grows(tmp_path: Path) -> None:
    stack, other = tmp_path / "stack.tif", tmp_path / "picture.png"
    grown: list[tuple[float, SeenFile]] = []
    with Watching(tmp_path, interval_s=0.05, settle_s=0.5) as watching:
        for _ in range(1, 30):
            for path in (stack, other):
                with path.open("ab") as handle:
                    handle.write(b"p")
            time.sleep(0.1)
        watching.until(lambda: watching.counts("settled") == {"stack.tif": 1, "picture.png": 1})
        time.sleep(0.6)
        grown = [(when, file) for when, sighting in watching.seen for file in sighting.growing]
    assert {file.path for _, file in grown} == {stack}
    assert 3 <= len(grown) <= 6  # 2.9 s at most once each 0.5 s, and on a busy machine less often
    assert all(later[0] - earlier[0] > 0.4 for earlier, later in pairwise(grown))
    assert [file.size for _, file in grown] == sorted({file.size for _, file in grown})
    assert grown[0][0] - watching.seen[0][0] > 0.4


def test_a_file_that_is_written_again_from_its_start_has_not_grown(tmp_path: Path) -> None:
    path = land(tmp_path / "a.tif", bytes(1000))
    with Watching(tmp_path, interval_s=0.05, settle_s=0.4) as watching:
        for size in (900, 800, 700, 600, 500, 400, 300):
            os.truncate(path, size)
            time.sleep(0.15)
        assert watching.counts("growing") == {}
        for size in (310, 320, 330, 340, 350):
            os.truncate(path, size)
            time.sleep(0.15)
        watching.until(lambda: watching.counts("growing")["a.tif"] > 0, 1)


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, jump = time.time_ns, [0]
    monkeypatch.setattr(time, "time_ns", lambda: now() + jump[0])
    monkeypatch.setattr(time, "time", lambda: (now() + jump[0]) / 1e9)
    with Watching(tmp_path, settle_s=0.5) as watching:
        for number, days in enumerate((400, -400, 3000)):
            jump[0] = days * 86_400 * 10**9
            landed = time.monotonic() - watching.started
            path = land(tmp_path / f"{number}.tif", age_s=1.0)
            settled = watching.until(lambda: watching.counts("settled").total() == number + 1)  # noqa: B023 at once
            assert landed + 0.5 <= settled < landed + 3, path
    assert watching.counts("new").total() == 3


def test_the_mode_is_said_in_words_and_each_scan_is_a_sign_of_life(tmp_path: Path) -> None:
    expected = {
        "sooner on events": {"events": True},
        "events are turned off": {"events": False},
        f"network share ({filesystem_of(tmp_path).kind}), which sends no events": {"events": True, "network": True},
    }
    for words, options in expected.items():
        with Watching(tmp_path, **options) as watching:
            before = len(threading.enumerate())
            watching.until(lambda: len(watching.seen) > 2 or "sooner" in words)  # noqa: B023 at once
            mode = watching.seen[-1][1].mode
            assert mode == f"scanned every 0.1 s{', ' if 'sooner' in words else ': '}{words}"
            assert before == len(threading.enumerate())
        times = [sighting.scanned_at for _, sighting in watching.seen]
        assert times == sorted(times)
        assert 0 <= time.monotonic() - times[-1] < 5


def test_a_sighting_of_three_lists_says_nothing_else() -> None:
    assert Sighting([], [], []) == Sighting(new=[], settled=[], gone=[], growing=[], trouble="", mode="")


def test_files_in_a_folder_that_cannot_be_read_now_are_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    land(tmp_path / "closed" / "deep" / "a.tif", age_s=60)
    land(tmp_path / "closed.tif", age_s=60)
    refuse = close_folder(monkeypatch, tmp_path / "closed")
    refuse.clear()
    with caplog.at_level(logging.WARNING), Watching(tmp_path, interval_s=0.05) as watching:
        refuse.append(True)
        watching.until(lambda: "Permission denied" in caplog.text)
        (tmp_path / "closed.tif").unlink()
        watching.until(lambda: watching.counts("gone") == {"closed.tif": 1})
        time.sleep(0.3)
        refuse.clear()
        land(tmp_path / "b.tif")
        watching.until(lambda: watching.counts("settled")["b.tif"] == 1)
    assert watching.counts("gone") == {"closed.tif": 1}
    assert watching.counts("new")["closed/deep/a.tif"] == 1
    assert caplog.text.count("Permission denied") == 1


def test_a_listing_that_lags_behind_hands_nothing_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = land(tmp_path / "a.tif", bytes(50))
    real, lag = tree_module.list_tree, [True]

    def lagging(root: Path, known: Any) -> Any:
        found = real(root, known)
        return found._replace(images=[entry._replace(size=10) for entry in found.images]) if lag else found

    monkeypatch.setattr(folder_module, "list_tree", lagging)  # as Windows lists a file that is being written
    with Watching(tmp_path, interval_s=0.05) as watching:
        time.sleep(3 * SETTLE_S)
        assert watching.counts("settled") == {}
        lag.clear()
        watching.until(lambda: watching.counts("settled") == {"a.tif": 1})
    assert watching.seen[-1][1].settled == [] or watching.seen[-1][1].settled[0].size == path.stat().st_size


def test_a_burst_is_handed_out_whole_and_once(tmp_path: Path) -> None:
    def burst(part: int) -> None:
        for number in range(500):
            land(tmp_path / f"part{part}" / f"sub{number % 7}" / f"{number}.tif")

    threads = [threading.Thread(target=burst, args=(part,)) for part in range(4)]
    with Watching(tmp_path, interval_s=0.2, events=True) as watching:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        watching.until(lambda: watching.counts("settled").total() >= 2000, 20)
        time.sleep(0.5)
    assert len(watching.counts("settled")) == 2000
    assert set(watching.counts("settled").values()) == {1}
