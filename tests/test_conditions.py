"""The notebooks' scoring: a folder per condition."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import models.scorer
from models.cropper import crop_cells
from sesmo_live.conditions import score_conditions
from sesmo_live.errors import UsageError
from tests.conftest import blobs, write_image
from tests.stub import mean_grey


class StubScorer:
    """Scores without a network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def score(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        return mean_grey(crops)


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.scorer, "Scorer", StubScorer)


def test_means_ratios_charts_and_one_column_per_cell(tmp_path: Path, stub_model: Path) -> None:
    for number in (1, 2):
        write_image(tmp_path / "in" / "control" / f"{number}.tif", number)
    (tmp_path / "in" / "treated").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "treated" / "one.png"), blobs(5))
    (tmp_path / "in" / "treated" / "broken.tif").write_bytes(b"II*\0")
    found = score_conditions(tmp_path / "in", tmp_path / "out", stub_model)
    control = np.concatenate([crop_cells(blobs(k))[0].mean(axis=(1, 2)) / 255 for k in (1, 2)])
    rows = {row["condition"]: row for row in found.rows}
    assert list(rows) == ["control", "treated"]
    assert rows["control"]["mean_score"] == pytest.approx(control.mean(), abs=1e-5)
    assert rows["control"]["ratio_senescent"] == pytest.approx((control >= 0.5).mean())
    assert rows["control"]["mean_low"] < rows["control"]["mean_score"] < rows["control"]["mean_high"]
    assert [Path(path).name for path, _ in found.failures] == ["broken.tif"]
    with (tmp_path / "out" / "scores.csv").open(newline="", encoding="utf-8") as file:
        header, first, *_ = list(csv.reader(file))
    assert header[:3] == ["condition", "mean_score", "cell_1"]
    assert float(first[1]) == pytest.approx(control.mean(), abs=1e-5)
    assert [float(value) for value in first[2:] if value] == pytest.approx(control.tolist(), abs=1e-5)
    for name in ("mean_score.png", "ratio_senescent.png"):
        assert cv2.imread(str(tmp_path / "out" / name)) is not None
    assert (tmp_path / "out" / "ratio.csv").is_file()


def test_a_folder_without_conditions_is_explained(tmp_path: Path, stub_model: Path) -> None:
    with pytest.raises(UsageError, match="holds no folders; put the images of each condition"):
        score_conditions(tmp_path, tmp_path / "out", stub_model)
    (tmp_path / "in" / "empty").mkdir(parents=True)
    with pytest.raises(UsageError, match="empty holds no pictures"):
        score_conditions(tmp_path / "in", tmp_path / "out", stub_model)
    with pytest.raises(UsageError, match="there is no folder"):
        score_conditions(tmp_path / "none", tmp_path / "out", stub_model)
