"""Measures and limits: what is tested on a field, and what a good but unusual one may be."""

import dataclasses
import json
import re
import shutil
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from acquisition.pictures import read_picture
from acquisition.simulator import Camera, Optics, training_fields
from acquisition.simulator.cells import Culture
from acquisition.simulator.rendering import View, look
from models.convert import to_uint8
from models.corruptions import blur
from models.cropper import crop_dark_or_bright_cells
from models.passport import read_passport
from models.quality import TEXTURES, measure_field, textures_of
from models.refusal import check_reference, reference_of, reference_of_crops, unfit, untested, write_reference
from sesmo_live.errors import ModelError, UsageError
from sesmo_live.records import Pixels
from tests.figures import figure

NO_CELLS = np.empty((0, 50, 50), np.uint8)


def crops_of(pixels: Pixels) -> NDArray[np.uint8]:
    return crop_dark_or_bright_cells(to_uint8(pixels, "percentile-0.35-99.65"))[0]


def reasons(pixels: Pixels, reference: dict[str, Any], crops: NDArray[np.uint8] | None = None) -> list[str]:
    return unfit(measure_field(pixels, crops_of(pixels) if crops is None else crops), reference)


@lru_cache(maxsize=1)
def virtual_reference() -> dict[str, Any]:
    return reference_of((field.pixels, crops_of(field.pixels)) for field in training_fields(40, 4))


def dish(occupancy: float, senescent: float = 0.3, *, bits: int = 12, defocus_um: float = 0.0, seed: int = 3) -> Pixels:
    view = View(0, 0, (512, 512), 1.24, defocus_um, Optics(), Camera(bits=bits), 5)
    return look(Culture(seed, "dish", senescent, occupancy, 0.0, 48.0), view, np.random.default_rng(seed))


def test_measures_and_reference_are_plain_json() -> None:
    quality = measure_field(dish(0.3), crops_of(dish(0.3)))
    assert json.loads(json.dumps(quality)) == quality
    assert all(isinstance(value, float) and np.isfinite(value) for value in quality.values())
    reference = virtual_reference()
    text = json.dumps(reference, allow_nan=False)
    assert unfit(quality, json.loads(text)) == unfit(quality, reference) == []
    assert len(text) < 10_000


def test_a_reason_names_measure_value_and_limit() -> None:
    (first, *_) = reasons(dish(0.3, defocus_um=60), virtual_reference())
    assert "out of focus" in first
    assert "this model's limit" in first
    pattern = r"(grain|sharpness|detail) [\d.]+, in training [\d.]+; cells' distance ([\d.]+), .* limit ([\d.]+)$"
    named = re.search(pattern, first)
    assert named is not None, first
    assert float(named[2]) > float(named[3])


@pytest.mark.parametrize("defocus_um", [-80, -50, 50, 80])
def test_lost_focus_is_refused_also_where_no_cell_was_found(defocus_um: float) -> None:
    field = dish(0.3, defocus_um=defocus_um)
    assert reasons(field, virtual_reference())
    assert reasons(field, virtual_reference(), NO_CELLS)


@pytest.mark.parametrize("n", [3, pytest.param(15, marks=pytest.mark.slow)])
def test_strong_senescence_is_no_fault_however_dense(n: int) -> None:
    refused = [
        reasons(dish(occupancy, level, seed=seed), virtual_reference())
        for occupancy, level in ((0.4, 0.02), (0.4, 0.98), (1.0, 0.98))
        for seed in range(20, 20 + n)
    ]
    assert [reason for reason in refused if reason] == []


@pytest.mark.realdata
def test_late_treated_cells_pass_a_model_that_saw_early_ones(shared: Path) -> None:
    frames = sorted((shared / "data/timelapse_treated/cellphe_mdamb231_docetaxel/images").glob("*.tif"))
    fields = [read_picture(path) for path in frames]
    reference = reference_of((field, crops_of(field)) for field in fields[:30])
    late = [reasons(field, reference) for field in fields[-30:]]
    figure(f"{sum(map(bool, late))} of {len(late)} late frames refused")
    assert not any(late)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_well_without_cells_is_a_result(bits: int) -> None:
    empty = dish(0.0, bits=bits)
    assert reasons(empty, virtual_reference(), NO_CELLS) == []
    assert reasons(empty, {}, NO_CELLS) == []


def test_few_cells_are_no_fault() -> None:
    for occupancy in (0.02, 0.05, 0.1):
        assert reasons(dish(occupancy), virtual_reference()) == []


def test_patches_that_a_cropper_makes_of_nothing_are_refused() -> None:
    """The original's cropper finds patches in any texture: their scores would mean nothing."""
    rng = np.random.default_rng(1)
    smooth = cv2.GaussianBlur(rng.normal(0, 1, (512, 512)), (0, 0), 5)
    smooth = (2000 + 30 * smooth / smooth.std() + rng.normal(0, 3, smooth.shape)).astype(np.uint16)
    assert len(crops_of(smooth)) > 5
    assert reasons(smooth, virtual_reference())


