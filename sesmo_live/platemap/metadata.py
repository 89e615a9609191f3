"""Compound metadata: names, identifiers and controls that lie in a second table."""

from sesmo_live.errors import PlateMapError
from sesmo_live.platemap.columns import FIELDS, classify, header_key
from sesmo_live.platemap.doses import is_missing
from sesmo_live.platemap.tables import Row, Table


def _join_rank(header: str) -> tuple[int, int] | None:
    """Return how well a header serves to join on: compounds, then identifiers, then wells; None if not at all."""
    order = ("compound", "alias", "well")
    ranks = [(order.index(field), column.rank) for field, _, column in classify(header) if field in order]
    return min(ranks, default=None)


def join_metadata(table: Table, metadata: Table) -> Table:
    """Return `table` with the further columns of `metadata`, joined on a compound, identifier or well column.

    A row without a key takes the metadata row without a key that names its solvent: so JUMP writes down its DMSO. Raise
    PlateMapError if the two share no such column, or if the shared one names something twice in `metadata`.
    """
    ours = {header_key(header): index for index, header in enumerate(table.headers) if _join_rank(header)}
    theirs = {header_key(header): index for index, header in enumerate(metadata.headers)}
    shared = sorted(ours.keys() & theirs.keys(), key=lambda key: _join_rank(key) or (9, 9))
    if not shared:
        raise PlateMapError(
            f"the metadata ({', '.join(metadata.headers)}) share no compound, identifier or well column with the plate "
            f"map ({', '.join(table.headers)}); give the shared column one name in both"
        )
    known = {header_key(header) for header in table.headers}
    added = [index for index, header in enumerate(metadata.headers) if header_key(header) not in known]
    by_key = _by_key(metadata, theirs[shared[0]])
    keyless = [row for row in metadata.rows if is_missing(row.cells[theirs[shared[0]]])]
    solvents = [index for index, header in enumerate(table.headers) if header_key(header) in FIELDS["solvent"]]
    rows, unmatched = [], dict[str, None]()
    for row in table.rows:
        key = row.cells[ours[shared[0]]]
        found = by_key.get(key.casefold()) if not is_missing(key) else _keyless_match(row, solvents, keyless)
        if found is None and not is_missing(key):
            unmatched[key] = None
        rows.append(Row(row.place, row.cells + tuple(found.cells[index] if found else "" for index in added)))
    notes = (f"the metadata say nothing of {', '.join(unmatched)}",) if unmatched else ()
    headers = table.headers + tuple(metadata.headers[index] for index in added)
    return Table(headers, tuple(rows), table.notes + notes)


def _by_key(metadata: Table, index: int) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for row in metadata.rows:
        key = row.cells[index]
        other = rows.setdefault(key.casefold(), row)
        if other is not row and not is_missing(key):
            raise PlateMapError(f"the metadata name {key!r} on {other.place} and on {row.place}; keep one of the two")
    return rows


def _keyless_match(row: Row, solvents: list[int], keyless: list[Row]) -> Row | None:
    said = {row.cells[index].casefold() for index in solvents} - {""}
    matches = [other for other in keyless if said & {cell.casefold() for cell in other.cells}]
    return matches[0] if len(matches) == 1 else None
