"""The daemon over many files and hours: bursts, rubbish by the thousand, a soak, and the real one killed."""

import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.conftest import blobs, write_image
from tests.faults import damage
from tests.faults.nights import Daemon, kill, night_settings, query, running, tiff_bytes, wait_until_watching
from tests.figures import figure

ROOT = Path(__file__).parents[2]


def test_a_burst_of_20_000_files_is_in_the_ledger_within_two_scans(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    one = write_image(tmp_path / "one.tif", 1)
    folders = [folder / f"P{number}" for number in range(20)]
    for path in folders:
        path.mkdir(parents=True)
    config = night_settings(folder, db, stub_model, scan_interval_s=5.0)
    config = config.model_copy(update={"watch": [config.watch[0].model_copy(update={"plate": ""})]})
    daemon = Daemon().start(config)
    wait_until_watching(db, daemon)
    for number in range(20_000):
        name = f"{'ABCDEFGH'[number % 8]}{number // 8 % 12 + 1:02d}_f{number // 1920}_t1_cPhase_z0.tif"
        os.link(one, folders[number // 96 % 20] / name)
    began = time.monotonic()
    while (seen := query(db, "SELECT COUNT(*) FROM image")[0][0]) < 20_000:
        assert time.monotonic() < began + 60, seen
        time.sleep(0.2)
    took = time.monotonic() - began
    kill(daemon)
    figure(f"20 000 files in one burst: all in the ledger {took:.1f} s after the last one (a scan every 5 s)")


def rubbish(tmp_path: Path, model: Path, each: int) -> None:
    """Feed mutated TIFFs to a daemon: it lives, and each file is done or failed with a reason."""
    folder, db = tmp_path / "in", tmp_path / "s.db"
    (tmp_path / "samples").mkdir()
    chance, number = np.random.default_rng(7), 0
    for kind, sample in enumerate(damage.samples(tmp_path / "samples")):
        (folder / f"P{kind}").mkdir(parents=True)
        for data in damage.mutations(sample, each, chance):
            name = f"{'ABCDEFGH'[number % 8]}{number // 8 % 12 + 1:02d}_f{number}_t1_cPhase_z0.tif"
            (folder / f"P{kind}" / name).write_bytes(data)
            number += 1
    good = write_image(folder / "good" / "A01_f1_t1_cPhase_z0.tif", 1)
    config = night_settings(folder, db, model, retries=1, zero_tail_hold_s=0.2)
    began = time.monotonic()
    with running(Daemon(), config) as process:
        wait_until_watching(db, process)
        todo = "SELECT COUNT(*), COUNT(*) FILTER (WHERE state = 'pending') FROM image WHERE page = 0"
        while (now := query(db, todo)[0]) < (number + 1, 0) or now[1]:
            assert time.monotonic() < began + 1200
            time.sleep(0.3)
        peak = next(
            int(line.split()[1]) / 1024
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
    states = Counter(row[0] for row in query(db, "SELECT state FROM image WHERE page = 0"))
    figure(
        f"{number} mutated TIFFs in {time.monotonic() - began:.0f} s: {dict(states)}, daemon alive, peak {peak:.0f} MiB"
    )
    assert states.total() >= number
    assert query(db, f"SELECT state FROM image WHERE path = '{good}'") == [("scored",)]
    assert query(db, "SELECT COUNT(*) FROM image WHERE state <> 'scored' AND reason = ''") == [(0,)]
    assert not query(db, "SELECT reason FROM image WHERE reason LIKE '%please report%' LIMIT 5")
    assert peak < 1024


def test_rubbish_by_the_thousand_leaves_the_daemon_alive(tmp_path: Path, stub_model: Path) -> None:
    rubbish(tmp_path, stub_model, each=30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_9_000_mutated_files_leave_the_daemon_alive(tmp_path: Path, stub_model: Path) -> None:
    rubbish(tmp_path, stub_model, each=9000 // len(damage.samples(_made(tmp_path / "count"))) + 1)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def soak(tmp_path: Path, model: Path, images: int, a_second: float, warm: int) -> tuple[float, int]:
    """Land images at a steady rate; return MB of memory gained in 1 000 images after the first `warm`, and handles."""
    folder, db = tmp_path / "in", tmp_path / "s.db"
    contents = [tiff_bytes(blobs(seed, 256, 12)) for seed in range(20)]
    folder.mkdir()
    points: list[tuple[int, float]] = []
    handles: list[int] = []
    with running(Daemon(), night_settings(folder, db, model)) as process:
        wait_until_watching(db, process)
        watched, began = psutil.Process(process.pid), time.monotonic()
        for number in range(images):
            name = f"{'ABCDEFGH'[number % 8]}{number // 8 % 12 + 1:02d}_f{number // 96}_t1_cPhase_z0.tif"
            (folder / f"{name}.tmp").write_bytes(contents[number % 20])
            (folder / f"{name}.tmp").replace(folder / name)
            time.sleep(max(0.0, began + number / a_second - time.monotonic()))
            if number >= warm and number % 10 == 0:
                points.append((number, watched.memory_info().rss / 1e6))
                handles.append(watched.num_fds())
        deadline = time.monotonic() + 60
        while query(db, "SELECT COUNT(*) FROM image WHERE state = 'scored'")[0][0] < images:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    numbers, megabytes = np.array(points).T
    slope = float(np.polyfit(numbers, megabytes, 1)[0]) * 1000
    quarter = len(handles) // 4  # at its least: what is open now and then depends on how busy it is
    early, late = min(handles[:quarter]), min(handles[-quarter:])
    figure(f"soak of {images} images at {a_second}/s: {slope:.2f} MB per 1 000 images, handles {early} → {late}")
    return slope, late - early


def test_a_short_soak_leaks_no_handles(tmp_path: Path, stub_model: Path) -> None:
    slope, handles = soak(tmp_path, stub_model, images=400, a_second=12, warm=200)
    assert handles <= 1
    assert slope < 30  # too short to tell a leak from memory that is not given back at once


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_soak_of_ten_minutes_leaks_nothing(tmp_path: Path, stub_model: Path) -> None:
    slope, handles = soak(tmp_path, stub_model, images=1200, a_second=2, warm=300)
    assert handles <= 1
    assert slope < 1


@pytest.mark.timeout(400)
def test_the_real_daemon_is_killed_and_goes_on(tmp_path: Path) -> None:
    """The shipped model, the command line, a kill while it scores: the answer equals one that was never disturbed."""
    folder, db = tmp_path / "P", tmp_path / "s.db"
    for number in range(40):
        write_image(folder / f"{'ABCD'[number % 4]}{number // 4 + 1:02d}_f1_t1_cPhase_z0.tif", number)
    program = [sys.executable, "-c", "from sesmo_live.cli import main; main()"]
    command = [*program, "run", "--watch", str(folder), "--db", str(db), "--no-refuse", "--no-page"]  # spots: no cells
    for wanted in (1, 40):
        with (tmp_path / f"log{wanted}").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
            deadline = time.monotonic() + 100
            while _scored(db) < wanted:
                assert process.poll() is None, (tmp_path / f"log{wanted}").read_text()
                assert time.monotonic() < deadline, (tmp_path / f"log{wanted}").read_text()
                time.sleep(0.005)
            (process.kill if wanted == 1 else process.terminate)()
            assert process.wait(60) == (-9 if wanted == 1 else 0)
            if wanted == 1:
                amid = _scored(db)
    again = tmp_path / "undisturbed.db"
    subprocess.run(
        [*program, "score", str(folder), "--db", str(again), "--no-refuse"], cwd=ROOT, check=True, capture_output=True
    )
    text = "SELECT well, n, sum FROM image JOIN field_score ON image_id = id ORDER BY well"
    assert query(db, text) == query(again, text)
    figure(f"the real daemon, killed with {amid} of 40 images scored: 40 scored, each as undisturbed")


def _scored(db: Path) -> int:
    try:
        return int(query(db, "SELECT COUNT(*) FROM image WHERE state = 'scored'")[0][0]) if db.exists() else 0
    except sqlite3.OperationalError:  # the tables are not there yet
        return 0
