"""Statistics on the page and in the API: the numbers of the command line, told in words where they cannot be."""

import csv
import io
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest

from db.engine import open_engine, open_reader
from db.incidents import open_incident
from sesmo_live import comparison, compounds, export, overview, screens
from sesmo_live.results import compound_history
from sesmo_live.web.seldom import Seldom
from tests.planted_screen import LEAVING, add_screen
from tests.screens import add_images, add_plate, server
from tests.test_pages import Page, get


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    db = tmp_path_factory.mktemp("screen") / "s.db"
    add_screen(db, both_models=True)
    add_plate(db, "P1")
    return db


@pytest.fixture(scope="module")
def base(db: Path) -> Iterator[str]:
    with server(db) as address:
        yield address


def ask(base: str, path: str) -> Any:
    answer = httpx.get(f"{base}/api/v1/{path}", timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def plain(rows: list[dict[str, Any]]) -> Any:
    return json.loads(json.dumps(rows, default=str, sort_keys=True))


def test_the_api_tells_the_numbers_of_the_functions_behind_the_commands(base: str, db: Path) -> None:
    engine = open_reader(db)
    pairs = {
        "plates/screen/statistics": screens.plate_statistics(engine, "SCREEN"),
        "plates/SCREEN/courses": screens.plate_courses(engine, "SCREEN"),
        "plates/SCREEN/courses?well=a4": screens.plate_courses(engine, "SCREEN", "A04"),
        "plates/SCREEN/hits": compounds.hits(engine, ["SCREEN"]),
        "plates/SCREEN/hits?timepoint=0&fdr=0.2": compounds.hits(engine, ["SCREEN"], timepoint=0, level=0.2),
        "plates/SCREEN/doses": compounds.dose_responses(engine, "SCREEN"),
        "compounds/nutlin/doses?over_time=true": compounds.compound_curves(engine, "nutlin", over_time=True),
        "compare?a=stub&b=other&plate=SCREEN": comparison.compare(engine, "stub", "other", plate="SCREEN"),
        "plates/SCREEN/wells": screens.plate_wells(engine, "SCREEN"),
    }
    for path, wanted in pairs.items():
        told = ask(base, path)
        assert plain(told["rows"]) == plain(wanted.rows), path
        assert told["notes"] == list(wanted.notes), path
        assert told["rows"], path
        table = list(
            csv.DictReader(io.StringIO(httpx.get(f"{base}/api/v1/{path}{'&' if '?' in path else '?'}format=csv").text))
        )
        assert [row.keys() == told["rows"][0].keys() for row in table] == [True] * len(told["rows"]), path
    bridged = ask(base, "compounds/nutlin?bridge=true")["rows"]
    wanted = compound_history(engine, "nutlin", bridge=True)
    assert [row["percent_of_control"] for row in bridged] == [row["percent_of_control"] for row in wanted.rows]
    assert "percent_of_control" not in ask(base, "compounds/nutlin")["rows"][0]


def test_the_effects_that_were_planted_are_found(base: str) -> None:
    last = ask(base, "plates/SCREEN/statistics")["rows"][-1]
    assert 0.5 < last["z_prime"] < 1
    left = {
        row["well"]: row for row in ask(base, "plates/SCREEN/courses")["rows"] if row["onset_timepoint"] is not None
    }
    assert left.keys() == LEAVING | {"A12", "B12", "C12", "D12"}
    assert {(row["onset_timepoint"], row["onset_hours"], row["direction"]) for row in left.values()} == {
        (1, 24.0, "rising")
    }
    nutlin, metformin = ask(base, "plates/SCREEN/doses")["rows"]
    assert nutlin["ec50_low"] < 3 < nutlin["ec50_high"]
    assert (metformin["is_flat"], metformin["ec50"]) == (True, None)
    hits = {(row["compound"], row["dose"]) for row in ask(base, "plates/SCREEN/hits")["rows"] if row["hit"]}
    assert {("etoposide", "10 µM"), ("nutlin", "100 µM"), ("nutlin", "10 µM")} <= hits
    assert not [hit for hit in hits if hit[0] == "metformin"]


def test_map_and_well_stand_beside_their_controls_as_the_whole_plate_says(db: Path) -> None:
    engine = open_reader(db)
    names = screens.WELL_COLUMNS[-7:]
    for at in (None, 1):
        wanted = {row["well"]: row for row in screens.plate_wells(engine, "SCREEN", timepoint=at).rows}
        shown = {well.well: well for well in overview.plate_map(engine, "SCREEN", timepoint=at).wells}
        assert shown.keys() == wanted.keys()
        for well, row in wanted.items():
            assert {name: getattr(shown[well], name) for name in names} == {name: row[name] for name in names}
    screen = screens.load_screen(engine, "SCREEN")
    band = screens.band_of(screen)
    courses = {row["well"]: row for row in screens.courses_of(screen).rows}
    for well in ("A01", "A05", "A12", "C02"):
        view = overview.well_view(engine, "SCREEN", well)
        assert view.departure
        assert [control.half_width for control in view.controls] == pytest.approx(list(band.half_width), rel=1e-12)
        assert [control.mean for control in view.controls] == pytest.approx(list(band.mean), rel=1e-12)
        for name in type(view.departure).__dataclass_fields__:
            assert getattr(view.departure, name) == pytest.approx(courses[well][name]), (well, name)
    beside, said = overview.well_beside(engine, "SCREEN", "a5", timepoint=3)
    assert beside
    (row,) = [row for row in screens.plate_wells(engine, "SCREEN").rows if row["well"] == "A05"]
    assert beside.percent_of_control == row["percent_of_control"]
    assert said == ("no density-adjusted score: " + said[0].partition(": ")[2],)
    assert overview.well_beside(engine, "SCREEN", "A05", timepoint=99)[0] is None


def test_the_panel_names_the_wells_that_left_and_how_good_the_controls_are(base: str, db: Path) -> None:
    engine = open_reader(db)
    panel = get(base, "/plates/SCREEN/parts/panel")
    ((_, attrs, _),) = panel.find("data-flags")
    flags = json.loads(unescape(attrs["data-flags"]))
    rows = {
        row["well"]: row for row in screens.plate_courses(engine, "SCREEN").rows if row["onset_timepoint"] is not None
    }
    assert flags == dict.fromkeys(rows, "left the control band at 24 h, rising")
    text = httpx.get(f"{base}/plates/SCREEN/parts/panel").text
    assert "4 of 12 wells left the control band" in text
    assert "4 of 4 positive controls left it, the first at 24 h" in text
    last = screens.plate_statistics(engine, "SCREEN").rows[-1]
    assert f'<span class="big">{last["z_prime"]:.2f}</span>' in text
    assert f"SSMD {last['ssmd']:.1f}" in text
    first = httpx.get(f"{base}/plates/SCREEN/parts/panel?timepoint=0").text
    assert "No well has left the control band" in first


def test_what_cannot_be_computed_is_said_in_a_sentence(base: str) -> None:
    panel = httpx.get(f"{base}/plates/P1/parts/panel").text
    why = "Not all of Z′, robust Z′, SSMD and signal window: there are 1 positive control wells and at least 2 are"
    assert f"{why} needed." in panel
    assert "there are 2 negative control wells and at least 4 are needed" in panel
    hits = httpx.get(f"{base}/plates/P1/parts/hits").text
    assert "there are 2 negative control wells and at least 3 are needed" in hits
    refused = httpx.get(f"{base}/api/v1/plates/P1/hits")
    assert (refused.status_code, "at least 3 are needed" in refused.json()["detail"]) == (422, True)
    well = Page(httpx.get(f"{base}/plates/P1/wells/A03").text).find("id", "onset")[0][2]
    assert well.startswith("no onset and no area: there are 2 negative control wells")
    for path, status in (
        ("plates/none/statistics", 404), ("plates/SCREEN/export.exe", 404), ("plates/SCREEN/courses?well=H12", 404),
        ("compare?a=stub&b=none&plate=SCREEN", 404), ("compare?a=stub&b=stub&plate=SCREEN", 422), ("compare?a=x", 422),
        ("plates/SCREEN/hits?fdr=2", 422), ("plates/SCREEN/doses?compound=DMSO", 404),
    ):  # fmt: skip
        assert httpx.get(f"{base}/api/v1/{path}").status_code == status, path


def test_the_curve_that_is_drawn_is_the_one_that_is_told(base: str, db: Path) -> None:
    engine = open_reader(db)
    (row,) = compounds.compound_curves(engine, "nutlin").rows
    part = get(base, "/compounds/nutlin/parts/curves")
    assert [text for _, _, text in part.find("data-ec50")] == [f"{row['ec50']:.4g}"]
    chart = json.loads(unescape(part.find("data-chart")[0][1]["data-chart"]))
    dots, curve = chart["lines"]
    assert len(dots["x"]) == row["wells"] == 8 + 8
    assert chart["marks"] == [{"x": row["ec50"], "low": row["ec50_low"], "high": row["ec50_high"], "label": "EC50"}]
    middle = row["bottom"] + (row["top"] - row["bottom"]) / 2
    crossing = min(range(80), key=lambda place: abs(curve["x"][place] - row["ec50"]))
    assert curve["y"][crossing] == pytest.approx(middle, abs=0.03)
    assert "no effect of the dose" in httpx.get(f"{base}/compounds/metformin/parts/curves").text
    over = get(base, "/compounds/nutlin/parts/ec50?plate=SCREEN").find("data-chart")[0][1]["data-chart"]
    wanted = compounds.compound_curves(engine, "nutlin", over_time=True).rows
    assert json.loads(unescape(over))["lines"][0]["y"] == [row["ec50"] for row in wanted if row["ec50"] is not None]
    bridge = get(base, "/compounds/nutlin/parts/bridge").find("data-percent")
    last = [row for row in compound_history(engine, "nutlin", bridge=True).rows if row["timepoint"] == 3]
    assert [text for _, _, text in bridge] == [f"{row['percent_of_control']:.0f}" for row in last]


def test_a_plate_is_taken_away_as_the_command_writes_it(base: str, db: Path, tmp_path: Path) -> None:
    export.export_wells(open_reader(db), "SCREEN", tmp_path / "out.csv")
    kept = httpx.get(f"{base}/api/v1/plates/SCREEN/export.csv", timeout=60)
    assert kept.headers["content-disposition"] == 'attachment; filename="SCREEN.csv"'
    assert kept.content == (tmp_path / "out.csv").read_bytes()
    assert httpx.get(f"{base}/api/v1/plates/SCREEN/export.parquet", timeout=60).content[:4] == b"PAR1"
    report = httpx.get(f"{base}/api/v1/plates/SCREEN/export.html", timeout=60)
    assert "attachment" in report.headers["content-disposition"]
    assert "Wells that left the control band" in report.text


def test_many_wells_of_a_compound_come_a_part_at_a_time(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ask(base, "compounds/nutlin")["rows"]
    some = ask(base, "compounds/nutlin?limit=5&skip=3")
    assert some["rows"] == whole[3:8]
    assert some["notes"][-1] == f"rows 4 to 8 of {len(whole)}; go on with skip"
    assert [item["name"] for item in ask(base, "compounds?part=UTL")] == ["nutlin"]
    assert [item["name"] for item in ask(base, "compounds?limit=1&skip=1")] == ["doxorubicin"]
    for form in ("/parts/compounds?name=", "/plates/SCREEN?show=&run=&model=&timepoint="):
        assert httpx.get(base + form).status_code == 200, form
    assert httpx.get(f"{base}/parts/compounds?name=UTL").text.count("<option") == 1
    monkeypatch.setattr("sesmo_live.web.pages.MOST_WELLS", 3)
    first = get(base, "/compounds/nutlin?model=stub")
    rows = [len(first.find("data-score"))]
    following = [attrs["hx-get"] for _, attrs, _ in first.find("hx-get") if "parts/wells" in attrs["hx-get"]]
    while following:
        part = get(base, unescape(following[0]))
        rows.append(len(part.find("data-score")))
        following = [attrs["hx-get"] for _, attrs, _ in part.find("hx-get") if "parts/wells" in attrs["hx-get"]]
    assert rows == [3, 3, 2]


def test_a_stall_marks_the_wells_that_the_last_round_did_not_reach(tmp_path: Path) -> None:
    add_plate(tmp_path / "s.db", times=2)
    engine = open_engine(tmp_path / "s.db", write=True, checkpoint=False)
    with engine.begin() as connection:
        open_incident(connection, "stalled", "P1", "plate P1: no new image; look at it", plate_id=1)

    def late() -> set[str]:
        return {well.well for well in overview.plate_map(engine, "P1").wells if "stalled" in well.flags}

    wells = {"A01", "B01", "A02", "A03", "B02", "A04", "B03"}
    assert late() == wells
    with engine.begin() as connection:
        add_images(connection, 1, "P1", ("A01", "A02", "A03"), 2)
    assert late() == wells - {"A01", "A02", "A03"}
    engine.dispose()


def test_a_locked_database_is_told_of_within_seconds(tmp_path: Path) -> None:
    add_plate(tmp_path / "s.db", times=1)
    with closing(sqlite3.connect(tmp_path / "s.db")) as alone:
        alone.execute("PRAGMA journal_mode = DELETE")  # under WAL no program here locks readers out
    file = tmp_path / "s.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as other, server(file) as base:
        assert httpx.get(f"{base}/api/v1/plates/P1").status_code == 200
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        answer = httpx.get(f"{base}/api/v1/plates/P1?timepoint=0", timeout=20)
        assert (answer.status_code, time.monotonic() - began < 10) == (503, True)
        assert "the database cannot be used now" in answer.json()["detail"]
        other.execute("ROLLBACK")
        assert httpx.get(f"{base}/api/v1/plates/P1?timepoint=0", timeout=20).status_code == 200


def test_a_costly_answer_is_kept_while_nothing_changes_and_rests_after_a_change() -> None:
    made: list[int] = []

    def make() -> int:
        time.sleep(0.05)
        made.append(len(made))
        return made[-1]

    seldom = Seldom()
    assert [seldom.answer("a", 1, make), seldom.answer("a", 1, make)] == [(0, 0.0), (0, 0.0)]
    value, again = seldom.answer("a", 2, make)
    assert (value, 0 < again <= 20 * 0.5) == (0, True)
    assert seldom.answer("b", 2, make)[0] == 1
    threads = [threading.Thread(target=seldom.answer, args=("c", 2, make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert made == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        seldom.answer("d", 2, lambda: 1 // 0)
    assert seldom.answer("d", 2, lambda: 7) == (7, 0.0)
