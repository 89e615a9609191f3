"""Make the shipped demonstration weights: `python -m sesmo_live.demo_weights OUT [compact|deep-sesmo]`.

It takes about ten minutes on two quiet cores. They are trained on the virtual microscope alone. The passport says so,
and so does every command that scores with them.
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import numpy as np

from acquisition.simulator import level_at, training_fields
from models.convert import to_uint8
from models.cropper import crop_cells
from models.datasets import LabelledCells, Source, digest_of, gather
from models.fit import fit_model
from models.training import RECIPES
from models.validation import write_training_pictures
from sesmo_live.records import ModelPassport

WARNING = "DEMONSTRATION weights, trained on a virtual microscope, never on real cells: not for biological conclusions"
PIXEL_UM = 1.24
CONVERSION = "percentile-0.35-99.65"
CROPPER_SETTINGS = {"percentile": 5, "min_area_px": 50}
FIELDS, SHAPE, SEED = 240, (512, 512), 20_261_122
RECIPE = {
    "deep-sesmo": dataclasses.replace(RECIPES["deep-sesmo"], cosine=True, epochs=20, keep_best=True),
    "compact": dataclasses.replace(RECIPES["compact"], epochs=20, batch=128),
}
"""Fewer epochs than for real cells: virtual ones are many and plain."""


def labelled_crops(fields: int, seed: int) -> LabelledCells:
    """Return crops with their labels (1: senescence level above 0.5), grouped by field.

    Crops that lie on no cell, as the original's cropper makes them too, have no truth and are left out.
    """
    sources = []
    for number, field in enumerate(training_fields(fields, seed, shape=SHAPE, pixel_um=PIXEL_UM)):
        found, centres = crop_cells(to_uint8(field.pixels, CONVERSION), **CROPPER_SETTINGS)  # type: ignore[arg-type]
        level = level_at(field, centres)
        for label in (0, 1):
            chosen = ~np.isnan(level) & ((level > 0.5) == label)
            name, digests = f"field {number}", [f"{digest_of(field.pixels)}-{label}"]
            group = [name] * int(chosen.sum())
            read = partial(np.asarray, field.pixels)
            sources.append(Source(name, label, found[chosen], digests, group=group, read=read))
    return gather(sources)


def make(out: Path, network: str = "compact") -> ModelPassport:
    """Train on virtual fields, split by field, and write the model folder; float16 keeps it small."""
    cells = labelled_crops(FIELDS, SEED)
    print(f"{len(cells)} crops of {FIELDS} fields, {cells.labels.mean():.0%} senescent", flush=True)  # noqa: T201 — a script
    draft = ModelPassport(
        name=f"demo-{network}",
        version="1",
        network=network,
        input_px=50,
        pixel_um=PIXEL_UM,
        conversion=CONVERSION,
        cropper="deep-sesmo-either",
        cropper_settings=CROPPER_SETTINGS,
        threshold=0.5,
        weights_sha256="",
        demonstration=WARNING,
    )
    fitted = fit_model(
        cells,
        RECIPE[network],
        draft,
        out,
        seed=SEED,
        half=True,
        made_by=f"python -m sesmo_live.demo_weights ({FIELDS} fields of acquisition.simulator.training_fields)",
        progress=lambda epoch, figures: print(epoch, figures, flush=True),  # noqa: T201 — a script
    )
    # A field gives cells of both classes, so the label stood behind its hash.
    write_training_pictures(out, [digest.partition("-")[0] for digest in cells.digests])
    return fitted.passport


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), *sys.argv[2:3]).metrics)  # noqa: T201 — a script
