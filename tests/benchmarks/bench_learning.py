"""Measure training on the shared images: `python -m tests.benchmarks.bench_learning [treated|lines|nuclei|speed] …`.

Every cell is scored by a network that saw no cell of its group (grouped cross-validation), raw; calibrated scores come
from a calibration of other groups than the cell's own. Options: --seeds 0,1,2 --network compact|deep-sesmo --epochs N
--folds N --threads N.
"""

import argparse
import csv
import dataclasses
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from acquisition.pictures import read_picture
from models.augment import augment
from models.backend import start_keras
from models.calibration import cross_fit
from models.datasets import LabelledCells, fit_cell
from models.metrics import area_under_roc, expected_calibration_error, grouped_auc
from models.network import NETWORKS, build_network, get_weights
from models.scorer import compile_network
from models.search import train_without
from models.splits import grouped_folds
from models.training import RECIPES, Recipe, train_network

DATA = Path(__file__).parents[2].parent / "shared/data"
TREATED = DATA / "timelapse_treated/cellphe_mdamb231_docetaxel"
PX = 50


def treated() -> tuple[LabelledCells, dict[str, NDArray[np.generic]]]:
    """Return cells early (0) and late (1) after treatment, a group per CellID, and all cells of all frames."""
    images = {
        int(re.findall(r"Phase-(\d+)", path.name)[0]): read_picture(path) for path in TREATED.glob("images/*.tif")
    }

    def cut(rows: list[dict[str, str]]) -> NDArray[np.uint8]:
        half = PX // 2
        crops = []
        for row in rows:
            image = np.pad(images[int(row["frame"])], half, mode="edge")
            x, y = int(float(row["cx"])), int(float(row["cy"]))
            crops.append(image[y : y + PX, x : x + PX])
        return np.array(crops, np.uint8)

    labelled = _table(TREATED / "single_cell_time_labels.csv")
    every = [row for row in _table(TREATED / "tracks_all_frames.csv") if int(row["frame"]) in images]
    labels = np.array([row["time_class"].startswith("late") for row in labelled], int)
    cells = _cells(cut(labelled), labels, [row["cell_id"] for row in labelled])
    frames = {
        "crops": cut(every),
        "groups": np.array([row["cell_id"] for row in every]),
        "hours": np.array([float(row["hours"]) for row in every]),
        "area": np.array([float(row["area_px"]) for row in every]),
        "labelled_area": np.array([float(row["area_px"]) for row in labelled]),
    }
    return cells, frames


def single_cells(dataset: str, positive: str) -> LabelledCells:
    """Return the single-cell pictures of a data set of the index, resized whole, as `train` does without a scale."""
    rows = [row for row in _table(DATA / "index.csv") if row["dataset"] == dataset and row["role"] == "image"]
    crops = np.array([fit_cell(read_picture(DATA / row["path"]).astype(np.uint8), PX, None) for row in rows])
    return _cells(crops, np.array([row["label"] == positive for row in rows], int), [row["group"] for row in rows])


def measure(name: str, cells: LabelledCells, recipe: Recipe, folds: int, seed: int, frames: dict | None = None) -> None:  # type: ignore[type-arg]
    """Cross-validate with one seed and print the figures as one JSON line."""
    started = time.monotonic()
    fold = grouped_folds(cells.labels, cells.groups, folds, seed)
    raw = np.empty(len(cells))
    known = dict(zip(cells.groups, fold, strict=True))
    of_frames = []
    for part in range(int(fold.max()) + 1):
        out = fold == part
        score = train_without(cells, out, recipe, seed)
        raw[out] = score(cells.crops[out])
        if frames is not None:
            scores = score(frames["crops"]).astype(float)
            # A cell that was in training scores by the network that did not see it, any other by all of them.
            scores[[known.get(group, part) != part for group in frames["groups"]]] = np.nan
            of_frames.append(scores)
    auc, low, high = grouped_auc(cells.labels, raw, cells.groups)
    calibrated = cross_fit(cells.labels, raw, cells.groups)
    figures = {
        "set": name, "network": recipe.network, "seed": seed, "epochs": recipe.epochs, "folds": int(fold.max()) + 1,
        "auc": auc, "auc_low": low, "auc_high": high,
        "auc_folds": np.mean([area_under_roc(cells.labels[fold == k], raw[fold == k]) for k in set(fold.tolist())]),
        "ece_raw": expected_calibration_error(cells.labels, raw),
        "ece": expected_calibration_error(cells.labels, calibrated),
    }  # fmt: skip
    if frames is not None:
        figures |= _over_time(frames, np.nanmean(of_frames, axis=0))
        figures["auc_area"] = area_under_roc(cells.labels, frames["labelled_area"])
    figures["seconds"] = time.monotonic() - started
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}), flush=True)  # noqa: T201 — a script


