"""The pages in a real browser: live, by keyboard, in the dark, for everyone, and never elsewhere."""

import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from db.care import upgrade
from db.engine import open_engine
from db.incidents import close_incident, open_incident
from sesmo_live import service
from sesmo_live.results import plate_table
from tests.cli import write_wells
from tests.conftest import settings
from tests.screens import PASSPORT, TOKEN, WARNING, add_image, add_images, add_plate, server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
AXE = Path(__file__).parent / "assets" / "axe.min.js"
WATCH_POLICY = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""
SERIOUS = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations
  .filter((found) => ["serious", "critical"].includes(found.impact))
  .map((found) => `${found.id}: ${found.nodes.map((node) => node.target.join(" ")).slice(0, 3).join("; ")}`)"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Start Debian's Chromium once for all tests of this file."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: uv sync")
    if not CHROMIUM.exists():
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


Opener = Callable[..., "Page"]


@pytest.fixture
def opened(browser: "Browser") -> Iterator[Opener]:
    """Return a function that opens a page; in the end none may have complained, or asked anybody else."""
    pages: list[Page] = []
    complaints: list[str] = []
    expected: list[str] = []

    def open_page(address: str, *, expecting: str = "", **options: Any) -> "Page":
        expected.extend([expecting] if expecting else [])
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 720}, **options})
        page.set_default_timeout(20_000)
        page.add_init_script(WATCH_POLICY)
        host = re.match(r"https?://[^/]+/", address)
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request", lambda asked: None if host and asked.url.startswith(host[0]) else complaints.append(asked.url)
        )
        page.goto(address)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        complaints += page.evaluate("window.violations")
        page.context.close()
    assert [said for said in complaints if not any(part in said for part in expected)] == []


@pytest.fixture
def db(tmp_path: Path) -> Path:
    add_plate(tmp_path / "s.db", images=tmp_path / "images")
    return tmp_path / "s.db"


@pytest.fixture
def base(db: Path) -> Iterator[str]:
    with server(db) as address:
        yield address


