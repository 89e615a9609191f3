"""Run a network on the device there is: TensorFlow, JAX or PyTorch, GPU or CPU, with as much memory as there is.

Scores are the same on all of them to 1e-4 in fp32. While one chunk of cells is computed, the next is on its way to the
device. Needs NumPy and Keras alone, so that a bare GPU machine can measure it (`tests/benchmarks/gpu.py`).
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from models.backend import TURN, start_keras, without_chatter
from models.network import NETWORKS, Weights, build_scoring_network
from sesmo_live.errors import ModelError
from sesmo_live.records import Precision

log = logging.getLogger(__name__)

Fetch = Callable[[], NDArray[np.float32]]
"""Waits for the scores of one chunk, float32 N, and brings them into this computer's memory."""

Enqueue = Callable[[NDArray[np.uint8]], Fetch]
"""Sends uint8 crops N×H×W on their way and returns, where the device lets it, before they are scored."""

GPU, CPU = "gpu:0", "cpu"
"""Devices, as Keras names them on each backend."""

GPU_CHUNK = 4096
"""Cells scored at a time on a GPU: enough to keep a large one busy, 2 GB of its memory at most."""

ZERO = 128
"""Grey value from which crops are counted: bfloat16 has eight digits, best spent around zero. It halves the change."""

_LEAST = {GPU: 256, CPU: 8}
"""The fewest cells a chunk is filled up to, and halved down to when memory is short: fewer take a GPU no less time."""

_NO_MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED|ResourceExhausted|OutOfMemory|out of memory|ALLOC_FAILED|can't allocate memory|OOM when|"
    r"MemoryError",
    re.IGNORECASE,
)
"""How the backends and their libraries say that memory is short."""

_BUILDING = threading.Lock()


