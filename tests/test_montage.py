"""The montage: which cells it shows, in what order, and the command around it."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle, Rectangle

from acquisition.simulator import demo_plate, render_field
from models.montage import choose_cells, draw_field, draw_montage, lowest_middle_highest, order_by_score, scale_bar
from sesmo_live.cli.figures import montage
from sesmo_live.errors import ImageError, UsageError


def test_the_random_choice_follows_its_seed() -> None:
    first = choose_cells(1000, 50, 1)
    assert np.array_equal(first, choose_cells(1000, 50, 1))
    assert not np.array_equal(first, choose_cells(1000, 50, 2))
    assert len(set(first.tolist())) == 50
    assert first.max() > 800
    assert choose_cells(7, 50, 0).tolist() == list(range(7))


def test_sorting_spans_all_scores() -> None:
    scores = np.random.default_rng(0).random(333).astype(np.float32)
    shown = scores[order_by_score(scores, 50)]
    assert len(shown) == 50
    assert (np.diff(shown) >= 0).all()
    assert shown[0] == scores.min()
    assert shown[-1] == scores.max()


@pytest.mark.parametrize(("n", "expected"), [(1, [0]), (3, [0, 1, 2]), (9, [0, 1, 3, 4, 7, 8])])
def test_lowest_middle_and_highest(n: int, expected: list[int]) -> None:
    scores = np.arange(n, dtype=np.float32) / 10
    assert lowest_middle_highest(scores[::-1].copy()).tolist() == [n - 1 - place for place in expected]


def test_every_cell_is_shown_on_one_grey_scale_with_its_score() -> None:
    crops = np.stack([np.full((50, 50), value, np.uint8) for value in range(0, 230, 10)])
    figure = draw_montage(crops, np.linspace(0, 1, len(crops)), title="t", columns=10)
    images = [axis.get_images()[0] for axis in figure.axes if axis.get_images()]
    assert len(images) == len(crops)
    assert {image.get_clim() for image in images} == {(0, 255)}
    assert [axis.texts[0].get_text() for axis in figure.axes if axis.texts][::11] == ["0.00", "0.50", "1.00"]


def test_rings_lie_on_the_cells_and_carry_the_scores_colour(tmp_path: Path) -> None:
    field = np.full((400, 400), 1000, np.uint16)
    field[0, :50], field[1, :50] = 0, 2000
    figure = draw_field(field, np.array([[100.0, 300.0], [300.0, 100.0]]), np.array([0.0, 1.0]), "t")
    rings: list[Any] = [ring for ring in figure.axes[0].patches if isinstance(ring, Circle)][1::2]
    assert [ring.get_center() for ring in rings] == [(100.0, 300.0), (300.0, 100.0)]
    low, high = (to_rgb(ring.get_edgecolor()) for ring in rings)
    assert low[2] > low[0] + 0.5, "a low score is blue"
    assert high[0] > high[2] + 0.5, "a high score is orange"
    figure.savefig(tmp_path / "f.png")
    assert cv2.imread(str(tmp_path / "f.png")) is not None


@pytest.mark.parametrize(
    ("width_px", "pixel_um", "expected"),
    [(1024, None, (200, "200 px")), (2048, 0.65, (200 / 0.65, "200 µm")), (64, 0.1, (10, "1 µm"))],
)
def test_the_scale_bar_is_round_and_true(width_px: int, pixel_um: float | None, expected: tuple[float, str]) -> None:
    length, label = scale_bar(width_px, pixel_um)
    assert length == pytest.approx(expected[0])
    assert label == expected[1]
    axis = draw_field(np.eye(width_px, dtype=np.uint8), np.empty((0, 2)), np.empty(0), "t", pixel_um=pixel_um).axes[0]
    bar: Any = next(patch for patch in axis.patches if isinstance(patch, Rectangle))
    assert bar.get_width() == pytest.approx(length)
    assert label in [text.get_text() for text in axis.texts]


@pytest.mark.parametrize("by_score", [False, True])
def test_the_command_draws_fields_folders_and_crops(by_score: bool, tmp_path: Path) -> None:
    (tmp_path / "fields").mkdir()
    for number in (1, 2):
        tifffile.imwrite(tmp_path / "fields" / f"{number}.tif", render_field(demo_plate(1), "A01", number, 1))
    np.save(tmp_path / "crops.npy", np.random.default_rng(0).integers(0, 255, (12, 50, 50), np.uint8))
    for name in ("fields/1.tif", "fields", "crops.npy"):
        out = tmp_path / "m.png"
        montage(tmp_path / name, out, by_score=by_score, cells=20)
        picture = cv2.imread(str(out))
        assert picture is not None
        assert picture.std() > 20
        out.unlink()


def test_unfit_pictures_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sharp = render_field(demo_plate(1), "A01", 1, 1)
    tifffile.imwrite(tmp_path / "1.tif", sharp)
    tifffile.imwrite(tmp_path / "2.tif", cv2.GaussianBlur(sharp, (0, 0), 4))
    montage(tmp_path, tmp_path / "m.png", scores=False)
    assert "1 of 2 pictures would be refused, such as 2.tif (" in capsys.readouterr().err


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "grey.tif", np.full((200, 200), 900, np.uint16))
    with pytest.raises(UsageError, match="no cells were found"):
        montage(tmp_path / "grey.tif", tmp_path / "m.png")
    cv2.imwrite(str(tmp_path / "tiny.png"), np.eye(40, dtype=np.uint8))
    with pytest.raises(UsageError, match="smaller than a crop of 50 px"):
        montage(tmp_path / "tiny.png", tmp_path / "m.png")
    with pytest.raises(ImageError, match="none.tif"):
        montage(tmp_path / "none.tif", tmp_path / "m.png")
    with pytest.raises(UsageError, match="is no figure"):
        montage(tmp_path / "grey.tif", tmp_path / "m.docx")
    with pytest.raises(UsageError, match="folder .* is not there"):
        montage(tmp_path / "grey.tif", tmp_path / "nowhere" / "m.png")
    with pytest.raises(UsageError, match="--cells 0"):
        montage(tmp_path / "grey.tif", tmp_path / "m.png", cells=0)
    with pytest.raises(UsageError, match="--sorted needs scores"):
        montage(tmp_path / "grey.tif", tmp_path / "m.png", by_score=True, scores=False)
    with pytest.raises(UsageError, match="model 'nobody' is not there"):
        montage(tmp_path / "grey.tif", tmp_path / "m.png", model="nobody")