def until(page: "Page", expression: str, seconds: float = 20) -> None:
    """Wait until a JavaScript expression holds; Playwright's own waiting would need the eval that the page forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"not within {seconds} s: {expression}"
        page.wait_for_timeout(50)


def write(db: Path, change: Callable[[Any], object]) -> None:
    """Change the database as another process does."""
    engine = open_engine(db, write=True, checkpoint=False)
    with engine.begin() as connection:
        change(connection)
    engine.dispose()


VIEWS = {
    "plates": "/",
    "plate": "/plates/P1",
    "well": "/plates/P1/wells/A03",
    "compound": "/compounds/doxorubicin",
    "run": "/run",
    "missing": "/plates/none",
}


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_every_view_can_be_read_by_everyone(base: str, opened: Opener, db: Path, scheme: str, width: int) -> None:
    write(db, lambda connection: open_incident(connection, "stalled", "P1", "P1 stalled; look at it", plate_id=1))
    page = opened(base + "/", expecting="status of 404", color_scheme=scheme, viewport={"width": width, "height": 720})
    for name, path in VIEWS.items():
        page.goto(base + path)
        page.wait_for_selector("#live[data-state=on]")
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        page.evaluate(AXE.read_text(encoding="utf-8"))
        assert page.evaluate(SERIOUS) == [], name


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[str]:
    upgrade(tmp_path / "s.db")
    with server(tmp_path / "s.db") as address:
        yield address


@pytest.mark.usefixtures("stub_scorer")
def test_a_plate_fills_while_it_is_watched(empty: str, opened: Opener, tmp_path: Path, stub_model: Path) -> None:
    db, images, ending = tmp_path / "s.db", tmp_path / "LIVE", threading.Event()
    images.mkdir()
    daemon = threading.Thread(target=service.run, args=(settings(images, db, stub_model), ending))
    page = opened(empty + "/")
    assert page.get_by_role("heading", name="No plate yet").is_visible()
    page.evaluate("window.neverReloaded = true")
    daemon.start()
    try:
        write_wells(images, "A01 A02", times=1)
        page.get_by_role("link", name="LIVE", exact=True).click()
        page.wait_for_selector("#well-A02:not(:has(.empty))")
        page.evaluate("window.neverReloaded = true")
        write_wells(images, "B01 B02", times=2)
        until(page, "document.querySelector('#side [data-count=scored]').textContent === '6'")
        page.wait_for_selector("#well-B02:not(:has(.empty))")
        assert page.evaluate("window.neverReloaded")
    finally:
        ending.set()
        daemon.join(20)
    engine = open_engine(db)
    rows = {row["well"]: row for row in plate_table(engine, "LIVE").rows}
    engine.dispose()
    shown = {well: page.locator(f"#well-{well} text.value").text_content() for well in rows}
    assert shown == {well: f"{row['score']:.2f}" for well, row in rows.items()}
    assert page.locator("#time").get_attribute("max") == "2"


def test_a_score_and_a_stall_show_by_themselves(base: str, opened: Opener, db: Path) -> None:
    page = opened(base + "/plates/P1")
    page.wait_for_selector("#live[data-state=on]")
    took = []
    write(db, lambda connection: add_images(connection, 1, "P1", ("D06",), 2))
    began = time.monotonic()
    page.wait_for_selector("#well-D06")
    took.append(time.monotonic() - began)
    stall = "plate P1: no new image for 3 h; look at the microscope"
    write(db, lambda connection: open_incident(connection, "stalled", "P1", stall, plate_id=1))
    began = time.monotonic()
    alert = page.get_by_role("alert")
    alert.wait_for()
    took.append(time.monotonic() - began)
    assert "no new image for 3 h" in (alert.text_content() or "")
    assert page.locator("#well-A01 .clock").count() == 1
    write(db, lambda connection: close_incident(connection, "stalled", "P1", "an image came"))
    alert.wait_for(state="detached")
    sys.stdout.write(f"from commit to page: a score {took[0]:.2f} s, a stall {took[1]:.2f} s\n")
    assert took[1] <= 5


def test_a_tab_that_nobody_sees_holds_no_connection_and_catches_up(base: str, browser: "Browser", db: Path) -> None:
    turn = """hidden => {
      Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    tabs: list[Page] = []
    with browser.new_context() as context:
        for _ in range(8):  # a browser gives a host six connections
            for tab in tabs[-1:]:
                tab.evaluate(turn, True)
            tabs.append(context.new_page())
            tabs[-1].goto(f"{base}/plates/P1", timeout=20_000)
            until(tabs[-1], "document.getElementById('live').dataset.state === 'on'")
        write(db, lambda connection: open_incident(connection, "stalled", "P1", "plate P1: no image", plate_id=1))
        until(tabs[-1], "document.querySelector('[role=alert]') !== null")
        assert tabs[0].locator("[role=alert]").count() == 0
        tabs[0].evaluate(turn, False)
        until(tabs[0], "document.querySelector('[role=alert]') !== null")


def test_the_wells_are_walked_with_the_arrow_keys(base: str, opened: Opener, db: Path) -> None:
    page = opened(base + "/plates/P1")
    page.wait_for_selector("#live[data-state=on]")
    focused = "document.activeElement.dataset.well"
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate(focused):
            break
    assert page.evaluate(focused) == "A01"
    walked = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "End", "Home", "ArrowUp"):
        page.keyboard.press(key)
        walked.append(page.evaluate(focused))
    assert walked == ["A02", "A03", "B03", "B03", "B02", "B03", "A01", "A01"]
    page.keyboard.press("ArrowRight")
    assert "doxorubicin 0.1 µM, score" in (page.locator("#readout").text_content() or "")
    write(db, lambda connection: add_images(connection, 1, "P1", ("D06",), 2))
    page.wait_for_selector("#well-D06")
    until(page, f"{focused} === 'A02'")  # the map was swapped beneath the reader's finger
    page.keyboard.press("Enter")
    page.wait_for_url("**/plates/P1/wells/A02*")
    assert "A02" in (page.locator("h1").text_content() or "")


def test_the_slider_replays_the_run(base: str, opened: Opener) -> None:
    page = opened(base + "/plates/P1")
    value = page.locator("#well-A04 text.value")
    latest = value.text_content()
    assert page.locator("#time-words").text_content() == "now: latest image"
    page.locator("#time").focus()
    page.keyboard.press("Home")
    until(page, f"document.querySelector('#well-A04 text.value').textContent !== '{latest}'")
    assert page.locator("#time-words").text_content() == "0.0 h (1 of 3)"
    until(page, "document.querySelector('#well-A04').textContent.includes('at 0.0 h')")
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('#well-A04').textContent.includes('at 24.0 h')")
    page.get_by_role("button", name="Replay").click()
    until(page, "document.querySelector('#well-A04').textContent.includes('at 0.0 h')")
    until(page, "document.querySelector('#time-words').textContent === 'now: latest image'")
    until(page, f"document.querySelector('#well-A04 text.value').textContent === '{latest}'")
    page.get_by_text("Cells", exact=True).click()
    until(page, "document.querySelector('#well-A04 text.value').textContent === '24'")
    assert "cells" in (page.locator("#legend").text_content() or "")
    page.get_by_text("% of control", exact=True).click()
    until(
        page, "document.querySelector('#readout').textContent.startsWith('No percent of control: there are 1 positive')"
    )