class Engine:
    """One compiled network on a device; `enqueue` starts scoring a chunk, calling it scores one and waits.

    `device` is where it runs now, `chunk` how many cells at a time suit it, `most` how many its memory was seen to
    hold, `failures` what running out of memory may raise.
    """

    def __init__(
        self, place: Callable[[str], Enqueue], device: str, chunk: int, failures: tuple[type[Exception], ...]
    ) -> None:
        """Start on `device`, or on the CPU where that has no memory left; `place` compiles the network there."""
        self._place, self._cpu_chunk = place, chunk
        self.device, self.failures = device, failures
        self.chunk = self.most = GPU_CHUNK if device == GPU else chunk
        self._warned = False
        self.enqueue: Enqueue = self._unplaced
        try:
            self.enqueue = place(device)
        except failures as error:
            self.make_room(error, _LEAST[device])

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return P(senescent) of uint8 crops N×H×W, float32 N."""
        return self.enqueue(crops)()

    def make_room(self, error: Exception, n: int) -> None:
        """Prepare to go on after `error` came from scoring `n` cells at a time: fewer at a time, then on the CPU.

        Raises ModelError where there is no way on, and `error` itself if memory was not its reason.
        """
        if not _NO_MEMORY.search(f"{type(error).__name__}: {error}"):
            raise error
        name = "GPU" if self.device == GPU else "computer"
        if n > _LEAST[self.device]:
            self.most = max(_LEAST[self.device], n // 2)
            log.log(
                logging.INFO if self._warned else logging.WARNING,
                "the %s has no memory to score %d cells at a time; from now on it is %d at a time",
                name, n, self.most,
            )  # fmt: skip
            self._warned = True
            return
        if self.device == CPU:
            raise ModelError(
                f"there is no memory to score {n} cells at a time; close other programs, then start again"
            ) from error
        log.warning(
            "the GPU has no memory to score even %d cells at a time; the CPU scores from now on, with equal scores but "
            "slower; close what fills the GPU, then start again",
            n,
        )
        self.device, self.chunk, self.most = CPU, self._cpu_chunk, self._cpu_chunk
        self.enqueue = self._unplaced  # lets go of what the GPU holds
        self.enqueue = self._place(CPU)

    def _unplaced(self, crops: NDArray[np.uint8]) -> Fetch:
        raise ModelError(f"{len(crops)} cells cannot be scored before their network is on a device")


def compile_network(
    name: str,
    input_px: int,
    weights: Weights,
    temperature: float = 1.0,
    bias: float = 0.0,
    *,
    precision: Precision = "fp32",
) -> Engine:
    """Return network `name` with `weights`, compiled for the backend's best device.

    The softmax of the logits divided by `temperature` is the calibrated probability (Guo et al., ICML 2017); `bias`
    is added to their difference. With `bf16` all but the last layer computes in bfloat16. Raises ModelError for a
    network or precision that is not known and for weights that do not fit.
    """
    if precision not in get_args(Precision):
        raise ModelError(f"precision {precision!r} is not known; choose one of {', '.join(get_args(Precision))}")
    keras = start_keras()
    backend = _BACKENDS[keras.backend.backend()]

    def place(device: str) -> Enqueue:
        with without_chatter():
            with _BUILDING, keras.device(device):
                before = keras.config.dtype_policy()
                keras.config.set_dtype_policy("bfloat16" if precision == "bf16" else "float32")
                try:
                    model = build_scoring_network(name, input_px, weights, zero=ZERO)
                finally:
                    keras.config.set_dtype_policy(before)
            enqueue = backend.place(model, device, temperature, bias)
            filled = _filling(enqueue, _LEAST[device], doubling=backend.traces_sizes or device == GPU)
            filled(np.zeros((1, input_px, input_px), np.uint8))()
        return filled

    return Engine(place, GPU if backend.has_gpu() else CPU, NETWORKS[name].chunk, backend.failures())


def score_in_chunks(engine: Engine, crops: NDArray[np.uint8], chunk: int) -> NDArray[np.float32]:
    """Return the scores of all crops, computed `chunk` at a time, or fewer where memory is short."""
    scores = np.empty(len(crops), np.float32)
    done = 0
    while done < len(crops):
        step = min(chunk, engine.most)
        try:
            for part in _overlapping(engine.enqueue, crops[done:], step):
                scores[done : done + len(part)] = part
                done += len(part)
        except engine.failures as error:
            engine.make_room(error, step)
    return scores


def _overlapping(enqueue: Enqueue, crops: NDArray[np.uint8], step: int) -> Iterator[NDArray[np.float32]]:
    """Yield the scores of each `step` crops; the next are on their way before any are waited for."""
    fetch: Fetch | None = None
    for start in range(0, len(crops), step):
        following = enqueue(crops[start : start + step])
        if fetch is not None:
            yield fetch()
        fetch = following
    if fetch is not None:
        yield fetch()


def _filling(enqueue: Enqueue, least: int, *, doubling: bool) -> Enqueue:
    """Return `enqueue` for any number of crops: blanks fill them up to `least` or a multiple of it.

    Kernels round the odd rest of a batch differently (by 1e-7). With `doubling`, only `least` times a power of two is
    used, where each further size would be compiled or tuned anew.
    """

    def enqueue_filled(crops: NDArray[np.uint8]) -> Fetch:
        n = len(crops)
        parts = -(-n // least)
        size = least * (1 << (parts - 1).bit_length() if doubling else parts)
        blanks = np.zeros((size - n, *crops.shape[1:]), np.uint8)
        fetch = enqueue(np.concatenate([crops, blanks]) if len(blanks) else crops)
        return lambda: fetch()[:n]

    return enqueue_filled


def _on_tensorflow(model: Any, device: str, temperature: float, bias: float) -> Enqueue:
    import tensorflow as tf

    shape = model.input.shape[:-1]

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8)], autograph=False)  # type: ignore[untyped-decorator]
    def score(crops: tf.Tensor) -> tf.Tensor:
        logits = model(tf.cast(crops, model.compute_dtype)[..., None] - ZERO, training=False)
        return tf.sigmoid((logits[:, 1] - logits[:, 0]) / temperature + bias)

    with tf.device(device):
        traced = score.get_concrete_function()  # called by itself, it does not warn of the tracing of other models

    def enqueue(crops: NDArray[np.uint8]) -> Fetch:
        with TURN, tf.device(device):
            scores = traced(tf.constant(crops))
        return lambda: np.asarray(scores, np.float32)

    return enqueue


def _on_jax(model: Any, device: str, temperature: float, bias: float) -> Enqueue:
    import jax

    home = jax.devices(device.partition(":")[0])[0]
    held = ([each.value for each in model.trainable_variables], [each.value for each in model.non_trainable_variables])
    weights = jax.device_put(held, home)

    @jax.jit
    def score(weights: Any, crops: Any) -> Any:
        with jax.default_matmul_precision("highest"):  # no TF32
            grey = crops.astype(model.compute_dtype)[..., None] - ZERO
            logits, _ = model.stateless_call(*weights, grey, training=False)
        return jax.nn.sigmoid((logits[:, 1] - logits[:, 0]) / temperature + bias)

    def enqueue(crops: NDArray[np.uint8]) -> Fetch:
        scores = score(weights, jax.device_put(crops, home))
        return lambda: np.asarray(scores, np.float32)

    return enqueue


def _on_torch(model: Any, device: str, temperature: float, bias: float) -> Enqueue:
    import torch

    keras = start_keras()
    kind = getattr(torch, model.compute_dtype)

    def enqueue(crops: NDArray[np.uint8]) -> Fetch:
        batch = torch.tensor(crops)  # a copy: the caller's memory may be read-only
        with torch.inference_mode(), keras.device(device):
            if device == GPU:  # only from pinned memory does a transfer run beside computing
                batch = batch.pin_memory().to("cuda:0", non_blocking=True)
            logits = model(batch[..., None].to(kind) - ZERO, training=False)  # Keras' layout is channels-last
            scores = torch.sigmoid((logits[:, 1] - logits[:, 0]) / temperature + bias)
        return lambda: np.asarray(scores.cpu().numpy(), np.float32)

    return enqueue


def _tensorflow_failures() -> tuple[type[Exception], ...]:
    import tensorflow as tf

    return (tf.errors.OpError, MemoryError)


def _has_tensorflow_gpu() -> bool:
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU"))


def _has_jax_gpu() -> bool:
    import jax

    return bool(jax.default_backend() == "gpu")


def _has_torch_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


class _Backend(NamedTuple):
    """How one backend scores; with `traces_sizes` it compiles anew for every size of a batch."""

    place: Callable[[Any, str, float, float], Enqueue]
    has_gpu: Callable[[], bool]
    failures: Callable[[], tuple[type[Exception], ...]]
    traces_sizes: bool = False


def _run_time_failures() -> tuple[type[Exception], ...]:
    return (RuntimeError, MemoryError)  # JAX's and PyTorch's own errors are RuntimeErrors


_BACKENDS = {
    "tensorflow": _Backend(_on_tensorflow, _has_tensorflow_gpu, _tensorflow_failures),
    "jax": _Backend(_on_jax, _has_jax_gpu, _run_time_failures, traces_sizes=True),
    "torch": _Backend(_on_torch, _has_torch_gpu, _run_time_failures),
}
