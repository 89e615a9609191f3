"""What a model folder says of its making is true: which cells its figures are of, and which pictures shaped it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import fit
from models.datasets import LabelledCells, Source, digest_of, gather
from models.training import Recipe, Trained
from models.validation import seen_in_training
from tests.test_datasets import DRAFT, crops

WEIGHTS = {"dense/kernel": np.zeros((2, 2), np.float32)}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the grey of a crop's corner be its score: what is tested here is what is said of scores."""
    monkeypatch.setattr(fit, "train_network", lambda *_a, **_k: Trained(WEIGHTS, [{"loss": 0.6}], 1))
    monkeypatch.setattr(fit, "_raw", lambda _network, _weights, cells: (cells[:, 0, 0] / 255).astype(np.float32))
    monkeypatch.setattr(fit, "write_report", lambda *_a, **_k: [])
    monkeypatch.setattr(fit, "read_weights", lambda *_a: WEIGHTS)


def cells(groups: int, seed: int = 0) -> LabelledCells:
    """Return 12 cells in each of so many groups a class."""
    sources = []
    for label in (0, 1):
        for number in range(groups):
            some = crops(12, seed * 1000 + label * 100 + number)
            name = f"{'hs'[label]}{number}"
            sources.append(Source(name, label, some, [digest_of(crop) for crop in some], group=[name]))
    return gather(sources)


def made(data: LabelledCells, out: Path, **recipe: Any) -> fit.Fitted:
    return fit.fit_model(data, Recipe(**recipe), DRAFT, out, seed=3)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (2, "calibrated on the cells of the fit itself (too few groups)"),
        (4, "calibrated on groups that were left out of the fit in turn"),
        (8, "groups that chose nothing"),
    ],
)
def test_the_passport_says_which_cells_its_figures_are_of(tmp_path: Path, groups: int, words: str) -> None:
    fitted = made(cells(groups), tmp_path / "m")
    metrics: dict[str, Any] = dict(fitted.passport.metrics)
    assert metrics["measured_on"].endswith(words)
    assert ("interval" in metrics) == (metrics["auc_low"] is not None) == (groups > 2)
    assert groups == 8 or words in fitted.result.notes[-1 if groups > 2 else -2]


def test_a_model_knows_the_pictures_of_the_model_it_began_from(tmp_path: Path) -> None:
    old, new = cells(8), cells(8, seed=1)
    made(old, tmp_path / "a")
    again = made(old, tmp_path / "b", start=str(tmp_path / "a"))
    assert any("figures flatter it" in note for note in again.result.notes)
    fresh = made(new, tmp_path / "c", start=str(tmp_path / "a"))
    assert not any("flatter" in note for note in fresh.result.notes)
    for data in (old, new):
        assert "were in the training" in seen_in_training(tmp_path / "c", fresh.passport, data.digests)[0]


def test_recalibration_says_what_its_figures_are_of(tmp_path: Path) -> None:
    made(cells(8), tmp_path / "a")
    few = fit.recalibrate(tmp_path / "a", cells(1, seed=1), tmp_path / "few")
    assert any("too few groups" in note for note in few.result.notes)
    many = fit.recalibrate(tmp_path / "a", cells(3, seed=1), tmp_path / "many")
    assert any("left out of the fit in turn" in note and "chose the threshold" in note for note in many.result.notes)
