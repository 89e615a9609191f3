"""How answers and disk grow with cells, wells, time points and plates: the slopes of docs/scaling.md.

Run `python -m tests.benchmarks.bench_growth`. Each line varies one number of a plate of 384 wells × 12 time points × 4
fields × 75 cells. Times are medians of whole answers on SQLite, in ms.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from db.engine import open_reader
from sesmo_live import overview, results
from sesmo_live.screens import plate_statistics
from tests.benchmarks.bench_database import middle_ms
from tests.benchmarks.bench_web import fill

BASE = {"wells": 384, "times": 12, "fields": 4, "cells": 75, "plates": 1}
VARIED: dict[str, tuple[int, ...]] = {
    "cells": (1, 75, 300),
    "fields": (1, 4, 9),
    "times": (12, 48, 96),
    "wells": (96, 384, 1536),
    "plates": (1, 10, 40),
}


def line(folder: Path, shape: dict[str, int]) -> dict[str, Any]:
    """Return the size and the times of a database of this shape."""
    db = folder / "growth.db"
    cells = fill(db, **shape)
    engine = open_reader(db)
    found = {
        "cells": cells,
        "MiB": db.stat().st_size / 2**20,
        "well course": middle_ms(lambda: results.timecourse(engine, "BENCH1", "C05"), 7),
        "heat map": middle_ms(lambda: results.plate_table(engine, "BENCH1"), 7),
        "plate course": middle_ms(lambda: results.timecourse(engine, "BENCH1"), 3),
        "statistics": middle_ms(lambda: plate_statistics(engine, "BENCH1"), 3),
        "plates": middle_ms(lambda: overview.plates(engine), 7),
    }
    engine.dispose()
    db.unlink()
    return found


def parquet_mib(folder: Path, cells: int = 1_000_000) -> float:
    """Return the MiB of a million cells as Parquet (zstd): place and score as float32, as precise as they are."""
    rng = np.random.default_rng(1)
    table = pa.table(
        {
            "image_id": np.repeat(np.arange(cells // 75 + 1), 75)[:cells],
            "idx": (np.arange(cells) % 75).astype(np.int16),
            "x": rng.uniform(0, 2048, cells).round(2).astype(np.float32),
            "y": rng.uniform(0, 2048, cells).round(2).astype(np.float32),
            "score": rng.random(cells, np.float32),
        }
    )
    path = folder / "cells.parquet"
    pq.write_table(table, path, compression="zstd")
    return path.stat().st_size / 2**20


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"a million cells as Parquet: {parquet_mib(folder):.1f} MiB")  # noqa: T201
        for varied, values in VARIED.items():
            for value in values:
                shape = {**BASE, varied: value}
                if varied == "plates":
                    shape |= {"wells": 96}
                row = line(folder, shape)
                told = "  ".join(f"{key} {number:,.1f}" for key, number in row.items())
                print(f"{varied:7s} {value:5d}: {told}")  # noqa: T201


if __name__ == "__main__":
    main()
