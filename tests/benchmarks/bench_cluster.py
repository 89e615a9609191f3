"""Compare two worker processes with one process, on the CPU-bound part, with the compact network.

Run `python -m tests.benchmarks.bench_cluster`. A virtual plate is scored in turns in three ways: by one process as it
is (two readers and as many threads of TensorFlow as there are cores), by one process that is held to one core, and by
two workers of one core each behind one scheduler. Processes and workers are warm before the clock starts; only ratios
are to be trusted. The rows that the ways write are compared.
"""

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

CHILD = """
import sys
from tests.benchmarks.bench_cluster import score_here
score_here(*sys.argv[1:])
"""


def write_plate(folder: Path, wells: int, size_px: int) -> int:
    """Write parts of a virtual field, each shifted so that no two are alike; return how many."""
    import numpy as np
    import tifffile

    from sesmo_live.bench.images import field as virtual_field

    folder.mkdir(parents=True)
    field = virtual_field("2048", None)
    for number in range(wells):
        image = np.roll(field, 37 * number, axis=(0, 1))[:size_px, :size_px]
        name = f"{'ABCDEFGH'[number // 12 % 8]}{number % 12 + 1:02d}_f{number // 96 + 1}_t1_cPhase_z0.tif"
        tifffile.imwrite(folder / name, image)
    return wells


def settings_of(folder: Path, db: Path) -> Any:
    """Return settings that score all images, whatever they look like."""
    from sesmo_live.config import settings_from

    data = {"database": {"url": str(db)}, "scoring": {"refuse": False}, "watch": [{"folder": folder, "plate": "P"}]}
    return settings_from(data, "benchmark")


def score_here(folder: str, warm: str, db: str, cores: str) -> None:
    """Score in this process, once on a few images to load everything, then on the clock; print the seconds."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])  # before TensorFlow counts them
    from sesmo_live import service

    scorers: dict[Path, Any] = {}
    load = service.lazy_scorer
    # One network for both, as in a process that runs on.
    setattr(service, "lazy_scorer", lambda at, *how: scorers.setdefault(at, load(at, *how)))  # noqa: B010
    service.score_folder(settings_of(Path(warm), Path(db).with_suffix(".warm.db")))
    began = time.perf_counter()
    service.score_folder(settings_of(Path(folder), Path(db)))
    print(time.perf_counter() - began)  # noqa: T201 - what the parent reads


def score_apart(folder: Path, warm: Path, db: Path, cores: int) -> float:
    """Score in a new process that may use so many cores; return the seconds of its second run."""
    words = [sys.executable, "-c", CHILD, str(folder), str(warm), str(db), str(cores)]
    said = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
    return float(said.strip().splitlines()[-1])


def scores(db: Path) -> list[Any]:
    """Return all scores of a database."""
    with sqlite3.connect(db) as connection:
        return connection.execute(
            "SELECT path, idx, x, y, score FROM cell JOIN image ON id = image_id ORDER BY 1, 2"
        ).fetchall()


def main() -> None:
    """Print the seconds of each turn and the medians of their ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--size-px", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    import distributed

    from sesmo_live.cluster import score_on_cluster

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        number = write_plate(root / "in", given.images, given.size_px)
        write_plate(root / "warm", 8, given.size_px)
        workers = distributed.LocalCluster(  # type: ignore[no-untyped-call] # dask leaves it untyped
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
        )
        with workers:
            address = workers.scheduler_address
            score_on_cluster(settings_of(root / "warm", root / "warm.db"), address)
            turns = []
            for turn in range(given.rounds):
                here, one = root / f"here{turn}.db", root / f"one{turn}.db"
                times = [score_apart(root / "in", root / "warm", here, os.cpu_count() or 1)]
                found = score_on_cluster(settings_of(root / "in", root / f"two{turn}.db"), address)
                times.append(found.seconds)
                times.append(score_apart(root / "in", root / "warm", one, 1))
                turns.append(times)
                if not scores(here) == scores(one) == scores(root / f"two{turn}.db"):
                    raise SystemExit("the rows differ: the times mean nothing")
                print(  # noqa: T201 - a script's output
                    f"one process {times[0]:.1f} s, two workers {times[1]:.1f} s, "
                    f"one process on one core {times[2]:.1f} s; {found.progress.cells} cells, equal rows"
                )
    all_cores = median(here / two for here, two, _ in turns)
    one_core = median(one / two for _, two, one in turns)
    fastest = number / min(two for _, two, _ in turns)
    print(f"{number} images of {given.size_px}²: two workers {fastest:.1f} images/s at best")  # noqa: T201
    print(f"ratio_to_one_process {all_cores:.2f}, ratio_to_one_core {one_core:.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
