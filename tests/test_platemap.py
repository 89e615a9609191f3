"""Plate maps as tables: what every form of them means, and what is refused."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sesmo_live.errors import PlateMapError
from sesmo_live.platemap import PlateMap, read_barcodes, read_platemap
from sesmo_live.platemap.roles import role_of_word
from sesmo_live.records import Treatment

Read = Callable[..., PlateMap]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return a function that writes a text or bytes to `map.csv` and reads it."""

    def write_and_read(content: str | bytes, **options: Any) -> PlateMap:
        path = tmp_path / "map.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_platemap(path, **options)

    return write_and_read


def brief(plate_map: PlateMap) -> list[tuple[str, str, str, float | None, str]]:
    return [(t.well, t.compound, t.role, t.dose, t.dose_unit) for t in plate_map.treatments]


LPS_AND_DMSO = [("A01", "LPS", "treatment", 0.5, "µM"), ("B02", "DMSO", "negative", None, "")]


@pytest.mark.parametrize(
    "text",
    [
        "well,compound,dose\nA1,LPS,0.5 µM\nB2,DMSO,\n",
        "well;compound;dose\r\nA1;LPS;0,5 µM\r\nB2;DMSO;\r\n",
        "sep=;\nwell;compound;dose\nA1;LPS;0,5 µM\nB2;DMSO;\n",
        'well,compound,dose\nA1,LPS,"0,5 µM"\nB2,DMSO,NA\n',
        'well, compound, dose\nA1, LPS, "0,5 µM"\nB2, DMSO,\n',
        "Well\tDrug\tDose (uM)\nB02\tDMSO\t\n\nA01\tLPS\t0.5\n",
        "Metadata_Well,Metadata_pert_iname,Metadata_umoles_per_liter,unit\nA1,LPS,0.5,\nB2,DMSO,,\n",
        "row,col,sampleid,conc,concunits\n1,1,LPS,0.5,uM\n2,2,DMSO,NA,NA\n",
        "Row,Column,Treatment,Concentration [µM]\nA,1,LPS,0.5\nb,02,DMSO,-\n",
        "Plate 7, of March\nwell,compound,dose_um\nA1,LPS,.5\nB2,DMSO\n",
        "well,treatment\nA1,LPS 0.5 µM\nB2,DMSO\n",
        "well,compound,solvent,dose\nA1,LPS,DMSO,0.5 µM\nB2,,DMSO,\n",
        "well,compound,uM,role\nA1,LPS,0.5,trt\nB2,DMSO,,negcon\n",
    ],
)
def test_tables_of_one_meaning_are_read_alike(read: Read, text: str) -> None:
    assert brief(read(text)) == LPS_AND_DMSO
    assert read(text).treatments[0].dose_um == 0.5


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_encodings_are_recognised(read: Read, encoding: str) -> None:
    plate_map = read("well;compound;dose\nA1;Bleomycin;0,5 µM\nA2;Étoposide;1 µg/ml\n".encode(encoding))
    assert brief(plate_map) == [
        ("A01", "Bleomycin", "treatment", 0.5, "µM"),
        ("A02", "Étoposide", "treatment", 1.0, "µg/ml"),
    ]
    assert any("cp1252" in note for note in plate_map.notes) == (encoding in {"latin-1", "cp1252"})


def test_columns_are_mapped_by_the_user(read: Read) -> None:
    text = "Position,Mittel,Menge,well\nA1,LPS,5,x\nA2,ATP,7,y\n"
    mapping = {"well": "position", "compound": "Mittel", "dose": "Menge", "unit": "ng/ml"}
    assert brief(read(text, columns=mapping)) == [
        ("A01", "LPS", "treatment", 5.0, "ng/ml"),
        ("A02", "ATP", "treatment", 7.0, "ng/ml"),
    ]


def test_a_mapped_column_is_found_below_a_title(read: Read) -> None:
    text = "Position of plate\nr,c,compound\nB,3,LPS\n"
    assert brief(read(text, columns={"row": "r", "col": "c"})) == [("B03", "LPS", "treatment", None, "")]


def test_a_mapped_well_column_makes_the_header(read: Read) -> None:
    text = "well,compound\nsee,below\nPosition,compound\nB3,LPS\n"
    assert brief(read(text, columns={"well": "Position"})) == [("B03", "LPS", "treatment", None, "")]


