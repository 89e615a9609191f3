"""The fault table, on a real core: each fault is named, recorded, costs its own well alone, and hangs nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tifffile

from acquisition.layouts import open_layout
from acquisition.micromanager.plates import calibrate, well_under
from db.engine import open_reader
from db.incidents import incidents
from tests.figures import figure
from tests.microscope.ome import ome

pytest.importorskip("mm_test_adapters", reason="needs mm-test-adapters")
pytestmark = pytest.mark.microscope

ROOT = Path(__file__).parents[2]
PLATE = calibrate(96, {"A01": (0, 0), "A12": (99_000, 0), "H01": (0, 63_000)})
NIGHTS = (
    *("all_is_well", "stage_offset", "stage_raises", "stage_raises_once", "readout_fails", "exposure_fails"),
    *("autofocus_fails", "focus_slips", "callback_raises", "disk_full", "slow_stage", "focus_stays_up"),
    *("autofocus_fails_last", "again", "begun_late", "camera_hangs_once", "stage_lies_still"),
    *("second_preparation_hangs", "camera_hangs"),
)
OUTER_S = 100


def python(*words: object, **options: Any) -> "subprocess.Popen[str]":
    """Start a module of the tests, or the program itself, in a process of its own."""
    program = ["-c", "from sesmo_live.cli import main; main()"] if words[0] == "sesmo-live" else ["-m", str(words[0])]
    command = [sys.executable, *program, *map(str, words[1:])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nights")


@pytest.fixture(scope="module")
def nights(folder: Path) -> dict[str, dict[str, Any]]:
    """Run all nights in one process, one core after the other, and return what each came to."""
    process = python("tests.microscope.nights", folder, *NIGHTS)
    out, err = process.communicate(timeout=OUTER_S)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return {result["night"]: result for result in map(json.loads, out.splitlines())}


def frames(folder: Path) -> dict[str, list[str]]:
    """Return the wells of all frames, each with its frames' names; check that each was taken where it is filed.

    The witnesses are the measured position in the file and the true one that the camera wrote into the picture.
    """
    parse, found = open_layout("sesmo"), dict[str, list[str]]()
    for path in sorted((folder / "images").rglob("*.tif")):
        named = parse(folder / "images", path)
        assert named is not None
        assert named.well is not None
        pixels, plane = tifffile.imread(path), ome(path)["Image"]["Pixels"]["Plane"]
        assert well_under(96, PLATE, float(plane["PositionX"]), float(plane["PositionY"])) == named.well
        assert well_under(96, PLATE, 2.0 * pixels[0, 0], 2.0 * pixels[0, 1]) == named.well
        found.setdefault(named.well, []).append(path.name)
    assert not list((folder / "images").rglob("*.part"))
    return found


def recorded(folder: Path) -> list[str]:
    """Return the messages of all incidents."""
    with open_reader(folder / "sesmo.db").connect() as connection:
        rows = incidents(connection)
    assert {row.kind for row in rows} <= {"microscope"}
    return [row.message for row in rows]


@pytest.mark.parametrize(
    ("night", "words"),
    [
        ("stage_offset", "the stage XY stands at 17664.8, 9000.0 µm, 300.0 µm from B03 field 1"),
        ("stage_raises", 'the stage XY failed: Error in device "XY": Serial command failed (107)'),
        ("readout_fails", 'the camera failed: Error in device "Camera": image buffer read failed'),
        ("exposure_fails", 'the camera failed: Error in device "Camera": trigger time-out'),
        ("autofocus_fails", 'the autofocus Autofocus failed: Error in device "Autofocus": no reflection found'),
        ("callback_raises", "this is a fault of the program (ValueError('a slip of ours')); please report it"),
        ("disk_full", "cannot be written: No space left on device; check the disk and its room"),
    ],
)
def test_a_fault_costs_its_own_well_alone(
    nights: dict[str, dict[str, Any]], folder: Path, night: str, words: str
) -> None:
    found = frames(folder / night)
    assert {well: len(names) for well, names in found.items()} == dict.fromkeys(("B02", "B04", "C02", "C03", "C04"), 2)
    (message,) = recorded(folder / night)
    assert message.startswith("B03 fields 1, 2 are missing in round 1: ")
    assert words in message
    assert "\n" not in message
    assert nights[night]["ended"] == ""
    assert nights[night]["parked_z"] == 3.0
    figure(f"{night}: 10 of 12 frames, 0 at a wrong well, {nights[night]['seconds']:.1f} s")


@pytest.mark.parametrize("night", ["all_is_well", "stage_raises_once"])
def test_what_is_well_or_passes_costs_nothing(nights: dict[str, dict[str, Any]], folder: Path, night: str) -> None:
    found = frames(folder / night)
    assert {len(names) for names in found.values()} == {2}
    assert len(found) == 6
    assert recorded(folder / night) == []
    assert nights[night]["rounds"] == [[12, 12]]


def test_a_focus_that_stands_elsewhere_is_noticed(nights: dict[str, dict[str, Any]], folder: Path) -> None:
    assert nights["focus_slips"]["ended"] == ""
    assert "the focus Z stands at" in recorded(folder / "focus_slips")[0]
    assert len(frames(folder / "focus_slips")) == 6  # where its autofocus ran it stands as it should


def test_three_bad_rounds_stop_and_park(nights: dict[str, dict[str, Any]], folder: Path) -> None:
    result = nights["stage_lies_still"]
    assert frames(folder / "stage_lies_still") == {}
    assert result["ended"].startswith("the acquisition of plate P stopped and parked after round ")
    assert "3 bad rounds one after the other; the last: the stage XY stands at" in result["ended"]
    assert result["parked_z"] == 3.0
    assert result["ended"] in recorded(folder / "stage_lies_still")
    assert any("was broken off: 3 wells from C02 on were not tried" in line for line in result["said"])


def test_no_travel_between_wells_but_at_the_safe_height(nights: dict[str, dict[str, Any]], folder: Path) -> None:
    travelled = [move for name in NIGHTS for move in nights[name]["moves"] if name != "stage_lies_still"]
    far = [height for x, y, to_x, to_y, height in travelled if abs(x - to_x) + abs(y - to_y) > 4_000]
    assert len(far) > 50
    assert set(far) == {3.0}
    assert nights["focus_stays_up"]["moves"] == nights["stage_lies_still"]["raised"] == []
    assert "the focus Z stands at 50.00 µm, not at 3.00" in recorded(folder / "focus_stays_up")[0]


def test_a_parked_focus_is_not_that_of_the_next_round(nights: dict[str, dict[str, Any]], folder: Path) -> None:
    frames_of = sorted((folder / "camera_hangs_once").rglob("*_t2_*.tif"))
    assert [nights["camera_hangs_once"]["rounds"][1], len(frames_of)] == [[12, 12], 12]
    for path in frames_of:
        assert ome(path)["Image"]["Pixels"]["Plane"]["PositionZ"] == pytest.approx(50, abs=0.1)


def test_missed_rounds_are_one_incident(nights: dict[str, dict[str, Any]], folder: Path) -> None:
    (message,) = recorded(folder / "begun_late")
    assert message.startswith("2 rounds from 1 to 2, due from ")
    assert nights["begun_late"]["rounds"] == [[12, 12]]


def test_a_plan_that_is_over_says_so(nights: dict[str, dict[str, Any]]) -> None:
    assert nights["again"]["said"] == [
        "the plan of plate P is over (1 of 1 rounds); to image it again, give it another run in plate.run"
    ]


def test_a_slow_stage_is_not_a_stuck_one(nights: dict[str, dict[str, Any]], folder: Path) -> None:
    assert nights["slow_stage"]["rounds"] == [[4, 4]]
    assert recorded(folder / "slow_stage") == []


def test_a_core_that_falls_silent_between_rounds_hangs_nothing(nights: dict[str, dict[str, Any]]) -> None:
    result = nights["second_preparation_hangs"]
    assert result["rounds"] == [[12, 12], [0, 12]]
    assert any("still does not answer; switch it off and on" in line for line in result["said"])
    assert result["seconds"] < 20


def test_a_camera_that_hangs_for_ever_is_left_behind(nights: dict[str, dict[str, Any]], folder: Path) -> None:
    result = nights["camera_hangs"]
    assert "the camera still does not answer; switch it off and on" in result["ended"]
    assert result["parked_z"] == 3.0
    assert any("round 1: the camera does not answer for" in line for line in recorded(folder / "camera_hangs"))
    assert result["seconds"] < 20
    figure(
        f"camera that never answers: given up and parked after {result['seconds']:.1f} s (time-out 1 s, 3 bad rounds)"
    )


def test_all_nights_ran_in_one_process_each_on_a_core_started_anew(nights: dict[str, dict[str, Any]]) -> None:
    assert list(nights) == list(NIGHTS)


@pytest.mark.alone
def test_an_abort_takes_less_than_two_seconds(tmp_path: Path) -> None:
    points = ("waiting", "travelling", "hanging", "opening")
    process = python("tests.microscope.ending", tmp_path, 60, 3, *points)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    took = {line.split()[0]: float(line.split()[3]) for line in out.splitlines() if " stopped in " in line}
    assert set(took) == set(points)
    for point in points:
        assert took[point] < 2
        assert len(frames(tmp_path / point)) == (3 if point == "waiting" else 0)
        figure(f"abort while {point}: {took[point]:.3f} s")
    assert "stopped in round 1: 0 of 6 frames; the same command goes on" in out


def test_a_restart_after_kill_goes_on_with_the_next_due_round(tmp_path: Path) -> None:
    words = ("tests.microscope.ending", tmp_path / "kill", 15, 2)
    first = python(*words)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("round 2 begins"):
            break
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=10)
    before = frames(tmp_path / "kill")
    assert {well: len(names) for well, names in before.items()} == {"B02": 2, "B03": 2, "B04": 2}
    began = time.monotonic()
    second = python(*words)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert "round 1:" not in out
    assert "round 2: 6 of 6 frames" in out
    after = frames(tmp_path / "kill")
    assert {len(names) for names in after.values()} == {4}
    assert all(name in after[well] for well, names in before.items() for name in names)
    figure(f"kill -9 between rounds: 12 of 12 frames once each, on with round 2; {time.monotonic() - began:.1f} s")


def test_a_round_that_was_killed_is_finished(tmp_path: Path) -> None:
    words = ("tests.microscope.ending", tmp_path / "half", 60, 1)
    first = python(*words)
    until = time.monotonic() + 60
    while not list((tmp_path / "half").rglob("*.tif")) and time.monotonic() < until:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=10)
    before = {path.name for path in (tmp_path / "half").rglob("*.tif")}
    second = python(*words)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert {well: len(names) for well, names in frames(tmp_path / "half").items()} == {"B02": 2, "B03": 2, "B04": 2}
    assert before <= {path.name for path in (tmp_path / "half").rglob("*.tif")}
    figure(f"kill -9 within a round: {len(before)} of 6 frames before, 6 of 6 after the restart, none twice")
