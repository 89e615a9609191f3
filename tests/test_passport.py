"""Model folders: round trips, and every way in which one can be damaged or forged, in one sentence each."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from models import passport as passports
from models.passport import find_model, list_models, read_passport, read_weights, write_model
from sesmo_live.errors import ModelError
from sesmo_live.records import ModelPassport

WEIGHTS: dict[str, NDArray[Any]] = {
    "conv1/kernel": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    "conv1/bias": np.zeros(4, np.float16),
}

PASSPORT = ModelPassport(
    name="tried",
    version="2",
    network="deep-sesmo",
    input_px=50,
    pixel_um=0.65,
    conversion="min-max",
    cropper="deep-sesmo",
    cropper_settings={"percentile": 5, "min_area_px": 50},
    threshold=0.42,
    weights_sha256="",
    demonstration="for µ-tests only",
    calibration={"temperature": 1.5},
    training={"groups": ["P1", "P2"], "n": 10},
    metrics={"auc": 0.9, "auc_low": None},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "tried", PASSPORT, WEIGHTS)
    return tmp_path / "tried"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the user's model folder, moved to a place of its own."""
    monkeypatch.setattr("platformdirs.user_data_path", lambda *_a, **_k: tmp_path / "data")
    return tmp_path / "data" / "models"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "passport.json").read_text())
    change(content)
    (folder / "passport.json").write_text(json.dumps(content))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_what_is_written_is_read_back(folder: Path) -> None:
    read = read_passport(folder)
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert read == dataclasses.replace(PASSPORT, weights_sha256=digest)
    weights = read_weights(folder, read)
    assert {name: array.dtype for name, array in weights.items()} == dict.fromkeys(WEIGHTS, np.float32)
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(weights[name], array)
    assert sorted(path.name for path in folder.iterdir()) == ["passport.json", "weights.safetensors"]


def test_writing_returns_the_passport_that_reading_gives(tmp_path: Path) -> None:
    written = write_model(tmp_path / "m", dataclasses.replace(PASSPORT, pixel_um=1, threshold=0), WEIGHTS)
    assert written == read_passport(tmp_path / "m")
    assert written.model_id == read_passport(tmp_path / "m").model_id


def test_half_precision_is_stored_half_as_large_and_read_as_float32(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(100, 100)).astype(np.float16)
    small = write_model(tmp_path / "half", PASSPORT, {"a/b": values})
    large = write_model(tmp_path / "full", PASSPORT, {"a/b": values.astype(np.float32)})
    half, full = ((tmp_path / name / "weights.safetensors").stat().st_size for name in ("half", "full"))
    assert half < 0.55 * full
    np.testing.assert_array_equal(
        read_weights(tmp_path / "half", small)["a/b"], read_weights(tmp_path / "full", large)["a/b"]
    )


def test_a_model_is_never_overwritten(folder: Path) -> None:
    before = (folder / "weights.safetensors").read_bytes()
    assert "holds a model already" in refusal(lambda: write_model(folder, PASSPORT, {"a/b": np.ones(3)}))
    assert (folder / "weights.safetensors").read_bytes() == before


@pytest.mark.parametrize("place", [0, 40, -1])
def test_one_changed_byte_is_found_before_anything_is_parsed(folder: Path, place: int) -> None:
    path = folder / "weights.safetensors"
    blob = bytearray(path.read_bytes())
    blob[place] ^= 1
    path.write_bytes(blob)
    assert "hash" in refusal(lambda: read_weights(folder, read_passport(folder)))


def forge(folder: Path, blob: bytes) -> None:
    (folder / "weights.safetensors").write_bytes(blob)
    rewrite(folder, lambda content: content.update(weights_sha256=hashlib.sha256(blob).hexdigest()))


def test_a_pickle_with_the_right_hash_is_still_no_model(folder: Path) -> None:
    forge(folder, b"\x80\x04cos\nsystem\n.")
    assert "safetensors" in refusal(lambda: read_weights(folder, read_passport(folder)))


