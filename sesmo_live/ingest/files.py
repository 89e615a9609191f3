"""The files of one watched folder that are in work; of those that are done only the count stays in memory."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from db import ledger
from db.ledger import LedgerRow
from sesmo_live.ingest.rows import FileState, insert
from sesmo_live.records import ImageState

OPEN: tuple[ImageState, ...] = ("pending", "failed")
"""States of images whose file stays in memory, as something may still become of them by themselves."""


class Files:
    """Files by path. A file at rest is taken from memory and, when something happens to it, read from the ledger again.

    So a folder of any size costs little more than the list of its names, which the scan keeps.
    """

    def __init__(self, root: Path, source: str = "") -> None:
        self._root = root
        self._source = source
        self._states: dict[str, FileState] = {}
        self._resting: dict[int, ImageState | None] = {}  # rows of files at rest: what this run made of them, if it did
        self._touched: set[int] = set()
        self._fresh: set[int] = set()

    def insert(self, connection: Connection, values: list[dict[str, Any]]) -> list[LedgerRow]:
        """Write new rows of this folder's files, each as the next generation of its path and page."""
        return insert(connection, self._source, values)

    def __getitem__(self, path: str) -> FileState:
        return self._states[path]

    def get(self, path: str) -> FileState | None:
        """Return a file that is in memory."""
        return self._states.get(path)

    def __iter__(self) -> Iterator[FileState]:
        return iter(self._states.values())

    def load(self, connection: Connection, before: "Files | None") -> list[LedgerRow]:
        """Read the files that are not done and return the rows that are why; `before`: those of the last intake."""
        if before is not None:
            scored = {key for key, state in before._resting.items() if state is not None}
            self._touched = (before._touched | scored) - before._fresh
        rows = ledger.known_images(connection, self._root, OPEN, self._source)
        self.recall(connection, (row.path for row in rows))
        return rows

    def recall(self, connection: Connection, paths: Iterable[str]) -> None:
        """Have these files in memory, as far as the ledger knows them and they lie in this folder."""
        absent = [path for path in paths if path not in self._states and Path(path).is_relative_to(self._root)]
        self._add(ledger.images_at(connection, absent, self._source))

    def recall_plate(self, connection: Connection, plate_id: int) -> None:
        """Have all files of a plate in memory."""
        self.recall(connection, ledger.paths_of_plate(connection, plate_id))

    def enter(self, path: Path, row: LedgerRow | None = None) -> FileState:
        """Return a file, which is taken up if it is not in memory: then the ledger must not know it."""
        return self._states.setdefault(str(path), FileState(path, {row.page: row} if row else {}))

    def rest(self, state: FileState) -> None:
        """Take a file from memory of which all is done, so that it counts from now on as it stands."""
        if state.is_busy or any(row.state in OPEN for row in state.rows.values()):
            return
        del self._states[str(state.path)]
        for row in state.rows.values() if state.present else self._touched_of(state):
            self._resting[row.image_id] = row.state if row.image_id in self._touched else None
            self._touched.discard(row.image_id)

    def _touched_of(self, state: FileState) -> list[LedgerRow]:
        return [row for row in state.rows.values() if row.image_id in self._touched]

    def touch(self, rows: Iterable[LedgerRow]) -> None:
        """Note that rows were written."""
        new = {row.image_id for row in rows} - self._touched
        self._touched |= new
        self._fresh |= new

    def committed(self) -> None:
        """Note that all that was written is kept."""
        self._fresh.clear()

    def summary(self) -> dict[str, int]:
        """Return how many images this run scored, refused, failed, skipped or left as they were."""
        counts = Counter[str](state or "unchanged" for state in self._resting.values())
        counts.update(
            row.state if row.image_id in self._touched or row.state in OPEN else "unchanged" for row in self._counted()
        )
        names = ("scored", "refused", "failed", "skipped", "unchanged", "pending")
        return {"images": counts.total(), **{name: counts[name] for name in names}}

    def failures(self) -> list[tuple[str, str]]:
        """Return (path, reason) of every failed image."""
        return [(row.path, row.reason) for row in self._counted() if row.state == "failed"]

    def _counted(self) -> Iterator[LedgerRow]:
        """Yield the rows of files that are there, and of those that went away in this run."""
        for state in self:
            for row in state.rows.values():
                if state.present or row.image_id in self._touched:
                    yield row

    def _add(self, rows: Iterable[LedgerRow]) -> None:
        for row in rows:
            state = self.enter(Path(row.path))
            state.rows[row.page] = row
            if row.image_id in self._resting:
                state.present = True
                if self._resting.pop(row.image_id) is not None:
                    self._touched.add(row.image_id)
