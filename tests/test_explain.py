"""Grad-CAM: the same numbers as the scorer, maps that lie where the evidence is, and the command around it."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from acquisition.simulator import demo_plate, render_field
from models.convert import to_uint8
from models.cropper import crop_cells
from models.explain import LEAST_MAP_PX, Explainer, explain_field
from models.network import build_network
from models.passport import find_model, write_model
from models.prepare import prepare_field
from models.scorer import Scorer
from sesmo_live.cli.figures import explain
from sesmo_live.errors import ImageError, ModelError, UsageError
from sesmo_live.records import FieldImage, ImageFile, ModelPassport, Pixels, Site
from tests.figures import figure

Crops = NDArray[np.uint8]


@pytest.fixture(scope="module")
def field() -> Pixels:
    return render_field(demo_plate(1), "B05", 1, 4)


@pytest.fixture(scope="module")
def crops(field: Pixels) -> Crops:
    return crop_cells(to_uint8(field, "percentile-0.35-99.65"))[0]


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(find_model("demo-deep-sesmo"))


def random_model(folder: Path, network: str) -> Path:
    """Write a model of random weights, large enough to tell cells apart."""
    rng = np.random.default_rng(5)
    weights = {}
    for layer in build_network(network, 50).layers:
        for variable in layer.weights:
            shape = tuple(variable.shape)
            drawn = rng.normal(0, 1.5 / np.sqrt(np.prod(shape[:-1])), shape) if len(shape) > 1 else rng.random(shape)
            weights[f"{layer.name}/{variable.name}"] = drawn.astype(np.float32)
    passport = ModelPassport(network, "1", network, 50, None, "min-max", "deep-sesmo", {}, 0.5, "")
    write_model(folder, passport, weights)
    return folder


@pytest.mark.parametrize("network", ["deep-sesmo", "compact"])
def test_the_two_parts_give_the_scores_of_the_scorer(network: str, crops: Crops, tmp_path: Path) -> None:
    """Explained is what is scored: the same weights, scaling and layers."""
    folder = random_model(tmp_path / network, network)
    parted = Explainer(folder)
    features = parted._body(crops[:40].astype(np.float32)[..., None], training=False)
    assert min(features.shape[1:3]) >= LEAST_MAP_PX
    logits = np.asarray(parted._head(features, training=False), np.float64)
    probability = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    assert np.abs(probability - Scorer(folder).score(crops[:40])).max() < 1e-5
    assert parted.explain(crops[:3]).shape == (3, 50, 50)


def test_covering_what_speaks_for_senescence_lowers_the_score(explainer: Explainer, crops: Crops) -> None:
    """Grey laid over the strongest evidence must cost more than over the weakest: else the map points elsewhere."""
    maps = explainer.explain(crops)
    scorer = Scorer(find_model(None))

    def logit(cells: Crops) -> NDArray[np.float64]:
        p = np.clip(scorer.score(cells).astype(np.float64), 1e-9, 1 - 1e-9)
        return np.asarray(np.log(p / (1 - p)))

    strongest, weakest = crops.copy(), crops.copy()
    for place, evidence in enumerate(maps):
        smooth = cv2.blur(evidence, (15, 15))[7:-7, 7:-7]
        for covered, at in ((strongest, smooth.argmax()), (weakest, smooth.argmin())):
            y, x = np.unravel_index(at, smooth.shape)
            covered[place, y : y + 15, x : x + 15] = np.median(crops[place])
    before = logit(crops)
    lost = before - logit(strongest), before - logit(weakest)
    share = float(np.mean(lost[0] > lost[1]))
    figure(f"logit lost: {lost[0].mean():.2f} strongest, {lost[1].mean():.2f} weakest, right {share:.0%}")
    assert lost[0].mean() > lost[1].mean() + 0.3
    assert share > 0.7


def test_maps_follow_the_crop_when_it_is_moved(explainer: Explainer, crops: Crops) -> None:
    """A map that is stretched or shifted against its cell would not move with it, pixel by pixel."""
    moved = np.roll(crops[:10], (4, -6), axis=(1, 2))
    still, shifted = explainer.explain(crops[:10]), explainer.explain(moved)
    inner = (slice(None), slice(14, 36), slice(14, 36))
    right = np.corrcoef(np.roll(still, (4, -6), axis=(1, 2))[inner].ravel(), shifted[inner].ravel())[0, 1]
    wrong = np.corrcoef(still[inner].ravel(), shifted[inner].ravel())[0, 1]
    assert right > 0.8
    assert right > wrong + 0.2


def test_a_map_does_not_depend_on_the_cells_beside(explainer: Explainer, crops: Crops) -> None:
    assert np.allclose(explainer.explain(crops[:5])[2], explainer.explain(crops[2:3])[0], atol=1e-4)
    assert explainer.explain(crops[:0]).shape == (0, 50, 50)


def test_a_field_gets_the_mean_of_its_cells_maps() -> None:
    maps = np.stack([np.full((10, 10), value, np.float32) for value in (1, 3, 7)])
    shown = explain_field((40, 60), np.array([[20.0, 20.0], [24.0, 20.0], [59.0, 39.0]]), maps)
    assert shown[20, 16] == 1
    assert shown[20, 22] == 2
    assert shown[20, 28] == 3
    assert shown[39, 59] == 7
    assert shown[5, 5] == 0
    double = explain_field((40, 60), np.array([[20.0, 20.0]]), maps[:1], scale=2.0)
    assert int((double > 0).sum()) == 25


def test_crops_of_another_size_are_refused(explainer: Explainer) -> None:
    with pytest.raises(ImageError, match="give uint8 N×50×50"):
        explainer.explain(np.zeros((1, 40, 40), np.uint8))


@pytest.mark.parametrize("pixel_um", [None, 1.24, 0.8])
def test_explained_are_the_very_crops_that_are_scored(
    pixel_um: float | None, field: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline's own `prepare_field` makes them, resampling included; the table holds the scorer's scores."""
    tifffile.imwrite(tmp_path / "B05.tif", field)
    explained: list[Crops] = []
    plain = Explainer.explain

    def record(self: Explainer, cells: Crops) -> NDArray[np.float32]:
        explained.append(cells)
        return plain(self, cells)

    monkeypatch.setattr(Explainer, "explain", record)
    explain(tmp_path / "B05.tif", tmp_path / "out", pixel_um=pixel_um)
    file = ImageFile(tmp_path / "B05.tif", 0, Site("", "A01", 1, 1), 0, 0, pixel_um=pixel_um)
    scorer = Scorer(find_model(None))
    cells = prepare_field(FieldImage(file, field), scorer.passport)
    assert np.array_equal(explained[0], cells.pixels)
    table = np.loadtxt(tmp_path / "out" / "cells.csv", delimiter=",", skiprows=1)
    assert np.abs(table[:, :2] - cells.centres).max() <= 0.051
    assert np.abs(table[:, 2] - scorer.score(cells.pixels)).max() <= 0.000_051


