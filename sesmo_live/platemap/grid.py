"""Plate-shaped tables: rows A, B, … under columns 1, 2, …, one block per kind of value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sesmo_live.errors import PlateMapError
from sesmo_live.platemap.tables import Row, Table, fitted
from sesmo_live.wells import row_letters, well_name, well_position


@dataclass(frozen=True, slots=True)
class _Block:
    """One grid: its title, and (well, row it stands in, cell) in reading order."""

    title: str
    cells: tuple[tuple[str, Row, str], ...]


def _trimmed(rows: Sequence[Row]) -> list[Row]:
    """Return the rows without the empty columns on the left."""
    filled = [next(number for number, cell in enumerate(row.cells) if cell) for row in rows if any(row.cells)]
    left = min(filled, default=0)
    return [Row(row.place, row.cells[left:]) for row in rows]


def _column_count(cells: Sequence[str]) -> int:
    """Return how many columns a row numbers 1, 2, … after its first cell; 0 if it is no such row."""
    numbers = list(cells[1:])
    while numbers and not numbers[-1]:
        numbers.pop()
    counted = [str(number) for number in range(1, len(numbers) + 1)]
    return len(numbers) if len(numbers) >= 3 and [number.lstrip("0") for number in numbers] == counted else 0


def _lines(rows: Sequence[Row], head: int, columns: int) -> list[Row]:
    """Return the rows A, B, … below the column numbers in `rows[head]`."""
    lines: list[Row] = []
    for row in rows[head + 1 : head + 33]:
        if row.cells[0].upper() != row_letters(len(lines) + 1):
            break
        lines.append(fitted(row, columns + 1))
    return lines


def _blocks(rows: Sequence[Row]) -> list[_Block]:
    blocks, at, below_last = [], 0, 0
    while at < len(rows):
        columns = _column_count(rows[at].cells)
        lines = _lines(rows, at, columns) if columns else []
        if len(lines) >= 2:
            above = [cell for cell in rows[at - 1].cells if cell] if at > below_last else []
            title = rows[at].cells[0] or (above[0] if len(above) == 1 else "")
            numbered = [(row, line, column) for row, line in enumerate(lines, 1) for column in range(1, columns + 1)]
            blocks.append(_Block(title, tuple((well_name(r, c), line, line.cells[c]) for r, line, c in numbered)))
            below_last = at + 1 + len(lines)
        at = max(at + 1, below_last)
    return blocks


def grid_table(rows: Sequence[Row], is_known: Callable[[str], bool]) -> Table | None:
    """Return the grids among `rows` as one table with a column `well` and one per block, or None without a grid.

    A block is named by its corner cell or by the only cell in the row above it. A first block without a name holds
    compounds, and so does a single block whose name `is_known` does not accept. Raise PlateMapError for any other block
    without a known name.
    """
    blocks = _blocks(_trimmed(rows))
    if not blocks:
        return None
    titles = [block.title for block in blocks]
    notes = [f"read as a plate-shaped table of {', '.join(title or 'compound' for title in titles)}"]
    if not is_known(titles[0]) and (len(blocks) == 1 or not titles[0]):
        titles[0] = "compound"
    unknown = next((number for number, title in enumerate(titles, start=1) if not is_known(title)), None)
    if unknown is not None:
        raise PlateMapError(
            f"block {unknown} of the plate-shaped table is called {titles[unknown - 1]!r}; write compound, dose, unit "
            "or role in the corner cell of each block"
        )
    by_well = [{well: cell for well, _, cell in block.cells} for block in blocks]
    places = {well: row.place for block in reversed(blocks) for well, row, _ in block.cells}
    wells = sorted(places, key=well_position)
    table_rows = (Row(places[well], (well, *(cells.get(well, "") for cells in by_well))) for well in wells)
    return Table(("well", *titles), tuple(table_rows), tuple(notes))
