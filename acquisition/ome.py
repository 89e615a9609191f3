"""What OME-XML in an OME-TIFF says of the pages of that file.

https://docs.openmicroscopy.org/ome-model/6.3.1/ome-tiff/specification.html
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import PureWindowsPath
from urllib.parse import unquote
from xml.etree import ElementTree

from acquisition.metadata import (
    SECONDS_PER,
    UM_PER,
    PageInfo,
    as_float,
    as_int,
    as_positive,
    later,
    parse_time,
    read_xml,
)

MAX_COMPANIONS = 10_000
"""Most other files that one OME-TIFF may count to its set."""

_PLAIN_TIFF = re.compile(r"[^/\\:*?\"<>|.~ ][^/\\:*?\"<>|]*\.tiff?", re.IGNORECASE)
_SEPARATORS = {ord(sign): "" for sign in "/\\:\0"}
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(10))}


def ome_infos(text: str, chains: Sequence[int], name: str) -> list[PageInfo] | None:
    """Return what the OME-XML `text` of the file `name` says of its directories `chains`; None if it cannot be read.

    No other file is ever opened; planes that the XML places in other files are not looked at. Time points, planes and
    channels are those of the XML, from 0, where it has more than one.
    """
    root = read_xml(text)
    if root is None:
        return None
    images = list(_children(root, "Image"))
    limit = max(chains, default=0) + 1
    left = 4 * limit  # each plane is told once; who tells more would keep us counting
    planes: dict[int, PageInfo] = {}
    for image in images:
        for pixels in _children(image, "Pixels"):
            ours = [block for block in _children(pixels, "TiffData") if _ours(block, root, name)]
            places = list(islice(_places(pixels, limit, ours), left))
            left -= len(places)
            planes.update(_image_infos(image, pixels, dict(places), many=len(images) > 1))
    return [replace(planes.get(chain, PageInfo(page)), page=page) for page, chain in enumerate(chains)]


def companions(description: str, name: str) -> list[str]:
    """Return the names of the other TIFFs that the OME-XML `description` of the file `name` counts to its set.

    At most 10 000, each once, in the order of the XML; only plain names that lie beside the file on any system: no
    folder, drive, device, hidden or unprintable sign, also when written in percents. None of them is opened.
    """
    root = read_xml(description) if "OME" in description[:2000] else None
    if root is None:
        return []
    names = (str(element.get("FileName")) for element in root.iter() if str(element.tag).rpartition("}")[2] == "UUID")
    return list(islice(dict.fromkeys(other for other in names if other != name and _beside(other)), MAX_COMPANIONS))


def _beside(name: str) -> bool:
    """Say whether `name` is that of a TIFF in the same folder, whatever the system."""
    return (
        _PLAIN_TIFF.fullmatch(name) is not None
        and name.isprintable()
        and len(name.encode()) <= 255
        and unquote(name).translate(_SEPARATORS) == unquote(name)
        and PureWindowsPath(name).stem.partition(".")[0].strip().upper() not in _DEVICES
    )


def _image_infos(
    image: ElementTree.Element, pixels: ElementTree.Element, places: Mapping[int, tuple[int, int, int]], *, many: bool
) -> dict[int, PageInfo]:
    """Return, by directory, what one OME Image says of its planes that lie at `places` of the file."""
    start = next((parse_time(child.text) for child in _children(image, "AcquisitionDate")), None)
    label = next((child.get("Name") for child in _children(image, "StageLabel")), None)
    common = PageInfo(0, position=label or (image.get("Name") if many else None), pixel_um=_pixel_um(pixels))
    names = [child.get("Name") for child in _children(pixels, "Channel")]
    details = {
        tuple(as_int(child.get(f"The{axis}")) or 0 for axis in "CZT"): child for child in _children(pixels, "Plane")
    }
    several = {axis: (as_int(pixels.get(f"Size{axis}")) or 1) > 1 for axis in "CZT"}
    step = (as_float(pixels.get("TimeIncrement")) or 0.0) * SECONDS_PER.get(pixels.get("TimeIncrementUnit", "s"), 0.0)
    infos = {}
    for directory, (c, z, t) in places.items():
        plane = details.get((c, z, t))
        moment = later(start, _seconds(plane, t * step))
        infos[directory] = replace(
            common,
            timepoint=t if several["T"] else None,
            z=z if several["Z"] else None,
            channel=(names[c] if c < len(names) else None) or (str(c) if several["C"] else None),
            acquired_at=moment,
            stage_um=_stage_um(plane),
            source="ome" if moment else "",
        )
    return infos


def _places(
    pixels: ElementTree.Element, limit: int, blocks: Sequence[ElementTree.Element]
) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Yield each directory below `limit` that the TiffData `blocks` speak of, and its (c, z, t)."""
    samples = next((as_int(child.get("SamplesPerPixel")) for child in _children(pixels, "Channel")), None) or 1
    counts = {axis: max(1, as_int(pixels.get(f"Size{axis}")) or 1) for axis in "CZT"}
    counts["C"] = max(1, counts["C"] // samples)
    order = [axis for axis in pixels.get("DimensionOrder", "XYCZT") if axis in counts]
    total = counts["C"] * counts["Z"] * counts["T"]
    for block in blocks:
        directory = max(0, as_int(block.get("IFD")) or 0)
        place, stride = 0, 1
        for axis in order:
            place += max(0, as_int(block.get(f"First{axis}")) or 0) * stride
            stride *= counts[axis]
        number = as_int(block.get("PlaneCount")) or (total if block.get("IFD") is None else 1)
        for step in range(min(number, total - place, limit - directory)):
            at, where = place + step, dict.fromkeys("CZT", 0)
            for axis in order:
                at, where[axis] = divmod(at, counts[axis])
            yield directory + step, (where["C"], where["Z"], where["T"])


def _ours(block: ElementTree.Element, root: ElementTree.Element, name: str) -> bool:
    """Say whether a TiffData block means this file: no UUID, the file's own UUID, or its name."""
    uuid = next(_children(block, "UUID"), None)
    if uuid is None:
        return True
    return (uuid.text or "").strip() == root.get("UUID", "none") or uuid.get("FileName") in (None, name)


def _seconds(plane: ElementTree.Element | None, otherwise: float) -> float:
    """Return the seconds from the start of the acquisition to a plane."""
    delta = None if plane is None else as_float(plane.get("DeltaT"))
    if plane is None or delta is None:
        return otherwise
    return delta * SECONDS_PER.get(plane.get("DeltaTUnit", "s"), 1.0)


def _stage_um(plane: ElementTree.Element | None) -> tuple[float, float] | None:
    if plane is None:
        return None
    x, y = (as_float(plane.get(f"Position{axis}")) for axis in "XY")
    scale_x, scale_y = (UM_PER.get(plane.get(f"Position{axis}Unit", "")) for axis in "XY")
    return None if x is None or y is None or not scale_x or not scale_y else (x * scale_x, y * scale_y)


def _pixel_um(pixels: ElementTree.Element) -> float | None:
    size, scale = as_positive(pixels.get("PhysicalSizeX")), UM_PER.get(pixels.get("PhysicalSizeXUnit", "µm"))
    return size * scale if size and scale else None


def _children(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    """Yield the children called `name` whatever the year of their schema."""
    return (child for child in element if str(child.tag).rpartition("}")[2] == name)
