"""Yokogawa CellVoyager CV7000/CV8000, CQ1/CQ3K and CellPathfinder, with the `.mlf`, `.mrf`, `.mes` and `.wpi` files.

CV: `<plate>_D08_T0001F002L01A02Z03C04.tif`, T time point, F field, L timeline, A action, Z plane, C channel.
CQ: `Image/W0029F0001T0001Z000C1.tif`, W counting wells row by row: which well that is, only the `.mlf` says.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath

from acquisition.layouts.named import WELL, FileName, Named, Preset, plain
from acquisition.layouts.sidecars import Record, Stamp, find, moment, pair, positive, read_records
from sesmo_live.errors import UsageError
from sesmo_live.records import Site
from sesmo_live.wells import parse_well, well_name

_CV = re.compile(
    rf"(?:(?P<plate>.+)_)?(?P<well>{WELL})_T(?P<timepoint>\d+)F(?P<field>\d+)L\d+A\d+Z(?P<z>\d+)C(?P<channel>\d+)"
)
_CQ = re.compile(r"(?P<position>W\d+)F(?P<field>\d+)T(?P<timepoint>\d+)Z(?P<z>\d+)C(?P<channel>\d+)")
_PATHFINDER = re.compile(
    r"(?P<row>[A-Z]{1,2})-(?P<column>\d{1,2})_F(?P<field>\d+)_T(?P<timepoint>\d+)_Z(?P<z>\d+)(?:_C(?P<channel>\d+))?"
)
_CORRECTION = {
    re.compile(r"DC_.*CAM\d*"): "dark-current correction, not an image of a plate",
    re.compile(r"SC_.+_M\d+_CH\d+"): "shading correction, not an image of a plate",
}
_CV_RUN = re.compile(r".+_(?P<run>\d{8}_\d{6})")
_CQ_RUN = re.compile(r"(?P<run>\d{8}T\d{6})_(?P<plate>.+)")
_NO_PLATE = "NoPlateID"
"""What the CQ series calls a plate whose name nobody entered."""


@dataclass(frozen=True, slots=True)
class _Image:
    well: str | None
    acquired_at: datetime | None
    stage_um: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class _Detail:
    plate: str
    settings: str
    pixels_um: Mapping[str, float | None]


def _run(folders: tuple[str, ...], form: re.Pattern[str]) -> dict[str, str]:
    match = next(filter(None, map(form.fullmatch, reversed(folders))), None)
    return match.groupdict() if match else {}


def _parse(name: FileName) -> Named | None:
    for form, reason in _CORRECTION.items():
        if form.fullmatch(name.stem):
            return Named(None, skip=reason)
    match = _CV.fullmatch(name.stem) or _CQ.fullmatch(name.stem) or _PATHFINDER.fullmatch(name.stem)
    if match is None:
        return None
    parts = match.groupdict()
    if match.re is _PATHFINDER:
        parts["well"] = parts["row"] + parts["column"]
    folder = _run(name.folders, _CQ_RUN if match.re is _CQ else _CV_RUN)
    return Named(
        parse_well(parts["well"]) if "well" in parts else None,
        field=int(parts["field"]),
        timepoint=int(parts["timepoint"]),
        channel=plain(parts["channel"]) if parts["channel"] else "",
        z=int(parts["z"]),
        plate=parts.get("plate") or folder.get("plate", ""),
        run=folder.get("run", ""),
        position=parts.get("position", ""),
    )


def _image(record: Record) -> _Image:
    values = record.attributes
    try:
        well = parse_well(well_name(int(values.get("Row", "")), int(values.get("Column", ""))))
    except (ValueError, UsageError):  # a record without a well: its image is known by its name alone
        well = None
    return _Image(well, moment(values.get("Time")), pair(values.get("X"), values.get("Y")))


@lru_cache(maxsize=8)
def _read_images(path: Path, _stamp: Stamp) -> dict[str, Record]:
    records = read_records(path, ("MeasurementRecord",), ("Type", "Time", "Row", "Column", "X", "Y"))
    return {record.text.replace("\\", "/"): record for record in records if record.attributes.get("Type") == "IMG"}


@lru_cache(maxsize=32)
def _read_detail(path: Path, _stamp: Stamp) -> _Detail:
    records = read_records(
        path,
        ("MeasurementDetail", "MeasurementSamplePlate", "MeasurementChannel"),
        ("MeasurementSettingFileName", "Name", "Ch", "HorizontalPixelDimension"),
    )
    values = {record.tag: record.attributes for record in records}
    pixels = {
        record.attributes.get("Ch", ""): positive(record.attributes.get("HorizontalPixelDimension"))
        for record in records
        if record.tag == "MeasurementChannel"
    }
    plate = values.get("MeasurementSamplePlate", {}).get("Name", "")
    settings = values.get("MeasurementDetail", {}).get("MeasurementSettingFileName", "")
    return _Detail("" if plate == _NO_PLATE else plate, PurePosixPath(settings.replace("\\", "/")).name, pixels)


@lru_cache(maxsize=32)
def _read_channels(path: Path, _stamp: Stamp) -> dict[str, str]:
    names = {}
    for record in read_records(path, ("Channel",), ("Ch", "Target", "Fluorophore", "Kind", "Method")):
        values = record.attributes
        kind = values.get("Kind", "") or values.get("Method", "")
        stained = not kind or "fluorescence" in kind.lower()
        names[values.get("Ch", "")] = (values.get("Fluorophore") or values.get("Target", "")) if stained else kind
    return names


def _details(root: Path, path: Path, named: Named) -> Named:
    if named.skip:
        return named
    images = find(root, path.parent, ("MeasurementData.mlf",), levels=1)
    if images:
        record = _read_images(*images).get(path.relative_to(images[0].parent).as_posix())
        if record:
            image = _image(record)
            well = named.well or image.well
            named = replace(named, well=well, acquired_at=image.acquired_at, stage_um=image.stage_um)
    measurement = find(root, path.parent, ("MeasurementDetail.mrf",), levels=1)
    if measurement is None:
        return named
    detail = _read_detail(*measurement)
    settings = find(root, measurement[0].parent, (detail.settings,)) if detail.settings else None
    return replace(
        named,
        plate=named.plate or detail.plate,
        pixel_um=detail.pixels_um.get(named.channel),
        channel_name=_read_channels(*settings).get(named.channel, "") if settings else "",
    )


def _write(site: Site, _acquired_at: datetime | None) -> str:
    folder = f"{site.plate}_{site.run}/{site.plate}" if site.run else site.plate
    channel = f"C{site.channel:0>2}"
    place = f"T{site.timepoint:04d}F{site.field:03d}L01A01Z{site.z:02d}{channel}"
    return f"{folder}/{site.plate}_{site.well}_{place}.tif"


PRESETS = (Preset("yokogawa", _parse, _write, _details),)
"""The layout `yokogawa`."""
