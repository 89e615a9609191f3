"""From labelled cells to a model folder: split, train, calibrate, choose the threshold, measure, write."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.calibration import calibrate, choose_threshold, cross_fit, fit_calibration
from models.datasets import LABELS, LabelledCells
from models.network import NETWORKS
from models.passport import PASSPORT, find_model, read_passport, read_weights, write_model
from models.refusal import reference_of, reference_of_crops
from models.report import write_report
from models.scorer import compile_network, score_in_chunks
from models.splits import Split, split_cells
from models.training import Progress, Recipe, Trained, train_network
from models.validation import (
    Validation,
    evaluate,
    seen_in_training,
    select,
    training_pictures,
    write_training_pictures,
)
from sesmo_live.errors import ModelError
from sesmo_live.records import ModelPassport

CHECKPOINT = "checkpoint.npz"
HELD_OUT = 0.2
"""Share of the groups that choose epoch, calibration and threshold, and as many again that are only measured on."""

REFERENCE_FIELDS = 200
"""So many training fields are read again at most, evenly picked, to learn how a fit image looks."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model that was written, and how it does on cells that it was not trained on."""

    passport: ModelPassport
    result: Validation
    files: list[str]


def fit_model(
    cells: LabelledCells,
    recipe: Recipe,
    draft: ModelPassport,
    out: Path,
    *,
    seed: int = 0,
    half: bool = False,
    made_by: str = "sesmo-live train",
    progress: Progress | None = None,
) -> Fitted:
    """Train on labelled cells and write the model folder `out` with its report; an unfinished training goes on.

    `draft` gives name, version, scale, conversion and cropper; network, input size, threshold, calibration, training,
    metrics and reference are filled in. `half` stores the weights as float16. Raises UsageError for cells that cannot
    be split and ModelError where `out` holds a model already.
    """
    if (out / PASSPORT).exists():
        raise ModelError(f"{out} holds a model already; choose another folder or delete this one first")
    split = split_cells(cells.labels, cells.groups, HELD_OUT, seed)
    known = np.flatnonzero(~split.test)
    trained = train_network(
        cells.crops[known],
        cells.labels[known],
        split.held_out[known],
        recipe,
        seed=seed,
        progress=progress,
        checkpoint=out / CHECKPOINT,
    )
    weights: dict[str, NDArray[Any]] = dict(trained.weights)
    if half:
        weights = {name: array.astype(np.float16) for name, array in weights.items()}
    known_before, notes = _begun_from(recipe, [*select(cells, ~split.train).digests])
    cells = dataclasses.replace(cells, notes=(*cells.notes, *notes))
    calibration, threshold, result, measured_on = _judge(cells, split, recipe.network, weights, seed)
    passport = dataclasses.replace(
        draft,
        network=recipe.network,
        input_px=int(cells.crops.shape[1]),
        threshold=threshold,
        calibration=calibration,
        training=_account(cells, split, recipe, trained, seed, made_by),
        metrics={**result.row(), "measured_on": measured_on, **_interval(result, cells.split)},
        reference=_reference(select(cells, split.train)),
    )
    write_training_pictures(out, [*cells.digests, *known_before])
    files = write_report(out, result, title=f"Model {draft.name}", history=trained.history)
    passport = write_model(out, passport, weights)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return Fitted(passport, result, files)


def recalibrate(folder: Path, cells: LabelledCells, out: Path, *, seed: int = 0) -> Fitted:
    """Write the model in `folder` to `out` with calibration and threshold fitted to these cells, weights unchanged.

    The figures are of cells whose group was left out of the fit. Raises ModelError for a model that cannot be
    trusted or an `out` that holds one already.
    """
    passport = read_passport(folder)
    weights = read_weights(folder, passport)
    if (out / PASSPORT).exists():
        raise ModelError(f"{out} holds a model already; choose another folder or delete this one first")
    raw = _raw(passport.network, weights, cells.crops)
    crossed, fitted_on = _crossed(cells.labels, raw, cells.groups, seed)
    calibration = fit_calibration(cells.labels, raw, cells.groups, seed)
    threshold = choose_threshold(cells.labels, calibrate(raw, calibration), cells.groups, seed)
    said = f"these cells also chose the threshold; their scores were calibrated on {fitted_on}"
    notes = (*cells.notes, said, *seen_in_training(folder, passport, cells.digests))
    result = evaluate(cells, crossed, threshold, notes=notes, seed=seed)
    own = {**result.row(), "measured_on": fitted_on, "split": cells.split, "was": dict(passport.calibration)}
    passport = dataclasses.replace(
        passport,
        version=f"{passport.version}-calibrated",
        threshold=threshold,
        calibration=calibration,
        metrics={**passport.metrics, "calibrated_on": own},
    )
    pictures = folder / "training_pictures.txt"
    if pictures.is_file():
        write_training_pictures(out, pictures.read_text(encoding="ascii").split())
    files = write_report(out, result, title=f"Calibration of model {passport.name}")
    exact = all((array == array.astype(np.float16)).all() for array in weights.values())
    stored = {name: array.astype(np.float16) for name, array in weights.items()} if exact else weights
    return Fitted(write_model(out, passport, stored), result, files)


