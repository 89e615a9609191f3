"""Importing the original study's Keras files: equal scores, any other architecture refused, nothing executed."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from models.keras_import import import_keras
from models.passport import read_passport, read_weights
from models.scorer import Scorer
from sesmo_live.errors import ModelError, UsageError
from tests.test_network import SHAPES

CONV = {
    "kernel_size": [3, 3],
    "strides": [1, 1],
    "padding": "valid",
    "data_format": "channels_last",
    "dilation_rate": [1, 1],
    "activation": "relu",
    "use_bias": True,
}
POOL = {"pool_size": [2, 2], "padding": "valid", "strides": [2, 2], "data_format": "channels_last"}


def layer(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": name, "trainable": True, **settings}}


ARCHITECTURE: dict[str, Any] = {
    "class_name": "Sequential",
    "config": {
        "name": "sequential_1",
        "layers": [
            layer("Conv2D", "conv2d_1", batch_input_shape=[None, 50, 50, 3], filters=32, **CONV),
            layer("Conv2D", "conv2d_2", filters=32, **CONV),
            layer("MaxPooling2D", "max_pooling2d_1", **POOL),
            layer("Dropout", "dropout_1", rate=0.5),
            layer("Conv2D", "conv2d_3", filters=64, **CONV),
            layer("Conv2D", "conv2d_4", filters=128, **CONV),
            layer("MaxPooling2D", "max_pooling2d_2", **POOL),
            layer("Dropout", "dropout_2", rate=0.5),
            layer("Flatten", "flatten_1", data_format="channels_last"),
            layer("Dense", "dense_1", units=256, activation="relu", use_bias=True),
            layer("Dropout", "dropout_3", rate=0.5),
            layer("Dense", "dense_2", units=2, activation="softmax", use_bias=True),
        ],
    },
    "keras_version": "2.2.4",
    "backend": "tensorflow",
}
LAYERS = ARCHITECTURE["config"]["layers"]

Edit = Callable[[list[dict[str, Any]]], object]


def write_json(path: Path, edit: Edit = len) -> Path:
    """Write the original's architecture after `edit` has had its way with the list of layers."""
    model = copy.deepcopy(ARCHITECTURE)
    edit(model["config"]["layers"])
    path.write_text(json.dumps(model))
    return path


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    rng = np.random.default_rng(6)
    return {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def h5(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Any]) -> Path:
    path = tmp_path_factory.mktemp("keras") / "weights.h5"
    write_h5(path, weights)
    return path


def write_h5(path: Path, weights: dict[str, Any], root: str = "/") -> None:
    """Write weights in the places where Keras 2 puts them."""
    with h5py.File(path, "w") as file:
        for kind, theirs in (("conv", "conv2d_"), ("dense", "dense_")):
            for number in range(1, 5 if kind == "conv" else 3):
                name = f"{theirs}{number}"
                group = file.require_group(root).create_group(name)
                group.attrs["weight_names"] = np.array([f"{name}/kernel:0".encode(), f"{name}/bias:0".encode()])
                for part in ("kernel", "bias"):
                    group[f"{name}/{part}:0"] = weights[f"{kind}{number}/{part}"]


@pytest.mark.realdata
def test_an_original_model_scores_as_it_did_under_keras_2(shared: Path, tmp_path: Path) -> None:
    legacy = shared / "golden/legacy_keras_model"
    passport = import_keras(legacy / "model.json", legacy / "weights.h5", tmp_path / "legacy", name="legacy")
    expected = np.load(legacy / "probabilities.npy")[:, 1]
    scores = Scorer(tmp_path / "legacy").score(np.load(legacy / "cells.npy")[..., 0])
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    assert passport.training["keras_version"] == "2.2.4"


def test_weights_arrive_under_our_names(tmp_path: Path, h5: Path, weights: dict[str, Any]) -> None:
    passport = import_keras(
        write_json(tmp_path / "m.json"), h5, tmp_path / "out", name="mine", version="3", threshold=0.4, pixel_um=0.65
    )
    assert passport == read_passport(tmp_path / "out")
    assert (passport.name, passport.version, passport.threshold, passport.pixel_um) == ("mine", "3", 0.4, 0.65)
    assert passport.network == passport.cropper == "deep-sesmo"
    read = read_weights(tmp_path / "out", passport)
    assert read.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(read[name], array)


def test_the_senescent_output_may_be_the_first(tmp_path: Path, h5: Path, weights: dict[str, Any]) -> None:
    passport = import_keras(write_json(tmp_path / "m.json"), h5, tmp_path / "out", name="m", senescent_index=0)
    read = read_weights(tmp_path / "out", passport)
    np.testing.assert_array_equal(read["dense2/kernel"], weights["dense2/kernel"][:, ::-1])
    np.testing.assert_array_equal(read["dense2/bias"], weights["dense2/bias"][::-1])
    with pytest.raises(UsageError, match="senescent_index 2"):
        import_keras(tmp_path / "m.json", h5, tmp_path / "other", name="m", senescent_index=2)


