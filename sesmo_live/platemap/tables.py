"""Tables: text in any encoding and separator, or a spreadsheet, to rows of text under headers."""

import codecs
import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sesmo_live.errors import PlateMapError

LARGEST_FILE = 20_000_000
"""Bytes above which a file is refused unread: a 1536-well map takes less than one megabyte."""

_SEPARATORS = "\t;,"
_HEADER_WITHIN = 30


@dataclass(frozen=True, slots=True)
class Row:
    """One row of cells as text; `place` says where it stands in the file (`line 5`)."""

    place: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headers, each row as long as the headers; `notes` is what the user should hear about the reading."""

    headers: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


FindTable = Callable[[list[Row]], Table | None]
"""Finds the wanted table in raw rows; None where there is none (the rows were split by the wrong separator)."""


def read_file(path: Path) -> bytes:
    """Return the bytes of a file; raise PlateMapError if it is missing, empty, too large or of a known wrong kind."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise PlateMapError("it is larger than 20 MB, which no plate's table is; save that table alone")
        data = path.read_bytes()
    except OSError as error:
        raise PlateMapError(f"it cannot be read ({error.strerror}); check the path") from error
    if not data.strip(b"\0 \t\r\n" + codecs.BOM_UTF8):
        raise PlateMapError("the file is empty; export it again")
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise PlateMapError(
            "it is an old or password-protected Excel file; save it as .xlsx without password or as .csv"
        )
    return data


def decode(data: bytes) -> tuple[str, tuple[str, ...]]:
    """Return text in UTF-8 or UTF-16 with a byte-order mark, UTF-8, or else cp1252 (and a note that it was guessed).

    Raise PlateMapError if it is no text.
    """
    encoding, notes = "utf-8-sig", ()  # type: str, tuple[str, ...]
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            text, notes = data.decode("cp1252"), ("the file is not UTF-8 and was read as cp1252 (Western Windows)",)
    except UnicodeDecodeError as error:
        raise PlateMapError("it is neither text nor a spreadsheet; save it as .csv or .xlsx") from error
    if re.search(r"[\x00-\x08\x0e-\x1f\x7f]", text):
        raise PlateMapError("it is neither text nor a spreadsheet; save it as .csv or .xlsx")
    return text, notes


def _text_rows(text: str, separator: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    rows = []
    try:
        for cells in reader:
            rows.append(Row(f"line {reader.line_num}", tuple(cell.strip() for cell in cells)))
    except csv.Error as error:
        raise PlateMapError(f"line {reader.line_num} cannot be split into cells ({error}); check its quotes") from error
    return [row for row in rows if any(row.cells)]


def text_table(text: str, find: FindTable) -> Table:
    """Return the table that `find` sees in `text` under one of the separators tab, semicolon and comma.

    Where it sees none, return the text split by the separator that occurs most, below its widest row: the caller then
    knows which columns are there. Raise PlateMapError for faulty quotes.
    """
    failures: dict[str, PlateMapError] = {}
    for separator in _SEPARATORS:
        try:
            table = find(_text_rows(text, separator))
        except PlateMapError as error:  # of a wrong separator perhaps: what counts is whether another one fits
            failures[separator] = error
        else:
            if table is not None:
                return table
    likely = max(_SEPARATORS, key=text.count)
    if failures:
        raise failures.get(likely) or next(iter(failures.values()))
    rows = _text_rows(text, likely)
    if not rows:
        raise PlateMapError("the file is empty; export it again")
    return widest_table(rows)


def widest_table(rows: Sequence[Row]) -> Table:
    """Return the table below the first of the widest upper rows, the likeliest header where none is recognised."""
    return build_table(rows, max(range(len(rows[:_HEADER_WITHIN])), key=lambda row: sum(map(bool, rows[row].cells))))


def build_table(rows: Sequence[Row], header: int) -> Table:
    """Return the rows below `rows[header]` as a table; short rows are filled, too long ones refused."""
    headers = rows[header].cells
    width = max((number for number, name in enumerate(headers, start=1) if name), default=0)
    notes = (f"skipped what stands above the header: {header} lines",) if header else ()
    return Table(headers[:width], tuple(fitted(row, width) for row in rows[header + 1 :]), notes)


def fitted(row: Row, width: int) -> Row:
    """Return `row` with exactly `width` cells; raise PlateMapError for values beyond them and for formulas."""
    if any(row.cells[width:]):
        count = max(number for number, cell in enumerate(row.cells, start=1) if cell)
        raise PlateMapError(
            f"{row.place} has {count} values under {width} columns; put values that contain the separator "
            "(such as a decimal comma) in quotes"
        )
    formula = next((cell for cell in row.cells if cell.startswith("=")), None)
    if formula is not None:
        raise PlateMapError(f"{row.place} holds a formula ({formula}); replace formulas by their values")
    return Row(row.place, row.cells[:width] + ("",) * (width - len(row.cells)))


def headed_table(rows: Sequence[Row], is_header: Callable[[Sequence[str]], bool]) -> Table | None:
    """Return the table below the first of the upper rows that `is_header` accepts, or None."""
    heads = (number for number, row in enumerate(rows[:_HEADER_WITHIN]) if is_header(row.cells))
    header = next(heads, None)
    return None if header is None else build_table(rows, header)
