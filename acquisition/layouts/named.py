"""What a file name says, and the small parts that every preset shares."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePath

from sesmo_live.records import Site
from sesmo_live.wells import parse_well

WELL = r"[A-Z]{1,2}\d{1,2}"
"""A well as instruments write it; `parse_well` decides whether it exists."""

PART_STEP = 1000
"""A part of a field (a region of interest, a crop) is told apart by adding its number times this to the field."""

_SUFFIX = re.compile(r"(?:(?:\.ome)?\.tiff?|\.png|\.jpe?g|\.bmp|\.nd2|\.czi|\.lif)\Z", re.IGNORECASE)
_THUMBNAIL = re.compile(r"[ _.-]?thumb(?:nail)?s?\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Named:
    """What the name of one file, and the vendor's sidecar where there is one, says of it.

    `well` is in the one spelling, None when neither name nor sidecar carries one; `position` is then the label to be
    looked up in the config's `wells` map. `field`, `timepoint` and `z` are the vendor's own numbers. `run` is the
    layout's label of the measurement. `acquired_at` is aware if the zone is known, else naive local time. `pixel_um`
    is µm per pixel, `stage_um` (x, y) in µm as the vendor gives it (Phenix, Yokogawa: from the well's centre).
    `skip` is the reason not to score the file, empty for an image to be scored.
    """

    well: str | None
    field: int = 1
    timepoint: int = 1
    channel: str = ""
    z: int = 0
    plate: str = ""
    run: str = ""
    channel_name: str = ""
    acquired_at: datetime | None = None
    pixel_um: float | None = None
    stage_um: tuple[float, float] | None = None
    position: str = ""
    skip: str = ""


@dataclass(frozen=True, slots=True)
class FileName:
    """A path below the watched folder, taken apart: `folders`, `stem` without suffix, and the reason to `skip` it."""

    folders: tuple[str, ...]
    stem: str
    relative: str
    skip: str = ""


@dataclass(frozen=True, slots=True)
class Preset:
    """One vendor's layout: how a name is read, how a sidecar adds to it, how a name is written."""

    name: str
    parse: Callable[[FileName], Named | None]
    write: Callable[[Site, datetime | None], str] | None = None
    details: Callable[[Path, Path, Named], Named] | None = None


def take_apart(relative: PurePath) -> FileName | None:
    """Return the parts of a path relative to the watched folder; None when it is no image file or a hidden one."""
    suffix = _SUFFIX.search(relative.name)
    if not suffix or relative.name.startswith("."):
        return None
    stem, folders, skip = relative.name[: suffix.start()], relative.parts[:-1], ""
    thumb = _THUMBNAIL.search(stem)
    if "tif" not in suffix[0].lower():
        skip = f"{suffix[0][1:].lower()} file, not TIFF; export TIFF from the instrument's software"
    elif thumb or any(_THUMBNAIL.fullmatch(folder) for folder in folders):
        skip = "thumbnail"
    return FileName(folders, stem[: thumb.start()] if thumb else stem, relative.as_posix(), skip)


def plain(number: str) -> str:
    """Return a number without its leading zeros: `03` is `3`, so that C01, w1 and CH1 are all channel `1`."""
    return str(int(number))


def well_or_none(text: str) -> str | None:
    """Return `text` as a well if it has the shape of one, else None; raise UsageError for a well on no plate."""
    return parse_well(text) if re.fullmatch(WELL, text) else None


def nearest_folder(folders: tuple[str, ...], structure: re.Pattern[str]) -> str:
    """Return the innermost folder that is not part of the vendor's own `structure`, or an empty string."""
    return next((folder for folder in reversed(folders) if not structure.fullmatch(folder)), "")
