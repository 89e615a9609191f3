"""What runs on a worker: images in, scores out, through the same pipeline as on one machine.

A worker process has one such pipeline, and with it one network, whose threads are those that the worker was given.
Nothing here is kept between runs but what was loaded.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from distributed import get_worker
from numpy.typing import NDArray

from models.backend import cap_gpu_memory, start_keras
from models.passport import read_passport
from sesmo_live import service
from sesmo_live.cluster.alike import About, about, difference
from sesmo_live.cluster.bundles import find_bundle
from sesmo_live.errors import ClusterError, SesmoError
from sesmo_live.pipeline import Halt, Job, Outcome, Pipeline, Prepared, Recipe
from sesmo_live.records import CellCrops, ImageFile, Precision

NO_PIXELS: NDArray[np.uint8] = np.empty((0, 0, 0), np.uint8)


@dataclass(frozen=True, slots=True)
class Way:
    """How the images of one folder become scores, in what travels: hashes, not objects.

    `model` and `detector` (empty if there is none) are the hashes of `bundles`, `root` is the watched folder.
    """

    model: str
    detector: str
    model_id: str
    precision: Precision
    gpu_memory_mb: int | None
    refuse: bool
    root: str
    client: About


@dataclass(frozen=True, slots=True)
class Order:
    """One image to be cropped and scored."""

    file: ImageFile
    way: Way


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an order: as in an `Outcome`, without pixels; or why this worker could not work.

    `lacks`: hashes that are to be sent to `worker` before it is asked again. `halt`: why nothing more is to be asked.
    """

    worker: str
    prepared: Prepared | None = None
    values: NDArray[np.float32] | None = None
    error: SesmoError | OSError | None = None
    lacks: tuple[str, ...] = ()
    halt: ClusterError | None = None


Cropped = tuple[Answer, NDArray[np.uint8]]
"""An answer without scores, and its crops (uint8 N×H×W), which stay among the workers."""


def score_image(order: Order) -> Answer:
    """Read, crop and score one image."""
    return _work(order, lambda recipe: recipe)[0]


def crop_image(order: Order) -> Cropped:
    """Read and crop one image; its scores are made elsewhere."""
    return _work(order, _only_crop)


def _only_crop(recipe: Recipe) -> Recipe:
    # By another name, so that no batch is made of cells that are to be scored here and of others.
    return replace(recipe, score=_no_scores, model_id=f"{recipe.model_id}, crops only")


def score_crops(orders: Sequence[Order], cropped: Sequence[Cropped]) -> list[Answer]:
    """Score what `crop_image` made of the orders, the cells of one model together."""
    answers = [answer for answer, _ in cropped]
    ready: dict[str, list[int]] = {}
    for number, (order, answer) in enumerate(zip(orders, answers, strict=True)):
        if answer.prepared is not None and not (answer.prepared.unfit and order.way.refuse):
            ready.setdefault(order.way.model, []).append(number)
    for numbers in ready.values():
        fields = [cropped[number][1] for number in numbers]
        scored = _score_together(orders[numbers[0]], np.concatenate(fields))
        ends = np.cumsum([len(field) for field in fields])
        for number, end, field in zip(numbers, ends, fields, strict=True):
            if scored.values is None:
                answers[number] = scored
            else:
                answers[number] = replace(answers[number], values=scored.values[end - len(field) : end])
    return answers


def _score_together(order: Order, crops: NDArray[np.uint8]) -> Answer:
    """Score crops as if they were those of one image."""
    prepared = Prepared(CellCrops(order.file, crops, np.empty((0, 2))), "")
    return _work(order, lambda recipe: replace(recipe, prepare=lambda _: prepared))[0]


