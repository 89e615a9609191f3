"""Well names: one spelling (`B03`, `AF48`) whatever the instrument wrote."""

import re
from functools import lru_cache

from sesmo_live.errors import UsageError

PLATE_SHAPES = {6: (2, 3), 12: (3, 4), 24: (4, 6), 48: (6, 8), 96: (8, 12), 384: (16, 24), 1536: (32, 48)}
"""Rows and columns of the standard plates, by number of wells."""

_WELL = re.compile(r"\s*([A-Za-z]{1,2})\s*[-_]?\s*0*([1-9][0-9]?)\s*")


def row_letters(row: int) -> str:
    """Return the letters of a row counted from 1: 1 is `A`, 26 is `Z`, 27 is `AA`, 32 is `AF`."""
    if not 1 <= row <= 52:
        raise UsageError(f"row {row} lies outside every plate (1 to 32); count rows from 1")
    return chr(64 + row) if row <= 26 else "A" + chr(64 + row - 26)


def well_name(row: int, column: int) -> str:
    """Return the zero-padded name of the well at `row` and `column`, both counted from 1."""
    return f"{row_letters(row)}{column:02d}"


def parse_well(text: str) -> str:
    """Return `text` in the one spelling: `a1`, `A01`, `A-1` are all `A01`; raise UsageError if it is no well."""
    match = _WELL.fullmatch(text)
    letters = match[1].upper() if match else ""
    if match is None or (len(letters) == 2 and (letters[0] != "A" or letters > "AF")) or int(match[2]) > 48:
        raise UsageError(f"{text!r} is not a well; write a row and a column such as B03 or AF48")
    return f"{letters}{int(match[2]):02d}"


@lru_cache(4096)
def well_position(well: str) -> tuple[int, int]:
    """Return (row, column), both counted from 1, of a well in the one spelling."""
    letters, column = re.sub(r"\d", "", well), int(re.sub(r"\D", "", well))
    row = ord(letters[-1]) - 64 + (26 if len(letters) == 2 else 0)
    return row, column


def fits_plate(well: str, wells: int) -> bool:
    """Say whether `well` exists on a plate of `wells` wells."""
    rows, columns = PLATE_SHAPES[wells]
    row, column = well_position(well)
    return row <= rows and column <= columns


def smallest_plate(wells: list[str]) -> int:
    """Return the number of wells of the smallest standard plate that holds all `wells`."""
    return next((n for n in PLATE_SHAPES if all(fits_plate(well, n) for well in wells)), 1536)
