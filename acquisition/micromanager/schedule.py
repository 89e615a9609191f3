"""When rounds are due, and what is remembered of them: a killed acquisition goes on with the next one."""

import contextlib
import json
import math
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from acquisition.micromanager.plan import Plan
from acquisition.micromanager.plates import Calibration
from acquisition.micromanager.stand import Heights
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

    Of rounds that are overdue the latest whole one is taken, late; the ones before it would only push all others back.
    """
    overdue = [due for due in rounds if due.at <= now and due.number not in done]
    late = [due for due in overdue if now < due.at + _patience(rounds, whole=due.whole)]
    taken = next((due for due in reversed(late) if due.whole), late[-1] if late else None)
    ahead = next((due for due in rounds if due.at > now and due.number not in done), None)
    return taken or ahead, [due for due in overdue if due is not taken]


def _patience(rounds: list[Due], *, whole: bool) -> timedelta:
    """Return how late a round may begin: until the next of its kind would, or an hour where there is but one."""
    times = [due.at for due in rounds if due.whole or not whole][:2]
    return times[1] - times[0] if len(times) > 1 else timedelta(hours=1)


def plate_folder(plan: Plan) -> Path:
    """Return the folder of the plate's images, as the layout `sesmo` names it."""
    return plan.folder / (f"{plan.plate.name}__{plan.plate.run}" if plan.plate.run else plan.plate.name)


class State:
    """What was done of a plan, and the focus that it left, in a file beside its images."""

    def __init__(self, plan: Plan, now: datetime) -> None:
        self._path = plate_folder(plan) / STATE
        self._rounds = {"every_min": plan.rounds.every_min, "divide": plan.loop.divide if plan.loop.moved_by else 1}
        kept = self._read()
        if kept and kept["rounds"] != self._rounds:
            begun = kept["rounds"]
            raise UsageError(
                f"plate {plan.plate.name} was begun with rounds every {begun['every_min']:g} min and moving wells "
                f"{begun['divide']} times in one; keep that, or give the plate another run in plate.run"
            )
        self.new = not kept
        self.start = datetime.fromisoformat(kept["start"]) if kept else (plan.start or now)
        if plan.start is not None and plan.start != self.start:
            raise UsageError(
                f"plate {plan.plate.name} was begun at {self.start.isoformat(timespec='seconds')}; keep rounds.start, "
                "or give the plate another run in plate.run"
            )
        if self.new and choose(schedule(plan, self.start), set(), now)[0] is None:
            raise UsageError(
                f"all rounds of the plan were over at {self.start.isoformat(timespec='minutes')} already; correct "
                "rounds.start, or leave it out to begin at once"
            )
        self.done: set[int] = set(kept["done"]) if kept else set()
        self.heights = Heights(**kept.get("focus", {}))

    def finish(self, *numbers: int) -> None:
        """Remember that rounds are over; on a full disk in memory alone, as their files tell a restart the same."""
        self.done.update(numbers)
        with contextlib.suppress(OSError):
            self.write()

    def _read(self) -> dict[str, Any]:
        if not self._path.is_file():
            return {}
        try:
            kept: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            datetime.fromisoformat(kept["start"]), set(kept["done"]), kept["rounds"]["every_min"]
            Heights(**kept.get("focus", {}))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self._path} cannot be read ({error!r}); delete it to begin the plan anew, or set plate.run"
            ) from error
        return kept

    def write(self) -> None:
        """Write the file; raise OSError if it cannot be."""
        kept = {
            "start": self.start.astimezone(UTC).isoformat(),
            "done": sorted(self.done),
            "rounds": self._rounds,
            "focus": asdict(self.heights),
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
