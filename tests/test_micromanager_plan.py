"""Plans of acquisitions: wells, calibration, positions, rounds; no microscope is needed for any of it."""

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import useq
from hypothesis import given, settings
from hypothesis import strategies as st

from acquisition.micromanager.plan import Plan, load_plan, plan_from
from acquisition.micromanager.plates import calibrate, estimate, positions, useq_plan, well_under
from acquisition.micromanager.schedule import Due, State, choose, plate_folder, schedule
from acquisition.micromanager.stand import Heights
from sesmo_live.acquire import lay_out
from sesmo_live.errors import ConfigError, UsageError
from sesmo_live.wells import PLATE_SHAPES, well_name

REFERENCE = {"A01": (0.0, 0.0), "A12": (99_000.0, 0.0), "H01": (0.0, 63_000.0)}


def plan(**changes: dict[str, Any]) -> Plan:
    data: dict[str, Any] = {
        "folder": "in",
        "plate": {"name": "P", "wells": 96, "reference": REFERENCE},
        "imaging": {"wells": ["B02:D05"], "frame_px": (512, 512), "pixel_um": 1.0, "exposure_ms": 10},
        "rounds": {"every_min": 30, "for_h": 2},
    }
    for section, values in changes.items():
        data[section] = values if not isinstance(values, dict) else {**data.get(section, {}), **values}
    return plan_from(data, "the test")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"plates": {}}, "there is no setting 'plates' in a plan; did you mean 'plate'?"),
        ({"imaging": {"exposure": 3}}, "no setting 'imaging.exposure' in a plan; did you mean 'exposure_ms'?"),
        ({"rounds": {"every_min": 0}}, "rounds.every_min: Input should be greater than or equal to 0.01"),
        ({"rounds": {"for_h": math.inf}}, "rounds.for_h: Input should be"),
        ({"rounds": {"start": 5}}, "rounds.start: 5 is no time; write one such as 2026-11-20T18:00:00+01:00"),
        ({"imaging": {"exposure_ms": -5}}, "imaging.exposure_ms: Input should be greater than 0"),
        ({"imaging": {"pixel_um": math.inf}}, "imaging.pixel_um: Input should be a finite number"),
        ({"imaging": {"frame_px": (-512, 512)}}, "imaging.frame_px.0: Input should be greater than or equal to 1"),
        ({"imaging": {"wells": []}}, "imaging.wells: List should have at least 1 item"),
        ({"imaging": {"wells": ["B02:C03:D04"]}}, "'C03:D04' is not a well"),
        ({"imaging": {"wells": ["all:B02"]}}, "'all' is not a well"),
        ({"imaging": {"channel": "Ph/20x"}}, "imaging.channel 'Ph/20x' make no file name; use letters"),
        ({"plate": {"name": ".."}}, "plate.name '..', plate.run '' and"),
        ({"plate": {"reference": {"A01": (math.nan, 0)}}}, "plate.reference.A01.0: Input should be a finite number"),
        ({"plate": {"wells": 97}}, "plate.wells: plates have 6, 12, 24, 48, 96, 384, 1536 wells"),
        ({"imaging": {"wells": ["A01:Q01"]}}, "well Q01 is not on a plate of 96 wells"),
        ({"imaging": {"wells": ["7"]}}, "'7' is not a well; write a row and a column such as B03 or AF48"),
        ({"microscope": {"connection": "headless"}}, "a headless microscope needs program"),
        ({"loop": {"refocus": True}}, "loop.refocus needs an autofocus; set focus.device"),
        ({"rounds": {"timezone": "Berlin"}}, "'Berlin' is no time zone"),
    ],
)
def test_a_wrong_plan_is_refused_with_the_key_and_the_remedy(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        plan(**changes)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_plan_file_counts_its_paths_from_its_own_folder(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(
        'folder = "in"\n[plate]\nname = "P"\nwells = 6\n[rounds]\nevery_min = 5\nfor_h = 0\n'
        "[imaging]\nframe_px = [64, 64]\npixel_um = 1.0\nexposure_ms = 5\n"
    )
    loaded = load_plan(file)
    assert (loaded.folder, loaded.database) == (tmp_path / "in", str(tmp_path / "sesmo.db"))
    with pytest.raises(ConfigError, match=r"there is no plan .*none.toml"):
        load_plan(tmp_path / "none.toml")
    file.write_text("folder = ")
    with pytest.raises(ConfigError, match="cannot be read as TOML"):
        load_plan(file)


def test_wells_come_row_by_row_each_the_other_way_round() -> None:
    chosen = plan(imaging={"wells": ["c2:B4", "B03", "H12"]}).wells
    assert chosen == ["B04", "B03", "B02", "C02", "C03", "C04", "H12"]
    assert len(plan(imaging={"wells": ["all"]}).wells) == 96


@settings(max_examples=40, deadline=None)
@given(
    wells=st.sampled_from(sorted(PLATE_SHAPES)),
    turn=st.floats(-180, 180),
    x=st.floats(-1e5, 1e5),
    y=st.floats(-1e5, 1e5),
    scale=st.floats(0.98, 1.02),
    mirrored=st.booleans(),
)
def test_three_wells_find_a_plate_that_is_turned_mirrored_and_moved(
    wells: int, turn: float, x: float, y: float, scale: float, *, mirrored: bool
) -> None:
    pitch = useq.WellPlate.from_str(f"{wells}-well").well_spacing[0] * 1000 * scale
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))

    def middle(row: int, column: int) -> tuple[float, float]:
        across, down = (column - 1) * pitch, (row - 1) * pitch * (1 if mirrored else -1)
        return x + cos * across - sin * down, y + sin * across + cos * down

    rows, columns = PLATE_SHAPES[wells]
    reference = {well_name(r, c): middle(r, c) for r, c in [(1, 1), (1, columns), (rows, 1)]}
    found = calibrate(wells, reference)
    assert found.mirrored == mirrored
    data: dict[str, Any] = {
        "plate": {"wells": wells, "reference": reference},
        "imaging": {"wells": ["A01", "B02", well_name(rows, columns)], "frame_px": (200, 200)},
    }
    for place in positions(plan(**data), found):
        row, column = divmod(
            [well_name(r, c) for r in range(1, rows + 1) for c in range(1, columns + 1)].index(place.well), columns
        )
        assert math.dist((place.x_um, place.y_um), middle(row + 1, column + 1)) < 0.01
        assert well_under(wells, found, place.x_um, place.y_um) == place.well


