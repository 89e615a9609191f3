"""Engines: equal scores on each backend, memory that runs short, the next chunk under way, reduced precision."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import tifffile
from numpy.typing import NDArray

from models import backend, engines
from models.cropper import crop_cells
from models.engines import CPU, GPU, GPU_CHUNK, Engine, Fetch, score_in_chunks
from models.passport import find_model, list_models
from models.scorer import Scorer
from sesmo_live.errors import ModelError
from sesmo_live.reduced import precision_cost, simulated_cells
from tests.figures import figure
from tests.shipped import MODELS, shipped

ROOT = Path(__file__).parents[1]


def really_ask_for(what: Callable[[], Any]) -> Callable[[], Exception]:
    """Return how a library itself says that it has no memory: what it raises when asked for far too much."""

    def told() -> Exception:
        with pytest.raises(FAILURES) as raised:
            what()
        error: Exception = raised.value
        return error

    return told


FAILURES = (tf.errors.OpError, RuntimeError, MemoryError)

OUT_OF_MEMORY: dict[str, Callable[[], Exception]] = {
    # Asked for too much, TensorFlow says this too, but waits for memory for ten seconds first.
    "TensorFlow": lambda: tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[4096]"),
    "JAX": really_ask_for(lambda: jax.jit(lambda x: x + jnp.ones((1 << 24, 1 << 24)))(1.0).block_until_ready()),
    "NumPy": really_ask_for(lambda: np.empty(1 << 55)),
    "cuDNN": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
}


def grey(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = (crops.mean(axis=(1, 2)) / 255).astype(np.float32)
    return values


class Device:
    """A device with room for so many cells; it says so when they are sent, or only when they are fetched."""

    def __init__(self, error: Callable[[], Exception], room: dict[str, int], *, late: bool = False) -> None:
        self.error, self.room, self.late = error, room, late
        self.tried: list[tuple[str, int]] = []

    def place(self, name: str) -> engines.Enqueue:
        if not self.room[name]:
            raise self.error()

        def enqueue(crops: NDArray[np.uint8]) -> Fetch:
            self.tried.append((name, len(crops)))
            full = len(crops) > self.room[name]

            def fetch() -> NDArray[np.float32]:
                if full:
                    raise self.error()
                return grey(crops)

            if full and not self.late:
                raise self.error()
            return fetch

        return enqueue


@pytest.fixture(scope="module")
def crops() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (10_000, 4, 4)).astype(np.uint8)


def warnings_of(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("late", [False, True], ids=["when sent", "when fetched"])
@pytest.mark.parametrize("name", OUT_OF_MEMORY)
def test_without_memory_fewer_cells_are_scored_at_a_time_ever_after(
    crops: NDArray[np.uint8], caplog: pytest.LogCaptureFixture, name: str, late: bool
) -> None:
    device = Device(OUT_OF_MEMORY[name], {GPU: 1500, CPU: 0}, late=late)
    engine = Engine(device.place, GPU, 128, FAILURES)
    np.testing.assert_array_equal(score_in_chunks(engine, crops, engine.chunk), grey(crops))
    assert (engine.device, engine.most) == (GPU, 1024)
    assert max(n for _, n in device.tried[-8:]) == 1024
    assert warnings_of(caplog) == [
        f"the GPU has no memory to score {GPU_CHUNK} cells at a time; from now on it is 2048 at a time"
    ]
    device.tried.clear()
    np.testing.assert_array_equal(score_in_chunks(engine, crops, engine.chunk), grey(crops))
    assert {n for _, n in device.tried} == {1024, 10_000 % 1024}


@pytest.mark.parametrize("room", [0, 100], ids=["not even for the weights", "for too few cells"])
def test_a_full_gpu_leaves_scoring_to_the_cpu_and_that_is_said(
    crops: NDArray[np.uint8], caplog: pytest.LogCaptureFixture, room: int
) -> None:
    device = Device(OUT_OF_MEMORY["JAX"], {GPU: room, CPU: 1 << 30})
    engine = Engine(device.place, GPU, 128, FAILURES)
    np.testing.assert_array_equal(score_in_chunks(engine, crops, engine.chunk), grey(crops))
    assert (engine.device, engine.chunk) == (CPU, 128)
    assert {n for name, n in device.tried if name == CPU} <= {128, len(crops) % 128}
    assert "the CPU scores from now on, with equal scores but slower" in warnings_of(caplog)[-1]
    assert len(warnings_of(caplog)) == (2 if room else 1)


def test_a_computer_without_memory_is_told_in_a_sentence(crops: NDArray[np.uint8]) -> None:
    engine = Engine(Device(OUT_OF_MEMORY["NumPy"], {CPU: 4}).place, CPU, 128, FAILURES)
    with pytest.raises(ModelError, match="no memory to score 8 cells at a time; close other programs"):
        score_in_chunks(engine, crops, engine.chunk)


def test_other_failures_are_not_taken_for_missing_memory(
    crops: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    device = Device(lambda: RuntimeError("INTERNAL: the kernel is broken"), {GPU: 10, CPU: 10})
    with pytest.raises(RuntimeError, match="the kernel is broken"):
        score_in_chunks(Engine(device.place, GPU, 128, FAILURES), crops, 100)
    assert [n for _, n in device.tried] == [100]
    assert not warnings_of(caplog)


def test_the_next_chunk_is_under_way_before_one_is_waited_for(crops: NDArray[np.uint8]) -> None:
    happened: list[str] = []

    def enqueue(part: NDArray[np.uint8]) -> Fetch:
        number = sum(event.startswith("send") for event in happened)
        happened.append(f"send {number}")

        def fetch() -> NDArray[np.float32]:
            happened.append(f"fetch {number}")
            return grey(part)

        return fetch

    score_in_chunks(Engine(lambda _: enqueue, CPU, 128, ()), crops[:300], 100)
    assert happened == ["send 0", "send 1", "fetch 0", "send 2", "fetch 1", "fetch 2"]


def score_elsewhere(code: str, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, str(out)],
        env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def test_jax_scores_as_tensorflow_does(tmp_path: Path) -> None:
    cells = simulated_cells(50, "min-max")[:64]
    np.save(tmp_path / "cells.npy", cells)
    script = (
        "import sys, numpy as np; from pathlib import Path; from tests.shipped import MODELS, shipped\n"
        "from models.engines import score_in_chunks; out = Path(sys.argv[1]); cells = np.load(out / 'cells.npy')\n"
        "for name in MODELS:\n"
        "    engine = shipped(name); print(engine.device)\n"
        "    np.save(out / f'{name}.npy', score_in_chunks(engine, cells, 64))\n"
    )
    done = score_elsewhere(script, tmp_path, KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")
    assert (done.returncode, done.stdout) == (0, "cpu\ncpu\n"), done.stderr
    for name in MODELS:
        ours = score_in_chunks(shipped(name), cells, 64)
        theirs = np.load(tmp_path / f"{name}.npy")
        figure(f"{name}: JAX and TensorFlow differ by {np.abs(ours - theirs).max():.1e} at most")
        assert np.ptp(ours) > 0.1
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_scores_as_the_cpu_does(name: str) -> None:
    engine = shipped(name)
    if engine.device != GPU:
        pytest.skip("needs a GPU that TensorFlow, JAX or PyTorch (KERAS_BACKEND) can use")
    cells = simulated_cells(50, "min-max")
    on_gpu = score_in_chunks(engine, cells, engine.chunk)
    on_cpu = score_in_chunks(Engine(engine._place, CPU, 128, engine.failures), cells, 128)
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0, atol=1e-4)


@pytest.mark.realdata
@pytest.mark.parametrize("name", MODELS)
def test_bf16_scores_are_nearly_those_of_fp32_on_the_golden_cells(shared: Path, name: str) -> None:
    fields = sorted((shared / "golden/deep_sesmo_crops").glob("*.tif"))
    cells = np.concatenate([crop_cells(tifffile.imread(path))[0] for path in fields])[::4]
    exact, reduced = (score_in_chunks(shipped(name, each), cells, 128) for each in ("fp32", "bf16"))
    change = np.abs(reduced - exact)
    figure(f"{name}: bf16 changes the scores of {len(cells)} golden cells by {change.max():.4f} at most")
    assert 0 < change.max() < 0.03
    assert change.mean() < 0.003


def test_scores_in_bf16_have_a_model_id_of_their_own_and_those_in_fp32_the_old_one() -> None:
    ids = {passport.name: passport.model_id for _, passport in list_models()}
    assert ids["demo-compact"] == "demo-compact-1-42d081b7"
    assert ids["demo-deep-sesmo"] == "demo-deep-sesmo-1-72949a61"
    reduced, exact = (Scorer(find_model("demo-compact"), precision=each) for each in ("bf16", "fp32"))
    assert exact.passport.model_id == ids["demo-compact"]
    assert reduced.passport.model_id == "demo-compact-1-8f3a4c5d-bf16"
    for scorer in (reduced, exact):
        assert exact.passport.is_of(scorer.passport.model_id)
    assert not exact.passport.is_of(ids["demo-deep-sesmo"])
    said = precision_cost(reduced, exact)
    assert said.startswith("model demo-compact-1-8f3a4c5d-bf16: bf16 changes the scores of 361 simulated cells by 0.0")
    assert 0 < float(said.partition(" cells by ")[2].split()[0]) < 0.03


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ModelError, match="precision 'fp8' is not known; choose one of fp32, bf16"):
        shipped("demo-compact", "fp8")  # type: ignore[arg-type]


def test_the_cap_on_gpu_memory_comes_before_the_first_model() -> None:
    backend.start_keras()
    with pytest.raises(ModelError, match="cannot be capped at 512 MiB once the first model is loaded"):
        backend.cap_gpu_memory(512)


def test_jax_is_told_the_cap_as_a_share_and_takes_memory_as_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_needed = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert backend._environment("jax", None) == as_needed
    assert backend._environment("jax", 4096) == as_needed  # without a driver there is no GPU to cap
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 16384\necho 16384\n")
    driver.chmod(0o755)
    assert backend._environment("jax", 4096) == {**as_needed, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2500"}
    assert backend._environment("tensorflow", 4096) == {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}


def test_bench_of_a_gpu_needs_no_more_than_keras_and_a_backend(tmp_path: Path) -> None:
    script = (
        "import runpy, sys\n"
        "class Bare:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('pydantic', 'sqlalchemy', 'cv2', 'platformdirs', 'typer'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Bare())\n"
        "sys.argv = 'gpu.py --networks compact --precisions bf16 --batches 64 --seconds 0.05'.split()\n"
        "runpy.run_path('tests/benchmarks/gpu.py', run_name='__main__')\n"
    )
    done = score_elsewhere(script, tmp_path, KERAS_BACKEND="tensorflow")
    assert done.returncode == 0, done.stderr
    assert "compact in bf16 on " in done.stdout
    assert re.search(r"largest change of a score against fp32: 0\.0\d*[1-9]\d* ", done.stdout)
    assert re.search(r"^ +64 +\d+ +\d+\.\d%$", done.stdout, re.MULTILINE)
    assert "end to end is skipped: " in done.stdout
