"""What a TIFF says of its own pages: when, where, at which µm per pixel, and which time point, channel and plane.

One reader for each of Micro-Manager, MetaMorph, ImageJ and plain TIFF tags; OME has its own module. What the file does
not say is None.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from xml.etree import ElementTree

UM_PER = {
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "micrometer", "micrometre"), 1.0),
    **{"pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25_400.0, "in": 25_400.0},
}
"""µm in one of each unit that microscopes write."""
SECONDS_PER = {"ms": 1e-3, "msec": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "hour": 3600.0, "d": 86_400.0}
"""Seconds in one of each unit that microscopes write."""
PLAIN_PIXEL_UM = (0.05, 5.0)
"""Bare resolution tags are believed between these: above lie print resolutions (72 dpi: 353 µm) and camera pixels."""

_TIME = re.compile(
    r"\s*(\d{4})([-/:]?)(\d\d)\2(\d\d)[T ]+(\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?\s*(Z|[+-]\d\d:?\d\d)?[\s\0-]*"
)


@dataclass(frozen=True, slots=True)
class PageInfo:
    """What a file says of one of its pages; None where it says nothing.

    `page` counts the file's images from 0. `timepoint`, `channel`, `z` and `position` are the file's own numbers and
    names. `acquired_at` is aware where the file gives a zone, else the local time of the acquisition computer, and
    `source` says where it came from: micro-manager, ome, metamorph, imagej, tiff, or "". `stage_um` is x, y.
    """

    page: int
    timepoint: int | None = None
    channel: str | None = None
    z: int | None = None
    position: str | None = None
    acquired_at: datetime | None = None
    pixel_um: float | None = None
    stage_um: tuple[float, float] | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class PageTags:
    """The decoded tags of one page by number; `chain` is the place of its directory in the file.

    `plane` is its place among the images that share that directory.
    """

    tags: Mapping[int, Any]
    chain: int = 0
    plane: int = 0


def parse_time(text: object) -> datetime | None:
    """Return the moment that an instrument wrote as `text`, aware if it gives a zone, or None if it is none.

    Understands ISO 8601, `2008:02:05 17:38:15` (TIFF), `2022-12-28 17:04:24 -0800` (Micro-Manager) and
    `20240709 13:13:03.6` (MetaMorph, whose fraction is a count of milliseconds). Years before 1990 are clocks unset.
    """
    match = _TIME.fullmatch(as_text(text))
    if match is None:
        return None
    year, separator, month, day, hour, minute, second, fraction, zone = match.groups()
    micros = 0
    if fraction:
        micros = int(fraction) * 1000 if not separator and len(fraction) < 4 else int(f"{fraction:0<6}"[:6])
    try:
        moment = datetime(
            int(year), int(month), int(day), int(hour), int(minute), int(second), micros, tzinfo=_zone(zone)
        )
    except ValueError:
        return None
    return moment if 1990 <= moment.year <= 2100 else None


def later(start: datetime | None, seconds: float) -> datetime | None:
    """Return the moment `seconds` after `start`, or None where that is beyond all calendars."""
    try:
        return start and start + timedelta(seconds=seconds)
    except OverflowError:
        return None


def _zone(text: str | None) -> timezone | None:
    if text is None:
        return None
    if text == "Z":
        return UTC
    offset = timedelta(hours=int(text[1:3]), minutes=int(text[-2:]))
    return timezone(-offset if text[0] == "-" else offset)


def micro_manager_info(record: Mapping[str, Any], page: int) -> PageInfo:
    """Return what the metadata `record` of one Micro-Manager image (JSON, decoded) says."""
    axes = record.get("Axes")
    axes = axes if isinstance(axes, Mapping) else {}

    def word(*keys: str) -> Any:
        return next((record[key] for key in keys if record.get(key) not in (None, "")), None)

    x, y = (as_float(word(f"{axis}PositionUm", f"{axis}Position_um_Intended")) for axis in "XY")
    name = axes.get("channel", word("ChannelName", "Channel"))
    if isinstance(name, int) and isinstance(record.get("Channel"), str):
        name = record["Channel"]
    position = axes.get("position", word("PositionName"))
    moment = parse_time(word("ReceivedTime")) or parse_time(word("Time"))
    return PageInfo(
        page,
        timepoint=as_int(axes.get("time", word("FrameIndex", "Frame"))),
        channel=None if name in (None, "Default") else str(name),
        z=as_int(axes.get("z", word("SliceIndex", "Slice"))),
        position=None if position in (None, "Default") else str(position),
        acquired_at=moment,
        pixel_um=as_positive(word("PixelSizeUm", "PixelSize_um")),
        stage_um=None if x is None or y is None else (x, y),
        source="micro-manager" if moment else "",
    )


def micro_manager_page(page: PageTags, number: int) -> PageInfo | None:
    """Return what Micro-Manager wrote of page `number`: in its own tag, or in ImageJ's Info as for single images."""
    record = page.tags.get(51123)
    if not isinstance(record, Mapping):
        imagej = page.tags.get(50839)
        record = _json(imagej.get("Info")) if isinstance(imagej, Mapping) else _json(as_text(page.tags.get(270)))
    if not isinstance(record, Mapping) or not {"PixelSizeUm", "ChannelIndex", "Axes", "Core-Camera"} & set(record):
        return None
    return micro_manager_info(record, number)


