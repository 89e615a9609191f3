"""What the service does with images that are not fit to be scored: refused by name, kept apart, never averaged."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from db.engine import open_reader
from models.cropper import crop_dark_or_bright_cells
from models.passport import read_passport, write_model
from models.refusal import reference_of, unfit, write_reference
from sesmo_live.config import Settings
from sesmo_live.results import timecourse
from sesmo_live.service import score_folder
from tests.conftest import blobs, settings
from tests.stub import write_stub_model
from tests.test_service import counts, course, rows

pytestmark = pytest.mark.usefixtures("stub_scorer")

SIDE = 512
GOOD, OTHER, BLURRED, FLAT = (f"{well}_f1_t1_cPhase_z0.tif" for well in ("A01", "A02", "A03", "A04"))


def field(seed: int) -> NDArray[np.uint8]:
    return blobs(seed, SIDE, 48)


def blurred(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).normal(0, 4, image.shape)
    return np.asarray(np.clip(cv2.GaussianBlur(image, (0, 0), 9) + noise, 0, 255), np.uint8)


@pytest.fixture(scope="module")
def judging_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a stub model that knows what its training images looked like."""
    folder = write_stub_model(tmp_path_factory.mktemp("judging") / "judging", "judging")
    images = [field(seed) for seed in range(100, 112)]
    write_reference(folder, reference_of((image, crop_dark_or_bright_cells(image)[0]) for image in images))
    return folder


