"""Treatment times: local or with an offset on paper, UTC in the records."""

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sesmo_live.errors import PlateMapError
from sesmo_live.platemap.doses import shown


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise PlateMapError(f"the time zone {name!r} is unknown; write one like Europe/Berlin or UTC") from error


def _is_bare_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _parse(text: str) -> datetime:
    if _is_bare_date(text):
        raise PlateMapError(f"the treatment time {text!r} has no time of day; write it like {text}T14:30")
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise PlateMapError(
            f"the treatment time {shown(text)} is not ISO 8601; write it like 2026-03-01T14:30"
        ) from error


def to_utc(when: datetime, timezone: str | None) -> datetime:
    """Return `when` in UTC; without an offset of its own it is local time in `timezone` (an IANA name).

    Raise PlateMapError if it has no offset and no `timezone` is given, and for a local time that comes twice or never
    at a change of daylight saving: one of two guesses would shift every hour since treatment.
    """
    if when.utcoffset() is None:
        if timezone is None:
            raise PlateMapError(
                f"the treatment time {when.isoformat()} has no time zone; write it with its offset such as "
                f"{when.isoformat()}+01:00, or name its zone with timezone (--timezone Europe/Berlin)"
            )
        when = _local(when, _zone(timezone))
    try:
        return when.astimezone(UTC)
    except OverflowError as error:
        raise PlateMapError(f"the treatment time {when.isoformat()} is beyond the calendar; check its year") from error


def _local(when: datetime, zone: ZoneInfo) -> datetime:
    first, second = when.replace(tzinfo=zone, fold=0), when.replace(tzinfo=zone, fold=1)
    if first.utcoffset() == second.utcoffset():
        return first
    # PEP 495: a local time that never was does not come back from UTC as it went.
    exists = first.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == when
    fault = "comes twice" if exists else "does not exist"
    raise PlateMapError(
        f"the local time {when.isoformat()} {fault} in {zone.key}, where daylight saving changes; "
        f"write it with its offset: {first.isoformat()} or {second.isoformat()}"
    )


def parse_treated_at(text: str, timezone: str | None) -> datetime:
    """Read an ISO 8601 date and time and return it in UTC; see `to_utc` for times without an offset."""
    return to_utc(_parse(text.strip()), timezone)
