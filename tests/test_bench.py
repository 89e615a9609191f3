"""The benchmark: its reference gives the scores of today's way, and the command reports every figure."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from models.convert import to_uint8
from models.cropper import crop_cells
from models.passport import find_model
from models.scorer import Scorer
from sesmo_live.bench import images
from sesmo_live.bench.original import original_path
from tests.cli import Sesmo, runner
from tests.conftest import blobs
from tests.figures import figure

REPORTED = (
    *("crop_ratio_2048", "path_ratio_2048", "path_ratio_2048_compact", "crop_ms_2048", "path_ms_2048"),
    *("path_ms_2048_compact", "path_ms_2048_compact_centres", "cells_per_s", "latency_p50_ms", "latency_p95_ms"),
    *("peak_memory_mb", "share_of_peak", "images_per_s_1360x1024", "path_ms_2048_compact_lzw"),
)
STAGES = ("read (raw)", "read (lzw)", "convert to 8 bit", "crop (deep-sesmo)", "score (compact)", "store")


def test_the_reference_scores_as_we_do(tmp_path: Path) -> None:
    path = tmp_path / "field.tif"
    tifffile.imwrite(path, blobs(3, size=400, n=30))
    folder = find_model("demo-deep-sesmo")
    crops, _ = crop_cells(to_uint8(tifffile.imread(path)))
    assert len(crops) > 10
    np.testing.assert_allclose(original_path(folder)(path), Scorer(folder).score(crops), atol=1e-5)


def test_an_image_of_ones_own_fills_each_size(tmp_path: Path) -> None:
    path = tmp_path / "field.tif"
    tifffile.imwrite(path, blobs(3, size=700))
    assert images.field("1360x1024", path).shape == (1024, 1360)


@pytest.fixture
def sesmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sesmo:
    return runner(capsys, monkeypatch)


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"1024": (200, 200), "1360x1024": (200, 260), "2048": (400, 400)}
    monkeypatch.setattr("sesmo_live.bench.images.SIZES", small)


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("small_sizes")
def test_the_command_reports_every_figure(sesmo: Sesmo) -> None:
    found = json.loads(sesmo("bench", "--rounds", 1, "--images", 8, "--live", 4, "--format", "json").out)
    assert all(found[name] > 0 for name in REPORTED)
    assert {row["stage"] for row in found["stages"]} >= set(STAGES)
    assert found["machine"]["cores"]
    figure(f"bench at toy sizes: {found['crop_ratio_2048']:.0f} times the original's crop")


def test_a_picture_without_cells_is_refused_before_anything_is_measured(tmp_path: Path, sesmo: Sesmo) -> None:
    tifffile.imwrite(tmp_path / "flat.tif", np.full((64, 64), 700, np.uint16))
    assert "shows no cells" in sesmo("bench", "--image", tmp_path / "flat.tif", code=2).err


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path, sesmo: Sesmo) -> None:
    for path, words in ((tmp_path / "none.tif", "none.tif"), (tmp_path / "text.tif", "text.tif")):
        (tmp_path / "text.tif").write_text("no image")
        assert words in sesmo("bench", "--image", path, code=2).err
