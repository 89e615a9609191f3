"""Molecular Devices: ImageXpress (MetaXpress export, its database folders, HCS.ai) and MetaMorph's own time-lapse."""

import re
import uuid
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from acquisition.layouts.named import WELL, FileName, Named, Preset, plain
from acquisition.layouts.sidecars import Stamp, find, read_head
from sesmo_live.errors import UsageError
from sesmo_live.records import Site
from sesmo_live.wells import parse_well

_GUID = r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_EXPORT = re.compile(
    rf"(?:(?P<plate>.+)_)?(?P<well>{WELL})(?:_s(?P<field>\d+))?(?:_w(?P<channel>\d+))?(?:_z(?P<z>\d+))?"
    rf"(?P<thumb>_thumb)?(?P<guid>{_GUID})?"
)
_HCS_AI = re.compile(
    rf"(?P<plate>.+?)(?:_projection)?_t(?P<timepoint>\d+)_(?P<well>{WELL})"
    r"_s(?P<field>\d+)_w(?P<channel>\d+)_z(?P<z>\d+)"
)
_STEP = re.compile(r"(?P<axis>TimePoint|ZStep)_?(?P<number>\d+)", re.IGNORECASE)
_EXPORTED = re.compile(r"(?P<plate>.+)_Plate_(?P<run>\d+)")
_DATABASE = re.compile(r"\d{4}-\d{2}-\d{2}/\d+")
_METAMORPH = re.compile(
    r"(?P<base>.+?)(?:_w(?P<channel>\d)(?P<wave>.*?))?_s(?P<field>\d+)(?:_(?P<label>[^_]+))?_t(?P<timepoint>\d+)"
)
_WAVE = re.compile(r'"WaveName(\d+)",\s*"([^"]*)"')
_NO_SCORE = {"experiment_montage": "stitched image", "autofocus": "autofocus image, not one of the plate"}


def _parse_hcs_ai(name: FileName, match: re.Match[str]) -> Named:
    return Named(
        parse_well(match["well"]),
        field=int(match["field"]),
        timepoint=int(match["timepoint"]),
        channel=plain(match["channel"]),
        z=int(match["z"]),
        plate=match["plate"],
        skip=next((_NO_SCORE[folder] for folder in name.folders if folder in _NO_SCORE), ""),
    )


def _run(folders: tuple[str, ...]) -> tuple[str, str]:
    """Return (plate, run) as the folders tell: `<plate>_Plate_<id>` of an export, `<date>/<id>` of the database."""
    for folder in folders:
        if match := _EXPORTED.fullmatch(folder):
            return match["plate"], match["run"]
    label = next(filter(_DATABASE.fullmatch, map("/".join, pairwise(folders))), "")
    return "", label


def _parse(name: FileName, *, database: bool = False) -> Named | None:
    if not database and (match := _HCS_AI.fullmatch(name.stem)):
        return _parse_hcs_ai(name, match)
    match = _EXPORT.fullmatch(name.stem)
    steps = {m["axis"].lower(): int(m["number"]) for m in map(_STEP.fullmatch, name.folders) if m}
    # a bare well says nothing: a site, a channel, a GUID or a time point's folder must come with it
    if match is None or not (match["field"] or match["channel"] or match["guid"] or "timepoint" in steps):
        return None
    if database and not match["guid"]:
        return None
    plate, run = _run(name.folders)
    return Named(
        parse_well(match["well"]),
        field=int(match["field"] or 1),
        timepoint=steps.get("timepoint", 1),
        channel=plain(match["channel"]) if match["channel"] else "",
        z=int(match["z"]) if match["z"] else steps.get("zstep", 0),
        plate=match["plate"] or plate,
        run=run,
        skip="thumbnail" if match["thumb"] else "",
    )


def _parse_database(name: FileName) -> Named | None:
    return _parse(name, database=True)


@lru_cache(maxsize=32)
def _wave_names(path: Path, _stamp: Stamp) -> dict[str, str]:
    return dict(_WAVE.findall(read_head(path, 1 << 20, "cp1252")))


def _details(root: Path, path: Path, named: Named) -> Named:
    plate = named.plate
    htd = find(root, path.parent, (f"{plate}.HTD", f"{plate}.htd"), levels=3) if plate and named.channel else None
    return replace(named, channel_name=_wave_names(*htd).get(named.channel, "")) if htd else named


def _tail(site: Site) -> str:
    return f"_s{site.field}_w{site.channel}" if site.channel else f"_s{site.field}"


def _steps(site: Site) -> str:
    return f"TimePoint_{site.timepoint}/" + (f"ZStep_{site.z}/" if site.z else "")


def _write(site: Site, _acquired_at: datetime | None) -> str:
    folder = f"{site.plate}_Plate_{site.run}" if site.run else site.plate
    return f"{folder}/{_steps(site)}{site.plate}_{site.well}{_tail(site)}.TIF"


def _write_database(site: Site, _acquired_at: datetime | None) -> str:
    folder = f"{site.plate}/{site.run}" if site.run else site.plate
    guid = str(uuid.uuid5(uuid.NAMESPACE_OID, repr(site))).upper()
    return f"{folder}/{_steps(site)}{site.plate}_{site.well}{_tail(site)}{guid}.tif"


def _parse_metamorph(name: FileName) -> Named | None:
    match = _METAMORPH.fullmatch(name.stem)
    if match is None:
        return None
    label = match["label"] or ""
    try:
        well, position = parse_well(label), ""
    except UsageError:  # a stage label is free text; what is no well is looked up in the wells map
        well, position = None, label or f"s{match['field']}"
    return Named(
        well,
        field=int(match["field"]),
        timepoint=int(match["timepoint"]),
        channel=match["channel"] or "",
        plate=match["base"],
        channel_name=match["wave"] or "",
        position=position,
    )


def _write_metamorph(site: Site, _acquired_at: datetime | None) -> str:
    wave = f"_w{site.channel}" if site.channel else ""
    return f"{site.plate}{wave}_s{site.field}_{site.well}_t{site.timepoint:03d}.TIF"


PRESETS = (
    Preset("imagexpress-db", _parse_database, _write_database),
    Preset("imagexpress", _parse, _write, _details),
    Preset("metamorph", _parse_metamorph, _write_metamorph),
)
"""The layouts `imagexpress-db`, `imagexpress` and `metamorph`."""