def test_reference_wells_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="names 2 wells; give the stage position of the middle of three"):
        calibrate(96, {"A01": (0, 0), "A12": (99_000, 0)})
    with pytest.raises(ConfigError, match="lie on one line"):
        calibrate(96, {"A01": (0, 0), "A06": (45_000, 0), "A12": (99_000, 0)})
    with pytest.raises(ConfigError, match="do not fit a plate of 96 wells"):
        calibrate(96, {"A01": (0, 0), "A11": (99_000, 0), "H01": (0, 63_000)})  # one well beside the one that was meant
    with pytest.raises(ConfigError, match="do not fit a plate of 384 wells"):
        calibrate(384, REFERENCE)


def test_a_plate_without_calibration_is_not_imaged() -> None:
    with pytest.raises(ConfigError, match="give the stage position of the middle of three wells"):
        lay_out(plan(plate={"reference": {}}, folder="nowhere"))  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ["grid", "random"])
@pytest.mark.parametrize("wells", sorted(PLATE_SHAPES))
def test_useq_plans_are_the_same_places_and_round_trip(wells: int, pattern: str) -> None:
    size = 200 if wells == 1536 else 512
    rows, columns = PLATE_SHAPES[wells]
    pitch = useq.WellPlate.from_str(f"{wells}-well").well_spacing[0] * 1000
    reference = {
        "A01": (10.0, 20.0),
        well_name(1, columns): (10 + (columns - 1) * pitch, 20.0),
        well_name(rows, 1): (10.0, 20 - (rows - 1) * pitch),
    }
    imaging = {"wells": ["A01:B02"], "fields": 4, "pattern": pattern, "frame_px": (size, size)}
    one = plan(plate={"wells": wells, "reference": reference}, imaging=imaging)
    found = calibrate(wells, reference)
    theirs, ours = useq_plan(one, found), positions(one, found)
    again = useq.WellPlatePlan.model_validate_json(theirs.model_dump_json())
    assert again == theirs
    places = np.array([(p.x, p.y) for p in again], float)
    assert np.abs(places - [(p.x_um, p.y_um) for p in ours]).max() < 1e-6
    names = [str(p.name).partition("_")[0] for p in again]
    assert names == [f"{p.well[0]}{int(p.well[1:])}" for p in ours]
    assert len({(p.x_um, p.y_um) for p in ours}) == 16


def test_a_turned_plate_is_the_same_as_useqs() -> None:
    turn, pitch = math.radians(3), 9000.0
    reference = {
        well_name(r, c): (
            5 + pitch * ((c - 1) * math.cos(turn) + (r - 1) * math.sin(turn)),
            7 + pitch * ((c - 1) * math.sin(turn) - (r - 1) * math.cos(turn)),
        )
        for r, c in ((1, 1), (1, 12), (8, 1))
    }
    one = plan(plate={"reference": reference}, imaging={"fields": 4})
    found = calibrate(96, reference)
    assert found.rotation_deg == pytest.approx(3)
    theirs = np.array([(p.x, p.y) for p in useq_plan(one, found)], float)
    assert np.abs(theirs - [(p.x_um, p.y_um) for p in positions(one, found)]).max() < 1e-6


def test_a_mirrored_plate_cannot_be_a_useq_plan() -> None:
    with pytest.raises(ConfigError, match="mirrored on this stage"):
        useq_plan(plan(), calibrate(96, REFERENCE))


def test_fields_stay_in_their_well() -> None:
    with pytest.raises(ConfigError, match="fields lie wholly in a well of 96"):
        lay_out(plan(imaging={"fields": 400}))
    with pytest.raises(ConfigError, match="is larger than a well"):
        lay_out(plan(imaging={"pattern": "random", "pixel_um": 20.0}))


