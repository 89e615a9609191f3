"""The API over a real server and a real database: the same numbers as the queries, and changes that hold."""

import csv
import io
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest

from db.engine import open_reader
from sesmo_live import overview, results
from sesmo_live.screens import WELL_COLUMNS
from tests.cli import Sesmo, runner
from tests.web import FORMULA, NASTY, PLATE, TOKEN, Live, live, plate_db, reading, scored_plate

__all__ = ["plate_db", "reading", "scored_plate"]

NAME = quote(PLATE, safe="")


@pytest.fixture
def sesmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sesmo:
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch)


@pytest.fixture
def server(plate_db: Path) -> Iterator[Live]:
    with live(plate_db) as running:
        yield running


def test_numbers_shown_are_those_of_the_command_line(reading: Live, scored_plate: Path, sesmo: Sesmo) -> None:
    db = ("--db", scored_plate / "s.db", "--format", "json")
    shown = json.loads(sesmo("plate", PLATE, *db).out)
    told = reading.get(f"/api/v1/plates/{NAME}/wells").json["rows"]
    assert [dict(sorted(row.items())) for row in told] == [dict(sorted(row.items())) for row in shown]
    wells = [{name: row[name] for name in WELL_COLUMNS} for row in shown]
    course = json.loads(sesmo("timecourse", "--plate", PLATE, "--well", "b1", *db).out)
    told = reading.get(f"/api/v1/plates/{NAME}/wells/b1/timecourse").json["rows"]
    assert [row["score"] for row in told] == [row["score"] for row in course]
    assert [row["hours"] for row in told] == [row["hours"] for row in course] == [0.0, 1.0]
    history = reading.get("/api/v1/compounds/dmso").json["rows"]
    assert [row["score"] for row in history] == [row["score"] for row in json.loads(sesmo("compound", "dmso", *db).out)]
    assert len(history) == 4
    on_map = {well["well"]: well for well in reading.get(f"/api/v1/plates/{NAME}").json["wells"]}
    latest = {row["well"]: row for row in wells}
    assert on_map.keys() == latest.keys() == {"A01", "A02", "B01", "B02"}
    for well, row in latest.items():
        assert {name: on_map[well][name] for name in row if name != "model"} | {"model": row["model"]} == row


def test_a_time_point_replays_the_plate(reading: Live, scored_plate: Path) -> None:
    engine = open_reader(scored_plate / "s.db")
    early = {row["well"]: row for row in results.plate_table(engine, PLATE, timepoint=1).rows}
    late = {row["well"]: row for row in results.plate_table(engine, PLATE).rows}
    first = reading.get(f"/api/v1/plates/{NAME}?timepoint=1").json
    assert {well["well"]: well["score"] for well in first["wells"]} == {k: row["score"] for k, row in early.items()}
    now = reading.get(f"/api/v1/plates/{NAME}").json
    assert {well["well"]: well["score"] for well in now["wells"]} == {k: row["score"] for k, row in late.items()}
    assert [early[well]["score"] != late[well]["score"] for well in early] == [True] * 4
    assert [(stop["timepoint"], stop["hours"]) for stop in now["timepoints"]] == [(1, 0.0), (2, 1.0)]
    assert (now["rows"], now["columns"], now["timepoint"], first["timepoint"]) == (2, 3, None, 1)
    broken = {well["well"]: well for well in now["wells"]}["B02"]
    assert (broken["failed"], broken["flags"]) == (1, ["failed", "stalled"])
    assert broken["reasons"][0].startswith("B02_f3_t2_cPhase_z0.tif ")
    assert {well["well"]: well["flags"] for well in first["wells"]}["B02"] == ["stalled"]


