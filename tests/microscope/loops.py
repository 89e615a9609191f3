"""The closed loop, all of it: imaging, scoring and imaging again at once: `python -m tests.microscope.loops FOLDER`.

The plate tilts, and the autofocus runs at the first well alone: the farthest one is refused, refocused and imaged once
more. One well's picture changes from round to round, so that its score moves: it is imaged between the rounds too.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from acquisition.micromanager import virtual
from acquisition.micromanager.runner import Done
from acquisition.simulator import render_at
from sesmo_live import service
from sesmo_live.acquire import acquire
from sesmo_live.demo import simulate_plate
from sesmo_live.demo_microscope import settings_for
from tests.microscope.whole import whole_plan
from tests.stub import lazy_stub

EVERY_S = 14.0
MOVES = "B12"


def moving(began: float) -> Callable[..., Any]:
    """Return a renderer whose last column grows brighter in the middle tones with time, and so in its crops."""

    def look(plate: Any, x: float, y: float, hours: float, **where: Any) -> Any:
        pixels = render_at(plate, x, y, hours, **where)
        rounds = int((time.monotonic() - began) / EVERY_S)
        if x < 90_000:
            return pixels
        low, high = float(pixels.min()), float(pixels.max())
        return (low + (high - low) * ((pixels - low) / (high - low)) ** (0.9**rounds)).astype(pixels.dtype)

    return look


def main() -> None:
    """Acquire three rounds and score them live; print what was imaged."""
    folder, plate = Path(sys.argv[1]), simulate_plate(wells=96, hours=(24.0,), fields=2, seed=1)
    plan = whole_plan(folder, "B02", plate, EVERY_S)
    changes = {
        "imaging": plan.imaging.model_copy(update={"wells": ["B02", "B06", MOVES], "fields": 1}),
        "focus": plan.focus.model_copy(update={"every": 99}),
        "loop": plan.loop.model_copy(update={"refocus": True, "wait_s": 10.0, "moved_by": 0.008, "divide": 2}),
    }
    plan = plan.model_copy(update=changes)
    plan.folder.mkdir(parents=True)
    service.lazy_scorer = lazy_stub
    stop, done, said = threading.Event(), list[Done](), list[str]()
    scoring = threading.Thread(target=lambda: service.run(settings_for(plan), stop))
    scoring.start()
    while not Path(plan.database).exists():
        time.sleep(0.1)
    time.sleep(1.0)
    microscope = virtual.open_virtual(plate, lambda: 24.0)  # before the clock of the rounds begins
    patch.object(virtual, "render_at", moving(time.monotonic())).start()
    try:
        done = acquire(plan, threading.Event(), said.append, lambda: microscope)
    finally:
        time.sleep(2.0)
        stop.set()
        scoring.join()
    rounds = [[one.due.number, sorted(place.well for place in one.written), one.again] for one in done]
    print(json.dumps({"rounds": rounds, "said": said}), flush=True)  # noqa: T201 — the result


if __name__ == "__main__":
    main()
