"""Make the shipped detector: `python -m sesmo_live.detector_weights SHARED_DATA OUT` (hours on two cores).

It learns from real phase contrast (T98G, instance masks), real quantitative phase (MDA-MB-231) and the virtual
microscope. Its passport reports cross-validation by field, and how a detector does that has never seen a modality.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from acquisition.pictures import read_picture
from acquisition.simulator import LabelledField, training_fields
from models.centres import Centres, find_centres
from models.detector_passport import DetectorPassport, detector_of, write_detector
from models.detector_samples import CELL_PX, from_masks
from models.detector_training import BATCH, train_detector
from models.heatmap import fold_batch_norm
from models.matching import Detection, Match, match_in_masks, summarize
from sesmo_live.records import Pixels

SEED, FOLDS = 20_261_123, 4
BASE_STEPS, STEPS = 2500, 3000
"""Steps without phase contrast, from which each detector that sees some goes on for so many more."""
THRESHOLDS = tuple(k / 100 for k in range(16, 62, 3))
"""Chances from which a peak may count as a cell."""
VIRTUAL = 90
SHARES = {"phase": 0.6, "quantitative": 0.12, "virtual": 0.28}
"""How often a training picture comes from each modality."""
FILM_STEP = 3
"""Every how manieth frame of the film is used; neighbours are nearly the same."""
BACKGROUND_GREY = 12
"""Grey value of quantitative phase above which a place without a label may be a cell that was cut off."""
DEVIATIONS = (0.75, 1.0, 1.33)
"""The declared diameter as a multiple of the true one, at which the detector is measured."""

Labels = NDArray[np.int32]
Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Field:
    """One labelled field: image and instance ids H×W, where labels are complete, its name, modality and group."""

    image: Pixels
    labels: Labels
    known: NDArray[np.bool_]
    name: str
    modality: str
    group: str

    @property
    def cell_px(self) -> float:
        """Return the median diameter of its cells, in px."""
        return median_diameter([self])


def median_diameter(fields: Sequence[Field]) -> float:
    """Return the median over all cells of 2·√(area/π), in px."""
    areas = np.concatenate([np.unique(field.labels[field.labels > 0], return_counts=True)[1] for field in fields])
    return float(2 * np.sqrt(np.median(areas) / np.pi))


def phase_fields(data: Path) -> list[Field]:
    """Return the eight phase-contrast fields of T98G cells."""
    fields = []
    for raw in sorted((data / "phase_instances" / "usiigaci_t98g").glob("*/raw.tif")):
        labels = read_picture(raw.with_name("instances_ids.png")).astype(np.int32)
        name = raw.parent.name
        fields.append(Field(tifffile.imread(raw), labels, np.ones(labels.shape, np.bool_), name, "phase", name))
    return fields


def film_fields(data: Path, step: int = FILM_STEP) -> list[Field]:
    """Return frames of the quantitative-phase film; outlines cut by the frame were dropped: not known there."""
    folder = data / "timelapse_treated" / "cellphe_mdamb231_docetaxel"
    fields = []
    for path in sorted((folder / "images").glob("*.tif"))[::step]:
        image = tifffile.imread(path)
        labels = tifffile.imread(folder / "labels" / f"{path.stem}_cellid.tif").astype(np.int32)
        fields.append(Field(image, labels, _labelled_places(image, labels), path.stem, "quantitative", "film"))
    return fields


def virtual_fields(n: int, seed: int) -> Iterator[Field]:
    """Yield `n` fields of the virtual microscope, a third of them at a higher magnification."""
    for pixel_um, count in ((1.24, n - n // 3), (0.7, n // 3)):
        for k, field in enumerate(training_fields(count, seed, shape=(384, 384), pixel_um=pixel_um)):
            labels = instance_ids(field)
            if labels.any():
                name = f"virtual {pixel_um} {k}"
                yield Field(field.pixels, labels, np.ones(labels.shape, np.bool_), name, "virtual", name)


def instance_ids(field: LabelledField) -> Labels:
    """Return which virtual cell each pixel shows (from 1; 0: none): the nearest in units of its outline."""
    height, width = field.pixels.shape
    nearest = np.ones((height, width), np.float32)
    ids = np.zeros((height, width), np.int32)
    for ident, ((x, y), outline) in enumerate(zip(field.centres, field.cells.outline, strict=True), 1):
        reach = int(outline.max() / field.pixel_um) + 2
        window = np.s_[max(0, int(y) - reach) : int(y) + reach + 1, max(0, int(x) - reach) : int(x) + reach + 1]
        rows, columns = np.mgrid[:height, :width][(slice(None), *window)]
        dx, dy = (columns - x) * field.pixel_um, (rows - y) * field.pixel_um
        turn = ((np.arctan2(dy, dx) + np.pi) * (outline.size / (2 * np.pi))).astype(np.int64) % outline.size
        rho = np.hypot(dx, dy) / outline[turn]
        closer = rho < nearest[window]
        nearest[window][closer] = rho[closer]
        ids[window][closer] = ident
    return ids


def train_on(fields: Sequence[Field], kept: Path, *, start: Weights | None = None, steps: int = STEPS) -> Weights:
    """Train on fields in the shares of their modalities, or take the weights that an earlier run left at `kept`.

    The weights keep their batch normalisation, so that another run can `start` from them.
    """
    if kept.is_file():
        with np.load(kept) as file:
            return dict(file)
    shares = [SHARES[field.modality] / sum(f.modality == field.modality for f in fields) for field in fields]
    samples = [from_masks(field.image, field.labels, field.group, known=field.known) for field in fields]
    weights = train_detector(
        samples,
        shares=shares,
        steps=steps,
        seed=SEED,
        start=start,
        folded=False,
        progress=lambda step, loss: print(f"{kept.stem}: step {step} of {steps}, loss {loss:.3f}", flush=True),  # noqa: T201 - a script
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.savez(kept, allow_pickle=False, **weights)
    return weights


def found_in(fields: Sequence[Field], weights: Weights, cell_diameter_px: float | None) -> list[Centres]:
    """Return all peaks of the detector with `weights` in each field, unlikely ones too; None lets it guess the size."""
    rounded = {name: array.astype(np.float16).astype(np.float32) for name, array in fold_batch_norm(weights).items()}
    model = detector_of("candidate", rounded, CELL_PX, THRESHOLDS[0])
    return [find_centres(field.image, cell_diameter_px=cell_diameter_px, model=model) for field in fields]


def match(field: Field, found: Centres, threshold: float) -> Match:
    """Match the centres above `threshold` with the cells of a field, leaving out places whose labels are not known."""
    xy = found.xy[found.scores >= threshold]
    at = np.rint(xy).astype(np.intp)
    return match_in_masks(xy[field.known[at[:, 1], at[:, 0]]], field.labels)


def best_threshold(fields: Sequence[Field], found: Sequence[Centres]) -> float:
    """Return the threshold of the highest F1 over the fields."""

    def f1(threshold: float) -> float:
        counts = [match(field, centres, threshold) for field, centres in zip(fields, found, strict=True)]
        hits = sum(count.hits for count in counts)
        return hits / max(1, sum(count.n_true + count.n_found for count in counts))

    return max(THRESHOLDS, key=f1)


def cross_validate(
    phase: Sequence[Field], others: Sequence[Field], base: Weights, runs: Path
) -> tuple[float, dict[str, Detection]]:
    """Return the threshold and how the phase fields are found by detectors that have not seen them, by declaration.

    Each fold is judged at the threshold that suits the other folds best.
    """
    line_px = median_diameter(phase)
    declared = {f"declared x{share:g}": share * line_px for share in DEVIATIONS} | {"undeclared": None}
    found: dict[str, list[Centres]] = {name: [] for name in declared}
    order: list[Field] = []
    for fold in range(FOLDS):
        held = list(phase[fold::FOLDS])
        seen = [field for field in phase if field.name not in {f.name for f in held}]
        weights = train_on([*seen, *others], runs / f"fold {fold}.npz", start=base)
        order += held
        for name, diameter in declared.items():
            found[name] += found_in(held, weights, diameter)
    folds = [k // (len(order) // FOLDS) for k in range(len(order))]
    results = {}
    for name, centres in found.items():
        thresholds = [best_threshold(*_others(order, found["declared x1"], folds, fold)) for fold in sorted(set(folds))]
        results[name] = summarize(
            [match(f, c, thresholds[fold]) for f, c, fold in zip(order, centres, folds, strict=True)]
        )
    return best_threshold(order, found["declared x1"]), results


def _others(
    fields: Sequence[Field], found: Sequence[Centres], folds: Sequence[int], fold: int
) -> tuple[list[Field], list[Centres]]:
    """Return what was found in the fields of the other folds."""
    kept = [k for k, own in enumerate(folds) if own != fold]
    return [fields[k] for k in kept], [found[k] for k in kept]


def on_unseen(held: Sequence[Field], weights: Weights, threshold: float) -> dict[str, Detection]:
    """Return how fields are found by a detector that was trained on other modalities alone."""
    results = {}
    for name, diameter in (("declared", median_diameter(held)), ("undeclared", None)):
        found = found_in(held, weights, diameter)
        matches = [match(field, centres, threshold) for field, centres in zip(held, found, strict=True)]
        results[name] = summarize(matches, [field.group for field in held])
    return results


def make(data: Path, out: Path) -> DetectorPassport:
    """Cross-validate, train on everything, and write the detector folder; runs beside it are taken up again."""
    runs = out.with_name(f"{out.name}-runs")
    phase, film = phase_fields(data), film_fields(data)
    virtual = list(virtual_fields(VIRTUAL, SEED))
    base = train_on([*film, *virtual], runs / "without phase.npz", steps=BASE_STEPS)
    threshold, results = cross_validate(phase, [*film, *virtual], base, runs)
    weights = train_on([*phase, *film, *virtual], runs / "all.npz", start=base)
    without_film = train_on([*phase, *virtual], runs / "without quantitative.npz")
    metrics: dict[str, Any] = {
        "T98G phase contrast, fields not trained on": _figures(results),
        "T98G phase contrast, never trained on": _figures(on_unseen(phase, base, threshold)),
        "MDA-MB-231 quantitative phase, never trained on": _figures(on_unseen(film, without_film, threshold)),
        "interval": "95 %, bootstrap over fields; a film counts as one field and has none",
        "count_error": "mean over fields of |found - true| / true",
    }
    passport = DetectorPassport(
        name="centres",
        version="1",
        network="centre-unet",
        cell_px=CELL_PX,
        threshold=threshold,
        weights_sha256="",
        training={
            "data": f"{len(phase)} phase-contrast fields of T98G cells (oist/Usiigaci, MIT), {len(film)} frames of one "
            "quantitative-phase film of treated MDA-MB-231 cells (uoy-research/CellPhePy, MIT), "
            f"{len(virtual)} fields of acquisition.simulator; pictures without cells among them",
            "split": f"metrics: {FOLDS} folds by field, threshold from the other folds; the weights: trained on all",
            "recipe": f"AdamW, {BASE_STEPS} steps without phase contrast, {STEPS} with it of {BATCH}; seed {SEED}",
            "made_by": "python -m sesmo_live.detector_weights",
        },
        metrics=metrics,
    )
    return write_detector(out, passport, fold_batch_norm(weights))


def _figures(results: Mapping[str, Detection]) -> dict[str, Any]:
    """Return results as JSON holds them: value, low and high to three digits."""
    return {
        name: {
            **{
                key: [None if figure is None else round(figure, 3) for figure in asdict(getattr(result, key)).values()]
                for key in ("f1", "precision", "recall", "count_error")
            },
            "n_fields": result.n_fields,
            "n_cells": result.n_cells,
        }
        for name, result in results.items()
    }


def _labelled_places(image: Pixels, labels: Labels) -> NDArray[np.bool_]:
    """Return where labels are complete: not where something bright lies outside every outline."""
    bright = cv2.GaussianBlur(image, (0, 0), 1.5) > BACKGROUND_GREY
    outlined = cv2.dilate((labels > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    loose = cv2.morphologyEx((bright & ~outlined).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return np.asarray((cv2.dilate(loose, np.ones((9, 9), np.uint8)) == 0) | (labels > 0))


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), Path(sys.argv[2])).metrics)  # noqa: T201 — a script
