"""Pictures are made of the pixels that were scored, of no others, and no file breaks the server."""

import sqlite3
import sys
import threading
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from db.engine import open_reader
from models.convert import to_uint8
from sesmo_live.web import explaining, pixels
from tests.conftest import blobs
from tests.web import Answer, Live, live, moved_plate, reading, scored_plate

__all__ = ["moved_plate", "reading", "scored_plate"]


def picture(answer: Answer) -> NDArray[np.uint8]:
    """Return a PNG that was answered, as it is: grey, or blue, green and red."""
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png"), answer.body
    decoded = cv2.imdecode(np.frombuffer(answer.body, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    return np.asarray(decoded, np.uint8)


def file_of(folder: Path, image_id: int) -> Path:
    with closing(sqlite3.connect(folder / "s.db")) as connection:
        return Path(connection.execute("SELECT path FROM image WHERE id = ?", (image_id,)).fetchone()[0])


def scored_ids(db: Path) -> list[int]:
    with closing(sqlite3.connect(db)) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM image WHERE state = 'scored' ORDER BY id")]


def test_a_field_is_shown_as_it_was_read(reading: Live, scored_plate: Path) -> None:
    image_id = scored_ids(scored_plate / "s.db")[0]
    whole = picture(reading.get(f"/api/v1/images/{image_id}/field.png?width=4096"))
    assert np.array_equal(whole, tifffile.imread(file_of(scored_plate, image_id)))  # 8 bit passes untouched
    small = picture(reading.get(f"/api/v1/images/{image_id}/field.png?width=64"))
    assert small.shape == (64, 64)
    assert abs(float(small.mean()) - float(whole.mean())) < 1


def test_rings_lie_round_the_cells_in_the_colour_of_their_scores(reading: Live, scored_plate: Path) -> None:
    image_id = scored_ids(scored_plate / "s.db")[0]
    grey = picture(reading.get(f"/api/v1/images/{image_id}/field.png?width=4096"))
    ringed = picture(reading.get(f"/api/v1/images/{image_id}/field.png?width=4096&rings=true"))
    assert ringed.shape == (*grey.shape, 3)
    touched = (ringed != grey[..., None]).any(axis=2)
    cells = reading.get(f"/api/v1/images/{image_id}/cells").json["cells"]
    y, x = np.nonzero(touched)
    nearest = np.min([np.hypot(x - cell["x"], y - cell["y"]) for cell in cells], axis=0)
    assert nearest.min() > 10
    assert nearest.max() < 22  # rings of a third of a crop of 50 px, and their dark rims
    alone = max(cells, key=lambda c: min(np.hypot(c["x"] - o["x"], c["y"] - o["y"]) for o in cells if o is not c))
    place = round(alone["y"]), round(alone["x"]) + 17
    if 0 <= place[1] < grey.shape[1]:
        assert np.abs(ringed[place].astype(int) - pixels.colour_of(alone["score"])).max() < 40


def test_colours_of_scores_are_even_to_the_eye() -> None:
    colours = np.array([[pixels.colour_of(score / 10) for score in range(11)]], np.uint8)
    lightness = cv2.cvtColor(colours, cv2.COLOR_BGR2LAB)[0, :, 0].tolist()
    assert all(later > sooner for sooner, later in pairwise(lightness))


def test_a_cell_is_shown_as_its_model_got_it(reading: Live, scored_plate: Path) -> None:
    image_id = scored_ids(scored_plate / "s.db")[3]
    whole = to_uint8(tifffile.imread(file_of(scored_plate, image_id)))
    cells = reading.get(f"/api/v1/images/{image_id}/cells").json["cells"]
    equal = 0
    for cell in cells:
        crop = picture(reading.get(f"/api/v1/images/{image_id}/cells/{cell['idx']}.png?size=50"))
        left, top = round(cell["x"] - 25), round(cell["y"] - 25)
        if left >= 0 and top >= 0 and left + 50 <= 256 and top + 50 <= 256:
            assert np.array_equal(crop, whole[top : top + 50, left : left + 50])
            assert float(crop.mean()) / 255 == pytest.approx(cell["score"], abs=0.04)  # what the stub scores by
            equal += 1
        assert crop.shape == (50, 50)
    assert equal >= 3


def test_a_cell_at_the_edge_is_padded() -> None:
    from sesmo_live.overview import CellView
    from sesmo_live.records import ModelPassport

    passport: Any = ModelPassport("m", "1", "n", 50, None, "min-max", "c", {}, 0.5, "")
    for x, y in ((0.0, 0.0), (255.0, 255.0), (-100.0, 300.0)):
        data = pixels.cell_png(blobs(1), CellView(0, x, y, 0.5), passport, None, 50)
        shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert shown is not None
        assert shown.shape == (50, 50)


def test_what_is_gone_changed_or_was_never_read_is_404_with_a_sentence(moved_plate: Path) -> None:
    gone, changed, missing_page, *_ = scored_ids(moved_plate)
    file_of(moved_plate.parent, gone).unlink()
    tifffile.imwrite(file_of(moved_plate.parent, changed), blobs(999))
    file_of(moved_plate.parent, missing_page).write_bytes(b"II*\0" + bytes(100))
    with closing(sqlite3.connect(moved_plate)) as connection:
        (failed,) = connection.execute("SELECT id FROM image WHERE state = 'failed'").fetchone()
    with live(moved_plate) as server:
        for image_id, words in (
            (gone, "cannot be read any more; bring it back"),
            (changed, "was changed since"),
            (missing_page, "cannot be read any more"),
            (failed, "is failed, so there are no pixels"),
            (999, "there is no image 999"),
        ):
            for path in ("field.png", "field.png?rings=true"):
                answer = server.get(f"/api/v1/images/{image_id}/{path}")
                assert answer.status == 404
                assert words in answer.detail
                assert str(moved_plate.parent) not in answer.detail
        assert server.get("/api/v1/plates").status == 200


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have a small script stand in for `sesmo-live explain`, which would load the network."""
    monkeypatch.setattr(explaining, "child", lambda _call, *words: [sys.executable, "-c", code, *words])


MAKE = """
import sys, time
from pathlib import Path
import cv2, numpy as np
out = Path(sys.argv[sys.argv.index("--out") + 1])
with open(out.parent / "calls", "a") as calls:
    calls.write(" ".join(sys.argv[1:3]) + "\\n")
time.sleep(0.3)
cv2.imwrite(str(out / "gradcam.png"), np.full((8, 8), 77, np.uint8))
"""


def test_an_explanation_is_made_once_and_kept(moved_plate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, MAKE)
    image_id = scored_ids(moved_plate)[0]
    models = (str(moved_plate.parent / "stub"),)
    with live(moved_plate, models=models) as server:
        for _ in range(3):
            assert picture(server.get(f"/api/v1/images/{image_id}/explain.png")).mean() == 77
    with live(moved_plate, models=models) as server:
        assert picture(server.get(f"/api/v1/images/{image_id}/explain.png?model=stub")).mean() == 77
    kept = moved_plate.parent / "s.db.explained"
    (call,) = (kept / "calls").read_text().splitlines()
    assert str(file_of(moved_plate.parent, image_id)) in call
    assert sorted(path.suffix for path in kept.iterdir()) == ["", ".png"]


def test_a_child_that_explains_ends_with_the_server(moved_plate: Path) -> None:
    ending = threading.Event()
    explainer = explaining.Explainer(open_reader(moved_plate), str(moved_plate), closing=ending.is_set)
    threading.Timer(0.5, ending.set).start()
    began = time.monotonic()
    with pytest.raises(explaining.BusyError, match="the server ends"):
        explainer._run([sys.executable, "-c", "import time; time.sleep(60)"])
    assert time.monotonic() - began < 10


def test_explanations_that_fail_hang_or_lack_their_model_are_told(
    moved_plate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id, other = scored_ids(moved_plate)[:2]
    with live(moved_plate) as server:
        answer = server.get(f"/api/v1/images/{image_id}/explain.png")
        assert (answer.status, "is not on this computer" in answer.detail) == (404, True)
    models = (str(moved_plate.parent / "stub"),)
    stand_in(monkeypatch, "raise SystemExit(3)")
    with live(moved_plate, models=models) as server:
        answer = server.get(f"/api/v1/images/{image_id}/explain.png")
        assert (answer.status, "cannot be explained" in answer.detail) == (404, True)
        assert server.get("/api/v1/images/999/explain.png").status == 404
    stand_in(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(explaining.Explainer.__init__, "__defaults__", ((), 0.5, lambda: False))
    with live(moved_plate, models=models) as server:
        answer = server.get(f"/api/v1/images/{other}/explain.png")
        assert (answer.status, "took longer than" in answer.detail) == (503, True)
    assert list((moved_plate.parent / "s.db.explained").glob("*.png")) == []
