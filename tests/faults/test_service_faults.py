"""What goes wrong around a running service: full disks, lost shares, zeros, stacks that grow, sets with gaps."""

import json
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from db.engine import open_engine
from db.ledger import ask_again
from sesmo_live.config import Settings
from sesmo_live.errors import SesmoError
from sesmo_live.service import Progress, score_folder
from tests.conftest import blobs, write_image
from tests.faults.nights import night_settings, query
from tests.figures import figure
from tests.test_service import counts, during

pytestmark = pytest.mark.usefixtures("stub_scorer")

Wait = Callable[[Callable[[Progress], bool]], None]
ROW = "SELECT state, reason, attempts FROM image WHERE path LIKE '%{}%' AND state <> 'superseded'"


def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def site(number: int) -> str:
    return f"{'ABCDEFGH'[number % 8]}{number // 8 + 1:02d}_f1_t1_cPhase_z0.tif"


def test_a_share_that_goes_away_pauses_the_folder_and_costs_no_image_an_attempt(
    tmp_path: Path, stub_model: Path
) -> None:
    folder, away, db = tmp_path / "in", tmp_path / "away", tmp_path / "s.db"
    write_image(folder / site(0), 1)

    def act(wait_for: Wait) -> None:
        wait_for(lambda now: now.scored == 1)
        write_image(folder / site(1), 2)
        folder.rename(away)
        wait_for(lambda now: bool(now.trouble))
        write_image(away / site(2), 3)
        time.sleep(1.0)
        assert query(db, "SELECT COUNT(*) FROM image WHERE state = 'failed'") == [(0,)]
        away.rename(folder)
        wait_for(lambda now: now.scored == 3 and not now.trouble)

    summary = during(night_settings(folder, db, stub_model), act)
    assert counts(summary) == (3, 3, 0, 0, 0)
    assert query(db, "SELECT MAX(attempts) FROM image") == [(0,)]
    kinds = query(db, "SELECT kind, subject, closed_at IS NOT NULL FROM incident")
    assert kinds == [("share-gone", str(folder), 1)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 40 MB, as root can."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"only root can mount a small disk: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(65536)):
            pass


def test_a_full_disk_pauses_the_run_and_it_goes_on_by_itself(
    tmp_path: Path, small_disk: Path, stub_model: Path
) -> None:
    folder, db = tmp_path / "in", small_disk / "s.db"
    folder.mkdir()
    ballast = small_disk / "ballast"
    resumed = []

    def act(wait_for: Wait) -> None:
        for number in range(20):
            write_image(folder / site(number), number)
        wait_for(lambda now: now.scored == 20)
        fill(ballast)
        for number in range(20, 80):
            write_image(folder / site(number), number)
        wait_for(lambda now: "paused" in now.trouble)
        time.sleep(1.0)
        ballast.unlink()
        freed = time.monotonic()
        wait_for(lambda now: now.scored > 20)
        resumed.append(time.monotonic() - freed)
        wait_for(lambda now: now.scored == 80)

    summary = during(night_settings(folder, db, stub_model), act)
    assert counts(summary) == (80, 80, 0, 0, 0)
    assert query(db, "SELECT MAX(attempts), COUNT(*) FROM image") == [(0, 80)]
    assert query(db, "PRAGMA integrity_check") == [("ok",)]
    assert query(db, "SELECT kind, closed_at IS NOT NULL FROM incident") == [("database-paused", 1)]
    figure(f"disk full: went on {resumed[0]:.1f} s after there was room; 80 of 80 images scored once")
    assert resumed[0] <= 10


def test_a_stack_that_grows_gives_each_page_once_and_before_its_end(tmp_path: Path, stub_model: Path) -> None:
    folder, db, pages = tmp_path / "in", tmp_path / "s.db", 40
    folder.mkdir()
    early: list[int] = []

    def act(wait_for: Wait) -> None:
        path = folder / "C05_f1_t1_cPhase_z0.tif"
        with tifffile.TiffWriter(path) as stack:
            for page in range(pages):
                stack.write(blobs(page, 140, 5), contiguous=False, metadata=None)
                time.sleep(0.09)
                early.append(scored_so_far(db))
        wait_for(lambda now: now.scored == pages and now.pending == 0)
        time.sleep(0.5)

    summary = during(night_settings(folder, db, stub_model), act)
    assert counts(summary) == (pages, pages, 0, 0, 0)
    found = query(
        db, "SELECT i.page, i.timepoint, i.generation, f.n FROM image i JOIN field_score f ON f.image_id = i.id"
    )
    expected = _cells_of_pages(tmp_path, stub_model, pages)
    assert sorted(found) == [(page, page + 1, 1, expected[page]) for page in range(pages)]
    assert max(early) >= pages // 4, "no page was released before the stack was closed"
    figure(f"a growing stack of {pages} pages: {max(early)} scored before its end, each page once")


