"""How fast SQLite answers and takes cells when it holds 10 million of them.

Run `python -m tests.benchmarks.bench_database [--db FILE]`; the database is made when FILE is not there (30 s), of one
384-well plate with 88 time points, or of `--plates` smaller ones. Times are medians; the queries alone and the whole
answers, with intervals and notes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from db import queries
from db.engine import open_engine, open_reader
from db.ledger import insert_images
from db.scores import save_scores
from sesmo_live import results
from sesmo_live.records import CellScores, ImageFile, Site
from tests.benchmarks.bench_web import fill

FIELDS = 64
"""Fields in a group commit."""


def middle_ms(work: Callable[[], Any], times: int = 15) -> float:
    """Return the median time of a call in ms."""
    work()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e3


def questions(db: Path, plate: str) -> dict[str, tuple[float, float]]:
    """Return, by question, ms of the query alone and of the whole answer."""
    engine = open_reader(db)
    with engine.connect() as connection:
        found, _ = results.find_plate(connection, plate)
        chosen, _ = results.pick_model(connection, found)
        assert chosen
        key = chosen[0]
        last = queries.last_timepoints(connection, found.plate_id, 1)[0]
        asked: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "well time course": (
                lambda: list(queries.well_scores(connection, found.plate_id, key, ["C05"])),
                lambda: results.timecourse(engine, plate, "C05"),
            ),
            "plate heat map": (
                lambda: list(queries.well_scores(connection, found.plate_id, key, None, last)),
                lambda: results.plate_table(engine, plate),
            ),
            "whole-plate course": (
                lambda: list(queries.well_scores(connection, found.plate_id, key)),
                lambda: results.timecourse(engine, plate),
            ),
        }
        return {name: (middle_ms(query), middle_ms(answer)) for name, (query, answer) in asked.items()}


def cells_per_s(db: Path, cells: int, rounds: int) -> float:
    """Return cells a second that go into the database in group commits of FIELDS fields; they are taken out again."""
    engine = open_engine(db, write=True)
    rng = np.random.default_rng(1)
    scores = CellScores(
        ImageFile(Path("new.tif"), 0, Site("NEW", "A01", 1, 1), 1, 1),
        rng.random(cells, np.float32), rng.uniform(0, 2048, (cells, 2)), "bench",
    )  # fmt: skip
    rates = []
    for number in range(rounds):
        began = time.perf_counter()
        with engine.begin() as connection:
            rows = [
                {"path": f"new{number}-{k}.tif", "name": "new.tif", "page": 0, "state": "pending", "reason": "new"}
                | {"size": 1, "mtime_ns": 1, "seen_at": datetime.now(UTC)}
                for k in range(FIELDS)
            ]
            ids = insert_images(connection, rows)
            entered = time.perf_counter()
            for image_id in ids:
                save_scores(connection, image_id, 1, scores, 0.5, {"sharpness": 1.0})
        rates.append(FIELDS * cells / (time.perf_counter() - entered))
        print(f"  {FIELDS} fields of {cells} cells: {time.perf_counter() - began:.3f} s")  # noqa: T201
        with engine.begin() as connection:
            for table in ("cell", "field_score"):
                connection.exec_driver_sql(f"DELETE FROM {table} WHERE image_id >= ?", (ids[0],))
            connection.exec_driver_sql("DELETE FROM image WHERE id >= ?", (ids[0],))
    return statistics.median(rates)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", type=Path)
    parser.add_argument("--plates", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        db = arguments.db or Path(folder) / "bench.db"
        if not db.is_file():
            times = {"times": 88} if arguments.plates == 1 else {"wells": 96, "times": 4}
            print(f"{fill(db, plates=arguments.plates, **times):,} cells written")  # noqa: T201
        print(f"{db.stat().st_size / 2**20:.0f} MiB")  # noqa: T201
        for name, (query, answer) in questions(db, "BENCH1").items():
            print(f"{name:20s} query {query:7.2f} ms   answer {answer:7.1f} ms")  # noqa: T201
        for cells in (75, 590):
            print(f"{cells_per_s(db, cells, 5):,.0f} cells/s in fields of {cells}")  # noqa: T201


if __name__ == "__main__":
    main()
