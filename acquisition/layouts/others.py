"""Layouts of one form each: our own, Keyence BZ-X, Olympus scanR, CellProfiler's Vitra example, Nikon plates."""

import re
from datetime import UTC, datetime

from acquisition.layouts.named import WELL, FileName, Named, Preset, nearest_folder, plain, well_or_none
from sesmo_live.records import Site
from sesmo_live.wells import parse_well

_SESMO = re.compile(
    rf"(?P<well>{WELL})_f(?P<field>-?\d+)_t(?P<timepoint>-?\d+)_c(?P<channel>.*)_z(?P<z>-?\d+)"
    r"(?:_(?P<time>\d{8}T\d{6})(?P<utc>Z?))?"
)
_TIME = "%Y%m%dT%H%M%S"
_KEYENCE = re.compile(
    r"(?P<prefix>.+?)(?:_T(?P<timepoint>\d{4}))?(?:_(?P<position>XY\d+))?_(?P<field>\d{5})(?:_Z(?P<z>\d{3}))?"
    r"_(?:CH(?P<channel>\d+)|Overlay)"
)
_XY = re.compile(r"XY\d+")
_SCANR = re.compile(
    r"(?:(?P<label>.+?)--)?(?P<position>W\d{5})--P(?P<field>\d{5})--Z(?P<z>\d{5})--T(?P<timepoint>\d{5})--(?P<channel>.+)"
)
_VITRA = re.compile(r"Channel ?(?P<channel>\d+)-\d+-(?P<row>[A-Z]{1,2})-(?P<column>\d{1,2})(?:-(?P<field>\d+))?")
_NIKON = re.compile(rf"(?P<plate>Plate\d+)_Well(?P<well>{WELL})_Channel(?P<channel>.+)_Seq(?P<field>\d+)")
_NOTHING = re.compile(r"(?!)")
_DATA = re.compile(r"data", re.IGNORECASE)


def _parse_sesmo(name: FileName) -> Named | None:
    match = _SESMO.fullmatch(name.stem)
    if match is None:
        return None
    folder = name.folders[-1] if name.folders else ""
    plate, _, run = folder.rpartition("__") if "__" in folder else (folder, "", "")
    time = datetime.strptime(match["time"], _TIME) if match["time"] else None  # noqa: DTZ007 - Z is looked at below
    return Named(
        parse_well(match["well"]),
        field=int(match["field"]),
        timepoint=int(match["timepoint"]),
        channel=match["channel"],
        z=int(match["z"]),
        plate=plate,
        run=run,
        acquired_at=time.replace(tzinfo=UTC) if time and match["utc"] else time,
    )


def _write_sesmo(site: Site, acquired_at: datetime | None) -> str:
    time = ""
    if acquired_at:
        aware = acquired_at.tzinfo is not None
        time = f"_{(acquired_at.astimezone(UTC) if aware else acquired_at).strftime(_TIME)}{'Z' if aware else ''}"
    folder = f"{site.plate}__{site.run}" if site.run else site.plate
    return f"{folder}/{site.well}_f{site.field}_t{site.timepoint}_c{site.channel}_z{site.z}{time}.tif"


def _parse_keyence(name: FileName) -> Named | None:
    match = _KEYENCE.fullmatch(name.stem)
    if match is None:
        return None
    folder = next(filter(_XY.fullmatch, reversed(name.folders)), "")
    return Named(
        None,
        field=int(match["field"]),
        timepoint=int(match["timepoint"] or 1),
        channel=plain(match["channel"]) if match["channel"] else "Overlay",
        z=int(match["z"] or 0),
        plate=nearest_folder(name.folders, _XY),
        position=match["position"] or folder or match["prefix"],
        skip="" if match["channel"] else "overlay of several channels",
    )


def _parse_scanr(name: FileName) -> Named | None:
    match = _SCANR.fullmatch(name.stem)
    if match is None:
        return None
    well = well_or_none(match["label"] or "")
    return Named(
        well,
        field=int(match["field"]),
        timepoint=int(match["timepoint"]),
        channel=match["channel"],
        z=int(match["z"]),
        plate=nearest_folder(name.folders, _DATA),
        position="" if well else match["position"],
    )


def _write_scanr(site: Site, _acquired_at: datetime | None) -> str:
    place = f"W00001--P{site.field:05d}--Z{site.z:05d}--T{site.timepoint:05d}"
    return f"{site.plate}/data/{site.well[:-2]}{int(site.well[-2:])}--{place}--{site.channel}.tif"


def _parse_vitra(name: FileName) -> Named | None:
    match = _VITRA.fullmatch(name.stem)
    if match is None:
        return None
    return Named(
        parse_well(match["row"] + match["column"]),
        field=int(match["field"] or 1),
        channel=plain(match["channel"]),
        plate=nearest_folder(name.folders, _NOTHING),
    )


def _write_vitra(site: Site, _acquired_at: datetime | None) -> str:
    row, column = site.well[:-2], site.well[-2:]
    return f"{site.plate}/Channel {site.channel}-01-{row}-{column}-{site.field:02d}.tif"


def _parse_nikon(name: FileName) -> Named | None:
    match = _NIKON.fullmatch(name.stem)
    if match is None:
        return None
    return Named(parse_well(match["well"]), field=int(match["field"]), channel=match["channel"], plate=match["plate"])


SESMO = Preset("sesmo", _parse_sesmo, _write_sesmo)
"""Our own layout: every noun of a site by its letter, the plate as the folder, the time in UTC."""

KEYENCE = Preset("keyence", _parse_keyence)
"""Keyence BZ-X: names carry no well, so nothing can be written without a `wells` map."""

SCANR = Preset("scanr", _parse_scanr, _write_scanr)
"""Olympus (Evident) scanR."""

VITRA = Preset("vitra", _parse_vitra, _write_vitra)
"""`Channel 1-01-A-01-00.tif` of the CellProfiler examples; names carry no time point."""

NIKON = Preset("nikon", _parse_nikon)
"""NIS-Elements plates; `.nd2` is named and refused, since it is not TIFF."""
