"""The statistics in a real browser: flags on the map, controls, hits, onset, a compound's curve, a plate map."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from db.engine import open_reader
from sesmo_live import compounds, screens
from tests.planted_screen import LEAVING, add_screen
from tests.screens import TOKEN, add_images, server
from tests.test_browser import AXE, SERIOUS, Opener, browser, opened, until, write

__all__ = ["browser", "opened"]

pytestmark = pytest.mark.browser


@pytest.fixture
def db(tmp_path: Path) -> Path:
    add_screen(tmp_path / "s.db")
    return tmp_path / "s.db"


@pytest.fixture
def base(db: Path) -> Iterator[str]:
    with server(db) as address:
        yield address


def test_which_wells_left_since_when_and_how_sure_is_seen_at_once(base: str, opened: Opener, db: Path) -> None:
    page = opened(base + "/plates/SCREEN")
    page.wait_for_selector("#well-A05.left use")
    positive = {"A12", "B12", "C12", "D12"}
    flagged = page.evaluate("[...document.querySelectorAll('svg.plate a.left')].map((link) => link.dataset.well)")
    assert set(flagged) == LEAVING | positive
    assert page.locator("#sign-left").is_visible()
    listed = page.locator("#left .left-wells li").all_text_contents()
    assert {text.split()[0][:3] for text in listed} == LEAVING
    assert all("▲ 24 h" in text for text in listed)
    page.locator("#well-A05").hover()
    assert "left the control band at 24 h, rising" in (page.locator("#readout").text_content() or "")
    shown = page.locator("#quality .big").text_content()
    assert shown == f"{screens.plate_statistics(open_reader(db), 'SCREEN').rows[-1]['z_prime']:.2f}"
    page.locator("#time").focus()
    page.keyboard.press("Home")  # before the treatment acts nobody has left
    until(page, "document.querySelectorAll('svg.plate a.left').length === 0")
    until(page, "document.querySelector('#left').textContent.includes('No well has left')")
    assert not page.locator("#sign-left").is_visible()
    page.keyboard.press("End")
    page.wait_for_selector("#well-A05.left use")
    page.get_by_text("% of control", exact=True).click()
    until(page, "document.querySelector('#well-A01 text.value').textContent.length < 4")
    percents = {row["well"]: row["percent_of_control"] for row in screens.plate_wells(open_reader(db), "SCREEN").rows}
    for well in ("A01", "A12", "A05"):
        assert page.locator(f"#well-{well} text.value").text_content() == f"{percents[well]:.0f}"
    page.wait_for_selector("#well-A05.left use")  # a new map has its flags again
    page.get_by_text("Compounds, ranked").click()
    page.wait_for_selector("#ranked tbody tr")
    rows = page.locator("#ranked tbody tr td:nth-child(2)").all_text_contents()
    wanted = compounds.hits(open_reader(db), ["SCREEN"]).rows
    assert rows == [row["compound"] for row in wanted]
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert page.evaluate(SERIOUS) == []


def test_onset_and_curve_are_drawn_and_read_by_everyone(base: str, opened: Opener, db: Path) -> None:
    page = opened(base + "/plates/SCREEN/wells/A05", color_scheme="dark", expecting="404")
    assert "left the control band at 24.0 h, rising" in (page.locator("#onset").text_content() or "")
    page.wait_for_selector("#beside dl")
    percent = next(
        row["percent_of_control"] for row in screens.plate_wells(open_reader(db), "SCREEN").rows if row["well"] == "A05"
    )
    assert f"{percent:.0f} %" in (page.locator("#beside").text_content() or "")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert page.evaluate(SERIOUS) == []
    page.goto(base + "/compounds/nutlin")
    page.wait_for_selector("#curves canvas")
    (row,) = compounds.compound_curves(open_reader(db), "nutlin").rows
    assert page.locator("#curves .big").text_content() == f"{row['ec50']:.3g} µM"
    page.locator("#fits-1 summary").click()
    page.get_by_role("button", name="over time").click()
    page.wait_for_selector("#ec50 canvas")
    page.get_by_text("All plates and models").click()
    page.wait_for_selector("[data-percent]")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert page.evaluate(SERIOUS) == []
    write(db, lambda connection: add_images(connection, 1, "SCREEN", ("A02",), 4))
    until(page, "[...document.querySelectorAll('td')].some((cell) => cell.textContent === '96.0')")
    assert page.evaluate("document.querySelectorAll('#curves canvas, #ec50 canvas').length") == 2
    assert page.locator("#curves").get_by_text("loading").count() == 0


def test_a_plate_map_is_imported_with_the_token(base: str, opened: Opener, tmp_path: Path) -> None:
    page = opened(base + "/plates/SCREEN", expecting="status of 422")
    page.get_by_text("Take away, and the plate map").click()
    bad = tmp_path / "bad.csv"
    bad.write_text("well,compound,role\nZ99,water,negative\n")
    page.locator("#map-file").set_input_files(bad)
    page.get_by_role("button", name="Import").click()
    page.get_by_label("Changing something needs").fill(TOKEN)
    page.keyboard.press("Enter")
    page.locator("#said.bad").wait_for()
    assert "Z99" in (page.locator("#said").text_content() or "")
    good = tmp_path / "good.csv"
    good.write_text("well,compound,role\nA01,water,negative\nA02,quercetin,treatment\n")
    page.locator("#map-file").set_input_files(good)
    page.get_by_role("button", name="Import").click()
    page.get_by_text("Imported: 2 wells, 2 compounds, 1 negative and 0 positive controls.").wait_for()
    until(page, "document.querySelector('#well-A02').textContent.includes('quercetin')")
    until(page, "document.querySelector('#left').textContent.includes('Cannot be said')", 60)
    until(page, "document.querySelectorAll('svg.plate a.left').length === 0")