@pytest.mark.parametrize("array", [np.array([1.0, np.nan], np.float32), np.array([1, 2])], ids=["nan", "int64"])
def test_weights_must_be_finite_numbers(folder: Path, tmp_path: Path, array: Any) -> None:
    assert "conv1/bias" in refusal(lambda: write_model(tmp_path / "m", PASSPORT, {"conv1/bias": array}))
    forge(folder, safetensors.numpy.save({"conv1/bias": array}))
    assert "conv1/bias" in refusal(lambda: read_weights(folder, read_passport(folder)))


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    assert "weights.safetensors" in refusal(lambda: read_weights(folder, read_passport(folder)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network": "deeper"}, ["network", "'deeper'", "deep-sesmo"]),
        ({"conversion": "gamma"}, ["conversion", "'gamma'", "min-max"]),
        ({"cropper": "lasso"}, ["cropper", "'lasso'"]),
        ({"format_version": 2}, ["format version 2", "update sesmo-live"]),
        ({"format_version": "1"}, ["format_version"]),
        ({"format_version": None}, ["format_version"]),
        ({"treshold": 0.5}, ["'treshold'", "'threshold'"]),
        ({"threshold": "high"}, ["threshold"]),
        ({"threshold": 1.5}, ["threshold 1.5"]),
        ({"threshold": True}, ["threshold"]),
        ({"input_px": 50.5}, ["input_px"]),
        ({"input_px": 0}, ["input_px 0"]),
        ({"pixel_um": -1.0}, ["pixel_um -1.0"]),
        ({"calibration": {"temperature": 0}}, ["temperature 0"]),
        ({"calibration": {"temperature": "hot"}}, ["temperature 'hot'"]),
        ({"calibration": {"temperature": 1.0, "bias": "0.1"}}, ["bias '0.1'"]),
        ({"calibration": {"x": [0, 0.5, 0.2], "y": [0, 0.5, 1]}}, ["x of its line"]),
        ({"calibration": {"x": [0, 0.5, 1]}}, ["y None"]),
        ({"cropper_settings": {"percentle": 5}}, ["cropper deep-sesmo", "percentle"]),
        ({"cropper_settings": {"percentile": "5"}}, ["cropper deep-sesmo"]),
        ({"cropper_settings": {"percentile": 500}}, ["percentile 500"]),
        ({"cropper_settings": {"crop_px": 40}}, ["40 px", "input_px 50"]),
        ({"cropper_settings": [5]}, ["cropper_settings"]),
        ({"name": 5}, ["name"]),
    ],
)
def test_a_damaged_passport_is_refused_with_the_key(folder: Path, change: dict[str, Any], words: list[str]) -> None:
    rewrite(folder, lambda content: content.update(change))
    message = refusal(lambda: read_passport(folder))
    assert all(word in message for word in [*words, str(folder)])


@pytest.mark.parametrize("key", ["name", "network", "input_px", "pixel_um", "weights_sha256", "threshold"])
def test_a_missing_key_is_named(folder: Path, key: str) -> None:
    rewrite(folder, lambda content: content.pop(key))
    assert f"'{key}'" in refusal(lambda: read_passport(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00", '"x"'])
def test_what_is_no_passport_is_refused(folder: Path, text: str) -> None:
    (folder / "passport.json").write_text(text)
    assert "passport.json" in refusal(lambda: read_passport(folder))


def test_a_folder_without_passport_is_no_model(tmp_path: Path) -> None:
    assert "no model folder" in refusal(lambda: read_passport(tmp_path))
    assert "no model folder" in refusal(lambda: find_model(tmp_path))


@pytest.mark.parametrize(
    "change", [{"network": "deeper"}, {"metrics": {"auc": float("nan")}}, {"metrics": {"auc": {1, 2}}}]
)
def test_a_passport_that_could_not_be_read_back_is_not_written(tmp_path: Path, change: dict[str, Any]) -> None:
    refusal(lambda: write_model(tmp_path / "m", dataclasses.replace(PASSPORT, **change), WEIGHTS))
    assert not (tmp_path / "m").exists()


def test_models_are_found_by_path_and_by_name(folder: Path, home: Path) -> None:
    write_model(home / "mine", PASSPORT, WEIGHTS)
    assert find_model(folder) == folder
    assert find_model(str(folder)) == folder
    assert find_model("mine") == home / "mine"
    assert (home / "mine") in [found for found, _ in list_models()]
    assert all(read_passport(found) == passport for found, passport in list_models())


def test_an_unknown_model_is_answered_with_those_there_are(home: Path) -> None:
    write_model(home / "mine", PASSPORT, WEIGHTS)
    message = refusal(lambda: find_model("yours"))
    assert "'yours'" in message
    assert "mine" in message


def test_no_name_means_the_shipped_demonstration_model() -> None:
    shipped = Path(passports.__file__).parent / "weights" / "demo-compact"
    assert find_model(None) == shipped
    passport = read_passport(shipped)
    assert "not for biological conclusions" in passport.demonstration
    assert read_weights(shipped, passport)


def test_a_damaged_user_model_is_named_in_the_list(home: Path) -> None:
    write_model(home / "mine", PASSPORT, WEIGHTS)
    (home / "mine" / "passport.json").write_text("{}")
    assert "mine" in refusal(list_models)


def test_reading_a_passport_does_not_start_tensorflow(folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "import models.scorer, models.training, models.keras_import, models.passport as p\n"
        "p.read_weights(Path(sys.argv[1]), p.read_passport(Path(sys.argv[1])))\n"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, timeout=60)
