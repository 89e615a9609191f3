"""The scorer: a model folder and crops in, P(senescent) out."""

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.backend import start_keras
from models.calibration import calibrate_rest, check_calibration
from models.engines import compile_network, score_in_chunks
from models.passport import read_passport, read_weights
from sesmo_live.errors import ImageError
from sesmo_live.records import Precision

__all__ = ["Scorer", "compile_network", "score_in_chunks"]


class Scorer:
    """Scores crops with one model; one thread owns it. Loading takes seconds, as TensorFlow starts."""

    def __init__(
        self, folder: Path, *, chunk: int | None = None, threads: int | None = None, precision: Precision = "fp32"
    ) -> None:
        """Load the model in `folder`, to score `chunk` cells at a time (as many as suit it) on `threads` cores.

        With `precision` bf16 the passport, and so the id of the scores, says so. Raises ModelError where the folder
        cannot be trusted or its weights do not fit its network.
        """
        self.passport = dataclasses.replace(read_passport(folder), precision=precision)
        weights = read_weights(folder, self.passport)
        calibration = self.passport.calibration
        check_calibration(calibration)
        start_keras(threads)
        self._chunk = chunk
        self._engine = compile_network(
            self.passport.network,
            self.passport.input_px,
            weights,
            float(calibration.get("temperature", 1.0)),
            float(calibration.get("bias", 0.0)),
            precision=precision,
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
        scores = score_in_chunks(self._engine, crops, self._chunk or self._engine.chunk)
        return calibrate_rest(scores, self.passport.calibration)
