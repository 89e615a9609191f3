"""The workers of a cluster: reached, checked, and given what they lack before anything is scored."""

import asyncio
import logging
import threading
import time
import warnings
from collections.abc import Coroutine, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import dask
import psutil
from dask.system import CPU_COUNT

from acquisition.isolation import no_interrupts
from sesmo_live.cluster.alike import About, about, difference, sample, unseen
from sesmo_live.cluster.bundles import Bundle, keep_bundle, lacking
from sesmo_live.errors import ClusterError, ModelError, UsageError

_LOGGERS = ("distributed", "tornado", "asyncio")
# Before distributed is imported: it sets its loggers up then, and hands this on to the processes that it begins.
dask.config.set({"logging": dict.fromkeys(_LOGGERS, "critical")})

import distributed  # noqa: E402
from distributed.core import rpc  # noqa: E402

LOCAL = "local"
"""The address that stands for workers on this computer, which end with the run."""

CONNECT_S = 10.0
"""Seconds within which a scheduler must answer."""

WORKERS_S = 60.0
"""Seconds that a scheduler without workers is waited for."""

GPU = "GPU"
"""The resource of workers that score, where there are such."""

LOCAL_WORKER_BYTES = 1.5e9
"""Memory that a worker of this computer must have: TensorFlow takes two thirds of it."""

R = TypeVar("R")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Workers:
    """Who is there now: threads of all workers, addresses of those with a GPU and of the others."""

    threads: int
    scorers: tuple[str, ...]
    croppers: tuple[str, ...]


