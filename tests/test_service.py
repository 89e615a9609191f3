"""The main job on the service itself: what lands is scored once, what cannot be is named, nothing is lost."""

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from db.engine import open_reader
from sesmo_live import service
from sesmo_live.config import Settings
from sesmo_live.errors import ModelError, SesmoError, StoreError, UsageError
from sesmo_live.records import WellScore
from sesmo_live.results import timecourse
from sesmo_live.service import Progress, Summary, run, score_folder
from tests.conftest import settings, write_image
from tests.stub import mean_grey, write_stub_model

pytestmark = pytest.mark.usefixtures("stub_scorer")


def rows(db: Path, query: str = "SELECT path, page, state, reason FROM image ORDER BY path, page") -> list[Any]:
    with sqlite3.connect(db) as connection:
        found = connection.execute(query).fetchall()
    connection.close()
    return found


def content(db: Path) -> list[Any]:
    """Return everything that must not change when nothing is to be done."""
    tables = ("image", "field_score", "cell", "plate", "model", "well_treatment")
    return [rows(db, f"SELECT * FROM {table}") for table in tables]


def course(db: Path, plate: str = "P", **options: Any) -> list[WellScore]:
    engine = open_reader(db)
    found, _ = timecourse(engine, plate, **options)
    engine.dispose()
    return found


def counts(summary: Summary) -> tuple[int, int, int, int, int]:
    now = summary.progress
    assert now.scored + now.refused + now.failed + now.skipped + now.unchanged + now.pending == now.images
    return now.images, now.scored, now.failed, now.skipped, now.unchanged


