"""Moving a database: from SQLite to PostgreSQL, or back, whole or not at all, and read back to be sure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, func, insert, inspect, select

from db import postgres
from db.care import migrate
from db.engine import ingest_lock, known_revision, open_engine, open_reader, store_errors
from db.schema import Base, Cell, WatchedFolder
from db.scores import write_cells
from db.sqlite import check_folder, database_url, display_name, sqlite_path
from sesmo_live.errors import StoreError, UsageError

BATCH = 10_000
"""Rows that are read and written at a time."""


@dataclass(frozen=True, slots=True)
class Copied:
    """One table that was copied: its rows, and the sum of their hashes, which is the same in both databases."""

    table: str
    rows: int
    checksum: str


def copy_database(source: str | Path, target: str | Path) -> list[Copied]:
    """Copy all that is remembered into an empty database, which is made where it is a SQLite file; return the tables.

    One transaction, which ends only when every table was read back and is the same: an interrupted copy leaves an
    empty database. What daemons say of their folders is not copied, as none may run. Raises UsageError when the target
    holds anything or is the source, StoreError when a daemon is at work or something differs.
    """
    here, there = database_url(source), database_url(target)
    if display_name(here) == display_name(there):
        raise UsageError(f"{display_name(here)} cannot be copied onto itself; name another database")
    reader = open_reader(here)
    check_folder(sqlite_path(there))
    if sqlite_path(there) is None or Path(sqlite_path(there) or "").exists():
        known_revision(open_engine(there), there)  # raises for another program's
    writer = open_engine(there, write=True, checkpoint=False, create=True)
    tables = [table for table in Base.metadata.sorted_tables if table.name != WatchedFolder.__tablename__]
    with ingest_lock(here), ingest_lock(there), store_errors(there), writer.begin() as into:
        made = set(inspect(into).get_table_names())
        for table in tables:  # before it is migrated: what holds rows stays as it is, also its schema
            if table.name in made and into.execute(select(func.count()).select_from(table)).scalar_one():
                raise UsageError(f"{display_name(there)} holds rows of {table.name} already; name an empty database")
        migrate(into, there)
        if sqlite_path(there) is None:
            postgres.exclude_daemons(into, display_name(there))
        with store_errors(here), reader.begin() as out:
            if sqlite_path(here) is None:
                postgres.exclude_daemons(out, display_name(here))
            written = [_copy_table(out, into, there, table) for table in tables]
        for copied, table in zip(written, tables, strict=True):
            found = _sum_up(table, _batches(into, table))
            if found != copied:
                raise StoreError(
                    f"table {table.name} is not the same in {display_name(there)} ({found.rows} rows) as in "
                    f"{display_name(here)} ({copied.rows} rows); nothing was copied, please report it"
                )
        if sqlite_path(there) is None:
            _set_sequences(into, tables)
    return written


def _copy_table(out: Connection, into: Connection, there: str, table: Table) -> Copied:
    def passed_on() -> Iterator[list[tuple[Any, ...]]]:
        for rows in _batches(out, table):
            with store_errors(there):
                _write(into, table, rows)
            yield rows

    return _sum_up(table, passed_on())


def _batches(connection: Connection, table: Table) -> Iterator[list[tuple[Any, ...]]]:
    statement = select(table).order_by(*table.primary_key).execution_options(yield_per=BATCH)
    for rows in connection.execute(statement).partitions():
        yield [tuple(row) for row in rows]


def _write(into: Connection, table: Table, rows: list[tuple[Any, ...]]) -> None:
    if table.name == Cell.__tablename__:
        write_cells(into, list(zip(*rows, strict=True)))
    else:
        into.execute(insert(table), [dict(zip(table.columns.keys(), row, strict=True)) for row in rows])


def _sum_up(table: Table, batches: Iterable[list[tuple[Any, ...]]]) -> Copied:
    """Count rows and add up their hashes: a sum does not depend on the order, which is not the same everywhere."""
    number = total = 0
    for rows in batches:
        number += len(rows)
        for row in rows:
            total += int.from_bytes(blake2b(repr(row).encode(), digest_size=16).digest())
    return Copied(table.name, number, f"{total % 2**128:032x}")


def _set_sequences(into: Connection, tables: Sequence[Table]) -> None:
    """Have the server's own keys count on after the largest one."""
    for table in tables:
        if table.autoincrement_column is not None:
            largest = into.execute(select(func.max(table.autoincrement_column))).scalar()
            name = func.pg_get_serial_sequence(table.name, table.autoincrement_column.name)
            into.execute(select(func.setval(name, largest or 1, largest is not None)))
