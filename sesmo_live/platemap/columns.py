"""Columns: which column of a table holds what, by the names that laboratories give them or by the user's mapping."""

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from sesmo_live.errors import PlateMapError
from sesmo_live.platemap.doses import MOLAR_EXPONENTS, known_unit, shown

_NAMES = {
    "well": "well wellposition wellid wellname assaywell destinationwell destwell",
    "row": "row wellrow platerow",
    "column": "column col wellcolumn wellcol platecolumn",
    "compound": "compound compoundname pertiname drug drugname chemical substance agent inducer treatment "
    "treatmentname perturbation compoundid sampleid samplename broadsample broadid",
    "dose": "dose conc concentration finaldose finalconc finalconcentration doselevel",
    "unit": "unit units concunit concunits concentrationunit concentrationunits doseunit doseunits",
    "role": "role controltype wellrole welltype samptype sampletype perttype type",
    "solvent": "solvent vehicle diluent",
    "treated_at": "treatedat treatmenttime treatmentstart timeoftreatment dosedat dosingtime",
    "alias": "broadsample broadid inchikey cas casnumber jcp2022 displayname",
    "smiles": "smiles canonicalsmiles isomericsmiles",
    "plate": "plate platename plateid platebarcode assayplatebarcode barcode platemapname platemap",
}
FIELDS = {field: tuple(names.split()) for field, names in _NAMES.items()}
"""What a plate map may say, and the headers (letters and digits only) that say so, the preferred ones first."""

_OWNER = "(?:" + "|".join((*FIELDS["compound"], "inhibitor")) + ")"
_DOSE, _UNIT = "|".join(FIELDS["dose"]), "|".join(FIELDS["unit"])
_GROUPED = {
    "compound": re.compile(rf"({_OWNER})([1-9])|(inhibitor)"),
    "dose": re.compile(rf"({_OWNER})([1-9]?)(?:{_DOSE})|(?:{_DOSE})([1-9])"),
    "unit": re.compile(rf"({_OWNER})([1-9]?)(?:{_DOSE})?(?:{_UNIT})|(?:{_UNIT}|(?:{_DOSE})(?:{_UNIT}))([1-9])"),
}