def _no_scores(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.zeros(len(crops), np.float32)


def _work(order: Order, change: Callable[[Recipe], Recipe]) -> Cropped:
    """Send an order through this process's pipeline by its recipe, changed, and wait for what becomes of it."""
    worker, way = str(get_worker().address), order.way
    if unlike := difference(f"worker {worker}", about(), way.client):
        return Answer(worker, halt=ClusterError(unlike)), NO_PIXELS
    if lacks := tuple(sha256 for sha256 in (way.model, way.detector) if sha256 and not _folder(sha256)):
        return Answer(worker, lacks=lacks), NO_PIXELS
    with _OPENING:  # threads that begin together share one network
        if way.gpu_memory_mb is not None:
            cap_gpu_memory(way.gpu_memory_mb)
        shop = _shop()
        recipe = _recipe(way.model, way.detector, way.model_id, way.precision, way.refuse, _threads())
    return _answer(worker, order, shop.work(Job(0, order.file, change(recipe))))


def _answer(worker: str, order: Order, outcome: Outcome | Halt) -> Cropped:
    if isinstance(outcome, Halt):
        text = f"worker {worker} cannot go on: {_sentence(outcome.error)}; images not scored stay pending"
        return Answer(worker, halt=ClusterError(text)), NO_PIXELS
    root = Path(order.way.root)
    if isinstance(outcome.error, OSError) and not root.is_dir():
        text = (
            f"worker {worker} does not see the folder {root} any more; mount it there, and run the same command again"
        )
        return Answer(worker, halt=ClusterError(text)), NO_PIXELS
    if outcome.prepared is None:
        return Answer(worker, error=outcome.error), NO_PIXELS
    cells = outcome.prepared.cells
    prepared = replace(outcome.prepared, cells=replace(cells, pixels=NO_PIXELS))
    values = None if outcome.scores is None else outcome.scores.values
    return Answer(worker, prepared, values), cells.pixels


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, SesmoError) else f"{type(error).__name__}: {error}"


@lru_cache(maxsize=16)
def _found(sha256: str) -> Path:
    folder = find_bundle(sha256)
    if folder is None:
        raise LookupError(sha256)  # which is not remembered: it may be sent here
    return folder


def _folder(sha256: str) -> Path | None:
    try:
        return _found(sha256)
    except LookupError:
        return None


@lru_cache(maxsize=8)
def _recipe(model: str, detector: str, model_id: str, precision: Precision, refuse: bool, threads: int) -> Recipe:
    """Return the recipe of a model, loaded once in a process."""
    # JAX takes no number of threads.
    cores = None if os.environ.get("KERAS_BACKEND") == "jax" else threads
    folder = _found(model)
    passport = read_passport(folder)
    if detector:
        settings = {**passport.cropper_settings, "detector": str(_found(detector))}
        passport = replace(passport, cropper_settings=settings)
        start_keras(cores)  # here: the detector would take all cores, and the network could not have fewer afterwards
    score = service.lazy_scorer(folder, precision, cores)
    return Recipe(model_id, lambda file: service.prepare_image(file, passport, _read), score, refuse)


def _read(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return function(*arguments, **options)


def _threads() -> int:
    return int(get_worker().state.nthreads)


class _Shop:
    """The pipeline of this process, shared by the worker's threads, each of which waits for its own images."""

    def __init__(self, threads: int) -> None:
        cv2.setNumThreads(threads)
        self.halt: Halt | None = None
        self._lock = threading.Lock()
        self._open: dict[int, Future[Outcome | Halt]] = {}
        # Of one thread there is never a second image to wait for.
        self._pipeline = Pipeline(self._deliver, readers=threads, max_wait_s=0.0 if threads == 1 else 0.01)

    def work(self, job: Job) -> Outcome | Halt:
        """Return what becomes of a job, once it is done."""
        with self._lock:
            if self.halt:
                return self.halt
            future = self._open[id(job)] = Future()
        self._pipeline.submit(job)
        return future.result()

    def _deliver(self, outcome: Outcome | Halt) -> None:
        with self._lock:
            if isinstance(outcome, Outcome):
                if future := self._open.pop(id(outcome.job), None):
                    future.set_result(outcome)
                return
            self.halt = outcome
            for future in self._open.values():
                future.set_result(outcome)
            self._open.clear()


_SHOPS: dict[int, _Shop] = {}
_OPENING = threading.Lock()


def _shop() -> _Shop:
    """Return this process's pipeline, a new one if the last broke."""
    threads = _threads()
    shop = _SHOPS.get(threads)
    if shop is None or shop.halt:
        _recipe.cache_clear()  # a network that failed is loaded anew
        shop = _SHOPS[threads] = _Shop(threads)
    return shop