def test_a_field_mapped_to_nothing_is_ignored(read: Read) -> None:
    text = "well,compound,type\nA1,LPS,siRNA\n"
    with pytest.raises(PlateMapError, match="'siRNA' is no role; .*--column role="):
        read(text)
    assert brief(read(text, columns={"role": ""})) == [("A01", "LPS", "treatment", None, "")]


GRID = """\
,1,2,3
A,DMSO,LPS 1 µg/ml,
B,Doxo (250 nM),,DMSO 0.1%
"""
GRID_BLOCKS = """\
Compound
,01,02,03
A,DMSO,LPS,
B,Doxo,,DMSO

dose (nM),1,2,3
A,,1,
B,250,,
Role
,1,2,3
A,neg,trt,blank
B,poscon,blank,vehicle
"""


def test_a_plate_shaped_table_is_read(read: Read) -> None:
    assert brief(read(GRID)) == [
        ("A01", "DMSO", "negative", None, ""),
        ("A02", "LPS", "treatment", 1.0, "µg/ml"),
        ("A03", "", "blank", None, ""),
        ("B01", "Doxo", "treatment", 250.0, "nM"),
        ("B02", "", "blank", None, ""),
        ("B03", "DMSO", "negative", 0.1, "%"),
    ]


@pytest.mark.parametrize("indent", ["", ","])
def test_blocks_of_a_plate_shaped_table_are_joined(read: Read, indent: str) -> None:
    text = "".join(indent + line if line.strip() else line for line in GRID_BLOCKS.splitlines(keepends=True))
    assert brief(read(text)) == [
        ("A01", "DMSO", "negative", None, ""),
        ("A02", "LPS", "treatment", 1.0, "nM"),
        ("A03", "", "blank", None, ""),
        ("B01", "Doxo", "positive", 250.0, "nM"),
        ("B02", "", "blank", None, ""),
        ("B03", "DMSO", "negative", None, ""),
    ]


def test_a_nameless_second_block_is_refused(read: Read) -> None:
    with pytest.raises(PlateMapError, match="block 2 of the plate-shaped table is called ''"):
        read(GRID + "\n" + GRID)
    with pytest.raises(PlateMapError, match="block 2 of the plate-shaped table is called ''"):
        read("role,1,2,3\nA,neg,,\nB,,,\n,1,2,3\nA,DMSO,,\nB,LPS,,\n")


TWO_COMPOUNDS = [("A01", "LPS", "treatment", 1.0, "µg/ml"), ("A01", "Nigericin", "treatment", 10.0, "µM")]


@pytest.mark.parametrize(
    "text",
    [
        "well,compound,dose\nA1,LPS,1 µg/ml\nA1,Nigericin,10 µM\n",
        "well,treatment,dose\nA1,LPS + Nigericin,1µg/ml + 10µM\n",
        "well,treatment,dose\nA1,LPS+Nigericin,1 µg/ml+1e+1 µM\n",
        "well,treatment,dose,unit\nA1,LPS; Nigericin,1; 10,µg/ml; µM\n",
        "well,treatment\nA1,LPS 1 µg/ml + Nigericin 10 µM\n",
        "well,drug1,dose1,unit1,drug2,dose2,unit2\nA1,LPS,1,ug/ml,Nigericin,10,uM\n",
        "well,drug_1,drug_1_conc (µg/ml),drug_2,drug_2_conc (µM)\nA1,LPS,1,Nigericin,10\n",
        "well,inducer1,inducer1_concentration,inducer1_concentration_unit,inhibitor,inhibitor_concentration,"
        "inhibitor_concentration_unit\nA1,LPS,1,ug/ml,Nigericin,10,µM\n",
    ],
)
def test_several_compounds_in_a_well(read: Read, text: str) -> None:
    plate_map = read(text)
    assert brief(plate_map) == TWO_COMPOUNDS
    assert any("1 well (A01) with several compounds" in note for note in plate_map.notes)


def test_an_empty_second_compound_is_no_treatment(read: Read) -> None:
    text = "well,compound1,dose1,compound2,dose2\nA1,LPS,1 µM,,\nA2,,,,\n"
    assert brief(read(text)) == [("A01", "LPS", "treatment", 1.0, "µM"), ("A02", "", "blank", None, "")]