def scored_so_far(db: Path) -> int:
    try:
        return int(query(db, "SELECT COUNT(*) FROM field_score")[0][0])
    except sqlite3.OperationalError:  # the tables are not there yet
        return 0


def _cells_of_pages(tmp_path: Path, model: Path, pages: int) -> list[int]:
    folder = tmp_path / "apart"
    for page in range(pages):
        write_stack_page(folder / f"A01_f1_t{page + 1}_cPhase_z0.tif", page)
    score_folder(night_settings(folder, tmp_path / "apart.db", model))
    return [
        row[0]
        for row in query(
            tmp_path / "apart.db", "SELECT n FROM field_score JOIN image ON id = image_id ORDER BY timepoint"
        )
    ]


def write_stack_page(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, blobs(seed, 140, 5))


def test_a_stack_that_stops_half_way_says_that_pages_are_missing(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    folder.mkdir()
    with tifffile.TiffWriter(tmp_path / "whole.tif") as stack:
        for page in range(6):
            stack.write(blobs(page, 140, 5), contiguous=False, metadata=None)
    data = (tmp_path / "whole.tif").read_bytes()
    path = folder / "C05_f1_t1_cPhase_z0.tif"

    def act(wait_for: Wait) -> None:
        with path.open("wb") as file:
            for start in range(0, len(data) * 2 // 3, 4000):
                file.write(data[start : start + 4000])
                file.flush()
                time.sleep(0.05)
        wait_for(lambda now: now.failed == 1 and now.scored >= 2)
        path.write_bytes(data)
        wait_for(lambda now: now.scored == 6 and now.failed == 0)

    assert counts(during(night_settings(folder, db, stub_model), act)) == (6, 6, 0, 0, 0)


def test_a_missing_file_of_a_set_is_awaited_and_then_named(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    folder.mkdir()
    names = [site(0), site(1)]
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'
        ' UUID="urn:uuid:{uuid}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8"'
        ' SizeX="140" SizeY="140" SizeC="1" SizeZ="1" SizeT="2">'
        '<TiffData FirstT="0" IFD="0" PlaneCount="1"><UUID FileName="{0}">urn:uuid:0</UUID></TiffData>'
        '<TiffData FirstT="1" IFD="0" PlaneCount="1"><UUID FileName="{1}">urn:uuid:1</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )

    def write(number: int) -> None:
        text = xml.format(*names, uuid=number)
        tifffile.imwrite(folder / names[number], blobs(number, 140, 5), description=text, metadata=None)

    def act(wait_for: Wait) -> None:
        write(0)
        wait_for(lambda now: now.scored == 1 and now.pending == 1)
        (found,) = query(db, ROW.format(names[1]))
        assert found[0] == "pending"
        assert names[0] in found[1]
        write(1)
        wait_for(lambda now: now.scored == 2)

    assert counts(during(night_settings(folder, db, stub_model), act)) == (2, 2, 0, 0, 0)
    (folder / names[1]).unlink()
    summary = score_folder(night_settings(folder, tmp_path / "later.db", stub_model))
    assert counts(summary) == (2, 1, 1, 0, 0)
    assert "part of its set" in summary.failures[0][1]


def zeros_at_the_end(path: Path) -> bytes:
    """Write an image whose lower edge is black, and return its file."""
    pixels = blobs(3, 140, 5)
    pixels[-10:] = 0
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, pixels)
    return path.read_bytes()


def test_a_file_that_ends_in_zeros_is_held_then_fails_with_its_remedies(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    zeros_at_the_end(folder / site(0))

    def act(wait_for: Wait) -> None:
        began = time.monotonic()
        held = until(lambda: db.exists() and _rows_if(db, "held for"))
        assert held[0][0] == "pending"
        wait_for(lambda now: now.failed == 1)
        assert time.monotonic() - began >= 0.8

    summary = during(night_settings(folder, db, stub_model), act)
    for remedy in ("transfer_manifest.jsonl", 'arrival = "rename"', "black_edges"):
        assert remedy in summary.failures[0][1]


def _rows_if(db: Path, words: str) -> list[Any]:
    try:
        return query(db, f"SELECT state FROM image WHERE reason LIKE '%{words}%'")
    except sqlite3.OperationalError:  # the tables are not there yet
        return []


def test_a_page_of_a_stack_that_ends_in_zeros_fails_alone(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    folder.mkdir()
    with tifffile.TiffWriter(folder / site(0)) as stack:
        for page in range(5):
            pixels = blobs(page, 140, 5)
            if page == 1:
                pixels[-10:] = 0
            stack.write(pixels, contiguous=False, metadata=None)

    def act(wait_for: Wait) -> None:
        wait_for(lambda now: now.failed >= 1 and now.pending == 0)

    summary = during(night_settings(folder, db, stub_model), act)
    states = dict(query(db, "SELECT page, state FROM image"))
    assert states[0] == states[2] == states[3] == "scored"
    assert states[1] == "failed"
    assert "black_edges" in summary.failures[0][1]


def options(config: Settings, **watch: Any) -> Settings:
    return config.model_copy(update={"watch": [config.watch[0].model_copy(update=watch)]})


@pytest.mark.parametrize("voucher", ["manifest", "rename", "black_edges", "filled"])
def test_a_file_that_ends_in_zeros_is_scored_when_something_vouches_for_it(
    tmp_path: Path, stub_model: Path, voucher: str
) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    data = zeros_at_the_end(folder / site(0))
    config = night_settings(folder, db, stub_model)
    if voucher == "manifest":
        line = json.dumps({"file": site(0), "size": len(data)})
        (folder / "transfer_manifest.jsonl").write_text(f"{line}\n")
    elif voucher == "rename":
        config = options(config, arrival="rename")
    elif voucher == "black_edges":
        config = options(config, black_edges=True)

    def act(wait_for: Wait) -> None:
        if voucher == "filled":
            until(lambda: db.exists() and _rows_if(db, "held for"))
            write_image(folder / site(0), 3)
        wait_for(lambda now: now.scored == 1)

    assert counts(during(config, act)) == (1, 1, 0, 0, 0)


def test_a_manifest_that_disagrees_keeps_a_file_out(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    path = write_image(folder / site(0), 3)
    lines = [{"file": site(0), "size": path.stat().st_size, "sha256": "0" * 64}]
    (folder / "transfer_manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = score_folder(night_settings(folder, db, stub_model))
    assert counts(summary) == (1, 0, 1, 0, 0)
    assert "manifest" in summary.failures[0][1]


def test_a_running_daemon_tries_again_what_it_is_asked_to(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    good = write_image(folder / site(0), 1).read_bytes()
    bad = folder / site(1)
    bad.write_bytes(b"II*\0" + b"\xff" * 500)

    def act(wait_for: Wait) -> None:
        wait_for(lambda now: now.scored == 1 and now.failed == 1)
        before = bad.stat()
        bad.write_bytes(good)
        os.utime(bad, ns=(before.st_atime_ns, before.st_mtime_ns))
        wait_for(lambda now: now.scored == 2 or now.skipped == 1 or now.failed == 1)
        engine = open_engine(db, write=True)
        with engine.begin() as connection:
            ask_again(connection, {"folder": folder})
        engine.dispose()
        wait_for(lambda now: now.failed == 0)

    assert during(night_settings(folder, db, stub_model), act).progress.failed == 0


def test_a_lost_folder_ends_a_back_fill_loudly_and_the_next_one_goes_on(tmp_path: Path, stub_model: Path) -> None:
    folder, away, db = tmp_path / "in", tmp_path / "away", tmp_path / "s.db"
    for number in range(60):
        write_image(folder / site(number), number)

    def lose(now: Progress) -> None:
        if now.images >= 60 and folder.exists():
            folder.rename(away)

    with pytest.raises(SesmoError, match="went away; bring it back"):
        score_folder(night_settings(folder, db, stub_model), threading.Event(), lose)
    away.rename(folder)
    assert query(db, "SELECT COUNT(*) FROM image WHERE state = 'failed'") == [(0,)]
    summary = score_folder(night_settings(folder, db, stub_model))
    assert summary.progress.scored + summary.progress.unchanged == 60


def test_bombs_and_rubbish_cost_no_other_image_its_score(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    write_image(folder / site(0), 1)
    tifffile.imwrite(folder / site(1), np.zeros((20000, 20000), np.uint16), compression="zlib")
    shutil.copy(folder / site(1), folder / site(2))
    summary = score_folder(night_settings(folder, db, stub_model))
    assert counts(summary) == (3, 1, 2, 0, 0)
    assert all("above the limit" in reason for _, reason in summary.failures)