def _judge(
    cells: LabelledCells, split: Split, network: str, weights: dict[str, NDArray[Any]], seed: int
) -> tuple[dict[str, Any], float, Validation, str]:
    """Return calibration and threshold from the held-out groups, figures, and in words which cells these are of."""
    held_out = select(cells, split.held_out)
    raw = _raw(network, weights, held_out.crops)
    calibration = fit_calibration(held_out.labels, raw, held_out.groups, seed)
    threshold = choose_threshold(held_out.labels, calibrate(raw, calibration), held_out.groups, seed)
    if split.test.any():
        tested = select(cells, split.test)
        final = calibrate(_raw(network, weights, tested.crops), calibration)
        result = evaluate(tested, final, threshold, notes=cells.notes, seed=seed)
        return calibration, threshold, result, "groups that chose nothing"
    scores, fitted_on = _crossed(held_out.labels, raw, held_out.groups, seed)
    chose = f"the groups that also chose epoch and threshold, calibrated on {fitted_on}"
    notes = (*cells.notes, f"there are too few groups to keep some for the figures alone: they are of {chose}")
    return calibration, threshold, evaluate(held_out, scores, threshold, notes=notes, seed=seed), chose


def _begun_from(recipe: Recipe, digests: Sequence[str]) -> tuple[set[str], list[str]]:
    """Return the pictures that the model was trained on from which training began, and what must be said of them."""
    if not recipe.start:
        return set(), []
    folder = find_model(recipe.start)
    return training_pictures(folder) or set(), seen_in_training(folder, read_passport(folder), digests)


def _interval(result: Validation, split: str) -> dict[str, str]:
    return {} if result.figures["auc"].low is None else {"interval": f"95 %, bootstrap {split}"}


def _crossed(
    labels: NDArray[np.int_], raw: NDArray[np.float32], groups: Sequence[str], seed: int
) -> tuple[NDArray[np.floating], str]:
    """Return scores calibrated on other groups than their own, as far as there are others."""
    names = np.asarray(groups, str)
    if min(len(set(names[labels == label])) for label in (0, 1)) >= 2:
        return cross_fit(labels, raw, groups, seed=seed), "groups that were left out of the fit in turn"
    return calibrate(raw, fit_calibration(labels, raw, groups, seed)), "the cells of the fit itself (too few groups)"


def _raw(network: str, weights: dict[str, NDArray[Any]], crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return uncalibrated scores, from weights as they are stored."""
    whole = {name: array.astype(np.float32) for name, array in weights.items()}
    return score_in_chunks(compile_network(network, crops.shape[1], whole), crops, NETWORKS[network].chunk)


def _account(
    cells: LabelledCells, split: Split, recipe: Recipe, trained: Trained, seed: int, made_by: str
) -> dict[str, Any]:
    """Return what a passport says of its training."""
    parts = {"trained": split.train, "held_out": split.held_out, "tested": split.test}
    counts: dict[str, Any] = {}
    for name, part in parts.items():
        counts[f"n_{name}"] = int(part.sum())
        counts[f"groups_{name}"] = len({group for group, inside in zip(cells.groups, part, strict=True) if inside})
    return {
        "data": ", ".join(f"{int((cells.labels == label).sum())} {name} cells" for label, name in enumerate(LABELS)),
        "pictures": len(set(cells.digests)),
        "plates": sorted(set(cells.plates) - {""})[:50],
        "stressors": sorted(set(cells.stressors) - {""})[:50],
        "split": f"{cells.split}; groups are never parted",
        **counts,
        "recipe": dataclasses.asdict(recipe),
        "started_from": read_passport(find_model(recipe.start)).model_id if recipe.start else "random weights",
        "seed": seed,
        "epochs_run": len(trained.history),
        "epoch_kept": trained.best_epoch,
        "made_by": made_by,
        "notes": list(cells.notes),
    }


def _reference(cells: LabelledCells) -> dict[str, Any]:
    """Return the statistics by which later fields are found to be like these or not: of fields, else of crops."""
    if not set(cells.pictures) <= cells.fields.keys():
        return reference_of_crops(cells.crops, cells.groups)
    pictures = np.asarray(cells.pictures)
    names = np.unique(pictures)
    chosen = names[np.unique(np.linspace(0, len(names) - 1, min(len(names), REFERENCE_FIELDS)).astype(int))]
    fields = ((cells.fields[str(name)](), cells.crops[pictures == name]) for name in chosen)
    return reference_of(fields, scale=cells.scale)
