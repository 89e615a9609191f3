"""Networks by name: the architectures live here, a model folder carries only numbers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.backend import start_keras
from sesmo_live.errors import ModelError

Weights = Mapping[str, NDArray[Any]]
"""Arrays by `layer/variable`, such as `conv1/kernel`."""


class Network(NamedTuple):
    """One architecture: how to build it for training, how with weights for scoring, how many cells to score at once.

    The less a cell costs, the more cells keep the cores busy.
    """

    build: Callable[[int], Any]
    build_scoring: Callable[[int, Weights, float], Any]
    chunk: int


def build_network(name: str, input_px: int = 50) -> Any:
    """Return a fresh `keras.Model` for training: grey crops N×H×W×1 of values 0 to 255 in, softmax N×2 out.

    Output 1 is P(senescent). Raises ModelError for an unknown network or an input too small for it.
    """
    return _network(name).build(input_px)


def build_scoring_network(name: str, input_px: int, weights: Weights, *, zero: float = 0) -> Any:
    """Return a `keras.Model` that carries `weights`: grey crops N×H×W×1 of values 0 to 255 in, logits N×2 out.

    What can be folded into the weights is folded, which changes scores by about 1e-7. `zero` is subtracted from the
    crops that it will be given. Raises ModelError for an unknown network and where the weights do not fit it.
    """
    network = _network(name)
    set_weights(network.build(input_px), weights)
    return network.build_scoring(input_px, weights, 2 / 255 * zero - 1)


def get_weights(model: Any) -> dict[str, NDArray[np.float32]]:
    """Return all weights of `model` as float32 by `layer/variable`."""
    # Keras' own conversion makes NumPy 2 warn.
    return {path: np.array(np.asarray(variable), np.float32) for path, variable in _variables(model).items()}


def set_weights(model: Any, weights: Weights) -> None:
    """Put `weights` into `model`; raise ModelError unless each is there in its shape and none is left over."""
    variables = _variables(model)
    if odd := sorted(variables.keys() ^ weights.keys()):
        fault = "is missing" if odd[0] in variables else "belongs to another network"
        raise ModelError(f"the weights do not fit network {model.name}: {odd[0]} {fault}; install the model anew")
    for path, variable in variables.items():
        if tuple(variable.shape) != weights[path].shape:
            raise ModelError(
                f"the weights do not fit network {model.name}: {path} has shape {weights[path].shape}, "
                f"not {tuple(variable.shape)}; use the input size that the model was trained with"
            )
        variable.assign(np.asarray(weights[path], np.float32))


def _network(name: str) -> Network:
    if name not in NETWORKS:
        raise ModelError(f"network {name!r} is unknown to this version; it knows {', '.join(NETWORKS)}")
    return NETWORKS[name]


def _variables(model: Any) -> dict[str, Any]:
    return {f"{layer.name}/{variable.name}": variable for layer in model.layers for variable in layer.weights}


def _deep_sesmo(input_px: int) -> Any:
    """Build the original study's network; its three channels all see the scaled grey value (x/255 − 0.5)·2."""
    layers = start_keras().layers
    grey = layers.Input((input_px, input_px, 1))
    scaled = layers.Rescaling(2 / 255, -1, name="scale")(grey)
    return _deep_sesmo_body(grey, layers.Concatenate(name="channels")([scaled] * 3), "softmax")


def _deep_sesmo_scoring(input_px: int, weights: Weights, offset: float) -> Any:
    """Build the same with channels and scaling folded into `conv1`, which is exact as it has no padding.

    `offset` is the scaled value that a 0 in the crops stands for.
    """
    kernel = weights["conv1/kernel"].astype(np.float64)
    folded = {
        "conv1/kernel": kernel.sum(axis=2, keepdims=True) * 2 / 255,
        "conv1/bias": weights["conv1/bias"] + offset * kernel.sum(axis=(0, 1, 2)),
    }
    grey = start_keras().layers.Input((input_px, input_px, 1))
    model = _deep_sesmo_body(grey, grey, None)
    set_weights(model, {**weights, **folded})
    return model