def test_the_command_writes_its_figures(field: Pixels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "B05.tif", field)
    explain(tmp_path / "B05.tif", tmp_path / "out", pixel_um=1.24)
    shown = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert set(shown) == {"field.png", "gradcam.png", "cells.png", "cells.csv"}
    assert all(shown[name] > 50_000 for name in ("field.png", "gradcam.png", "cells.png"))
    rows = (tmp_path / "out" / "cells.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "x,y,score"
    assert f"of {len(rows) - 1} cells" in capsys.readouterr().err
    assert np.mean([float(row.split(",")[2]) for row in rows[1:]]) > 0.5


def test_the_command_says_that_a_picture_would_be_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plate = demo_plate(1)
    tifffile.imwrite(tmp_path / "lost.tif", render_field(plate, "B02", 1, 1))
    explain(tmp_path / "lost.tif", tmp_path / "out", pixel_um=1.24)
    assert "lost.tif would be refused: " in capsys.readouterr().err


def test_bad_input_is_one_sentence(field: Pixels, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "ok.tif", field)
    tifffile.imwrite(tmp_path / "grey.tif", np.full((200, 200), 900, np.uint16))
    (tmp_path / "file").write_text("x")
    out = tmp_path / "out"
    with pytest.raises(ImageError, match="none.tif"):
        explain(tmp_path / "none.tif", out)
    with pytest.raises(UsageError, match="no cells were found"):
        explain(tmp_path / "grey.tif", out)
    with pytest.raises(UsageError, match="model 'nobody' is not there"):
        explain(tmp_path / "ok.tif", out, model="nobody")
    with pytest.raises(UsageError, match="no size of a pixel"):
        explain(tmp_path / "ok.tif", out, pixel_um=-1.0)
    with pytest.raises(OSError, match="file"):
        explain(tmp_path / "ok.tif", tmp_path / "file" / "out")
    assert not out.exists()


def test_a_network_without_a_fine_map_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.explain.LEAST_MAP_PX", 60)
    with pytest.raises(ModelError, match="no feature map"):
        Explainer(find_model(None))
