"""The pages over HTTP: numbers equal to the command line's, hostile names, errors, empty states, static files."""

import json
import re
import sys
import time
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import httpx
import pytest

from db.care import upgrade
from db.engine import open_engine
from db.incidents import close_incident, open_incident
from sesmo_live.records import Treatment
from sesmo_live.wells import PLATE_SHAPES, well_name
from tests.cli import Sesmo, runner
from tests.screens import WARNING, WELLS, add_image, add_plate, server

HOSTILE = '<img src=x onerror="alert(1)">'


class Page(HTMLParser):
    """A page's elements, each with its attributes and all text in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        words: list[str] = []
        self.elements.append((tag, {name: value or "" for name, value in attrs}, words))
        self._open.append((tag, words))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for _, words in self._open:
            words.append(data)

    def find(self, name: str, value: str | None = None) -> list[tuple[str, dict[str, str], str]]:
        """Return the elements that have an attribute (of this value)."""
        return [
            (tag, attrs, " ".join("".join(words).split()))
            for tag, attrs, words in self.elements
            if name in attrs and (value is None or attrs[name] == value)
        ]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "s.db"
    plate = add_plate(path)
    engine = open_engine(path, write=True, checkpoint=False)
    with engine.begin() as connection:
        blurred = {"state": "refused", "reason": "out of focus: grain 1.06, in training 0.50"}
        add_image(connection, plate, "P1", "A02", 3, 2, **blurred)  # type: ignore[arg-type]
        add_image(connection, plate, "P1", "B03", 3, 1, **blurred)  # type: ignore[arg-type]
        add_image(connection, plate, "P1", "B03", 4, 2, state="failed", reason="B03_f4 is damaged; export it again")
        add_image(connection, plate, "P1", "B04", 1, 2, state="pending", reason="waiting to be read")
    engine.dispose()
    return path


@pytest.fixture
def base(db: Path) -> Iterator[str]:
    with server(db) as address:
        yield address


@pytest.fixture
def sesmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sesmo:
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch)


def get(base: str, path: str, status: int = 200) -> Page:
    answer = httpx.get(base + path, timeout=30)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return Page(answer.text)


def number(text: str, digits: int) -> float | None:
    return None if text == "–" else round(float(text), digits)


@pytest.mark.parametrize("timepoint", [None, 0, 2])
def test_the_plate_shows_the_numbers_of_the_command_line(
    base: str, db: Path, sesmo: Sesmo, timepoint: int | None
) -> None:
    more = () if timepoint is None else ("--timepoint", timepoint)
    wanted = json.loads(sesmo("plate", "P1", *more, "--db", db, "--format", "json").out)
    assert len(wanted) == len(WELLS) + 1  # and B04, of which nothing is scored
    query = "" if timepoint is None else f"?timepoint={timepoint}"
    table = get(base, f"/plates/P1/parts/table{query}")
    scores = [number(text, 4) for _, _, text in table.find("data-score")]
    cells = [int(text) for _, _, text in table.find("data-cells")]
    wells = [attrs["data-well"] for _, attrs, _ in table.find("data-well")]
    shown = {well: item for well, *item in zip(wells, scores, cells, strict=True)}
    assert [well for well in shown if shown[well][0] is not None] == [row["well"] for row in wanted if row["score"]]
    for row in wanted:
        if row["score"] is not None:
            assert shown[row["well"]] == [pytest.approx(row["score"], abs=5.1e-5), row["n_cells"]]
    svg = get(base, f"/plates/P1{query}")
    for row in wanted:
        ((_, _, text),) = svg.find("id", f"well-{row['well']}")
        if row["score"] is None:
            assert "no score" in text
            continue
        assert f"score {row['score']:.2f} ({row['ci_low']:.2f} to {row['ci_high']:.2f})" in text
        assert f"{row['n_cells']} cells" in text
        assert f"{row['score']:.2f}" in text


def test_a_well_shows_the_numbers_of_the_command_line(base: str, db: Path, sesmo: Sesmo) -> None:
    wanted = json.loads(sesmo("timecourse", "--plate", "P1", "--well", "A03", "--db", db, "--format", "json").out)
    page = get(base, "/plates/P1/wells/a3")
    assert [number(text, 4) for _, _, text in page.find("data-score")] == [
        pytest.approx(row["score"], abs=5.1e-5) for row in wanted
    ]
    ((_, attrs, _),) = page.find("data-chart")
    chart = json.loads(unescape(attrs["data-chart"]))
    controls, own = chart["lines"]
    assert own["x"] == [row["hours"] for row in wanted] == [0, 24, 48]
    assert own["y"] == [row["score"] for row in wanted]
    assert (own["low"], own["high"]) == ([row["ci_low"] for row in wanted], [row["ci_high"] for row in wanted])
    negative = [
        json.loads(sesmo("timecourse", "--plate", "P1", "--well", well, "--db", db, "--format", "json").out)
        for well in ("A01", "B01")
    ]
    means = [sum(row["score"] for row in rows) / 2 for rows in zip(*negative, strict=True)]
    assert controls["y"] == [pytest.approx(mean) for mean in means]
    assert len(page.find("data-image")) == 2


def test_every_time_point_that_a_well_was_imaged_at_can_be_chosen(base: str, db: Path) -> None:
    engine = open_engine(db, write=True, checkpoint=False)
    with engine.begin() as connection:
        for at, state in ((3, "refused"), (5, "failed"), (6, "superseded")):
            add_image(connection, 1, "P1", "A03", 1, at, state=state, reason="out of focus")
    engine.dispose()
    for path, asked in (("", None), ("?timepoint=5", "5"), ("?timepoint=9", "9")):
        page = get(base, f"/plates/P1/wells/A03{path}")
        options = [(attrs["value"], text) for tag, attrs, text in page.find("value") if tag == "option"]
        wanted = ["", "0", "1", "2", "3", "5"] + ["9"] * (asked == "9")
        assert [value for value, _ in options] == wanted
        assert options[3:5] == [("2", "48.0 h (time point 2)"), ("3", "time point 3")]
        assert [attrs["value"] for _, attrs, _ in page.find("selected")] == [asked or ""]
        part = get(base, f"/plates/P1/wells/A03/parts/fields{path}")
        ((_, attrs, _),) = part.find("data-points")
        assert ["", *(str(point["timepoint"]) for point in json.loads(attrs["data-points"]))] == wanted


def test_a_compound_shows_the_numbers_of_the_command_line_under_any_of_its_names(
    base: str, db: Path, sesmo: Sesmo
) -> None:
    rows = json.loads(sesmo("compound", "doxorubicin", "--db", db, "--format", "json").out)
    last = [row for row in rows if row["timepoint"] == 2]
    found = httpx.get(f"{base}/compounds", params={"name": " Adriamycin "}, follow_redirects=True)
    page = Page(found.text)
    assert (found.status_code, urlsplit(str(found.url)).path) == (200, "/compounds/Adriamycin")
    assert [number(text, 4) for _, _, text in page.find("data-score")] == [
        pytest.approx(row["score"], abs=5.1e-5) for row in last
    ]
    curves = get(base, "/compounds/adriamycin/parts/curves")
    dose, course = (json.loads(unescape(part.find("data-chart")[0][1]["data-chart"])) for part in (curves, page))
    assert [(line["x"], line["y"]) for line in dose["lines"]] == [
        ([row["dose"] for row in last], [row["score"] for row in last])
    ]
    assert sorted(line["label"] for line in course["lines"]) == ["P1 A02 0.1 µM", "P1 A03 1 µM", "P1 B02 1 µM"]
    assert 'value="doxorubicin"' in httpx.get(f"{base}/parts/compounds").text
    assert WARNING in found.text


def test_the_counts_are_those_of_the_ledger_and_add_up(base: str, db: Path, sesmo: Sesmo) -> None:
    summary = json.loads(sesmo("images", "P1", "--summary", "--db", db, "--format", "json").out)
    page = get(base, "/plates/P1")
    counts = {attrs["data-count"]: int(text) for _, attrs, text in page.find("data-count")}
    assert counts == {"scored": 42, "refused": 2, "failed": 1, "pending": 1, "total": 46}
    for state in ("scored", "refused", "failed", "pending"):
        assert counts[state] == sum(row["images"] for row in summary if row["state"] == state)
    assert sum(counts.values()) == 2 * counts["total"]
    ((_, folded, summary_line),) = page.find("id", "unscored")
    assert "Why 3 are not scored" in summary_line
    why = get(base, unescape(folded["hx-get"]))
    ((_, _, listed),) = why.find("id", "unscored-list")
    for words in ("A02 time point 2, refused: out of focus", "failed: B03_f4 is damaged"):
        assert words in listed
    assert "2 × refused: out of focus" in why.elements[0][2][0] + "".join(why.elements[1][2])
    _, refused, said = page.find("id", "well-A02")[0]
    assert "1 image refused: out of focus" in said
    assert "refused" in refused["class"].split()


def test_the_map_is_coloured_by_what_is_asked_for_and_replayed(base: str) -> None:
    texts = {}
    for show in ("score", "cells", "focus", "age"):
        page = get(base, f"/plates/P1?show={show}")
        texts[show] = page.find("id", "well-A03")[0][2]
        assert [attrs["value"] for _, attrs, _ in page.find("checked")] == [show]
    assert len(set(texts.values())) == 4
    assert "24" in texts["cells"]
    percent = get(base, "/plates/P1?show=percent").find("id", "readout")[0][2]
    assert percent == "No percent of control: there are 1 positive control wells and at least 2 are needed."
    early, late = (get(base, f"/plates/P1/parts/map?timepoint={at}").find("id", "well-A04")[0] for at in ("0", ""))
    assert "at 0.0 h" in early[2]
    assert "at 48.0 h" in late[2]
    assert early[2] != late[2]
    ((_, attrs, _),) = get(base, "/plates/P1").find("data-times")
    assert [stop["label"] for stop in json.loads(attrs["data-times"])] == ["0.0 h", "24.0 h", "48.0 h"]


def plate_with_alerts(base: str, number: int) -> Page:
    """Return the plate's page once it has so many: an answer is kept until the change is seen, later if all is busy."""
    until = time.monotonic() + 3
    while len((page := get(base, "/plates/P1")).find("role", "alert")) != number:
        assert time.monotonic() < until
        time.sleep(0.05)
    return page


