"""The way of one image: read and crop on a few threads, score on one, deliver the outcome.

    submit(job) ─► reader threads: prepare ─► bounded queue ─► scoring thread: micro-batch, score ─► deliver(outcome)

Nothing here knows files, models or databases: a recipe brings the two functions that do.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sesmo_live.errors import ImageError, ModelError, SesmoError
from sesmo_live.records import CellCrops, CellScores, ImageFile


@dataclass(frozen=True, slots=True)
class Prepared:
    """A field that was read and cropped; `sha256` is of its decoded pixels, `quality` what was measured on it.

    `unfit`: why it is not fit to be scored, one sentence a measure; empty if it is.
    """

    cells: CellCrops
    sha256: str
    quality: Mapping[str, Any] = field(default_factory=dict)
    unfit: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the images of one watched folder become scores.

    `prepare` runs on a reader thread and raises ImageError for an image that cannot be scored. `score` maps uint8
    N×H×W crops to float32 N scores; it runs on the scoring thread only, which therefore owns the model. With `refuse`
    unfit fields are not scored. `folder` is the model's, for whoever has to prepare and score elsewhere.
    """

    model_id: str
    prepare: Callable[[ImageFile], Prepared]
    score: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    refuse: bool = True
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One image to be scored; `image_id` is its row in the ledger."""

    image_id: int
    file: ImageFile
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job: its prepared field and scores, the field alone if it was refused, or an error."""

    job: Job
    prepared: Prepared | None = None
    scores: CellScores | None = None
    error: SesmoError | OSError | None = None


@dataclass(frozen=True, slots=True)
class Halt:
    """The model itself failed: no image is to blame, and the run cannot go on."""

    error: Exception


class AnyPipeline(Protocol):
    """What takes jobs and delivers their outcomes: `Pipeline` here, or the workers of a cluster."""

    @property
    def wanted(self) -> int:
        """Files that it wants to have at hand at a time, beyond those that are handed out anyway."""

    def submit(self, job: Job) -> None:
        """Queue one image; one that comes after `close` began is dropped."""

    def call(self, task: Callable[[], None]) -> None:
        """Run `task` on a thread of this computer; it must not raise."""

    def close(self) -> None:
        """Finish what is under way and stop; a second call does nothing."""


class Pipeline:
    """Reader threads and one scoring thread; `deliver` gets every outcome, on one of these threads."""

    wanted = 0

    def __init__(
        self,
        deliver: Callable[[Outcome | Halt], None],
        *,
        readers: int = 2,
        batch_cells: int = 1024,
        max_wait_s: float = 0.01,
        queue_fields: int = 8,
    ) -> None:
        self._deliver = deliver
        self._batch_cells = batch_cells
        self._max_wait_s = max_wait_s
        self._closing = False
        self._preparing = 0  # jobs that were submitted and are not read and cropped yet
        self._counting = threading.Lock()
        self._readers = ThreadPoolExecutor(readers, "reader")
        self._fields: Queue[tuple[Job, Prepared] | None] = Queue(queue_fields)
        self._scorer = threading.Thread(target=self._score_fields, name="scorer", daemon=True)
        self._scorer.start()

    def submit(self, job: Job) -> None:
        """Queue one image; one that comes after `close` began is dropped, as it would be if it waited."""
        if not self._closing:
            self._count(1)
            self._readers.submit(self._prepare, job)

    def call(self, task: Callable[[], None]) -> None:
        """Run `task` on a reader thread; it must not raise."""
        if not self._closing:
            self._readers.submit(task)

    def close(self, *, drop_waiting: bool = True) -> None:
        """Finish what is under way and stop; images not yet begun are dropped unless told otherwise."""
        self._closing = True
        self._readers.shutdown(cancel_futures=drop_waiting)
        self._fields.put(None)
        self._scorer.join()

    def _count(self, change: int) -> None:
        with self._counting:
            self._preparing += change

    def _prepare(self, job: Job) -> None:
        try:
            try:
                prepared = job.recipe.prepare(job.file)
            finally:
                self._count(-1)
            if prepared.unfit and job.recipe.refuse:
                self._deliver(Outcome(job, prepared))
            else:
                self._fields.put((job, prepared))
        except (ImageError, OSError) as error:
            self._deliver(Outcome(job, error=error))
        except ModelError as error:  # its detector is missing or another one: no image is to blame
            self._deliver(Halt(error))
        except MemoryError:
            text = f"{job.file.path} does not fit into memory; export it in smaller images"
            self._deliver(Outcome(job, error=ImageError(text)))
        except Exception as error:  # noqa: BLE001 — a worker's top: one image's surprise must not end the night
            text = f"{job.file.path} could not be read: {type(error).__name__}: {error}; please report this"
            self._deliver(Outcome(job, error=ImageError(text)))

    def _score_fields(self) -> None:
        """Score micro-batches until the end mark; after a model's failure only empty the queue."""
        broken = False
        while batch := self._next_batch():
            if broken:
                continue
            try:
                for outcome in _score_batch(batch):
                    self._deliver(outcome)
            except Exception as error:  # noqa: BLE001 — the worker's top: the service must hear of it and stop
                broken = True
                self._deliver(Halt(error))

    def _next_batch(self) -> list[tuple[Job, Prepared]]:
        """Wait for a field, then for as many more as fit and come soon; empty at the end mark.

        Where no other field is on its way the first is scored at once.
        """
        first = self._fields.get()
        if first is None:
            return []
        batch = [first]
        cells = len(first[1].cells.pixels)
        deadline = time.monotonic() + self._max_wait_s
        while cells < self._batch_cells:
            patience = max(0.0, deadline - time.monotonic()) if self._preparing else 0.0
            try:
                item = self._fields.get(timeout=patience)
            except Empty:
                break
            if item is None:
                self._fields.put(None)  # the end mark must be met again, after this batch
                break
            batch.append(item)
            cells += len(item[1].cells.pixels)
        return batch


def _score_batch(batch: list[tuple[Job, Prepared]]) -> list[Outcome]:
    """Score the fields of a batch together, model by model, and part the scores again."""
    outcomes = []
    for model_id in dict.fromkeys(job.recipe.model_id for job, _ in batch):
        fields = [item for item in batch if item[0].recipe.model_id == model_id]
        cells = np.concatenate([prepared.cells.pixels for _, prepared in fields])
        # Empty fields do not touch the model: a folder without cells needs no network.
        values = fields[0][0].recipe.score(cells) if len(cells) else np.empty(0, np.float32)
        ends = np.cumsum([len(prepared.cells.pixels) for _, prepared in fields])
        for (job, prepared), part in zip(fields, np.split(values, ends[:-1]), strict=True):
            scores = CellScores(job.file, part, prepared.cells.centres, model_id)
            outcomes.append(Outcome(job, prepared, scores))
    return outcomes
