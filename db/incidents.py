"""Incidents: what the user should know of, when it began and when it was over; and what stalls are judged by."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from db.engine import utc_now
from db.schema import Image, Incident
from sesmo_live.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class IncidentRow:
    """One incident; open as long as `closed_at` is None."""

    incident_id: int
    plate_id: int | None
    kind: str
    subject: str
    message: str
    details: dict[str, Any]
    opened_at: datetime
    closed_at: datetime | None
    acknowledged_at: datetime | None

    @property
    def lasted_s(self) -> float | None:
        """Return how long it lasted in seconds, None while it is open; never negative, though clocks jump."""
        return None if self.closed_at is None else max(0.0, (self.closed_at - self.opened_at).total_seconds())


@dataclass(frozen=True, slots=True)
class ArrivalRow:
    """When the first and the last image of one time point of a plate were first seen, and how many there are."""

    plate_id: int
    timepoint: int
    first_at: datetime
    last_at: datetime
    images: int


_ROW = (
    Incident.id,
    Incident.plate_id,
    Incident.kind,
    Incident.subject,
    Incident.message,
    Incident.details,
    Incident.opened_at,
    Incident.closed_at,
    Incident.acknowledged_at,
)


def open_incident(
    connection: Connection,
    kind: str,
    subject: str,
    message: str,
    details: Mapping[str, Any] | None = None,
    plate_id: int | None = None,
    opened_at: datetime | None = None,
) -> int | None:
    """Open an incident and return its key; None, and nothing new, while one of this kind and subject is open.

    `opened_at` is for one that could not be entered when it began.
    """
    if connection.execute(select(Incident.id).where(*_open(kind, subject)).limit(1)).first():
        return None
    values = {"kind": kind, "subject": subject, "message": message, "details": dict(details or {})}
    statement = (
        insert(Incident).values(**values, plate_id=plate_id, opened_at=opened_at or utc_now()).returning(Incident.id)
    )
    return int(connection.execute(statement).scalar_one())


def close_incident(connection: Connection, kind: str, subject: str, message: str = "") -> IncidentRow | None:
    """Close the open incident of this kind and subject and return it as it is now; None when there is none.

    `message` says how it ended; it is kept under `details["closed"]`.
    """
    row = connection.execute(select(*_ROW).where(*_open(kind, subject)).order_by(Incident.id)).first()
    if row is None:
        return None
    details = {**row.details, "closed": message} if message else row.details
    connection.execute(update(Incident).where(Incident.id == row.id).values(closed_at=utc_now(), details=details))
    return IncidentRow(*connection.execute(select(*_ROW).where(Incident.id == row.id)).one())


def _open(kind: str, subject: str) -> tuple[Any, ...]:
    return Incident.kind == kind, Incident.subject == subject, Incident.closed_at.is_(None)


def open_incidents(connection: Connection) -> list[IncidentRow]:
    """Return the incidents that are not over, the oldest first."""
    statement = select(*_ROW).where(Incident.closed_at.is_(None)).order_by(Incident.opened_at, Incident.id)
    return [IncidentRow(*row) for row in connection.execute(statement)]


def incidents(connection: Connection, since: datetime | None = None, limit: int = 200) -> list[IncidentRow]:
    """Return incidents that were opened at `since` or later, the newest first, at most `limit`."""
    statement = select(*_ROW).order_by(Incident.opened_at.desc(), Incident.id.desc()).limit(limit)
    if since is not None:
        statement = statement.where(Incident.opened_at >= since)
    return [IncidentRow(*row) for row in connection.execute(statement)]


def incident(connection: Connection, incident_id: int) -> IncidentRow:
    """Return one incident; raise UnknownNameError when there is none of that number."""
    row = connection.execute(select(*_ROW).where(Incident.id == incident_id)).first()
    if row is None:
        raise UnknownNameError(f"there is no incident {incident_id}; list them to see their numbers")
    return IncidentRow(*row)


def acknowledge(connection: Connection, incident_id: int) -> None:
    """Note that somebody has seen an incident, the first time; raise UnknownNameError when there is none."""
    when = func.coalesce(Incident.acknowledged_at, utc_now())
    statement = update(Incident).where(Incident.id == incident_id).values(acknowledged_at=when)
    if connection.execute(statement).rowcount == 0:
        raise UnknownNameError(f"there is no incident {incident_id}; list them to see their numbers")


def arrivals(connection: Connection, since: datetime) -> list[ArrivalRow]:
    """Return the time points of every plate of which an image was first seen at `since` or later, in ascending order.

    A restarted service learns a plate's rhythm from them, and notices a stall that began while it was down.
    """
    alive = select(Image.plate_id).where(Image.seen_at >= since)
    statement = (
        select(
            Image.plate_id,
            Image.timepoint,
            func.min(Image.seen_at).label("first_at"),
            func.max(Image.seen_at).label("last_at"),
            func.count().label("images"),
        )
        .where(Image.plate_id.in_(alive), Image.timepoint.is_not(None), Image.generation == 1)
        .group_by(Image.plate_id, Image.timepoint)
        .order_by(Image.plate_id, Image.timepoint)
    )
    return [ArrivalRow(**row) for row in connection.execute(statement).mappings()]
