"""Import a model of the original study: its Keras JSON and H5 are read as data, nothing in them is ever run."""

import hashlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from models import convert
from models.passport import write_model
from sesmo_live.errors import ModelError, UsageError
from sesmo_live.records import ModelPassport

_CONV = {
    "kernel_size": [3, 3],
    "strides": [1, 1],
    "padding": "valid",
    "data_format": "channels_last",
    "dilation_rate": [1, 1],
    "groups": 1,
    "activation": "relu",
    "use_bias": True,
}
_POOL = {"pool_size": [2, 2], "strides": [2, 2], "padding": "valid", "data_format": "channels_last"}

_LAYERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("conv1", "Conv2D", {**_CONV, "filters": 32}),
    ("conv2", "Conv2D", {**_CONV, "filters": 32}),
    ("", "MaxPooling2D", _POOL),
    ("", "Dropout", {}),
    ("conv3", "Conv2D", {**_CONV, "filters": 64}),
    ("conv4", "Conv2D", {**_CONV, "filters": 128}),
    ("", "MaxPooling2D", _POOL),
    ("", "Dropout", {}),
    ("", "Flatten", {"data_format": "channels_last"}),
    ("dense1", "Dense", {"units": 256, "activation": "relu", "use_bias": True}),
    ("", "Dropout", {}),
    ("dense2", "Dense", {"units": 2, "activation": "softmax", "use_bias": True}),
)
"""The original network: our name of each layer that has weights, its Keras class, what its settings must be."""

_MAY_LACK = {"groups", "data_format"}
"""Settings that older Keras versions did not write; they then had the value above."""


def import_keras(
    json_path: Path,
    h5_path: Path,
    out: Path,
    *,
    name: str,
    version: str = "1",
    senescent_index: int = 1,
    threshold: float = 0.5,
    pixel_um: float | None = None,
) -> ModelPassport:
    """Turn the JSON and H5 that the original training notebook saved into the model folder `out`.

    `senescent_index` is the softmax output that means senescent: 1 in the original, whose training labels control
    cells 0 and stressed cells 1 and whose score is the mean of output 1. `pixel_um` is the µm per pixel of the
    training images. Raises ModelError where the files do not hold the original network, UsageError for an index
    other than 0 or 1, a size that is none and files that are not there. Dropout rates are not compared: they do not
    touch scores.
    """
    if senescent_index not in (0, 1):
        raise UsageError(f"senescent_index {senescent_index} is neither 0 nor 1; the original's is 1")
    if pixel_um is not None and not 0 < pixel_um < 1000:
        raise UsageError(f"{pixel_um} is no size of a pixel in µm; give one such as 0.65, or leave it out")
    text, blob = _bytes_of(json_path), _bytes_of(h5_path)
    layer_names, input_px, keras_version = _check_architecture(text, json_path)
    weights = _read_h5(h5_path, layer_names, _shapes(input_px))
    if senescent_index == 0:
        weights["dense2/kernel"] = weights["dense2/kernel"][:, ::-1]
        weights["dense2/bias"] = weights["dense2/bias"][::-1]
    passport = ModelPassport(
        name=name,
        version=version,
        network="deep-sesmo",
        input_px=input_px,
        pixel_um=pixel_um,
        conversion=convert.DEFAULT,
        cropper="deep-sesmo",
        cropper_settings={"percentile": 5, "min_area_px": 50, "fluorescence": False, "crop_px": input_px},
        threshold=threshold,
        weights_sha256="",
        training={
            "source": "imported from the Keras files of the original study's notebooks",
            "keras_version": keras_version,
            "senescent_index": senescent_index,
            "json_sha256": hashlib.sha256(text).hexdigest(),
            "h5_sha256": hashlib.sha256(blob).hexdigest(),
        },
    )
    return write_model(out, passport, weights)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); give the JSON and the H5 of one model") from error


def _check_architecture(text: bytes, path: Path) -> tuple[dict[str, str], int, str]:
    """Compare the layers in the JSON with the original's.

    Returns the file's layer name for each of ours that has weights, the input size in px and the Keras version.
    """
    try:
        model = json.loads(text)
        config = model["config"]
        layers = config if isinstance(config, list) else config["layers"]  # a bare list before Keras 2.2.3
        layers = [(layer["class_name"], dict(layer["config"])) for layer in layers]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is not the JSON of a Keras Sequential model; save it with model.to_json()") from error
    if model.get("class_name") != "Sequential" or not layers:
        raise ModelError(f"{path} holds no Sequential model; only the original study's network can be imported")
    input_px = _input_px(layers[0][1], path)
    layers = [layer for layer in layers if layer[0] != "InputLayer"]
    if len(layers) != len(_LAYERS):
        raise ModelError(f"{path} has {len(layers)} layers, the original network has {len(_LAYERS)}")
    names = {}
    for number, ((kind, settings), (ours, wanted_kind, wanted)) in enumerate(zip(layers, _LAYERS, strict=True), 1):
        if kind != wanted_kind:
            raise ModelError(f"layer {number} in {path} is {kind}, in the original network it is {wanted_kind}")
        for key, value in wanted.items():
            found = settings.get(key, value if key in _MAY_LACK else None)
            if found != value:
                raise ModelError(f"layer {number} in {path} has {key} {found}, the original network has {value}")
        if ours:
            names[ours] = str(settings.get("name"))
    return names, input_px, str(model.get("keras_version", "unknown"))


def _input_px(first: dict[str, Any], path: Path) -> int:
    shape = first.get("batch_input_shape", first.get("batch_shape"))
    match shape:
        case [None, int(height), int(width), 3] if height == width and 16 <= height <= 1024:
            return height
    raise ModelError(f"{path} takes input of shape {shape}; the original network takes square crops of three channels")


def _shapes(input_px: int) -> dict[str, tuple[int, ...]]:
    pooled = ((input_px - 4) // 2 - 4) // 2
    return {
        "conv1/kernel": (3, 3, 3, 32),
        "conv2/kernel": (3, 3, 32, 32),
        "conv3/kernel": (3, 3, 32, 64),
        "conv4/kernel": (3, 3, 64, 128),
        "dense1/kernel": (pooled * pooled * 128, 256),
        "dense2/kernel": (256, 2),
    }


def _read_h5(path: Path, layer_names: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Return kernel and bias of each layer as float32 under our names; shapes are checked before values are read."""
    weights = {}
    try:
        with h5py.File(path, "r") as h5:
            root = h5.get("model_weights", h5)
            for ours, theirs in layer_names.items():
                kernel, bias = (root[theirs][weight] for weight in root[theirs].attrs["weight_names"])
                shape = shapes[f"{ours}/kernel"]
                if (kernel.shape, bias.shape) != (shape, shape[-1:]):
                    raise ModelError(f"layer {theirs} in {path} has a kernel of {kernel.shape}, not {shape}")
                weights[f"{ours}/kernel"] = kernel[()].astype(np.float32)
                weights[f"{ours}/bias"] = bias[()].astype(np.float32)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} does not hold the weights of that JSON ({error}); save both from one model"
        ) from error
    return weights
