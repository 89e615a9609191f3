"""Make the shipped demonstration weights: `python -m sesmo_live.demo_weights OUT` (about ten minutes on two cores).

They are trained on the virtual microscope alone. The passport says so, and so does every command that scores with
them.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acquisition.simulator import level_at, training_fields
from models.convert import to_uint8
from models.cropper import crop_cells
from models.metrics import grouped_auc
from models.passport import write_model
from models.scorer import compile_network, score_in_chunks
from models.training import train_network
from sesmo_live.records import ModelPassport

WARNING = "DEMONSTRATION weights, trained on a virtual microscope, never on real cells: not for biological conclusions"
PIXEL_UM = 1.24
CONVERSION = "percentile-0.35-99.65"
CROPPER_SETTINGS = {"percentile": 5, "min_area_px": 50}
FIELDS, SHAPE, EPOCHS, SEED = 240, (512, 512), 20, 20_261_122


def labelled_crops(fields: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int_], list[str]]:
    """Return crops (uint8 N×50×50), labels (1: senescence level above 0.5) and the field of each crop.

    Crops that lie on no cell, as the original's cropper makes them too, have no truth and are left out.
    """
    crops, labels, groups = [], [], []
    for number, field in enumerate(training_fields(fields, seed, shape=SHAPE, pixel_um=PIXEL_UM)):
        found, centres = crop_cells(to_uint8(field.pixels, CONVERSION), **CROPPER_SETTINGS)  # type: ignore[arg-type]
        level = level_at(field, centres)
        known = ~np.isnan(level)
        crops.append(found[known])
        labels.append((level[known] > 0.5).astype(np.int_))
        groups += [f"field {number}"] * int(known.sum())
    return np.concatenate(crops), np.concatenate(labels), groups


def make(out: Path) -> ModelPassport:
    """Train on virtual fields, split by field, and write the model folder; float16 keeps it small."""
    crops, labels, groups = labelled_crops(FIELDS, SEED)
    print(f"{len(crops)} crops of {FIELDS} fields, {labels.mean():.0%} senescent", flush=True)  # noqa: T201 — a script
    trained = train_network(
        crops,
        labels,
        groups,
        epochs=EPOCHS,
        seed=SEED,
        cosine=True,
        progress=lambda epoch, figures: print(epoch, figures, flush=True),  # noqa: T201 — a script
    )
    weights = {name: array.astype(np.float16) for name, array in trained.weights.items()}
    stored = {name: array.astype(np.float32) for name, array in weights.items()}
    probabilities = score_in_chunks(compile_network("deep-sesmo", 50, stored), crops[trained.held_out], 128)
    auc, low, high = grouped_auc(trained.labels, probabilities, trained.groups, SEED)
    passport = ModelPassport(
        name="demo-deep-sesmo",
        version="1",
        network="deep-sesmo",
        input_px=50,
        pixel_um=PIXEL_UM,
        conversion=CONVERSION,
        cropper="deep-sesmo-either",
        cropper_settings=CROPPER_SETTINGS,
        threshold=0.5,
        weights_sha256="",
        demonstration=WARNING,
        training={
            "data": f"{FIELDS} fields of acquisition.simulator.training_fields, seed {SEED}; virtual cells only",
            "split": "by field: a fifth of the fields held out whole, scored once after the last epoch",
            "recipe": f"SGD 0.032 cosine, gradient norm 1, batch 128, {EPOCHS} epochs; rotation, shift, flip, gain",
            "made_by": "python -m sesmo_live.demo_weights",
            "n_trained": trained.n_trained,
        },
        metrics={
            "auc": round(auc, 4),
            "auc_low": None if low is None else round(low, 4),
            "auc_high": None if high is None else round(high, 4),
            "accuracy": round(float(((probabilities >= 0.5) == trained.labels).mean()), 4),
            "n_cells": len(trained.labels),
            "n_fields": len(set(trained.groups)),
            "interval": "95 %, bootstrap over held-out fields",
        },
    )
    return write_model(out, passport, weights)


if __name__ == "__main__":
    print(make(Path(sys.argv[1])).metrics)  # noqa: T201 — a script
