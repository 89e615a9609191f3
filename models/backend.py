"""Start Keras once, quietly: on TensorFlow without taking the whole GPU, or on JAX or PyTorch where installed."""

import importlib
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sesmo_live.errors import ModelError

TURN = threading.Lock()
"""Held while a network runs: TensorFlow 2.21 was seen to crash where several threads ran one; it takes all cores."""

_STARTING = threading.Lock()

_CHATTER = re.compile(
    rb"[IWE]\d{4} \d\d:\d\d|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] "
    rb"|WARNING: All log messages before absl|To enable the following instructions"
)
"""Lines of TensorFlow's C++ side up to the level of errors, which it also prints when nothing is wrong."""


def start_keras(threads: int | None = None) -> Any:
    """Import Keras and return it, on the backend that KERAS_BACKEND names, else on TensorFlow; it takes seconds once.

    `threads` caps the threads of one operation; None takes all cores. GPU memory is taken as needed by TensorFlow and
    PyTorch. Raises ModelError for a backend that is unknown or not installed, where TensorFlow already runs with
    another number of threads, and where JAX is given one.
    """
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend not in _CAPS:
        raise ModelError(f"KERAS_BACKEND={backend} is not supported; unset it, or set one of {', '.join(_CAPS)}")
    with _STARTING:
        if "keras" not in sys.modules or backend not in sys.modules:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            with without_chatter(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _start(backend, threads)
        elif threads is not None:
            _CAPS[backend](threads)
    import keras

    return keras


@contextmanager
def without_chatter() -> Iterator[None]:
    """Drop TensorFlow's log lines from standard error meanwhile; everything else still comes through.

    TensorFlow 2.21 prints some of them whatever TF_CPP_MIN_LOG_LEVEL says, so they are filtered on their way.
    """
    try:
        real = os.dup(2)
    except OSError:  # a service without a standard error
        yield
        return
    source, sink = os.pipe()
    os.dup2(sink, 2)
    os.close(sink)
    sieve = threading.Thread(target=_sieve, args=(source, real), daemon=True)
    sieve.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(real, 2)
        sieve.join(timeout=1)  # it lives on while a child process started meanwhile still writes into the pipe


def _sieve(source: int, real: int) -> None:
    with os.fdopen(source, "rb") as lines, os.fdopen(real, "wb", buffering=0) as kept:
        for line in lines:
            if not _CHATTER.match(line):
                kept.write(line)


def _start(backend: str, threads: int | None) -> None:
    try:
        import keras  # noqa: F401 - its import belongs inside the quiet
    except ModuleNotFoundError as error:
        raise ModelError(
            f"KERAS_BACKEND={backend} needs the package {error.name}; install it, or unset KERAS_BACKEND"
        ) from error
    if backend == "tensorflow":
        _start_tensorflow(threads)
    elif threads is not None:
        _CAPS[backend](threads)


def _start_tensorflow(threads: int | None) -> None:
    import tensorflow as tf

    for device in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(device, True)
    if threads is not None:
        _set_threads(threads)
    tf.config.list_logical_devices()  # starts the devices, chatter included


def _set_threads(threads: int) -> None:
    import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() == threads:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError:
        running = tf.config.threading.get_intra_op_parallelism_threads() or "all"
        raise ModelError(
            f"TensorFlow already runs with {running} threads; set threads to {threads} before the first model is loaded"
        ) from None


def _set_torch_threads(threads: int) -> None:
    importlib.import_module("torch").set_num_threads(threads)


def _refuse_threads(threads: int) -> None:
    raise ModelError(f"KERAS_BACKEND=jax takes no number of threads ({threads}); leave it out, or unset KERAS_BACKEND")


_CAPS: dict[str, Callable[[int], None]] = {
    "tensorflow": _set_threads,
    "jax": _refuse_threads,
    "torch": _set_torch_threads,
}
"""What caps the threads of each backend."""
