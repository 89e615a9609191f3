"""Finding cells: real and virtual fields with known cells, pictures without any, bad input, crops, speed."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from models import cropper, detector_passport
from models.centres import Centres, crop_cells_at, find_centres, find_centres_in_fields, guess_cell_diameter
from models.cropper import CROPPERS, crop_at_centres
from models.detector_passport import (
    Detector,
    DetectorPassport,
    detector_of,
    find_detector,
    load_detector,
    read_detector_passport,
    write_detector,
)
from models.heatmap import build_heatmap_network
from models.matching import Detection, match_in_masks, summarize
from models.network import get_weights
from models.texture import CELL_PX
from sesmo_live.detector_weights import Field, film_fields, match, median_diameter, phase_fields, virtual_fields
from sesmo_live.errors import ImageError, ModelError, UsageError
from sesmo_live.labelled import draft_passport
from sesmo_live.records import Pixels
from tests.figures import figure


@pytest.fixture(scope="module")
def model() -> Detector:
    return load_detector()


@pytest.fixture(scope="module")
def virtual() -> list[Field]:
    return list(virtual_fields(6, 20_270_101))


@pytest.fixture(scope="module")
def phase(shared: Path) -> list[Field]:
    return phase_fields(shared / "data")


def judged(fields: list[Field], diameter: float | None, model: Detector | None, told: str) -> Detection:
    """Find and match the cells of fields, print how well it went, and return it."""
    found = [
        find_centres(field.image, cell_diameter_px=diameter or field.cell_px, model=model)
        if diameter != 0
        else find_centres(field.image, model=model)
        for field in fields
    ]
    result = summarize([match(field, centres, 0.0) for field, centres in zip(fields, found, strict=True)])
    figure(
        f"{told}: F1 {result.f1.value:.3f}, precision {result.precision.value:.3f}, recall {result.recall.value:.3f}, "
        f"count error {result.count_error.value:.3f}, {result.n_cells} cells"
    )
    return result


def empty_pictures(side: int) -> dict[str, Pixels]:
    """Return pictures without a cell: noise of several grains, vignettes, gradients, one grey."""
    rng = np.random.default_rng(11)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    pictures: dict[str, NDArray[np.float64]] = {"white noise": rng.normal(128, 20, (side, side))}
    for grain in (2, 4, 8, 16):
        noise = cv2.GaussianBlur(rng.normal(size=(side, side)), (0, 0), grain)
        pictures[f"smooth noise, grain {grain} px"] = 128 + 25 * noise / noise.std()
    pictures["vignette"] = 180 * (1 - (x * x + y * y) / 2)
    pictures["vignette with noise"] = pictures["vignette"] + rng.normal(0, 3, (side, side))
    pictures["gradient"] = 100 + 50 * x
    pictures["one grey"] = np.full((side, side), 100.0)
    return {name: np.clip(np.rint(picture), 0, 255).astype(np.uint8) for name, picture in pictures.items()}


def eight_bit(image: Pixels) -> NDArray[np.uint8]:
    """Return an image stretched to 20 to 220."""
    low, high = float(image.min()), float(image.max())
    return np.asarray(np.rint(20 + (image - low) * (200 / (high - low))), np.uint8)


def background_windows(fields: list[Field], side: int) -> list[Pixels]:
    """Return windows of real fields in which no cell is labelled."""
    windows = []
    for field in fields:
        taken = cv2.dilate((field.labels > 0).astype(np.uint8), np.ones((9, 9), np.uint8))
        for top in range(0, taken.shape[0] - side, 16):
            for left in range(0, taken.shape[1] - side, 16):
                part = np.s_[top : top + side, left : left + side]
                if not taken[part].any():
                    taken[part] = 1
                    windows.append(field.image[part])
    return windows


def test_virtual_cells_that_were_not_trained_on_are_found(virtual: list[Field], model: Detector) -> None:
    result = judged(virtual, None, model, "virtual cells, detector")
    assert result.f1.value > 0.93
    assert result.count_error.value < 0.08


def test_virtual_cells_are_found_at_a_guessed_size(virtual: list[Field], model: Detector) -> None:
    assert judged(virtual, 0, model, "virtual cells, detector, undeclared").f1.value > 0.85


def test_virtual_cells_are_found_without_a_network(virtual: list[Field]) -> None:
    assert judged(virtual, None, None, "virtual cells, texture").f1.value > 0.7


@pytest.mark.realdata
def test_real_phase_contrast_is_found_by_the_shipped_weights(phase: list[Field], model: Detector) -> None:
    """They were trained on these fields, so this proves little; how they do elsewhere, the passport says."""
    result = judged(phase, median_diameter(phase), model, "T98G, trained on")
    assert result.recall.value > 0.75
    assert result.precision.value > 0.75


@pytest.mark.realdata
def test_real_phase_contrast_is_found_without_a_network(phase: list[Field]) -> None:
    """The eight fields were looked at while its constants were chosen: expect less of it elsewhere."""
    assert judged(phase, median_diameter(phase), None, "T98G, texture").f1.value > 0.76


@pytest.mark.realdata
def test_real_quantitative_phase_is_found(shared: Path, model: Detector) -> None:
    fields = film_fields(shared / "data", step=16)
    assert judged(fields, None, model, "MDA-MB-231, trained on").f1.value > 0.9
    assert judged(fields, None, None, "MDA-MB-231, texture").f1.value > 0.85


@pytest.mark.realdata
def test_real_background_shows_hardly_a_cell(phase: list[Field], model: Detector) -> None:
    windows = background_windows(phase, 192)
    found = sum(len(find_centres(window, cell_diameter_px=60, model=model)) for window in windows)
    per_field = found * 1024**2 / (len(windows) * 192**2)
    figure(f"{per_field:.1f} cells per 1024² of real background, {len(windows)} windows")
    assert len(windows) > 10
    assert per_field <= 7


@pytest.mark.parametrize("diameter", [20.0, 40.0, 80.0, None])
def test_pictures_without_cells_hold_none(model: Detector, diameter: float | None) -> None:
    found = {
        name: len(find_centres(picture, cell_diameter_px=diameter, model=model))
        for name, picture in empty_pictures(1024 if diameter == 40 else 512).items()
    }
    figure(f"cells of {diameter} px found in emptiness: {found}")
    assert sum(found.values()) == 0


@pytest.mark.parametrize("diameter", [20.0, 40.0, 80.0, None])
def test_texture_finds_no_cells_in_noise_either(diameter: float | None) -> None:
    found = {name: len(find_centres(p, cell_diameter_px=diameter)) for name, p in empty_pictures(1024).items()}
    figure(f"cells of {diameter} px found in emptiness: {found}")
    assert sum(found.values()) == 0


@pytest.mark.parametrize("way", ["detector", "texture"])
def test_gain_bit_depth_and_place_do_not_matter(way: str, virtual: list[Field], model: Detector) -> None:
    image = eight_bit(virtual[0].image)
    chosen = model if way == "detector" else None
    plain = find_centres(image, cell_diameter_px=virtual[0].cell_px, model=chosen)
    deep = find_centres(image.astype(np.uint16) * 200 + 1000, cell_diameter_px=virtual[0].cell_px, model=chosen)
    assert len(plain) > 20
    assert len(deep) == len(plain)
    # Cells that are nearly as sure may change places; those found by texture lie on whole pixels at its scale.
    within_px = 0.1 if chosen else 1.5 * virtual[0].cell_px / CELL_PX
    assert cdist(deep.xy, plain.xy).min(axis=1).max() < within_px
    labels = virtual[0].labels
    shifted = np.pad(image, ((8, 0), (16, 0)), mode="reflect")
    moved = find_centres(shifted, cell_diameter_px=virtual[0].cell_px, model=chosen)
    before = match_in_masks(plain.xy, labels).hits
    assert abs(match_in_masks(moved.xy - (16, 8), labels).hits - before) <= 0.1 * before


def test_centres_of_a_larger_picture_are_in_its_own_pixels(virtual: list[Field], model: Detector) -> None:
    field = virtual[0]
    image = eight_bit(field.image)
    twice = np.asarray(cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), np.uint8)
    plain = find_centres(image, cell_diameter_px=field.cell_px, model=model)
    double = find_centres(twice, cell_diameter_px=2 * field.cell_px, model=model)
    assert abs(len(double) - len(plain)) <= 0.1 * len(plain)
    nearest = np.linalg.norm(double.xy[:, None] / 2 - plain.xy[None], axis=2).min(axis=1)
    assert np.median(nearest) < 0.05 * field.cell_px
    assert np.median(double.diameters) == pytest.approx(2 * np.median(plain.diameters), rel=0.1)


def test_sizes_are_told(virtual: list[Field], model: Detector) -> None:
    for field in virtual:
        found = find_centres(field.image, cell_diameter_px=field.cell_px, model=model)
        assert np.median(found.diameters) == pytest.approx(field.cell_px, rel=0.3)


def test_a_guess_says_so_and_comes_near(virtual: list[Field], model: Detector) -> None:
    off = []
    for field in virtual:
        found = find_centres(field.image, model=model)
        assert found.guessed
        assert found.cell_diameter_px == guess_cell_diameter(field.image, model)
        off.append(abs(np.log2(found.cell_diameter_px / field.cell_px)))
    figure(f"guessed diameters are off by {2 ** np.median(off):.2f}-fold at the median")
    assert np.median(off) < 0.4
    assert not find_centres(virtual[0].image, cell_diameter_px=30, model=model).guessed
    assert find_centres(virtual[0].image).how.startswith("texture")


def test_a_batch_finds_what_single_fields_do(virtual: list[Field], model: Detector) -> None:
    images = [virtual[0].image, virtual[1].image, virtual[0].image[:300, :301]]
    together = find_centres_in_fields(images, cell_diameter_px=30, model=model)
    for image, found in zip(images, together, strict=True):
        alone = find_centres(image, cell_diameter_px=30, model=model)
        assert len(alone) == len(found) > 5
        np.testing.assert_allclose(found.xy, alone.xy, atol=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (3, 900), (17, 33)])
def test_tiny_pictures_are_no_trouble(shape: tuple[int, int], model: Detector) -> None:
    picture = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
    for chosen in (model, None):
        for diameter in (None, 30.0, 400.0):
            assert isinstance(find_centres(picture, cell_diameter_px=diameter, model=chosen), Centres)


def test_what_is_no_image_or_no_diameter_is_refused() -> None:
    grey = np.zeros((64, 64), np.uint8)
    for wrong in (grey.astype(np.float32), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(ImageError, match="one grey 8- or 16-bit page"):
            find_centres(wrong, cell_diameter_px=20)  # type: ignore[arg-type]
    for diameter in (0.0, -3.0, 5.0, 401.0, float("nan")):
        with pytest.raises(UsageError, match="out of range"):
            find_centres(grey, cell_diameter_px=diameter)


def test_crops_lie_where_their_centres_say_and_none_leaves_the_image() -> None:
    image = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80)
    crops, kept = crop_cells_at(image, np.array([[10.0, 10], [40.4, 30.9], [70, 50], [9.9, 30], [71, 50]]), 20)
    np.testing.assert_array_equal(kept, [[10, 10], [40.4, 30.9], [70, 50]])
    assert crops.shape == (3, 20, 20)
    assert crops.dtype == np.uint16
    np.testing.assert_array_equal(crops[1], image[20:40, 30:50])
    none, at = crop_cells_at(image, np.empty((0, 2)), 20)
    assert (none.shape, at.shape) == ((0, 20, 20), (0, 2))


def test_the_cropper_of_the_registry_cuts_what_the_detector_finds(virtual: list[Field]) -> None:
    image = eight_bit(virtual[0].image)
    crops, centres = CROPPERS["centres"](image, cell_diameter_px=30.0, crop_px=50)
    found = find_centres(image, cell_diameter_px=30, model=load_detector())
    assert len(centres) == len(crops) > 20
    assert {tuple(row) for row in centres} <= {tuple(row) for row in found.xy}
    by_texture, _ = CROPPERS["centres"](image, cell_diameter_px=30.0, detector="texture")
    assert len(by_texture) > 5
    empty, none = CROPPERS["centres"](np.zeros((1, 1), np.uint8))
    assert (empty.shape, none.shape) == ((0, 50, 50), (0, 2))


def test_a_model_gets_the_detector_that_it_was_made_with(virtual: list[Field]) -> None:
    image = virtual[0].image.astype(np.uint8)
    own = read_detector_passport(find_detector()).weights_sha256
    crop_at_centres(image, cell_diameter_px=30, detector_sha256=own)
    with pytest.raises(ModelError, match="not the one this model was made with"):
        crop_at_centres(image, cell_diameter_px=30, detector_sha256="0" * 64)


def test_the_passport_says_what_the_detector_was_made_of() -> None:
    passport = read_detector_passport(find_detector())
    assert "T98G" in passport.training["data"]
    assert (find_detector() / "weights.safetensors").stat().st_size < 2_000_000
    figures = passport.metrics["T98G phase contrast, fields not trained on"]
    assert {"declared x1", "undeclared"} <= set(figures)
    for name, measured in figures.items():
        for key in ("f1", "precision", "recall", "count_error"):
            value, low, high = measured[key]
            assert low <= value <= high
            assert low < high
        assert (measured["n_fields"], measured["n_cells"]) > (7, 100)
        figure(f"cross-validated, {name}: F1 {measured['f1']}, {measured['n_cells']} cells")


def test_a_new_model_records_the_detector_that_found_its_cells(virtual: list[Field]) -> None:
    image = eight_bit(virtual[0].image)
    settings = draft_passport("new", None).cropper_settings
    assert settings == {
        "detector": "centres",
        "detector_sha256": read_detector_passport(find_detector()).weights_sha256,
    }
    assert len(CROPPERS["centres"](image, **settings)[0]) > 5
    assert draft_passport("new", None, "deep-sesmo").cropper_settings == {}


def test_threads_that_crop_at_once_load_a_detector_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = get_weights(build_heatmap_network())
    passport = write_detector(tmp_path / "d", DetectorPassport("d", "1", "centre-unet", 24.0, 0.9, ""), weights)
    loaded, looked = [], []

    def load(*settings: Any) -> Detector:
        loaded.append(settings)
        time.sleep(0.3)
        return detector_of(*settings)

    def look(name: str) -> Path:
        looked.append(name)
        return find_detector(name)

    monkeypatch.setattr(detector_passport, "detector_of", load)
    monkeypatch.setattr(cropper, "find_detector", look)
    image = np.random.default_rng(3).integers(0, 255, (64, 64)).astype(np.uint8)
    settings: dict[str, Any] = {"detector": str(tmp_path / "d"), "detector_sha256": passport.weights_sha256}
    with ThreadPoolExecutor(8) as readers:
        shapes = {crops.shape[1:] for crops, _ in readers.map(lambda _: crop_at_centres(image, **settings), range(24))}
    assert shapes == {(50, 50)}
    assert len(loaded) == 1
    assert len(looked) <= 8  # at most once a thread, not once an image


@pytest.mark.alone
def test_how_long_it_takes(model: Detector) -> None:
    """A generous bound, as tests run on busy machines; the figure is printed."""
    image = np.random.default_rng(2).integers(0, 255, (2048, 2048)).astype(np.uint8)
    took = []
    for _ in range(4):
        start = time.perf_counter()
        find_centres(image, cell_diameter_px=64, model=model)
        took.append(time.perf_counter() - start)
    figure(f"{1000 * min(took):.0f} ms per 2048² at cells of 64 px")
    assert min(took) < 3
