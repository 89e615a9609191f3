"""The benchmark: each stage and the whole service, beside the original study's way of scoring an image.

Ratios are of paired turns in one run; the times of a busy or small computer are its own.
"""

import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from models.convert import to_uint8
from models.cropper import crop_cells
from models.passport import find_model, read_passport, read_weights, write_model
from models.scorer import Scorer
from sesmo_live.bench import images as pictures
from sesmo_live.bench import stages, whole
from sesmo_live.bench.original import original_path
from sesmo_live.bench.stages import Row
from sesmo_live.errors import UsageError

DEEP, COMPACT, CENTRES = "deep-sesmo", "compact", "compact, centres"
"""The models that are measured: two networks with the original's cropper, and one with the detector."""


def run_bench(image: Path | None, *, rounds: int, images: int, live: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything and return the figures by name; `stages` holds a row a stage.

    `image` is a picture of one's own in place of the virtual field, `rounds` how often each stage is timed, `images`
    how many are back-filled at a time, `live` how many
    land one by one while the service watches. Raises SesmoError for a picture that cannot be read.
    """
    if not len(crop_cells(to_uint8(pictures.field("2048", image)))[0]):  # told before anything is measured
        raise UsageError(f"{image} shows no cells; give --image an image with cells")
    with TemporaryDirectory(prefix="sesmo-bench-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        models = _models(folder / "models")
        scorers = {name: Scorer(models[name]) for name in (DEEP, COMPACT)}
        rows: list[Row] = []
        for size in pictures.SIZES:
            rows += stages.stage_rows(size, image, scorers, folder / size, rounds, say)
        say("the original's way of cropping")
        original_row, ratio = stages.crop_ratio("2048", image, max(3, rounds // 2))
        rows.append(original_row)
        found = _times_of(rows) | {"crop_ratio_2048": ratio} | _scoring(scorers, rounds)
        found |= _paths(folder, models, images, say)
        found |= _live(folder, models, images, live, found, say)
    return {"machine": _machine(), **found, "stages": rows}


def _models(folder: Path) -> dict[str, Path]:
    """Write the shipped demonstration models with the cropper of each of the comparison's lines."""
    lines = {
        DEEP: ("demo-deep-sesmo", "deep-sesmo"),
        COMPACT: ("demo-compact", "deep-sesmo"),
        CENTRES: ("demo-compact", "centres"),
    }
    paths = {}
    for name, (shipped, cropper) in lines.items():
        passport = read_passport(find_model(shipped))
        paths[name] = folder / name
        plain = replace(
            passport, cropper=cropper, cropper_settings={}, conversion="min-max", pixel_um=None, reference={}
        )
        write_model(paths[name], plain, read_weights(find_model(shipped), passport))
    return paths


def _times_of(rows: list[Row]) -> dict[str, float]:
    of = {row["stage"]: row["ms"] for row in rows if row["size"] == "2048"}
    return {"crop_ms_2048": of["crop (deep-sesmo)"], "crop_centres_ms_2048": of["crop (centres)"]}


def _scoring(scorers: dict[str, Scorer], rounds: int) -> dict[str, float]:
    """Return cells a second, and the share of the computer's peak that they take of it."""
    peak = stages.peak_gflops(rounds)
    found: dict[str, float] = {"peak_gflops": peak}
    for name, suffix in ((DEEP, ""), (COMPACT, "_compact")):
        passport = scorers[name].passport
        rate = stages.score_rate(scorers[name], rounds)
        operations = stages.operations_per_cell(passport.network, passport.input_px)
        found |= {f"cells_per_s{suffix}": rate, f"share_of_peak{suffix}": rate * operations / peak / 1e9}
    return found


def _paths(folder: Path, models: dict[str, Path], images: int, say: Callable[[str], None]) -> dict[str, float]:
    """Return ms an image from file to store, of the service and of the original, in paired turns at 2048²."""
    found = {}
    original = original_path(models[DEEP])
    raw = folder / "2048" / "raw.tif"
    original(raw)
    pairs: dict[str, list[tuple[float, float]]] = {DEEP: [], COMPACT: []}
    for number in range(3):
        for name, turns in pairs.items():
            say(f"the whole way at 2048, {name}: turn {number + 1} of 3")
            turns.append((stages.seconds(lambda: original(raw)) * 1e3, whole.ms_per_image(raw, models[name], images)))
    for name, suffix in ((DEEP, ""), (COMPACT, "_compact")):
        found[f"path_ms_2048{suffix}"] = statistics.median(fast for _, fast in pairs[name])
        found[f"path_ratio_2048{suffix}"] = statistics.median(slow / fast for slow, fast in pairs[name])
    found["original_ms_2048"] = statistics.median(slow for turns in pairs.values() for slow, _ in turns)
    others = [(size, "raw", name) for size in ("1024", "1360x1024") for name in (DEEP, COMPACT)]
    others += [("2048", "raw", CENTRES), ("2048", "zstd", COMPACT), ("2048", "lzw", COMPACT)]
    for size, encoding, name in others:
        say(f"the whole way at {size} ({encoding}), {name}")
        label = {DEEP: "", COMPACT: "_compact", CENTRES: "_compact_centres"}[name]
        label += "" if encoding == "raw" else f"_{encoding}"
        found[f"path_ms_{size}{label}"] = whole.ms_per_image(folder / size / f"{encoding}.tif", models[name], images)
    found |= {
        f"images_per_s_{name.removeprefix('path_ms_')}": 1e3 / ms for name, ms in found.items() if "path_ms" in name
    }
    return found


def _live(
    folder: Path, models: dict[str, Path], images: int, live: int, path_ms: dict[str, float], say: Callable[[str], None]
) -> dict[str, float]:
    """Return latencies at four files a second, or as many as leave the queue empty, and the memory of back-filling."""
    raw = folder / "2048" / "raw.tif"
    found = {}
    for name, suffix in ((DEEP, ""), (COMPACT, "_compact")):
        per_s = min(4.0, 0.7 * 1e3 / path_ms[f"path_ms_2048{suffix}"])
        say(f"{per_s:.1f} files a second, {name}")
        times = np.array(whole.latencies_s(raw, models[name], 4 + live, per_s)) * 1e3
        found[f"latency_p50_ms{suffix}"], found[f"latency_p95_ms{suffix}"] = map(float, np.percentile(times, [50, 95]))
        found[f"latency_files_per_s{suffix}"] = per_s
        say(f"memory, {name}")
        found[f"peak_memory_mb{suffix}"] = max(whole.memory_of_score(raw, models[name], images)[0])
    return found


def _machine() -> dict[str, Any]:
    packages = ("tensorflow", "keras", "numpy", "opencv-python-headless")
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        **{name: version(name) for name in packages},
    }
