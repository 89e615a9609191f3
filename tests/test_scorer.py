"""The scorer: equal scores whatever the company, calibrated, silent at start."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.passport import write_model
from models.scorer import Scorer
from sesmo_live.errors import ImageError, ModelError
from sesmo_live.records import ModelPassport
from tests.test_network import SHAPES

PASSPORT = ModelPassport(
    name="random",
    version="1",
    network="deep-sesmo",
    input_px=50,
    pixel_um=None,
    conversion="min-max",
    cropper="deep-sesmo",
    cropper_settings={},
    threshold=0.5,
    weights_sha256="",
)


def random_weights() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(11)
    return {name: rng.normal(0, 0.06, shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "random"
    write_model(folder, PASSPORT, random_weights())
    return folder


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return Scorer(folder)


@pytest.fixture(scope="module")
def crops() -> NDArray[np.uint8]:
    rng = np.random.default_rng(3)
    return (rng.integers(60, 200, (1000, 1, 1)) + rng.normal(0, 30, (1000, 50, 50))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scores(scorer: Scorer, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    return scorer.score(crops)


def test_scores_are_probabilities_that_differ(scores: NDArray[np.float32]) -> None:
    assert scores.dtype == np.float32
    assert scores.shape == (1000,)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores.std() > 0.01


@pytest.mark.parametrize("n", [1, 2, 3, 17, 64, 129, 1000])
def test_a_score_does_not_depend_on_batch_mates(
    scorer: Scorer, crops: NDArray[np.uint8], scores: NDArray[np.float32], n: int
) -> None:
    for start in range(0, min(1000, 8 * n), n):
        alone = scorer.score(crops[start : start + n])
        np.testing.assert_allclose(alone, scores[start : start + n], rtol=0, atol=1e-6)


def test_a_score_does_not_depend_on_order_or_chunk(
    folder: Path, scorer: Scorer, crops: NDArray[np.uint8], scores: NDArray[np.float32]
) -> None:
    order = np.random.default_rng(4).permutation(len(crops))
    np.testing.assert_allclose(scorer.score(crops[order]), scores[order], rtol=0, atol=1e-6)
    np.testing.assert_allclose(Scorer(folder, chunk=50).score(crops), scores, rtol=0, atol=1e-6)


def test_no_cells_give_no_scores(scorer: Scorer) -> None:
    nothing = scorer.score(np.empty((0, 50, 50), np.uint8))
    assert nothing.shape == (0,)
    assert nothing.dtype == np.float32


def test_views_are_scored_like_copies(scorer: Scorer, crops: NDArray[np.uint8], scores: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(scorer.score(crops[:40:2]), scores[:40:2], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((3, 50, 50)),
        np.zeros((3, 40, 40), np.uint8),
        np.zeros((50, 50), np.uint8),
        np.zeros((3, 50, 50, 1), np.uint8),
        np.zeros(0, np.uint8),
    ],
    ids=["float", "size", "one crop", "channel", "flat"],
)
def test_crops_of_another_kind_are_refused(scorer: Scorer, wrong: Any) -> None:
    with pytest.raises(ImageError, match="give uint8 N×50×50") as raised:
        scorer.score(wrong)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("temperature", [0.5, 3])
def test_the_temperature_divides_the_log_odds(
    tmp_path: Path, crops: NDArray[np.uint8], scores: NDArray[np.float32], temperature: float
) -> None:
    calibrated = dataclasses.replace(PASSPORT, calibration={"temperature": temperature})
    write_model(tmp_path / "m", calibrated, random_weights())
    log_odds = np.log(scores[:100].astype(float) / (1 - scores[:100].astype(float)))
    expected = 1 / (1 + np.exp(-log_odds / temperature))
    np.testing.assert_allclose(Scorer(tmp_path / "m").score(crops[:100]), expected, atol=1e-5)


def test_half_precision_weights_score_nearly_the_same(
    tmp_path: Path, crops: NDArray[np.uint8], scores: NDArray[np.float32]
) -> None:
    halved = {name: array.astype(np.float16) for name, array in random_weights().items()}
    write_model(tmp_path / "m", PASSPORT, halved)
    np.testing.assert_allclose(Scorer(tmp_path / "m").score(crops), scores, atol=2e-3)


def test_a_changed_model_is_not_loaded(tmp_path: Path) -> None:
    write_model(tmp_path / "m", PASSPORT, random_weights())
    with (tmp_path / "m" / "weights.safetensors").open("r+b") as blob:
        blob.seek(-4, 2)
        blob.write(b"\x00\x00\x80\x3f")
    with pytest.raises(ModelError, match="hash"):
        Scorer(tmp_path / "m")


def test_weights_of_another_input_size_are_refused(tmp_path: Path) -> None:
    write_model(
        tmp_path / "m", dataclasses.replace(PASSPORT, input_px=60, cropper_settings={"crop_px": 60}), random_weights()
    )
    with pytest.raises(ModelError, match="dense1/kernel"):
        Scorer(tmp_path / "m")


def test_threads_cannot_change_once_tensorflow_runs(folder: Path, scorer: Scorer) -> None:
    assert scorer.passport.name == "random"
    with pytest.raises(ModelError, match="already runs with .* threads"):
        Scorer(folder, threads=7)


def test_an_unknown_keras_backend_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "theano")
    with pytest.raises(ModelError, match="KERAS_BACKEND=theano .*tensorflow, jax, torch"):
        Scorer(folder)


def test_start_is_silent_and_other_words_still_come_through(folder: Path) -> None:
    script = (
        "import sys, subprocess; import numpy as np; from pathlib import Path\n"
        "from models.backend import without_chatter; from models.scorer import Scorer\n"
        "scores = Scorer(Path(sys.argv[1]), threads=1).score(np.zeros((3, 50, 50), np.uint8))\n"
        "with without_chatter():\n"
        "    print('I0000 00:00:1 1 port.cc:1] chatter', 'a warning of ours', sep='\\n', file=sys.stderr, flush=True)\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "child.kill(); child.wait()\n"
        "print(len(scores))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=110, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "a warning of ours\n")