def test_a_plus_in_a_name_with_one_dose_is_part_of_it(read: Read) -> None:
    assert brief(read("well,compound,dose\nA1,(+)-JQ1,1 µM\n")) == [("A01", "(+)-JQ1", "treatment", 1.0, "µM")]
    assert [row[1] for row in brief(read("well,compound,dose\nA1,(+)-JQ1 + LPS,1 µM + 2 µM\n"))] == ["(+)-JQ1", "LPS"]


@pytest.mark.parametrize(
    ("row", "role"),
    [
        ("DMSO,,,", "negative"),
        ("0.1% DMSO,,,", "negative"),
        ("Vehicle (0.1% DMSO),,,", "negative"),
        ("Media only,,,", "negative"),
        ("Untreated,,,", "negative"),
        ("PBS,,,", "negative"),
        ("control,,,", "negative"),
        (",,,DMSO", "negative"),
        (",,,", "blank"),
        ("empty,,,DMSO", "negative"),
        ("empty,,,", "blank"),
        ("positive control,,,", "positive"),
        ("H2O2,,,", "treatment"),
        ("control siRNA,,,", "treatment"),
        ("PC,,,", "treatment"),
        ("LPS,,negcon,", "negative"),
        ("LPS,,poscon_cp,", "positive"),
        ("LPS,,Positive control,", "positive"),
        ("DMSO,,trt,", "treatment"),
        ("LPS,,B,", "blank"),
        ("DMSO,,C,", "negative"),
        (",,C,", "negative"),
        ("LPS,,S,", "treatment"),
        ("LPS,,C,", "treatment"),
        (",,empty,DMSO", "blank"),
    ],
)
def test_roles(read: Read, row: str, role: str) -> None:
    plate_map = read(f"well,compound,dose,samptype,solvent\nA1,{row}\n")
    assert [treatment.role for treatment in plate_map.treatments] == [role]


def test_the_compound_of_a_vehicle_well_is_its_solvent_without_a_dose(read: Read) -> None:
    assert read("well,compound,dose,solvent\nA1,,0,DMSO\n").treatments == (Treatment("A01", "DMSO", "negative"),)


def test_a_blank_well_has_no_compound(read: Read) -> None:
    assert read("well,compound,role,solvent\nA1,,empty,DMSO\n").treatments == (Treatment("A01", "", "blank"),)


@pytest.mark.parametrize("name", ["DMSO 0.1%", "0.1% DMSO", "DMSO (0.1 %)"])
def test_a_vehicle_is_known_without_its_strength(read: Read, name: str) -> None:
    first = read(f"well,treatment,dose\nA1,{name},0\n").treatments[0]
    assert (first.compound, first.dose, first.aliases) == (name, 0.0, ("DMSO",))


def test_a_dose_of_zero_is_a_dose(read: Read) -> None:
    assert brief(read("well,compound,dose\nA1,LPS,0\n")) == [("A01", "LPS", "treatment", 0.0, "")]


def test_all_treatments_of_a_well_have_one_role(read: Read) -> None:
    text = "well,compound,type\nA1,DMSO,negcon\nA1,LPS,poscon\nA2,LPS,poscon\nA2,ATP,trt\nA3,DMSO,\nA3,PBS,\n"
    roles = {(t.well, t.compound): t.role for t in read(text).treatments}
    assert roles == {
        ("A01", "DMSO"): "positive",
        ("A01", "LPS"): "positive",
        ("A02", "LPS"): "treatment",
        ("A02", "ATP"): "treatment",
        ("A03", "DMSO"): "negative",
        ("A03", "PBS"): "negative",
    }


def test_listed_controls_win(read: Read) -> None:
    text = "well,compound,type\nA1,DMSO,trt\nA2,Doxo,trt\nA3,Doxo,trt\nA3,LPS,trt\nA4,DMSO,\nA4,doxo,\nA5,ATP,\n"
    plate_map = read(text, negative=["dmso", "a5"], positive=["DOXO", "H12"])
    roles = [(t.well, t.compound, t.role) for t in plate_map.treatments]
    assert roles == [
        ("A01", "DMSO", "negative"),
        ("A02", "Doxo", "positive"),
        ("A03", "Doxo", "treatment"),
        ("A03", "LPS", "treatment"),
        ("A04", "DMSO", "positive"),
        ("A04", "doxo", "positive"),
        ("A05", "ATP", "negative"),
        ("H12", "", "positive"),
    ]
    assert any("H12" in note and "not in the map" in note for note in plate_map.notes)