class Crew:
    """A connection to a scheduler and its workers; a context manager, which ends what it began."""

    def __init__(self, address: str, stop: threading.Event) -> None:
        """Connect to the scheduler at `address`, or begin workers here for `local` and `local:N`.

        Raises UsageError for an address that is none and ClusterError when no scheduler answers.
        """
        self.address = address
        self._stop = stop
        self._stack = ExitStack()
        _hush()
        try:
            # The threads of dask, and the processes that they begin, inherit this: Ctrl-C is for the main thread.
            with no_interrupts():
                self.client = self._stack.enter_context(self._connect())
        except BaseException:
            self._stack.close()
            raise
        self.loop: asyncio.AbstractEventLoop = self.client.loop.asyncio_loop

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _connect(self) -> "distributed.Client":
        if self.address.partition(":")[0] == LOCAL:
            cluster = self._stack.enter_context(_begin_workers(self.address))
            return _client(cluster)
        try:
            # First with a limit of our own: dask's client waits for ever for one who answers nothing.
            if asyncio.run(asyncio.wait_for(_who_is(self.address), CONNECT_S)) != "Scheduler":
                raise UsageError(
                    f"at {self.address} is no scheduler of dask; give the address that dask scheduler says"
                )
            return _client(self.address)
        except OSError as error:  # time-outs are among them
            raise ClusterError(
                f"the scheduler {self.address} does not answer within {CONNECT_S:g} s; start it with: dask scheduler, "
                "or correct --dask"
            ) from error
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"--dask {self.address} is no address ({error}); give tcp://HOST:8786, or local"
            ) from error

    def wait(self, coroutine: Coroutine[Any, Any, R], timeout_s: float | None = None) -> R:
        """Run a coroutine on the thread of dask and return its result."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, timeout_s), self.loop).result()

    async def look(self) -> Workers:
        """Ask the scheduler who is there now; raise OSError when it does not answer."""
        found = await asyncio.wait_for(self.client.scheduler.identity(n_workers=-1), CONNECT_S)
        workers: Mapping[str, Mapping[str, Any]] = found["workers"]
        scorers = tuple(name for name, worker in workers.items() if worker["resources"].get(GPU))
        croppers = tuple(name for name in workers if name not in scorers)
        return Workers(sum(worker["nthreads"] for worker in workers.values()), scorers, croppers)

    def prepare(self, folders: list[Path], bundles: Mapping[str, Bundle]) -> Workers:
        """Wait for workers, check them, send them the models they lack, and return who is there.

        Raises ClusterError where that cannot be done, also when scheduler or workers go away meanwhile.
        """
        try:
            workers = self.muster()
            self.check(folders)
            self.supply(bundles)
        except OSError as error:  # closed connections and time-outs are among them
            raise ClusterError(
                f"the scheduler {self.address}, or a worker, went away while the run began ({type(error).__name__}); "
                "start it again, then run the same command again"
            ) from error
        return workers

    def muster(self) -> Workers:
        """Wait for the first worker and return who is there; raise ClusterError if none comes in time."""
        until, told = time.monotonic() + WORKERS_S, False
        while not (found := self.wait(self.look())).threads:
            if not told:
                log.info("waiting up to %g s for workers of %s", WORKERS_S, self.address)
                told = True
            if time.monotonic() > until:
                raise ClusterError(
                    f"the scheduler {self.address} has no workers; start some with: dask worker {self.address}"
                )
            if self._stop.wait(0.2):
                raise ClusterError("stopped while no worker was there; nothing was scored")
        return found

    def check(self, folders: list[Path]) -> None:
        """Raise ClusterError where scheduler or workers have other programs than we, or do not see the folders."""
        asked = self.client.run(about, on_error="return")
        names = {f"worker {address}": found for address, found in asked.items()}
        try:
            names[f"the scheduler {self.address}"] = self.client.run_on_scheduler(about)
        except Exception as error:  # noqa: BLE001 — whatever a foreign program raises; it is told below
            names[f"the scheduler {self.address}"] = error
        for who, found in names.items():
            if text := _unlike(who, found):
                raise ClusterError(text)
        seen = {str(folder): sample(folder) for folder in folders}
        for address, folder in self.client.run(unseen, seen).items():
            if folder:
                raise ClusterError(
                    f"worker {address} does not see the folder {folder} as this computer does; mount it there under "
                    "the same path, and run the same command again"
                )

    def supply(self, bundles: Mapping[str, Bundle]) -> None:
        """Send every worker the models that it lacks."""
        lacks = {address: hashes for address, hashes in self.client.run(lacking, list(bundles)).items() if hashes}
        if lacks:
            log.info("sending the model to workers that do not have it: %d", len(lacks))
        for address, hashes in lacks.items():
            for sha256 in hashes:
                self.wait(self.send(address, sha256, bundles[sha256]))

    async def send(self, worker: str, sha256: str, bundle: Bundle) -> None:
        """Send a model to a worker; raise ClusterError when it cannot keep it."""
        log.debug("sending the model %s to worker %s", sha256, worker)
        try:
            await self.client.run(keep_bundle, bundle, sha256, workers=[worker])
        except (OSError, ModelError) as error:
            raise ClusterError(f"worker {worker} cannot keep a model that was sent to it: {error}") from error


async def _who_is(address: str) -> str:
    """Return what kind of server of dask answers at an address."""
    security = distributed.Security()  # type: ignore[no-untyped-call] # dask leaves it untyped
    words = security.get_connection_args("client")  # type: ignore[no-untyped-call]
    async with rpc(address, connection_args=words) as server:  # type: ignore[no-untyped-call]
        return str((await server.identity())["type"])


def _client(where: "str | distributed.LocalCluster") -> "distributed.Client":
    return distributed.Client(where, timeout=CONNECT_S, set_as_default=False)  # type: ignore[no-untyped-call] # dask's


def _unlike(who: str, found: object) -> str:
    """Return a sentence if what was answered is not what this process says of itself."""
    if isinstance(found, About):
        return difference(who, found, about())
    return (
        f"{who} cannot run sesmo-live ({type(found).__name__}: {found}); install version {about().program} there, with "
        "the extra [cluster]"
    )


def _begin_workers(address: str) -> "distributed.LocalCluster":
    """Begin one worker a core, as far as the memory goes, or as many as `local:N` says."""
    _, _, number = address.partition(":")
    if number and not (number.isdecimal() and int(number)):
        raise UsageError(f"--dask {address} is no number of workers; give local, or local:4")
    room = max(1, int(psutil.virtual_memory().total / LOCAL_WORKER_BYTES))
    return distributed.LocalCluster(  # type: ignore[no-untyped-call] # dask leaves it untyped
        n_workers=int(number) if number else min(CPU_COUNT, room),
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
        # A file that kills its worker is tried once more, and then again alone: each time a network is loaded anew.
        scheduler_kwargs={"allowed_failures": 1, "dashboard": False},
    )


def _hush() -> None:
    """Keep dask's own log from the user: what matters is said in our words."""
    warnings.filterwarnings("ignore", module="distributed")
    for name in [*_LOGGERS, *logging.root.manager.loggerDict]:
        if name.partition(".")[0] in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
