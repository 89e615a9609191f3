"""The demonstration: a virtual microscope images a plate, the service scores it as the images land."""

import csv
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from acquisition.simulator import VirtualPlate, demo_plate, write_plate, write_platemap, write_truth
from acquisition.simulator.plate import acquired_at
from acquisition.simulator.writer import layout_names
from db.care import upgrade
from db.engine import open_engine, open_reader
from db.plates import import_treatments
from sesmo_live import service
from sesmo_live.config import Settings, settings_from
from sesmo_live.errors import UsageError
from sesmo_live.platemap import read_platemap
from sesmo_live.records import Treatment
from sesmo_live.results import Row, plate_table, timecourse
from sesmo_live.serving import page
from sesmo_live.wells import PLATE_SHAPES, well_name

if TYPE_CHECKING:
    from sesmo_live.records import WellScore
    from sesmo_live.service import Progress

SHADES = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")
"""Eight steps of the colour map viridis, low to high: even to the eye and safe for colour-blind readers."""


def run_demo(
    folder: Path,
    *,
    seed: int = 1,
    layout: str = "sesmo",
    stop: threading.Event,
    web: Mapping[str, Any] = MappingProxyType({"enabled": False}),
    open_page: bool = False,
) -> service.Summary:
    """Image a virtual 24-well plate into `folder`/images, score it live into `folder`/sesmo.db, and show the result.

    An earlier demonstration in the same folder is replaced; a folder with anything else in it is refused. Raises
    UsageError, before anything is touched, for a layout that cannot carry the plate.
    """
    plate = demo_plate(seed)
    check_layout(plate, layout)
    clear(folder)
    images = folder / "images"
    images.mkdir(parents=True)
    truth = write_truth(plate, folder)
    database = folder / "sesmo.db"
    upgrade(database)
    treatments = read_platemap(write_platemap(plate, folder / "platemap.csv")).treatments
    engine = open_engine(database, write=True)
    with engine.begin() as connection:
        import_treatments(connection, plate.name, treatments, plate.start)
    engine.dispose()
    console = Console(stderr=True)
    console.print(
        f"A virtual microscope images plate {plate.name}: {plate.wells} wells, {len(plate.hours)} time points, "
        f"{plate.fields} fields a well, {len(plate.sites)} images. The service scores them as they land in {images}."
    )
    settings = _settings(plate, images, database, layout, web)
    with page(settings, open_page=open_page) as start_page:
        start_page()
        summary = _image_and_score(plate, images, settings, layout, stop)
        if not stop.is_set() or summary.progress.scored == len(plate.sites):
            show_results(Console(width=None if sys.stdout.isatty() else 120), plate, database, truth)
        say_how_to_go_on(console, plate, database, summary)
        keep_page(console, settings, open_page=open_page, stop=stop)
    return summary


def keep_page(console: Console, settings: Settings, *, open_page: bool, stop: threading.Event) -> None:
    """Wait for Ctrl-C where somebody may be looking at the page."""
    if settings.web.enabled and (open_page or sys.stderr.isatty()):
        console.print("The page stays up until Ctrl-C.")
        while not stop.wait(0.5):  # in pieces, so that Ctrl-C is heard on Windows
            pass


def say_how_to_go_on(console: Console, plate: VirtualPlate, database: Path, summary: service.Summary) -> None:
    """Print what was scored, and the commands to try next."""
    console.print(
        f"{summary.progress.scored} of {len(plate.sites)} images scored, {summary.progress.refused} refused, "
        f"{summary.progress.cells} cells, "
        f"{summary.seconds:.0f} s. Now try:\n"
        f"  sesmo-live serve --db {database} --open\n"
        f"  sesmo-live plate DEMO --db {database}\n"
        f"  sesmo-live timecourse --plate DEMO --well B05 --db {database}\n"
        f"  sesmo-live compound doxorubicin --db {database}\n"
        f"  sesmo-live images --state refused --summary --db {database}",
        highlight=False,
    )


