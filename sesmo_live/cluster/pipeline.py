"""The pipeline of one machine, with the workers of a cluster behind the same face.

    submit(job) ─► waiting ─► under way on workers (a few a thread) ─► deliver(outcome)

Everything below `submit`, `call` and `close` runs on the thread of dask's event loop, so that nothing needs a lock.
A worker that dies costs nothing: the scheduler gives its images to others. One that was under way whenever several
died is suspect: it is tried again alone, when nothing else is under way, and fails only if workers die of it then.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distributed import KilledWorker

from sesmo_live.cluster.bundles import Bundle
from sesmo_live.cluster.crew import GPU, Crew, Workers
from sesmo_live.cluster.worker import Answer, Order, Way, crop_image, score_crops, score_image
from sesmo_live.errors import ClusterError, ImageError
from sesmo_live.pipeline import Halt, Job, Outcome, Recipe
from sesmo_live.records import CellScores

A_THREAD = 3
"""Images under way for each thread of the workers: one is worked on, the others are on their way there or back."""

A_BATCH = 8
"""Fields that a worker with a GPU scores at a time."""

LOOK_S = 1.0
"""Seconds between two looks at who is there."""

LOST_S = 120.0
"""Seconds after which a cluster without workers is given up; they begin anew by themselves in a few."""

MOST_SENDINGS = 3
"""How often one worker is sent one model: it may be begun anew with an empty cache."""

CLOSE_S = 60.0
"""Seconds that images under way are waited for at the end."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Unit:
    """Images that were given to workers together, as far as they have no outcome yet, and to which croppers."""

    jobs: list[Job]
    croppers: tuple[str, ...]
    again: bool = False


