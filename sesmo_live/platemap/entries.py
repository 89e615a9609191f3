"""Entries: what each row of a table says of one compound in one well."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sesmo_live.errors import PlateMapError, UsageError
from sesmo_live.platemap.columns import Column, Columns, missing_column
from sesmo_live.platemap.doses import NO_DOSE, Dose, is_missing, known_unit, parse_dose, shown, split_name_and_dose
from sesmo_live.platemap.roles import RoleWord, is_blank_name, role_of_word
from sesmo_live.platemap.structures import inchikey_of
from sesmo_live.platemap.tables import Row, Table
from sesmo_live.platemap.times import parse_treated_at
from sesmo_live.wells import parse_well, row_letters

# Not the sign of an exponent: 1e+3 is one dose.
_PLUS = re.compile(r"\s*(?:(?<![0-9.][eE])\+|[;|])\s*")
_SPACED_PLUS = re.compile(r"\s+[+&]\s+")


@dataclass(frozen=True, slots=True)
class Entry:
    """One compound (or none: "") in one well; `role` is what a role column says, `place` where all this stands."""

    place: str
    well: str
    compound: str
    dose: Dose = NO_DOSE
    role: RoleWord | None = None
    solvent: str = ""
    treated_at: datetime | None = None
    aliases: tuple[str, ...] = ()


def table_entries(table: Table, columns: Columns, timezone: str | None) -> list[Entry]:
    """Return the entries of a table in its order, at least one per row.

    Raise PlateMapError, with the place and the well, for a missing column and for a row that cannot be understood.
    """
    if ("well", "") not in columns and not {("row", ""), ("column", "")} <= columns.keys():
        raise missing_column("well", table.headers)
    if not any(field == "compound" for field, _ in columns):
        raise missing_column("compound", table.headers)
    _refuse_several_plates(table, columns)
    return [entry for row in table.rows for entry in _row_entries(row, columns, timezone)]


def _refuse_several_plates(table: Table, columns: Columns) -> None:
    for column in columns.get(("plate", ""), []):
        plates = list(dict.fromkeys(row.cells[column.index] for row in table.rows))
        if len(plates) > 1:
            raise PlateMapError(
                f"the column {column.header!r} names {len(plates)} plates ({', '.join(plates[:3])}); "
                "save one file per plate, or ignore the column with --column plate="
            )


def cell(row: Row, columns: Sequence[Column]) -> tuple[str, str]:
    """Return (text, unit) of the first of `columns` that says something in `row`; ("", "") if none does."""
    for column in columns:
        text = column.unit if column.index < 0 else row.cells[column.index]
        if not is_missing(text):
            return text.strip(), column.unit
    return "", ""


def _well(row: Row, columns: Columns) -> str:
    text = cell(row, columns.get(("well", ""), []))[0]
    if not text and ("row", "") in columns and ("column", "") in columns:
        letters, number = (cell(row, columns[field, ""])[0].removesuffix(".0") for field in ("row", "column"))
        text = (row_letters(int(letters)) if re.fullmatch("[0-9]{1,3}", letters) else letters) + number
    if not text:
        raise PlateMapError(f"{row.place} names no well; delete the line or name its well")
    return parse_well(text)


def _row_entries(row: Row, columns: Columns, timezone: str | None) -> Iterator[Entry]:
    try:
        well = _well(row, columns)
    except PlateMapError:
        raise
    except UsageError as error:
        raise PlateMapError(f"{row.place}: {error}") from error
    try:
        role, solvent, treated = (
            cell(row, columns.get((field, ""), []))[0] for field in ("role", "solvent", "treated_at")
        )
        word = role_of_word(role) if role else None
        treated_at = parse_treated_at(treated, timezone) if treated else None
        named = _row_compounds(row, columns)
        smiles = cell(row, columns.get(("smiles", ""), []))[0]
        key = inchikey_of(smiles) if smiles else ""
    except PlateMapError as error:
        raise PlateMapError(f"{row.place}, well {well}: {error}") from error
    aliases = [cell(row, [column])[0] for column in columns.get(("alias", ""), [])] + [key]
    for compound, dose in named:
        others = tuple(dict.fromkeys(alias for alias in aliases if alias and alias.casefold() != compound.casefold()))
        yield Entry(row.place, well, compound, dose, word, solvent, treated_at, others if len(named) == 1 else ())


def _row_compounds(row: Row, columns: Columns) -> list[tuple[str, Dose]]:
    """Return (compound, dose) of every group of columns that names a compound in `row`; one empty pair if none does."""
    found: list[tuple[str, Dose]] = []
    for group in sorted({group for field, group in columns if field == "compound"}):
        compound = cell(row, columns["compound", group])[0]
        dose, header_unit = cell(row, columns.get(("dose", group), []))
        unit = cell(row, columns.get(("unit", group), []))[0]
        if header_unit and unit and known_unit(unit) != header_unit:
            raise PlateMapError(f"the unit {unit!r} stands beside a column in {header_unit}; write one unit only")
        found += _compounds("" if is_blank_name(compound) else compound, dose, unit or header_unit)
    for compound, (amount, unit, _) in found:
        if amount and not compound:
            raise PlateMapError(f"a dose of {amount:g} {unit} without a compound; name the compound or empty the dose")
    return [pair for pair in found if pair[0]] or [("", NO_DOSE)]


def _compounds(compound: str, dose: str, unit: str) -> list[tuple[str, Dose]]:
    """Return the (compound, dose) pairs of one pair of cells: `LPS + Nigericin` with `1 µg/ml + 10 µM` are two."""
    doses, units = _PLUS.split(dose), _PLUS.split(unit)
    names = _names(compound, len(doses))
    units = units * len(doses) if len(units) == 1 else units
    if len(doses) == 1 < len(names) and not parse_dose(doses[0], units[0])[0]:
        doses, units = doses * len(names), units[:1] * len(names)
    if not len(names) == len(doses) == len(units):
        given_text = shown(f"{dose} {unit}".strip())
        raise PlateMapError(
            f"{shown(compound)} has the dose {given_text}; write one dose per compound, like '1 µM + 10 nM'"
        )
    given = [parse_dose(*pair) for pair in zip(doses, units, strict=True)]
    return [_with_dose_in_name(*pair) for pair in zip(names, given, strict=True)]


def _with_dose_in_name(name: str, given: Dose) -> tuple[str, Dose]:
    short, dose = split_name_and_dose(name)
    return (short, parse_dose(dose)) if dose and given[0] is None else (name, given)


def _names(compound: str, doses: int) -> list[str]:
    """Split a compound cell; signs without spaces part names (`LPS+ATP`) only where that makes one name per dose."""
    spaced, tight = _SPACED_PLUS.split(compound), _PLUS.split(compound)
    return tight if len(tight) == doses > 1 and len(spaced) != doses else spaced
