"""Files that belong to a set: one that names another makes it awaited, so that it is missed if it never comes."""

from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import Connection

from acquisition.tree import SeenFile
from sesmo_live.ingest.files import Files
from sesmo_live.ingest.judging import Judge
from sesmo_live.ingest.rows import new_row

NAMED = "named by "
"""How the reason of a file begins that another one says belongs to its set, and that is not there yet."""


def await_companions(connection: Connection, files: Files, by: Path, expected: Iterable[Path]) -> None:
    """Enter the files that the one at `by` names and that were never seen."""
    several = list(expected)
    files.recall(connection, map(str, several))
    states = {path: files.get(str(path)) for path in several}
    absent = [path for path, state in states.items() if state is None]
    for state in filter(None, states.values()):
        files.rest(state)
    reason = f"{NAMED}{by.name} as part of its set, and not there yet"
    rows = files.insert(connection, [new_row(SeenFile(path, 0, 0), "pending", reason) for path in absent])
    for path, row in zip(absent, rows, strict=True):
        files.enter(path, row)
    files.touch(rows)


def give_up(connection: Connection, files: Files, judge: Judge) -> None:
    """Fail the files that others named and that are not there: nobody waits for them any more."""
    rows = [row for state in files for row in state.rows.values() if row.state == "pending"]
    for row in rows:
        if row.reason.startswith(NAMED):
            judge.put(connection, [row], "failed", f"{row.reason}; copy it there")
