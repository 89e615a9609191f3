"""Micro-Manager: separate image files in position folders (2.0 and 1.4), and image stacks per position.

The position's label carries the well when the HCS site generator wrote it (`B03-Site_0`) or the user named it so;
any other label (`Pos0`, `1-Pos000_001`) is looked up in the config's `wells` map. Micro-Manager counts from 0.
"""

import json
import re
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from acquisition.layouts.named import PART_STEP, WELL, FileName, Named, Preset
from acquisition.layouts.sidecars import Stamp, find, read_head
from sesmo_live.records import Site
from sesmo_live.wells import parse_well

_IMAGE = re.compile(r"img_channel(?P<channel>\d+)_position(?P<position>\d+)_time(?P<timepoint>\d+)_z(?P<z>\d+)")
_IMAGE_14 = re.compile(r"img_(?P<timepoint>\d{9})_(?P<channel>.*)_(?P<z>\d{3})")
_GENERATED = rf"{WELL}-Site_\d+|\d+-Pos_?\d{{3}}_\d{{3}}|Pos-\d+-\d{{3}}_\d{{3}}|Pos_?\d+|Default"
_STACK = re.compile(rf"(?:(?P<folder>.*?)_)?MMStack(?:_(?:(?P<label>{_GENERATED})(?:_\d+)?|(?P<own>.+)))?")
_SITE = re.compile(rf"(?P<well>{WELL})(?:-Site_(?P<field>\d+)|[-_](?P<number>\d+))?")
_GRID = re.compile(r"(?:\d+-Pos_?|Pos-\d+-)(?P<column>\d{3})_(?P<row>\d{3})")
_POSITION = re.compile(rf"{_GENERATED}|{WELL}(?:[-_]\d+)?")
_ACQUISITION = re.compile(r"(?P<plate>.+)_(?P<run>\d+)")
_CHANNELS = re.compile(r'"ChNames":\s*(\[[^\]]*\])')


@dataclass(frozen=True, slots=True)
class _Label:
    well: str | None
    field: int | None
    position: str


def _read_label(label: str) -> _Label:
    if match := _SITE.fullmatch(label):
        number = match["field"] or match["number"]
        return _Label(parse_well(match["well"]), int(number) if number else 1, "")
    if match := _GRID.fullmatch(label):
        return _Label(None, PART_STEP * int(match["column"]) + int(match["row"]), label)
    match = re.fullmatch(r"Pos_?(\d+)", label)
    return _Label(None, int(match[1]) if match else None, label)


def _acquisition(folder: str) -> tuple[str, str]:
    """Return (plate, run): Micro-Manager appends `_1`, `_2` to the name of an acquisition each time it is run."""
    match = _ACQUISITION.fullmatch(folder)
    return (match["plate"], match["run"]) if match else (folder, "")


def _parse_image(name: FileName, match: re.Match[str]) -> Named:
    parts, folders = match.groupdict(), list(name.folders)
    label = ""
    # 1.4 writes into the acquisition's folder when there is but one position; 2.0 always into the position's
    if folders and ("position" in parts or _POSITION.fullmatch(folders[-1]) or not _ACQUISITION.fullmatch(folders[-1])):
        label = folders.pop()
    place = _read_label(label)
    plate, run = _acquisition(folders[-1] if folders else "")
    index = int(parts["position"]) if "position" in parts else 1
    return Named(
        place.well,
        field=place.field if place.field is not None else index,
        timepoint=int(parts["timepoint"]),
        channel=str(int(parts["channel"])) if "position" in parts else parts["channel"],
        z=int(parts["z"]),
        plate=plate,
        run=run,
        position=place.position,
    )


def _parse(name: FileName) -> Named | None:
    if match := _IMAGE.fullmatch(name.stem) or _IMAGE_14.fullmatch(name.stem):
        return _parse_image(name, match)
    match = _STACK.fullmatch(name.stem)
    if match is None:
        return None
    place = _read_label(match["label"] or match["own"] or "Default")
    plate, run = _acquisition(match["folder"] or "")
    field = place.field if place.field is not None else 1
    return Named(place.well, field=field, plate=plate, run=run, position=place.position)


@lru_cache(maxsize=256)
def _channel_names(path: Path, _stamp: Stamp) -> tuple[str, ...]:
    """Return the channels' names from the head of `metadata.txt`, which is no whole JSON until the last image."""
    match = _CHANNELS.search(read_head(path, 1 << 16))
    try:
        names = json.loads(match[1]) if match else []
    except json.JSONDecodeError:  # the list itself is cut: the next look sees more of it
        names = []
    return tuple(str(name) for name in names)


def _details(root: Path, path: Path, named: Named) -> Named:
    found = find(root, path.parent, ("metadata.txt",)) if named.channel.isdecimal() else None
    names = _channel_names(*found) if found else ()
    index = int(named.channel) if names else 0
    return replace(named, channel_name=names[index]) if index < len(names) else named


def _write(site: Site, _acquired_at: datetime | None) -> str:
    folder = f"{site.plate}_{site.run}" if site.run else site.plate
    if site.channel.isdecimal():
        image = f"img_channel{site.channel:0>3}_position000_time{site.timepoint:09d}_z{site.z:03d}"
    else:
        image = f"img_{site.timepoint:09d}_{site.channel}_{site.z:03d}"
    return f"{folder}/{site.well}-Site_{site.field}/{image}.tif"


PRESETS = (Preset("micro-manager", _parse, _write, _details),)
"""The layout `micro-manager`."""