def metamorph_page(page: PageTags, number: int) -> PageInfo | None:
    """Return what MetaMorph or MetaXpress wrote of page `number`: XML in the description, or a stack's UIC tags."""
    description = as_text(page.tags.get(270))
    if description.startswith("<MetaData>"):
        root = read_xml(description)
        return None if root is None else metamorph_info(root, number)
    if isinstance(page.tags.get(33629), Mapping):
        return _stack_info(page, number)
    return None


def metamorph_info(root: ElementTree.Element, page: int) -> PageInfo:
    """Return what MetaMorph's XML (`<MetaData>`, element `root`) says of one image."""
    props = {prop.get("id", ""): prop.get("value", "") for prop in root.iter() if prop.tag in ("prop", "custom-prop")}
    calibrated = props.get("spatial-calibration-state") == "on"
    scale = UM_PER.get(props.get("spatial-calibration-units", ""))
    size = as_positive(props.get("spatial-calibration-x"))
    x, y = as_float(props.get("stage-position-x")), as_float(props.get("stage-position-y"))
    moment = parse_time(props.get("acquisition-time-local"))
    return PageInfo(
        page,
        timepoint=as_int(props.get("Timepoint")),
        channel=props.get("_IllumSetting_") or props.get("image-name") or None,
        z=as_int(props.get("Z Step")),
        position=props.get("stage-label") or None,
        acquired_at=moment,
        pixel_um=size * scale if calibrated and size and scale else None,
        stage_um=None if x is None or y is None else (x, y),
        source="metamorph" if moment else "",
    )


def _stack_info(page: PageTags, number: int) -> PageInfo:
    """Return what the UIC tags of a MetaMorph stack say of one of its planes."""
    uic1 = page.tags.get(33628)
    uic1 = uic1 if isinstance(uic1, Mapping) else {}
    uic2 = page.tags[33629]
    days, milliseconds = (int(uic2[key][page.plane]) for key in ("DateCreated", "TimeCreated"))
    moment = None
    if 2_447_893 <= days <= 2_488_434:  # Julian days of 1990 and 2101
        moment = datetime(1990, 1, 1) + timedelta(days=days - 2_447_893, milliseconds=milliseconds)  # noqa: DTZ001 local
    scale = UM_PER.get(as_text(uic1.get("CalibrationUnits")).strip())
    size = as_positive(uic1.get("XCalibration"))
    return PageInfo(
        number,
        acquired_at=moment,
        pixel_um=size * scale if size and scale else None,
        source="metamorph" if moment else "",
    )


def imagej_infos(tags: Mapping[int, Any], count: int) -> list[PageInfo]:
    """Return what ImageJ says of the `count` pages of a file: channel, then z, then time runs fastest, from 1."""
    lines = dict(line.split("=", 1) for line in as_text(tags.get(270)).splitlines() if "=" in line)
    unit = lines.get("unit", "").strip().replace("\\u00B5", "µ").replace("\\u00b5", "µ")
    per_unit = _rational(tags.get(282))
    size = UM_PER[unit] / per_unit if unit in UM_PER and per_unit else None
    if unit in ("inch", "in") and not _believable(size):
        size = None
    channels, slices, frames = (max(1, as_int(lines.get(key)) or 1) for key in ("channels", "slices", "frames"))
    start = parse_time(tags.get(306))
    step = as_float(lines.get("finterval")) or 0.0
    infos = []
    for page in range(count):
        frame = page // (channels * slices)
        infos.append(
            PageInfo(
                page,
                timepoint=frame + 1 if frames > 1 else None,
                channel=str(page % channels + 1) if channels > 1 else None,
                z=page // channels % slices + 1 if slices > 1 else None,
                acquired_at=later(start, frame * step),
                pixel_um=size,
                source="imagej" if start else "",
            )
        )
    return infos


def tiff_info(tags: Mapping[int, Any], page: int) -> PageInfo:
    """Return what the plain tags say: DateTime, and the resolution where it can be that of a microscope."""
    moment = parse_time(tags.get(306))
    x, y = _rational(tags.get(282)), _rational(tags.get(283))
    um = {2: 25_400.0, 3: 10_000.0}.get(as_int(tags.get(296)) or 0)
    size = um / x if um and x and y and abs(x - y) <= 0.01 * x else None
    return PageInfo(
        page,
        acquired_at=moment,
        pixel_um=size if _believable(size) else None,
        source="tiff" if moment else "",
    )


def read_xml(text: str) -> ElementTree.Element | None:
    """Return the root element of `text`, or None if it is broken or defines entities of its own."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        return None
    try:
        return ElementTree.fromstring(text.strip("\0 \r\n"))  # noqa: S314 no DTD, hence no entities
    except (ElementTree.ParseError, ValueError):
        return None


def _json(text: object) -> Any:
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def as_text(value: object) -> str:
    """Return `value` as text, "" if it is none."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def as_float(value: object) -> float | None:
    """Return `value` as a finite number below 10¹², None if it is none."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < 1e12 else None


def as_positive(value: object) -> float | None:
    """Return `value` as a number above zero, None if it is none."""
    number = as_float(value)
    return number if number and number > 0 else None


def as_int(value: object) -> int | None:
    """Return `value` as a whole number, None if it is none."""
    number = as_float(value)
    return None if number is None else int(number)


def _rational(value: object) -> float | None:
    if isinstance(value, tuple) and len(value) == 2 and value[1]:
        return as_positive(value[0] / value[1])
    return as_positive(value)


def _believable(size: float | None) -> bool:
    return size is not None and PLAIN_PIXEL_UM[0] <= size <= PLAIN_PIXEL_UM[1]
