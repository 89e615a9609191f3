"""How long each stage of an image's way takes by itself, beside the original's where it has one."""

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete

from acquisition.completeness import check_complete
from acquisition.tiff import companions_of, read_pages, read_pixels
from acquisition.zeros import check_zero_tail
from db.care import upgrade
from db.engine import open_engine, utc_now
from db.ledger import insert_images
from db.schema import Cell, FieldScore
from db.scores import ensure_model, save_scores
from models.backend import start_keras
from models.convert import to_uint8
from models.cropper import crop_at_centres, crop_cells
from models.network import build_network
from models.quality import measure_field
from models.scorer import Scorer
from sesmo_live.bench.images import field, write_encodings
from sesmo_live.bench.original import crop_as_the_original
from sesmo_live.errors import SesmoError
from sesmo_live.records import CellScores, ImageFile, Site

Row = dict[str, Any]


def seconds(work: Callable[[], Any]) -> float:
    """Return how long one call takes, in seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def stage_rows(
    size: str, image: Path | None, scorers: Mapping[str, Scorer], folder: Path, rounds: int, say: Callable[[str], None]
) -> list[Row]:
    """Return a row a stage for one of SIZES: size, stage, ms (median of the rounds), and cells it was measured on."""
    pixels = field(size, image)
    paths = write_encodings(pixels, folder)
    grey = to_uint8(pixels)
    crops, centres = crop_cells(grey)
    work: dict[str, Callable[[], Any]] = {}
    for name, path in paths.items():
        work |= {f"look into ({name})": partial(_look, path), f"read ({name})": partial(read_pixels, path)}
    work |= {
        "convert to 8 bit": partial(to_uint8, pixels),
        "hash pixels": lambda: hashlib.sha256(pixels.data).hexdigest(),
        "crop (deep-sesmo)": partial(crop_cells, grey),
        "crop (centres)": partial(crop_at_centres, grey),
        "measure quality": partial(measure_field, pixels, crops),
    }
    work |= {f"score ({name})": partial(scorer.score, crops) for name, scorer in scorers.items()}
    times: dict[str, list[float]] = {name: [] for name in work}
    for call in work.values():
        call()  # the first call starts what the others find started
    for number in range(rounds):
        say(f"stages at {size}: round {number + 1} of {rounds}")
        for name, call in work.items():
            times[name].append(seconds(call))
    times["store"] = _store_times(folder / "store.db", next(iter(scorers.values())), centres, rounds)
    return [_row(size, name, taken, len(crops)) for name, taken in times.items()]


def crop_ratio(size: str, image: Path | None, rounds: int) -> tuple[Row, float]:
    """Return the original's crop as a row, and how many times as long it takes as `crop_cells`, in paired turns.

    Raises SesmoError where the two do not give the same crops: their times would mean nothing.
    """
    grey = to_uint8(field(size, image))
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    crops, centres = crop_cells(grey)
    reference, reference_centres = crop_as_the_original(rgb)
    if not (
        np.array_equal(crops, reference[..., 0]) and np.array_equal(centres, np.reshape(reference_centres, (-1, 2)))
    ):
        raise SesmoError("crop_cells and the original's way give different crops; please report this")
    pairs = []
    for _ in range(rounds):
        slow = seconds(lambda: crop_as_the_original(rgb))
        pairs.append((slow, statistics.median(seconds(lambda: crop_cells(grey)) for _ in range(3))))
    row = _row(size, "crop (the original's way)", [slow for slow, _ in pairs], len(crops))
    return row, statistics.median(slow / fast for slow, fast in pairs)


def score_rate(scorer: Scorer, rounds: int, cells: int = 2048) -> float:
    """Return cells a second of a scorer on many cells: the best of the rounds, as other work only slows it down."""
    side = scorer.passport.input_px
    crops = np.random.default_rng(1).integers(0, 256, (cells, side, side), np.uint8)
    scorer.score(crops)
    return cells / min(seconds(lambda: scorer.score(crops)) for _ in range(rounds))


def peak_gflops(rounds: int) -> float:
    """Return what this computer reaches in multiplying matrices of 4096² in fp32, in 10⁹ operations a second."""
    keras = start_keras()
    side = 4096
    matrix = keras.ops.convert_to_tensor(np.random.default_rng(1).random((side, side), np.float32))

    def multiply() -> None:
        np.asarray(keras.ops.matmul(matrix, matrix)[0, 0])

    multiply()
    return 2 * side**3 / min(seconds(multiply) for _ in range(rounds)) / 1e9


def operations_per_cell(network: str, input_px: int) -> int:
    """Return the multiplications and additions that a network's convolutions and dense layers make for one crop."""
    total = 0
    for layer in build_network(network, input_px).layers:
        if (kernel := getattr(layer, "kernel", None)) is not None:
            total += 2 * int(np.prod(layer.output.shape[1:-1])) * int(np.prod(kernel.shape))
    return total


def _look(path: Path) -> None:
    """Find out what a file holds, as the service does before it reads the pixels."""
    check_complete(path)
    check_zero_tail(path)
    read_pages(path)
    companions_of(path)


def _store_times(db: Path, scorer: Scorer, centres: NDArray[np.float64], rounds: int) -> list[float]:
    """Return the times in which the scores of one field were committed."""
    upgrade(db)
    engine = open_engine(db, write=True)
    file = ImageFile(Path("bench.tif"), 0, Site("BENCH", "A01", 1, 1), 1, 1)
    scores = CellScores(file, np.linspace(0, 1, len(centres), dtype=np.float32), centres, scorer.passport.model_id)
    row = {"path": "bench.tif", "name": "bench.tif", "page": 0, "state": "scored", "size": 1, "mtime_ns": 1}
    with engine.begin() as connection:
        model_key = ensure_model(connection, scorer.passport)
        (image_id,) = insert_images(connection, [row | {"seen_at": utc_now()}])

    def store() -> None:
        with engine.begin() as connection:
            save_scores(connection, image_id, model_key, scores, 0.5, {})

    times = []
    for _ in range(rounds):
        times.append(seconds(store))
        with engine.begin() as connection:
            connection.execute(delete(Cell))
            connection.execute(delete(FieldScore))
    engine.dispose()
    return times


def _row(size: str, stage: str, times: list[float], cells: int) -> Row:
    return {"size": size, "stage": stage, "ms": statistics.median(times) * 1e3, "cells": cells}