def simulate_plate(*, wells: int, hours: tuple[float, ...], fields: int, seed: int) -> VirtualPlate:
    """Return a virtual plate of any size: DMSO first, etoposide last, doxorubicin in between."""
    if wells not in PLATE_SHAPES:
        raise UsageError(f"there is no plate of {wells} wells; choose one of {', '.join(map(str, PLATE_SHAPES))}")
    height, width = PLATE_SHAPES[wells]
    doses = np.geomspace(3, 0.01, max(1, width - 2)).round(4).tolist()
    treatments = []
    for row in range(1, height + 1):
        treatments.append(Treatment(well_name(row, 1), "DMSO", "negative"))
        for column, dose in enumerate(doses, 2):
            if column < width:
                treatments.append(Treatment(well_name(row, column), "doxorubicin", "treatment", dose, "µM", dose))
        treatments.append(Treatment(well_name(row, width), "etoposide", "positive", 10.0, "µM", 10.0))
    return replace(
        demo_plate(seed), name="VIRTUAL", wells=wells, treatments=tuple(treatments), hours=hours, fields=fields
    )


def check_layout(plate: VirtualPlate, layout: str) -> None:
    """Raise UsageError unless the file names of `layout` can carry every image of `plate`."""
    name_of = layout_names(layout)
    for site in plate.sites:
        name_of(site, acquired_at(plate, site))


