"""Answers on the command line: the ledger's images, columns, numbers, times and warnings."""

import csv
import io
import json
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert

from db.care import upgrade
from db.engine import open_engine
from db.schema import Image, Plate
from sesmo_live.cli.output import Format, count, show
from sesmo_live.history import HISTORY_COLUMNS
from sesmo_live.reasons import group_reasons
from sesmo_live.results import IMAGE_COLUMNS
from sesmo_live.screens import WELL_COLUMNS
from tests.cli import Sesmo, runner, sentence, write_wells
from tests.figures import figure

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)

pytestmark = pytest.mark.usefixtures("stub_scorer")


@pytest.fixture
def sesmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sesmo:
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch)


def fill(db: Path, plates: int = 1, images: int = 6) -> None:
    """Write a ledger: of each plate a third of the images failed, one is skipped, the others are scored."""
    upgrade(db)
    with open_engine(db, write=True).begin() as connection:
        for plate in range(1, plates + 1):
            values = {"name": f"P{plate}", "key": f"p{plate}", "run": "1", "channels": {}, "planes": [0]}
            connection.execute(insert(Plate).values(id=plate, **values, created_at=NOW))
            connection.execute(insert(Image), [row_of(plate, number) for number in range(images)])


def row_of(plate: int, number: int) -> dict[str, object]:
    name = f"A{number % 24 + 1:02d}_f{number // 24}_t1_cPhase_z0.tif"
    path = f"/acq/P{plate}/{name}"
    state = "skipped" if number == 1 else "failed" if number % 3 == 0 else "scored"
    reasons = {
        "failed": f"{path} is damaged; export it again",
        "skipped": f"a copy of /old/{number}.tif, which is scored",
    }
    return {
        "path": path, "name": name, "page": 0, "plate_id": plate, "well": name[:3], "field": number // 24,
        "timepoint": 1, "channel": "Phase", "z": 0, "size": 1, "mtime_ns": 1, "state": state,
        "acquired_at": NOW, "reason": reasons.get(state, ""), "seen_at": NOW,
    }  # fmt: skip


def test_images_are_listed_filtered_and_counted(sesmo: Sesmo, tmp_path: Path) -> None:
    db = ("--db", tmp_path / "s.db")
    fill(tmp_path / "s.db", plates=2)
    every = json.loads(sesmo("images", *db, "--format", "json").out)
    assert len(every) == 12
    assert tuple(every[0]) == IMAGE_COLUMNS
    assert [row["path"] for row in every] == sorted(row["path"] for row in every)
    failed = json.loads(sesmo("images", "p2", "--state", "failed", *db, "--format", "json").out)
    assert [(row["plate"], row["well"], row["field"], row["timepoint"]) for row in failed] == [
        ("P2", "A01", 0, 1),
        ("P2", "A04", 0, 1),
    ]
    assert failed[0]["reason"] == "/acq/P2/A01_f0_t1_cPhase_z0.tif is damaged; export it again"
    below = sesmo("images", "--folder", "/acq/P1", "--state", "scored", *db, "--format", "csv").out
    assert [row["plate"] for row in csv.DictReader(io.StringIO(below))] == ["P1"] * 3
    assert sesmo("images", "--folder", "/acq/P", *db, "--format", "csv").out == ",".join(IMAGE_COLUMNS) + "\n"
    counts = json.loads(sesmo("images", "--summary", *db, "--format", "json").out)
    assert [(row["state"], row["images"], row["reason"]) for row in counts] == [
        ("scored", 6, ""),
        ("failed", 4, "FILE is damaged; export it again"),
        ("skipped", 2, "a copy of another file, which is scored"),
    ]
    assert "no plate 'P9'" in sentence(sesmo("images", "P9", *db, code=2))


def test_a_table_of_images_comes_in_pages_and_says_so(sesmo: Sesmo, tmp_path: Path) -> None:
    fill(tmp_path / "s.db", images=130)
    db = ("--db", tmp_path / "s.db")
    first = sesmo("images", *db)
    assert first.err == "images 1 to 100 of 130; go on with --skip 100\n"
    assert len(first.out.splitlines()) == 101
    assert sesmo("images", *db, "--skip", 100).err == "images 101 to 130 of 130\n"
    assert len(sesmo("images", *db, "--limit", 0).out.splitlines()) == 131
    assert sesmo("images", *db, "--limit", 0).err == ""


@pytest.mark.alone
def test_a_large_ledger_is_listed_at_once(sesmo: Sesmo, tmp_path: Path) -> None:
    fill(tmp_path / "s.db", plates=3, images=13_824)
    took = {}
    for words in (("P2", "--state", "failed"), ("--summary",), ("--skip", "41000"), ("--folder", "/acq/P3")):
        began = time.monotonic()
        sesmo("images", *words, "--db", tmp_path / "s.db")
        took[words] = time.monotonic() - began
    told = ", ".join(f"{' '.join(words)} {seconds:.2f} s" for words, seconds in took.items())
    figure(f"41 472 images: {told}")
    assert max(took.values()) < 5


def test_reasons_are_grouped_without_their_paths_in_any_spelling() -> None:
    items = [
        (r"D:\in\a.tif", r"D:\in\a.tif is empty"),
        (r"D:\in\b.tif", r"D:\in\b.tif is empty"),
        ("/x/c.tif", "c.tif is empty"),
        ("/x/d.tif", r"a copy of D:\my images\e.tif, which is scored"),
    ]
    groups = group_reasons(items)
    assert [(group.reason, group.number, group.path) for group in groups] == [
        ("FILE is empty", 3, "/x/c.tif"),
        ("a copy of another file, which is scored", 1, "/x/d.tif"),
    ]


