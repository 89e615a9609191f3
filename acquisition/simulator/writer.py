"""Write virtual plates to disk the way instruments do, and the planted truth beside them."""

import csv
import io
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
import tifffile

from acquisition.layouts import image_name
from acquisition.simulator.plate import VirtualPlate, acquired_at, platemap_rows, stage_position_um
from acquisition.simulator.rendering import render_field, visible_cells, well_truth
from sesmo_live.errors import UsageError
from sesmo_live.records import Pixels, Site

NameOf = Callable[[Site, datetime], PurePosixPath]
"""Gives the path of the image of a site, relative to the watched folder."""

SLOW_PIECES = 6
"""Pieces in which a slow writer writes a file."""

SLOW_PAUSE_S = 0.02
"""Pause of a slow writer after each piece."""


class Stop(Protocol):
    """Anything that can be asked whether to stop, such as a threading.Event."""

    def is_set(self) -> bool:
        """Say whether to stop."""


def write_plate(
    plate: VirtualPlate,
    folder: Path,
    layout: str,
    *,
    interval_s: float = 0.0,
    slow_bytes: bool = False,
    stop: Stop | None = None,
    name_of: NameOf | None = None,
) -> Iterator[Path]:
    """Render and write every image of `plate` below `folder`, yielding each path once the file is complete.

    Images come in the order of acquisition, one every `interval_s` seconds at most. A file appears at once under its
    name, or with `slow_bytes` grows there in pieces, as the files of many instruments do. `name_of` replaces the names
    of `layout`. Ends after the current image once `stop` is set.
    """
    named = name_of or layout_names(layout)
    # The next image is rendered while this one is written, as a camera exposes while the disk still works.
    with ThreadPoolExecutor(1, "virtual camera") as camera:
        ahead: Future[bytes] | None = None
        sites = plate.sites
        for site, following in zip(sites, [*sites[1:], None], strict=True):
            if stop is not None and stop.is_set():
                return
            began = time.monotonic()
            path = folder / named(site, acquired_at(plate, site))
            path.parent.mkdir(parents=True, exist_ok=True)
            data = ahead.result() if ahead else _exposed(plate, site)
            ahead = camera.submit(_exposed, plate, following) if following else None
            (_write_slowly if slow_bytes else _write_at_once)(path, data)
            yield path
            time.sleep(max(0.0, began + interval_s - time.monotonic()))


def _exposed(plate: VirtualPlate, site: Site) -> bytes:
    """Return the TIFF of one image."""
    return tiff_bytes(render_field(plate, site.well, site.field, site.timepoint), plate, site)


def layout_names(layout: str) -> NameOf:
    """Return the file names of the preset `layout`, which raise UsageError for what the preset cannot carry.

    Where a layout numbers its channels the only one is `1`, and where it has no place for the plate it goes unnamed.
    """

    def name(site: Site, moment: datetime) -> PurePosixPath:
        refusals = []
        for form in (site, replace(site, channel="1"), replace(site, channel="1", plate="")):
            try:
                return image_name(layout, form, moment)
            except UsageError as refusal:
                refusals.append(refusal)
        raise refusals[0]

    return name


def tiff_bytes(pixels: Pixels, plate: VirtualPlate, site: Site) -> bytes:
    """Return an OME-TIFF with pixel size, stage position, time of acquisition with zone; the same bytes every time."""
    x, y = stage_position_um(plate, site.well, site.field)
    metadata = {
        "axes": "YX",
        "UUID": uuid.uuid5(uuid.NAMESPACE_OID, f"{plate.seed} {site}").urn,
        "Name": f"{site.plate} {site.well} field {site.field} time {site.timepoint}",
        "AcquisitionDate": acquired_at(plate, site).isoformat(),
        "PhysicalSizeX": plate.pixel_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": plate.pixel_um,
        "PhysicalSizeYUnit": "µm",
        "SignificantBits": plate.camera.bits,
        "Channel": {"Name": site.channel},
        "Plane": {
            "DeltaT": 0.0,
            "DeltaTUnit": "s",
            "PositionX": x,
            "PositionXUnit": "µm",
            "PositionY": y,
            "PositionYUnit": "µm",
        },
    }
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, ome=True, photometric="minisblack", metadata=metadata)
    return buffer.getvalue()


def _write_at_once(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)


def _write_slowly(path: Path, data: bytes) -> None:
    """Write `data` in pieces under the final name, so that a reader may find half a file."""
    step = -(-len(data) // SLOW_PIECES)
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(data), step):
            file.write(data[start : start + step])
            time.sleep(SLOW_PAUSE_S)


def write_truth(plate: VirtualPlate, folder: Path, *, cells: bool = False) -> Path:
    """Write what was planted to `folder`/truth.csv, one row a well and time point, and return its path.

    Columns are those of `WellTruth`. With `cells`, cells.csv lists every visible cell: well, field, timepoint, cell,
    x and y in px, level. Neither is an image, but keep `folder` outside the watched one all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    moments = [(t.well, k) for k in range(1, len(plate.hours) + 1) for t in plate.treatments]
    _write_csv(folder / "truth.csv", (asdict(well_truth(plate, well, k)) for well, k in moments))
    if cells:
        _write_csv(folder / "cells.csv", _cell_rows(plate))
    return folder / "truth.csv"


def _cell_rows(plate: VirtualPlate) -> Iterator[dict[str, object]]:
    for site in plate.sites:
        found, centres = visible_cells(plate, site.well, site.field, site.timepoint)
        for ident, (x, y), level in zip(found.ident, np.round(centres, 2), found.level, strict=True):
            place = {"well": site.well, "field": site.field, "timepoint": site.timepoint}
            yield {**place, "cell": int(ident), "x": x, "y": y, "level": round(float(level), 4)}


def write_platemap(plate: VirtualPlate, path: Path) -> Path:
    """Write the plate map of `plate` as CSV (well, compound, dose, unit, role) and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_csv(path, platemap_rows(plate))
    return path


def _write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    kept = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(kept[0]) if kept else [])
        writer.writeheader()
        writer.writerows(kept)
