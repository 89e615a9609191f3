"""When rounds are due, and what is remembered of them: a killed acquisition goes on with the next one."""

import contextlib
import json
import math
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from acquisition.micromanager.plan import Plan
from acquisition.micromanager.plates import Calibration
from sesmo_live.errors import ConfigError, UsageError

STATE, CALIBRATION = "acquisition.json", "calibration.json"
"""Files beside the plate's images: what was done of the plan, and where the plate lay."""


@dataclass(frozen=True, slots=True)
class Due:
    """A round: its number (from 1, the time point of its images), when it begins, and whether all wells are imaged."""

    number: int
    at: datetime
    whole: bool


def schedule(plan: Plan, start: datetime) -> list[Due]:
    """Return all rounds of a plan that begins at `start`.

    Where wells that move are imaged more often, the rounds between the whole ones are theirs, and have numbers too.
    """
    divide = plan.loop.divide if plan.loop.moved_by is not None else 1
    step = timedelta(minutes=plan.rounds.every_min / divide)
    last = math.floor(plan.rounds.for_h * 60 / plan.rounds.every_min + 1e-9) * divide
    return [Due(number + 1, start + number * step, number % divide == 0) for number in range(last + 1)]


def choose(rounds: list[Due], done: set[int], now: datetime) -> tuple[Due | None, list[Due]]:
    """Return the round to take next, None when all are over, and those that are missed for good.

    Of rounds that are overdue the latest is taken, late; the ones before it would only push all others back.
    """
    open_rounds = [due for due in rounds if due.number not in done]
    overdue = [due for due in open_rounds if due.at <= now]
    if overdue and now < overdue[-1].at + _patience(rounds):
        return overdue[-1], overdue[:-1]
    ahead = next((due for due in open_rounds if due.at > now), None)
    return ahead, overdue


def _patience(rounds: list[Due]) -> timedelta:
    """Return how late a round may begin: until the next would, or an hour where there is but one."""
    return rounds[1].at - rounds[0].at if len(rounds) > 1 else timedelta(hours=1)


def plate_folder(plan: Plan) -> Path:
    """Return the folder of the plate's images, as the layout `sesmo` names it."""
    return plan.folder / (f"{plan.plate.name}__{plan.plate.run}" if plan.plate.run else plan.plate.name)


class State:
    """What was done of a plan, in a file beside its images."""

    def __init__(self, plan: Plan, now: datetime) -> None:
        self._path = plate_folder(plan) / STATE
        self._rounds = {"every_min": plan.rounds.every_min, "divide": plan.loop.divide if plan.loop.moved_by else 1}
        kept = self._read()
        if kept and kept["rounds"] != self._rounds:
            raise UsageError(
                f"plate {plan.plate.name} was begun with rounds every {kept['rounds']['every_min']:g} min; keep that, "
                "or give the plate another run in plate.run"
            )
        self.start = datetime.fromisoformat(kept["start"]) if kept else (plan.start or now)
        if plan.start is not None and kept and plan.start != self.start:
            raise UsageError(
                f"plate {plan.plate.name} was begun at {self.start.isoformat(timespec='seconds')}; keep rounds.start, "
                "or give the plate another run in plate.run"
            )
        self.done: set[int] = set(kept["done"]) if kept else set()
        self._write()

    def finish(self, number: int) -> None:
        """Remember that a round is over; on a full disk in memory alone, as its files tell a restart the same."""
        self.done.add(number)
        with contextlib.suppress(OSError):
            self._write()

    def _read(self) -> dict[str, Any]:
        if not self._path.is_file():
            return {}
        try:
            kept: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            datetime.fromisoformat(kept["start"]), set(kept["done"]), kept["rounds"]["every_min"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self._path} cannot be read ({error!r}); delete it to begin the plan anew, or set plate.run"
            ) from error
        return kept

    def _write(self) -> None:
        kept = {
            "start": self.start.astimezone(UTC).isoformat(),
            "done": sorted(self.done),
            "rounds": self._rounds,
        }
        write_json(self._path, kept)


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)  # noqa: PTH105 — the one that replaces on every system
    except OSError:
        part.unlink(missing_ok=True)
        raise


def reference_wells(plan: Plan) -> dict[str, tuple[float, float]]:
    """Return the reference wells: the plan's, else those stored with the plate."""
    if plan.plate.reference:
        return dict(plan.plate.reference)
    path = plate_folder(plan) / CALIBRATION
    if not path.is_file():
        return {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["reference"]
        return {well: (float(x), float(y)) for well, (x, y) in kept.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({error!r}); measure the three reference wells again") from error


def store_calibration(plan: Plan, reference: dict[str, tuple[float, float]], found: Calibration | None) -> Path:
    """Keep the reference wells, and what follows from them, beside the plate's images; return the file."""
    content: dict[str, Any] = {"reference": {well: list(xy) for well, xy in reference.items()}}
    if found is not None:
        content |= {"rotation_deg": found.rotation_deg, "mirrored": found.mirrored, "a1_um": list(found.a1_um)}
    path = plate_folder(plan) / CALIBRATION
    write_json(path, content)
    return path
