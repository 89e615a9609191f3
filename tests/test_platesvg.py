"""The plate as SVG: colours, every size of plate, flags by shape, hostile names."""

import sys
import time
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from matplotlib import colormaps

from sesmo_live.overview import Counts
from sesmo_live.web.colours import VIRIDIS, ink, luminance, round_up, shade
from sesmo_live.web.platesvg import Scale, WellMark, legend_svg, plate_svg, tally_svg
from sesmo_live.wells import PLATE_SHAPES, well_name

SCALE = Scale("mean P(senescent)", "0 to 1", 0.0, 1.0, 2)
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


def every_well(wells: int, **changes: object) -> dict[str, WellMark]:
    rows, columns = PLATE_SHAPES[wells]
    names = [well_name(row, column) for row in range(1, rows + 1) for column in range(1, columns + 1)]
    common = {"caption": ("doxorubicin", "3 µM"), **changes}
    return {
        name: WellMark(well=name, value=number / wells, label=f"{name}, 0.5", href=f"/w/{name}", **common)  # type: ignore[arg-type]
        for number, name in enumerate(names)
    }


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)  # noqa: S314 — what this program has just written


def drawn(wells: int, marks: dict[str, WellMark], name: str = "P") -> ElementTree.Element:
    return parsed(plate_svg(name, wells, marks, SCALE))


def of_class(element: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [item for item in element.iter() if kind in item.get("class", "").split()]


def test_the_colours_are_viridis_as_published() -> None:
    published = [tuple(round(255 * part) for part in colormaps["viridis"](step)[:3]) for step in range(256)]
    assert [tuple(bytes.fromhex(colour[1:])) for colour in VIRIDIS] == published


def test_scores_rise_from_dark_to_bright_and_their_numbers_can_be_read_on_them() -> None:
    assert (shade(0), shade(1), shade(-3), shade(7), shade(5, 5, 5)) == (
        VIRIDIS[0], VIRIDIS[255], VIRIDIS[0], VIRIDIS[255], VIRIDIS[0]
    )  # fmt: skip
    assert shade(15, 10, 20) == shade(0.5)
    light = [luminance(colour) for colour in VIRIDIS]
    assert all(after > before for before, after in pairwise(light[::4]))  # neighbours may differ by rounding alone
    assert luminance("#000000") == 0
    assert luminance("#ffffff") == pytest.approx(1)
    contrasts = [
        (max(luminance(ink(colour)), own) + 0.05) / (min(luminance(ink(colour)), own) + 0.05)
        for colour, own in zip(VIRIDIS, light, strict=True)
    ]
    assert min(contrasts) >= 4.5


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(1, 1.2), (1.3, 2), (2.3, 4), (37, 40), (100, 120), (121, 200), (999, 1200), (0.03, 0.04), (0.6, 0.6)],
)
def test_scales_end_at_round_numbers(value: float, wanted: float) -> None:
    assert round_up(value) == pytest.approx(wanted)


@pytest.mark.parametrize("wells", PLATE_SHAPES)
def test_every_plate_has_all_its_wells_as_links_inside_the_drawing(wells: int) -> None:
    marks = every_well(wells, flags=("refused", "failed", "stalled", "alarm"), role="negative")
    began = time.process_time()
    text = plate_svg("P", wells, marks, SCALE)
    sys.stdout.write(f"{wells} wells: drawn in {1000 * (time.process_time() - began):.1f} ms of CPU\n")
    svg = parsed(text)
    links = of_class(svg, "well")
    assert len(links) == wells
    assert len({link.get("id") for link in links}) == wells
    assert [link.get("tabindex") for link in links].count("0") == 1
    assert all(
        link.get("href") and link.findtext("*[@class='name']") == f"{link.get('data-well')}, 0.5" for link in links
    )
    width, height = map(float, svg.get("viewBox", "").split()[2:])
    for disc in of_class(svg, "disc"):
        x, y = (float(disc.get(name, disc.get(f"c{name}", "nan"))) for name in "xy")
        assert 0 < x < width
        assert 0 < y < height
    assert not [
        item for item in svg.iter() if "style" in item.attrib or any(name.startswith("on") for name in item.attrib)
    ]


