"""Reading plate maps and barcode lists from files."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from sesmo_live.errors import PlateMapError
from sesmo_live.platemap.columns import Columns, classify, find_columns, header_key, is_header
from sesmo_live.platemap.controls import by_well, treatments
from sesmo_live.platemap.entries import Entry, cell, table_entries
from sesmo_live.platemap.grid import grid_table
from sesmo_live.platemap.incucyte import looks_like_xml, read_incucyte
from sesmo_live.platemap.metadata import join_metadata
from sesmo_live.platemap.structures import structure_notes
from sesmo_live.platemap.tables import FindTable, Row, Table, decode, headed_table, read_file, text_table
from sesmo_live.platemap.times import to_utc
from sesmo_live.records import Treatment
from sesmo_live.wells import PLATE_SHAPES, fits_plate

_HIGH_DOSE_UM = 5000.0
_GRID_FIELDS = {"compound", "dose", "unit", "role", "solvent", "treated_at", "alias"}


@dataclass(frozen=True, slots=True)
class PlateMap:
    """What is in the wells of one plate; `notes` are the sentences that the user should hear about the reading.

    A well with several compounds has several treatments, all with one role; a blank well has one without compound.
    """

    treatments: tuple[Treatment, ...]
    notes: tuple[str, ...]


def read_platemap(
    path: Path,
    *,
    columns: Mapping[str, str] | None = None,
    metadata: Path | None = None,
    wells: int | None = None,
    treated_at: datetime | None = None,
    timezone: str | None = None,
    sheet: str | None = None,
    negative: Collection[str] = (),
    positive: Collection[str] = (),
) -> PlateMap:
    """Read a plate map: a table as text or `.xlsx`, long or plate-shaped, or an Incucyte `.PlateMap`.

    `columns` maps fields to headers where these are not recognised (`{"well": "Position"}`; "" ignores a field; `unit`
    may be mapped to a unit). `metadata` is a table joined on a shared compound column. `wells` is the number of wells
    of the plate, against which wells are checked. `treated_at` holds where the map gives no treatment time; times
    without an offset are local in `timezone` (an IANA name) and come out in UTC. `negative` and `positive` list wells
    or compounds that are controls whatever the map says. Treatments are in the order of their wells, row by row.

    Raise PlateMapError, in one sentence that begins with the file's name, for what cannot be understood.
    """
    try:
        table = _load_map(path, columns or {}, sheet)
        if metadata is not None:
            table = join_metadata(table, _load_metadata(metadata, table))
        found = find_columns(table.headers, columns or {})
        entries = table_entries(table, found, timezone)
        if not entries:
            raise PlateMapError("it names no wells below its header; export the plate map again")
        smiles = [cell(row, found.get(("smiles", ""), []))[0] for row in table.rows]
        told = structure_notes([text for text in smiles if text])
        made, notes = treatments(by_well(entries), negative, positive)
        _check_wells(entries, made, wells)
        when = None if treated_at is None else to_utc(treated_at, timezone)
    except PlateMapError as error:
        raise PlateMapError(f"{path.name}: {error}") from error
    made = [replace(treatment, treated_at=treatment.treated_at or when) for treatment in made]
    return PlateMap(tuple(made), (*table.notes, *_column_notes(table, found), *notes, *_dose_notes(made), *told))


def read_barcodes(path: Path) -> dict[str, str]:
    """Read which plate map belongs to which assay plate: {barcode: plate map name}, from a table or spreadsheet.

    Raise PlateMapError for a missing column or cell and for a barcode with two plate maps.
    """
    try:
        table = _load_table(path, lambda rows: headed_table(rows, lambda row: len(_barcode_columns(row)) == 2), None)
        found = _barcode_columns(table.headers)
        if len(found) < 2:
            raise PlateMapError(
                "it needs a column of barcodes and one of plate map names, but has "
                f"{', '.join(map(repr, table.headers))}; call them barcode and plate_map_name"
            )
        barcodes: dict[str, str] = {}
        for row in table.rows:
            barcode, name = row.cells[found["barcode"]], row.cells[found["plate_map_name"]]
            if not barcode or not name:
                raise PlateMapError(f"{row.place} lacks a barcode or a plate map name; fill it in or delete the line")
            if barcodes.setdefault(barcode, name) != name:
                raise PlateMapError(
                    f"the barcode {barcode} has two plate maps, {barcodes[barcode]} and {name}; keep one"
                )
    except PlateMapError as error:
        raise PlateMapError(f"{path.name}: {error}") from error
    return barcodes


def _barcode_columns(cells: Collection[str]) -> dict[str, int]:
    names = {
        "barcode": ("assayplatebarcode", "platebarcode", "barcode", "plate"),
        "plate_map_name": ("platemapname", "platemap"),
    }
    keys = [header_key(cell) for cell in cells]
    found = {field: [keys.index(name) for name in known if name in keys] for field, known in names.items()}
    return {field: indices[0] for field, indices in found.items() if indices}


def _load_table(path: Path, find: FindTable, sheet: str | None, *, incucyte: bool = False) -> Table:
    data = read_file(path)
    if data.startswith(b"PK\x03\x04"):
        from sesmo_live.platemap.sheets import sheet_table  # openpyxl takes its time, and most maps are text

        return sheet_table(data, find, sheet)
    if sheet is not None:
        raise PlateMapError(f"it is no spreadsheet and has no sheet {sheet!r}; leave the sheet out")
    text, notes = decode(data)
    if looks_like_xml(text) and not incucyte:
        raise PlateMapError("it is XML and no table; save it as .csv or .xlsx")
    table = read_incucyte(text) if looks_like_xml(text) else text_table(text, find)
    return replace(table, notes=notes + table.notes)


def _load_map(path: Path, mapping: Mapping[str, str], sheet: str | None) -> Table:
    def find(rows: list[Row]) -> Table | None:
        grid = grid_table(rows, lambda title: any(field in _GRID_FIELDS for field, _, _ in classify(title)))
        return grid or headed_table(rows, lambda cells: is_header(cells, mapping))

    return _load_table(path, find, sheet, incucyte=True)


def _load_metadata(path: Path, table: Table) -> Table:
    keys = {header_key(header) for header in table.headers}

    def find(rows: list[Row]) -> Table | None:
        return headed_table(rows, lambda cells: any(classify(cell) and header_key(cell) in keys for cell in cells))

    try:
        return _load_table(path, find, None)
    except PlateMapError as error:
        raise PlateMapError(f"its metadata {path.name}: {error}") from error


def _check_wells(entries: Collection[Entry], made: Collection[Treatment], wells: int | None) -> None:
    if wells is None:
        return
    if wells not in PLATE_SHAPES:
        raise PlateMapError(f"a plate of {wells} wells is unknown; choose one of {', '.join(map(str, PLATE_SHAPES))}")
    places = {entry.well: entry.place for entry in entries}
    for treatment in made:
        if not fits_plate(treatment.well, wells):
            place = places.get(treatment.well) or "the list of controls"
            raise PlateMapError(
                f"{place}: the well {treatment.well} lies outside a plate of {wells} wells; mend it or choose the plate"
            )


def _column_notes(table: Table, columns: Columns) -> list[str]:
    """Return which columns were taken for what, where the header does not say it, and which were not used."""
    taken = [
        f"{field}{group} from {' or '.join(repr(column.header) for column in found)}"
        for (field, group), found in columns.items()
        if field in {"well", "compound", "dose", "unit", "role", "solvent", "treated_at"}
        and any(header_key(column.header) != header_key(field + group) for column in found)
    ]
    used = {column.index for found in columns.values() for column in found}
    unused = [repr(header) for index, header in enumerate(table.headers) if header and index not in used]
    notes = [f"read {', '.join(taken)}"] if taken else []
    return notes + ([f"columns not used: {', '.join(unused)}"] if unused else [])


def _dose_notes(made: Collection[Treatment]) -> list[str]:
    notes = []
    bare = {treatment.well for treatment in made if treatment.dose and not treatment.dose_unit}
    if bare:
        notes.append(f"{len(bare)} wells have a dose without a unit; name it with --column unit=µM")
    highest = max((treatment.dose_um for treatment in made if treatment.dose_um is not None), default=0.0)
    if highest >= _HIGH_DOSE_UM:
        notes.append(f"doses reach {highest / 1000:g} mM: should they be of the stock, give those in the well instead")
    return notes
