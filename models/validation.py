"""Measure a model on labelled cells: every figure with an interval over groups, all and by plate and stressor."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.datasets import LabelledCells
from models.metrics import Measured, confusion, measure
from models.passport import read_passport
from sesmo_live.errors import ModelError
from sesmo_live.records import ModelPassport

TRAINING_PICTURES = "training_pictures.txt"
"""Beside a passport: one hash a line of the pictures that were seen in training."""

FIGURES = ("auc", "f1", "accuracy", "precision", "recall", "ece")


@dataclass(frozen=True, slots=True)
class Validation:
    """Cells with their calibrated scores, what was measured on them, and the same by plate and stressor (`parts`)."""

    cells: LabelledCells
    scores: NDArray[np.floating]
    threshold: float
    figures: dict[str, Measured]
    confusion: dict[str, int]
    parts: list[dict[str, Any]]
    notes: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """Return all figures as one flat mapping: `auc`, `auc_low`, `auc_high` and so on, None where unknown."""
        n = {"n": len(self.cells), "groups": len(set(self.cells.groups))}
        return {**flat(self.figures), "confusion": self.confusion, **n, "threshold": self.threshold}


def validate_model(folder: Path, cells: LabelledCells, *, seed: int = 0) -> Validation:
    """Score labelled cells with the model in `folder` and measure; `notes` say what must be known with the figures.

    Raises ModelError where the model cannot be trusted.
    """
    passport = read_passport(folder)
    from models.scorer import Scorer  # TensorFlow takes seconds to load

    scores = Scorer(folder).score(cells.crops)
    notes = [*cells.notes, *seen_in_training(folder, passport, cells.digests)]
    if passport.demonstration:
        notes.append(f"model {passport.model_id}: {passport.demonstration}")
    return evaluate(cells, scores, passport.threshold, notes=notes, seed=seed)


def evaluate(
    cells: LabelledCells,
    scores: NDArray[np.floating],
    threshold: float,
    *,
    notes: Sequence[str] = (),
    seed: int = 0,
) -> Validation:
    """Measure calibrated scores (N) of labelled cells; intervals are 95 %, bootstrap over the cells' groups."""
    figures = measure(cells.labels, scores, cells.groups, threshold, seed)
    said = [*notes]
    if figures["auc"].low is None:
        said.append("a class has cells of one group only, so that there are no intervals; add plates, wells or fields")
    return Validation(
        cells,
        scores,
        threshold,
        figures,
        confusion(cells.labels, scores >= threshold),
        [*_parts("plate", cells, scores, threshold, seed), *_parts("stressor", cells, scores, threshold, seed)],
        tuple(dict.fromkeys(said)),
    )


def write_training_pictures(folder: Path, digests: Sequence[str]) -> None:
    """Write the hashes of the pictures that a model was made from beside its passport."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRAINING_PICTURES).write_text("\n".join(sorted(set(digests))) + "\n", encoding="ascii")


def training_pictures(folder: Path) -> set[str] | None:
    """Return the hashes of the pictures that a model was made from, None where it does not say.

    Raises ModelError for a list that cannot be read.
    """
    try:
        return set((folder / TRAINING_PICTURES).read_text(encoding="ascii").split())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / TRAINING_PICTURES} cannot be read ({error}); install the model anew") from error


def seen_in_training(folder: Path, passport: ModelPassport, digests: Sequence[str]) -> list[str]:
    """Return a warning where pictures were in the model's training, or where that cannot be known."""
    known = training_pictures(folder)
    if known is None:
        return [f"model {passport.name} does not say which pictures it was trained on; make sure that these are new"]
    pictures = set(digests)
    both = len(known & pictures)
    if not both:
        return []
    return [
        f"{both} of {len(pictures)} pictures were in the training of model {passport.name}: these figures flatter it; "
        "validate on plates that it has not seen"
    ]


def flat(figures: Mapping[str, Measured], digits: int = 4) -> dict[str, float | None]:
    """Return figures as `name`, `name_low`, `name_high`, rounded; None for what has no meaning."""
    row: dict[str, float | None] = {}
    for name, figure in figures.items():
        for suffix, value in (("", figure.value), ("_low", figure.low), ("_high", figure.high)):
            row[name + suffix] = None if value is None or not np.isfinite(value) else round(value, digits)
    return row


def select(cells: LabelledCells, chosen: NDArray[np.bool_]) -> LabelledCells:
    """Return the chosen cells (a mask over all)."""

    def pick(values: list[str]) -> list[str]:
        return [value for value, taken in zip(values, chosen, strict=True) if taken]

    return dataclasses.replace(
        cells,
        crops=cells.crops[chosen],
        labels=cells.labels[chosen],
        groups=pick(cells.groups),
        pictures=pick(cells.pictures),
        digests=pick(cells.digests),
        plates=pick(cells.plates),
        stressors=pick(cells.stressors),
    )


def _parts(
    kind: str, cells: LabelledCells, scores: NDArray[np.floating], threshold: float, seed: int
) -> list[dict[str, Any]]:
    """Return figures of each plate, or of each stressor's senescent cells against all healthy ones."""
    values = np.asarray(cells.plates if kind == "plate" else cells.stressors, str)
    senescent = cells.labels == 1
    names = sorted(set(values if kind == "plate" else values[senescent]) - {""})
    if len(names) < 2:
        return []
    rows = []
    for name in names:
        chosen = values == name if kind == "plate" else ((values == name) & senescent) | ~senescent
        labels = cells.labels[chosen]
        row: dict[str, Any] = {"part": kind, "name": str(name), "n": len(labels), "n_senescent": int(labels.sum())}
        figures: dict[str, float | None] = dict.fromkeys(
            f"{figure}{end}" for figure in FIGURES for end in ("", "_low", "_high")
        )
        if len(set(labels.tolist())) == 2:
            groups = [group for group, taken in zip(cells.groups, chosen, strict=True) if taken]
            figures |= flat(measure(labels, scores[chosen], groups, threshold, seed))
        rows.append(row | figures)
    return rows