class ClusterPipeline:
    """Workers of a cluster as one pipeline; `deliver` gets every outcome, on the thread of dask."""

    def __init__(
        self,
        crew: Crew,
        workers: Workers,
        way_of: Callable[[Recipe, Path], Way],
        bundles: dict[str, Bundle],
        deliver: Callable[[Outcome | Halt], None],
        *,
        readers: int = 2,
    ) -> None:
        """Begin; `way_of` says of a recipe, for one image, how workers follow it, `bundles` are the models by hash."""
        self._crew, self._workers, self._way_of, self._bundles = crew, workers, way_of, bundles
        self._two_stages = bool(workers.scorers and workers.croppers)
        self._deliver = deliver
        self._readers = ThreadPoolExecutor(readers, "reader")
        self._closing = self._halted = self._alone = False
        self._waiting: deque[Job] = deque()
        self._suspects: deque[Job] = deque()
        self._under_way: dict[asyncio.Task[None], _Unit] = {}
        self._sent: dict[tuple[str, str], tuple[int, float]] = {}  # worker and model: how often, and when last
        self._sending = asyncio.Lock()
        self._watch = asyncio.run_coroutine_threadsafe(self._keep_watch(), crew.loop)

    @property
    def wanted(self) -> int:
        """Files to have at hand: what the workers can take, and as much again."""
        return 2 * self._room

    @property
    def _room(self) -> int:
        return A_THREAD * self._workers.threads + (2 * A_BATCH if self._two_stages else 0)

    @property
    def _images(self) -> int:
        return sum(len(unit.jobs) for unit in self._under_way.values())

    def submit(self, job: Job) -> None:
        """Queue one image; one that comes after `close` began is dropped."""
        self._crew.loop.call_soon_threadsafe(self._take, job)

    def call(self, task: Callable[[], None]) -> None:
        """Run `task` on a thread of this computer; it must not raise."""
        if not self._closing:
            self._readers.submit(task)

    def close(self) -> None:
        """Finish what is under way and stop; images not yet begun are dropped."""
        if self._closing:
            return
        self._closing = True
        self._readers.shutdown(cancel_futures=True)
        with suppress(TimeoutError):
            self._crew.wait(self._finish(), CLOSE_S + 10)
        self._watch.cancel()

    async def _finish(self) -> None:
        self._waiting.clear()
        self._suspects.clear()
        until = time.monotonic() + CLOSE_S
        while self._under_way and self._workers.threads and time.monotonic() < until:
            await asyncio.wait(self._under_way, timeout=LOOK_S)
        self._drop()

    def _take(self, job: Job) -> None:
        if not (self._closing or self._halted):
            self._waiting.append(job)
            self._fill()

    def _fill(self) -> None:
        """Give the workers what they have room for; what may kill them only when nothing else is under way."""
        most = A_BATCH if self._two_stages else 1
        while self._waiting and not self._alone:
            number = min(most, len(self._waiting), self._room - self._images)
            if number < (most if self._under_way else 1):  # a unit is filled while others are under way
                break
            self._begin([self._waiting.popleft() for _ in range(number)], alone=False)
        if self._suspects and not (self._under_way or self._gone()):
            self._begin([self._suspects.popleft()], alone=True)

    def _begin(self, jobs: list[Job], *, alone: bool) -> None:
        self._alone = alone
        unit = _Unit(jobs, self._workers.croppers)
        task = asyncio.create_task(self._work(unit, alone=alone))
        self._under_way[task] = unit
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        unit = self._under_way.pop(task)
        self._alone = False
        if unit.again:
            self._waiting.extendleft(reversed(unit.jobs))
        if not (self._closing or self._halted):
            self._fill()

    def _halt(self, error: Exception) -> None:
        """Stop: no image is to blame, and those not scored stay pending."""
        if not self._halted:
            self._halted = True
            self._deliver(Halt(error))
            self._waiting.clear()
            self._drop()

    def _drop(self) -> None:
        for task in self._under_way:
            if task is not asyncio.current_task():
                task.cancel()

    async def _work(self, unit: _Unit, *, alone: bool) -> None:
        """Have images worked on and deliver what becomes of each."""
        try:
            while unit.jobs:  # again, where a worker lacked the model
                await self._ask(unit)
        except KilledWorker as error:
            if alone:
                self._blame(unit.jobs[0], error.allowed_failures + 1)
            else:
                self._suspects.extend(unit.jobs)
        except (CancelledError, asyncio.CancelledError) as error:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            self._halt(self._lost(error))
        except ClusterError as error:
            self._halt(error)
        except Exception as error:  # noqa: BLE001 — the worker's top: the service must hear of it and stop
            self._halt(
                ClusterError(f"the workers of {self._crew.address} cannot work: {type(error).__name__}: {error}")
            )

    async def _ask(self, unit: _Unit) -> None:
        """Ask the workers and deliver what is done; what is to be asked again stays in the unit."""
        orders = [Order(job.file, self._way_of(job.recipe, job.file.path)) for job in unit.jobs]
        answers = await self._answers(orders, unit.croppers)
        for answer in answers:
            if answer.halt is not None:
                raise answer.halt
        asked, unit.jobs = unit.jobs, [job for job, answer in zip(unit.jobs, answers, strict=True) if answer.lacks]
        for job, answer in zip(asked, answers, strict=True):
            if not answer.lacks:
                self._deliver(_outcome(job, answer))
        for answer in answers:
            await self._send(answer)

    async def _answers(self, orders: list[Order], croppers: tuple[str, ...]) -> list[Answer]:
        submit = self._crew.client.submit
        if not self._two_stages:
            (order,) = orders
            return [await submit(score_image, order, pure=False)]
        crops = [submit(crop_image, order, pure=False, workers=croppers) for order in orders]
        # Crops travel between workers only.
        answers: list[Answer] = await submit(score_crops, orders, crops, pure=False, resources={GPU: 1})
        return answers

    async def _send(self, answer: Answer) -> None:
        """Send a worker the models that it lacks; raise ClusterError for one that loses them again and again."""
        async with self._sending:
            for sha256 in answer.lacks:
                key, now = (answer.worker, sha256), time.monotonic()
                times, last = self._sent.get(key, (0, float("-inf")))
                if now - last < LOOK_S:  # it was asked before it was sent
                    continue
                if times == MOST_SENDINGS:
                    raise ClusterError(
                        f"worker {answer.worker} does not keep the model that it was sent {times} times; look at its "
                        "cache folder and its disk, then run the same command again"
                    )
                self._sent[key] = (times + 1, now)
                await self._crew.send(answer.worker, sha256, self._bundles[sha256])

    def _blame(self, job: Job, deaths: int) -> None:
        text = (
            f"{job.file.path} cannot be scored: {deaths} workers died of it, one after the other, while nothing else "
            "was under way; export it again"
        )
        self._deliver(Outcome(job, error=ImageError(text)))

    def _lost(self, error: BaseException) -> ClusterError:
        log.debug("lost: %r", error)
        return ClusterError(
            f"the scheduler {self._crew.address} went away; start it again, then run the same command to go on"
        )

    async def _keep_watch(self) -> None:
        """Know who is there, and end the run when nobody comes back who could go on."""
        gone_since: float | None = None
        while not self._halted:
            await asyncio.sleep(LOOK_S)
            try:
                self._workers = await self._crew.look()
            except OSError as error:
                self._halt(self._lost(error))
                return
            if not (gone := self._gone()):
                gone_since = None
                self._redo()
                self._fill()
            elif gone_since is None:
                gone_since = time.monotonic()
                log.warning("%s; waiting for one", gone)
            elif time.monotonic() - gone_since > LOST_S:
                self._halt(ClusterError(f"{gone}; start some, then run the same command to go on"))

    def _gone(self) -> str:
        """Say which workers are needed of whom none is left, nothing if there are some."""
        found, kinds = self._workers, {"": self._workers.threads}
        if self._two_stages and found.threads:
            kinds = {
                f" with the resource {GPU}": len(found.scorers),
                f" without the resource {GPU}": len(found.croppers),
            }
        missing = [kind for kind, number in kinds.items() if not number]
        return f"all workers{missing[0]} of {self._crew.address} were lost" if missing else ""

    def _redo(self) -> None:
        """Take back what only croppers were to do who are all gone: those begun anew have other addresses."""
        for task, unit in self._under_way.items() if self._two_stages else ():
            if not set(unit.croppers) & set(self._workers.croppers):
                unit.again = True
                task.cancel()


def _outcome(job: Job, answer: Answer) -> Outcome:
    """Return what a worker found, as if it had been found here."""
    if answer.prepared is None or answer.values is None:
        return Outcome(job, answer.prepared, error=answer.error)
    scores = CellScores(job.file, answer.values, answer.prepared.cells.centres, job.recipe.model_id)
    return Outcome(job, answer.prepared, scores)
