"""Incidents in the database: opened once, closed once, acknowledged; and the arrivals that stalls are judged by."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine

from db import incidents as db
from db import ledger, plates
from db.care import upgrade
from db.engine import open_engine, utc_now
from db.schema import Image
from sesmo_live.errors import UsageError


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    upgrade(tmp_path / "s.db")
    engine = open_engine(tmp_path / "s.db", write=True)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.begin() as connection:
        yield connection


def test_an_incident_is_opened_once_for_each_kind_and_subject(connection: Connection) -> None:
    first = db.open_incident(connection, "share-gone", "/s/µ", "the share is gone; look at it", {"errno": 5})
    assert first is not None
    assert db.open_incident(connection, "share-gone", "/s/µ", "again") is None
    other = db.open_incident(connection, "share-gone", "/t", "gone")
    kind = db.open_incident(connection, "watching", "/s/µ", "dead")
    found = db.open_incidents(connection)
    assert [row.incident_id for row in found] == [first, other, kind]
    assert (found[0].kind, found[0].subject, found[0].message) == (
        "share-gone",
        "/s/µ",
        "the share is gone; look at it",
    )
    assert found[0].details == {"errno": 5}
    assert abs(utc_now() - found[0].opened_at) < timedelta(seconds=10)
    assert (found[0].closed_at, found[0].acknowledged_at, found[0].lasted_s) == (None, None, None)


def test_an_incident_is_closed_once_and_may_come_again(connection: Connection) -> None:
    first = db.open_incident(connection, "stalled", "P", "no image", {"silent_s": 99})
    db.open_incident(connection, "stalled", "Q", "no image")
    closed = db.close_incident(connection, "stalled", "P", "an image came")
    assert closed is not None
    assert closed.closed_at is not None
    assert (closed.incident_id, closed.details) == (first, {"silent_s": 99, "closed": "an image came"})
    assert closed.lasted_s is not None
    assert 0 <= closed.lasted_s < 10
    assert db.close_incident(connection, "stalled", "P") is None
    assert [row.subject for row in db.open_incidents(connection)] == ["Q"]
    again = db.open_incident(connection, "stalled", "P", "no image again")
    assert again not in (None, first)
    assert db.incidents(connection)[0].incident_id == again
    assert len(db.incidents(connection)) == 3


def test_an_incident_of_a_plate_keeps_its_plate(connection: Connection) -> None:
    plate = plates.find_or_add_plate(connection, "P", "r", "f")
    db.open_incident(connection, "stalled", "P", "no image", plate_id=plate)
    assert db.open_incidents(connection)[0].plate_id == plate


def test_incidents_stay_when_the_database_is_closed(engine: Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        db.open_incident(connection, "failures", "F", "17 of 50 failed")
    engine.dispose()
    again = open_engine(tmp_path / "s.db", write=True)
    with again.begin() as connection:
        assert db.open_incident(connection, "failures", "F", "18 of 50 failed") is None
        assert [row.message for row in db.open_incidents(connection)] == ["17 of 50 failed"]
    again.dispose()


def test_a_clock_that_was_set_back_gives_no_negative_duration() -> None:
    now = datetime(2026, 11, 20, tzinfo=UTC)
    row = db.IncidentRow(1, None, "stalled", "P", "m", {}, now, now - timedelta(hours=1), None)
    assert row.lasted_s == 0


def test_incidents_are_listed_newest_first_from_a_moment_on(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = datetime(2026, 11, 20, tzinfo=UTC)
    for hour in range(5):
        monkeypatch.setattr(db, "utc_now", lambda hour=hour: day + timedelta(hours=hour))
        db.open_incident(connection, "stalled", f"P{hour}", "m")
    assert [row.subject for row in db.incidents(connection)] == ["P4", "P3", "P2", "P1", "P0"]
    assert [row.subject for row in db.incidents(connection, limit=2)] == ["P4", "P3"]
    elsewhere = (day + timedelta(hours=3)).astimezone()
    assert [row.subject for row in db.incidents(connection, since=elsewhere)] == ["P4", "P3"]


def test_an_incident_is_acknowledged_the_first_time(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    key = db.open_incident(connection, "stalled", "P", "m")
    assert key is not None
    db.acknowledge(connection, key)
    first = db.open_incidents(connection)[0].acknowledged_at
    assert first is not None
    monkeypatch.setattr(db, "utc_now", lambda: first + timedelta(hours=1))
    db.acknowledge(connection, key)
    assert db.open_incidents(connection)[0].acknowledged_at == first
    with pytest.raises(UsageError, match="there is no incident 99; list them"):
        db.acknowledge(connection, 99)


def test_arrivals_are_those_of_the_plates_that_are_alive(connection: Connection) -> None:
    day = datetime(2026, 11, 20, tzinfo=UTC)
    alive = plates.find_or_add_plate(connection, "P", "r", "f")
    old = plates.find_or_add_plate(connection, "old", "r", "f")
    rows = []
    for plate, start in ((alive, day), (old, day - timedelta(days=9))):
        for timepoint in range(3):
            for well in range(4):
                seen = start + timedelta(hours=timepoint, minutes=well)
                rows.append(_image(f"{plate}/{timepoint}/{well}", plate, timepoint, seen))
    rows.append({**_image("no place", alive, 7, day), "timepoint": None})
    rows.append({**_image("changed", alive, 1, day + timedelta(days=1)), "generation": 2})
    ledger.insert_images(connection, rows)
    found = db.arrivals(connection, day + timedelta(hours=2))
    assert [(row.plate_id, row.timepoint, row.images) for row in found] == [(alive, n, 4) for n in range(3)]
    assert [row.first_at for row in found] == [day + timedelta(hours=n) for n in range(3)]
    assert [row.last_at for row in found] == [day + timedelta(hours=n, minutes=3) for n in range(3)]


def _image(path: str, plate: int, timepoint: int, seen_at: datetime) -> dict[str, object]:
    needed = {column.name: None for column in Image.__table__.columns if column.name != "id" and column.nullable}
    return {
        **needed,
        **{"path": path, "name": path, "page": 0, "generation": 1, "plate_id": plate, "well": "B03", "field": 1},
        **{"timepoint": timepoint, "channel": "", "z": 0, "size": 1, "mtime_ns": 2, "acquired_from": "file"},
        **{"state": "pending", "reason": "waiting", "attempts": 0, "seen_at": seen_at},
    }
