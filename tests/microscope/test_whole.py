"""Whole plates on a real core: from the plan to the score, and back from the score to the microscope."""

import json
from pathlib import Path
from typing import Any

import pytest

from acquisition.micromanager.plates import calibrate, well_under
from acquisition.tiff import read_pages
from db.engine import open_reader
from db.queries import image_rows, images_where
from tests.figures import figure
from tests.microscope.ome import ome
from tests.microscope.test_faults import python

pytest.importorskip("mm_test_adapters", reason="needs mm-test-adapters")
pytestmark = pytest.mark.microscope

PLATE = calibrate(96, {"A01": (0, 0), "A12": (99_000, 0), "H01": (0, 63_000)})


def ledger(folder: Path) -> list[dict[str, Any]]:
    """Return the service's rows of all frames."""
    with open_reader(folder / "sesmo.db").connect() as connection:
        return [dict(row) for row in image_rows(connection, images_where(None, None, None))]


def run(folder: Path, timeout_s: float, *words: object) -> dict[str, Any]:
    """Image and score in a process of its own; return what came of it."""
    process = python("tests.microscope.whole", folder, *words)
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, err
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def check(folder: Path, result: dict[str, Any], wells: int) -> None:
    """Every frame is scored, and stands in the ledger at the well where the stage stood, by its measured position."""
    wanted = wells * 2 * 3
    assert result["written"] == [wells * 2] * 3, result["said"]
    rows = ledger(folder)
    assert [row["state"] for row in rows] == ["scored"] * wanted
    assert len({(row["well"], row["field"], row["timepoint"]) for row in rows}) == wanted
    for row in rows:
        plane = ome(row["path"])["Image"]["Pixels"]["Plane"]
        assert well_under(96, PLATE, float(plane["PositionX"]), float(plane["PositionY"])) == row["well"]
    assert result["scored"] == wanted


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Image and score three wells, two fields, three rounds; return folder and result."""
    folder = tmp_path_factory.mktemp("small")
    return folder, run(folder, 100, "B02:B04", "stub", 7)


def test_a_small_plate_is_imaged_and_scored(small: tuple[Path, dict[str, Any]]) -> None:
    folder, result = small
    check(folder, result, 3)
    figure(
        f"18 of 18 frames at their wells and scored; rounds at {result['rates']} frames/s (512², first one rendered)"
    )


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1800)
def test_a_whole_plate_is_imaged_and_scored(tmp_path: Path) -> None:
    result = run(tmp_path, 1700, "all", "network", 120)
    check(tmp_path, result, 96)
    assert result["rate"] >= 10
    figure(f"576 of 576 frames at their wells and scored, {result['cells']} cells; {result['rates']} frames/s at 512²")


def test_a_frame_carries_what_is_known_of_it(small: tuple[Path, dict[str, Any]]) -> None:
    (path,) = (small[0] / "images").rglob("B02_f1_t1_*.tif")
    image = ome(path)
    plane, notes = image["Image"]["Pixels"]["Plane"], image["StructuredAnnotations"]["MapAnnotation"]["Value"]["M"]
    assert (plane["ExposureTime"], plane["ExposureTimeUnit"]) == (5, "ms")
    assert plane["PositionZ"] == pytest.approx(40 + 3e-4 * plane["PositionX"] + 2e-4 * plane["PositionY"], abs=0.1)
    said = {note["K"]: note["value"] for note in notes}
    assert {key: said[key] for key in ("well", "field", "round", "autofocus")} == {
        **{"well": "B02", "field": 1, "round": 1, "autofocus": "run"}
    }
    assert abs(float(said["intended_x_um"]) - plane["PositionX"]) < 1
    (info,) = read_pages(path)
    assert info.pixel_um == 1.24
    assert info.acquired_at is not None
    assert info.acquired_at.tzinfo is not None
    assert info.channel == "Phase"
    assert json.loads((path.parent / "calibration.json").read_text())["mirrored"] is True


def test_the_loop_closes(tmp_path: Path) -> None:
    process = python("tests.microscope.loops", tmp_path)
    out, err = process.communicate(timeout=110)
    assert process.returncode == 0, err
    result = json.loads(out.splitlines()[-1])
    rounds = {number: (wells, again) for number, wells, again in result["rounds"]}
    every = ["B02", "B06", "B12"]
    assert rounds[1] == (every, 1), result  # one field was refused, refocused and imaged once more
    assert rounds[3] == rounds[5] == (every, 0)  # its focus is remembered
    assert rounds[2] == ([], 0)  # nothing can have moved yet
    assert rounds[4] == (["B12"], 0)  # the one well that moved
    rows = ledger(tmp_path)
    first = [(row["well"], row["state"]) for row in rows if row["timepoint"] == 1]
    assert sorted(first) == [("B02", "refused"), ("B02", "scored"), ("B06", "scored"), ("B12", "scored")]
    assert {row["state"] for row in rows if row["timepoint"] != 1} == {"scored"}
