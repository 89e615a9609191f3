"""Exported tables come back as they were; the report is one file with everything inside."""

import base64
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from openpyxl import load_workbook

from db.engine import open_reader
from sesmo_live import export, screens
from tests.cli import Sesmo, runner, sentence
from tests.planted import image_wells
from tests.stored import WELLS_96, add_cells, add_plate, open_store, planted_96, plate_map_96


@pytest.fixture
def sesmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sesmo:
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a database of a plate with a compound whose name is a formula and markup."""
    path = tmp_path_factory.mktemp("export") / "s.db"
    engine = open_store(path)
    hostile = "=cmd|'/c calc'<script>alert(1)</script> $x_$ 日本"
    treatments = [replace(t, compound=hostile) if t.compound == "Compound E" else t for t in plate_map_96()]
    fields = image_wells(np.random.default_rng(1), planted_96(4), fields=2, well_noise=0.1)
    add_plate(engine, "P", WELLS_96, fields, treatments)
    add_cells(engine, 1, [0.1, 0.25, 0.875])
    yield path
    engine.dispose()


def test_all_formats_hold_the_same_rows(store: Path, tmp_path: Path, sesmo: Sesmo) -> None:
    from pyarrow import parquet

    rows, _ = export.tidy_wells(screens.load_screen(open_reader(store), "P"))
    assert len(rows) == 96 * 4
    assert tuple(rows[0]) == export.EXPORT_COLUMNS
    for name in ("out.csv", "out.parquet", "out.xlsx"):
        assert f"384 rows written to {name}" in sesmo("export", "--plate", "P", "--out", name, "--db", store).err
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        texts = list(csv.DictReader(file))
    table = parquet.read_table(tmp_path / "out.parquet")
    book = load_workbook(tmp_path / "out.xlsx")
    sheet = list(book["data"].iter_rows(values_only=True))
    assert tuple(table.column_names) == tuple(texts[0]) == sheet[0] == export.EXPORT_COLUMNS
    for row, text, stored, line in zip(rows, texts, table.to_pylist(), sheet[1:], strict=True):
        cells = dict(zip(sheet[0], line, strict=True))
        for name in ("score", "ci_low", "fraction_high", "percent_of_control", "hours"):
            assert stored[name] == row[name]
            assert cells[name] == (None if row[name] is None else pytest.approx(row[name], rel=1e-14))
            assert text[name] == ("" if row[name] is None else str(row[name]))
        assert (text["well"], stored["well"], cells["well"]) == (row["well"],) * 3
        assert stored["acquired_at"] == row["acquired_at"]
    about = json.loads(table.schema.metadata[b"sesmo-live"])
    assert about["model"] == "mine-1-aaaaaaaa"
    assert about["images"] == {"scored": 96 * 4 * 2}
    assert about["weights_sha256"] == "00ff"
    assert {line[0]: line[1] for line in book["provenance"].iter_rows(values_only=True)}["plate"] == "P"


def test_a_spreadsheet_runs_nothing(store: Path, tmp_path: Path, sesmo: Sesmo) -> None:
    sesmo("export", "--plate", "P", "--out", "out.csv", "--db", store)
    sesmo("export", "--plate", "P", "--out", "out.xlsx", "--db", store)
    assert ",'=cmd|" in (tmp_path / "out.csv").read_text(encoding="utf-8")
    cells = [cell for row in load_workbook(tmp_path / "out.xlsx")["data"].iter_rows() for cell in row]
    assert all(cell.data_type != "f" for cell in cells)
    assert any(str(cell.value).startswith("'=cmd") for cell in cells)


def test_anndata_reads_it_back(store: Path, tmp_path: Path, sesmo: Sesmo) -> None:
    anndata = pytest.importorskip("anndata")
    sesmo("export", "--plate", "P", "--out", "out.h5ad", "--db", store)
    data = anndata.read_h5ad(tmp_path / "out.h5ad")
    rows, _ = export.tidy_wells(screens.load_screen(open_reader(store), "P"))
    assert data.shape[0] == 384
    assert data[:, "score"].X.ravel() == pytest.approx([row["score"] for row in rows])
    assert list(data.obs["well"]) == [row["well"] for row in rows]
    assert json.loads(data.uns["sesmo_live"])["plate"] == "P"


def test_cells_come_one_a_row(store: Path, tmp_path: Path, sesmo: Sesmo) -> None:
    assert "3 rows written" in sesmo("export", "--plate", "P", "--out", "cells.csv", "--cells", "--db", store).err
    with (tmp_path / "cells.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == export.CELL_COLUMNS
    assert [(row["well"], row["timepoint"], row["cell"], row["x"], row["score"]) for row in rows] == [
        ("A01", "1", "0", "0.0", "0.1"),
        ("A01", "1", "1", "10.0", "0.25"),
        ("A01", "1", "2", "20.0", "0.875"),
    ]
    sesmo("export", "--plate", "P", "--out", "cells.parquet", "--cells", "--db", store)
    from pyarrow import parquet

    assert parquet.read_table(tmp_path / "cells.parquet")["score"].to_pylist() == [0.1, 0.25, 0.875]


def test_the_report_is_one_file_with_figures_and_provenance(store: Path, tmp_path: Path, sesmo: Sesmo) -> None:
    sesmo("export", "--plate", "P", "--out", "report.html", "--db", store)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    pictures = [base64.b64decode(found) for found in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]
    assert len(pictures) == 3
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert text.index("cells_percent") < text.index("toxic") < text.index("Dose and response")
    for said in ("z_prime", "mine-1-aaaaaaaa", "00ff", "sesmo-live", "Compound A", "scored", "ec50"):
        assert said in text, said


def test_what_cannot_be_written_is_one_sentence(store: Path, tmp_path: Path, sesmo: Sesmo) -> None:
    (tmp_path / "there.csv").write_text("mine")
    for words, said in (
        (("--out", "there.csv"), "there.csv is there already; give another name, or --overwrite"),
        (("--out", "out.doc"), "has no known format; end it in .csv, .parquet, .xlsx, .h5ad or .html"),
        (("--out", "none/out.csv"), "is not there; make it first"),
        (("--out", "out.html", "--cells"), "a report has no rows of cells"),
        (("--out", "out.csv", "--model", "other"), "no model 'other' scored plate P"),
    ):
        assert said in sentence(sesmo("export", "--plate", "P", *words, "--db", store, code=2))
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert "384 rows" in sesmo("export", "--plate", "P", "--out", "there.csv", "--overwrite", "--db", store).err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.csv"]


def test_a_failed_export_leaves_the_old_file(
    store: Path, tmp_path: Path, sesmo: Sesmo, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.xlsx").write_text("mine")
    monkeypatch.setattr(export, "XLSX_ROWS", 10)
    done = sesmo("export", "--plate", "P", "--out", "out.xlsx", "--overwrite", "--db", store, code=2)
    assert "more rows than the 10 of an XLSX sheet" in sentence(done)
    assert (tmp_path / "out.xlsx").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1