def test_an_empty_answer_has_its_columns(sesmo: Sesmo, tmp_path: Path) -> None:
    db = ("--db", tmp_path / "s.db", "--format", "csv")
    (tmp_path / "map.csv").write_text("well,compound,dose\nA01,Doxorubicin,1 uM\n")
    sesmo("platemap", "import", tmp_path / "map.csv", "--plate", "P", *db)
    assert sesmo("plate", "P", *db).out == ",".join(WELL_COLUMNS) + "\n"
    assert sesmo("compound", "doxorubicin", *db).out == ",".join(HISTORY_COLUMNS) + "\n"
    head = "plate,well,timepoint,acquired_at,hours,n_images,n_cells,score,ci_low,ci_high,fraction_senescent,model\n"
    assert sesmo("timecourse", "--plate", "P", *db).out == head


def test_images_taken_before_the_treatment_are_pointed_out(sesmo: Sesmo, tmp_path: Path, stub_model: Path) -> None:
    db = ("--db", tmp_path / "s.db")
    later = (datetime.now(UTC) + timedelta(hours=30)).isoformat(timespec="seconds")
    (tmp_path / "map.csv").write_text("well,compound\nA01,Doxorubicin\n")
    sesmo("platemap", "import", tmp_path / "map.csv", "--plate", "P", "--treated-at", later, *db)
    sesmo("score", write_wells(tmp_path / "in"), "--plate", "P", "--model", stub_model, *db)
    said = r"plate P: its first image \(.* UTC\) was taken (29\.9|30\.0) h before the treatment"
    for words in (("plate", "P"), ("timecourse", "--plate", "P"), ("compound", "doxorubicin")):
        assert re.search(said, sesmo(*words, *db).err)
    assert "acquired_at (UTC)" in sesmo("timecourse", "--plate", "P", *db).out
    sesmo("platemap", "import", tmp_path / "map.csv", "--plate", "P", "--treated-at", "2020-01-01T00:00Z", *db)
    assert "before the treatment" not in sesmo("plate", "P", *db).err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("2026-03-29T02:30", "--timezone", "Europe/Berlin"), "does not exist in Europe/Berlin"),
        (("2026-10-25",), "has no time of day"),
        (("2026-10-25T12:00",), "has no time zone"),
        (("2026-10-25T12:00", "--timezone", "Berlin"), "the time zone 'Berlin' is unknown"),
    ],
)
def test_a_treatment_time_of_an_import_is_read_as_strictly_as_a_column(
    sesmo: Sesmo, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "map.csv").write_text("well,compound\nA01,Doxorubicin\n")
    done = sesmo("platemap", "import", tmp_path / "map.csv", "--plate", "P", "--treated-at", *words, code=2)
    assert said in sentence(done)
    assert not (tmp_path / "sesmo.db").exists()


def test_wells_of_a_large_plate_come_row_by_row_and_doses_in_order(
    sesmo: Sesmo, tmp_path: Path, stub_model: Path
) -> None:
    db = ("--db", tmp_path / "s.db", "--format", "json")
    wells = "A01 B01 Z01 AA01 A10 A02"
    lines = "".join(
        f"{well},Doxo,{dose},uM\n" for well, dose in zip(wells.split(), (30, 10, 1, 3, 0.1, 2), strict=True)
    )
    (tmp_path / "map.csv").write_text(f"well,compound,dose,unit\n{lines}")
    sesmo("platemap", "import", tmp_path / "map.csv", "--plate", "P", *db)
    sesmo("score", write_wells(tmp_path / "in", wells), "--plate", "P", "--model", stub_model, *db)
    expected = ["A01", "A02", "A10", "B01", "Z01", "AA01"]
    assert [row["well"] for row in json.loads(sesmo("plate", "P", *db).out)] == expected
    assert [row["well"] for row in json.loads(sesmo("timecourse", "--plate", "P", *db).out)] == expected
    history = json.loads(sesmo("compound", "doxo", *db).out)
    assert [row["dose"] for row in history] == [0.1, 1, 2, 3, 10, 30]
    assert tuple(history[0]) == HISTORY_COLUMNS
    assert [(row["plate"], row["run"] != "", row["well"]) for row in history][:2] == [
        ("P", True, "A10"),
        ("P", True, "Z01"),
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(5e-5, "5e-05"), (0.0123456, "0.0123"), (0.5, "0.500"), (-0.25, "-0.250"), (0.0, "0"), (1234.56, "1234.6")],
)
def test_small_numbers_keep_their_figures(value: float, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    show([{"dose": value}], Format.table)
    assert capsys.readouterr().out.split() == ["dose", shown]


def test_a_narrow_terminal_squeezes_no_column(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("FORCE_COLOR", "1")
    row = {f"column{number}": f"value-{number}-" + "x" * 30 for number in range(6)}
    show([row], Format.table)
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    for name, value in row.items():
        assert name in out
        assert value in out


def test_one_image_is_not_many() -> None:
    assert (count(1, "image"), count(0, "image"), count(2, "cell")) == ("1 image", "0 images", "2 cells")
