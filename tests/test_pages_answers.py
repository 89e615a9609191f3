"""The page answers as the API does: the same cells, the same words, and nothing of what does not count."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from db.care import upgrade
from db.engine import open_reader
from sesmo_live import overview
from sesmo_live.web import explaining
from tests.screens import add_plate, server
from tests.web import live, plate_db, scored_plate

__all__ = ["plate_db", "scored_plate"]

WELL = "/plates/P%3Cb%3E1/wells/A01"


def montage(base: str) -> tuple[int, set[str]]:
    """Return how many cells the page counts in a well's montage, and the numbers of their images."""
    text = httpx.get(f"{base}{WELL}/parts/cells").text
    found = re.search(r"of (\d+) cells at this time point", text)
    return int(found[1]) if found else 0, set(re.findall(r"/images/(\d+)/cells/", text))


def test_the_montage_shows_the_cells_that_count_and_no_others(plate_db: Path) -> None:
    with live(plate_db) as api:
        base = api.address.rstrip("/")
        fields = api.get(f"/api/v1{WELL}").json["fields"]
        whole, images = montage(base)
        assert (whole, images) == (sum(f["n_cells"] for f in fields), {str(f["image_id"]) for f in fields})
        gone, *others = fields
        path = f"/api/v1/images/{gone['image_id']}/exclusion"
        assert api.write("PUT", path, {"reason": "a bubble"}).status == 200
        left, images = montage(base)
        assert (left, images) == (whole - gone["n_cells"], {str(f["image_id"]) for f in others})
        ranked = api.get(f"/api/v1{WELL}/cells?number=500").json
        assert {str(cell["image_id"]) for cell in ranked} == images
        assert len(ranked) == left


def test_a_plate_map_needs_a_plate_with_a_name(plate_db: Path) -> None:
    with live(plate_db) as api:
        assert (
            api.write("PUT", "/api/v1/plates/%20/platemap?filename=m.csv", b"well,role\nA01,negative\n").status == 422
        )


def test_an_explanation_is_of_pixels_and_not_of_a_number(plate_db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first image of another database has the same number, and must not be shown the old one's heat map."""
    made: list[int] = []

    def make(_self: object, image_id: int, _place: Any, _model: str, kept: Path) -> None:
        made.append(image_id)
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(b"PNG %d" % len(made))

    monkeypatch.setattr(explaining.Explainer, "_make", make)
    engine = open_reader(plate_db)
    explainer = explaining.Explainer(engine, str(plate_db))
    assert len(overview.field_cells(engine, 1).cells) > 0
    assert [explainer.picture(1, None), explainer.picture(1, None)] == [b"PNG 1"] * 2
    with closing(sqlite3.connect(plate_db)) as raw:
        raw.execute("UPDATE image SET sha256 = ? WHERE id = 1", ["0" * 64])
        raw.commit()
    assert explainer.picture(1, None) == b"PNG 2"
    engine.dispose()


def test_a_plate_without_a_score_can_be_coloured_by_anything_that_there_is(tmp_path: Path) -> None:
    db = tmp_path / "s.db"
    upgrade(db)
    add_plate(db, "EMPTY", times=0)
    with server(db) as base:
        for show in ("score", "cells", "percent", "z", "focus", "age"):
            assert httpx.get(f"{base}/plates/EMPTY?show={show}").status_code == 200, show
        refused = httpx.get(f"{base}/plates/EMPTY?show=taste")
        assert (refused.status_code, "cannot be coloured by" in refused.text) == (404, True)
        assert "is scored yet" in httpx.get(f"{base}/plates/EMPTY/parts/panel").text