def test_a_well_is_opened_and_its_fields_are_seen(base: str, opened: Opener) -> None:
    page = opened(base + "/plates/P1")
    page.locator("#well-A03").click()
    page.wait_for_url("**/plates/P1/wells/A03*")
    page.wait_for_selector("#course canvas")
    assert WARNING in (page.get_by_role("note").text_content() or "")
    pictures = page.locator("#fields img")
    assert pictures.count() == 2
    until(page, "[...document.querySelectorAll('#fields img')].every((i) => i.complete && i.naturalWidth > 50)")
    page.wait_for_selector(".montage li")
    scores = [float(text) for text in page.locator(".montage li").all_text_contents()]
    assert len(scores) == 24
    assert scores == sorted(scores)
    page.locator("#cells").scroll_into_view_if_needed()
    until(page, "[...document.querySelectorAll('.montage img')].every((i) => i.complete && i.naturalWidth > 10)")
    first = page.locator("#fields figure").first.get_attribute("data-image")
    page.select_option("#which", "0")
    until(page, f"document.querySelector('#fields figure').dataset.image !== '{first}'")
    assert page.locator("#which").input_value() == "0"


def test_a_compound_is_found(base: str, opened: Opener) -> None:
    page = opened(base + "/")
    box = page.get_by_label("Compound")
    box.focus()
    page.wait_for_selector("#compounds option[value=metformin]", state="attached")
    box.fill("adriamycin")
    box.press("Enter")
    page.wait_for_url("**/compounds/adriamycin")
    assert page.locator("h1").text_content() == "doxorubicin"
    until(page, "document.querySelectorAll('canvas').length === 2")
    page.get_by_role("link", name="A03", exact=True).click()
    page.wait_for_url("**/plates/P1/wells/A03*")


def test_dark_is_kept_once_chosen(base: str, opened: Opener) -> None:
    page = opened(base + "/plates/P1/wells/A03", color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    switch = page.get_by_role("button", name="Dark")
    switch.click()
    assert switch.get_attribute("aria-pressed") == "true"
    dark = page.evaluate(ground)
    page.goto(base + "/plates/P1")
    assert page.evaluate(ground) == dark != light
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(ground) == light


def test_a_field_is_excluded_with_the_token_and_only_with_it(base: str, opened: Opener) -> None:
    page = opened(base + "/plates/P1/wells/A03", expecting="status of 401")
    before = page.locator("#course .big").text_content()
    button = page.locator("#fields figure").first.get_by_role("button", name="Exclude")
    button.click()
    page.get_by_label("Why shall this field not count?").fill("bubble")
    page.keyboard.press("Enter")
    token = page.get_by_label("Changing something needs")
    token.fill("a token of somebody else's server")
    page.keyboard.press("Enter")
    page.get_by_text("That token is not the one of this service.").wait_for()
    assert page.locator("#course .big").text_content() == before
    token.fill(TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=excluded: bubble")
    until(page, f"document.querySelector('#course .big').textContent !== '{before}'")
    page.get_by_role("button", name="Count again").click()  # the token is not asked for again
    until(page, f"document.querySelector('#course .big').textContent === '{before}'")


def test_what_the_model_sees_is_shown_on_a_click(base: str, db: Path, opened: Opener) -> None:
    page = opened(base + "/plates/P1/wells/A03")
    figure = page.locator("#fields figure").first
    with closing(sqlite3.connect(db)) as raw:
        query = "SELECT sha256 FROM image WHERE id = ?"
        (digest,) = raw.execute(query, [figure.get_attribute("data-image")]).fetchone()
    kept = Path(f"{db}.explained") / f"{digest[:32]}-{PASSPORT.model_id}.png"
    kept.parent.mkdir()
    kept.write_bytes(page.request.get(base + str(figure.locator("img").get_attribute("src"))).body())
    figure.get_by_role("button", name="What the model sees").click()
    picture = page.get_by_role("dialog").get_by_role("img")
    picture.wait_for()
    assert "orange speaks for senescent" in (picture.get_attribute("alt") or "")
    until(page, "document.querySelector('dialog img').naturalWidth > 50")
    page.keyboard.press("Escape")
    picture.wait_for(state="detached")
    assert page.evaluate("document.activeElement.textContent") == "What the model sees"


def test_why_images_were_refused_is_unfolded_and_stays_so(base: str, db: Path, opened: Opener) -> None:
    blurred: dict[str, Any] = {"state": "refused", "reason": "out of focus: grain 1.06, in training 0.50"}
    write(db, lambda connection: add_image(connection, 1, "P1", "A02", 3, 2, **blurred))
    page = opened(base + "/plates/P1")
    page.wait_for_selector("#live[data-state=on]")
    page.get_by_text("Why 1 is not scored").click()
    listed = page.locator("#unscored-list")
    listed.wait_for()
    assert "out of focus: grain 1.06" in (listed.text_content() or "")
    assert page.locator("#well-A02 .over").count() == 1
    write(db, lambda connection: add_image(connection, 1, "P1", "A03", 3, 2, **blurred))
    page.get_by_text("Why 2 are not scored").wait_for()
    page.locator("#unscored-list li").nth(1).wait_for()
    page.get_by_text("All wells as a table").click()
    page.locator("tr[data-well=A03] >> text=out of focus").wait_for()
