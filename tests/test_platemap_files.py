"""Plate maps as spreadsheets, as Incucyte files, and as the real files of five laboratories."""

import zipfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from sesmo_live.errors import PlateMapError
from sesmo_live.platemap import PlateMap, read_barcodes, read_platemap
from sesmo_live.records import Treatment

Rows = list[list[Any]]
Write = Callable[..., Path]

MAP: Rows = [["Well", "Compound", "Dose (µM)"], ["A1", "LPS", 0.5], ["B2", "DMSO", None]]
TREATMENTS = (Treatment("A01", "LPS", dose=0.5, dose_unit="µM", dose_um=0.5), Treatment("B02", "DMSO", "negative"))


@pytest.fixture
def workbook(tmp_path: Path) -> Write:
    """Return a function that writes rows into named sheets of a workbook and returns its path."""

    def write(**sheets: Rows) -> Path:
        book = openpyxl.Workbook()
        book.remove(book.worksheets[0])
        for name, rows in sheets.items():
            sheet = book.create_sheet(name)
            for row in rows:
                sheet.append(row)
        path = tmp_path / "map.xlsx"
        book.save(path)
        return path

    return write


def edit(path: Path, change: Callable[[Any], None]) -> Path:
    book = openpyxl.load_workbook(path)
    change(book.worksheets[0])
    book.save(path)
    return path


def test_a_spreadsheet_is_read(workbook: Write) -> None:
    assert read_platemap(workbook(Sheet=MAP)).treatments == TREATMENTS
    assert read_platemap(workbook(Sheet=[["Plate 7"], [], *MAP])).treatments == TREATMENTS


def test_the_sheet_with_the_map_is_found_or_named(workbook: Write) -> None:
    path = workbook(Readme=[["made by", "me"]], Map=MAP, Old=[["well", "compound"], ["C3", "ATP"]])
    plate_map = read_platemap(path)
    assert plate_map.treatments == TREATMENTS
    assert "read the sheet 'Map' of 'Readme', 'Map', 'Old'" in plate_map.notes
    assert read_platemap(path, sheet="Old").treatments == (Treatment("C03", "ATP"),)
    with pytest.raises(PlateMapError, match="has no sheet 'Mop'; its sheets are 'Readme', 'Map', 'Old'"):
        read_platemap(path, sheet="Mop")
    with pytest.raises(PlateMapError, match="no column for the well; found 'made by', 'me'"):
        read_platemap(path, sheet="Readme")


def test_a_plate_shaped_sheet_is_read(workbook: Write) -> None:
    rows: Rows = [
        [None, "Compound"],
        [None, None, 1, 2, 3],
        [None, "A", "DMSO", "LPS", None],
        [None, "B", "LPS", "LPS", None],
        [],
        [None, "Dose (nM)", 1, 2, 3],
        [None, "A", None, 5, None],
        [None, "B", 50, 500, None],
    ]
    found = read_platemap(workbook(Sheet=rows)).treatments
    assert [(t.well, t.role, t.dose_um) for t in found] == [
        ("A01", "negative", None),
        ("A02", "treatment", 0.005),
        ("A03", "blank", None),
        ("B01", "treatment", 0.05),
        ("B02", "treatment", 0.5),
        ("B03", "blank", None),
    ]


def test_cells_are_read_as_the_eye_sees_them(workbook: Write) -> None:
    rows: Rows = [
        ["row", "col", "compound", "conc", "treated_at"],
        [2, 3, "Ethanol", 0.001, datetime(2026, 3, 1, 14, 30)],  # noqa: DTZ001 - spreadsheets know no time zones
        [2, 4.0, None, 2, "#N/A"],
    ]

    def change(sheet: Any) -> None:
        sheet["D2"].number_format = "0.0%"
        sheet.merge_cells("C2:C3")

    found = read_platemap(edit(workbook(Sheet=rows), change), columns={"unit": ""}, timezone="UTC").treatments
    assert found == (
        Treatment("B03", "Ethanol", dose=0.1, dose_unit="%", treated_at=datetime(2026, 3, 1, 14, 30, tzinfo=UTC)),
        Treatment("B04", "Ethanol", dose=2.0),
    )


