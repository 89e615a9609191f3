"""Who watches the night: stalls, lost folders and failures become incidents, in the database and in a message."""

import time
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection

from db import incidents
from db.engine import utc_now
from db.plates import plate_folders
from db.schema import SHARED
from sesmo_live.alerts import Notifier
from sesmo_live.config import Alerts
from sesmo_live.ingest.intake import Intake
from sesmo_live.ingest.placing import WatchPlan
from sesmo_live.rhythm import FailureRate, Rhythm

STALL_CHECK_S = 5.0
"""Seconds between two looks whether a plate's next frame is overdue."""

MEMORY = timedelta(days=3)
"""How far back a restarted service looks for the rhythm of its plates."""


def said_by(source: str, name: str) -> str:
    """Return how a folder or plate is called in incidents: beside its daemon's name where there are several."""
    return name if source in ("", SHARED) else f"{source}: {name}"


class Vigil:
    """Learns what is usual on every plate and in every folder; opens and closes incidents as it changes."""

    def __init__(self, options: Alerts, notifier: Notifier) -> None:
        self._options = options
        self._notifier = notifier
        self._rhythms: dict[int, Rhythm] = {}
        self._rates: dict[str, tuple[FailureRate, FailureRate]] = {}
        self._wrong: dict[tuple[str, str], bool] = {}
        self._next_check = 0.0

    def remember(self, connection: Connection, plans: list[WatchPlan]) -> None:
        """Learn the rhythm of the plates of these folders from what earlier runs of the service saw."""
        now, moment = time.monotonic(), utc_now()
        known = {
            plate_id: (name, plan)
            for plan in plans
            for plate_id, (name, folder) in plate_folders(connection, plan.source).items()
            if Path(folder).is_relative_to(plan.root)
        }
        for row in incidents.arrivals(connection, moment - MEMORY):
            if row.plate_id in known:
                name, plan = known[row.plate_id]
                first, last = (now - (moment - at).total_seconds() for at in (row.first_at, row.last_at))
                self._rhythm(row.plate_id, name, plan).remember(row.timepoint, first, last, row.images)

    def _rhythm(self, plate_id: int, name: str, plan: WatchPlan) -> Rhythm:
        if plate_id not in self._rhythms:
            self._rhythms[plate_id] = Rhythm(
                said_by(plan.source, name), plan.options.frame_interval_s, plan.options.timepoints
            )
        return self._rhythms[plate_id]

    def look(self, connection: Connection, intake: Intake, now: float) -> None:
        """Take what happened in one folder, and say what is wrong with it, or no longer."""
        folder = said_by(intake.plan.source, str(intake.plan.root))
        for plate, timepoint, backlog in intake.arrivals:
            self._rhythm(plate.plate_id, plate.name, intake.plan).arrived(timepoint, now, backlog=backlog)
        intake.arrivals.clear()
        failed, refused = self._rates.setdefault(folder, self._new_rates(folder))
        for state, reason in intake.judge.ended:
            failed.seen(state, reason)
            refused.seen(state, reason)
        intake.judge.ended.clear()
        self._judge(connection, "share-gone", folder, intake.trouble)
        self._judge(connection, "failures", folder, failed.alarm() or "")
        self._judge(connection, "refusals", folder, refused.alarm() or "")
        lame = any(word in intake.mode for word in ("died", "limit of inotify"))
        self._judge(connection, "watching", folder, f"{folder} is {intake.mode}" if lame else "")

    def _new_rates(self, folder: str) -> tuple[FailureRate, FailureRate]:
        options = self._options
        return (
            FailureRate(folder, "failed", options.failed_fraction),
            FailureRate(folder, "refused", options.refused_fraction),
        )

    def check_stalls(self, connection: Connection, now: float) -> None:
        """Look, every few seconds, whether a plate's next frame is overdue."""
        if now < self._next_check:
            return
        self._next_check = now + STALL_CHECK_S
        for plate_id, rhythm in self._rhythms.items():
            overdue = rhythm.overdue(now, self._options.stall_factor)
            wrong = overdue.sentence(datetime.now().astimezone()) if overdue else ""
            self._judge(connection, "stalled", rhythm.plate, wrong, plate_id)

    def store_paused(self, url: str, message: str) -> None:
        """Tell that the database can take nothing, which therefore cannot be entered there yet."""
        self._notifier.notify("database-paused", url, message)

    def store_back(self, connection: Connection, url: str, message: str, since: datetime) -> None:
        """Enter that the database could take nothing `since` then, and forget what it may not have kept."""
        self._wrong.clear()
        incidents.open_incident(connection, "database-paused", url, message, opened_at=since)
        self._judge(connection, "database-paused", url, "")

    def _judge(self, connection: Connection, kind: str, subject: str, wrong: str, plate_id: int | None = None) -> None:
        """Open an incident if something is `wrong`, close an open one if nothing is; tell of both."""
        if self._wrong.get((kind, subject)) is bool(wrong):
            return
        self._wrong[kind, subject] = bool(wrong)
        if wrong:
            if incidents.open_incident(connection, kind, subject, wrong, plate_id=plate_id):
                self._notifier.notify(kind, subject, wrong)
        elif closed := incidents.close_incident(connection, kind, subject):
            self._notifier.over(kind, subject, closed.lasted_s)
