"""What is loaded into workers under test: no network, a little time for each image, files that kill, and a record."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acquisition.tiff import read_pixels
from sesmo_live import service
from sesmo_live.cluster import alike
from sesmo_live.records import Precision
from tests.stub import mean_grey

READ: list[str] = []
"""Files that this process read."""

SCORED: list[int] = []
"""Cells in each batch that this process scored."""

_UNSEEN = alike.unseen


def dask_setup(_worker: Any) -> None:
    """Prepare a worker; dask calls this as it begins."""
    service.lazy_scorer = slow_stub
    setattr(service, "read_pixels", lethal_pixels)  # noqa: B010 — the service does not export it


def slow_stub(
    folder: Path,  # noqa: ARG001 — the loader's signature
    precision: Precision = "fp32",  # noqa: ARG001
    threads: int | None = None,  # noqa: ARG001
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Stand in for a network that takes its time."""

    def score(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        SCORED.append(len(crops))
        time.sleep(0.02)
        return mean_grey(crops)

    return score


def lethal_pixels(path: Path, page: int) -> Any:
    """Read a page, but die of a file that says so."""
    READ.append(path.name)
    if "_f666_" in path.name:
        time.sleep(2.0)  # a nanny gives a worker up that dies before it has said that it is up
        os.kill(os.getpid(), signal.SIGKILL)
    return read_pixels(path, page)


def record() -> tuple[list[str], list[int]]:
    """Return what this worker read and scored since it was asked, and forget it."""
    found = list(READ), list(SCORED)
    READ.clear()
    SCORED.clear()
    return found


def blind(yes: bool) -> None:
    """Let this worker see no folder, or see again."""
    alike.unseen = (lambda folders: next(iter(folders))) if yes else _UNSEEN


def foreign(yes: bool) -> None:
    """Let this worker be one on which this program is not installed, or not."""
    name = "sesmo_live.cluster.alike"
    sys.modules[name] = None if yes else alike  # type: ignore[assignment]


def forget() -> None:
    """Let this worker forget where models lie."""
    from sesmo_live.cluster import worker

    worker._found.cache_clear()
    worker._recipe.cache_clear()
