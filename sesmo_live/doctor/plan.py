"""What tonight's run brings along: room on the disks, models, the log, whom to tell."""

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from acquisition.tree import SeenFile
from models.passport import find_model, read_passport, read_weights
from sesmo_live.alerts import Notifier, check_urls
from sesmo_live.config import Settings
from sesmo_live.doctor.database import Rate, bytes_per_image, database_file, last_rate, looking
from sesmo_live.doctor.findings import Check, Findings, gigabytes
from sesmo_live.errors import SesmoError

ROOM_H = 24.0
"""A run whose length is not known shall have room for so long."""

ROOM_BYTES = 5e9
"""With less than this free it is a warning, whatever the rate."""

RECENT_NS = 24 * 3600 * 10**9
"""Without a ledger, the images of the last day before the newest one say how fast they come."""


@dataclass(slots=True)
class _Demand:
    """What fills one disk: folders or files on it, and how fast."""

    where: Path
    what: list[str]
    bytes_per_h: float = 0.0
    judged_by: str = ""


def check_disks(settings: Settings, scans: dict[Path, list[SeenFile]]) -> Findings:
    """Compare what is free on the disks of images and database with what tonight's run will write there."""
    disks: dict[int, _Demand] = {}
    rates, file, per_image = _rates(settings, scans)
    for root in scans:
        rate, judged_by = rates.get(root, (Rate(0, 0), ""))
        _demand(disks, root, "images", rate.bytes_per_h, judged_by)
    if file is not None and file.parent.is_dir():
        images_per_h = sum(rate.images_per_h for rate, _ in rates.values())
        _demand(disks, file.parent, "database", per_image * images_per_h, "the last run")
    needed_h = max(_planned_h(settings, rates), default=ROOM_H)
    for demand in disks.values():
        yield _judge(demand, needed_h)


def _rates(
    settings: Settings, scans: dict[Path, list[SeenFile]]
) -> tuple[dict[Path, tuple[Rate, str]], Path | None, float]:
    """Return how fast images come into each folder and by what that is judged; database file; its bytes an image."""
    files_tell = {root: _rate_of(files) for root, files in scans.items()}
    rates = {root: (rate, "the images that lie there") for root, rate in files_tell.items() if rate}
    file, per_image = None, 0.0
    with suppress(SesmoError):  # the database's own check says what is wrong with it
        file = database_file(settings.database.url)
        with looking(settings.database.url) as connection:
            for root in scans:
                if connection is not None and (rate := last_rate(connection, root)):
                    rates[root] = (rate, "the last run")
            if connection is not None and file is not None:
                per_image = bytes_per_image(connection, file)
    return rates, file, per_image


def _demand(disks: dict[int, _Demand], folder: Path, what: str, bytes_per_h: float, judged_by: str) -> None:
    """Enter what one folder needs on its disk."""
    demand = disks.setdefault(folder.stat().st_dev, _Demand(folder, []))
    if what not in demand.what:
        demand.what.append(what)
    demand.bytes_per_h += bytes_per_h
    demand.judged_by = demand.judged_by or judged_by


def _planned_h(settings: Settings, rates: dict[Path, tuple[Rate, str]]) -> list[float]:
    """Return how many hours the runs take whose number of time points and rhythm are known."""
    hours = []
    for watch in settings.watch:
        known = rates.get(watch.folder.expanduser().resolve())
        interval_s = watch.frame_interval_s or (known[0].frame_interval_s if known else None)
        if watch.timepoints and interval_s:
            hours.append(watch.timepoints * interval_s / 3600)
    return hours


def _rate_of(files: Sequence[SeenFile]) -> Rate | None:
    """Return how fast files came lately, by their times on disk; None where they came all at once, as a copy does."""
    newest = max((file.mtime_ns for file in files), default=0)
    recent = [file for file in files if file.mtime_ns > newest - RECENT_NS]
    span_h = (newest - min((file.mtime_ns for file in recent), default=newest)) / 3.6e12
    if len(recent) < 2 or span_h < 1 / 6:
        return None
    hours = span_h * len(recent) / (len(recent) - 1)
    return Rate(sum(file.size for file in recent) / hours, len(recent) / hours)


def _judge(demand: _Demand, needed_h: float) -> Check:
    free = shutil.disk_usage(demand.where).free
    name, found = f"disk {demand.where}", f"{gigabytes(free)} free for {' and '.join(demand.what)}"
    remedy = "free some space, or give images or database another disk"
    if demand.bytes_per_h > 0:
        hours = free / demand.bytes_per_h
        found += f": room for {hours:.0f} h at the rate of {demand.judged_by} ({gigabytes(demand.bytes_per_h)}/h)"
        if hours < needed_h:
            return Check(name, "warn", f"{found}; {needed_h:.0f} h are needed", remedy)
    else:
        found += "; how fast it fills is not known yet"
    return Check(name, "warn" if free < ROOM_BYTES else "ok", found, remedy if free < ROOM_BYTES else "")


def check_models(settings: Settings) -> Findings:
    """Read every model's passport, and compare the hash of its weights with it."""
    for name in sorted({watch.model or settings.scoring.model for watch in settings.watch} or {settings.scoring.model}):
        folder = find_model(name or None)
        passport = read_passport(folder)
        read_weights(folder, passport)
        found = f"{passport.model_id}, its weights have the hash in the passport"
        if passport.demonstration:
            remedy = "set model in [scoring] to your own for biological work"
            yield Check("model", "warn", f"{found}; {passport.demonstration}", remedy)
        else:
            yield Check("model", "ok", found)


def check_log(file: Path | None) -> Findings:
    """Check that the log file can be written."""
    if file is None:
        yield Check("log file", "ok", "none is configured; messages go to the terminal or the journal")
        return
    there = file.exists()
    try:
        with file.open("a", encoding="utf-8"):
            pass
        if not there:
            file.unlink()
    except OSError as error:
        yield Check(
            "log file", "fail", f"{file} cannot be opened ({error.strerror})", "create its folder, or change it"
        )
        return
    yield Check("log file", "ok", f"{file} can be written")


class _Complaints(logging.Handler):
    """Keeps what is said of messages that could not be sent."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def check_alerts(urls: Sequence[str], *, send: bool) -> Findings:
    """Parse the addresses of alerts; with `send`, send a test message to each."""
    if not urls:
        yield Check(
            "alerts", "warn", "nobody is told when a run stalls at night", "set urls in [alerts]: docs/alerts.md"
        )
        return
    check_urls(urls)
    found = f"{len(urls)} address{'es' if len(urls) > 1 else ''} can be used"
    if not send:
        yield Check("alerts", "ok", f"{found} (doctor --notify sends a test message)")
        return
    logger, complaints = logging.getLogger("sesmo_live.alerts"), _Complaints()
    logger.addHandler(complaints)
    try:
        with Notifier(urls) as notifier:
            notifier.notify("test", "sesmo-live doctor", "this is a test; nothing is wrong")
    finally:
        logger.removeHandler(complaints)
    if complaints.said:
        yield Check("alerts", "fail", "; ".join(complaints.said), "correct urls in [alerts], or the network")
    else:
        yield Check("alerts", "ok", f"{found}; a test message was sent to each")
