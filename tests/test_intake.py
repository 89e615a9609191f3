"""What happens to the ledger when layouts are corrected, files move, grow, vanish and come back."""

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from acquisition.ndtiff import ndtiff_pixels
from db.care import upgrade
from db.engine import open_engine, open_reader
from db.plates import import_treatments
from sesmo_live import service
from sesmo_live.errors import ModelError, UsageError
from sesmo_live.records import Pixels, Treatment
from sesmo_live.results import find_plate, timecourse
from sesmo_live.service import score_folder
from tests.conftest import blobs, settings, write_image
from tests.stub import mean_grey, write_stub_model
from tests.test_service import content, counts, course, during, rows

pytestmark = pytest.mark.usefixtures("stub_scorer")
NAME = "A01_f1_t1_cPhase_z0.tif"


def states(db: Path) -> list[tuple[str, str]]:
    return [(Path(path).name, state) for path, _, state, _ in rows(db) if state != "superseded"]


def ome(path: Path, channel: str, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, blobs(seed), ome=True, metadata={"axes": "YX", "Channel": {"Name": channel}})


@pytest.mark.parametrize("wanted", ["", "phase contrast"])
def test_a_channel_named_only_inside_the_files_is_chosen_the_same_in_every_run(
    tmp_path: Path, stub_model: Path, wanted: str
) -> None:
    for timepoint in (1, 2, 3):
        ome(tmp_path / "in" / f"P_B02_s1_w1_t{timepoint}" / "P_B02_s1_w1.tif", "DAPI", timepoint)
    folder = tmp_path / "two"
    for well in ("B02", "B03"):
        ome(folder / f"P_{well}_s1_w1.tif", "DAPI", 1)
        ome(folder / f"P_{well}_s1_w2.tif", "Phase contrast", 2)
    config = settings(folder, tmp_path / "s.db", stub_model, plate="P", layout="imagexpress", channel=wanted)
    assert counts(score_folder(config)) == (4, 2, 0, 2, 0)
    before = content(tmp_path / "s.db")
    assert counts(score_folder(config)) == (4, 0, 0, 0, 4)
    assert content(tmp_path / "s.db") == before
    ome(folder / "P_B04_s1_w1.tif", "DAPI", 3)
    ome(folder / "P_B04_s1_w2.tif", "Phase contrast", 4)
    assert counts(score_folder(config)) == (6, 1, 0, 1, 4)
    scored = [Path(path).stem[-2:] for path, _, state, _ in rows(tmp_path / "s.db") if state == "scored"]
    assert scored == ["w2"] * 3


def test_a_corrected_plate_name_takes_the_scores_along(tmp_path: Path, stub_model: Path) -> None:
    write_image(tmp_path / "in" / NAME, 1)
    score_folder(settings(tmp_path / "in", tmp_path / "s.db", stub_model, plate="P"))
    again = score_folder(settings(tmp_path / "in", tmp_path / "s.db", stub_model, plate="P7"))
    assert counts(again) == (1, 0, 0, 0, 1)
    assert course(tmp_path / "s.db", "P7")[0].n_images == 1
    assert course(tmp_path / "s.db", "P") == []
    other = write_stub_model(tmp_path / "other", "other")
    score_folder(settings(tmp_path / "in", tmp_path / "s.db", other, plate="P8"))
    assert course(tmp_path / "s.db", "P8", model="other")[0].n_images == 1


def test_a_corrected_pattern_moves_scored_images_to_their_right_wells(tmp_path: Path, stub_model: Path) -> None:
    write_image(tmp_path / "in" / "x_B03_C04.tif", 1)
    common: dict[str, Any] = {"plate": "P", "layout": "regex"}
    wrong = settings(tmp_path / "in", tmp_path / "s.db", stub_model, pattern=r"x_(?P<well>\w\d\d)", **common)
    score_folder(wrong)
    right = settings(tmp_path / "in", tmp_path / "s.db", stub_model, pattern=r"_(?P<well>\w\d\d)\.tif", **common)
    assert counts(score_folder(right)) == (1, 0, 0, 0, 1)
    assert [score.well for score in course(tmp_path / "s.db")] == ["C04"]


