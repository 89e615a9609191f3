"""One frame before the night: imaged as the plan says, its cells cropped and scored, nothing put on record."""

import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from acquisition.micromanager.microscope import connect, held
from acquisition.micromanager.plan import Plan
from acquisition.micromanager.plates import Position
from acquisition.micromanager.runner import PARK_S
from acquisition.micromanager.stand import DeviceError, Stand
from acquisition.micromanager.sweep import Sweep
from acquisition.tiff import read_pixels
from models.montage import draw_montage, order_by_score
from models.passport import read_passport
from models.prepare import judge_field, prepare_field
from models.scorer import Scorer
from sesmo_live.acquire import lay_out
from sesmo_live.errors import UsageError
from sesmo_live.records import FieldImage, ImageFile, Pixels, Site
from sesmo_live.wells import parse_well

MOST_CELLS = 50
"""Cells that are shown."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a preview found; `figure` is None where there are no cells."""

    well: str
    scores: NDArray[np.float32]
    unfit: list[str]
    figure: Figure | None


def preview(plan: Plan, well: str, model: Path, stop: threading.Event) -> Seen:
    """Image the first field of `well` and score it; raise DeviceError with what the microscope says when it cannot."""
    place = next((place for place in lay_out(plan).places if place.well == parse_well(well)), None)
    if place is None:
        raise UsageError(f"the plan does not image well {parse_well(well)}; it images {', '.join(plan.wells[:12])} …")
    passport = read_passport(model)
    with tempfile.TemporaryDirectory() as folder:
        pixels = _snap(plan.model_copy(update={"folder": Path(folder)}), place, stop)
    site = Site(plan.plate.name, place.well, 1, 1)
    field = FieldImage(ImageFile(Path(well), 0, site, 0, 0, pixel_um=plan.imaging.pixel_um), pixels)
    cells = prepare_field(field, passport)
    unfit = judge_field(field, cells, passport)[1]
    if not len(cells.pixels):
        return Seen(place.well, np.empty(0, np.float32), unfit, None)
    scores = Scorer(model).score(cells.pixels)
    chosen = order_by_score(scores, MOST_CELLS)
    title = f"{plan.plate.name} {place.well}: {len(scores)} cells, mean P(senescent) {scores.mean():.2f}"
    title += f"\nby model {passport.model_id}" + (" (demonstration weights)" if passport.demonstration else "")
    return Seen(place.well, scores, unfit, draw_montage(cells.pixels[chosen], scores[chosen], title=title))


def _snap(plan: Plan, place: Position, stop: threading.Event) -> Pixels:
    """Image one field into the plan's folder and return its pixels."""
    with held(plan.microscope):
        microscope = connect(plan.microscope)
        try:
            stand = Stand(microscope.core, plan, stop)
            microscope.watch(stand.prepare, stand.pulse, stop, plan.microscope.timeout_s)
            sweep = Sweep(stand, plan, 1, [place], {place.well} if plan.focus.device else set())
            try:
                sweep.take(microscope, stop)
            finally:
                microscope.watch(stand.park, stand.pulse, threading.Event(), PARK_S)
        finally:
            microscope.close()
    if place not in sweep.written:
        raise DeviceError(f"no preview of {place.well}: {sweep.failed.get(place, 'stopped')}")
    return read_pixels(sweep.written[place], 0)