def test_what_is_wrong_stands_above_all_and_on_the_wells(base: str, db: Path) -> None:
    engine = open_engine(db, write=True, checkpoint=False)
    with engine.begin() as connection:
        open_incident(connection, "stalled", "P1", "plate P1: no new image for 3 h; look at the microscope", plate_id=1)
    page = plate_with_alerts(base, 1)
    (alert,) = [text for _, _, text in page.find("role", "alert")]
    assert alert == "⚠ stalled: plate P1: no new image for 3 h; look at the microscope"
    assert "stalled" in page.find("id", "well-A01")[0][1]["class"].split()
    assert "1 alarm" in get(base, "/").find("id", "plates")[0][2]
    assert "look at the microscope" in get(base, "/run").find("data-incident", "1")[0][2]
    with engine.begin() as connection:
        close_incident(connection, "stalled", "P1", "an image came")
    engine.dispose()
    plate_with_alerts(base, 0)
    deadline = time.monotonic() + 10  # an answer is kept for a while
    while not (over := get(base, "/run").find("id", "over")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "1 earlier alarm" in over[0][2]


PAGES = ("/", "/plates/P1", "/plates/P1/wells/A03", "/compounds/doxorubicin", "/run", "/plates/none")


def test_nothing_is_inline_or_from_elsewhere(base: str) -> None:
    with httpx.Client(base_url=base) as client:
        for path in PAGES:
            answer = client.get(path)
            policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
            assert policy["script-src"] == policy["style-src"] == "'self'"
            for tag, attrs, words in Page(answer.text).elements:
                assert not [name for name in attrs if name == "style" or name.startswith(("on", "hx-on"))]
                assert tag != "style"
                assert tag != "script" or not "".join(words).strip()
                for name in ("src", "href", "action"):
                    assert urlsplit(attrs.get(name, "/")).netloc == ""
                address = attrs.get("src") or (attrs.get("href", "") if tag == "link" else "")
                if address.startswith("/static"):
                    assert client.get(address).status_code == 200, address


def test_names_are_words_whatever_they_hold(tmp_path: Path) -> None:
    db = tmp_path / "s.db"
    inside = Treatment("A02", HOSTILE, "treatment", 1.0, HOSTILE)
    plate = add_plate(db, HOSTILE, run=HOSTILE, treatments=[inside], wells=("A02",))
    engine = open_engine(db, write=True, checkpoint=False)
    with engine.begin() as connection:
        file, reason = f"{HOSTILE}.tif", f"/acq/{HOSTILE}.tif is {HOSTILE}"
        add_image(connection, plate, HOSTILE, "A02", 3, 2, state="refused", reason=reason, file=file)
        open_incident(connection, HOSTILE, HOSTILE, HOSTILE, plate_id=plate)
    engine.dispose()
    with server(db) as base:
        seen = {"/", "/run"}
        todo = sorted(seen)
        while todo:
            path = todo.pop()
            answer = httpx.get(base + path, timeout=30)
            assert answer.status_code == 200, path
            for tag, attrs, _ in Page(answer.text).elements:
                assert attrs.get("src") != "x"
                assert "onerror" not in attrs
                link = urljoin(path, "/" if "download" in attrs else attrs.get("href", "/"))
                if tag == "a" and link not in seen and not link.startswith("#"):
                    seen.add(link)
                    todo.append(link)
    kinds = {re.sub(r"%.*|\?.*|A0\d.*", "", link) for link in seen}
    assert {"/plates/", "/compounds/", "/run"} <= kinds
    assert any("/wells/A02" in link for link in seen)


def test_a_compound_whose_name_holds_a_plus_is_one_compound(tmp_path: Path) -> None:
    both, other = Treatment("A02", "Dasatinib + Quercetin", "treatment"), Treatment("A02", "DMSO", "treatment")
    add_plate(tmp_path / "s.db", treatments=[both, other], wells=("A02",))
    with server(tmp_path / "s.db") as base:
        links = [attrs["href"] for tag, attrs, _ in get(base, "/plates/P1/wells/A02").find("href") if tag == "a"]
        found = [unquote(link) for link in links if link.startswith("/compounds/")]
        assert sorted(found) == ["/compounds/DMSO", "/compounds/Dasatinib + Quercetin"]
        for link in links:
            assert httpx.get(urljoin(base + "/plates/P1/wells/A02", link)).status_code == 200, link


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/plates/P2", 404, "there is no plate 'P2'; did you mean 'P1'?"),
        ("/plates/P1/wells/C06", 404, "plate P1 has no image of well C06"),
        ("/plates/P1/wells/Z99", 404, "'Z99' is not a well; write a row and a column such as B03"),
        ("/plates/P1?run=other", 404, "has no run 'other'"),
        ("/plates/P1?timepoint=9", 404, "has no scored time point 9; it has 0, 1, 2"),
        ("/plates/P1?show=beauty", 404, "cannot be coloured by 'beauty'; choose one of score"),
        ("/plates/P1?timepoint=x", 422, "has a value for 'timepoint' that cannot be"),
        ("/plates/P1?timepoint=99999999999999999999", 422, "has a value for 'timepoint' that cannot be"),
        ("/plates/%00%ED%A0%80%FF", 404, "there is no plate"),
        ("/compounds/nothing", 404, "there is no compound 'nothing'"),
        ("/compounds", 404, "No compound was named"),
    ],
)
def test_what_does_not_exist_is_said_in_a_sentence(base: str, path: str, status: int, words: str) -> None:
    page = get(base, path, status)
    ((_, _, said),) = page.find("id", "main")
    assert words in said
    assert page.find("href", "/")


