"""Counting what a run did with the images of a folder."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from db.ledger import LedgerRow
from sesmo_live.ingest.rows import FileState


def counted(files: Iterable[FileState], touched: Collection[int]) -> Iterator[LedgerRow]:
    """Yield the rows of the files that are there, and of those that went away in this run."""
    for state in files:
        for row in state.rows.values():
            if state.present or row.image_id in touched:
                yield row


def summary(files: Iterable[FileState], touched: Collection[int]) -> dict[str, int]:
    """Return how many images this run, which `touched` these rows, scored, refused, failed, skipped or left as is."""
    counts = Counter(
        row.state if row.image_id in touched or row.state in ("failed", "pending") else "unchanged"
        for row in counted(files, touched)
    )
    names = ("scored", "refused", "failed", "skipped", "unchanged", "pending")
    return {"images": counts.total(), **{name: counts[name] for name in names}}
