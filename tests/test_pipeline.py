"""The pipeline's promises: every job has an outcome, batches do not mix, a broken model stops loudly."""

import threading
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sesmo_live.errors import ImageError, ModelError
from sesmo_live.pipeline import Halt, Job, Outcome, Pipeline, Prepared, Recipe
from sesmo_live.records import CellCrops, ImageFile, Site


def image(number: int) -> ImageFile:
    return ImageFile(Path(f"{number}.tif"), 0, Site("P", "A01", number, 1), 1, 1)


def prepare(file: ImageFile) -> Prepared:
    """Give field k exactly k cells, all of grey value k."""
    n = file.site.field
    pixels = np.full((n, 5, 5), n, np.uint8)
    return Prepared(CellCrops(file, pixels, np.zeros((n, 2))), "hash")


def grey(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = (crops[:, 0, 0] / 255).astype(np.float32)
    return values


def collect(jobs: list[Job], **settings: Any) -> list[Outcome | Halt]:
    found: Queue[Outcome | Halt] = Queue()
    pipeline = Pipeline(found.put, **settings)
    for job in jobs:
        pipeline.submit(job)
    pipeline.close(drop_waiting=False)
    return [found.get_nowait() for _ in range(found.qsize())]


@pytest.mark.parametrize("batch_cells", [1, 7, 1000])
def test_every_field_gets_its_own_scores_back(batch_cells: int) -> None:
    recipe = Recipe("m", prepare, grey)
    outcomes = collect([Job(k, image(k), recipe) for k in range(30)], batch_cells=batch_cells, readers=3)
    assert len(outcomes) == 30
    for outcome in outcomes:
        assert isinstance(outcome, Outcome)
        assert outcome.scores is not None
        n = outcome.job.image_id
        assert outcome.scores.values.tolist() == pytest.approx([n / 255] * n)


def test_models_are_not_mixed_in_a_batch() -> None:
    half = Recipe("half", prepare, lambda crops: grey(crops) / np.float32(2))
    whole = Recipe("whole", prepare, grey)
    jobs = [Job(k, image(k), half if k % 2 else whole) for k in range(1, 20)]
    for outcome in collect(jobs, max_wait_s=0.2, batch_cells=10_000):
        assert isinstance(outcome, Outcome)
        assert outcome.scores is not None
        k = outcome.job.image_id
        assert outcome.scores.model_id == ("half" if k % 2 else "whole")
        assert outcome.scores.values[0] == pytest.approx(k / 255 / (2 if k % 2 else 1))


def test_micro_batches_gather_waiting_fields() -> None:
    calls: list[int] = []

    def score(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        calls.append(len(crops))
        return grey(crops)

    submitted = threading.Event()

    def wait(file: ImageFile) -> Prepared:
        assert submitted.wait(10)
        return prepare(file)

    found: Queue[Outcome | Halt] = Queue()
    pipeline = Pipeline(found.put, max_wait_s=0.5, batch_cells=30)
    for k in range(20):
        pipeline.submit(Job(k, image(3), Recipe("m", wait, score)))
    submitted.set()
    pipeline.close(drop_waiting=False)
    assert sum(calls) == 60
    assert len(calls) <= 3


def test_a_field_that_comes_alone_is_scored_at_once() -> None:
    found: Queue[Outcome | Halt] = Queue()
    pipeline = Pipeline(found.put, max_wait_s=30)
    for k in (1, 2):
        pipeline.submit(Job(k, image(k), Recipe("m", prepare, grey)))
        outcome = found.get(timeout=10)
        assert isinstance(outcome, Outcome)
        assert outcome.job.image_id == k
    pipeline.close()


def test_a_bad_image_costs_no_other_its_score() -> None:
    def fussy(file: ImageFile) -> Prepared:
        if file.site.field == 2:
            raise ImageError("2.tif is damaged; copy it again")
        if file.site.field == 3:
            raise ZeroDivisionError("surprise")
        if file.site.field == 4:
            raise FileNotFoundError("4.tif")
        return prepare(file)

    outcomes = collect([Job(k, image(k), Recipe("m", fussy, grey)) for k in range(1, 8)])
    errors = {o.job.image_id: o.error for o in outcomes if isinstance(o, Outcome) and o.error}
    assert set(errors) == {2, 3, 4}
    assert isinstance(errors[3], ImageError)
    assert "ZeroDivisionError: surprise" in str(errors[3])
    assert sum(isinstance(o, Outcome) and o.scores is not None for o in outcomes) == 4


def test_a_broken_model_halts_and_blames_no_image() -> None:
    def broken(_crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise ModelError("weights are gone")

    outcomes = collect([Job(k, image(k), Recipe("m", prepare, broken)) for k in range(1, 60)], queue_fields=2)
    halts = [o for o in outcomes if isinstance(o, Halt)]
    assert len(halts) == 1
    assert isinstance(halts[0].error, ModelError)
    assert not any(isinstance(o, Outcome) for o in outcomes)


def test_a_model_whose_detector_is_missing_halts_and_blames_no_image() -> None:
    def without_detector(_file: ImageFile) -> Prepared:
        raise ModelError("detector 'centres' is not there")

    outcomes = collect([Job(k, image(k), Recipe("m", without_detector, grey)) for k in range(1, 5)])
    assert outcomes
    assert all(isinstance(o, Halt) and isinstance(o.error, ModelError) for o in outcomes)


def test_closing_drops_what_has_not_begun() -> None:
    gate, begun = threading.Event(), threading.Event()

    def slow(file: ImageFile) -> Prepared:
        begun.set()
        gate.wait(10)
        return prepare(file)

    found: Queue[Outcome | Halt] = Queue()
    pipeline = Pipeline(found.put, readers=1)
    for k in range(1, 20):
        pipeline.submit(Job(k, image(k), Recipe("m", slow, grey)))
    assert begun.wait(10)
    threading.Timer(0.2, gate.set).start()
    pipeline.close()
    assert found.qsize() == 1
