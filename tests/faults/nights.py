"""A microscope that writes badly, and a daemon that is killed while it does: what the tests of a bad night share."""

import atexit
import io
import multiprocessing
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from models.passport import read_passport
from models.prepare import prepare_field
from sesmo_live import service
from sesmo_live.config import Settings, settings_from
from sesmo_live.records import FieldImage, ImageFile, Site
from tests.conftest import blobs
from tests.stub import lazy_stub, mean_grey

QUICK = {
    "settle_s": 0.15,
    "scan_interval_s": 0.1,
    "retry_after_s": 0.3,
    "zero_tail_hold_s": 0.8,
    "retries": 2,
}
"""The service's times, shortened as the night is."""


def night_settings(folder: Path, db: Path, model: Path, **watching: Any) -> Settings:
    """Return settings for a short night."""
    data = {
        "database": {"url": str(db)},
        "scoring": {"model": str(model)},
        "watching": {**QUICK, **watching},
        "watch": [{"folder": folder, "plate": "P"}],
    }
    return settings_from(data, "test")


def serve_until_told(settings: Settings, jump_s: float = 0.0) -> None:
    """Run the service as the daemon does; SIGTERM ends it. `jump_s`: how wrong the clock is."""
    service.lazy_scorer = lazy_stub
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if jump_s:
        true_time, true_time_ns = time.time, time.time_ns
        time.time = lambda: true_time() + jump_s
        time.time_ns = lambda: true_time_ns() + int(jump_s * 1e9)
    service.run(settings, stop)


class Daemon:
    """Starts the service in processes that have all modules loaded, so that kills hit the work and not the start."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.nights"])

    def start(self, settings: Settings, jump_s: float = 0.0) -> BaseProcess:
        """Start a daemon."""
        process = self._context.Process(target=serve_until_told, args=(settings, jump_s))  # it may have children
        process.start()
        atexit.register(_end, process)
        return process


def _end(process: BaseProcess) -> None:
    """Leave nothing behind when a test failed."""
    if process.is_alive():
        process.kill()


def kill(process: BaseProcess) -> None:
    """Kill as a power cut does: no handler, no flush."""
    if process.pid:
        os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    assert process.exitcode == -signal.SIGKILL, process.exitcode


@contextmanager
def running(daemon: Daemon, settings: Settings) -> Iterator[BaseProcess]:
    """Run a daemon, and end it as SIGTERM does."""
    process = daemon.start(settings)
    try:
        yield process
    finally:
        process.terminate()
        process.join(60)
    assert process.exitcode == 0, process.exitcode


def query(db: Path, text: str) -> list[Any]:
    """Return the rows of a query on the ledger."""
    with closing(sqlite3.connect(db, timeout=30)) as connection:
        return connection.execute(text).fetchall()


def wait_until_watching(db: Path, process: BaseProcess, timeout_s: float = 30.0) -> None:
    """Wait until the daemon says in the database that it watches."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(sqlite3.OperationalError):  # the database is not there yet
            if query(db, f"SELECT 1 FROM watched_folder WHERE pid = {process.pid}"):
                return
        time.sleep(0.01)
    raise AssertionError(f"the daemon did not begin to watch within {timeout_s} s")


def wait_until_done(db: Path, images: int, timeout_s: float = 60.0) -> dict[str, int]:
    """Wait until no image is pending and at least so many are known; return how many are in each state."""
    deadline, states = time.monotonic() + timeout_s, dict[str, int]()
    while time.monotonic() < deadline:
        states = dict(query(db, "SELECT state, COUNT(*) FROM image WHERE state <> 'superseded' GROUP BY state"))
        if states.get("pending", 0) == 0 and sum(states.values()) >= images:
            return states
        time.sleep(0.1)
    raise AssertionError(f"after {timeout_s} s the ledger holds {states}, and {images} images should be done")


@dataclass
class Truth:
    """What a file held in its life, as field sums (cells, summed score), and what it holds at the end."""

    versions: list[tuple[int, float]] = field(default_factory=list)
    final: str = "scored"