@pytest.mark.parametrize(
    ("cell", "value", "message"),
    [
        ("C2", "=1/2", r"cell C2 holds a formula \(=1/2\); replace formulas by their values"),
        ("C2", "#REF!", "cell C2 holds the error #REF!"),
        ("F2", "stray", "row 2 has 6 values under 3 columns"),
        ("A3", "A01", "the well A01 stands twice with LPS: on row 2 and row 3"),
        ("C2", datetime(2026, 5, 1), "row 2, well A01: the dose '2026-05-01T00:00:00' is no number"),  # noqa: DTZ001
    ],
)
def test_bad_cells_are_named(workbook: Write, cell: str, value: object, message: str) -> None:
    rows = [list(row) for row in MAP]
    rows[2][1] = "LPS"

    def change(sheet: Any) -> None:
        sheet[cell] = value

    with pytest.raises(PlateMapError, match=message):
        read_platemap(edit(workbook(Sheet=rows), change))


def test_a_treatment_day_without_hours_is_refused(workbook: Write) -> None:
    rows: Rows = [["well", "compound", "treated_at"], ["A1", "LPS", datetime(2026, 5, 1)]]  # noqa: DTZ001

    def change(sheet: Any) -> None:
        sheet["C2"].number_format = "yyyy-mm-dd"

    with pytest.raises(PlateMapError, match="has no time of day"):
        read_platemap(edit(workbook(Sheet=rows), change), timezone="UTC")