def test_notes_say_what_was_guessed(read: Read) -> None:
    text = "Notes\nWell,Drug,Conc,solvent,Extra\nA1,,,DMSO,1\nA2,,,,2\nA3,LPS,10,,3\nA4,PBS,,,4\n"
    notes = "\n".join(read(text).notes)
    for said in (
        "skipped what stands above the header: 1 line",
        "compound from 'Drug', dose from 'Conc'",
        "columns not used: 'Extra'",
        "1 well (A01) with only the solvent DMSO: negative controls",
        "1 well (A02) with neither compound nor solvent: blank",
        "1 well (A04) with PBS: negative controls, by the name",
        "a dose without a unit; name it with --column unit=µM",
    ):
        assert said in notes
    assert "stock" in "\n".join(read("well,compound,dose\nA1,LPS,10 mM\n").notes)
    assert read("well,compound,dose\nA1,LPS,10 µM\nA2,LPS,0\n").notes == ()


def test_treatment_times_come_from_the_map_else_from_the_option(read: Read) -> None:
    text = "well,compound,treated_at\nA1,LPS,2026-07-01T14:30\nA2,LPS,2026-07-01T14:30+00:00\nA3,DMSO,\n"
    given_time = datetime(2026, 6, 1, 8, 0)  # noqa: DTZ001 - local, as typed on a command line
    plate_map = read(text, timezone="Europe/Berlin", treated_at=given_time)
    assert [t.treated_at for t in plate_map.treatments] == [
        datetime(2026, 7, 1, 12, 30, tzinfo=UTC),
        datetime(2026, 7, 1, 14, 30, tzinfo=UTC),
        datetime(2026, 6, 1, 6, 0, tzinfo=UTC),
    ]


def test_metadata_give_names_aliases_and_controls(read: Read, tmp_path: Path) -> None:
    metadata = tmp_path / "compounds.tsv"
    metadata.write_text(
        "broad_sample\tInChIKey\tpert_iname\tpert_type\tcontrol_type\n"
        "BRD-1\tKEY-1\tnutlin-3\ttrt\tNA\nBRD-2\tKEY-2\tdoxorubicin\tcontrol\tposcon_cp\nNA\tKEY-3\tDMSO\tcontrol\tnegcon\n"
    )
    text = (
        "well_position,broad_sample,solvent,note\nA1,BRD-1,DMSO,\nA2,brd-2,DMSO,\nA3,,DMSO,\nA4,,,DMSO\nA5,BRD-9,DMSO\n"
    )
    plate_map = read(text, metadata=metadata)
    assert plate_map.treatments == (
        Treatment("A01", "nutlin-3", aliases=("BRD-1", "KEY-1")),
        Treatment("A02", "doxorubicin", "positive", aliases=("brd-2", "KEY-2")),
        Treatment("A03", "DMSO", "negative", aliases=("KEY-3",)),
        Treatment("A04", "", "blank"),
        Treatment("A05", "BRD-9"),
    )
    assert "the metadata say nothing of BRD-9" in plate_map.notes


def test_role_words_ignore_case_and_signs() -> None:
    assert [role_of_word(word) for word in ("NegCon", "POS_CTRL", "trt", "Empty", "Control")] == [
        "negative",
        "positive",
        "treatment",
        "blank",
        "control",
    ]


BARCODES = "Assay_Plate_Barcode,Plate_Map_Name,Batch\nSQ1,C-1,1\nSQ2,C-2,1\nSQ2,C-2,2\n"


def test_barcodes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "barcodes.csv"
    path.write_text(BARCODES)
    assert read_barcodes(path) == {"SQ1": "C-1", "SQ2": "C-2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BARCODES + "SQ1,C-9,1\n", "the barcode SQ1 has two plate maps, C-1 and C-9"),
        (BARCODES + "SQ3,,1\n", "line 5 lacks a barcode or a plate map name"),
        (
            "Barcode,Layout\nSQ1,C-1\n",
            "needs a column of barcodes and one of plate map names, but has 'Barcode', 'Layout'",
        ),
        ("", "barcodes.csv: the file is empty"),
    ],
)
def test_bad_barcodes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "barcodes.csv"
    path.write_text(text)
    with pytest.raises(PlateMapError, match=message):
        read_barcodes(path)
