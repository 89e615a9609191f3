"""A plan of small frames run by itself, to be stopped or killed.

`python -m tests.microscope.ending FOLDER EVERY_S ROUNDS [POINT ...]`

With points it is told to stop by itself at each of them, one after the other, and prints how many seconds that took.
"""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from acquisition.micromanager.microscope import Headless
from acquisition.micromanager.watch import hangs
from sesmo_live.acquire import acquire
from tests.microscope.nights import camera_hangs, open_core, plan


def slow_stage(core: Any) -> None:
    """Let the stage creep, so that a move takes minutes."""
    core.set_property("XY", "Velocity", 0.1)


def run(folder: Path, every_s: float, rounds: int, point: str = "") -> None:
    """Acquire; print each line that is reported, and how long an end at `point` took."""
    stop, stopped = threading.Event(), [0.0]

    def pull() -> None:
        stopped[0] = time.monotonic()
        stop.set()

    def report(text: str) -> None:
        print(text, flush=True)  # noqa: T201 — the result
        if point == "waiting" and text.startswith("round 2 begins"):
            threading.Timer(0.5, pull).start()

    def opened() -> Headless:
        if point == "opening":
            threading.Timer(0.3, pull).start()
            time.sleep(600)  # as devices that are being looked for and do not answer
        microscope = open_core({"travelling": slow_stage, "hanging": camera_hangs}.get(point))
        if point in ("travelling", "hanging"):
            threading.Timer(1.0, pull).start()
        return microscope

    every = {"every_min": every_s / 60, "for_h": (rounds - 1) * every_s / 3600}
    acquire(plan(folder, rounds=every, imaging={"wells": ["B02:B04"]}), stop, report, opened)
    if point:
        print(f"{point} stopped in {time.monotonic() - stopped[0]:.3f} s", flush=True)  # noqa: T201


def main() -> None:
    """Acquire once, or once for each point at which it is to be told to stop."""
    folder, every_s, rounds, points = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    for point in points:
        run(folder / point, every_s, rounds, point)
    if not points:
        run(folder, every_s, rounds)
    if hangs():
        os._exit(0)


if __name__ == "__main__":
    main()