def test_the_forms_of_other_keras_versions_are_read(tmp_path: Path, weights: dict[str, Any]) -> None:
    old = copy.deepcopy(ARCHITECTURE)
    old["config"] = old["config"]["layers"]  # before 2.2.3
    del old["config"][8]["config"]["data_format"]
    newer = copy.deepcopy(ARCHITECTURE)
    del newer["config"]["layers"][0]["config"]["batch_input_shape"]
    newer["config"]["layers"].insert(0, layer("InputLayer", "input", batch_input_shape=[None, 50, 50, 3]))
    write_h5(tmp_path / "whole.h5", weights, "model_weights")  # model.save instead of model.save_weights
    for name, model in (("old", old), ("newer", newer)):
        (tmp_path / f"{name}.json").write_text(json.dumps(model))
        passport = import_keras(tmp_path / f"{name}.json", tmp_path / "whole.h5", tmp_path / name, name=name)
        np.testing.assert_array_equal(read_weights(tmp_path / name, passport)["conv3/bias"], weights["conv3/bias"])


def set_in(number: int, **settings: Any) -> Edit:
    return lambda layers: layers[number]["config"].update(settings)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (set_in(0, batch_input_shape=[None, 50, 60, 3]), ["50, 60, 3"]),
        (set_in(0, batch_input_shape=[None, 50, 50, 1]), ["three channels"]),
        (set_in(0, batch_input_shape="big"), ["big"]),
        (set_in(0, padding="same"), ["layer 1", "padding same", "valid"]),
        (set_in(1, filters=48), ["layer 2", "filters 48", "32"]),
        (set_in(1, activation="tanh"), ["layer 2", "activation tanh"]),
        (set_in(4, groups=2), ["layer 5", "groups 2"]),
        (set_in(2, pool_size=[3, 3]), ["layer 3", "pool_size"]),
        (set_in(8, data_format="channels_first"), ["layer 9", "data_format"]),
        (set_in(9, use_bias=False), ["layer 10", "use_bias"]),
        (set_in(11, units=3), ["layer 12", "units 3", "2"]),
        (set_in(11, activation="sigmoid"), ["layer 12", "sigmoid"]),
        (lambda layers: layers.pop(3), ["11 layers", "12"]),
        (lambda layers: layers.clear(), ["Sequential"]),
        (lambda layers: layers.__setitem__(3, layer("Lambda", "evil", function="os.system")), ["layer 4", "Lambda"]),
        (lambda layers: layers.__setitem__(3, 7), ["Sequential"]),
    ],
)
def test_another_architecture_is_refused_by_layer(tmp_path: Path, h5: Path, edit: Edit, words: list[str]) -> None:
    with pytest.raises(ModelError) as raised:
        import_keras(write_json(tmp_path / "m.json", edit), h5, tmp_path / "out", name="m")
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", "null", '{"config": {}}', '{"class_name": "Functional", "config": []}'])
def test_what_is_no_sequential_model_is_refused(tmp_path: Path, h5: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ModelError, match=r"m\.json"):
        import_keras(tmp_path / "m.json", h5, tmp_path / "out", name="m")


def remove_group(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["dense_1"]


def reshape_kernel(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["conv2d_2/conv2d_2/kernel:0"]
        file["conv2d_2/conv2d_2/kernel:0"] = np.zeros((5, 5, 32, 32), np.float32)


def make_nan(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["conv2d_2/conv2d_2/bias:0"][3] = np.nan


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "does not hold the weights"),
        (lambda path: path.write_bytes(b""), "does not hold the weights"),
        (remove_group, "does not hold the weights"),
        (reshape_kernel, r"conv2d_2.*\(5, 5, 32, 32\)"),
        (make_nan, "conv2/bias.*finite"),
    ],
)
def test_damaged_weights_are_refused(
    tmp_path: Path, weights: dict[str, Any], damage: Callable[[Path], object], words: str
) -> None:
    write_h5(tmp_path / "w.h5", weights)
    damage(tmp_path / "w.h5")
    with pytest.raises(ModelError, match=words):
        import_keras(write_json(tmp_path / "m.json"), tmp_path / "w.h5", tmp_path / "out", name="m")
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_wrong_usage(tmp_path: Path, h5: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.h5 cannot be read .*; give the JSON and the H5 of one model"):
        import_keras(write_json(tmp_path / "m.json"), tmp_path / "none.h5", tmp_path / "out", name="m")
    with pytest.raises(UsageError, match=r"0 is no size of a pixel in µm; give one such as 0\.65"):
        import_keras(write_json(tmp_path / "m.json"), h5, tmp_path / "out", name="m", pixel_um=0)
