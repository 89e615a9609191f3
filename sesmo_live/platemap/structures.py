"""Structures of compounds: the InChIKey of a SMILES, where RDKit is installed (the extra `chem`)."""

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any


@lru_cache(4096)
def inchikey_of(smiles: str) -> str:
    """Return the InChIKey of a SMILES, "" without RDKit and for what RDKit cannot read (see `structure_notes`)."""
    try:
        chem, logger = (_part(name) for name in ("Chem", "RDLogger"))
    except ImportError:
        return ""
    logger.DisableLog("rdApp.*")  # it would tell of each atom on standard error
    molecule = chem.MolFromSmiles(smiles)
    return str(chem.MolToInchiKey(molecule)) if molecule is not None and molecule.GetNumAtoms() else ""


def _part(name: str) -> Any:
    """Import a part of RDKit, whose type stubs lack what is used here."""
    return import_module(f"rdkit.{name}")


def structure_notes(smiles: Sequence[str]) -> list[str]:
    """Return what must be said of the SMILES of a plate map: that none, or which of them, became no InChIKey."""
    without = list(dict.fromkeys(text for text in smiles if not inchikey_of(text)))
    if not without:
        return []
    try:
        _part("Chem")
    except ImportError:
        return ["SMILES are not kept without RDKit; install it with: pip install 'sesmo-live[chem]'"]
    more = f" and {len(without) - 1} more" if len(without) > 1 else ""
    return [f"RDKit cannot read the SMILES {without[0]}{more}, kept without an InChIKey"]