def test_other_zips_and_damaged_workbooks_are_refused(workbook: Write, tmp_path: Path) -> None:
    other = tmp_path / "map.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
    whole = workbook(Sheet=MAP).read_bytes()
    for content in (other.read_bytes(), whole[: len(whole) // 2], whole[:2000] + bytes(500) + whole[2500:]):
        path = tmp_path / "bad.xlsx"
        path.write_bytes(content)
        with pytest.raises(PlateMapError, match=r"bad\.xlsx: it cannot be opened as an Excel workbook"):
            read_platemap(path)


def test_empty_and_boundless_workbooks_are_refused(workbook: Write) -> None:
    with pytest.raises(PlateMapError, match="the workbook is empty"):
        read_platemap(workbook(Sheet=[]))

    def change(sheet: Any) -> None:
        sheet["XFD1048576"] = "x"

    with pytest.raises(PlateMapError, match=r"the sheet 'Sheet' reaches down to A1:XFD1048576; delete"):
        read_platemap(edit(workbook(Sheet=MAP), change))


XML = """<?xml version="1.0" encoding="utf-8"?>
<plateMap><wellStore><wells>{}</wells></wellStore></plateMap>"""
ITEM = '<wellItem type="{}" {}><referenceItem type="{}" description="{}" displayName="{}" /></wellItem>'


def compound(name: str, dose: str = "", display: str = "") -> str:
    number, unit = dose.split(" ") if dose else ("", "")
    attributes = f'concentration="{number}" concentrationUnits="{unit}"' if dose else ""
    return ITEM.format("Compound", attributes, "Compound", name, display or name)


def well(row: int, column: int, *items: str) -> str:
    return f'<well row="{row}" col="{column}"><items>{"".join(items)}</items></well>'


def read_xml(folder: Path, *wells: str, encoding: str = "utf-8-sig", text: str = XML) -> PlateMap:
    path = folder / "plate.PlateMap"
    path.write_bytes(text.format("".join(wells)).encode(encoding))
    return read_platemap(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_an_incucyte_map_is_read(tmp_path: Path, encoding: str) -> None:
    cells = ITEM.format("CellType", 'seedingDensity="2000"', "CellType", "IMR-90", "IMR-90")
    wells = [
        well(7, 11, compound("Doxorubicin", "0.25 μM", "Doxo"), compound("Nutlin", "5000 nM"), cells),
        well(0, 0, compound("DMSO", "0.1 %")),
        '<well row="1" col="1" />',
        well(2, 1, cells),
    ]
    plate_map = read_xml(tmp_path, *wells, encoding=encoding)
    assert plate_map.treatments == (
        Treatment("A01", "DMSO", "negative", 0.1, "%"),
        Treatment("B02", "", "blank"),
        Treatment("C02", "untreated", "negative"),
        Treatment("H12", "Doxorubicin", "treatment", 0.25, "µM", 0.25, aliases=("Doxo",)),
        Treatment("H12", "Nutlin", "treatment", 5000.0, "nM", 5.0),
    )
    assert "cell types are not kept: IMR-90" in plate_map.notes
    assert "1 wells with cells but without a compound are called untreated" in plate_map.notes


@pytest.mark.parametrize(
    ("wells", "message"),
    [
        ([well(0, 0, compound("A", "1 nM"), compound("a", "2 nM"))], "A01 stands twice with a: on well element 1"),
        ([well(0, 0), well(0, 0)], "A01 stands twice .*well element 1 and well element 2"),
        ([well(0, 0, compound("A", "1 parsec"))], "well element 1, well A01: unknown unit 'parsec'"),
        ([well(0, 0, compound(""))], "well element 1 has a compound without a name"),
        (['<well row="x" col="1" />'], "well element 1 has no row and col of a plate"),
        ([well(40, 0)], "well element 1: 'AO01' is not a well"),
        ([well(-1, 0)], "well element 1 has no row and col of a plate"),
        ([well(60, 0)], "well element 1 has no row and col of a plate"),
        (["<well"], "not well-formed XML"),
        ([], "no Incucyte plate map with wells"),
    ],
)
def test_bad_incucyte_maps_are_refused(tmp_path: Path, wells: list[str], message: str) -> None:
    with pytest.raises(PlateMapError, match=message):
        read_xml(tmp_path, *wells)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("declared", ['<!DOCTYPE p [<!ENTITY a "b">]>', '<!DOCTYPE p SYSTEM "file:///etc/hostname">'])
def test_entities_are_refused_before_they_are_read(tmp_path: Path, declared: str, encoding: str) -> None:
    text = XML.replace("<plateMap>", declared + "<plateMap>")
    with pytest.raises(PlateMapError, match="declares a document type or entities"):
        read_xml(tmp_path, well(0, 0), text=text, encoding=encoding)


@pytest.mark.realdata
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_lincs_maps(shared: Path, number: int) -> None:
    plate_map = read_platemap(shared / f"data/plates/lincs/C-7161-01-LM6-00{number}.txt", wells=384)
    found = plate_map.treatments
    assert Counter(t.role for t in found) == {"treatment": 360, "negative": 24}
    assert len({t.well for t in found}) == 384
    assert all(t == Treatment(t.well, "DMSO", "negative") for t in found if t.role == "negative")
    treated = [t for t in found if t.role == "treatment"]
    assert {t.dose_unit for t in treated} == {"mM"}
    assert all(t.dose is not None and t.dose_um == pytest.approx(1000 * t.dose) for t in treated)
    assert sorted(t.dose or 0 for t in treated if t.compound == treated[0].compound) == pytest.approx(
        [10 / 3**power for power in range(5, -1, -1)], rel=1e-6
    )


@pytest.mark.realdata
def test_the_lincs_barcodes(shared: Path) -> None:
    barcodes = read_barcodes(shared / "data/plates/lincs/barcode_platemap.csv")
    assert len(barcodes) == 140
    assert barcodes["SQ00015125"] == "C-7161-01-LM6-001"


@pytest.mark.realdata
def test_the_jump_map_with_its_metadata(shared: Path) -> None:
    folder = shared / "data/plates/jump"
    metadata = folder / "JUMP-Target-1_compound_metadata.tsv"
    plate_map = read_platemap(folder / "JUMP-Target-1_compound_platemap.tsv", metadata=metadata, wells=384)
    found = {t.well: t for t in plate_map.treatments}
    assert len(plate_map.treatments) == len(found) == 384
    assert Counter(t.role for t in found.values()) == {"treatment": 260, "negative": 64, "positive": 60}
    assert found["A03"] == Treatment(
        "A03", "amlodipine", aliases=("BRD-A22032524-074-09-9", "YMDXSGBNCBQYGC-UHFFFAOYSA-N")
    )
    assert found["A02"] == Treatment("A02", "DMSO", "negative", aliases=("IAZDPXIOMUYVGZ-UHFFFAOYSA-N",))
    positive = next(t for t in found.values() if t.compound == "ruxolitinib")
    assert positive.role == "positive"
    assert all(t.compound and t.aliases for t in found.values())


@pytest.mark.realdata
def test_the_jump_map_alone(shared: Path) -> None:
    found = read_platemap(shared / "data/plates/jump/JUMP-Target-1_compound_platemap.tsv").treatments
    assert Counter(t.role for t in found) == {"treatment": 320, "negative": 64}
    assert {t.compound for t in found if t.role == "negative"} == {"DMSO"}


@pytest.mark.realdata
def test_the_pyroptosis_map(shared: Path) -> None:
    found = read_platemap(shared / "data/plates/pyroptosis/Interstellar_plate1_platemap.csv", wells=384).treatments
    kinds = Counter((t.compound, t.dose, t.dose_unit, t.dose_um, t.role) for t in found)
    alone = [
        ("LPS", 10.0, "µg/ml", None),
        ("Flagellin", 1.0, "µg/ml", None),
        ("Flagellin", 0.1, "µg/ml", None),
        ("H2O2", 500.0, "µM", 500.0),
        ("H2O2", 50.0, "µM", 50.0),
        ("ATP", 1.0, "mM", 1000.0),
        ("ATP", 0.1, "mM", 100.0),
        ("Disulfiram", 2.5, "µM", 2.5),
        ("Disulfiram", 0.1, "µM", 0.1),
        ("Thapsi", 10.0, "µM", 10.0),
        ("Thapsi", 1.0, "µM", 1.0),
        ("Nigericin", 10.0, "µM", 10.0),
        ("Nigericin", 1.0, "µM", 1.0),
    ]
    expected = {(*kind, "treatment"): 24 for kind in alone} | {("LPS", 1.0, "µg/ml", None, "treatment"): 72}
    expected |= {("DMSO 0.1%", 0.0, "", None, "negative"): 24, ("Media only", 0.0, "", None, "negative"): 24}
    assert kinds == expected
    assert len({t.well for t in found}) == 384
    with_nigericin = {t.well for t in found if t.compound == "Nigericin"}
    assert {(t.compound, t.dose) for t in found if t.well in with_nigericin and t.compound != "Nigericin"} == {
        ("LPS", 1)
    }


@pytest.mark.realdata
def test_the_two_incucyte_files_describe_one_plate(shared: Path) -> None:
    folder = shared / "data/plates/incucyte"
    by_xml = read_platemap(folder / "example.PlateMap", wells=96).treatments
    by_text = read_platemap(folder / "example_platemap.txt", wells=96).treatments
    assert [(t.well, t.compound, t.role, t.dose_unit) for t in by_xml] == [
        (t.well, t.compound, t.role, t.dose_unit) for t in by_text
    ]
    for field in ("dose", "dose_um"):
        assert [getattr(t, field) or -1 for t in by_xml] == pytest.approx([getattr(t, field) or -1 for t in by_text])
    assert Counter((t.compound, t.role) for t in by_xml) == {
        ("", "blank"): 36,
        ("DMSO", "negative"): 10,
        ("PDD00017273", "treatment"): 50,
    }
    assert sorted({t.dose_um for t in by_xml if t.dose_um is not None}) == pytest.approx(
        [10 / 27, 10 / 9, 10 / 3, 10, 30]
    )
    assert {t.aliases for t in by_xml if t.role == "treatment"} == {("17273",)}
