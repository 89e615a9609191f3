"""How fast plate and well are shown from 10 million cells, and a run of 130 000 images.

Run `python -m tests.benchmarks.bench_web [--db FILE]`; the database is made when FILE is not there. Shown are the CPU
time of an answer and the time of a whole request to a server on loopback, medians of 20, nothing kept between.
"""

import argparse
import json
import sqlite3
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from db.care import upgrade
from db.engine import open_reader
from sesmo_live import overview, service, serving
from sesmo_live.children import child, child_environment
from sesmo_live.config import settings_from
from sesmo_live.web import once
from sesmo_live.wells import well_name
from tests.conftest import settings, write_image
from tests.stub import lazy_stub, write_stub_model
from tests.web import Live, live

FIELDS, CELLS = 4, 75
"""Fields of a well, and cells of a field."""
START = datetime(2026, 7, 1, 12, tzinfo=UTC)
TEXTURES = ("contrast", "grain", "sharpness", "detail", "body", "fine_skew", "middle_skew", "coarse_skew", "centre")


def fill(
    db: Path, *, wells: int = 384, times: int = 88, fields: int = FIELDS, cells: int = CELLS, plates: int = 1
) -> int:
    """Make a database of whole plates, imaged hourly, and return the number of its cells."""
    upgrade(db)
    with closing(sqlite3.connect(db)) as connection:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "foreign_keys = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        model = ("bench-1-00000000", "a demonstration; not for biological conclusions", "{}", text_of(START))
        connection.execute("INSERT INTO model VALUES (1, ?, ?, ?, ?)", model)
        connection.execute("INSERT INTO compound VALUES (1, 'doxorubicin', 'doxorubicin')")
        for plate in range(1, plates + 1):
            one_plate(connection, plate, wells, times, fields, cells)
        connection.execute(
            "INSERT INTO cell SELECT image_id, model_id, k, (k * 37) % 1000, (k * 91) % 1000, "
            "((image_id * 31 + k * 17) % 1000) / 1000.0 FROM field_score, "
            "(WITH RECURSIVE n(k) AS (SELECT 0 UNION ALL SELECT k + 1 FROM n WHERE k + 1 < ?) SELECT k FROM n) "
            "ORDER BY image_id, model_id, k",
            (cells,),
        )
        connection.commit()
        connection.execute("PRAGMA journal_mode = WAL")
        return int(connection.execute("SELECT COUNT(*) FROM cell").fetchone()[0])


