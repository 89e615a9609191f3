"""How the run goes: images by state, rates, folders, incidents, room on the disk."""

import statistics
from collections import Counter
from datetime import datetime
from pathlib import Path
from shutil import disk_usage

from sqlalchemy import Connection, Engine, RowMapping

from db import incidents as db_incidents
from db import shown
from db.engine import utc_now
from db.folders import FolderRow, watched_folders
from db.plates import plate_names
from db.sqlite import database_url, sqlite_path
from sesmo_live.overview.plates import counts_of, incident_view
from sesmo_live.overview.views import FolderView, LastImage, RunStatus
from sesmo_live.reasons import without_paths

WINDOW_S = 60.0
"""Seconds over which rates are taken."""
LAST_IMAGES = 50
"""Images of which the time from sighting to score is taken."""
DEAD_AFTER_S = 45.0
"""Seconds after which a daemon that gave no sign of life, as it does every ten, is held to be dead."""


def run_status(engine: Engine, url: str) -> RunStatus:
    """Return how the run goes, as far as the database tells; `url` says on which disk it lies."""
    with engine.connect() as connection:
        states: Counter[str] = Counter()
        for counts in shown.state_counts(connection).values():
            states.update(counts)
        images, cells = shown.scored_since(connection, WINDOW_S)
        last = shown.last_scored(connection, LAST_IMAGES)
        names = plate_names(connection)
        incidents = tuple(incident_view(row, names) for row in db_incidents.open_incidents(connection))
        watched = folders(connection)
        total = shown.cell_total(connection)
    free, size = _disk(url)
    waits = [(row["scored_at"] - row["seen_at"]).total_seconds() for row in last]
    return RunStatus(
        images=counts_of(states),
        cells=total,
        queue=states["pending"],
        window_s=WINDOW_S,
        images_per_s=images / WINDOW_S,
        cells_per_s=cells / WINDOW_S,
        seconds_to_score=statistics.median(waits) if waits else None,
        last_image=_last_image(last[0]) if last else None,
        folders=watched,
        incidents=incidents,
        disk_free_bytes=free,
        disk_total_bytes=size,
    )


def folder_view(row: FolderRow, now: datetime, *, several: bool = False) -> FolderView:
    """Return a watched folder, as its daemon last spoke of it; with its daemon's name where there are several."""
    name = Path(row.path).name or "watched folder"
    beat = max(0.0, (now - row.beat_at).total_seconds())
    scan = None if row.scanned_at is None else max(0.0, (now - row.scanned_at).total_seconds())
    words = (row.path, str(Path(row.path).parent))
    return FolderView(
        name=f"{row.daemon}: {name}" if several else name,
        mode=without_paths(row.mode, *words),
        trouble=without_paths(row.trouble, *words),
        beat_age_s=beat,
        scan_age_s=scan,
        alive=beat < DEAD_AFTER_S,
    )


def folders(connection: Connection) -> tuple[FolderView, ...]:
    """Return the watched folders; none are watched where no daemon runs, or the last one ended as it should."""
    now = utc_now()
    rows = watched_folders(connection)
    several = len({row.daemon for row in rows}) > 1
    return tuple(folder_view(row, now, several=several) for row in rows)


def _last_image(row: RowMapping) -> LastImage:
    return LastImage(
        image_id=row["id"],
        plate=row["plate"] or "",
        run=row["run"] or "",
        well=row["well"] or "",
        field=row["field"],
        timepoint=row["timepoint"],
        scored_at=row["scored_at"],
        file=row["name"],
    )


def _disk(url: str) -> tuple[int | None, int | None]:
    file = sqlite_path(database_url(url))
    if file is None:
        return None, None
    try:
        usage = disk_usage(file.parent)
    except OSError:  # the disk is away: the database says so
        return None, None
    return usage.free, usage.total
