"""BioTek (Agilent) Cytation and Lionheart, Gen5: one TIFF a field, all numbers in the name.

`A1_01_1_2_Phase Contrast_003.tif` is well, read step, channel number, field, channel, time point; since Gen5 3.
`A1_2Z0_DAPI_1_003_01.tif` is well, field, z, channel, channel number, time point, read step; before.
`B2_02_SP10Z10_C1_Bright Field_T001.tif` names each number by its letters. A negative read step marks a processed image.
"""

import re
from datetime import datetime

from acquisition.layouts.named import PART_STEP, WELL, FileName, Named, Preset, nearest_folder
from sesmo_live.records import Site
from sesmo_live.wells import parse_well

_HEAD = rf"(?P<well>{WELL})(?:ROI(?P<roi>\d+))?"
_Z = r"(?:Z(?P<z>\d+))?"
_FORMS = (
    re.compile(rf"{_HEAD}_-?\d+_\d+_(?P<field>\d+){_Z}_(?P<channel>.*[A-Za-z].*)_(?P<timepoint>-?\d+)"),
    re.compile(rf"{_HEAD}_(?P<field>-?\d+){_Z}_(?P<channel>[^_]*[A-Za-z].*)_\d+_(?P<timepoint>-?\d+)_(?:-?\d+)?"),
    re.compile(rf"{_HEAD}_\d+_SP(?P<field>\d+){_Z}_C\d+_(?P<channel>.+)_T(?P<timepoint>\d+)"),
)
_WRAPPED = re.compile(r"(\w+)\[(.*)\]")
_STRUCTURE = re.compile(rf"{WELL}|ID_.*|#.*|.*_Stitched", re.IGNORECASE)
_EXPERIMENT = re.compile(r"(?:.*_)?(?P<run>\d{6}_\d{6})_(?P<plate>.+)")
_PROCESSED = {"Stitched": "stitched image", "Tsf": "transformed image (Tsf), not the one the camera took"}


def _parse(name: FileName) -> Named | None:
    match = next(filter(None, (form.fullmatch(name.stem) for form in _FORMS)), None)
    if match is None:
        return None
    channel, skip = match["channel"], ""
    while wrapped := _WRAPPED.fullmatch(channel):
        skip = _PROCESSED.get(wrapped[1], f"processed image ({wrapped[1]})")
        channel = wrapped[2]
    folder = nearest_folder(name.folders, _STRUCTURE)
    experiment = _EXPERIMENT.fullmatch(folder)
    return Named(
        parse_well(match["well"]),
        field=PART_STEP * int(match["roi"] or 0) + int(match["field"]),
        timepoint=int(match["timepoint"]),
        channel=channel.rpartition("_")[2] if skip else channel,
        z=int(match["z"] or 0),
        plate=experiment["plate"] if experiment else folder,
        run=experiment["run"] if experiment else "",
        skip=skip,
    )


def _write(site: Site, _acquired_at: datetime | None) -> str:
    folder = f"{site.run}_{site.plate}" if site.run else site.plate
    well = f"{site.well[:-2]}{int(site.well[-2:])}"
    z = f"Z{site.z}" if site.z else ""
    return f"{folder}/{well}_01_1_{site.field}{z}_{site.channel}_{site.timepoint:03d}.tif"


PRESETS = (Preset("cytation", _parse, _write),)
"""The layout `cytation`."""