def one_plate(connection: sqlite3.Connection, plate: int, wells: int, times: int, fields: int, cells: int) -> None:
    """Enter a plate of which a hundredth of the images was refused, and what is in its wells."""
    name, run = f"BENCH{plate}", START.date().isoformat()
    values = (plate, name, name.casefold(), run, f"/acq/{name}", "sesmo", wells, "Phase", 0, "", "{}", "[0]", 3600.0)
    columns = "id, name, key, run, folder, layout, wells, channel, z, choice, channels, planes, frame_interval_s"
    marks = ", ".join("?" * (len(values) + 2))
    connection.execute(
        f"INSERT INTO plate ({columns}, treated_at, created_at) VALUES ({marks})",
        (*values, text_of(START), text_of(START)),
    )
    across = {384: 24, 96: 12, 24: 6, 1536: 48}[wells]
    names = [well_name(1 + number // across, 1 + number % across) for number in range(wells)]
    images, scores = "INSERT INTO image ({}) VALUES ({})", "INSERT INTO field_score VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?)"
    first = (plate - 1) * wells * times * fields
    rows = [row_of(plate, first + number, place) for number, place in enumerate(places(names, times, fields), 1)]
    connection.executemany(
        images.format(", ".join(rows[0]), ", ".join("?" * len(rows[0]))), map(tuple, map(dict.values, rows))
    )
    connection.executemany(scores, (score_of(row, cells) for row in rows if row["state"] == "scored"))
    treatments = [
        (plate, well, 1 if place else None, "treatment" if place else "negative", 0.1 * place, "µM", 0.1 * place)
        for well in names
        for place in [int(well[-2:]) - 1]
    ]
    connection.executemany(
        "INSERT INTO well_treatment (plate_id, well, compound_id, role, dose, dose_unit, dose_um) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        treatments,
    )


def places(names: list[str], times: int, fields: int) -> Iterator[tuple[str, int, int]]:
    """Yield well, field and time point in the order in which a microscope takes them."""
    for timepoint in range(1, times + 1):
        for well in names:
            for field in range(1, fields + 1):
                yield well, field, timepoint


def row_of(plate: int, number: int, place: tuple[str, int, int]) -> dict[str, Any]:
    """Return a row of the ledger."""
    well, field, timepoint = place
    name = f"{well}_f{field}_t{timepoint}_cPhase_z0.tif"
    taken = START + timedelta(hours=timepoint - 1, seconds=field + int(well[-2:]))
    refused = number % 100 == 7
    return {
        "id": number, "path": f"/acq/BENCH{plate}/{name}", "name": name, "page": 0, "generation": 1, "plate_id": plate,
        "well": well, "field": field, "timepoint": timepoint, "channel": "Phase", "z": 0, "size": 2_000_000,
        "mtime_ns": 1_780_000_000_000_000_000 + number, "acquired_at": text_of(taken), "acquired_from": "ome",
        "pixel_um": 0.65, "sha256": f"{number:064x}", "state": "refused" if refused else "scored",
        "reason": "out of focus: sharpness -1.2, in training 0.5" if refused else "", "attempts": 0,
        "seen_at": text_of(taken), "done_at": text_of(taken + timedelta(seconds=5)),
    }  # fmt: skip


def score_of(row: dict[str, Any], cells: int) -> tuple[Any, ...]:
    """Return the sums of a field."""
    mean = (row["id"] * 7 % 100) / 100
    quality = {f"{kind}_{name}": mean + 0.123456789 for kind in ("cell", "tile") for name in TEXTURES}
    histogram = json.dumps([cells // 32] * 32)
    sums = (cells, cells * mean, cells * mean * mean * 1.1, round(cells * mean))
    return (row["id"], *sums, histogram, json.dumps(quality), row["done_at"])


def text_of(moment: datetime) -> str:
    """Return a time as SQLAlchemy writes it to SQLite."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def middle(work: Callable[[], Any], times: int, clock: Callable[[], float]) -> float:
    """Return the median time in ms."""
    taken = []
    for _ in range(times):
        began = clock()
        work()
        taken.append(1000 * (clock() - began))
    return statistics.median(taken)


def measure(db: Path, times: int = 20) -> dict[str, tuple[float, float, float]]:
    """Return, by what is shown, CPU ms in this process, and ms and kB of a request to a server that keeps nothing."""
    engine = open_reader(db)
    shown: dict[str, tuple[Callable[[], Any], str]] = {
        "plate, live": (lambda: overview.plate_map(engine, "BENCH1"), "plates/BENCH1"),
        "plate, replayed": (lambda: overview.plate_map(engine, "BENCH1", timepoint=40), "plates/BENCH1?timepoint=40"),
        "well": (lambda: overview.well_view(engine, "BENCH1", "C05"), "plates/BENCH1/wells/C05"),
        "cells of a field": (lambda: overview.field_cells(engine, 78), "images/78/cells"),
        "run": (lambda: overview.run_status(engine, str(db)), "run"),
        "plates": (lambda: overview.plates(engine), "plates"),
    }
    once.FRESH_S = -1.0  # nothing is kept: every request is answered anew
    found = {}
    with live(db) as server:
        for name, (work, path) in shown.items():
            work()
            size = len(server.get(f"/api/v1/{path}").body) / 1000
            request = middle(lambda path=path: server.get(f"/api/v1/{path}"), times, time.perf_counter)  # type: ignore[misc]
            found[name] = (middle(work, times, time.process_time), request, size)
    return found


def score_images(folder: Path, db: Path, number: int) -> float:
    """Score so many new images into the database with a scorer without a network; return the seconds that it took."""
    images = folder / f"in{time.monotonic_ns()}"
    for place in range(number):
        write_image(images / f"{well_name(1 + place // 12 % 8, 1 + place % 12)}_f{place // 96}_t1_cPhase_z0.tif", place)
    run = settings(images, db, write_stub_model(folder / f"model-{images.name}"), plate=images.name, layout="sesmo")
    run = run.model_copy(update={"scoring": run.scoring.model_copy(update={"refuse": False})})
    service.lazy_scorer = lazy_stub
    began = time.perf_counter()
    assert service.score_folder(run).progress.scored == number
    return time.perf_counter() - began


def watch_plate(address: str, ended: threading.Event, answered: list[float]) -> None:
    """Be a viewer: ask for the plate at every event, as the page does."""
    server = Live(address)
    with closing(server.connection()) as connection:
        connection.request("GET", "/api/v1/events")
        stream = connection.getresponse()
        while not ended.is_set() and (line := stream.readline()):
            if line.startswith(b"event: change"):
                began = time.perf_counter()
                assert server.get("/api/v1/plates/BENCH1").status == 200
                answered.append(time.perf_counter() - began)


def with_viewers(db: Path, viewers: int, images: int, rounds: int) -> list[tuple[float, float, float]]:
    """Return, for each round, seconds of scoring alone, beside viewers, and the CPU seconds that the server took."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        web = settings_from({"database": {"url": str(db)}, "web": {"port": 0}}, "bench")
        process = subprocess.Popen(
            child("sesmo_live.web.__main__:main"),
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment(), text=True,
        )  # fmt: skip
        assert process.stdin
        assert process.stderr
        process.stdin.write(json.dumps(serving.told(web, "", open_page=False)) + "\n")
        process.stdin.flush()
        address = process.stderr.readline().split()[2]
        score_images(Path(folder), db, 50)  # all modules are loaded
        for _ in range(rounds):
            alone = score_images(Path(folder), db, images)
            ended, answered = threading.Event(), list[float]()
            watchers = [
                threading.Thread(target=watch_plate, args=(address, ended, answered), daemon=True)
                for _ in range(viewers)
            ]
            for watcher in watchers:
                watcher.start()
            time.sleep(2)
            before = psutil.Process(process.pid).cpu_times()
            beside = score_images(Path(folder), db, images)
            after = psutil.Process(process.pid).cpu_times()
            ended.set()
            found.append((alone, beside, after.user + after.system - before.user - before.system))
        process.stdin.close()
        process.wait(10)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", type=Path)
    parser.add_argument("--viewers", type=int, default=0, help="also score images beside so many viewers")
    arguments = parser.parse_args()
    given = arguments.db
    with tempfile.TemporaryDirectory() as folder:
        db = given or Path(folder) / "bench.db"
        if not db.is_file():
            print(f"{fill(db):,} cells written")  # noqa: T201
        for name, (cpu_ms, request_ms, size_kb) in measure(db).items():
            print(f"{name:18s} {cpu_ms:7.1f} ms CPU   request {request_ms:7.1f} ms   {size_kb:8.1f} kB")  # noqa: T201
        if arguments.viewers:
            for alone, beside, cpu in with_viewers(db, arguments.viewers, 800, 3):
                print(  # noqa: T201
                    f"scoring 800 images: {alone:.1f} s alone, {beside:.1f} s beside {arguments.viewers} viewers "
                    f"({beside / alone - 1:+.0%}); the server took {cpu:.2f} s of CPU, {cpu / beside:.1%} of one core"
                )


if __name__ == "__main__":
    main()
