"""`crop` and `train-detector` as users meet them: what is written and said, scales, and input that cannot be right."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from models.centres import find_centres
from models.cropper import CROPPERS
from models.detector_passport import read_detector_passport
from sesmo_live.cli.detection import cut_found
from tests.cli import Sesmo, runner, sentence
from tests.conftest import write_image
from tests.figures import figure
from tests.test_detector_training import drawn_field, labelled_folder

TEXTURE = ("--detector", "texture")


@pytest.fixture
def sesmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sesmo:
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch)


@pytest.fixture
def field(tmp_path: Path) -> Path:
    """Return a TIFF of drawn cells of about 30 px that knows its scale, 0.5 µm per pixel."""
    path = tmp_path / "field.tif"
    tifffile.imwrite(path, drawn_field(1)[0], imagej=True, resolution=(2.0, 2.0), metadata={"unit": "um"})
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_crop_writes_all_centres_and_the_crops_that_have_room(sesmo: Sesmo, field: Path) -> None:
    said = sesmo("crop", field, *TEXTURE, "--cell-diameter-px", 30, "--out", "c.npy", "--positions", "p.csv").err
    rows, crops = rows_of(Path("p.csv")), np.load("c.npy")
    found = find_centres(drawn_field(1)[0], cell_diameter_px=30)
    assert [float(row["x"]) for row in rows] == pytest.approx(found.xy[:, 0].tolist(), abs=0.006)
    assert crops.shape[1:] == (50, 50)
    assert 0 < len(crops) < len(rows)
    lines = said.splitlines()
    assert lines[0] == f"{len(rows)} cells in field.tif, found by texture, without a network"
    assert lines[1].startswith(f"{len(rows) - len(crops)} of them too near the rim for a crop of 50 px")
    assert len(lines) == 2


def test_a_guessed_diameter_is_said_to_be_one(sesmo: Sesmo, field: Path) -> None:
    said = sesmo("crop", field, *TEXTURE, "--positions", "p.csv").err
    assert "the cell diameter was guessed: " in said
    assert "--cell-diameter-px or --cell-diameter-um" in said


@pytest.mark.parametrize("scale", [(), ("--pixel-um", 0.25)])
def test_a_diameter_in_um_counts_by_the_files_own_scale_unless_told(
    sesmo: Sesmo, field: Path, scale: tuple[object, ...]
) -> None:
    sesmo("crop", field, *TEXTURE, "--cell-diameter-um", 15, *scale, "--positions", "p.csv")
    found = find_centres(drawn_field(1)[0], cell_diameter_px=60 if scale else 30)
    assert [float(row["x"]) for row in rows_of(Path("p.csv"))] == pytest.approx(found.xy[:, 0].tolist(), abs=0.006)


def test_crops_of_another_camera_show_what_the_models_do() -> None:
    """The same field at half the µm per pixel gives the same crops, at positions in its own pixels."""
    image = drawn_field(2)[0]
    fine = np.asarray(cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), np.uint8)
    plain, double = find_centres(image, cell_diameter_px=30), find_centres(fine, cell_diameter_px=60)
    crops, zoomed = cut_found(image, plain, 40, 1.0), cut_found(fine, double, 40, 0.5)
    assert zoomed.shape[1:] == (40, 40)
    assert len(crops) == len(zoomed) > 3
    best = [np.abs(crops.astype(int) - crop).mean(axis=(1, 2)).min() for crop in zoomed.astype(int)]
    figure(f"mean grey difference to the nearest crop: {np.round(best, 1).tolist()}")
    assert np.median(best) < 12 < crops.std() / 2


def test_crops_keep_their_pixels_where_scales_hardly_differ() -> None:
    image = drawn_field(2)[0]
    found = find_centres(image, cell_diameter_px=30)
    np.testing.assert_array_equal(cut_found(image, found, 50, 1.04), cut_found(image, found, 50, 1.0))


def test_the_original_cropper_does_as_before(sesmo: Sesmo, tmp_path: Path) -> None:
    image = tifffile.imread(write_image(tmp_path / "a.tif"))
    for words, settings in (
        ((), {}),
        (("--percentile", 8, "--min-area", 30), {"percentile": 8, "min_area_px": 30}),
        (("--fluorescence",), {"fluorescence": True}),
    ):
        done = sesmo("crop", "a.tif", "--cropper", "deep-sesmo", *words, "--out", "c.npy", "--positions", "p.csv")
        crops, centres = CROPPERS["deep-sesmo"](image, **settings)
        np.testing.assert_array_equal(np.load("c.npy"), crops)
        assert [[float(row["x"]), float(row["y"])] for row in rows_of(Path("p.csv"))] == centres.tolist()
        assert f"{len(crops)} cell" in done.err


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--percentile", 5), "--percentile is a setting of cropper deep-sesmo, not of centres"),
        (("--min-area", 50), "--min-area is a setting of cropper deep-sesmo"),
        (("--fluorescence",), "--fluorescence is a setting of cropper deep-sesmo"),
        (("--cropper", "deep-sesmo", "--cell-diameter-px", 30), "--cell-diameter-px is a setting of cropper centres"),
        (("--cropper", "deep-sesmo", "--detector", "texture"), "--detector is a setting of cropper centres"),
        (("--cropper", "deep-sesmo-either", "--fluorescence"), "--fluorescence is a setting of cropper deep-sesmo,"),
        (("--cropper", "other"), "the croppers are"),
        (("--cell-diameter-px", 30, "--cell-diameter-um", 15), "exclude each other"),
        ((*TEXTURE, "--cell-diameter-px", 3), "cell diameter of 3.0 px is out of range"),
        (("--pixel-um", 0), "--pixel-um 0.0 is no scale"),
        (("--pixel-um", "nan"), "--pixel-um nan is no scale"),
        (("--model-pixel-um", -1), "--model-pixel-um -1.0 is no scale"),
        ((*TEXTURE, "--crop-px", 0, "--cell-diameter-px", 30), "crops of 0 px hold nothing"),
        (("--detector", "nowhere"), "detector 'nowhere' is not there"),
    ],
)
def test_settings_that_cannot_be_right_are_one_sentence(
    sesmo: Sesmo, field: Path, words: tuple[object, ...], fault: str
) -> None:
    assert fault in sentence(sesmo("crop", field, "--out", "c.npy", *words, code=2))
    assert not Path("c.npy").exists()


def test_a_scale_that_nobody_knows_is_asked_for(sesmo: Sesmo, tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    for words in (("--cell-diameter-um", 15), ("--model-pixel-um", 1.0)):
        said = sentence(sesmo("crop", "a.tif", "--out", "c.npy", *TEXTURE, *words, code=2))
        assert "add --pixel-um" in said


def test_crop_finds_cells_with_the_shipped_detector(sesmo: Sesmo, field: Path) -> None:
    said = sesmo("crop", field, "--cell-diameter-px", 30, "--positions", "p.csv").err
    assert "found by detector centres-" in said
    assert len(rows_of(Path("p.csv"))) > 5
    assert all(6 < float(row["diameter_px"]) < 120 for row in rows_of(Path("p.csv")))


def test_a_site_trains_from_points_and_is_told_that_nothing_was_measured(sesmo: Sesmo, tmp_path: Path) -> None:
    labelled_folder(tmp_path, 2)
    Path("points.csv").write_text("image,x,y\nf0.tif,60,60\nf0.tif,150,100\n")
    words = ("--points", "points.csv", "--cell-diameter-px", 30, "--from-scratch", "--steps", 2)
    said = sesmo("train-detector", "images", "--out", "mine", *words).err
    assert "1 picture without labels left out, such as f1.tif" in said
    assert "1 field with 2 cells" in said
    assert "not measured: give at least 4 labelled fields" in said
    assert read_detector_passport(tmp_path / "mine").training["started_from"] == "nothing"
    again = sentence(sesmo("train-detector", "images", "--out", "mine", *words, code=2))
    assert "mine holds a detector already" in again


@pytest.mark.parametrize(
    ("words", "fault", "code"),
    [
        ((), "--masks FOLDER or --points CSV", 2),
        (("--masks", "none"), "none is not a folder", 2),
        (("--masks", "empty"), "empty holds no picture", 2),
        (("--masks", "masks", "--steps", 0), "--steps 0 trains nothing", 2),
        (("--masks", "masks", "--start", "centres"), "exclude each other", 2),
        (("--masks", "other"), "none of the 2 pictures in images has labels", 2),
        (("--masks", "small"), "give masks of its size", 1),
        (("--masks", "black"), "hold no cell", 1),
        (("--points", "p.csv"), "points do not tell how large cells are", 2),
        (("--points", "none.csv", "--cell-diameter-px", 30), "none.csv cannot be read", 2),
        (("--points", "short.csv", "--cell-diameter-px", 30), "has no column 'y'", 2),
        (("--points", "outside.csv", "--cell-diameter-px", 30), "x 400, y 10 lies outside f0 (256×256 px)", 2),
        (("--points", "nan.csv", "--cell-diameter-px", 30), "lies outside f0", 2),
        (("--points", "typo.csv", "--cell-diameter-px", 30), "has points of g0.tif, which is not in images", 2),
        (("--points", "p.csv", "--cell-diameter-px", 0), "cell diameter of 0.0 px is impossible", 2),
        (("--points", "p.csv", "--cell-diameter-um", 15), "add --pixel-um", 2),
    ],
)
def test_labels_that_cannot_be_right_are_one_sentence(
    sesmo: Sesmo, tmp_path: Path, words: tuple[object, ...], fault: str, code: int
) -> None:
    labelled_folder(tmp_path, 2)
    for name, shape in (("empty", None), ("other", (9, 9)), ("small", (9, 9)), ("black", (256, 256))):
        (tmp_path / name).mkdir()
        if shape:
            tifffile.imwrite(tmp_path / name / ("x.tif" if name == "other" else "f0.tif"), np.zeros(shape, np.uint8))
    for name, place in (("p", "10,10"), ("outside", "400,10"), ("nan", "nan,10"), ("typo", "10,10")):
        image = "g0.tif" if name == "typo" else "f0.tif"
        Path(f"{name}.csv").write_text(f"image,x,y\n{image},{place}\n")
    Path("short.csv").write_text("image,x\nf0.tif,1\n")
    done = sesmo("train-detector", "images", "--out", "mine", "--from-scratch", *words, code=code)
    assert fault in done.err.strip().splitlines()[-1]
    assert not Path("mine").exists()
