"""Make the shipped model of treated cells: `python -m tests.benchmarks.treated_weights OUT`; needs the shared images.

Cells of one docetaxel-treated well, early (0 to 10 h) against late (38 to 48 h); a cell's frames are never parted.
"""

import csv
import dataclasses
import re
import sys
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from acquisition.pictures import read_picture
from models.datasets import LabelledCells, Source, digest_of, gather
from models.fit import fit_model
from models.training import RECIPES
from sesmo_live.labelled import draft_passport
from tests.benchmarks.bench_learning import PX, TREATED

NAME = "treated-mdamb231"
WARNING = (
    "learned early from late hours of ONE docetaxel-treated well of MDA-MB-231 (quantitative phase): treated-cell "
    "enlargement, not verified senescence"
)
CELL_DIAMETER_PX = 30.0
"""The median of the labelled areas, as a circle's diameter."""


def cells() -> LabelledCells:
    """Return the labelled cells as crops around their centres, grouped by cell, with their frames as fields."""
    images = {
        int(re.findall(r"Phase-(\d+)", path.name)[0]): read_picture(path) for path in TREATED.glob("images/*.tif")
    }
    with (TREATED / "single_cell_time_labels.csv").open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["frame"]))
    sources = []
    for frame, items in groupby(rows, key=lambda row: int(row["frame"])):
        of_frame = list(items)
        padded = np.pad(images[frame], PX // 2, mode="edge")
        corners = [(int(float(row["cx"])), int(float(row["cy"]))) for row in of_frame]
        crops = np.array([padded[y : y + PX, x : x + PX] for x, y in corners], np.uint8)
        late = int(of_frame[0]["time_class"].startswith("late"))
        read, digest = partial(np.asarray, images[frame]), digest_of(images[frame])
        owners = [f"cell {row['cell_id']}" for row in of_frame]
        sources.append(Source(f"frame {frame}", late, crops, [digest], group=owners, read=read, stressor="docetaxel"))
    return gather(sources)


def main(out: Path) -> None:
    """Train and write the model folder."""
    draft = draft_passport(NAME, None)
    settings = {**draft.cropper_settings, "cell_diameter_px": CELL_DIAMETER_PX}
    draft = dataclasses.replace(draft, demonstration=WARNING, cropper_settings=settings)
    fitted = fit_model(
        cells(), RECIPES["compact"], draft, out, half=True, made_by="python -m tests.benchmarks.treated_weights"
    )
    print(fitted.passport.metrics)  # noqa: T201 — a script


if __name__ == "__main__":
    main(Path(sys.argv[1]))