def test_the_remedies_that_are_printed_work(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    write_image(folder / "10X_T0001_XY01_00001_Z001_CH2.tif", 1)
    first = score_folder(settings(folder, db, stub_model, plate="P"))
    assert "XY01" in first.failures[0][1]
    assert "wells = {" in first.failures[0][1]
    mapped = settings(folder, db, stub_model, plate="P", wells={"XY01": "B02"})
    assert counts(score_folder(mapped)) == (1, 1, 0, 0, 0)
    assert course(db, well="B02")[0].n_images == 1


def test_of_two_images_for_one_place_the_second_is_scored_once_the_first_is_gone(
    tmp_path: Path, stub_model: Path
) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    config = settings(folder, db, stub_model, plate="P")
    first = write_image(folder / "a" / NAME, 1)
    score_folder(config)
    write_image(folder / "b" / NAME, 2)
    second = score_folder(config)
    assert "remove one and run again" in second.failures[0][1]
    first.unlink()
    third = score_folder(config)
    assert counts(third) == (1, 1, 0, 0, 0)
    assert course(db)[0].n_images == 1
    kept = rows(db, "SELECT state, reason FROM image WHERE path LIKE '%/a/%'")
    assert kept[0][0] == "superseded"
    assert "took its place" in kept[0][1]


def test_a_file_that_vanishes_is_failed_not_pending_for_ever_and_scored_when_it_is_back(
    tmp_path: Path, stub_model: Path
) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    folder.mkdir()
    whole = write_image(tmp_path / "whole.tif", 1).read_bytes()
    path = folder / NAME
    config = settings(folder, db, stub_model, plate="P")

    def act(wait_for: Any) -> None:
        path.write_bytes(whole[:20_000])
        wait_for(lambda now: now.pending == 1)
        path.unlink()
        wait_for(lambda now: now.failed == 1)

    assert during(config, act).progress.failed == 1
    assert "went away" in rows(db)[0][3]
    assert counts(score_folder(config)) == (0, 0, 0, 0, 0)
    path.write_bytes(whole)
    assert counts(score_folder(config)) == (1, 1, 0, 0, 0)
    # One that was pending when the service was killed, and is gone at the next start, is failed too.
    with open_engine(db, write=True).begin() as connection:
        connection.exec_driver_sql("UPDATE image SET state = 'pending', reason = 'waiting'")
    path.unlink()
    assert counts(score_folder(config)) == (1, 0, 1, 0, 0)
    assert counts(score_folder(config)) == (0, 0, 0, 0, 0)


def test_a_stack_that_grows_keeps_its_scores_while_a_page_is_half_written(tmp_path: Path, stub_model: Path) -> None:
    pages = np.stack([blobs(k) for k in range(6)])
    path = tmp_path / "in" / NAME
    path.parent.mkdir()
    tifffile.imwrite(path, pages[:4], photometric="minisblack", metadata=None)
    four = path.read_bytes()
    tifffile.imwrite(path, pages, photometric="minisblack", metadata=None)
    six = path.read_bytes()
    path.write_bytes(four)
    config = settings(path.parent, tmp_path / "s.db", stub_model, plate="P")
    assert counts(score_folder(config)) == (4, 4, 0, 0, 0)
    path.write_bytes(six[: len(six) - 30_000])
    score_folder(config)
    assert [score.timepoint for score in course(tmp_path / "s.db")] == [1, 2, 3, 4]
    path.write_bytes(six)
    assert counts(score_folder(config)) == (6, 2, 0, 0, 4)
    path.write_bytes(four)
    score_folder(config)
    assert [score.timepoint for score in course(tmp_path / "s.db")] == [1, 2, 3, 4]
    assert rows(tmp_path / "s.db", "SELECT count(*) FROM image WHERE state = 'superseded'") == [(2,)]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_ndtiff_folder_that_grows_is_scored_page_by_page_and_read_once(
    tmp_path: Path, stub_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ndstorage import NDTiffDataset

    reads: list[int] = []

    def count(path: Path, page: int) -> Pixels:
        reads.append(page)
        return ndtiff_pixels(path, page)

    monkeypatch.setattr(service, "ndtiff_pixels", count)
    folder = tmp_path / "in"
    folder.mkdir()
    config = settings(folder, tmp_path / "s.db", stub_model, plate="P", wells={"Pos0": "B02"})
    data = NDTiffDataset(str(folder), name="acq", summary_metadata={}, writable=True)

    def act(wait_for: Any) -> None:
        for timepoint in range(6):
            axes = {"time": timepoint, "position": "Pos0"}
            data.put_image(axes, blobs(timepoint).astype(np.uint16), {"PositionName": "Pos0"})
            time.sleep(0.3)
        data.finish()
        data.close()
        wait_for(lambda now: now.scored == 6)

    summary = during(config, act)
    assert summary.progress.scored == 6, rows(tmp_path / "s.db")
    assert [score.timepoint for score in course(tmp_path / "s.db", well="B02")] == list(range(6))
    assert len(reads) <= 8


def test_a_path_that_is_used_again_for_another_plate_costs_neither_its_scores(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    config = settings(folder, db, stub_model, barcode_file="barcode.txt")
    write_image(folder / "now" / NAME, 1)
    (folder / "now" / "barcode.txt").write_text("P1")
    score_folder(config)
    old = course(db, "P1")
    (folder / "now").rename(folder / "kept")
    write_image(folder / "now" / NAME, 2)
    (folder / "now" / "barcode.txt").write_text("P2")
    score_folder(config)
    assert course(db, "P1") == old
    assert course(db, "P2")[0].score != old[0].score
    assert all(len(course(db, plate)) == 1 for plate in ("P1", "P2"))


def test_another_file_of_the_same_name_size_and_time_is_read_not_believed(tmp_path: Path, stub_model: Path) -> None:
    db = tmp_path / "s.db"
    first = write_image(tmp_path / "a" / NAME, 1)
    os.utime(first, (1_700_000_000, 1_700_000_000))
    score_folder(settings(tmp_path / "a", db, stub_model, plate="A"))
    first.unlink()
    other = write_image(tmp_path / "b" / NAME, 2)
    os.utime(other, (1_700_000_000, 1_700_000_000))
    assert counts(score_folder(settings(tmp_path / "b", db, stub_model, plate="B"))) == (1, 1, 0, 0, 0)
    assert course(db, "A")[0].score != course(db, "B")[0].score


def test_a_changed_image_that_moves_leaves_its_old_path_free(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    config = settings(folder, db, stub_model, plate="P")
    write_image(folder / NAME, 1)
    score_folder(config)
    write_image(folder / NAME, 2)
    score_folder(config)
    shutil.move(folder, tmp_path / "archive")
    score_folder(settings(tmp_path / "archive", db, stub_model, plate="P"))
    write_image(folder / NAME, 3)
    last = score_folder(config)
    assert last.progress.failed == 1
    assert "a second image for the place of" in last.failures[0][1]
    shutil.rmtree(tmp_path / "archive")
    assert counts(score_folder(config)) == (1, 1, 0, 0, 0)


def test_a_restored_image_does_not_count_beside_the_one_that_took_its_place(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    config = settings(folder, db, stub_model, plate="P")
    path = write_image(folder / "a" / NAME, 1)
    whole = path.read_bytes()
    score_folder(config)
    write_image(path, 2)
    score_folder(config)
    path.unlink()
    (folder / "b").mkdir()
    (folder / "b" / NAME).write_bytes(whole)
    score_folder(config)
    write_image(path, 2)
    score_folder(config)
    assert course(db)[0].n_images == 1


def test_folders_that_overlap_are_refused(tmp_path: Path, stub_model: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    config = settings(tmp_path / "in", tmp_path / "s.db", stub_model)
    deep = settings(tmp_path / "in" / "deep", tmp_path / "s.db", stub_model)
    for second in (config, deep):
        both = config.model_copy(update={"watch": [*config.watch, *second.watch]})
        with pytest.raises(UsageError, match="overlap; watch each image once"):
            score_folder(both)


def test_plates_are_found_in_any_case_also_beyond_ascii(tmp_path: Path, stub_model: Path) -> None:
    db = tmp_path / "s.db"
    write_image(tmp_path / "in" / NAME, 1)
    score_folder(settings(tmp_path / "in", db, stub_model, plate="Öko-1"))
    assert course(db, "öko-1")[0].plate == "Öko-1"
    with open_engine(db, write=True).begin() as connection:
        import_treatments(connection, "öko-1", [Treatment("A01", "DMSO", "negative")])
    assert rows(db, "SELECT count(*) FROM plate") == [(1,)]


def test_a_plate_map_without_a_time_keeps_the_time_that_is_known(tmp_path: Path, stub_model: Path) -> None:
    db = tmp_path / "s.db"
    path = write_image(tmp_path / "in" / NAME, 1)
    os.utime(path, (0, 1_700_000_000))
    treated = settings(tmp_path / "in", db, stub_model, plate="P", treated_at="2023-11-14T20:13:20Z")
    score_folder(treated)
    with open_engine(db, write=True).begin() as connection:
        import_treatments(connection, "P", [Treatment("A01", "X", "treatment")])
    assert course(db)[0].hours == pytest.approx(2)
    score_folder(settings(tmp_path / "in", db, stub_model, plate="P"))
    assert course(db)[0].hours == pytest.approx(2)


def test_the_latest_run_is_the_one_imaged_last_not_the_one_entered_last(tmp_path: Path, stub_model: Path) -> None:
    db = tmp_path / "s.db"
    for year, seconds in ((2025, 1_750_000_000), (2023, 1_690_000_000)):
        path = write_image(tmp_path / str(year) / "P" / NAME, year)
        os.utime(path, (0, seconds))
        score_folder(settings(tmp_path / str(year), db, stub_model))
    engine = open_reader(db)
    with engine.connect() as connection:
        found, notes = find_plate(connection, "P")
    engine.dispose()
    assert found.run.startswith("2025")
    assert "its other runs: 2023" in notes[0]


def test_a_model_that_breaks_stops_the_run_and_what_was_scored_is_kept(
    tmp_path: Path, stub_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(1, 40):
        write_image(tmp_path / "in" / f"A01_f{k}_t1_cPhase_z0.tif", k)
    calls = []

    def breaks(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        calls.append(len(crops))
        if len(calls) > 3:
            raise RuntimeError("out of memory")
        return mean_grey(crops)

    config = settings(tmp_path / "in", tmp_path / "s.db", stub_model, plate="P")
    config = config.model_copy(update={"scoring": config.scoring.model_copy(update={"batch_cells": 1})})
    with monkeypatch.context() as patch:
        patch.setattr(service, "lazy_scorer", lambda *_: breaks)
        with pytest.raises(ModelError, match="the run cannot go on: RuntimeError: out of memory"):
            score_folder(config)
    assert rows(tmp_path / "s.db", "SELECT count(*) FROM field_score") == [(3,)]
    assert {state for _, state in states(tmp_path / "s.db")} == {"scored", "pending"}
    assert counts(score_folder(config))[1] == 36


def test_a_large_folder_gives_its_first_scores_early(tmp_path: Path, stub_model: Path) -> None:
    source = write_image(tmp_path / "one.tif", 1)
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(1, 701):
        os.link(source, folder / f"A01_f{k}_t1_cPhase_z0.tif")
    seen: list[tuple[int, int]] = []
    config = settings(folder, tmp_path / "s.db", stub_model, plate="P")
    score_folder(config, threading.Event(), lambda now: seen.append((now.scored, now.pending)))
    assert seen[-1] == (700, 0)
    assert any(0 < scored < 350 and pending > 0 for scored, pending in seen)


def test_an_empty_answer_says_so(tmp_path: Path) -> None:
    db = tmp_path / "s.db"
    upgrade(db)
    with open_engine(db, write=True).begin() as connection:
        import_treatments(connection, "P", [Treatment("A01", "X", "treatment")])
    found, notes = timecourse(open_reader(db), "P")
    assert found == []
    assert "no image of plate P is scored yet" in notes


@pytest.mark.realdata
def test_a_vendors_index_is_believed_before_a_plain_time_tag(shared: Path, tmp_path: Path, stub_model: Path) -> None:
    """Index.idx.xml says 14:52:40-04:00 on 23 March; the TIFF's own tag names the next day."""
    shutil.copytree(shared / "data/vendor/phenix_v5", tmp_path / "in")
    score_folder(settings(tmp_path / "in", tmp_path / "s.db", stub_model))
    ((moment,),) = rows(tmp_path / "s.db", "SELECT acquired_at FROM image WHERE state = 'scored'")
    assert moment.startswith("2023-03-23 18:52:40")
