"""Structures: a SMILES is kept as its InChIKey, by which a compound is found under any name."""

import sys
from pathlib import Path

import pytest

from sesmo_live.platemap import read_platemap
from sesmo_live.platemap.structures import inchikey_of

CAFFEINE = "RYYVLZVUVIJVGH-UHFFFAOYSA-N"  # PubChem CID 2519


@pytest.fixture
def plate_map(tmp_path: Path) -> Path:
    path = tmp_path / "map.csv"
    path.write_text("well,compound,SMILES\nA1,Guaranine,CN1C=NC2=C1C(=O)N(C(=O)N2C)C\nA2,DMSO,\n")
    return path


def test_a_smiles_becomes_an_inchikey(plate_map: Path) -> None:
    pytest.importorskip("rdkit")
    inchikey_of.cache_clear()
    assert [item.aliases for item in read_platemap(plate_map).treatments] == [(CAFFEINE,), ()]
    plate_map.write_text("well,compound,SMILES\nA1,Guaranine,CN1C=N(\nA2,Other,N(\n")
    found = read_platemap(plate_map)
    assert [item.aliases for item in found.treatments] == [(), ()]
    assert "RDKit cannot read the SMILES CN1C=N( and 1 more, kept without an InChIKey" in found.notes


def test_without_rdkit_it_is_left_out(plate_map: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    inchikey_of.cache_clear()
    found = read_platemap(plate_map)
    assert [item.aliases for item in found.treatments] == [(), ()]
    assert any("pip install 'sesmo-live[chem]'" in note for note in found.notes)
    inchikey_of.cache_clear()
