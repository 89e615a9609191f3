"""One OME-TIFF for each frame, under a temporary name first, then all at once where the service takes it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import tifffile

from acquisition.layouts import image_name
from acquisition.micromanager.plan import Plan
from acquisition.micromanager.plates import Position
from acquisition.micromanager.stand import Reading
from sesmo_live.records import Pixels, Site


@dataclass(frozen=True, slots=True)
class Frame:
    """An image and all that is known of it; `timepoint` counts rounds from 1, `taken_at` is aware."""

    place: Position
    timepoint: int
    reading: Reading
    taken_at: datetime
    pixels: Pixels
    properties: Mapping[str, str]


def write_frame(plan: Plan, frame: Frame) -> Path:
    """Write a frame into the watched folder in the layout `sesmo` and return its path; raise OSError if it cannot.

    The file appears whole or not at all. A second frame of the same second has a name of its own.
    """
    path = frame_path(plan, frame.place, frame.timepoint, frame.taken_at)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        tifffile.imwrite(
            part,
            frame.pixels,
            ome=True,
            photometric="minisblack",
            compression="zstd" if plan.imaging.compression == "zstd" else None,
            metadata=_metadata(plan, frame),
        )
        os.replace(part, path)  # noqa: PTH105 — the one that replaces on every system
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def frame_path(plan: Plan, place: Position, timepoint: int, taken_at: datetime) -> Path:
    """Return where a frame goes; one that is there already is never replaced."""
    site = Site(plan.plate.name, place.well, place.field, timepoint, plan.imaging.channel, 0, plan.plate.run)
    while True:
        path = plan.folder / image_name("sesmo", site, taken_at)
        if not path.exists():
            return path
        taken_at += timedelta(seconds=1)


def frame_prefix(place: Position) -> str:
    """Return how the names of a field's frames begin, up to the time point."""
    return f"{place.well}_f{place.field}"


def _metadata(plan: Plan, frame: Frame) -> dict[str, Any]:
    """Return the OME metadata of a frame: what OME has a place for in its place, the rest as annotations."""
    imaging, reading, place = plan.imaging, frame.reading, frame.place
    plane: dict[str, Any] = {
        "DeltaT": 0.0,
        "DeltaTUnit": "s",
        "ExposureTime": imaging.exposure_ms,
        "ExposureTimeUnit": "ms",
        "PositionX": reading.x_um,
        "PositionXUnit": "µm",
        "PositionY": reading.y_um,
        "PositionYUnit": "µm",
    }
    if reading.z_um is not None:
        plane |= {"PositionZ": reading.z_um, "PositionZUnit": "µm"}
    notes = {
        "plate": plan.plate.name,
        "well": place.well,
        "field": place.field,
        "round": frame.timepoint,
        "intended_x_um": f"{place.x_um:.3f}",
        "intended_y_um": f"{place.y_um:.3f}",
        "autofocus": "run" if reading.focused else "not run",
        **frame.properties,
    }
    return {
        "axes": "YX",
        "Name": f"{plan.plate.name} {place.well} field {place.field} round {frame.timepoint}",
        "AcquisitionDate": frame.taken_at.isoformat(timespec="milliseconds"),
        "PhysicalSizeX": imaging.pixel_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": imaging.pixel_um,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": plan.imaging.channel},
        "Plane": plane,
        "MapAnnotation": {"Namespace": "sesmo-live", **{key: str(value) for key, value in notes.items()}},
    }