def test_a_well_has_controls_behind_it_and_the_images_of_its_time_point(reading: Live) -> None:
    view = reading.get(f"/api/v1/plates/{NAME}/wells/b1").json
    controls = [reading.get(f"/api/v1/plates/{NAME}/wells/{well}/timecourse").json["rows"] for well in ("A01", "A02")]
    for place, band in enumerate(view["controls"]):
        a, b = (course[place]["score"] for course in controls)
        assert band["mean"] == pytest.approx((a + b) / 2, abs=1e-12)
        assert band["sd"] == pytest.approx(abs(a - b) / 2**0.5, abs=1e-9)
        assert (band["wells"], band["hours"]) == (2, float(place))
    assert len(view["controls"]) == 2
    assert [(field["well"], field["timepoint"], field["field"]) for field in view["fields"]] == [
        ("B01", 2, 1),
        ("B01", 2, 2),
    ]
    fields = reading.get(f"/api/v1/plates/{NAME}/images?well=B1&timepoint=2").json
    assert fields == view["fields"]
    cells = reading.get(f"/api/v1/images/{fields[0]['image_id']}/cells").json
    assert len(cells["cells"]) == fields[0]["n_cells"] > 0
    assert sum(cell["score"] for cell in cells["cells"]) / len(cells["cells"]) == pytest.approx(fields[0]["score"])
    assert all(0 <= cell["x"] <= 256 and 0 <= cell["y"] <= 256 for cell in cells["cells"])
    ranked = reading.get(f"/api/v1/plates/{NAME}/wells/B01/cells?number=7").json
    scores = [cell["score"] for cell in ranked]
    every = [reading.get(f"/api/v1/images/{field['image_id']}/cells").json["cells"] for field in fields]
    whole = [cell["score"] for part in every for cell in part]
    assert (scores, scores[0], scores[-1], len(scores)) == (sorted(scores), min(whole), max(whole), 7)


def test_the_run_adds_up(reading: Live, scored_plate: Path) -> None:
    run = reading.get("/api/v1/run").json
    images = run["images"]
    assert (images["scored"], images["failed"], images["total"]) == (16, 1, 17)
    assert sum(images[state] for state in images if state not in ("total", "excluded")) == images["total"]
    with closing(sqlite3.connect(scored_plate / "s.db")) as connection:
        assert run["cells"] == connection.execute("SELECT COUNT(*) FROM cell").fetchone()[0] > 0
    assert run["disk_free_bytes"] > 0
    assert run["last_image"]["plate"] == PLATE
    (plate,) = reading.get("/api/v1/plates").json
    assert (plate["name"], plate["images"], plate["incidents"]) == (PLATE, images, 1)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/v1/plates/nope", "there is no plate 'nope'"),
        (f"/api/v1/plates/{NAME}/wells/H12", "has no image of well H12"),
        (f"/api/v1/plates/{NAME}/wells/H12/timecourse", "has no image of well H12"),
        (f"/api/v1/plates/{NAME}/wells?run=1999", "has no run '1999'"),
        (f"/api/v1/plates/{NAME}?model=gpt", "no model 'gpt' scored"),
        (f"/api/v1/plates/{NAME}?timepoint=9", "no scored time point 9"),
        ("/api/v1/compounds/aspirin", "there is no compound 'aspirin'"),
        ("/api/v1/images/999", "there is no image 999"),
        ("/api/v1/images/999/cells", "there is no image 999"),
        ("/api/v1/images/1/cells?model=gpt", "was not scored by a model 'gpt'"),
        ("/api/v1/images/1/cells/9999.png", "has no cell 9999"),
        ("/api/v1/nothing", "Not Found"),
    ],
)
def test_the_unknown_is_404_with_a_sentence(reading: Live, path: str, words: str) -> None:
    answer = reading.get(path)
    assert answer.status == 404
    assert words in answer.detail


@pytest.mark.parametrize(
    "path",
    [
        f"/api/v1/plates/{NAME}/wells/Z99",
        f"/api/v1/plates/{NAME}/wells/B",
        f"/api/v1/plates/{NAME}?timepoint=one",
        f"/api/v1/plates/{NAME}?timepoint=99999999999999999999",
        f"/api/v1/plates/{NAME}/images?state=eaten",
        f"/api/v1/plates/{NAME}/images?limit=0",
        f"/api/v1/plates/{NAME}/wells?format=xml",
        f"/api/v1/plates/{'p' * 201}",
        "/api/v1/images/0",
        "/api/v1/images/-1/cells",
        "/api/v1/images/one",
        "/api/v1/images/99999999999999999999",
        "/api/v1/images/1/field.png?width=1",
        "/api/v1/images/1/field.png?width=100000",
        "/api/v1/incidents?limit=x",
    ],
)
def test_the_malformed_is_422_with_a_sentence(reading: Live, path: str) -> None:
    answer = reading.get(path)
    assert answer.status == 422
    assert len(answer.detail) > 10


