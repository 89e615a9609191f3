"""A whole plate on the demo devices before virtual cells, then scored.

`python -m tests.microscope.whole FOLDER WELLS NETWORK EVERY_S`
WELLS is as in a plan. NETWORK is `network` for the demonstration model as it is, `stub` for its passport without the
network. Two fields a well, three rounds, 512 × 512; the picture of a place is rendered once, so that the second and
third round run as fast as stage, core and files do.
"""

import json
import statistics
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from acquisition.micromanager import virtual
from acquisition.micromanager.plan import Plan, plan_from
from acquisition.simulator import VirtualPlate, render_at
from sesmo_live import service
from sesmo_live.acquire import acquire
from sesmo_live.demo import simulate_plate
from sesmo_live.demo_microscope import settings_for
from tests.microscope.ome import ome
from tests.stub import lazy_stub

REFERENCE = {"A01": (0.0, 0.0), "A12": (99_000.0, 0.0), "H01": (0.0, 63_000.0)}


def whole_plan(folder: Path, wells: str, plate: VirtualPlate, every_s: float) -> Plan:
    """Return a plan of three rounds."""
    data: dict[str, Any] = {
        "folder": folder / "images",
        "database": str(folder / "sesmo.db"),
        "microscope": virtual.demo_connection().model_dump(),
        "plate": {"name": plate.name, "wells": 96, "reference": REFERENCE},
        "imaging": {
            **{"wells": [wells], "fields": 2, "frame_px": plate.shape, "pixel_um": plate.pixel_um},
            **{"exposure_ms": 5, "channel": plate.channel},
        },
        "focus": {"device": "Autofocus", "seconds": 0.01},
        "rounds": {"every_min": every_s / 60, "for_h": 2 * every_s / 3600},
    }
    return plan_from(data, "the test")


def remember_pictures() -> None:
    """Render each place once; a corner pixel tells the frames apart, as copies of one picture are not scored twice."""
    seen = dict[tuple[int, int], Any]()

    def look(plate: VirtualPlate, x: float, y: float, hours: float, *, z_um: float, frame: int) -> Any:
        key = round(x), round(y)
        if key not in seen:
            seen[key] = render_at(plate, x, y, hours, z_um=z_um)
        pixels = seen[key].copy()
        pixels[0, 0] = frame
        return pixels

    patch.object(virtual, "render_at", look).start()


def rate(paths: list[Path]) -> float:
    """Return frames per second from the times in the frames of one round."""
    times = []
    for path in paths:
        times.append(datetime.fromisoformat(ome(path)["Image"]["AcquisitionDate"]))
    times.sort()
    return (len(times) - 1) / (times[-1] - times[0]).total_seconds()


def main() -> None:
    """Acquire, score, and print what came of it."""
    folder, wells, network = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    every_s = float(sys.argv[4])
    plate = simulate_plate(wells=96, hours=(24.0,), fields=2, seed=1)
    plan = whole_plan(folder, wells, plate, every_s)
    remember_pictures()
    said: list[str] = []
    microscope = virtual.open_virtual(plate, lambda: 24.0)  # before the clock of the rounds begins
    done = acquire(plan, threading.Event(), said.append, lambda: microscope)
    if network == "stub":
        service.lazy_scorer = lazy_stub
    summary = service.score_folder(settings_for(plan))
    rates = [rate(list(one.written.values())) for one in done]
    result = {
        "written": [len(one.written) for one in done],
        "scored": summary.progress.scored,
        "refused": summary.progress.refused,
        "failed": summary.progress.failed,
        "cells": summary.progress.cells,
        "rates": [round(one, 2) for one in rates],
        "rate": round(statistics.median(rates[1:]), 2) if len(rates) > 1 else 0.0,
        "said": said,
        "bytes": int(np.sum([path.stat().st_size for path in plan.folder.rglob("*.tif")])),
    }
    print(json.dumps(result), flush=True)  # noqa: T201 — the result


if __name__ == "__main__":
    main()