def test_wells_that_were_not_imaged_are_no_links() -> None:
    marks = {"B03": WellMark("B03", 0.5, "B03", "/b03")}
    svg = drawn(24, marks)
    assert [link.get("data-well") for link in of_class(svg, "well")] == ["B03"]
    assert len(of_class(svg, "absent")) == 23
    assert "1 of 24 wells" in svg.get("aria-label", "")
    assert len(of_class(drawn(6, {}), "absent")) == 6


@pytest.mark.parametrize("wells", [24, 384])
@pytest.mark.parametrize(
    ("flag", "shape"), [("refused", "over"), ("failed", "cross"), ("stalled", "clock"), ("alarm", "alarm")]
)
def test_each_flag_has_a_shape_of_its_own(wells: int, flag: str, shape: str) -> None:
    marks = {name: WellMark(name, 0.5, name, "/", flags=(flag,) if name == "A01" else ()) for name in ("A01", "A02")}
    svg = drawn(wells, marks)
    shapes = {"over", "cross", "clock", "alarm"}
    found = {kind: len([item for item in of_class(svg, kind) if item.tag.split("}")[-1] != "a"]) for kind in shapes}
    assert found == {**dict.fromkeys(shapes, 0), shape: 1}


def test_controls_are_signed_and_wells_without_a_score_are_hollow() -> None:
    marks = {
        "A01": WellMark("A01", 0.1, "", "/", role="negative"),
        "A02": WellMark("A02", 0.9, "", "/", role="positive"),
        "A03": WellMark("A03", None, "", "/", role="treatment"),
    }
    for wells in (24, 384):
        texts = [item.text for item in drawn(wells, marks).iter() if item.tag.endswith("text")]
        assert texts.count("−") == texts.count("+") == 1
        (hollow,) = of_class(drawn(wells, marks), "empty")
        assert hollow.get("fill") == "none"
    texts = [item.text for item in drawn(24, marks).iter() if item.tag.endswith("text")]
    assert {"0.10", "0.90", "–"} <= set(texts)


def test_names_are_words_whatever_they_hold() -> None:
    mark = WellMark("A01", 0.5, HOSTILE, f"/{HOSTILE}", role=HOSTILE, caption=(HOSTILE, HOSTILE))
    svg = drawn(24, {"A01": mark}, HOSTILE)
    kinds = {item.tag.split("}")[-1] for item in svg.iter()}
    assert kinds <= {"svg", "defs", "pattern", "rect", "text", "circle", "a", "symbol", "path"}
    assert svg.findtext(".//*[@class='name']") == HOSTILE
    assert HOSTILE in svg.get("aria-label", "")


def test_the_legend_reaches_from_the_lowest_to_the_highest_colour() -> None:
    legend = parsed(legend_svg(Scale("cells", "cells", 0, 500, 0)))
    texts = [item.text for item in legend.iter() if item.tag.endswith("text")]
    assert texts == ["0", "125", "250", "375", "500"]
    stops = [item.get("stop-color") for item in legend.iter() if item.tag.endswith("stop")]
    assert (stops[0], stops[-1]) == (VIRIDIS[0], VIRIDIS[255])


def test_the_bar_of_images_is_as_long_as_all_of_them() -> None:
    bar = parsed(tally_svg(Counts(scored=6, refused=3, pending=1, total=10)))
    widths = {item.get("class"): float(item.get("width", "0")) for item in bar}
    assert widths == {"fill-scored": 240, "fill-refused": 120, "fill-pending": 40}
    assert bar.get("aria-label") == "Images: 6 scored, 3 refused, 1 pending"
    assert len(parsed(tally_svg(Counts()))) == 0
