"""PerkinElmer (Revvity) Opera Phenix, Operetta, Sonata: Harmony names, with `Index.idx.xml` or `Index.xml` beside them.

Harmony writes the index last: a name says all that places the image, the index adds time, pixel size and channel.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from acquisition.layouts.named import FileName, Named, Preset, plain
from acquisition.layouts.sidecars import Stamp, find, moment, pair, positive, read_records
from sesmo_live.records import Site
from sesmo_live.wells import parse_well, well_name, well_position

_NAME = re.compile(
    r"r(?P<row>\d+)c(?P<column>\d+)f(?P<field>\d+)p(?P<z>\d+)-ch(?P<channel>\d+)"
    r"(?:sk(?P<slow>\d+)fk(?P<fast>\d+)fl(?P<flim>\d+)|t(?P<time>\d+))"
)
_MEASUREMENT = re.compile(r"(?P<plate>.+)__(?P<run>\d{4}-\d\d-\d\dT.+)")
_IMAGES = "Images"
"""The folder below a measurement's own in which Harmony puts the images."""


_KEPT = (
    *("PlateID", "Name", "MeasurementStartTime", "URL", "ChannelID", "ChannelName"),
    *("AbsTime", "ImageResolutionX", "PositionX", "PositionY"),
)


@dataclass(frozen=True, slots=True)
class _Image:
    channel_name: str
    acquired_at: datetime | None
    pixel_um: float | None
    stage_um: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class _Index:
    plate: str
    run: str
    images: Mapping[str, _Image]


def _measurement(folders: tuple[str, ...]) -> tuple[str, str]:
    """Return (plate, run) of `<plate>__<time>-Measurement <n>/Images`, or of a plain `<plate>/Images`."""
    if match := next(filter(None, map(_MEASUREMENT.fullmatch, reversed(folders))), None):
        return match["plate"], match["run"]
    return (folders[-2] if len(folders) > 1 and folders[-1] == _IMAGES else ""), ""


def _parse(name: FileName) -> Named | None:
    match = _NAME.fullmatch(name.stem)
    if match is None:
        return None
    plate, run = _measurement(name.folders)
    skip = ""
    if int(match["fast"] or 1) > 1 or int(match["flim"] or 1) > 1:
        skip = "later frame of a fast or lifetime series, of which only the first is scored"
    return Named(
        parse_well(well_name(int(match["row"]), int(match["column"]))),
        field=int(match["field"]),
        timepoint=int(match["slow"] or match["time"]),
        channel=plain(match["channel"]),
        z=int(match["z"]),
        plate=plate,
        run=run,
        skip=skip,
    )


@lru_cache(maxsize=8)
def _read_index(path: Path, _stamp: Stamp) -> _Index:
    records = read_records(path, ("Plate", "Entry", "Image"), _KEPT)
    plate = next((record.children for record in records if record.tag == "Plate"), {})
    # from Harmony V6 on, what is the same for all images of a channel stands once, in the channel's map entry
    channels = {
        record.attributes["ChannelID"]: record.children
        for record in records
        if record.tag == "Entry" and "ChannelName" in record.children and "ChannelID" in record.attributes
    }
    images = {}
    for record in records:
        if url := record.children.get("URL", ""):
            values = {**channels.get(record.children.get("ChannelID", ""), {}), **record.children}
            images[url.rpartition("/")[2]] = _Image(
                values.get("ChannelName", ""),
                moment(values.get("AbsTime")),
                positive(values.get("ImageResolutionX"), 1e6),
                pair(values.get("PositionX"), values.get("PositionY"), 1e6),
            )
    name = plate.get("Name") or plate.get("PlateID", "")
    return _Index(name, plate.get("MeasurementStartTime", ""), images)


def _details(root: Path, path: Path, named: Named) -> Named:
    found = find(root, path.parent, ("Index.idx.xml", "Index.xml"), levels=1)
    if found is None:
        return named
    index = _read_index(*found)
    if not named.plate:
        named = replace(named, plate=index.plate, run=index.run)
    image = index.images.get(path.name)
    if image is None:
        return named
    return replace(
        named,
        channel_name=image.channel_name,
        acquired_at=image.acquired_at,
        pixel_um=image.pixel_um,
        stage_um=image.stage_um,
    )


def _write(site: Site, _acquired_at: datetime | None) -> str:
    row, column = well_position(site.well)
    folder = f"{site.plate}__{site.run}" if site.run else site.plate
    image = f"r{row:02d}c{column:02d}f{site.field:02d}p{site.z:02d}-ch{site.channel}sk{site.timepoint}fk1fl1.tiff"
    return f"{folder}/{_IMAGES}/{image}"


PRESETS = (Preset("phenix", _parse, _write, _details),)
"""The layout `phenix`."""
