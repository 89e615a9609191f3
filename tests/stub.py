"""A model without a network, so that tests of the service meet the service: a score is a crop's mean grey / 255."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.convert import DEFAULT
from models.passport import write_model
from sesmo_live import service
from sesmo_live.records import ModelPassport, Precision


def mean_grey(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the mean grey value of each crop over 255, float32 N."""
    values: NDArray[np.float32] = (crops.mean(axis=(1, 2)) / 255).astype(np.float32)
    return values


def lazy_stub(
    folder: Path,  # noqa: ARG001 — the loader's signature
    precision: Precision = "fp32",  # noqa: ARG001
    threads: int | None = None,  # noqa: ARG001
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Stand in for the service's loader of networks."""
    return mean_grey


def write_stub_model(folder: Path, name: str = "stub", threshold: float = 0.5) -> Path:
    """Write a model folder whose passport is whole and whose weights are never used."""
    passport = ModelPassport(
        name=name,
        version="1",
        network="deep-sesmo",
        input_px=50,
        pixel_um=None,
        conversion=DEFAULT,
        cropper="deep-sesmo-either",
        cropper_settings={},
        threshold=threshold,
        weights_sha256="",
    )
    write_model(folder, passport, {"none": np.zeros(1, np.float32)})
    return folder


if __name__ == "__main__":
    service.lazy_scorer = lazy_stub
    from sesmo_live.cli import main

    main()
