"""Incucyte `.PlateMap` files: XML with compounds, growth conditions and cell types per well, counted from 0."""

import re
from xml.etree import ElementTree

from sesmo_live.errors import PlateMapError, UsageError
from sesmo_live.platemap.tables import Row, Table
from sesmo_live.wells import well_name

HEADERS = ("well", "compound", "displayName", "dose", "unit")
"""Columns of the table that an Incucyte plate map becomes."""


def looks_like_xml(text: str) -> bool:
    """Say whether a text is XML (or HTML) and not a table."""
    return text.lstrip().startswith("<")


def read_incucyte(text: str) -> Table:
    """Return an Incucyte plate map as a table with `HEADERS`, one row per well and compound.

    A well with cells or a growth condition but without a compound becomes `untreated`; a well with nothing an empty
    row. Raise PlateMapError for other XML, and for a document type or entities, which no Incucyte file has.
    """
    if re.search(r"<!\s*(?:DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise PlateMapError("it declares a document type or entities, which no Incucyte plate map does; export it anew")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - entities cannot be declared: refused above
    except ElementTree.ParseError as error:
        raise PlateMapError(
            f"it is not well-formed XML ({error}); export it anew from the Incucyte software"
        ) from error
    wells = [element for element in root.iter() if _tag(element) == "well"]
    if _tag(root) != "plateMap" or not wells:
        raise PlateMapError("it is XML but no Incucyte plate map with wells; export a .PlateMap or save a CSV table")
    rows = [row for number, well in enumerate(wells, start=1) for row in _well_rows(well, number)]
    return Table(HEADERS, tuple(rows), _notes(root, rows))


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _position(well: ElementTree.Element, place: str) -> str:
    try:
        return well_name(int(well.get("row", "")) + 1, int(well.get("col", "")) + 1)
    except (ValueError, UsageError) as error:
        raise PlateMapError(
            f"{place} has no row and col of a plate; export it anew from the Incucyte software"
        ) from error


def _well_rows(well: ElementTree.Element, number: int) -> list[Row]:
    place = f"well element {number}"
    name = _position(well, place)
    items = [item for item in well.iter() if _tag(item) == "wellItem"]
    compounds = [item for item in items if item.get("type") == "Compound"]
    if not compounds:
        return [Row(place, (name, "untreated" if items else "", "", "", ""))]
    return [Row(place, (name, *_compound(item, place))) for item in compounds]


def _compound(item: ElementTree.Element, place: str) -> tuple[str, str, str, str]:
    reference = next((child for child in item if _tag(child) == "referenceItem"), None)
    names = [] if reference is None else [reference.get("description", ""), reference.get("displayName", "")]
    compound = next((name.strip() for name in names if name.strip()), "")
    if not compound:
        raise PlateMapError(f"{place} has a compound without a name; name it in the Incucyte software")
    display = names[1].strip()
    unit = item.get("concentrationUnits", "").strip()
    return compound, display, item.get("concentration", "").strip(), unit


def _notes(root: ElementTree.Element, rows: list[Row]) -> tuple[str, ...]:
    notes = []
    for kind, words in (("GrowthCondition", "growth conditions"), ("CellType", "cell types")):
        references = [item for item in root.iter() if _tag(item) == "referenceItem" and item.get("type") == kind]
        names = dict.fromkeys(item.get("description", "") for item in references)
        if names:
            notes.append(f"{words} are not kept: {', '.join(names)}")
    untreated = [row.cells[0] for row in rows if row.cells[1] == "untreated"]
    if untreated:
        notes.append(f"{len(untreated)} wells with cells but without a compound are called untreated")
    return tuple(notes)
