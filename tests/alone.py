"""Let tests that measure time or memory run alone while the others share the cores.

Tests run in several processes (pytest-xdist). Each holds a lock of its own process during a test; a test marked `alone`
takes the locks of all. Whoever waits holds the gate, so that a test that wants to be alone is not overtaken for ever.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def room(*, alone: bool) -> Iterator[None]:
    """Wait for the right to run beside the tests of the other processes, or instead of them."""
    worker, run = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get("PYTEST_XDIST_TESTRUNUID", "")
    if worker is None:
        yield
        return
    workers = [f"gw{number}" for number in range(int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))] if alone else [worker]
    base = Path(tempfile.gettempdir()) / f"sesmo-tests-{run}"
    with ExitStack() as held:
        with FileLock(f"{base}-gate.lock"):
            for name in workers:
                held.enter_context(FileLock(f"{base}-{name}.lock"))
        yield
