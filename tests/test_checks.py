"""The binarisation check: it shows what the cropper really does."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from models.checks import binarise, draw_check, find_cells
from models.cropper import crop_cells
from sesmo_live.cli.figures import MOST_PICTURES, check
from sesmo_live.errors import ImageError, UsageError
from tests.conftest import blobs


@pytest.mark.parametrize("bright", [False, True])
@pytest.mark.parametrize("percentile", [1.0, 5.0, 10.0])
def test_patches_and_cells_are_those_of_the_cropper(percentile: float, bright: bool) -> None:
    image = blobs(3) if not bright else np.asarray(255 - blobs(3), np.uint8)
    mask = binarise(image, percentile, fluorescence=bright)
    blurred = cv2.GaussianBlur(image, (5, 5), 0)
    limit = np.percentile(blurred, 100 - percentile if bright else percentile)
    assert np.array_equal(mask, blurred > limit if bright else blurred < limit)
    expected = crop_cells(image, percentile=100 - percentile if bright else percentile, fluorescence=bright)[1]
    centres = find_cells(image, percentile, fluorescence=bright)
    assert np.array_equal(centres, expected)
    assert all(mask[int(y), int(x)] for x, y in centres)


def test_more_is_found_at_a_higher_percentile_and_every_panel_says_how_much() -> None:
    image = blobs(5, size=400, n=30)
    figure = draw_check([("a", image, False)], (1, 5, 10))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0::3] == ["a"] * 3
    assert [title.split(":")[0] for title in titles[1::3]] == [f"the darkest {p} %" for p in (1, 5, 10)]
    counts = [int(title.split()[0]) for title in titles[2::3]]
    assert counts == [len(find_cells(image, p)) for p in (1, 5, 10)]
    assert [len(axis.patches) for axis in figure.axes[2::3]] == counts
    assert counts[0] < counts[2]


def test_the_command_draws_pictures_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "many").mkdir()
    for number in range(MOST_PICTURES + 3):
        tifffile.imwrite(tmp_path / "many" / f"{number}.tif", blobs(number, size=128, n=4))
    check([tmp_path / "many" / "1.tif"], tmp_path / "one.png", percentiles="5")
    check([tmp_path / "many"], tmp_path / "many.png", percentiles="3,5")
    one, many = (cv2.imread(str(tmp_path / name)) for name in ("one.png", "many.png"))
    assert one is not None
    assert many is not None
    assert many.shape[0] > 8 * one.shape[0]
    notes = capsys.readouterr().err
    assert f"{MOST_PICTURES} of {MOST_PICTURES + 3} pictures are shown" in notes
    assert "1 picture at 1 percentile" in notes


def test_bright_cells_are_recognised_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bright = np.clip(170.0 - blobs(3), 0, 255).astype(np.uint8)
    tifffile.imwrite(tmp_path / "bright.tif", bright)
    check([tmp_path / "bright.tif"], tmp_path / "b.png", percentiles="5")
    assert "cells look bright" in capsys.readouterr().err
    check([tmp_path / "bright.tif"], tmp_path / "b.png", percentiles="5", bright=False)
    assert "cells look bright" not in capsys.readouterr().err


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", blobs(1))
    for text, word in (("5;6", "not a list of numbers"), ("0", "above 0"), ("60", "not above 50"), ("nan", "above 0")):
        with pytest.raises(UsageError, match=word):
            check([tmp_path / "a.tif"], tmp_path / "q.png", percentiles=text)
    with pytest.raises(ImageError, match="none.tif"):
        check([tmp_path / "none.tif"], tmp_path / "q.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no pictures"):
        check([tmp_path / "empty"], tmp_path / "q.png")
    with pytest.raises(UsageError, match="is no figure"):
        check([tmp_path / "a.tif"], tmp_path / "q.gif")
    with pytest.raises(UsageError, match="pictures and percentiles"):
        draw_check([])
