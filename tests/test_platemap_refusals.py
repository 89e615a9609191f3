"""Plate maps that are refused, and maps of chance: every map comes back as written or fails in words."""

import csv
import io
import re
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sesmo_live.errors import PlateMapError
from sesmo_live.platemap import PlateMap, read_platemap
from sesmo_live.platemap.doses import KNOWN_UNITS
from sesmo_live.platemap.roles import is_vehicle
from sesmo_live.wells import well_name

Read = Callable[..., PlateMap]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return a function that writes a text or bytes to `map.csv` and reads it."""

    def write_and_read(content: str | bytes, **options: Any) -> PlateMap:
        path = tmp_path / "map.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_platemap(path, **options)

    return write_and_read


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positive": ["Doxorubicine"]}, "'Doxorubicine' is neither a well nor a compound.*nearest.*'Doxorubicin'"),
        ({"positive": ["A1"], "negative": ["a01"]}, "A01 is listed as negative and as positive"),
        ({"positive": ["P24"], "wells": 96}, "the list of controls: the well P24 lies outside a plate of 96 wells"),
        ({"wells": 97}, "a plate of 97 wells is unknown; choose one of 6, 12"),
        ({"sheet": "Map"}, "is no spreadsheet"),
        ({"columns": {"wel": "x"}}, "no field 'wel' to map; the nearest is well"),
        ({"columns": {"dose": "conc"}}, "'conc' mapped to dose is not there; found 'well', 'compound'"),
        ({"treated_at": datetime(2026, 3, 1, 10)}, "has no time zone"),  # noqa: DTZ001 - that is the fault
    ],
)
def test_wrong_options_are_refused(read: Read, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlateMapError, match=message):
        read("well,compound\nA1,Doxorubicin\n", **options)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("broad_sample,pert_iname\nBRD-1,a\nBRD-1,b\n", "'BRD-1' on line 2 and on line 3; keep one"),
        ("target,pathway\nx,y\n", "share no compound, identifier or well column"),
        ("", "its metadata compounds.csv: the file is empty"),
    ],
)
def test_metadata_that_cannot_be_joined(read: Read, tmp_path: Path, metadata: str, message: str) -> None:
    (tmp_path / "compounds.csv").write_text(metadata)
    with pytest.raises(PlateMapError, match=message):
        read("well,broad_sample\nA1,BRD-1\n", metadata=tmp_path / "compounds.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "well,compound,dose\nA1,Doxo,1 uM\nA2,x,\nA01,doxo,2 uM\n",
            "A01 stands twice with doxo: on line 2 and line 4",
        ),
        ("well,compound\nA1,Doxo\nA1,\n", "A01 stands twice once without a compound: on line 2 and line 3"),
        ("well,compound\nA1,\nA1,Doxo\n", "A01 stands twice once without a compound: on line 2 and line 3"),
        ("Position,Drug\nA1,Doxo\n", "no column for the well; found 'Position', 'Drug'.*--column well=Position"),
        ("well,Mittel 1\nA1,Doxo\n", "no column for the compound.*nearest is 'Mittel 1'.*\"compound=Mittel 1\""),
        ("row,compound\nA,Doxo\n", "no column for the well"),
        ("well,compound,compound\nA1,a,b\n", "could both be compound; rename"),
        ("well,compound,dose\nA1,Doxo,3 furlong\n", "line 2, well A01: unknown unit 'furlong'; write one of M, mM"),
        ("well,compound,dose\nA1,Doxo,-3 uM\n", "line 2, well A01: .*negative"),
        (
            "well,compound,Dose (µM),unit\nA1,Doxo,3,nM\n",
            "line 2, well A01: the unit 'nM' stands beside a column in µM",
        ),
        ("well,compound,dose\nA1,,3 uM\n", "line 2, well A01: a dose of 3 µM without a compound"),
        ("well,compound,dose\nA1,LPS + ATP,3 uM\n", "'LPS [+] ATP' has the dose '3 uM'; write one dose per compound"),
        ("well,compound,dose\nA1,LPS,3 uM + 4 uM\n", "write one dose per compound"),
        ("well,compound\nA1,LPS\nA0,ATP\n", "line 3: 'A0' is not a well"),
        ("well,compound\nA1,LPS\nAG1,ATP\n", "line 3: 'AG1' is not a well"),
        ("row,col,compound\n0,1,ATP\n", "line 2: row 0 lies outside every plate"),
        ("row,col,compound\n1,0,ATP\n", "line 2: 'A0' is not a well"),
        ("well,compound\nA1,LPS\n,ATP\n", "line 3 names no well"),
        ("well,compound,dose\nA1,LPS,0,5\n", "line 2 has 4 values under 3 columns"),
        ('well,compound\n"A1","LPS",3\n', "line 2 has 3 values under 2 columns"),
        ('well,compound\nA1,"LPS\nA2,x\n', "cannot be split into cells"),
        ("well,compound\nA1,=B2\n", "line 2 holds a formula"),
        ("well,compound,plate\nA1,LPS,p1\nA1,LPS,p2\n", "names 2 plates .p1, p2.; save one file per plate"),
        ("well,compound,role\nA1,LPS,negatve\n", "line 2, well A01: 'negatve' is no role"),
        ("well,compound,treated_at\nA1,LPS,yesterday\n", "line 2, well A01: .* is not ISO 8601"),
        ("well,compound\n", "names no wells below its header"),
        ("", "the file is empty"),
        ("\n , \n", "the file is empty"),
        (b"\xff\xfe", "the file is empty"),
        (bytes(range(256)), "neither text nor a spreadsheet"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "neither text nor a spreadsheet"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1" + bytes(100), "old or password-protected Excel file"),
        (b"PK\x03\x04junk", "cannot be opened as an Excel workbook"),
        ("<html></html>", "XML but no Incucyte plate map"),
    ],
)
def test_bad_maps_are_refused_in_one_sentence(read: Read, content: str | bytes, message: str) -> None:
    with pytest.raises(PlateMapError, match=message) as caught:
        read(content)
    assert str(caught.value).startswith("map.csv: ")
    assert "\n" not in str(caught.value)


def test_a_well_outside_the_plate_is_named(read: Read) -> None:
    text = "well,compound\nA1,LPS\nA13,ATP\n"
    with pytest.raises(PlateMapError, match="line 3: the well A13 lies outside a plate of 96 wells"):
        read(text, wells=96)
    assert len(read(text, wells=384).treatments) == 2


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlateMapError, match="none.csv: it cannot be read .No such file"):
        read_platemap(tmp_path / "none.csv")
    with (tmp_path / "huge.csv").open("wb") as file:
        file.truncate(30_000_000)
    with pytest.raises(PlateMapError, match="larger than 20 MB"):
        read_platemap(tmp_path / "huge.csv")


WELLS = st.builds(well_name, st.integers(1, 32), st.integers(1, 48))
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)
DOSES = st.one_of(st.none(), st.tuples(st.floats(1e-9, 1e9) | st.just(0.0), st.sampled_from(["", *KNOWN_UNITS])))


def _is_plain(name: str) -> bool:
    """Say whether a name is only a name: no vehicle, no missing value, no formula, no list."""
    return not is_vehicle(name) and re.fullmatch(r"(?i)[^+;|=].*", name) is not None


@given(
    wells=st.dictionaries(WELLS, st.tuples(NAMES.map("c".__add__).filter(_is_plain), DOSES), min_size=1, max_size=20),
    delimiter=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_is_written_comes_back(
    wells: Mapping[str, tuple[str, tuple[float, str] | None]], delimiter: str, encoding: str
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(["well", "compound", "dose", "unit", "role"])
    for well, (name, dose) in wells.items():
        writer.writerow([well, name, *(dose or ("", "")), "treatment"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.csv"
        path.write_bytes(text.getvalue().encode(encoding))
        plate_map = read_platemap(path)
    found = {t.well: (t.compound, None if t.dose is None else (t.dose, t.dose_unit)) for t in plate_map.treatments}
    assert found == dict(wells)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_map_or_an_error_in_words(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.csv"
        path.write_bytes(content)
        with pytest.raises(PlateMapError, match=r"map\.csv: "):
            read_platemap(path)