def tiff_bytes(pixels: NDArray[Any], **options: Any) -> bytes:
    """Return a TIFF file of one image."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


class Microscope:
    """Writes images in all the ways that were seen to break watchers, and knows what each file truly holds."""

    WAYS = ("plain", "slow", "renamed", "pre-allocated", "stalled", "rewritten", "truncated")

    def __init__(self, folder: Path, model: Path, seed: int) -> None:
        self.folder = folder
        self.truth: dict[str, Truth] = {}
        self._random = random.Random(seed)
        self._passport = read_passport(model)
        folder.mkdir(parents=True, exist_ok=True)

    def sums(self, pixels: NDArray[Any]) -> tuple[int, float]:
        """Return the number of cells and their summed score of an image, as the service must find them."""
        file = ImageFile(self.folder, 0, Site("P", "A01", 1, 1), 0, 0)
        crops = prepare_field(FieldImage(file, pixels), self._passport).pixels
        return len(crops), float(mean_grey(crops).astype(np.float64).sum())

    def image(self, seed: int) -> tuple[NDArray[Any], bytes]:
        """Return an image and one of the files that it can be saved as."""
        pixels: NDArray[Any] = blobs(seed, 140, 5)
        if seed % 2:
            pixels = pixels.astype(np.uint16) * 199 + 11
        compression = (None, None, "zlib", "lzw")[seed % 4]
        return pixels, tiff_bytes(pixels, compression=compression, rowsperstrip=35)

    def write(self, number: int, way: str, pause_s: float = 0.03) -> None:
        """Write one file in one way; it rests between its steps, sometimes longer than a file may."""
        name = f"{'ABCDEFGH'[number % 8]}{number // 8 % 12 + 1:02d}_f{number // 96 + 1}_t1_cPhase_z0.tif"
        path = self.folder / name
        pixels, data = self.image(number * 2 + 1 if way == "pre-allocated" else number + 1000)
        truth = self.truth[str(path)] = Truth([self.sums(pixels)])
        half = len(data) // 2
        if way == "plain":
            path.write_bytes(data)
        elif way == "renamed":
            passing = path.with_suffix(".tif.tmp")
            passing.write_bytes(data)
            passing.replace(path)
        elif way == "truncated":
            truth.final = "failed"
            path.write_bytes(data[: self._random.randint(1, len(data) - 1)])
        elif way == "rewritten":
            path.write_bytes(data)
            time.sleep(pause_s * self._random.choice((1, 10)))
            pixels, data = self.image(number + 5000)
            truth.versions.append(self.sums(pixels))
            path.write_bytes(data)
        else:
            self._fill(path, way, data, half, pause_s)

    def _fill(self, path: Path, way: str, data: bytes, half: int, pause_s: float) -> None:
        with path.open("wb") as file:
            if way == "pre-allocated":
                file.truncate(len(data))
            if way == "slow":
                for start in range(0, len(data), len(data) // 6 + 1):
                    file.write(data[start : start + len(data) // 6 + 1])
                    file.flush()
                    time.sleep(pause_s)
                return
            file.write(data[:half])
            file.flush()
            time.sleep(pause_s * self._random.choice((2, 20, 45)))
            file.write(data[half:])

    def write_all(self, numbers: range, threads: int = 4) -> None:
        """Write files in all ways, several at a time."""
        todo = iter([(number, self.WAYS[number % len(self.WAYS)]) for number in numbers])
        lock, errors = threading.Lock(), list[Exception]()

        def work() -> None:
            while True:
                with lock:
                    item = next(todo, None)
                if item is None:
                    return
                try:
                    self.write(*item)
                except Exception as error:  # noqa: BLE001 — a thread's top: handed to the test
                    errors.append(error)

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if errors:
            raise errors[0]

    def faults(self, db: Path) -> dict[str, list[str]]:
        """Return what the ledger has lost, counted twice, or scored from pixels that the file never wholly held."""
        lost, double, wrong = [], [], []
        rows = query(
            db,
            "SELECT i.path, i.state, f.n, f.sum, i.id FROM image i LEFT JOIN field_score f ON f.image_id = i.id",
        )
        for path, truth in self.truth.items():
            mine = [row for row in rows if row[0] == path]
            live = [row for row in mine if row[1] != "superseded"]
            if [row[1] for row in live] != [truth.final]:
                lost.append(f"{path}: {[row[:3] for row in mine]}, should be {truth.final}")
            elif truth.final == "scored" and not _same(live[0][2:4], truth.versions[-1]):
                lost.append(f"{path}: its last version is not the one that counts: {live} {truth.versions}")
            if len({row[4] for row in live}) != len(live):
                double.append(path)
            for row in mine:
                if row[2] is not None and not any(_same(row[2:4], version) for version in truth.versions):
                    wrong.append(f"{path}: {row}")
        counted = query(db, "SELECT SUM(n_cells), SUM(n_images) FROM well_score")[0]
        scored = [truth for truth in self.truth.values() if truth.final == "scored"]
        should = (sum(truth.versions[-1][0] for truth in scored), len(scored))
        if not lost and tuple(counted) != should:
            double.append(f"wells count {counted}, should be {should}")
        strangers = {row[0] for row in rows} - self.truth.keys()
        return {"lost": lost, "double": double, "wrong": [*wrong, *strangers]}


def _same(found: Any, expected: tuple[int, float]) -> bool:
    return bool(found[0] == expected[0] and abs(found[1] - expected[1]) < 1e-5 * max(1, expected[0]))
