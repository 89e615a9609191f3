"""Planted plates in a real database, without images or a network: rows as the service would have written them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine, insert, select

from db.care import upgrade
from db.engine import open_engine
from db.plates import import_treatments
from db.schema import Cell, FieldScore, Image, Model, Plate
from sesmo_live.records import Treatment
from tests.planted import Fields

START = datetime(2026, 3, 28, 12, tzinfo=UTC)
"""The first look: the night after it Berlin's clocks go forward."""


def open_store(path: Path, models: Sequence[str] = ("mine-1-aaaaaaaa",)) -> Engine:
    """Return a new database that knows these models."""
    upgrade(path)
    engine = open_engine(path, write=True)
    with engine.begin() as connection:
        for name in models:
            passport = {"network": "compact", "cropper": "centres", "weights_sha256": "00ff", "threshold": 0.5}
            values = {"model_id": name, "demonstration": "", "passport": passport, "added_at": START}
            connection.execute(insert(Model).values(**values))
    return engine


def add_plate(
    engine: Engine,
    name: str,
    wells: Sequence[str],
    fields: Fields,
    treatments: Sequence[Treatment] = (),
    *,
    model: int = 1,
    hours: float = 4.0,
    run: str = "1",
) -> int:
    """Store a plate (wells × looks × fields) as scored every `hours`, with its plate map; return its key."""
    with engine.begin() as connection:
        values = {"name": name, "key": name.casefold(), "run": run, "channels": {}, "planes": [0], "created_at": START}
        plate = connection.execute(insert(Plate).values(**values).returning(Plate.id)).scalar_one()
        first = (connection.execute(select(Image.id).order_by(Image.id.desc()).limit(1)).scalar() or 0) + 1
        places = list(np.ndindex(fields.cells.shape))
        images = [
            {
                "id": first + number, "path": f"/acq/{name}-{run}/{wells[well]}_{field}_{look}.tif", "name": "x.tif",
                "page": 0, "plate_id": plate, "well": wells[well], "field": field, "timepoint": look + 1,
                "channel": "Phase", "size": 1, "mtime_ns": 1, "state": "scored", "seen_at": START,
                "acquired_at": START + timedelta(hours=hours * look), "acquired_from": "metadata",
            }
            for number, (well, look, field) in enumerate(places)
        ]  # fmt: skip
        connection.execute(insert(Image), images)
        _score(connection, first, places, fields, model)
    if treatments:
        with engine.begin() as connection:
            import_treatments(connection, name, list(treatments))
    return int(plate)


def add_scores(engine: Engine, plate: int, fields: Fields, model: int) -> None:
    """Store the scores of another model for a plate that is there."""
    with engine.begin() as connection:
        first = connection.execute(select(Image.id).where(Image.plate_id == plate).order_by(Image.id)).scalars().first()
        _score(connection, first or 0, list(np.ndindex(fields.cells.shape)), fields, model)


def _score(connection: Any, first: int, places: Sequence[tuple[int, ...]], fields: Fields, model: int) -> None:
    rows = [
        {
            "image_id": first + number, "model_id": model, "n": int(fields.cells[place]),
            "sum": float(fields.scores[place]), "sum_sq": float(fields.scores[place]),
            "n_over": int(fields.senescent[place]), "histogram": [0] * 32, "quality": {"coverage": 0.25},
            "scored_at": START + timedelta(hours=model),
        }
        for number, place in enumerate(places)
    ]  # fmt: skip
    connection.execute(insert(FieldScore), rows)


def add_cells(engine: Engine, image: int, scores: Sequence[float], model: int = 1) -> None:
    """Store the cells of one image."""
    rows = [
        {"image_id": image, "model_id": model, "idx": idx, "x": 10.0 * idx, "y": 5.0, "score": score}
        for idx, score in enumerate(scores)
    ]
    with engine.begin() as connection:
        connection.execute(insert(Cell), rows)


WELLS_96 = [f"{row}{column:02d}" for row in "ABCDEFGH" for column in range(1, 13)]
DOSES_UM = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def plate_map_96() -> list[Treatment]:
    """Return a map: column 1 DMSO, column 12 the positive control, five compounds in eight doses, twice each."""
    treatments = []
    for well in WELLS_96:
        row, column = "ABCDEFGH".index(well[0]), int(well[1:])
        when = START + timedelta(hours=4)
        if column in (1, 12):
            name, role = ("DMSO", "negative") if column == 1 else ("Etoposide", "positive")
            treatments.append(Treatment(well, name, "negative" if role == "negative" else "positive", treated_at=when))
        else:
            dose = DOSES_UM[row]
            name = f"Compound {'ABCDE'[(column - 2) // 2]}"
            treatments.append(Treatment(well, name, "treatment", dose, "µM", dose, when))
    return treatments


EC50_UM = {"Compound A": 0.2, "Compound B": 2.0}
"""The compounds that do anything; Compound B is told by its alias, too."""


def planted_96(looks: int = 6, top: float = 0.7) -> Any:
    """Return the planted fraction of senescent cells of `plate_map_96`, wells × looks; effects set in at the third."""
    course = np.zeros((96, looks))
    late = np.clip((np.arange(looks) - 1) / 2, 0, 1)
    for place, item in enumerate(plate_map_96()):
        ec50 = EC50_UM.get(item.compound)
        share = 1.0 if item.role == "positive" else 0.0
        if ec50 and item.dose_um:
            share = item.dose_um**1.5 / (item.dose_um**1.5 + ec50**1.5)
        course[place] = 0.08 + (top - 0.08) * share * late
    return course
