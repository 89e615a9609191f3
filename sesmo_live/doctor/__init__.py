"""Whether tonight's run can work: one finding a check, each with what was found and what to do."""

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from acquisition.tree import SeenFile
from sesmo_live.config import Settings
from sesmo_live.doctor import computer, plan
from sesmo_live.doctor.database import check_database, looking, newest_moments
from sesmo_live.doctor.findings import Check, Findings
from sesmo_live.doctor.folders import check_events, check_folder
from sesmo_live.errors import SesmoError

__all__ = ["Check", "examine"]

CHECK_LIMIT_S = 60.0
"""A check that has not ended by then is a finding itself: a share that is away holds every question up."""


def examine(settings: Settings, *, gpu: bool = False, notify: bool = False) -> list[Check]:
    """Return what is well and what is not for a run with these settings; nothing is changed, and nothing is raised.

    `gpu` asks TensorFlow for its devices, which takes some seconds; `notify` sends a test message.
    """
    scans: dict[Path, list[SeenFile]] = {}
    checks: list[tuple[str, Callable[[], Findings]]] = [
        ("program", computer.check_program),
        ("packages", computer.check_packages),
        ("memory", lambda: computer.check_memory(settings.scoring.readers)),
        ("gpu", lambda: computer.check_gpu(ask_tensorflow=gpu)),
        ("model", lambda: plan.check_models(settings)),
    ]
    for watch in settings.watch:
        checks.append((f"folder {watch.folder}", lambda watch=watch: check_folder(watch, settings.watching, scans)))  # type: ignore[misc]
    if not settings.watch:
        nothing = Check("folders", "warn", "no folder is watched", "give --watch FOLDER, or a [[watch]] block")
        checks.append(("folders", lambda: iter([nothing])))
    checks += [
        ("events", lambda: check_events(list(scans))),
        ("database", lambda: check_database(settings.database.url)),
        ("disk", lambda: plan.check_disks(settings, scans)),
        ("clock", lambda: _check_clock(settings, scans)),
        ("log file", lambda: plan.check_log(settings.logging.file)),
        ("alerts", lambda: plan.check_alerts(settings.alerts.urls, send=notify)),
    ]
    limits = {"gpu": computer.TENSORFLOW_LIMIT_S + CHECK_LIMIT_S}
    return [finding for name, check in checks for finding in _guarded(name, check, limits.get(name, CHECK_LIMIT_S))]


def _check_clock(settings: Settings, scans: dict[Path, list[SeenFile]]) -> Findings:
    newest = [
        (f"the newest file in {root}", datetime.fromtimestamp(max(file.mtime_ns for file in files) / 1e9, UTC))
        for root, files in scans.items()
        if files
    ]
    # What is wrong with the database is said by its own check.
    with suppress(SesmoError), looking(settings.database.url) as connection:
        newest += newest_moments(connection) if connection else []
    zones_given = all(watch.timezone for watch in settings.watch)
    yield from computer.check_clock(newest, zones_given=zones_given)


def _guarded(name: str, check: Callable[[], Findings], limit_s: float) -> list[Check]:
    """Return a check's findings; that it fails or hangs is a finding, too."""
    found: list[Check] = []

    def work() -> None:
        try:
            for finding in check():
                found.append(finding)
        except SesmoError as error:
            said, _, remedy = str(error).partition("; ")
            found.append(Check(name, "fail", said, remedy))
        except OSError as error:
            found.append(Check(name, "fail", str(error), "see that it is there, and that this user has the right"))
        except Exception as error:  # noqa: BLE001 — a doctor that stumbles must still tell of all the rest
            said = f"the check itself failed ({type(error).__name__}: {error})"
            found.append(Check(name, "fail", said, "please report this line"))

    worker = threading.Thread(target=work, name=f"doctor {name}", daemon=True)
    worker.start()
    worker.join(limit_s)
    if worker.is_alive():
        return [*found, Check(name, "fail", f"no answer within {limit_s:.0f} s", "is its share or disk away?")]
    return found