def clear(folder: Path) -> None:
    """Remove an earlier demonstration; refuse to touch a folder that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give --output a folder")
    ours = {"images", "truth.csv", "platemap.csv", "sesmo.db"}
    ours |= {f"sesmo.db{more}" for more in ("-wal", "-shm", ".lock", ".reading", ".token", ".explained")}
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if found and not found >= {"truth.csv", "platemap.csv"} and not found - ours:
        raise UsageError(f"{folder} is not empty and holds no earlier demo; give --output a new folder")
    if found - ours:
        raise UsageError(f"{folder} holds {sorted(found - ours)[0]}, which no demo wrote; give --output a new folder")
    for name in found:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _settings(plate: VirtualPlate, images: Path, database: Path, layout: str, web: Mapping[str, Any]) -> Settings:
    watch = {"folder": images, "plate": plate.name, "layout": layout, "plate_wells": plate.wells, "timezone": "UTC"}
    data: dict[str, Any] = {
        "database": {"url": str(database)},
        "watching": {"settle_s": 1.0, "scan_interval_s": 1.0},
        "watch": [watch],
        "web": dict(web),
    }
    return settings_from(data, "the demo")


def _image_and_score(
    plate: VirtualPlate, images: Path, settings: Settings, layout: str, stop: threading.Event
) -> service.Summary:
    """Let the microscope write on a thread of its own, and the service run until all images are accounted for."""
    written: list[Path] = []
    failed: list[Exception] = []
    finished = threading.Event()

    def image() -> None:
        try:
            for path in write_plate(plate, images, layout, slow_bytes=True, stop=stop):
                written.append(path)
        except Exception as error:  # noqa: BLE001 — a worker's top: handed to the caller, which raises it
            failed.append(error)
            finished.set()

    ending = threading.Event()

    def watch_end() -> None:
        while not (stop.is_set() or finished.is_set()):
            time.sleep(0.05)
        ending.set()

    total = len(plate.sites)
    ticker = _Ticker(total, written)

    def report(now: "Progress") -> None:
        ticker(now)
        if now.images >= total and now.pending == 0:
            finished.set()

    for target in (image, watch_end):
        threading.Thread(target=target, name=target.__name__, daemon=True).start()
    summary = service.run(settings, ending, report)
    if failed:
        raise failed[0]
    return summary


class _Ticker:
    """Say how far imaging and scoring are: one line on a terminal, a line every five seconds elsewhere."""

    def __init__(self, total: int, written: Sequence[Path]) -> None:
        self._total = total
        self._written = written
        self._began = time.monotonic()
        self._next = 0.0
        self._done = False

    def __call__(self, now: "Progress") -> None:
        seconds = time.monotonic() - self._began
        done = now.images >= self._total and now.pending == 0
        terminal = sys.stderr.isatty()
        if self._done:
            return
        self._done = done
        if not (terminal or done or seconds >= self._next):
            return
        self._next = seconds + 5
        filled = round(30 * now.scored / self._total)
        bar = "█" * filled + "░" * (30 - filled)
        end = "\r" if terminal and not done else "\n"
        text = f"{seconds:4.0f} s  imaged {len(self._written):3d}  scored {now.scored:3d} of {self._total}"
        sys.stderr.write(f"{text}  {bar}  {now.cells} cells{end}")
        sys.stderr.flush()


def show_results(console: Console, plate: VirtualPlate, database: Path, truth: Path) -> None:
    """Print the plate map, scores by dose and time, and the agreement with the planted truth."""
    engine = open_reader(database)
    table = plate_table(engine, plate.name)
    scores, _ = timecourse(engine, plate.name)
    engine.dispose()
    console.print(_plate_map(plate, table.rows))
    console.print(_dose_by_time(table.rows, scores))
    console.print(agreement(scores, truth), highlight=False)


def _plate_map(plate: VirtualPlate, rows: list[Row]) -> Table:
    """Draw the plate at its last time point: mean P(senescent) in each well, coloured."""
    by_well = {row["well"]: row for row in rows}
    height, width = PLATE_SHAPES[plate.wells]
    table = Table(
        title=f"Plate {plate.name}, last time point: mean P(senescent); − negative, + positive control",
        box=None,
        padding=(0, 1),
    )
    table.add_column("")
    for column in range(1, width + 1):
        table.add_column(f"{column:02d}", justify="center")
    for row in range(1, height + 1):
        cells = [_well_cell(by_well.get(well_name(row, column))) for column in range(1, width + 1)]
        table.add_row(well_name(row, 1)[0], *cells)
    return table


def _well_cell(row: Row | None) -> Text:
    if row is None or row["score"] is None:
        return Text("  –  ")
    step = min(len(SHADES) - 1, int(row["score"] * len(SHADES)))
    ink = "#000000" if step >= 4 else "#ffffff"
    dose = "" if row["dose"] is None else f"{row['dose']:g} {row['dose_unit']}"
    mark = {"negative": "−", "positive": "+"}.get(row["role"], " ")
    return Text(f" {row['score']:.2f}{mark}\n {row['compound'][:11]}\n {dose}", style=f"{ink} on {SHADES[step]}")


def _dose_by_time(rows: list[Row], scores: "list[WellScore]") -> Table:
    """Return mean scores over replicate wells, one row a compound and dose, one column a time point."""
    groups: dict[tuple[str, float, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row["compound"], row["dose"] or 0.0, row["dose_unit"]), []).append(row["well"])
    hours: dict[int, list[float]] = {}
    for score in scores:
        hours.setdefault(score.timepoint, []).append(score.hours or 0.0)
    table = Table(title="Mean P(senescent) of replicate wells by dose and time", box=None)
    for name in ("compound", "dose", "wells"):
        table.add_column(name, justify="left" if name == "compound" else "right")
    digits = 0 if max(map(max, hours.values()), default=1.0) >= 1 else 3  # a plate that was imaged within an hour
    for timepoint in sorted(hours):
        table.add_column(f"{np.mean(hours[timepoint]):.{digits}f} h", justify="right")
    value = {(score.well, score.timepoint): score.score for score in scores if score.score is not None}
    for (compound, dose, unit), wells in sorted(groups.items()):
        means = [[value[well, t] for well in wells if (well, t) in value] for t in sorted(hours)]
        shown = [f"{np.mean(found):.2f}" if found else "–" for found in means]
        table.add_row(compound, f"{dose:g} {unit}" if unit else "", str(len(wells)), *shown)
    return table


def agreement(scores: "list[WellScore]", truth: Path) -> str:
    """Say how well scores follow the planted fraction of senescent cells: Spearman's ρ with its 95 % interval.

    The interval is a bootstrap over wells, as the time points of one well are not independent.
    """
    with truth.open(encoding="utf-8", newline="") as file:
        planted = {
            (row["well"], int(row["timepoint"])): float(row["fraction_senescent"]) for row in csv.DictReader(file)
        }
    pairs: dict[str, list[tuple[float, float]]] = {}
    for score in scores:
        if score.score is not None and (score.well, score.timepoint) in planted:
            pairs.setdefault(score.well, []).append((score.score, planted[score.well, score.timepoint]))
    wells = [np.array(found) for found in pairs.values()]
    rho = spearman(np.concatenate(wells))
    rng = np.random.default_rng(0)
    draws = [spearman(np.concatenate([wells[i] for i in rng.integers(0, len(wells), len(wells))])) for _ in range(500)]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    n = sum(map(len, wells))
    return (
        f"Agreement with the planted truth: Spearman ρ = {rho:.2f} (95 % interval {low:.2f} to {high:.2f} over "
        f"{len(wells)} wells) between score and planted fraction of senescent cells, {n} wells × time points."
    )


def spearman(pairs: "np.ndarray[Any, np.dtype[np.float64]]") -> float:
    """Return Spearman's rank correlation of the two columns of N×2 values; NaN where one does not vary."""
    from scipy.stats import spearmanr

    if (pairs == pairs[0]).all(axis=0).any():
        return float("nan")
    return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)
