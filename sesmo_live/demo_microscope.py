"""The demonstration with a microscope: a plan on Micro-Manager's demo devices, scored as the frames land."""

import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from acquisition.micromanager.plan import Plan, plan_from
from acquisition.micromanager.virtual import demo_connection, open_virtual
from acquisition.simulator import VirtualPlate, demo_plate, write_platemap, write_truth
from acquisition.simulator.plate import well_center_um
from db.care import upgrade
from db.engine import open_engine
from db.plates import import_treatments
from sesmo_live import service
from sesmo_live.acquire import acquire, lay_out
from sesmo_live.config import Settings, settings_from
from sesmo_live.demo import clear, keep_page, say_how_to_go_on, show_results
from sesmo_live.platemap import read_platemap
from sesmo_live.serving import page

ROUND_S = 40.0
"""Seconds between two rounds, in which the virtual cells grow older by a day."""

MODEL_S = 60.0
"""Seconds that loading the model may take before imaging begins all the same."""

FOCUS_EVERY = 6
"""Autofocus at each so many wells: the plate tilts, so that some fields are refused, refocused and imaged again."""


def run_microscope_demo(
    folder: Path,
    *,
    seed: int = 1,
    stop: threading.Event,
    web: Mapping[str, Any] | None = None,
    open_page: bool = False,
) -> service.Summary:
    """Drive demo devices over a virtual 24-well plate into `folder`/images, score it live, and show the result.

    Everything but the optics is real: the core, the stage, the read-back, the frames, the service, the closed loop. An
    earlier demonstration in the same folder is replaced. Raises UsageError where the demo devices are not installed.
    """
    connection = demo_connection().model_dump()
    plate = replace(demo_plate(seed), focus_loss=0.0)
    clear(folder)
    images, database = folder / "images", folder / "sesmo.db"
    images.mkdir(parents=True)
    truth = write_truth(plate, folder)
    upgrade(database)
    treatments = read_platemap(write_platemap(plate, folder / "platemap.csv")).treatments
    engine = open_engine(database, write=True)
    with engine.begin() as opened:
        import_treatments(opened, plate.name, treatments, None)
    engine.dispose()
    plan = demo_plan(plate, images, database, connection)
    laid = lay_out(plan)
    console = Console(stderr=True)
    console.print(
        f"Micro-Manager's demo devices image plate {plate.name}: {laid.round.frames} frames a round, {laid.rounds} "
        f"rounds {ROUND_S:.0f} s apart, in which the cells grow older by a day; times shown are the microscope's. The "
        "camera shows what lies under the stage."
    )
    settings = settings_for(plan, web)
    with page(settings, open_page=open_page) as start_page:
        start_page()
        summary = _drive_and_score(plan, plate, settings, stop)
        if summary.progress.scored:
            show_results(Console(width=None if sys.stdout.isatty() else 120), plate, database, truth)
        say_how_to_go_on(console, plate, database, summary)
        keep_page(console, settings, open_page=open_page, stop=stop)
    return summary


def demo_plan(plate: VirtualPlate, images: Path, database: Path, connection: dict[str, Any]) -> Plan:
    """Return the plan of the demonstration: all wells of `plate` as often as it has hours."""
    corners = {well: well_center_um(plate, well) for well in ("A01", "A06", "D01")}
    return plan_from(
        {
            "folder": images,
            "database": str(database),
            "microscope": connection,
            "plate": {"name": plate.name, "wells": plate.wells, "reference": corners},
            "imaging": {
                "fields": plate.fields,
                "frame_px": plate.shape,
                "pixel_um": plate.pixel_um,
                "exposure_ms": 10,
                "channel": plate.channel,
            },
            "focus": {"device": "Autofocus", "every": FOCUS_EVERY, "seconds": 0.1, "safe_z_um": 0.0},
            "rounds": {"every_min": ROUND_S / 60, "for_h": (len(plate.hours) - 1) * ROUND_S / 3600},
            "loop": {"refocus": True, "wait_s": 30},
        },
        "the demo",
    )


def settings_for(plan: Plan, web: Mapping[str, Any] | None = None) -> Settings:
    """Return the service's settings for the folder that a plan writes to: its files appear whole, and are named."""
    watch = {
        **{"folder": plan.folder, "plate": plan.plate.name, "layout": "sesmo", "plate_wells": plan.plate.wells},
        **{"arrival": "rename", "timezone": "UTC"},
    }
    data: dict[str, Any] = {"database": {"url": plan.database}, "watching": {"scan_interval_s": 1.0}, "watch": [watch]}
    return settings_from(data | {"web": dict(web or {"enabled": False})}, "the demo")


def _drive_and_score(plan: Plan, plate: VirtualPlate, settings: Settings, stop: threading.Event) -> service.Summary:
    """Let the microscope run on a thread of its own, and the service until its last frame is judged."""
    failed: list[Exception] = []
    ready, imaged, ending = threading.Event(), threading.Event(), threading.Event()
    began: list[float] = []

    def hours() -> float:
        """Return how old the cells are: a day older with each round."""
        return plate.hours[min(int((time.monotonic() - began[0]) / ROUND_S), len(plate.hours) - 1)]

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    def drive() -> None:
        ready.wait(MODEL_S)  # so that the first round does not wait for the model to load
        began.append(time.monotonic())
        try:
            acquire(plan, stop, say, lambda: open_virtual(plate, hours))
        except Exception as error:  # noqa: BLE001 — a worker's top: handed to the caller, which raises it
            failed.append(error)
        imaged.set()

    def report(now: "service.Progress") -> None:
        ready.set()
        if stop.is_set() or (imaged.is_set() and now.pending == 0 and (now.images >= _frames(plan) or failed)):
            ending.set()

    def watch_stop() -> None:
        stop.wait()
        ending.set()

    for target in (drive, watch_stop):
        threading.Thread(target=target, name=target.__name__, daemon=True).start()
    summary = service.run(settings, ending, report)
    if failed:
        raise failed[0]
    imaged.wait(5)  # the microscope parks
    return summary


def _frames(plan: Plan) -> int:
    return sum(1 for _ in plan.folder.rglob("*.tif"))