def no_image(kind: str) -> Pixels:
    rng = np.random.default_rng(2)
    if kind == "constant":
        return np.full((300, 300), 1200, np.uint16)
    if kind == "black":
        return np.zeros((300, 300), np.uint8)
    if kind == "closed shutter":
        return rng.normal(120, 5, (300, 300)).astype(np.uint16)
    if kind == "white noise":
        return rng.integers(0, 256, (300, 300), np.uint8)
    if kind == "four bits":
        return np.asarray(to_uint8(dish(0.3)) // 16 * 17, np.uint8)
    return np.asarray(np.minimum(to_uint8(dish(0.3)).astype(int) * 3, 255), np.uint8)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("constant", "all pixels are equal"),
        ("black", "all pixels are equal"),
        ("closed shutter", "nothing but noise"),
        ("white noise", "nothing but noise"),
        ("four bits", "grey levels"),
        ("overexposed", "overexposed"),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_what_is_no_image_is_refused_by_any_model(kind: str, word: str, known: bool) -> None:
    (first, *_) = reasons(no_image(kind), virtual_reference() if known else {}, NO_CELLS)
    assert word in first


def test_a_denser_field_than_any_in_training_is_refused() -> None:
    sparse = [dish(0.12 + 0.02 * (seed % 5), seed=seed) for seed in range(20)]
    reference = reference_of((field, crops_of(field)) for field in sparse)
    assert [reason for field in sparse for reason in reasons(field, reference)] == []
    assert any("too dense" in reason for reason in reasons(dish(0.95, seed=50), reference))


def test_without_a_reference_only_physics_is_tested_and_that_is_said() -> None:
    assert reasons(dish(0.3, defocus_um=60), {}) == []
    assert "focus" in untested({})
    assert untested(virtual_reference()) == ""


@pytest.mark.parametrize("grouped", [True, False])
def test_loose_crops_make_a_reference(grouped: bool) -> None:
    parts = [crops_of(field.pixels) for field in training_fields(30, 8)]
    groups = [f"field {number}" for number, part in enumerate(parts) for _ in part] if grouped else None
    reference = reference_of_crops(np.concatenate(parts), groups)
    assert "loose crops" in untested(reference)
    good = [reasons(field.pixels, reference) for field in training_fields(20, 9)]
    assert sum(map(bool, good)) <= 1
    for field in training_fields(6, 10):
        assert reasons(blur(field.pixels, 4, np.random.default_rng(0)), reference)


def test_a_reference_can_be_added_to_a_model_without_changing_its_id(stub_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stub_model, tmp_path / "model"))
    before = read_passport(folder)
    write_reference(folder, virtual_reference())
    after = read_passport(folder)
    assert after.model_id == before.model_id
    assert after.reference == virtual_reference()
    assert dataclasses.replace(after, reference={}) == dataclasses.replace(before, reference={})


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"cell": {}},
        {"cell": 3},
        {"coverage": float("nan")},
        {"least_coverage": None},
        {"tile": {"middle": [0.0]}},
    ],
)
def test_a_damaged_reference_is_one_sentence(change: dict[str, Any]) -> None:
    check_reference({}, Path("m"))
    check_reference(virtual_reference(), Path("m"))
    with pytest.raises(ModelError, match="reference of m"):
        check_reference({**virtual_reference(), **change}, Path("m"))


def test_too_few_crops_make_no_reference() -> None:
    with pytest.raises(UsageError, match="4 crops are too few"):
        reference_of_crops(crops_of(dish(0.3))[:4])
    with pytest.raises(UsageError, match="0 crops are too few"):
        reference_of([(dish(0.0), NO_CELLS)])


def test_textures_ignore_gain_offset_and_the_cells_beside() -> None:
    crops = crops_of(dish(0.3))
    textures = textures_of(crops)
    assert textures.shape == (len(crops), len(TEXTURES))
    assert np.array_equal(textures_of(crops[3:9]), textures[3:9])
    dimmer = textures_of((crops * 0.6 + 40).astype(np.uint8))
    assert np.abs(np.median(dimmer[:, 1:] - textures[:, 1:], axis=0)).max() < 0.1
    assert np.median(dimmer[:, 0] - textures[:, 0]) == pytest.approx(np.log2(0.6), abs=0.05)


@pytest.mark.parametrize(("size", "crop_px"), [(20, 50), (60, 16), (300, 12), (51, 64), (512, 80)])
def test_any_size_of_image_and_crop_can_be_measured(size: int, crop_px: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 4096, (size, size + 7), np.uint16)
    quality = measure_field(image, rng.integers(0, 256, (9, crop_px, crop_px), np.uint8))
    assert np.isfinite(list(quality.values())).all()
    unfit(quality, virtual_reference())


def test_a_declared_scale_is_undone_before_an_image_is_compared() -> None:
    field = dish(0.3)
    twice = field.repeat(2, axis=0).repeat(2, axis=1)  # resampling by half undoes this exactly
    crops = crops_of(field)
    plain, told, untold = (
        measure_field(field, crops),
        measure_field(twice, crops, scale=0.5),
        measure_field(twice, crops),
    )
    textures = [f"tile_{texture.name}" for texture in TEXTURES]
    assert max(abs(told[name] - plain[name]) for name in textures) < 0.01
    assert max(abs(untold[name] - plain[name]) for name in textures) > 0.5
    assert told["cells_per_megapixel"] == pytest.approx(plain["cells_per_megapixel"])
    assert unfit(told, virtual_reference()) == []


def test_a_filled_image_in_which_no_cells_were_found_is_refused() -> None:
    (reason,) = reasons(dish(0.4), virtual_reference(), NO_CELLS)
    assert "0 cells per million pixels" in reason


@pytest.mark.alone
def test_measuring_takes_little_time() -> None:
    field: Pixels = np.tile(dish(0.3).astype(np.uint16), (4, 4))
    crops = crops_of(field)
    times = []
    for _ in range(9):
        start = time.thread_time()
        measure_field(field, crops)
        times.append(1000 * (time.thread_time() - start))
    # The figure that was measured.
    figure(f"measure_field, 2048² uint16, {len(crops)} cells: {np.median(times):.1f} ms of one core")
    assert np.median(times) < 40, "the aim is 15 ms on a quiet machine"
