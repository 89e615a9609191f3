"""Surprises that a reviewer found, each once fatal or forgotten: they must never come back."""

import ctypes
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tifffile

from acquisition.tiff import read_pixels
from sesmo_live.config import Settings
from sesmo_live.service import score_folder
from tests.conftest import blobs, write_image
from tests.faults.nights import night_settings, query
from tests.faults.test_service_faults import Wait, site, until, zeros_at_the_end
from tests.test_service import counts, during

pytestmark = pytest.mark.usefixtures("stub_scorer")

ROOT = Path(__file__).parents[2]


def lethal_pixels(path: Path, page: int = 0) -> Any:
    """Stand in for a decoder with a fault: one file makes it write where it must not."""
    if "A01" in path.name:
        ctypes.string_at(0)
    return read_pixels(path, page)


def test_a_file_that_kills_the_process_does_so_once(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    for number in range(6):
        write_image(folder / site(number), number)
    program = (
        "from tests.faults.test_surprises import *\n"
        "from sesmo_live import service\n"
        "from tests.stub import lazy_stub\n"
        "service.lazy_scorer, service.read_pixels = lazy_stub, lethal_pixels\n"
        f"score_folder(night_settings(Path({str(folder)!r}), Path({str(db)!r}), Path({str(stub_model)!r})))\n"
    )
    deaths = [subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode for _ in range(3)]
    assert deaths == [-11, 0, 0]
    states = dict(query(db, "SELECT name, state FROM image"))
    assert states.pop(site(0)) == "failed"
    assert set(states.values()) == {"scored"}
    (reason,) = query(db, "SELECT reason FROM image WHERE state = 'failed'")[0]
    assert "its decoder died" in reason
    assert not db.with_name("s.db.reading").exists()


def test_times_beyond_the_calendar_and_before_it_end_no_night(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    for number, seconds in enumerate((-(10**10), 0, 5 * 10**9, 4 * 10**11)):
        path = write_image(folder / site(number), number)
        os.utime(path, (seconds, seconds))
    assert counts(score_folder(night_settings(folder, db, stub_model))) == (4, 4, 0, 0, 0)


def test_a_surprise_in_one_file_fails_that_file_only(
    tmp_path: Path, stub_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sesmo_live.ingest import intake, placing

    folder, db = tmp_path / "in", tmp_path / "s.db"
    for number in range(3):
        write_image(folder / site(number), number)
    real = placing.place_pages

    def place_pages(plan: Any, seen: Any, *rest: Any, **options: Any) -> Any:
        if seen.path.name == site(1):
            raise ZeroDivisionError("nobody thought of this")
        return real(plan, seen, *rest, **options)

    monkeypatch.setattr(intake, "place_pages", place_pages)
    summary = score_folder(night_settings(folder, db, stub_model))
    assert counts(summary) == (3, 2, 1, 0, 0)
    assert "nobody thought of this; please report it" in summary.failures[0][1]


def test_a_stack_cut_off_in_one_go_says_that_pages_are_missing(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    folder.mkdir()
    with tifffile.TiffWriter(tmp_path / "whole.tif") as stack:
        for page in range(6):
            stack.write(blobs(page, 140, 5), contiguous=False, metadata=None)
    (folder / site(0)).write_bytes((tmp_path / "whole.tif").read_bytes()[:-3000])

    def act(wait_for: Wait) -> None:
        wait_for(lambda now: now.scored == 4 and now.failed == 1 and now.pending == 0)

    during(night_settings(folder, db, stub_model), act)
    again = score_folder(night_settings(folder, db, stub_model))
    assert (again.progress.unchanged, again.progress.failed) == (4, 1)


def two_folders(config: Settings, other: Path) -> Settings:
    second = config.watch[0].model_copy(update={"folder": other, "plate": "Q"})
    return config.model_copy(update={"watch": [config.watch[0], second]})


def test_a_file_moved_to_another_watched_folder_keeps_its_scores_when_its_old_path_is_used_again(
    tmp_path: Path, stub_model: Path
) -> None:
    one, two, db = tmp_path / "one", tmp_path / "two", tmp_path / "s.db"
    two.mkdir()
    write_image(one / site(0), 1)

    def act(wait_for: Wait) -> None:
        wait_for(lambda now: now.scored == 1)
        shutil.move(one / site(0), two / site(0))
        until(lambda: query(db, f"SELECT 1 FROM image WHERE path = '{two / site(0)}' AND state = 'scored'"))
        write_image(one / site(0), 2)
        until(lambda: query(db, f"SELECT 1 FROM image WHERE path = '{one / site(0)}' AND state = 'scored'"))
        time.sleep(0.5)

    during(two_folders(night_settings(one, db, stub_model), two), act)
    found = query(db, "SELECT name, n_images FROM well_score JOIN plate ON plate.id = plate_id ORDER BY name")
    assert found == [("P", 1), ("Q", 1)]


def test_a_file_moved_to_another_plates_folder_counts_there_at_once(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    config = night_settings(folder, db, stub_model)
    config = config.model_copy(update={"watch": [config.watch[0].model_copy(update={"plate": ""})]})
    write_image(folder / "P1" / site(0), 1)
    write_image(folder / "P2" / site(1), 2)
    score_folder(config)
    shutil.move(folder / "P1" / site(0), folder / "P2" / site(0))
    score_folder(config)
    found = query(db, "SELECT name, SUM(n_images) FROM well_score JOIN plate ON plate.id = plate_id GROUP BY name")
    assert found == [("P2", 2)]


def test_a_locked_database_while_the_share_is_away_ends_nothing_and_counts_nothing_twice(
    tmp_path: Path, stub_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.engine.PAUSE_AFTER_S", 0.3)
    folder, away, db = tmp_path / "in", tmp_path / "away", tmp_path / "s.db"
    for number in range(5):
        write_image(folder / site(number), number)

    def act(wait_for: Wait) -> None:
        wait_for(lambda now: now.scored == 5)
        folder.rename(away)
        wait_for(lambda now: bool(now.trouble))
        with closing(sqlite3.connect(db, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            wait_for(lambda now: "paused" in now.trouble)
        wait_for(lambda now: "paused" not in now.trouble)
        write_image(away / site(5), 5)
        away.rename(folder)
        wait_for(lambda now: now.scored == 6 and not now.trouble)

    summary = during(night_settings(folder, db, stub_model), act)
    assert counts(summary) == (6, 6, 0, 0, 0)
    assert summary.progress.cells == query(db, "SELECT COUNT(*) FROM cell")[0][0]


def test_a_file_that_changes_while_it_waits_for_its_retry_rests_first(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    whole = write_image(tmp_path / "whole.tif", 1).read_bytes()
    other = write_image(tmp_path / "other.tif", 2).read_bytes()
    path = folder / site(0)
    folder.mkdir()
    path.write_bytes(whole[:5000])
    amid: list[Any] = []

    def act(wait_for: Wait) -> None:
        until(lambda: db.exists() and _reason(db).find("ends at byte") >= 0)
        for step in range(20):
            path.write_bytes(other if step % 2 else whole)
            time.sleep(0.1)
            amid.extend(query(db, "SELECT 1 FROM field_score"))
        wait_for(lambda now: now.scored == 1)

    during(night_settings(folder, db, stub_model, settle_s=1.0, retry_after_s=0.2, retries=9), act)
    assert not amid, "scored amid the writes"


def _reason(db: Path) -> str:
    try:
        return str((query(db, "SELECT reason FROM image") or [[""]])[0][0])
    except sqlite3.OperationalError:
        return ""


def test_a_manifest_line_that_comes_late_is_believed(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    data = zeros_at_the_end(folder / site(0))

    def act(wait_for: Wait) -> None:
        wait_for(lambda now: now.failed == 1)
        line = json.dumps({"file": site(0), "size": len(data)})
        (folder / "transfer_manifest.jsonl").write_text(f"{line}\n")
        wait_for(lambda now: now.scored == 1 and now.failed == 0)

    during(night_settings(folder, db, stub_model), act)


def test_a_copy_is_judged_anew_when_its_original_becomes_another_image(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    write_image(folder / "1" / site(0), 1)

    def act(wait_for: Wait) -> None:
        wait_for(lambda now: now.scored == 1)
        shutil.copy(folder / "1" / site(0), write_image(folder / "2" / "x.txt", 1).with_name(site(0)))
        wait_for(lambda now: now.skipped == 1)
        write_image(folder / "1" / site(0), 7)
        wait_for(lambda now: now.skipped == 0 and now.pending == 0)

    during(night_settings(folder, db, stub_model), act)
    assert not query(db, "SELECT 1 FROM image WHERE reason LIKE 'a copy of%' AND state = 'skipped'")


def test_stopping_a_back_fill_gives_up_nothing(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    for number in range(60):
        write_image(folder / site(number), number)
    stop = threading.Event()
    score_folder(night_settings(folder, db, stub_model), stop, lambda now: stop.set() if now.scored else None)
    assert query(db, "SELECT COUNT(*) FROM image WHERE state = 'failed'") == [(0,)]
