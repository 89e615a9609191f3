"""Spreadsheets: the cells of an `.xlsx` sheet as text, as the eye sees them."""

import io
import warnings
import zipfile
import zlib
from datetime import date, datetime
from decimal import Decimal
from xml.etree.ElementTree import ParseError

import openpyxl
from openpyxl.cell import Cell, MergedCell
from openpyxl.utils.exceptions import InvalidFileException
from openpyxl.workbook import Workbook
from openpyxl.worksheet.worksheet import Worksheet

from sesmo_live.errors import PlateMapError
from sesmo_live.platemap.tables import FindTable, Row, Table, widest_table

_LARGEST_UNPACKED = 30_000_000
_MOST_CELLS = 500_000


def _open(data: bytes) -> Workbook:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(part.file_size for part in archive.infolist()) > _LARGEST_UNPACKED:
                raise PlateMapError("it unpacks to more than 30 MB, which no plate's table does; save that table alone")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # openpyxl warns of charts and styles that it leaves out: none is data
            return openpyxl.load_workbook(io.BytesIO(data))
    # What openpyxl raises on a damaged workbook or on another kind of zip (.ods, .docx).
    except (
        zipfile.BadZipFile, zlib.error, InvalidFileException, ParseError, KeyError, ValueError, TypeError, IndexError,
        AttributeError, EOFError, OSError, NotImplementedError, RuntimeError,
    ) as error:  # fmt: skip
        raise PlateMapError("it cannot be opened as an Excel workbook; save it as .xlsx or .csv") from error


def _cell_text(cell: Cell | MergedCell) -> str:
    value = cell.value
    if cell.data_type == "f":
        formula = value if isinstance(value, str) else "an array formula"
        raise PlateMapError(
            f"cell {cell.coordinate} holds a formula ({formula}); replace formulas by their values "
            "(copy, then paste special: values)"
        )
    if cell.data_type == "e" and value != "#N/A":
        raise PlateMapError(f"cell {cell.coordinate} holds the error {value}; mend it in the spreadsheet")
    if isinstance(value, datetime):
        return (value if "h" in cell.number_format.lower() else value.date()).isoformat()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number_text(value, percent="%" in cell.number_format)
    if isinstance(value, date):
        return value.isoformat()
    return "" if value is None else str(value).strip()


def _number_text(value: float, *, percent: bool) -> str:
    number = Decimal(str(value)) * (100 if percent else 1)
    text = str(int(number)) if number == number.to_integral_value() and abs(number) < 10**15 else str(float(number))
    return f"{text}%" if percent else text


def _sheet_rows(sheet: Worksheet) -> list[Row]:
    if sheet.max_row * sheet.max_column > _MOST_CELLS:
        raise PlateMapError(
            f"the sheet {sheet.title!r} reaches down to {sheet.dimensions}; delete what lies beyond the table"
        )
    grid = [[_cell_text(cell) for cell in row] for row in sheet.iter_rows()]
    for merged in sheet.merged_cells.ranges:  # a merged cell means its value everywhere, not only in its corner
        value = grid[merged.min_row - 1][merged.min_col - 1]
        for row in range(merged.min_row - 1, merged.max_row):
            for column in range(merged.min_col - 1, merged.max_col):
                grid[row][column] = value
    rows = (Row(f"row {number}", tuple(cells)) for number, cells in enumerate(grid, start=1))
    return [row for row in rows if any(row.cells)]


def sheet_table(data: bytes, find: FindTable, sheet: str | None) -> Table:
    """Return the table that `find` sees in the sheet named `sheet`, else in the first sheet where it sees one.

    Where it sees none, return the first filled sheet below its widest row. Raise PlateMapError for a damaged
    workbook, an unknown sheet and a cell with a formula or an error.
    """
    workbook = _open(data)
    names = [worksheet.title for worksheet in workbook.worksheets]
    if sheet is not None and sheet not in names:
        raise PlateMapError(f"it has no sheet {sheet!r}; its sheets are {', '.join(map(repr, names))}")
    fallback: Table | None = None
    for worksheet in workbook.worksheets:
        if sheet not in {None, worksheet.title} or not (rows := _sheet_rows(worksheet)):
            continue
        table = find(rows)
        if table is not None:
            note = (f"read the sheet {worksheet.title!r} of {', '.join(map(repr, names))}",) if len(names) > 1 else ()
            return Table(table.headers, table.rows, note + table.notes)
        fallback = fallback or widest_table(rows)
    if fallback is None:
        raise PlateMapError("the workbook is empty; export it again")
    return fallback
