"""Measure the scorer on the device there is: cells/s by batch size, share of peak, end to end with CPU croppers.

Run `KERAS_BACKEND=jax python tests/benchmarks/gpu.py` (or torch, or tensorflow). It needs NumPy, Keras 3 and that
backend; for the shipped weights safetensors; for the last part also OpenCV, SciPy, tifffile, pydantic and platformdirs.
A machine that reaches no package index takes them as wheels. Nothing is written but a temporary folder.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

# ruff: noqa: T201 - printing is what a script is for
PX = 50
SHIPPED = {"deep-sesmo": "demo-deep-sesmo", "compact": "demo-compact"}
END_TO_END = ("cv2", "scipy", "tifffile", "safetensors", "pydantic", "platformdirs")


def best_of(what: Callable[[], object], seconds: float, least: int = 3) -> float:
    """Return the median duration in s of `what`, repeated for `seconds`, after one run that is not counted."""
    what()
    durations: list[float] = []
    while len(durations) < least or sum(durations) < seconds:
        begun = time.perf_counter()
        what()
        durations.append(time.perf_counter() - begun)
    return float(np.median(durations))


def peak_flops(keras: Any, device: str, precision: str, seconds: float) -> float:
    """Return operations per second of a large square matrix product on `device`: what the network could reach."""
    n = 8192 if device.startswith("gpu") else 1024
    kind = "bfloat16" if precision == "bf16" else "float32"
    rng = np.random.default_rng(0)
    with keras.device(device):
        left, right = (keras.ops.cast(rng.normal(size=(n, n)).astype(np.float32), kind) for _ in "ab")

        def multiply() -> None:
            product = keras.ops.matmul(left, right)
            for _ in range(3):  # queued together, waited for once; the mean keeps the fetch small
                product = keras.ops.matmul(product, right)
            np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(product[:1, :1], "float32")))

        return float(4 * 2 * n**3 / best_of(multiply, seconds))


def operations(model: Any) -> int:
    """Return the multiplications and additions of a network's convolutions and dense layers for one crop."""
    kernels = [layer for layer in model.layers if getattr(layer, "kernel", None) is not None]
    return sum(2 * int(np.prod(each.output.shape[1:-1])) * int(np.prod(each.kernel.shape)) for each in kernels)


def is_there(package: str) -> bool:
    """Say whether a package can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def weights_of(network: str) -> dict[str, NDArray[np.float32]]:
    """Return the shipped model's weights, or random ones where safetensors is missing: as fast, but of no meaning."""
    from models.network import build_network, get_weights

    if not is_there("safetensors"):
        print("safetensors is missing: random weights, so that the change of scores in bf16 means nothing")
        return get_weights(build_network(network, PX))
    from safetensors.numpy import load_file

    stored = load_file(ROOT / "models/weights" / SHIPPED[network] / "weights.safetensors")
    return {name: array.astype(np.float32) for name, array in stored.items()}


def cells(n: int) -> NDArray[np.uint8]:
    """Return `n` crops: bright and dark discs in noise, so that no kernel meets zeros or one value only."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:PX, :PX] - PX / 2
    disc = np.exp(-(x**2 + y**2)[None] / rng.uniform(40, 300, (512, 1, 1))) * rng.uniform(-80, 80, (512, 1, 1))
    crops = (120 + disc + rng.normal(0, 15, (512, PX, PX))).clip(0, 255).astype(np.uint8)
    return np.concatenate([crops] * -(-n // len(crops)))[:n]


def measure_network(network: str, precision: str, batches: Sequence[int], seconds: float) -> None:
    """Print cells/s of one network in one precision by batch size, and how far its scores are from fp32's."""
    from models.backend import start_keras
    from models.engines import compile_network, score_in_chunks
    from models.network import build_network

    keras = start_keras()
    weights = weights_of(network)
    engine = compile_network(network, PX, weights, precision=cast(Any, precision))
    peak = peak_flops(keras, engine.device, precision, seconds)
    cost = operations(build_network(network, PX))
    print(
        f"\n{network} in {precision} on {engine.device} ({keras.backend.backend()}): {cost / 1e6:.1f} million "
        f"operations a cell; a matrix product runs at {peak / 1e12:.2f} TFLOP/s, so {peak / cost:.0f} cells/s at most"
    )
    if precision != "fp32":
        some = cells(512)
        exact = score_in_chunks(compile_network(network, PX, weights), some, engine.chunk)
        change = np.abs(score_in_chunks(engine, some, engine.chunk) - exact).max()
        print(f"largest change of a score against fp32: {change:.4f} on 512 made-up cells")
    print(f"{'batch':>8} {'cells/s':>10} {'share of peak':>14}   (from this computer's memory and back)")
    for batch in batches:
        many = cells(4 * batch)  # several, so that a transfer can run beside computing
        engine.most = max(engine.most, batch)
        rate = len(many) / best_of(lambda many=many, batch=batch: score_in_chunks(engine, many, batch), seconds)  # type: ignore[misc]
        print(f"{batch:8d} {rate:10.0f} {rate * cost / peak:13.1%}", flush=True)
        if engine.most < batch:
            print(f"the device has memory for {engine.most} cells at a time")
            break


