"""Start Keras once, quietly: on TensorFlow without taking the whole GPU, or on JAX or PyTorch where installed."""

import importlib
import os
import re
import subprocess
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

_gpu_memory_mb: list[int] = []
"""The cap on GPU memory, if there is one, in MiB."""

_CHATTER = re.compile(
    rb"[IWE]\d{4} \d\d:\d\d|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] "
    rb"|WARNING: All log messages before absl|To enable the following instructions"
)
"""Lines of TensorFlow's C++ side up to the level of errors, which it also prints when nothing is wrong."""


def cap_gpu_memory(megabytes: int) -> None:
    """Let this process take so many MiB of GPU memory at most; without this call it takes what it needs.

    Raises ModelError once the backend runs, with another cap or none.
    """
    with _STARTING:
        if "keras" in sys.modules and _gpu_memory_mb != [megabytes]:
            raise ModelError(f"GPU memory cannot be capped at {megabytes} MiB once the first model is loaded")
        _gpu_memory_mb[:] = [megabytes]


def start_keras(threads: int | None = None) -> Any:
    """Import Keras and return it, on the backend that KERAS_BACKEND names, else on TensorFlow; it takes seconds once.

    `threads` caps the threads of one operation; None takes all cores. GPU memory is taken as needed, up to the cap of
    `cap_gpu_memory`; float32 is float32, without NVIDIA's TF32. Raises ModelError for a backend that is unknown or not
    installed, where TensorFlow already runs with another number of threads, and where JAX is given one.
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
    cap = _gpu_memory_mb[0] if _gpu_memory_mb else None
    for name, value in _environment(backend, cap).items():
        os.environ.setdefault(name, value)
    try:
        import keras  # noqa: F401 - its import belongs inside the quiet
    except ModuleNotFoundError as error:
        raise ModelError(
            f"KERAS_BACKEND={backend} needs the package {error.name}; install it, or unset KERAS_BACKEND"
        ) from error
    if threads is not None:
        _CAPS[backend](threads)
    if backend == "tensorflow":
        _start_tensorflow(cap)
    elif backend == "torch":
        _start_torch(cap)


def _environment(backend: str, cap_mb: int | None) -> dict[str, str]:
    """Return what must stand in the environment before a backend is imported, so that it takes memory as needed."""
    if backend == "tensorflow":
        return {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    if backend == "torch":
        return {}
    share = {} if cap_mb is None else _share_of_gpu(cap_mb)
    return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **share}


def _share_of_gpu(cap_mb: int) -> dict[str, str]:
    """Return JAX's way to say a cap, as a share of the GPU's memory; nothing where no driver tells its size."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
        return {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{min(1.0, cap_mb / float(told[0])):.4f}"}
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return {}


def _start_tensorflow(cap_mb: int | None) -> None:
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
    for device in tf.config.list_physical_devices("GPU") if cap_mb is not None else ():
        limit = tf.config.LogicalDeviceConfiguration(memory_limit=cap_mb)
        tf.config.set_logical_device_configuration(device, [limit])
    tf.config.list_logical_devices()  # starts the devices, chatter included


def _start_torch(cap_mb: int | None) -> None:
    torch = importlib.import_module("torch")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if cap_mb is not None and torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap_mb * 2**20 / whole), 0)


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