def test_an_address_that_no_page_has_is_answered_with_a_page(base: str) -> None:
    answer = httpx.get(f"{base}/{HOSTILE}", headers={"accept": "text/html,*/*"})
    page = Page(answer.text)
    assert answer.status_code == 404
    assert f"There is no page /{HOSTILE}" in unquote(page.find("id", "main")[0][2])
    assert not page.find("onerror")
    assert httpx.get(f"{base}/nothing").json()["detail"]


def test_an_empty_database_says_what_to_do(tmp_path: Path) -> None:
    upgrade(tmp_path / "s.db")
    with server(tmp_path / "s.db") as base:
        text = get(base, "/").find("id", "main")[0][2]
        assert "No plate yet" in text
        assert "sesmo-live run --watch" in text
        assert "No folder is watched now" in get(base, "/run").find("id", "main")[0][2]
        get(base, "/compounds/x", 404)


def test_a_plate_that_has_only_a_plate_map_shows_it(tmp_path: Path) -> None:
    add_plate(tmp_path / "s.db", times=0)
    with server(tmp_path / "s.db") as base:
        page = get(base, "/plates/P1")
        assert "No image of this plate is scored yet" in page.find("id", "readout")[0][2]
        assert "doxorubicin" in page.find("id", "well-A03")[0][2]
        assert "No score yet" in get(base, "/plates/P1/wells/A03").find("id", "course")[0][2]
        assert "No score yet" in get(base, "/compounds/doxorubicin").find("id", "main")[0][2]


