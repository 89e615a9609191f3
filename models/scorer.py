"""The scorer: a model folder and crops in, P(senescent) out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.backend import TURN, start_keras, without_chatter
from models.calibration import calibrate_rest, check_calibration
from models.network import NETWORKS, Weights, build_scoring_network
from models.passport import read_passport, read_weights
from sesmo_live.errors import ImageError

ScoreChunk = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Takes uint8 crops N×H×W of one chunk and returns P(senescent), float32 N."""

_BATCH_STEP = 8
"""Batches are filled up to a multiple of this: CPU kernels round the odd rest of a batch differently (by 1e-7)."""


class Scorer:
    """Scores crops with one model; one thread owns it. Loading takes seconds, as TensorFlow starts."""

    def __init__(self, folder: Path, *, chunk: int | None = None, threads: int | None = None) -> None:
        """Load the model in `folder`, to score `chunk` cells at a time (the network's own number) on `threads` cores.

        Raises ModelError where the folder cannot be trusted or its weights do not fit its network.
        """
        self.passport = read_passport(folder)
        weights = read_weights(folder, self.passport)
        calibration = self.passport.calibration
        check_calibration(calibration)
        start_keras(threads)
        self._chunk = chunk or NETWORKS[self.passport.network].chunk
        self._score_chunk = compile_network(
            self.passport.network,
            self.passport.input_px,
            weights,
            float(calibration.get("temperature", 1.0)),
            float(calibration.get("bias", 0.0)),
        )

    def score(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return P(senescent) of each crop, float32 N, with the passport's calibration applied.

        `crops` is uint8 N×H×W of the model's input size. A score does not depend on the cells beside it. Raises
        ImageError for crops of another kind.
        """
        size = self.passport.input_px
        if crops.dtype != np.uint8 or crops.ndim != 3 or crops.shape[1:] != (size, size):
            raise ImageError(
                f"crops of {crops.dtype} with shape {crops.shape} cannot be scored by model {self.passport.name}; "
                f"give uint8 N×{size}×{size}"
            )
        return calibrate_rest(score_in_chunks(self._score_chunk, crops, self._chunk), self.passport.calibration)


def score_in_chunks(score_chunk: ScoreChunk, crops: NDArray[np.uint8], chunk: int) -> NDArray[np.float32]:
    """Return the scores of all crops, computed `chunk` at a time."""
    scores = np.empty(len(crops), np.float32)
    for start in range(0, len(crops), chunk):
        scores[start : start + chunk] = score_chunk(crops[start : start + chunk])
    return scores


def compile_network(
    name: str, input_px: int, weights: Weights, temperature: float = 1.0, bias: float = 0.0
) -> ScoreChunk:
    """Return a function, traced once for any number of crops, that scores with `weights`.

    The softmax of the logits divided by `temperature` is the calibrated probability (Guo et al., ICML 2017); `bias`
    is added to their difference.
    """
    model = build_scoring_network(name, input_px, weights)
    if start_keras().backend.backend() != "tensorflow":
        return _on_another_backend(model, temperature, bias)
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, input_px, input_px), tf.uint8)], autograph=False)  # type: ignore[untyped-decorator]
    def score(crops: tf.Tensor) -> tf.Tensor:
        logits = model(tf.cast(crops, tf.float32)[..., None], training=False)
        margin = (logits[:, 1] - logits[:, 0]) / temperature
        return tf.sigmoid(margin + bias if bias else margin)

    def score_chunk(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        blanks = np.zeros((-len(crops) % _BATCH_STEP, input_px, input_px), np.uint8)
        batch = np.concatenate([crops, blanks]) if len(blanks) else crops
        with TURN:
            return np.asarray(score(batch), np.float32)[: len(crops)]

    with without_chatter():
        score_chunk(np.zeros((1, input_px, input_px), np.uint8))
    return score_chunk


def _on_another_backend(model: Any, temperature: float, bias: float) -> ScoreChunk:
    """Return the same on JAX or PyTorch, which trace anew for every size: batches are filled up to powers of two."""

    def score_chunk(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = max(_BATCH_STEP, 1 << (len(crops) - 1).bit_length())
        batch = np.zeros((size, *crops.shape[1:], 1), np.float32)
        batch[: len(crops), ..., 0] = crops
        logits = np.asarray(model.predict_on_batch(batch), np.float64)[: len(crops)]
        margin = (logits[:, 1] - logits[:, 0]) / temperature + bias
        return np.exp(-np.logaddexp(0, -margin)).astype(np.float32)

    return score_chunk
