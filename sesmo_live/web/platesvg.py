"""The plate as SVG: a link for each well, coloured by a number, flagged by shape, the controls marked."""

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

from sesmo_live.overview import Counts
from sesmo_live.web.colours import VIRIDIS, ink, shade
from sesmo_live.wells import PLATE_SHAPES, row_letters, well_name

CELL = 40
"""Side of a well's place in the drawing's own units, on plates of every size."""

BADGES = {"negative": "−", "positive": "+", "blank": "b"}
"""How the roles of wells are written on them."""

TEXT_UP_TO = 96
"""On plates with more wells the number is not written into the well; it is said below the plate and in the table."""

CAPTION_UP_TO = 24
"""On plates with more wells there is no room for what is in the well."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What the colours mean: from `low` to `high` in `unit`, written with so many digits after the point."""

    title: str
    unit: str
    low: float
    high: float
    digits: int

    def write(self, value: float | None) -> str:
        """Return a value as it is shown everywhere, `–` for none."""
        return "–" if value is None else f"{value:.{self.digits}f}"


@dataclass(frozen=True, slots=True)
class WellMark:
    """One imaged well: its value on the scale, what a screen reader says of it, and what is written beneath."""

    well: str
    value: float | None
    label: str
    href: str
    role: str = ""
    flags: tuple[str, ...] = ()
    caption: tuple[str, ...] = ()


def plate_svg(name: str, wells: int, marks: Mapping[str, WellMark], scale: Scale) -> Markup:
    """Draw a plate of `wells` wells; those without a mark were not imaged and are no links."""
    rows, columns = PLATE_SHAPES[wells]
    edge = 22 if wells <= 96 else 34 if wells <= 384 else 60
    width, height = columns * CELL + edge + 6, rows * CELL + edge + 6
    svg = Element("svg", {"viewBox": f"0 0 {width} {height}", "class": f"plate wells-{wells}", "role": "group"})
    svg.set("aria-label", f"Plate {name}: {scale.title} of {len(marks)} of {wells} wells")
    svg.append(_hatch())
    _headings(svg, rows, columns, edge)
    first = next(iter(marks), "")
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            well = well_name(row, column)
            x, y = edge + (column - 0.5) * CELL, edge + (row - 0.5) * CELL
            if well in marks:
                _well(svg, marks[well], scale, (x, y), wells, tabbed=well == first)
            else:
                SubElement(svg, "circle", {"class": "absent", "cx": f"{x:g}", "cy": f"{y:g}", "r": "3"})
    return markup(svg)


def markup(element: Element) -> Markup:
    """Return drawn elements as part of a page."""
    return Markup(tostring(element, encoding="unicode"))  # ElementTree escapes what it writes


def _hatch() -> Element:
    """Return the pattern that lies over refused wells, and the flag of wells that left the control band."""
    defs = Element("defs")
    shape = {"id": "hatch", "width": "6", "height": "6", "patternUnits": "userSpaceOnUse"}
    pattern = SubElement(defs, "pattern", {**shape, "patternTransform": "rotate(45)"})
    flag = SubElement(defs, "symbol", {"id": "left-flag", "overflow": "visible"})
    for kind in ("flag-edge", "flag"):  # placed by plate.js on wells that left the control band
        SubElement(flag, "path", {"class": kind, "d": "M0 0V-13L9 -9.500L0 -6"})
    for x, kind in (("0", "hatch-dark"), ("3", "hatch-light")):
        SubElement(pattern, "rect", {"x": x, "width": "3", "height": "6", "class": kind})
    return defs


def _headings(svg: Element, rows: int, columns: int, edge: int) -> None:
    step = 1 if columns <= 24 else 2
    size = f"{edge * 0.58:g}"
    for column in range(1, columns + 1, step):
        at = {"x": f"{edge + (column - 0.5) * CELL:g}", "y": f"{edge * 0.62:g}"}
        _text(svg, str(column), "heading", size, at)
    for row in range(1, rows + 1, step):
        at = {"x": f"{edge * 0.45:g}", "y": f"{edge + (row - 0.5) * CELL:g}"}
        _text(svg, row_letters(row), "heading", size, at)


def _text(parent: Element, text: str, kind: str, size: str, at: Mapping[str, str], fill: str = "") -> None:
    element = SubElement(parent, "text", {"class": kind, "font-size": size, **at, "aria-hidden": "true"})
    if fill:
        element.set("fill", fill)
    element.text = text


def _well(svg: Element, mark: WellMark, scale: Scale, at: tuple[float, float], wells: int, *, tabbed: bool) -> None:
    """Draw one well as a link; only one of them is reached with Tab, the arrow keys lead to the others."""
    x, y = at
    kinds = " ".join(("well", *mark.flags, *([mark.role] if mark.role in BADGES else [])))
    names = {"id": f"well-{mark.well}", "class": kinds, "href": mark.href, "data-well": mark.well}
    link = SubElement(svg, "a", {**names, "tabindex": "0" if tabbed else "-1"})
    SubElement(link, "text", {"class": "name", "font-size": "1", "x": f"{x:g}", "y": f"{y:g}"}).text = mark.label
    fill = "none" if mark.value is None else shade(mark.value, scale.low, scale.high)
    if wells <= TEXT_UP_TO:
        place = {"cx": f"{x:g}", "cy": f"{y:g}", "r": "17.5"}
        shape = "circle"
    else:
        place = {"x": f"{x - 18:g}", "y": f"{y - 18:g}", "width": "36", "height": "36", "rx": "4"}
        shape = "rect"
    SubElement(link, shape, {"class": "disc" if mark.value is not None else "disc empty", "fill": fill, **place})
    if "refused" in mark.flags:
        SubElement(link, shape, {"class": "over", "stroke": "url(#hatch)", "fill": "none", **_inner(place)})
    if wells <= TEXT_UP_TO:
        _inscribe(link, mark, scale, x, y, "" if mark.value is None else ink(fill), caption=wells <= CAPTION_UP_TO)
    _badges(link, mark, x, y, wells, ink(fill) if mark.value is not None else "")