@pytest.fixture
def plate(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, image in {
        GOOD: field(1),
        OTHER: field(2),
        BLURRED: blurred(field(3)),
        FLAT: np.full((SIDE, SIDE), 90, np.uint8),
    }.items():
        tifffile.imwrite(folder / name, image)
    return folder


def scored_as_is(config: Settings) -> Settings:
    return config.model_copy(update={"scoring": config.scoring.model_copy(update={"refuse": False})})


def states(db: Path) -> dict[str, tuple[str, str]]:
    found = rows(db, "SELECT path, state, reason FROM image WHERE state <> 'superseded'")
    return {Path(path).name: (state, reason) for path, state, reason in found}


def test_unfit_images_are_refused_by_measure_and_limit_and_stay_out_of_wells(
    plate: Path, tmp_path: Path, judging_model: Path
) -> None:
    config = settings(plate, tmp_path / "s.db", judging_model, plate="P")
    summary = score_folder(config)
    assert (summary.progress.scored, summary.progress.refused, summary.failures) == (2, 2, ())
    found = states(tmp_path / "s.db")
    assert found[GOOD] == found[OTHER] == ("scored", "")
    assert found[BLURRED][0] == "refused"
    assert "limit" in found[BLURRED][1]
    assert found[FLAT] == ("refused", "empty: all pixels are equal, at grey level 90")
    assert [score.well for score in course(tmp_path / "s.db")] == ["A01", "A02"]
    engine = open_reader(tmp_path / "s.db")
    assert timecourse(engine, "P")[1][-1] == (
        "plate P: 2 of its images are not fit to be scored and in no well; see why with: "
        "sesmo-live images P --state refused --summary"
    )
    engine.dispose()
    assert rows(tmp_path / "s.db", "SELECT COUNT(*) FROM image WHERE state = 'refused' AND sha256 <> ''") == [(2,)]
    assert rows(tmp_path / "s.db", "SELECT COUNT(*) FROM field_score WHERE quality = '{}'") == [(0,)]


def test_without_refusal_they_are_scored_and_flagged(plate: Path, tmp_path: Path, judging_model: Path) -> None:
    config = settings(plate, tmp_path / "s.db", judging_model, plate="P")
    assert score_folder(scored_as_is(config)).progress.scored == 4
    state, reason = states(tmp_path / "s.db")[BLURRED]
    assert state == "scored"
    assert reason.startswith("scored all the same: ")
    flags = {
        Path(path).name: json.loads(quality).get("unfit")
        for path, quality in rows(
            tmp_path / "s.db", "SELECT path, quality FROM image JOIN field_score ON image_id = id"
        )
    }
    assert flags[GOOD] is None
    assert flags[FLAT] == ["empty: all pixels are equal, at grey level 90"]


def test_what_was_refused_gets_another_chance_at_the_next_start(
    plate: Path, tmp_path: Path, judging_model: Path
) -> None:
    config = settings(plate, tmp_path / "s.db", judging_model, plate="P")
    score_folder(config)
    again = score_folder(config)
    assert (again.progress.scored, again.progress.refused, again.progress.unchanged) == (0, 2, 2)
    assert score_folder(scored_as_is(config)).progress.scored == 2
    assert counts(score_folder(config)) == (4, 0, 0, 0, 4)  # what was scored on purpose stays


def test_a_refused_image_that_is_taken_anew_is_scored(plate: Path, tmp_path: Path, judging_model: Path) -> None:
    config = settings(plate, tmp_path / "s.db", judging_model, plate="P")
    score_folder(config)
    tifffile.imwrite(plate / BLURRED, field(3))
    assert score_folder(config).progress.scored == 1
    assert states(tmp_path / "s.db")[BLURRED] == ("scored", "")
    reasons = rows(tmp_path / "s.db", f"SELECT state, generation FROM image WHERE path LIKE '%{BLURRED}' ORDER BY 2")
    assert reasons == [("superseded", 1), ("scored", 2)]


def test_scores_of_another_model_stay_where_one_refuses(plate: Path, tmp_path: Path, judging_model: Path) -> None:
    passport = read_passport(judging_model)
    lenient = tmp_path / "lenient"
    write_model(lenient, replace(passport, name="lenient", reference={}), {"none": np.zeros(1, np.float32)})
    db = tmp_path / "s.db"
    assert score_folder(settings(plate, db, lenient, plate="P")).progress.refused == 1  # the constant image only
    score_folder(settings(plate, db, judging_model, plate="P"))
    state, reason = states(db)[BLURRED]
    assert state == "scored"
    assert reason.startswith("refused by model judging-1-")
    by_model = rows(db, "SELECT model_id, COUNT(*) FROM field_score GROUP BY model_id ORDER BY model_id")
    assert [count for _, count in by_model] == [3, 2]


def test_a_model_without_statistics_refuses_only_what_no_camera_image_may_be(plate: Path) -> None:
    from models.prepare import judge_field
    from sesmo_live.records import CellCrops, FieldImage, ImageFile, Site

    passport = read_passport(write_stub_model(plate / "model"))

    def reasons(pixels: NDArray[Any]) -> list[str]:
        file = ImageFile(plate, 0, Site("P", "A01", 1, 1), 0, 0)
        crops = np.empty((0, 50, 50), np.uint8)
        return judge_field(FieldImage(file, pixels), CellCrops(file, crops, np.empty((0, 2))), passport)[1]

    assert reasons(field(1)) == []
    assert reasons(blurred(field(1))) == []
    assert "bits" in reasons(field(1) // 16)[0]
    small = [blobs(seed, 140, 5) for seed in range(40)]  # a few cells that tiles may miss are not nothing
    assert [reasons(image) for image in small] == [[]] * 40
    for shape in ((1, 1), (1, 4096), (40, 40)):  # too small to measure: no crash
        assert isinstance(reasons(np.random.default_rng(1).integers(0, 65535, shape).astype(np.uint16)), list)
    assert unfit({"cells": 0.0, "span": 200.0, "bits": 8.0, "brightest": 255.0}, {}) == []


def test_a_refused_image_that_moves_is_refused_once(plate: Path, tmp_path: Path, judging_model: Path) -> None:
    config = settings(plate, tmp_path / "s.db", judging_model, plate="P")
    score_folder(config)
    (plate / "archive").mkdir()
    for file in (GOOD, BLURRED):
        (plate / file).rename(plate / "archive" / file)
    score_folder(config)
    assert rows(tmp_path / "s.db", "SELECT COUNT(*) FROM image") == [(4,)]
    assert states(tmp_path / "s.db")[BLURRED][0] == "refused"


def test_the_channel_that_a_plate_leaves_takes_its_refusals_and_scores_with_it(
    tmp_path: Path, judging_model: Path
) -> None:
    folder, dapi = tmp_path / "in", BLURRED.replace("Phase", "DAPI")
    folder.mkdir()
    tifffile.imwrite(folder / BLURRED, blurred(field(3)))
    tifffile.imwrite(folder / dapi, field(4))

    def config(channel: str) -> Settings:
        return settings(folder, tmp_path / "s.db", judging_model, plate="P", channel=channel)

    score_folder(scored_as_is(config("Phase")))
    score_folder(config("DAPI"))
    assert {name: state for name, (state, _) in states(tmp_path / "s.db").items()} == {
        BLURRED: "skipped",
        dapi: "scored",
    }
    for _ in range(2):
        assert score_folder(config("Phase")).progress.pending == 0
        found = states(tmp_path / "s.db")
        assert (found[BLURRED][0], found[dapi][0]) == ("refused", "skipped")
    score_folder(config("DAPI"))
    assert states(tmp_path / "s.db")[BLURRED][0] == "skipped"
