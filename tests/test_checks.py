"""The binarisation check: it shows what the cropper really does."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from models.checks import binarise, draw_check, find_cells
from models.cropper import crop_cells
from sesmo_live.cli.figures import MOST_ROWS, _names, _pictures, check
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
    assert titles[0::3] == ["a, 400 × 400 px"] * 3
    assert [title.split(":")[0] for title in titles[1::3]] == [f"the darkest {p} %" for p in (1, 5, 10)]
    counts = [int(title.split()[0]) for title in titles[2::3]]
    assert counts == [len(find_cells(image, p)) for p in (1, 5, 10)]
    assert [len(axis.patches) for axis in figure.axes[2::3]] == counts
    assert counts[0] < counts[2]


def test_a_picture_of_one_grey_is_called_so() -> None:
    figure = draw_check([("a", np.full((60, 60), 7, np.uint8), False)], (5,))
    assert [axis.get_title() for axis in figure.axes][1:] == [
        "the darkest 5 %: all pixels are equal",
        "0 crops of 50 × 50 px",
    ]


def test_the_command_draws_pictures_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "many").mkdir()
    most = MOST_ROWS // 2
    for number in range(most + 3):
        tifffile.imwrite(tmp_path / "many" / f"{number}.tif", blobs(number, size=128, n=4))
    check([tmp_path / "many" / "1.tif"], tmp_path / "one.png", percentiles="5")
    check([tmp_path / "many"], tmp_path / "many.png", percentiles="3,5")
    one, many = (cv2.imread(str(tmp_path / name)) for name in ("one.png", "many.png"))
    assert one is not None
    assert many is not None
    assert many.shape[0] > 8 * one.shape[0]
    notes = capsys.readouterr().err
    assert f"{most} of {most + 3} pictures are taken" in notes
    assert "1 picture at 1 percentile" in notes


def test_bright_cells_are_recognised_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bright = np.clip(170.0 - blobs(3), 0, 255).astype(np.uint8)
    tifffile.imwrite(tmp_path / "bright.tif", bright)
    check([tmp_path / "bright.tif"], tmp_path / "b.png", percentiles="5")
    assert "cells look bright" in capsys.readouterr().err
    check([tmp_path / "bright.tif"], tmp_path / "b.png", percentiles="5", bright=False)
    assert "cells look bright" not in capsys.readouterr().err


def test_pictures_of_one_name_are_told_apart_and_a_large_folder_stays_readable(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("set1", "set2", "other")]
    paths = [folder / name for folder, name in zip(folders, ("raw.tif", "raw.tif", "b.tif"), strict=True)]
    assert _names(paths) == ["set1/raw.tif", "set2/raw.tif", "b.tif"]
    for number in range(500):
        (tmp_path / f"{number:03}.tif").touch()
    taken = [int(path.stem) for path in _pictures([tmp_path], 50)]
    assert len(set(taken)) == 50
    assert (taken[0], taken[-1]) == (0, 499)
    assert _pictures([tmp_path], 1) == [tmp_path / "000.tif"]


def test_a_picture_is_never_overwritten_by_its_figure(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), blobs(1))
    before = path.read_bytes()
    with pytest.raises(UsageError, match="to be looked at"):
        check([path], path)
    assert path.read_bytes() == before


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