def _over_time(frames: dict[str, NDArray[np.generic]], scores: NDArray[np.float64]) -> dict[str, float]:
    """Return Spearman's rank correlation with the hours of the mean score, and of the mean area, of each frame."""
    hours = np.unique(frames["hours"])
    means = [np.nanmean(scores[frames["hours"] == hour]) for hour in hours]
    areas = [frames["area"][frames["hours"] == hour].mean() for hour in hours]
    return {"rho": float(spearmanr(hours, means)[0]), "rho_area": float(spearmanr(hours, areas)[0])}


def speed() -> None:
    """Print cells per second of both networks by turns, of augmentation, and seconds per 20 000 cells and epoch."""
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (20_000, PX, PX)).astype(np.uint8)
    scorers = {name: compile_network(name, PX, get_weights(build_network(name, PX))) for name in RECIPES}
    rates: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(10):
        for name, score in scorers.items():
            rates[name].append(_rate(score, crops[:1536], NETWORKS[name].chunk))
    ratio = float(np.median(np.array(rates["compact"]) / np.array(rates["deep-sesmo"])))
    best = {f"{name}_cells_per_s": round(max(rate)) for name, rate in rates.items()}
    augmented = max(_rate(lambda chunk: augment(chunk, rng), crops[:6400], 64) for _ in range(5))
    labels = np.arange(len(crops)) % 2
    stamps = [time.monotonic()]
    train_network(
        crops, labels, np.arange(len(crops)) < 200, dataclasses.replace(RECIPES["compact"], epochs=3),
        progress=lambda *_: stamps.append(time.monotonic()),
    )  # fmt: skip
    figures = {**best, "ratio": round(ratio, 1), "augmented_per_s": round(augmented)}
    print(json.dumps({**figures, "epoch_s": round(float(np.diff(stamps)[1:].min()), 1)}), flush=True)  # noqa: T201


def _rate(work: Callable[[NDArray[np.uint8]], object], crops: NDArray[np.uint8], chunk: int) -> float:
    started = time.perf_counter()
    for start in range(0, len(crops), chunk):
        work(crops[start : start + chunk])
    return len(crops) / (time.perf_counter() - started)


def _cells(crops: NDArray[np.uint8], labels: NDArray[np.int_], groups: list[str]) -> LabelledCells:
    names = [str(number) for number in range(len(labels))]
    empty = [""] * len(labels)
    return LabelledCells(crops, labels, groups, names, names, empty, empty, "by declared group")


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["treated", "lines", "nuclei", "speed"])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--network", default="compact", choices=RECIPES)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--set", action="append", default=[], help="key=value of the recipe, as JSON")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    start_keras(given.threads)
    recipe = RECIPES[given.network]
    changes = {key: json.loads(value) for key, _, value in (item.partition("=") for item in given.set)}
    recipe = dataclasses.replace(recipe, **changes, **({"epochs": given.epochs} if given.epochs else {}))
    cv2.setNumThreads(given.threads or -1)
    for what in given.what:
        if what == "speed":
            speed()
            continue
        frames = None
        if what == "treated":
            cells, frames = treated()
        elif what == "lines":
            cells = single_cells("hek293a_vs_ht1080", "HT1080")
        else:
            cells = single_cells("senid_nuclei", "senescent")
        for seed in map(int, given.seeds.split(",")):
            measure(what, cells, recipe, given.folds, seed, frames)


if __name__ == "__main__":
    main()