def _inner(place: Mapping[str, str]) -> dict[str, str]:
    """Return the ring inside a well's rim, on which the hatching of refused wells lies clear of its number."""
    if "r" in place:
        return {**place, "r": "16"}
    x, y = float(place["x"]) + 2, float(place["y"]) + 2
    return {**place, "x": f"{x:g}", "y": f"{y:g}", "width": "32", "height": "32"}


def _inscribe(link: Element, mark: WellMark, scale: Scale, x: float, y: float, fill: str, *, caption: bool) -> None:
    captions = mark.caption if caption else ()
    kind = "value" if fill else "value none"
    top = y - 4 if captions else y
    text = scale.write(mark.value)
    size = (11 if captions else 12) * min(1, 4.4 / max(4, len(text)))
    _text(link, text, kind, f"{size:g}", {"x": f"{x:g}", "y": f"{top:g}"}, fill)
    for number, line in enumerate(captions[:2]):
        short = line if len(line) <= 11 else line[:10] + "…"
        size = min(5.4, (31 - 4 * number) / (0.56 * max(len(short), 1)))
        _text(link, short, "caption", f"{size:.3g}", {"x": f"{x:g}", "y": f"{y + 4.6 + 5.8 * number:g}"}, fill)


def _badges(link: Element, mark: WellMark, x: float, y: float, wells: int, fill: str) -> None:
    """Mark controls by a sign, alarms by a triangle, late wells by a clock."""
    small = wells <= TEXT_UP_TO
    if mark.role in BADGES and small:
        SubElement(link, "circle", {"class": "badge", "cx": f"{x - 13.5:g}", "cy": f"{y - 13.5:g}", "r": "5.5"})
        _text(link, BADGES[mark.role], "sign", "9.5", {"x": f"{x - 13.5:g}", "y": f"{y - 13.5:g}"})
    elif mark.role in BADGES:
        _text(link, BADGES[mark.role], "value", "30", {"x": f"{x:g}", "y": f"{y:g}"}, fill)
    if "alarm" in mark.flags:
        points = f"{x + 13.5:g},{y - 19.5:g} {x + 20:g},{y - 8:g} {x + 7:g},{y - 8:g}"
        SubElement(link, "polygon", {"class": "alarm", "points": points})
        _text(link, "!", "alarm-sign", "8.5", {"x": f"{x + 13.5:g}", "y": f"{y - 11.6:g}"})
    if "failed" in mark.flags:
        cross = f"M{x - 18:g} {y + 9:g}l9 9m0 -9l-9 9"
        SubElement(link, "path", {"class": "cross-edge", "d": cross})
        SubElement(link, "path", {"class": "cross", "d": cross})
    if "stalled" in mark.flags:
        SubElement(link, "circle", {"class": "clock", "cx": f"{x + 13.5:g}", "cy": f"{y + 13.5:g}", "r": "5.5"})
        hands = f"M{x + 13.5:g} {y + 9.8:g}V{y + 13.5:g}H{x + 16.5:g}"
        SubElement(link, "path", {"class": "hands", "d": hands})


def legend_svg(scale: Scale) -> Markup:
    """Draw the colours from low to high with five numbers beneath."""
    svg = Element("svg", {"viewBox": "0 0 400 34", "class": "scale", "role": "img"})
    svg.set("aria-label", f"Colours: {scale.title} from {scale.write(scale.low)} to {scale.write(scale.high)}")
    gradient = SubElement(SubElement(svg, "defs"), "linearGradient", {"id": "colours"})
    for step in range(0, 17):
        colour = VIRIDIS[min(255, 16 * step)]
        SubElement(gradient, "stop", {"offset": f"{100 * step / 16:g}%", "stop-color": colour})
    SubElement(svg, "rect", {"x": "20", "width": "360", "height": "14", "rx": "3", "fill": "url(#colours)"})
    for step in range(5):
        value = scale.low + (scale.high - scale.low) * step / 4
        text = scale.write(value)
        _text(svg, text, "tick", "13", {"x": f"{20 + 90 * step:g}", "y": "26"})
    return markup(svg)


STATES = ("scored", "refused", "failed", "pending", "skipped", "superseded")
"""States of images in the order in which they are told."""


def tally_svg(images: Counts) -> Markup:
    """Draw how many images stand in each state as one bar."""
    svg = Element("svg", {"viewBox": "0 0 400 18", "preserveAspectRatio": "none", "class": "tally", "role": "img"})
    numbers = {state: getattr(images, state) for state in STATES}
    svg.set("aria-label", "Images: " + ", ".join(f"{number} {state}" for state, number in numbers.items() if number))
    total, at = max(1, sum(numbers.values())), 0.0
    for state, number in numbers.items():
        if number:
            width = 400 * number / total
            SubElement(
                svg, "rect", {"x": f"{at:.2f}", "width": f"{width:.2f}", "height": "18", "class": f"fill-{state}"}
            )
            at += width
    return markup(svg)