def test_tables_as_csv_run_no_formula(reading: Live) -> None:
    answer = reading.get(f"/api/v1/plates/{NAME}/wells?format=csv")
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="P_b_1.csv"'
    rows = {row["well"]: row for row in csv.DictReader(io.StringIO(answer.body.decode()))}
    assert (rows["B02"]["compound"], rows["B01"]["compound"]) == ("'" + FORMULA, NASTY)
    told = {row["well"]: row for row in reading.get(f"/api/v1/plates/{NAME}/wells").json["rows"]}
    assert [float(rows[well]["score"]) for well in rows] == [told[well]["score"] for well in rows]
    for path in ("plates", f"plates/{NAME}/timecourse", f"plates/{NAME}/images", "incidents", "images/1/cells"):
        table = list(csv.reader(io.StringIO(reading.get(f"/api/v1/{path}?format=csv").body.decode())))
        assert len(table) > 1, path
        assert len({len(row) for row in table}) == 1, path
    history = reading.get(f"/api/v1/compounds/{quote(FORMULA, safe='')}?format=csv").body.decode()
    assert not any(cell.startswith("=") for row in csv.reader(io.StringIO(history)) for cell in row)


def test_names_are_only_ever_data(reading: Live) -> None:
    """Names that are HTML come back as JSON or CSV, which no browser takes for a page."""
    paths = [f"/api/v1/compounds/{quote(NASTY, safe='')}", f"/api/v1/plates/{NAME}", f"/api/v1/plates/{quote(NASTY)}"]
    for path in paths:
        answer = reading.get(path)
        assert answer.headers["content-type"] == "application/json", path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "script-src 'self';" in answer.headers["content-security-policy"]
    (row, *_) = reading.get(paths[0]).json["rows"]
    assert row["compound"] == NASTY


def test_no_answer_holds_a_path(reading: Live, scored_plate: Path) -> None:
    questions = ["plates", f"plates/{NAME}", f"plates/{NAME}/images", f"plates/{NAME}/wells/B02", "run", "incidents"]
    for path in questions:
        body = reading.get(f"/api/v1/{path}").body.decode()
        assert str(scored_plate.parent) not in body, path
    assert str(scored_plate.parent) not in reading.get("/metrics").body.decode()


def test_an_excluded_field_leaves_its_well_and_comes_back(server: Live) -> None:
    view = f"/api/v1/plates/{NAME}/wells/B01"
    before = server.get(view).json
    first, second = before["fields"]
    path = f"/api/v1/images/{first['image_id']}/exclusion"
    done = server.write("PUT", path, {"reason": "a fibre lies in it"})
    assert (done.status, done.json["excluded"], done.json["state"]) == (200, "a fibre lies in it", "scored")
    after = server.get(view).json
    assert after["scores"][1]["score"] == pytest.approx(second["score"])
    assert (after["scores"][1]["n_images"], after["scores"][1]["n_cells"]) == (1, second["n_cells"])
    assert after["scores"][0] == before["scores"][0]
    assert any("1 of its images is taken out of their wells by a person" in note for note in after["notes"])
    images = server.get("/api/v1/run").json["images"]
    assert (images["excluded"], images["scored"], images["total"]) == (1, 16, 17)
    on_map = {well["well"]: well["excluded"] for well in server.get(f"/api/v1/plates/{NAME}").json["wells"]}
    assert on_map == {"A01": 0, "A02": 0, "B01": 1, "B02": 0}
    assert server.write("DELETE", path).json["excluded"] == ""
    assert server.get(view).json["scores"] == before["scores"]
    assert server.write("PUT", "/api/v1/images/999/exclusion", {"reason": "dust"}).status == 404
    assert server.write("PUT", path, {"reason": "  "}).status == 422
    assert server.write("PUT", path, {"reason": "dust", "rason": "x"}).status == 422


