"""Decode files of unknown origin in processes of their own, which may die, hang or swell without harm to the run.

Nothing heavy is imported here, because every such process imports this module before its limits are set.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from queue import LifoQueue
from types import ModuleType, TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from pebble import ProcessExpired, ProcessPool

from sesmo_live.errors import ImageError, IncompleteImageError

STARTUP_S = 60.0
"""Seconds within which a process has to be up and a finished image handed over; then it is begun anew."""
SWOLLEN = 112
"""Exit code of a process that lacked memory on the way out."""
STOP_S = 10.0
"""Seconds that the end of a process is waited for."""

P = ParamSpec("P")
R = TypeVar("R")


class Isolated:
    """Up to `workers` processes that read files on behalf of as many threads; each begins with its first image.

    A process ends after `max_tasks` images, so that leaks do not add up, after an image that took longer than
    `timeout_s` seconds, and with this process, however that ends. It may take `memory_mb` MiB beyond what it needs to
    be up; Windows knows no such limit and macOS does not enforce it. Ctrl-C does not reach it: its parent closes it.

        with Isolated(workers=2) as isolated:
            pixels = isolated.call(read_pixels, path, page)
    """

    def __init__(
        self, *, workers: int = 2, timeout_s: float = 30.0, memory_mb: int = 2048, max_tasks: int = 500
    ) -> None:
        self._workers, self._timeout_s, self._memory_mb, self._max_tasks = workers, timeout_s, memory_mb, max_tasks
        # A pool each, of one process: a death can be laid to one image only, and nobody else waits for its locks.
        self._idle: LifoQueue[ProcessPool | None] = LifoQueue()
        self._closed = False
        for _ in range(workers):
            self._idle.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes once the images under way are done; later calls are refused as incomplete images."""
        self._closed = True
        for pool in [self._idle.get() for _ in range(self._workers)]:
            _stop(pool)
        for _ in range(self._workers):
            self._idle.put(None)

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return `function(*args)` as run in a process of its own; the first argument is the file that it reads.

        `function` is one at the top of a module, such as `read_pixels`; threads beyond `workers` wait their turn.
        Raises what it raises, ImageError when the file made it die, hang or take too much memory, and
        IncompleteImageError when the file is not to blame: the process was told to end or could not begin.
        """
        pool = self._idle.get()
        try:
            for _ in range(2):  # a pool may have broken while it was idle
                if self._closed:
                    raise IncompleteImageError(f"{args[0]} is not read any more, as the run ends; it is read again")
                if pool is None:
                    pool = self._new_pool()
                try:
                    return self._call(pool, function, *args, **kwargs)
                except BrokenProcessPool:
                    _stop(pool)
                    pool = None
                except (ProcessExpired, TimeoutError, MemoryError) as error:
                    _stop(pool)  # its pipes may have died half way
                    pool = None
                    raise self._blamed(args[0], error) from error
            raise IncompleteImageError(
                f"{args[0]} could not be read, as no process could be begun to read it in; it is read again, "
                'else set isolate = "never"'
            )
        finally:
            self._idle.put(pool)

    def _call(self, pool: ProcessPool, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            future = pool.schedule(_run, (function, args, kwargs), timeout=self._timeout_s)
        except RuntimeError as error:  # the pool broke while it was idle
            raise BrokenProcessPool(str(error)) from error
        try:
            result: R = future.result(self._timeout_s + STARTUP_S)
        except TimeoutError as error:
            if error.args:  # pebble's own: the file took too long
                raise
            raise BrokenProcessPool("no answer") from error
        return result

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(1, self._max_tasks, _begin, (self._memory_mb,), _Context())

    def _blamed(self, path: object, error: Exception) -> ImageError:
        """Return the error that says what `path` did to its process."""
        if isinstance(error, TimeoutError):
            return ImageError(
                f"{path} took longer than {self._timeout_s:g} s to read; export it again or raise timeout_s"
            )
        code = error.exitcode if isinstance(error, ProcessExpired) else 0
        if isinstance(error, MemoryError) or code == SWOLLEN:
            return ImageError(
                f"{path} needed more than {self._memory_mb} MiB to read; export it in smaller images or raise memory_mb"
            )
        if -code == signal.SIGTERM:
            return IncompleteImageError(f"{path} was being read when its decoder was told to stop; it is read again")
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        return ImageError(f"{path} cannot be read: its decoder died ({cause}); export it again")


def _stop(pool: ProcessPool | None) -> None:
    """End the process of `pool`; one that hangs on a dead share cannot be waited for."""
    if pool is not None:
        pool.stop()  # type: ignore[no-untyped-call] # pebble leaves it untyped
        stopping = threading.Thread(target=pool.join, daemon=True)
        stopping.start()
        stopping.join(STOP_S)


def _run(function: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
    """Run `function` in the process; an image that lacked memory says so to the parent, who knows the limit."""
    try:
        return function(*args, **kwargs)
    except ImageError as error:
        if isinstance(error.__cause__, MemoryError):
            raise MemoryError from error
        raise
    except TimeoutError as error:  # a share's, not ours
        raise IncompleteImageError(f"{args[0]} cannot be read now ({error}); it is read again") from error


def _begin(memory_mb: int) -> None:
    """Make this process ready: it dies with its parent and on request at once, and has its decoders and its limit."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # nothing is multiplied here, and each thread takes address space
    import imagecodecs
    import numpy as np

    import acquisition.tiff  # noqa: F401 here rather than at the first image, whose time is limited

    imagecodecs.zstd_decode(imagecodecs.zstd_encode(bytes(8)))
    imagecodecs.zlib_decode(imagecodecs.zlib_encode(bytes(8)))
    np.zeros(8).sum()
    _limit_memory(memory_mb)


def _limit_memory(memory_mb: int) -> None:
    """Allow `memory_mb` MiB more address space than now, and no core dumps."""
    if sys.platform == "win32":
        return
    import resource

    import psutil

    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = psutil.Process().memory_info().vms + memory_mb * 2**20
    if sys.platform != "darwin":  # there the size counts libraries shared by all, and the limit is not kept
        resource.setrlimit(resource.RLIMIT_AS, (wanted if most < 0 else min(wanted, most), most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Process(SpawnProcess):
    """A process that begins without our main module and deaf to Ctrl-C."""

    def start(self) -> None:
        """Begin it; were it to import the main module, as is usual, each would load the whole service."""
        with _main_lock, no_interrupts():
            main = sys.modules["__main__"]
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                super().start()
            finally:
                sys.modules["__main__"] = main

    def run(self) -> None:
        """Work; memory that lacks while a result is handed over ends the process, and the parent says so."""
        try:
            super().run()
        except MemoryError:
            os._exit(SWOLLEN)


class _Context(SpawnContext):
    Process = _Process


_main_lock = threading.Lock()


@contextmanager
def no_interrupts() -> Iterator[None]:
    """Let threads and processes that begin meanwhile inherit that SIGINT waits: Ctrl-C is their parent's to handle."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
