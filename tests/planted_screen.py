"""A screening plate of known effects, for the tests of the pages and the API: 96 wells, controls in two columns."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from db import scores
from db.engine import open_engine
from sesmo_live.records import CellScores, ImageFile, Site, Treatment
from tests.screens import PASSPORT, add_image, add_plate

ROWS = "ABCDEFGH"
DOSES = (0.1, 1.0, 10.0, 100.0)
TREATMENTS = (
    *(Treatment(f"{row}01", "DMSO", "negative") for row in ROWS),
    *(Treatment(f"{row}12", "etoposide", "positive", 10.0, "µM", 10.0) for row in ROWS[:4]),
    *(Treatment(f"A{place:02d}", "nutlin", "treatment", dose, "µM", dose) for place, dose in enumerate(DOSES, 2)),
    *(Treatment(f"B{place:02d}", "nutlin", "treatment", dose, "µM", dose) for place, dose in enumerate(DOSES, 2)),
    *(Treatment(f"C{place:02d}", "metformin", "treatment", dose, "µM", dose) for place, dose in enumerate(DOSES, 2)),
)
LEAVING = {"A04", "A05", "B04", "B05"}
"""Wells of nutlin above its EC50 of about 3 µM."""
TIMES = 4
OTHER = replace(PASSPORT, name="other")


def effect(treatment: Treatment, timepoint: int) -> float:
    """Return what a treatment adds to the mean score from the second time point on."""
    if timepoint == 0 or treatment.role == "negative" or treatment.compound == "metformin":
        return 0.0
    return 0.5 if treatment.role == "positive" else 0.5 / (1 + (3.0 / (treatment.dose or 0.0)) ** 2)


def add_screen(db: Path, name: str = "SCREEN", *, times: int = TIMES, both_models: bool = False) -> int:
    """Write the plate as the service does, two fields a well, and return its key."""
    plate = add_plate(db, name, wells=(), times=0, size=96, treatments=TREATMENTS)
    engine = open_engine(db, write=True, checkpoint=False)
    with engine.begin() as connection:
        models = [(scores.ensure_model(connection, one), one) for one in (PASSPORT, OTHER)[: 1 + both_models]]
        for timepoint in range(times):
            for number, item in enumerate(TREATMENTS):
                for field in (1, 2):
                    rng = np.random.default_rng([number, timepoint, field])
                    image = add_image(connection, plate, name, item.well, field, timepoint)
                    mean = 0.2 + effect(item, timepoint) + rng.normal(0, 0.004)
                    values = rng.beta(60 * mean, 60 * (1 - mean), 12).astype(np.float32)
                    file = ImageFile(Path(f"{item.well}.tif"), 0, Site(name, item.well, field, timepoint), 1, 1)
                    for key, passport in models:
                        found = CellScores(file, values, rng.uniform(30, 220, (12, 2)), passport.model_id)
                        scores.save_scores(connection, image, key, found, 0.5, {"coverage": 0.4})
    engine.dispose()
    return plate