def measure_end_to_end(network: str, precision: str, croppers: int, images: int) -> None:
    """Print images/s and cells/s from TIFF files of 2048² to scores, croppers on CPU threads, and without scores."""
    if missing := [name for name in END_TO_END if not is_there(name)]:
        print(f"\nend to end is skipped: {', '.join(missing)} not installed here")
        return
    import tifffile

    from acquisition.simulator.rendering import training_fields
    from models.convert import to_uint8
    from models.cropper import crop_cells
    from models.engines import compile_network, score_in_chunks

    engine = compile_network(network, PX, weights_of(network), precision=cast(Any, precision))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "field.tif"
        (field,) = training_fields(1, 3, shape=(2048, 2048), pixel_um=1.24)
        tifffile.imwrite(path, field.pixels)

        def crop(_: int) -> NDArray[np.uint8]:
            return crop_cells(to_uint8(tifffile.imread(path)))[0]

        found = len(crop(0))
        score_in_chunks(engine, cells(engine.chunk), engine.chunk)

        def run(*, score: bool) -> float:
            """Return images/s; crops are gathered into batches across fields, as the service does."""
            begun, waiting = time.perf_counter(), 0
            held: list[NDArray[np.uint8]] = []
            with ThreadPoolExecutor(croppers) as pool:
                for number, crops in enumerate(pool.map(crop, range(images)), start=1):
                    held.append(crops)
                    waiting += len(crops)
                    if score and (waiting >= engine.chunk or number == images):
                        score_in_chunks(engine, np.concatenate(held), engine.chunk)
                        held, waiting = [], 0
            return images / (time.perf_counter() - begun)

        alone, whole = run(score=False), run(score=True)
    print(
        f"\nend to end, {network} in {precision}, {images} images of 2048², {found} cells each, {croppers} croppers: "
        f"{whole:.1f} images/s ({whole * found:.0f} cells/s); reading and cropping alone {alone:.1f} images/s: "
        f"{'they' if whole > 0.8 * alone else 'not they but the network'} bound the path"
    )


def main() -> None:
    """Measure what the options ask for."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--networks", nargs="+", default=list(SHIPPED), choices=list(SHIPPED))
    words.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    words.add_argument("--batches", nargs="+", type=int, default=[256, 1024, 4096, 16384], help="powers of two")
    words.add_argument("--seconds", type=float, default=1.0, help="how long each figure is measured")
    words.add_argument("--croppers", type=int, default=os.cpu_count() or 1)
    words.add_argument("--images", type=int, default=64, help="images of the end-to-end part; 0 leaves it out")
    given = words.parse_args()
    if not is_there("keras"):
        sys.exit("keras is missing; install it: pip install keras")
    for network in given.networks:
        for precision in given.precisions:
            measure_network(network, precision, given.batches, given.seconds)
    for network in given.networks if given.images else ():
        measure_end_to_end(network, given.precisions[-1], given.croppers, given.images)


if __name__ == "__main__":
    main()