def _deep_sesmo_body(grey: Any, tensor: Any, activation: str | None) -> Any:
    keras = start_keras()
    layers = keras.layers
    if grey.shape[1] < _MIN_PX:
        raise ModelError(f"network deep-sesmo needs crops of at least {_MIN_PX} px; raise input_px")
    for layer in (
        layers.Conv2D(32, 3, activation="relu", name="conv1"),
        layers.Conv2D(32, 3, activation="relu", name="conv2"),
        layers.MaxPooling2D(2, name="pool1"),
        layers.Dropout(0.5, name="dropout1"),
        layers.Conv2D(64, 3, activation="relu", name="conv3"),
        layers.Conv2D(128, 3, activation="relu", name="conv4"),
        layers.MaxPooling2D(2, name="pool2"),
        layers.Dropout(0.5, name="dropout2"),
        layers.Flatten(name="flatten"),
        layers.Dense(256, activation="relu", name="dense1"),
        layers.Dropout(0.5, name="dropout3"),
        layers.Dense(2, activation=activation, name="dense2", dtype="float32"),  # also where the rest is bfloat16
    ):
        tensor = layer(tensor)
    return keras.Model(grey, tensor, name="deep-sesmo")


def _compact(input_px: int) -> Any:
    """Build our small residual network, 12.8 million operations for a cell of 50 px against the original's 118."""
    layers = start_keras().layers
    grey = layers.Input((input_px, input_px, 1))
    scaled = layers.Rescaling(2 / 255, -1, name="scale")(grey)
    return _compact_body(grey, scaled, "softmax", normed=True)


def _compact_scoring(input_px: int, weights: Weights, offset: float) -> Any:
    """Build the same with normalisation and scaling folded into the convolutions, the first having no padding."""
    folded = {name: array for name, array in weights.items() if name.startswith("dense/")}
    for kernel_name in (name for name in weights if name.endswith("/kernel") and name != "dense/kernel"):
        name = kernel_name.removesuffix("/kernel")
        gamma, beta, mean, variance = (
            weights[f"{name}_norm/{part}"].astype(np.float64)
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        gain = gamma / np.sqrt(variance + _NORM_EPSILON)
        kernel = weights[kernel_name].astype(np.float64) * gain
        folded[f"{name}/kernel"], folded[f"{name}/bias"] = kernel, beta - mean * gain
    folded["stem/bias"] = folded["stem/bias"] + offset * folded["stem/kernel"].sum(axis=(0, 1, 2))
    folded["stem/kernel"] = folded["stem/kernel"] * 2 / 255
    grey = start_keras().layers.Input((input_px, input_px, 1))
    model = _compact_body(grey, grey, None, normed=False)
    set_weights(model, folded)
    return model


def _compact_body(grey: Any, tensor: Any, activation: str | None, *, normed: bool) -> Any:
    keras = start_keras()
    layers = keras.layers
    if grey.shape[1] < _MIN_PX:
        raise ModelError(f"network compact needs crops of at least {_MIN_PX} px; raise input_px")

    def convolve(tensor: Any, name: str, n: int, size: int, stride: int, padding: str = "same") -> Any:
        tensor = layers.Conv2D(n, size, stride, padding, use_bias=not normed, name=name)(tensor)
        if not normed:
            return tensor
        # Few crops make few steps: the means must settle within them.
        return layers.BatchNormalization(momentum=0.9, epsilon=_NORM_EPSILON, name=f"{name}_norm")(tensor)

    tensor = layers.ReLU(name="stem_relu")(convolve(tensor, "stem", 16, 5, 2, "valid"))
    for number, n in enumerate((32, 64, 128), start=1):
        name = f"block{number}"
        path = layers.ReLU(name=f"{name}_relu1")(convolve(tensor, f"{name}_conv1", n, 3, 2))
        path = convolve(path, f"{name}_conv2", n, 3, 1)
        short = convolve(
            layers.AveragePooling2D(2, padding="same", name=f"{name}_pool")(tensor), f"{name}_short", n, 1, 1
        )
        tensor = layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([path, short]))
    tensor = layers.Dropout(0.3, name="dropout")(layers.GlobalAveragePooling2D(name="mean")(tensor))
    logits = layers.Dense(2, activation=activation, name="dense", dtype="float32")(tensor)
    return keras.Model(grey, logits, name="compact")


_MIN_PX = 16
_NORM_EPSILON = 1e-3

NETWORKS: dict[str, Network] = {
    "deep-sesmo": Network(_deep_sesmo, _deep_sesmo_scoring, 128),
    "compact": Network(_compact, _compact_scoring, 512),
}
"""Networks by the name that passports use: the original study's and ours. Weights are Glorot-uniform at first."""