def test_the_estimate_counts_travel_time_and_room() -> None:
    laid = lay_out(plan(imaging={"wells": ["A01:A03"]}))
    assert laid.round.frames == 3
    assert laid.round.travel_um == pytest.approx(18_000, rel=1e-6)
    assert laid.round.bytes > 3 * 512 * 512 * 2
    assert (laid.rounds, laid.warnings) == (5, ())
    tight = lay_out(plan(imaging={"wells": ["all"]}, rounds={"every_min": 0.5}))
    assert "a round takes about" in tight.warnings[0]
    slower = estimate(plan(focus={"device": "AF", "seconds": 10}), positions(plan(), calibrate(96, REFERENCE)))
    assert slower.time > laid.round.time + timedelta(seconds=100)


NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def test_rounds_follow_the_clock_and_moving_wells_come_in_between() -> None:
    whole = schedule(plan(), NOON)
    assert [due.at.strftime("%H:%M") for due in whole] == ["12:00", "12:30", "13:00", "13:30", "14:00"]
    more = schedule(plan(loop={"moved_by": 0.1, "divide": 3}), NOON)
    assert [due.number for due in more] == list(range(1, 14))
    assert [due.at for due in more if due.whole] == [due.at for due in whole]


@pytest.mark.parametrize(
    ("done", "minutes", "taken", "missed"),
    [
        ([], 0, 1, []),
        ([1], 1, 2, []),  # waits for the second
        ([1], 31, 2, []),  # late, but before the third
        ([1], 95, 4, [2, 3]),  # only the latest of three is taken
        ([1, 2, 3, 4, 5], 125, None, []),
        ([1], 600, None, [2, 3, 4, 5]),
        ([], 600, None, [1, 2, 3, 4, 5]),
    ],
)
def test_a_restart_goes_on_with_the_next_due_round(
    done: list[int], minutes: float, taken: int | None, missed: list[int]
) -> None:
    due, late = choose(schedule(plan(), NOON), set(done), NOON + timedelta(minutes=minutes))
    assert (due.number if due else None, [one.number for one in late]) == (taken, missed)


@pytest.mark.parametrize(
    ("done", "minutes", "taken", "missed"),
    [
        ([1], 16, 2, []),  # an overdue round of the moving wells
        ([1], 46, 3, [2, 4]),  # a whole round goes before the one of the moving wells after it
        ([1, 2, 3], 46, 4, []),
        ([1, 2], 76, 5, [3, 4, 6]),
    ],
)
def test_moving_wells_cost_no_whole_round(done: list[int], minutes: float, taken: int, missed: list[int]) -> None:
    rounds = schedule(plan(loop={"moved_by": 0.1, "divide": 2}), NOON)
    due, late = choose(rounds, set(done), NOON + timedelta(minutes=minutes))
    assert (due.number if due else None, [one.number for one in late]) == (taken, missed)


def test_a_plan_whose_rounds_are_all_over_is_not_begun(tmp_path: Path) -> None:
    over = plan(folder=tmp_path, rounds={"start": NOON - timedelta(hours=9)})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="all rounds of the plan were over at 2026-11-20T03:00.00:00 already"):
        State(over, NOON)
    assert not list(tmp_path.iterdir())


def test_what_was_done_outlives_the_process(tmp_path: Path) -> None:
    one = plan(folder=tmp_path)  # type: ignore[arg-type]
    first = State(one, NOON)
    first.heights = Heights(12.5, {"B02": 13.0})
    first.finish(1)
    again = State(one, NOON + timedelta(hours=1))
    assert (again.start, again.done, again.heights) == (NOON, {1}, first.heights)
    with pytest.raises(UsageError, match="was begun with rounds every 30 min and moving wells 1 times in one; keep"):
        State(plan(folder=tmp_path, rounds={"every_min": 20}), NOON)  # type: ignore[arg-type]
    again._path = tmp_path / "plan.toml" / "acquisition.json"  # a place that cannot be written
    (tmp_path / "plan.toml").write_text("")
    again.finish(2)
    assert again.done == {1, 2}
    (plate_folder(one) / "acquisition.json").write_text(json.dumps({"start": 3}))
    with pytest.raises(UsageError, match="delete it to begin the plan anew"):
        State(one, NOON)
    assert isinstance(schedule(one, NOON)[0], Due)


def test_the_example_is_a_plan_and_every_key_is_explained() -> None:
    docs = Path(__file__).parents[1] / "docs"
    page, example = (docs / "microscope.md").read_text("utf-8"), (docs / "plan.toml").read_text("utf-8")
    laid = lay_out(load_plan(docs / "plan.toml"))
    assert (laid.round.frames, laid.rounds, laid.warnings) == (120, 145, ())
    for name, section in Plan.model_fields.items():
        kind = section.annotation
        assert kind is not None
        keys = list(getattr(kind, "model_fields", {name: None}))
        for key in keys:
            assert f"`{key}`" in page or f"`{key} = " in page, key
            assert f"\n{key} = " in example or f"\n# {key} = " in example, key