_SHORT = {"col": "column"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `index` in the table, `header`, `rank` among the names of its field, and `unit` where it names one.

    An index of -1 is a unit that the user gave for the whole table.
    """

    index: int
    header: str
    rank: int
    unit: str = ""


Columns = dict[tuple[str, str], list[Column]]
"""Columns by (field, group), the preferred one first; `compound2` and `dose2` are of the group `2`, `dose` of ``."""


def header_key(header: str) -> str:
    """Return the letters and digits of a header, without case and without the prefix `Metadata_`."""
    key = re.sub(r"[^a-z0-9μ%]", "", unicodedata.normalize("NFKC", header).casefold())
    return key.removeprefix("metadata") or key


def _split_unit(header: str) -> tuple[str, str]:
    """Split `Conc. (µM)`, `dose_um`, `Dose/nM` into name and unit; `mmoles_per_liter` is all unit."""
    header = re.sub(r"(?i)^metadata_", "", header)
    for separator in re.finditer(r"[\[(/_ ,]+", header):
        unit = known_unit(header[separator.end() :].strip(" )]"))
        if unit:
            return header[: separator.start()], unit
    unit = known_unit(header)
    if unit and (unit in MOLAR_EXPONENTS or "/" in unit) and len(header) > 1:
        return "", unit
    return header, ""


def classify(header: str) -> list[tuple[str, str, Column]]:
    """Return what a header names, as (field, group, column with index -1): nothing, one field, or an id and alias."""
    if len(header) > 100:
        return []
    name, unit = _split_unit(header)
    if unit and not name:
        return [("dose", "", Column(-1, header, 100 + (unit not in MOLAR_EXPONENTS), unit))]
    key = header_key(header)
    found = [(field, "", Column(-1, header, names.index(key))) for field, names in FIELDS.items() if key in names]
    if found:
        return found
    if header_key(name) in FIELDS["dose"]:
        return [("dose", "", Column(-1, header, FIELDS["dose"].index(header_key(name)), unit))]
    for field, pattern in _GROUPED.items():
        match = pattern.fullmatch(header_key(name if field == "dose" else header))
        if match:
            owner = "inhibitor" if "inhibitor" in match.groups() else ""
            number = next((text for text in match.groups() if text and text.isdigit()), "")
            return [(field, owner + number, Column(-1, header, 50, unit if field == "dose" else ""))]
    return []


def is_header(cells: Sequence[str], mapping: Mapping[str, str]) -> bool:
    """Say whether a row of cells names wells: a well column, a row and a column, or the columns mapped to these."""
    fields = {field for cell in cells for field, _, _ in classify(cell)}
    mapped = {field for field, header in mapping.items() if _position(header, cells) is not None}
    if mapping.get("well"):
        return "well" in mapped
    return "well" in fields or {"row", "column"} <= fields | {_SHORT.get(field, field) for field in mapped}


def find_columns(headers: Sequence[str], mapping: Mapping[str, str]) -> Columns:
    """Return the columns of every field that the headers or the user's `mapping` (field to header) name.

    A mapped field has that column alone; one mapped to nothing is left out; `unit` may be mapped to a unit itself.
    Raise PlateMapError for an unknown field, a mapped header that is not there, and two columns of one name.
    """
    mapped = {_field_and_group(field): header for field, header in mapping.items()}
    columns: Columns = {}
    for index, header in enumerate(headers):
        for field, group, column in classify(header):
            if (field, group) not in mapped:
                columns.setdefault((field, group), []).append(replace(column, index=index))
    for (field, group), found in columns.items():
        found.sort(key=lambda column: column.rank)
        _refuse_twins(field + group, found)
    for (field, group), header in mapped.items():
        if header:
            columns[field, group] = [_mapped_column(field + group, header, headers)]
    return columns


def _field_and_group(name: str) -> tuple[str, str]:
    match = re.fullmatch(r"(compound|dose|unit)([1-9])", name)
    field, group = (match[1], match[2]) if match else (_SHORT.get(name, name), "")
    if field not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0)[0]
        raise PlateMapError(f"a plate map has no field {name!r} to map; the nearest is {near} of {', '.join(FIELDS)}")
    return field, group


def _position(header: str, headers: Sequence[str]) -> int | None:
    wanted = header.strip().casefold()
    return next((index for index, name in enumerate(headers) if name.casefold() == wanted), None)


def _mapped_column(field: str, header: str, headers: Sequence[str]) -> Column:
    index = _position(header, headers)
    if index is not None:
        return Column(index, headers[index], 0, _split_unit(headers[index])[1] if field.startswith("dose") else "")
    unit = known_unit(header) if field.startswith("unit") else None
    if unit:
        return Column(-1, header, 0, unit)
    near = difflib.get_close_matches(header, headers, n=1, cutoff=0)
    raise PlateMapError(
        f"the column {header!r} mapped to {field} is not there; found {_listed(headers)}"
        + (f", of which {near[0]!r} is the nearest" if near else "")
    )


def _refuse_twins(field: str, columns: Sequence[Column]) -> None:
    for first, second in pairwise(columns):
        if first.rank == second.rank and not field.startswith(("plate", "alias")):
            raise PlateMapError(
                f"the columns {first.header!r} and {second.header!r} could both be {field}; rename one of them, number "
                f"them like {field}1 and {field}2, or write --column {field}=NAME"
            )


def _listed(headers: Sequence[str]) -> str:
    names = [shown(header) for header in headers if header]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "no column names"


def missing_column(field: str, headers: Sequence[str]) -> PlateMapError:
    """Return the error for a field that no column holds: it names the columns found, the nearest, and the remedy."""

    def likeness(header: str) -> float:
        key = header_key(header)
        return max(difflib.SequenceMatcher(None, key, name).ratio() for name in FIELDS[field])

    named = [header for header in headers if header and not classify(header)] or [name for name in headers if name]
    near = max(named, key=likeness, default="NAME")[:60]
    return PlateMapError(
        f"there is no column for the {field}; found {_listed(headers)}; the nearest is {near!r}: "
        f"map it with --column {_quoted(f'{field}={near}')}"
    )


def _quoted(argument: str) -> str:
    return f'"{argument}"' if re.search(r"[^\w=.]", argument) else argument