def test_a_well_outside_the_declared_plate_is_drawn(tmp_path: Path) -> None:
    add_plate(tmp_path / "s.db", wells=("A01", "H12"), times=1, size=24)
    add_plate(tmp_path / "s.db", "P2", treatments=[Treatment("P24", "x")], wells=("A01",), times=1, size=96)
    with server(tmp_path / "s.db") as base:
        for name, well, size in (("P1", "H12", 96), ("P2", "P24", 384)):
            assert get(base, f"/plates/{name}").find("id", f"well-{well}")
            listed = httpx.get(f"{base}/api/v1/plates").json()
            assert [row["wells"] for row in listed if row["name"] == name] == [size]
            assert httpx.get(f"{base}/api/v1/plates/{name}").json()["plate_wells"] == size


def test_a_plate_of_1536_wells_is_drawn(tmp_path: Path) -> None:
    rows, columns = PLATE_SHAPES[1536]
    wells = [well_name(row, column) for row in range(1, rows + 1) for column in range(1, columns + 1)]
    add_plate(
        tmp_path / "s.db", wells=wells[::64], times=1, size=1536, treatments=[Treatment(well, "x") for well in wells]
    )
    with server(tmp_path / "s.db") as base:
        get(base, "/plates/P1")
        began = time.perf_counter()
        page = get(base, "/plates/P1")
        sys.stdout.write(f"1536 wells: {1000 * (time.perf_counter() - began):.0f} ms from request to parsed page\n")
    links = page.find("data-well")
    assert [attrs["data-well"] for _, attrs, _ in links] == wells
    assert len([text for _, _, text in links if "no score" not in text]) == len(wells[::64])


def test_the_files_of_the_page_are_part_of_the_package() -> None:
    web = files("sesmo_live.web")
    for name in ("base", "plate", "well", "compound", "run", "error"):
        assert (web / "templates" / f"{name}.html").is_file()
    for name in ("page.css", "live.js", "plate.js", "charts.js", "well.js", "theme.js", "icon.svg"):
        assert (web / "static" / name).is_file()
    for name in ("htmx.min.js", "htmx.LICENSE", "uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE"):
        assert (web / "static" / "vendor" / name).read_text(encoding="utf-8").strip()


def test_many_plates_are_listed_so_many_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sesmo_live.web.pages.MOST_PLATES", 2)
    db = tmp_path / "s.db"
    for number in range(1, 4):
        add_plate(db, f"P{number}")
    with server(db) as address:
        names = re.findall(r"plates/(P\d)", httpx.get(address + "/").text)
        assert names == ["P3", "P2"]
        older = httpx.get(f"{address}/?skip=2").text
        assert re.findall(r"plates/(P\d)", older) == ["P1"]
        assert "newer plates" in older
        assert "older plates" not in older
        told = httpx.get(f"{address}/api/v1/plates?limit=1&skip=1").json()
        assert [plate["name"] for plate in told] == ["P2"]
