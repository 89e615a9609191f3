"""Kill the daemon at random moments while a bad microscope writes: 0 lost, 0 double, 0 wrong pixels."""

import random
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.nights import (
    Daemon,
    Microscope,
    kill,
    night_settings,
    query,
    running,
    wait_until_done,
    wait_until_watching,
)
from tests.figures import figure


def bad_night(tmp_path: Path, model: Path, files: int, kills: int, seed: int) -> None:
    db = tmp_path / "night.db"
    microscope = Microscope(tmp_path / "in", model, seed)
    config = night_settings(tmp_path / "in", db, model)
    daemon, chance = Daemon(), random.Random(seed)
    writing = threading.Thread(target=microscope.write_all, args=(range(files),))
    began = time.monotonic()
    writing.start()
    for number in range(kills):
        process = daemon.start(config)
        if chance.random() < 0.9:  # the others are killed while they start
            wait_until_watching(db, process)
        # Now and then it lives long enough to read apart what was being read when it was killed.
        time.sleep(1.5 if number % 20 == 19 else chance.expovariate(1 / 0.12))
        kill(process)
    writing.join()
    amid = query(db, "SELECT COUNT(*) FROM image WHERE state = 'scored'")[0][0]
    with running(daemon, config) as process:
        wait_until_watching(db, process)  # all may be done already, and SIGTERM is for one that runs
        states = wait_until_done(db, files, 120)
    faults = microscope.faults(db)
    with closing(sqlite3.connect(db)) as connection:
        sound = connection.execute("PRAGMA integrity_check").fetchone()[0]
    truncated = Counter(truth.final for truth in microscope.truth.values())["failed"]
    figure(
        f"{files} files, {kills} SIGKILLs, {time.monotonic() - began:.0f} s: {states} ({amid} scored amid the kills), "
        f"{truncated} were truncated; "
        f"lost {len(faults['lost'])}, double {len(faults['double'])}, wrong pixels {len(faults['wrong'])}, {sound}"
    )
    assert faults == {"lost": [], "double": [], "wrong": []}
    assert sound == "ok"
    assert amid > files / 5, "the kills hit the start only"


@pytest.mark.timeout(900)
def test_a_bad_night_of_500_files_and_300_kills_loses_nothing(tmp_path: Path, stub_model: Path) -> None:
    bad_night(tmp_path, stub_model, files=504, kills=300, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_bad_night_of_500_files_and_1000_kills_loses_nothing(tmp_path: Path, stub_model: Path) -> None:
    bad_night(tmp_path, stub_model, files=504, kills=1000, seed=2)
