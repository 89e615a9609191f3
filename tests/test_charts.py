"""The charts of a compound's page: one unit an axis, and the highest doses among what is drawn."""

import json
from html import unescape
from itertools import pairwise
from pathlib import Path

from sesmo_live.records import Treatment
from sesmo_live.wells import well_name
from tests.screens import add_plate, server
from tests.test_pages import Page, get


def shown(db: Path) -> tuple[Page, list[dict[str, object]]]:
    with server(db) as base:
        page, part = get(base, "/compounds/x"), get(base, "/compounds/x/parts/curves")
    page.elements[:0] = part.elements
    return page, [json.loads(unescape(attrs["data-chart"])) for _, attrs, _ in page.find("data-chart")]


def points(chart: dict[str, object]) -> list[float]:
    lines = chart["lines"]
    assert isinstance(lines, list)
    return sorted(dose for line in lines if line["kind"] == "points" for dose in line["x"])


def test_doses_known_in_micromolar_share_an_axis_whatever_unit_was_written(tmp_path: Path) -> None:
    treated = [Treatment("A01", "x", "treatment", 500.0, "nM", 0.5), Treatment("A02", "x", "treatment", 2, "µM", 2)]
    add_plate(tmp_path / "s.db", treatments=treated, wells=("A01", "A02"), times=1)
    _, (dose, _) = shown(tmp_path / "s.db")
    assert (dose["x"], points(dose)) == ({"label": "dose, µM", "log": True}, [0.5, 2])


def test_doses_that_cannot_be_compared_have_axes_of_their_own(tmp_path: Path) -> None:
    treated = [
        Treatment("A01", "x", "treatment", 500.0, "nM", 0.5),
        Treatment("A02", "x", "treatment", 3.0, "mg/ml"),
        Treatment("A03", "x", "treatment", 4.0, "mg/ml"),
        Treatment("A04", "x", "treatment", 7.0, "%"),
    ]
    add_plate(tmp_path / "s.db", treatments=treated, wells=("A01", "A02", "A03", "A04"), times=1)
    _, (*doses, _) = shown(tmp_path / "s.db")
    labels = ["dose, %", "dose, mg/ml", "dose, µM"]
    assert [(chart["x"], points(chart)) for chart in doses] == [
        ({"label": label, "log": True}, x) for label, x in zip(labels, ([7], [3, 4], [0.5]), strict=True)
    ]


def test_the_lowest_and_the_highest_dose_are_drawn_of_many_wells_and_how_many_is_said(tmp_path: Path) -> None:
    wells = [well_name(row, column) for row in range(1, 9) for column in range(1, 12)]
    treated = [Treatment(well, "x", "treatment", dose, "µM", dose) for dose, well in enumerate(wells, 1)]
    add_plate(tmp_path / "s.db", treatments=treated, wells=wells, times=1, size=96)
    page, (dose, course) = shown(tmp_path / "s.db")
    assert points(dose) == list(range(1, 89))
    lines = course["lines"]
    assert isinstance(lines, list)
    doses = [int(line["label"].split()[2]) for line in lines]
    assert (len(set(doses)), doses[0], doses[-1]) == (40, 1, 88)
    assert max(later - before for before, later in pairwise(doses)) <= 3
    assert "40 of 88 wells drawn" in page.find("id", "main")[0][2]


def test_the_first_and_the_last_of_many_plates_are_drawn_by_dose(tmp_path: Path) -> None:
    for number in range(42):
        treated = [Treatment("A01", "x", "treatment", 1.0, "µM", 1.0)]
        add_plate(tmp_path / "s.db", f"P{number:02d}", treatments=treated, wells=("A01",), times=1)
    page, (dose, _) = shown(tmp_path / "s.db")
    lines = dose["lines"]
    assert isinstance(lines, list)
    labels = [line["label"].split()[0] for line in lines]
    assert (len(set(labels)), labels[0], labels[-1]) == (40, "P00", "P41")
    assert any("40 of 42 plate runs drawn" in "".join(words) for _, _, words in page.elements)