def test_failed_images_are_asked_to_be_tried_again(server: Live, plate_db: Path) -> None:
    assert server.write("POST", "/api/v1/retry", {}).status == 422
    assert server.write("POST", "/api/v1/retry", {"plate": "nope"}).status == 404
    assert server.write("POST", "/api/v1/retry", {"images": [1], "reason": "broken"}).status == 404
    done = server.write("POST", "/api/v1/retry", {"plate": PLATE})
    assert (done.status, done.json) == (200, {"images": 1})
    with closing(sqlite3.connect(plate_db)) as connection:
        (row,) = connection.execute("SELECT name, attempts FROM image WHERE next_attempt_at IS NOT NULL")
    assert row == ("B02_f3_t2_cPhase_z0.tif", 0)
    assert server.get("/api/v1/run").json["queue"] == 1


def test_a_plate_map_is_uploaded(server: Live) -> None:
    path = f"/api/v1/plates/{NAME}/platemap"
    table = "well,compound,dose,unit,role\nA01,DMSO,,,negative\nA02,nutlin,10,µM,treatment\n".encode()
    assert server.write("PUT", f"{path}?filename=map.exe", table).status == 422
    assert server.write("PUT", f"{path}?filename=map.csv", b"\x00\xff\x00").status == 422
    assert server.write("PUT", f"{path}?filename=map.csv&treated_at=yesterday", table).status == 422
    assert server.write("PUT", f"{path}?filename=map.csv&plate_wells=7", table).status == 422
    done = server.write("PUT", f"{path}?filename=map.csv&treated_at=2026-07-01T12:00:00Z", table)
    assert done.status == 200, done
    counts = {name: done.json[name] for name in ("plate", "wells", "compounds", "negative")}
    assert counts == {"plate": PLATE, "wells": 2, "compounds": 2, "negative": 1}
    wells = {row["well"]: row["compound"] for row in server.get(f"/api/v1/plates/{NAME}/wells").json["rows"]}
    assert wells == {"A01": "DMSO", "A02": "nutlin", "B01": "", "B02": ""}
    assert {"DMSO", "nutlin"} <= {row["name"] for row in server.get("/api/v1/compounds").json}
    big = server.write("PUT", f"{path}?filename=map.csv", b"x" * (5 * 2**20 + 1))
    assert (big.status, "send less" in big.detail) == (413, True)


def test_an_incident_is_acknowledged(server: Live) -> None:
    (incident,) = server.get("/api/v1/incidents").json
    assert (incident["kind"], incident["plate"], incident["acknowledged_at"]) == ("stalled", PLATE, None)
    assert server.get("/health").status == 503
    done = server.write("POST", f"/api/v1/incidents/{incident['incident_id']}/acknowledgement")
    assert (done.status, done.json["acknowledged_at"] is None) == (200, False)
    assert server.get("/health").json == {"ok": True, "reasons": []}
    assert server.write("POST", "/api/v1/incidents/77/acknowledgement").status == 404


def test_metrics_are_those_of_the_database(reading: Live) -> None:
    answer = reading.get("/metrics")
    lines = dict(line.rsplit(" ", 1) for line in answer.body.decode().splitlines() if not line.startswith("#"))
    run = reading.get("/api/v1/run").json
    assert {lines[f'sesmo_images{{state="{state}"}}'] for state in ("scored", "failed")} == {"16.0", "1.0"}
    assert float(lines["sesmo_cells"]) == run["cells"]
    assert float(lines["sesmo_queue_depth"]) == float(lines["sesmo_images_excluded"]) == 0
    assert float(lines["sesmo_seconds_to_score"]) == pytest.approx(run["seconds_to_score"])
    assert float(lines["sesmo_incidents_open"]) == float(lines["sesmo_failures"]) == 1


def test_the_answers_need_no_server(scored_plate: Path) -> None:
    """The page's functions are plain ones over an engine; each asks what it shows and changes nothing."""
    engine = open_reader(scored_plate / "s.db")
    assert overview.plate_map(engine, PLATE.swapcase()).name == PLATE
    assert TOKEN not in repr(overview.run_status(engine, str(scored_plate / "s.db")))