def during(config: Settings, act: Callable[[Callable[[Callable[[Progress], bool]], None]], None]) -> Summary:
    """Run the service, let `act` do things and wait for progress, then stop it as Ctrl-C does."""
    stop, latest = threading.Event(), [Progress(0, 0, 0, 0, 0, 0, 0, 0)]
    failed: list[BaseException] = []

    def wait_for(condition: Callable[[Progress], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition(latest[0]):
            assert time.monotonic() < deadline, latest[0]
            time.sleep(0.02)

    def drive() -> None:
        try:
            act(wait_for)
        except BaseException as error:  # noqa: BLE001 — handed to the test
            failed.append(error)
        stop.set()

    thread = threading.Thread(target=drive)
    thread.start()
    try:
        summary = run(config, stop, lambda now: latest.__setitem__(0, now))
    finally:
        thread.join()
    if failed:
        raise failed[0]
    return summary


def test_a_folder_is_scored_once(tmp_path: Path, stub_model: Path) -> None:
    for well in ("B02", "B03"):
        for field in (1, 2):
            write_image(tmp_path / "in" / f"{well}_f{field}_t1_cPhase_z0.tif", hash((well, field)) % 99)
    config = settings(tmp_path / "in", tmp_path / "s.db", stub_model, plate="P")
    first = score_folder(config)
    assert counts(first) == (4, 4, 0, 0, 0)
    assert first.progress.cells > 20
    before = content(tmp_path / "s.db")
    second = score_folder(config)
    assert counts(second) == (4, 0, 0, 0, 4)
    assert second.progress.cells == 0
    assert content(tmp_path / "s.db") == before
    scores = course(tmp_path / "s.db")
    assert [(s.well, s.timepoint, s.n_images) for s in scores] == [("B02", 1, 2), ("B03", 1, 2)]
    assert sum(s.n_cells for s in scores) == first.progress.cells


def test_scores_in_bf16_stand_beside_those_in_fp32(tmp_path: Path, stub_model: Path) -> None:
    write_image(tmp_path / "in" / "B02_f1_t1_cPhase_z0.tif", 1)
    for precision in ("fp32", "bf16"):
        config = settings(tmp_path / "in", tmp_path / "s.db", stub_model, plate="P")
        scoring = config.scoring.model_copy(update={"precision": precision})
        assert score_folder(config.model_copy(update={"scoring": scoring})).progress.scored == 1
    with sqlite3.connect(tmp_path / "s.db") as connection:
        found = connection.execute(
            "SELECT m.model_id, json_extract(m.passport, '$.precision'), f.n FROM field_score f "
            "JOIN model m ON m.id = f.model_id ORDER BY m.id"
        ).fetchall()
    (exact, *_, n), (reduced, *_) = found
    assert found == [(exact, "fp32", n), (reduced, "bf16", n)]
    assert reduced.endswith("-bf16")
    assert not reduced.startswith(exact)


def test_scores_are_the_mean_over_cells_of_exactly_the_crops(tmp_path: Path, stub_model: Path) -> None:
    from models.cropper import crop_cells
    from tests.conftest import blobs

    write_image(tmp_path / "in" / "C04_f1_t7_cPhase_z0.tif", 5)
    score_folder(settings(tmp_path / "in", tmp_path / "s.db", stub_model, plate="P"))
    crops, centres = crop_cells(blobs(5))
    (score,) = course(tmp_path / "s.db", well="c4")
    expected = crops.mean(axis=(1, 2)) / 255
    assert score.n_cells == len(crops) > 3
    assert score.score == pytest.approx(expected.mean(), abs=1e-6)
    assert score.fraction_senescent == pytest.approx((expected >= 0.5).mean())
    cells = np.array(rows(tmp_path / "s.db", "SELECT x, y, score FROM cell ORDER BY idx"))
    assert np.allclose(cells[:, :2], centres)
    assert np.allclose(cells[:, 2], expected, atol=1e-6)


def test_what_lands_later_also_in_new_folders_is_scored_and_equals_a_back_fill(
    tmp_path: Path, stub_model: Path
) -> None:
    folder = tmp_path / "in"
    write_image(folder / "B02_f1_t1_cPhase_z0.tif", 1)

    def act(wait_for: Callable[[Callable[[Progress], bool]], None]) -> None:
        wait_for(lambda now: now.scored == 1)
        for timepoint in range(2, 6):
            write_image(folder / "deep" / f"round{timepoint}" / f"B02_f1_t{timepoint}_cPhase_z0.tif", timepoint)
        write_image(folder / "B02_f1_t6_cPhase_z0.tif.tmp", 6).rename(folder / "B02_f1_t6_cPhase_z0.tif")
        wait_for(lambda now: now.scored == 6)

    summary = during(settings(folder, tmp_path / "live.db", stub_model, plate="P"), act)
    assert counts(summary) == (6, 6, 0, 0, 0)
    score_folder(settings(folder, tmp_path / "later.db", stub_model, plate="P"))
    assert course(tmp_path / "live.db") == course(tmp_path / "later.db")
    assert len(course(tmp_path / "live.db")) == 6


def test_a_file_that_grows_is_scored_whole_and_once(tmp_path: Path, stub_model: Path) -> None:
    whole = write_image(tmp_path / "whole.tif", 3).read_bytes()
    path = tmp_path / "in" / "B02_f1_t1_cPhase_z0.tif"
    path.parent.mkdir()

    def act(wait_for: Callable[[Callable[[Progress], bool]], None]) -> None:
        with path.open("wb") as file:
            for start in range(0, len(whole), 9000):
                file.write(whole[start : start + 9000])
                file.flush()
                time.sleep(0.1)
        wait_for(lambda now: now.scored == 1)

    summary = during(settings(path.parent, tmp_path / "s.db", stub_model, plate="P"), act)
    assert counts(summary) == (1, 1, 0, 0, 0)
    back = tmp_path / "back"
    back.mkdir()
    shutil.copy(tmp_path / "whole.tif", back / path.name)
    score_folder(settings(back, tmp_path / "b.db", stub_model, plate="P"))
    query = "SELECT x, y, score FROM cell ORDER BY idx"
    assert rows(tmp_path / "s.db", query) == rows(tmp_path / "b.db", query)


def test_bad_images_are_named_and_cost_no_other_its_score(tmp_path: Path, stub_model: Path) -> None:
    folder = tmp_path / "in"
    good = write_image(folder / "A01_f1_t1_cPhase_z0.tif", 1)
    whole = good.read_bytes()
    (folder / "A02_f1_t1_cPhase_z0.tif").write_bytes(whole[: len(whole) // 2])
    (folder / "A03_f1_t1_cPhase_z0.tif").write_bytes(b"")
    (folder / "A04_f1_t1_cPhase_z0.tif").write_bytes(b"not a tiff at all, just words" * 20)
    tifffile.imwrite(folder / "A05_f1_t1_cPhase_z0.tif", np.ones((64, 64), np.float32))
    tifffile.imwrite(
        folder / "A06_f1_t1_cPhase_z0.tif",
        np.zeros((4, 64, 64), np.uint8),
        volumetric=True,
        tile=(4, 16, 16),
        photometric="minisblack",
    )
    write_image(folder / "holiday.tif", 2)
    write_image(folder / "H13_f1_t1_cPhase_z0.tif", 3)
    (folder / "B01_f1_t1_cPhase_z0.png").write_bytes(b"png")
    summary = score_folder(settings(folder, tmp_path / "s.db", stub_model, plate="P", plate_wells=96))
    assert counts(summary) == (9, 1, 7, 1, 0)
    reasons = {Path(path).name[:3]: reason for path, reason in summary.failures}
    for name, said in {
        "A02": "copy",
        "A03": "",
        "A04": "not a TIFF",
        "A05": "no whole numbers",
        "A06": "",
        "hol": "does not know the name holiday.tif; set layout",
        "H13": "well H13 lies outside the 96-well plate; correct plate_wells",
    }.items():
        assert said in reasons[name]
        assert "\n" not in reasons[name]
        assert len(reasons[name]) > 20
    assert [state for _, _, state, _ in rows(tmp_path / "s.db")].count("failed") == 7
    again = score_folder(settings(folder, tmp_path / "s.db", stub_model, plate="P", plate_wells=96))
    assert counts(again) == (9, 0, 7, 0, 2)
    assert sorted(again.failures) == sorted(summary.failures)


def test_a_failed_file_that_is_copied_again_is_scored(tmp_path: Path, stub_model: Path) -> None:
    path = write_image(tmp_path / "in" / "A02_f1_t1_cPhase_z0.tif", 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    config = settings(path.parent, tmp_path / "s.db", stub_model, plate="P")
    assert counts(score_folder(config)) == (1, 0, 1, 0, 0)
    path.write_bytes(whole)
    assert counts(score_folder(config)) == (1, 1, 0, 0, 0)


def test_only_one_channel_and_plane_are_scored_and_the_others_say_so(tmp_path: Path, stub_model: Path) -> None:
    for channel, z in (("DAPI", 0), ("Phase", 0), ("Phase", 1)):
        write_image(tmp_path / "in" / f"A01_f1_t1_c{channel}_z{z}.tif", z + 3)
    config = settings(tmp_path / "in", tmp_path / "s.db", stub_model, plate="P")
    assert counts(score_folder(config)) == (3, 1, 0, 2, 0)
    reasons = [reason for _, _, state, reason in rows(tmp_path / "s.db") if state == "skipped"]
    assert any("channel DAPI; this plate is scored on channel Phase, named like phase" in reason for reason in reasons)
    assert any("focal plane 1" in reason for reason in reasons)
    # The configuration changes its mind: images change sides, and no well counts two channels.
    other = settings(tmp_path / "in", tmp_path / "s.db", stub_model, plate="P", channel="dapi")
    score_folder(other)
    now = {Path(path).stem: state for path, _, state, _ in rows(tmp_path / "s.db")}
    assert now == {"A01_f1_t1_cDAPI_z0": "scored", "A01_f1_t1_cPhase_z0": "skipped", "A01_f1_t1_cPhase_z1": "skipped"}
    assert [score.n_images for score in course(tmp_path / "s.db")] == [1]


def test_a_better_channel_that_lands_later_takes_over(tmp_path: Path, stub_model: Path) -> None:
    folder = tmp_path / "in"
    write_image(folder / "A01_f1_t1_cDAPI_z0.tif", 1)

    def act(wait_for: Callable[[Callable[[Progress], bool]], None]) -> None:
        wait_for(lambda now: now.scored == 1)
        write_image(folder / "A01_f1_t1_cPhase_z0.tif", 2)
        wait_for(lambda now: now.skipped == 1 and now.scored == 1)

    during(settings(folder, tmp_path / "s.db", stub_model, plate="P"), act)
    now = {Path(path).stem[10:]: state for path, _, state, _ in rows(tmp_path / "s.db")}
    assert now == {"cDAPI_z0": "skipped", "cPhase_z0": "scored"}


def test_every_page_of_a_stack_is_an_image(tmp_path: Path, stub_model: Path) -> None:
    from tests.conftest import blobs

    folder = tmp_path / "in"
    folder.mkdir()
    tifffile.imwrite(
        folder / "B02_f1_t1_cPhase_z0.tif", np.stack([blobs(k) for k in range(4)]), photometric="minisblack"
    )
    config = settings(folder, tmp_path / "s.db", stub_model, plate="P")
    assert counts(score_folder(config)) == (4, 4, 0, 0, 0)
    assert [score.timepoint for score in course(tmp_path / "s.db")] == [1, 2, 3, 4]
    assert counts(score_folder(config)) == (4, 0, 0, 0, 4)


def test_a_changed_image_supersedes_its_old_scores_visibly(tmp_path: Path, stub_model: Path) -> None:
    path = write_image(tmp_path / "in" / "A01_f1_t1_cPhase_z0.tif", 1)
    config = settings(path.parent, tmp_path / "s.db", stub_model, plate="P")
    score_folder(config)
    old = course(tmp_path / "s.db")
    os.utime(path, ns=(1, 10**18))  # touched, not changed: nothing to score
    assert counts(score_folder(config)) == (1, 0, 0, 0, 1)
    write_image(path, 2)
    assert counts(score_folder(config)) == (1, 1, 0, 0, 0)
    states = rows(tmp_path / "s.db", "SELECT generation, state, reason FROM image ORDER BY generation")
    assert [row[:2] for row in states] == [(1, "superseded"), (2, "scored")]
    assert "was changed at" in states[0][2]
    new = course(tmp_path / "s.db")
    assert new[0].score != old[0].score
    assert new[0].n_images == 1


def test_images_moved_to_an_archive_keep_their_scores_and_copies_are_not_counted_twice(
    tmp_path: Path, stub_model: Path
) -> None:
    live, archive = tmp_path / "live", tmp_path / "archive"
    write_image(live / "A01_f1_t1_cPhase_z0.tif", 1)
    config = settings(live, tmp_path / "s.db", stub_model, plate="P")
    score_folder(config)
    shutil.move(live, archive)
    live.mkdir()
    before = course(tmp_path / "s.db")
    assert counts(score_folder(config))[1:3] == (0, 0)
    assert course(tmp_path / "s.db") == before
    moved = settings(archive, tmp_path / "s.db", stub_model, plate="P")
    assert counts(score_folder(moved)) == (1, 0, 0, 0, 1)
    shutil.copy(archive / "A01_f1_t1_cPhase_z0.tif", archive / "A01_f1_t1_cPhase_z0.TIFF")
    assert counts(score_folder(moved)) == (2, 0, 0, 1, 1)
    write_image(archive / "again" / "A01_f1_t1_cPhase_z0.tif", 9)
    last = score_folder(moved)
    assert last.progress.failed == 1
    assert "a second image for the place of" in last.failures[0][1]
    assert course(tmp_path / "s.db") == before


def test_several_plates_lie_in_one_folder_and_the_same_name_on_another_date_is_another_run(
    tmp_path: Path, stub_model: Path
) -> None:
    for plate in ("P", "Q"):
        write_image(tmp_path / "in" / plate / "A01_f1_t1_cPhase_z0.tif", 1)
    score_folder(settings(tmp_path / "in", tmp_path / "s.db", stub_model))
    assert len(course(tmp_path / "s.db", "P")) == len(course(tmp_path / "s.db", "q")) == 1
    again = write_image(tmp_path / "next" / "P" / "A01_f1_t1_cPhase_z0.tif", 2)
    os.utime(again, (0, 86_400 * 365))
    score_folder(settings(tmp_path / "next", tmp_path / "s.db", stub_model))
    runs = rows(tmp_path / "s.db", "SELECT run FROM plate WHERE name = 'P' ORDER BY id")
    assert len(runs) == 2
    assert runs[1] == ("1971-01-01",)
    first, second = (course(tmp_path / "s.db", run=run) for (run,) in runs)
    assert first[0].score != second[0].score
    assert first[0].n_images == second[0].n_images == 1


def test_plates_get_their_name_from_a_barcode_file_or_table(tmp_path: Path, stub_model: Path) -> None:
    write_image(tmp_path / "a" / "x" / "A01_f1_t1_cPhase_z0.tif", 1)
    (tmp_path / "a" / "x" / "barcode.txt").write_text("SQ0001\nscanned 12:00\n")
    score_folder(settings(tmp_path / "a", tmp_path / "s.db", stub_model, barcode_file="barcode.txt"))
    write_image(tmp_path / "b" / "SQ9" / "A01_f1_t1_cPhase_z0.tif", 2)
    (tmp_path / "map.csv").write_text("barcode,plate\nSQ9,Screen 9\n")
    score_folder(settings(tmp_path / "b", tmp_path / "s.db", stub_model, barcodes=tmp_path / "map.csv"))
    assert rows(tmp_path / "s.db", "SELECT name FROM plate ORDER BY id") == [("SQ0001",), ("Screen 9",)]


def test_folders_have_their_own_models_and_pixel_sizes(tmp_path: Path, stub_model: Path) -> None:
    other = write_stub_model(tmp_path / "other", "other")
    for name in ("one", "two"):
        write_image(tmp_path / name / "A01_f1_t1_cPhase_z0.tif", 1)
    config = settings(tmp_path / "one", tmp_path / "s.db", stub_model, plate="ONE")
    two = settings(tmp_path / "two", tmp_path / "s.db", other, plate="TWO", model=str(other), pixel_um=0.65)
    score_folder(config.model_copy(update={"watch": [*config.watch, *two.watch]}))
    assert course(tmp_path / "s.db", "ONE")[0].model.startswith("stub-1-")
    assert course(tmp_path / "s.db", "TWO")[0].model.startswith("other-1-")
    assert rows(tmp_path / "s.db", "SELECT pixel_um FROM image ORDER BY path") == [(None,), (0.65,)]


def test_another_model_scores_beside_the_first(tmp_path: Path, stub_model: Path) -> None:
    other = write_stub_model(tmp_path / "other", "other")
    write_image(tmp_path / "in" / "A01_f1_t1_cPhase_z0.tif", 1)
    score_folder(settings(tmp_path / "in", tmp_path / "s.db", stub_model, plate="P"))
    second = score_folder(settings(tmp_path / "in", tmp_path / "s.db", other, plate="P"))
    assert counts(second) == (1, 1, 0, 0, 0)
    assert course(tmp_path / "s.db")[0].model.startswith("other")
    assert course(tmp_path / "s.db", model="stub")[0].n_images == 1
    with pytest.raises(UsageError, match="no model 'third' scored plate P"):
        course(tmp_path / "s.db", model="third")


def test_hours_count_from_treatment_else_from_the_first_image_else_by_frame_interval(
    tmp_path: Path, stub_model: Path
) -> None:
    for timepoint in (1, 2, 4):
        path = write_image(tmp_path / "in" / f"A01_f1_t{timepoint}_cPhase_z0.tif", timepoint)
        os.utime(path, (0, 1_700_000_000 + 3600 * timepoint**2))
    config = settings(tmp_path / "in", tmp_path / "a.db", stub_model, plate="P")
    score_folder(config)
    assert [score.hours for score in course(tmp_path / "a.db")] == pytest.approx([0, 3, 15])
    timed = settings(tmp_path / "in", tmp_path / "b.db", stub_model, plate="P", frame_interval_s=1800)
    score_folder(timed)
    assert [score.hours for score in course(tmp_path / "b.db")] == pytest.approx([0, 0.5, 1.5])
    treated = settings(tmp_path / "in", tmp_path / "c.db", stub_model, plate="P", treated_at="2023-11-14T22:13:20Z")
    score_folder(treated)
    assert [score.hours for score in course(tmp_path / "c.db")] == pytest.approx([1, 4, 16])


def test_stopping_early_leaves_the_rest_pending_and_the_next_run_goes_on(
    tmp_path: Path, stub_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(1, 101):
        write_image(tmp_path / "in" / f"A01_f{k}_t1_cPhase_z0.tif", k)
    config = settings(tmp_path / "in", tmp_path / "s.db", stub_model, plate="P")
    stop = threading.Event()

    def slow(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        stop.set()
        time.sleep(0.2)
        return mean_grey(crops)

    with monkeypatch.context() as patch:
        patch.setattr(service, "lazy_scorer", lambda *_: slow)
        first = score_folder(config, stop)
    assert first.progress.images == 100
    assert first.progress.scored > 0
    assert first.progress.pending > 0
    assert rows(tmp_path / "s.db", "SELECT count(*) FROM field_score") == [(first.progress.scored,)]
    second = score_folder(config)
    assert (second.progress.scored, second.progress.unchanged) == (100 - first.progress.scored, first.progress.scored)
    assert rows(tmp_path / "s.db", "SELECT count(*), count(DISTINCT image_id) FROM field_score") == [(100, 100)]


def test_what_cannot_start_says_why(tmp_path: Path, stub_model: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    db = tmp_path / "s.db"
    bad = tmp_path / "bad"
    shutil.copytree(stub_model, bad)
    weights = bytearray((bad / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (bad / "weights.safetensors").write_bytes(weights)
    cases: list[tuple[Settings, type[SesmoError], str]] = [
        (settings(tmp_path / "none", db, stub_model), UsageError, "there is no folder .*none to watch; create it"),
        (settings(folder, db, bad), ModelError, "does not have the hash in its passport"),
        (settings(folder, db, tmp_path / "in"), ModelError, "is no model folder"),
        (settings(folder, db, stub_model, layout="imagexprss"), SesmoError, "imagexpress"),
        (settings(folder, db, stub_model, platemap=tmp_path / "m.csv"), UsageError, "needs the plate it is for"),
        (Settings(), UsageError, "there is no folder to watch"),
        (settings(folder, tmp_path / "no" / "s.db", stub_model), UsageError, "folder .* does not exist"),
    ]
    for config, kind, said in cases:
        with pytest.raises(kind, match=said) as caught:
            score_folder(config)
        assert "\n" not in str(caught.value)


def test_a_second_daemon_on_the_same_database_is_refused(tmp_path: Path, stub_model: Path) -> None:
    config = settings(tmp_path / "in", tmp_path / "s.db", stub_model, plate="P")
    write_image(tmp_path / "in" / "A01_f1_t1_cPhase_z0.tif", 1)

    def act(wait_for: Callable[[Callable[[Progress], bool]], None]) -> None:
        wait_for(lambda now: now.scored == 1)
        with pytest.raises(StoreError, match="another sesmo-live is already writing"):
            score_folder(config)

    during(config, act)


def test_a_platemap_named_in_the_configuration_is_imported(tmp_path: Path, stub_model: Path) -> None:
    (tmp_path / "map.csv").write_text("well,compound,dose,unit\nA01,Doxorubicin,1,uM\nA02,DMSO,,\n")
    write_image(tmp_path / "in" / "A01_f1_t1_cPhase_z0.tif", 1)
    score_folder(settings(tmp_path / "in", tmp_path / "s.db", stub_model, plate="P", platemap=tmp_path / "map.csv"))
    assert rows(tmp_path / "s.db", "SELECT well, role, dose_um FROM well_treatment ORDER BY well") == [
        ("A01", "treatment", 1.0),
        ("A02", "negative", None),
    ]
