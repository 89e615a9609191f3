"""Sartorius Incucyte: exported TIFFs (`VID123_C04_2_00d03h00m.tif`) and the instrument's own archive folders."""

import re
from datetime import datetime

from acquisition.layouts.named import PART_STEP, WELL, FileName, Named, Preset, nearest_folder
from sesmo_live.errors import UsageError
from sesmo_live.records import Site
from sesmo_live.wells import parse_well

_EXPORT = re.compile(
    rf"(?:(?P<prefix>.+)_)?(?P<well>{WELL})_(?P<field>\d+)_"
    r"(?:(?P<days>\d+)d(?P<hours>\d\d)h(?P<minutes>\d\d)m"
    r"|(?P<date>\d{4}y\d\dm\d\dd_\d\dh\d\dm))(?:_(?P<crop>\d+))?"
)
_ARCHIVE = re.compile(
    rf"(?:.*/)?(?P<date>\d{{4}}/\d\d/\d{{4}})/(?P<plate>\d+)/(?P<well>{WELL})-(?P<field>\d+)-(?P<channel>\w+)"
)
_CHANNEL = re.compile(
    r"phase(?:[ _-]?contrast)?|bright[ _-]?field|green|red|orange|blue|cyan|yellow|nir|near[ _-]?ir|far[ _-]?red",
    re.IGNORECASE,
)
_FIRST_DATE = 10**11
"""Time points from here on are dates (YYYYMMDDHHMM), below they are minutes since the first scan."""


def _date(text: str, form: str) -> datetime:
    try:
        return datetime.strptime(text, form)  # noqa: DTZ007 - Incucyte writes local time without a zone
    except ValueError:
        raise UsageError(f"{text!r} is no date; export the scan again") from None


def _minute(moment: datetime) -> int:
    return int(moment.strftime("%Y%m%d%H%M"))


def _parse_archive(name: FileName) -> Named | None:
    match = _ARCHIVE.fullmatch("/".join((*name.folders, name.stem)))
    if match is None:
        return None
    moment = _date(match["date"], "%y%m/%d/%H%M")
    return Named(
        parse_well(match["well"]),
        field=int(match["field"]),
        timepoint=_minute(moment),
        channel=match["channel"],
        plate=match["plate"],
        acquired_at=moment,
    )


def _parse(name: FileName) -> Named | None:
    match = _EXPORT.fullmatch(name.stem)
    if match is None:
        return _parse_archive(name)
    prefix, channel = match["prefix"] or "", ""
    if _CHANNEL.fullmatch(prefix.rpartition("_")[2]):
        prefix, _, channel = prefix.rpartition("_")
    elif name.folders and _CHANNEL.fullmatch(name.folders[-1]):
        channel = name.folders[-1]
    moment = _date(match["date"], "%Yy%mm%dd_%Hh%Mm") if match["date"] else None
    elapsed = 0 if moment else (int(match["days"]) * 24 + int(match["hours"])) * 60 + int(match["minutes"])
    return Named(
        parse_well(match["well"]),
        field=PART_STEP * (int(match["crop"] or 1) - 1) + int(match["field"]),
        timepoint=_minute(moment) if moment else elapsed,
        channel=channel,
        plate=prefix or nearest_folder(name.folders, _CHANNEL),
        acquired_at=moment,
    )


def _write(site: Site, _acquired_at: datetime | None) -> str:
    if site.timepoint >= _FIRST_DATE:
        digits = str(site.timepoint)
        time = f"{digits[:4]}y{digits[4:6]}m{digits[6:8]}d_{digits[8:10]}h{digits[10:]}m"
    else:
        hours, minutes = divmod(site.timepoint, 60)
        time = f"{hours // 24:02d}d{hours % 24:02d}h{minutes:02d}m"
    folder = f"{site.channel}/" if site.channel else ""
    return f"{folder}{site.plate}_{site.well[:-2]}{int(site.well[-2:])}_{site.field}_{time}.tif"


PRESETS = (Preset("incucyte", _parse, _write),)
"""The layout `incucyte`."""
