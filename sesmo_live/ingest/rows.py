"""Ledger rows as the intake writes them."""

from typing import Any

from acquisition.folder import SeenFile
from db.engine import utc_now
from db.ledger import LedgerRow
from sesmo_live.ingest.placing import Page
from sesmo_live.records import ImageState


def blank_row(file: SeenFile, state: ImageState, reason: str) -> dict[str, Any]:
    """Return the columns of a file's first page before anything but its name is known."""
    return {
        "path": str(file.path),
        "page": 0,
        "generation": 1,
        "plate_id": None,
        "well": None,
        "field": None,
        "timepoint": None,
        "channel": "",
        "z": 0,
        "size": file.size,
        "mtime_ns": file.mtime_ns,
        "state": state,
        "reason": reason,
        "seen_at": utc_now(),
    }


def place_columns(page: Page, plate_id: int | None) -> dict[str, Any]:
    """Return the columns that say where a page belongs."""
    site = page.site
    return {
        "page": page.page,
        "plate_id": plate_id,
        "well": site.well,
        "field": site.field,
        "timepoint": site.timepoint,
        "channel": site.channel,
        "z": site.z,
    }


def ledger_row(image_id: int, values: dict[str, Any]) -> LedgerRow:
    """Return the row in memory of columns just written."""
    names = ("path", "page", "generation", "plate_id", "channel", "z", "size", "mtime_ns", "state", "reason")
    return LedgerRow(image_id=image_id, **{name: values[name] for name in names}, attempts=0, sha256=None)
