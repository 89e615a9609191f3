"""The commands that score: demo, run, score."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sesmo_live.cli import options as o
from sesmo_live.cli.output import Format, say, show, show_json
from sesmo_live.errors import UsageError

if TYPE_CHECKING:
    from sesmo_live.service import Progress, Summary


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Set the event at Ctrl-C or SIGTERM; a second Ctrl-C ends the program at once."""
    stop = threading.Event()

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)
        say(["stopping: images under way are finished, the others stay pending"])

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_bar() -> Iterator[Callable[["Progress"], None] | None]:
    """Show a progress bar on a terminal; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        "images",
        TextColumn("{task.fields[cells]} cells"),
    )
    with Bars(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        bar = bars.add_task("scoring", total=None, cells=0)

        def report(now: "Progress") -> None:
            bars.update(bar, total=now.images, completed=now.images - now.pending, cells=now.cells)

        yield report


def score(
    folder: Annotated[Path | None, typer.Argument(help="folder of images, read once")] = None,
    conditions: Annotated[
        Path | None, typer.Option("--conditions", help="score a folder per condition, without a database")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="with --conditions: where CSV and charts go")] = Path("conditions"),
    plate: o.PlateOption = None,
    layout: o.LayoutOption = None,
    pattern: o.PatternOption = None,
    db: o.DatabaseOption = None,
    model: o.ModelOption = None,
    channel: o.ChannelOption = None,
    z: o.PlaneOption = None,
    pixel_um: o.PixelOption = None,
    timezone: o.ZoneOption = None,
    frame_interval_s: o.IntervalOption = None,
    plate_wells: o.WellsOption = None,
    platemap: o.MapOption = None,
    treated_at: o.TreatedOption = None,
    no_refuse: o.NoRefuseOption = False,
    config: o.ConfigOption = None,
    output: o.FormatOption = Format.table,
) -> None:
    """Score everything in a folder once (back-fill); what was scored before stays as it is."""
    if conditions is not None:
        _score_conditions(conditions, out, o.model_of(model, config), pixel_um, output)
        return
    if folder is None:
        raise UsageError("score needs a folder of images, or --conditions with a folder of condition folders")
    watch = {
        "folder": folder,
        "plate": plate,
        "layout": layout,
        "pattern": pattern,
        "channel": channel,
        "z": z,
        "pixel_um": pixel_um,
        "timezone": timezone,
        "frame_interval_s": frame_interval_s,
        "plate_wells": plate_wells,
        "platemap": platemap,
        "treated_at": o.parse_moment(treated_at, timezone),
    }
    settings = o.settings_for(config, db=db, model=model, no_refuse=no_refuse, watch=watch)
    with stop_on_signal() as stop, progress_bar() as report:
        from sesmo_live.service import score_folder

        summary = score_folder(settings, stop, report)
    show_summary(summary, output)
    if summary.progress.pending:
        raise typer.Exit(3)
    if summary.progress.failed:
        raise typer.Exit(1)


def _score_conditions(folder: Path, out: Path, model: str | None, pixel_um: float | None, output: Format) -> None:
    from sesmo_live.conditions import score_conditions

    found = score_conditions(folder, out, model, pixel_um=pixel_um)
    say(found.notes)
    show(found.rows, output)
    if found.failures:
        say(f"failed: {path}: {reason}" for path, reason in found.failures)
        raise typer.Exit(1)


def show_summary(summary: "Summary", output: Format) -> None:
    """Print the counts of a run; failures by name."""
    now = summary.progress
    counts: dict[str, Any] = {
        "images": now.images,
        "scored": now.scored,
        "refused": now.refused,
        "failed": now.failed,
        "skipped": now.skipped,
        "unchanged": now.unchanged,
        "cells": now.cells,
        "seconds": round(summary.seconds, 3),
    }
    if now.pending:
        say([f"stopped early: {now.pending} images stay pending; run the same command again to go on"])
    if output is Format.json:
        failures = [{"path": path, "reason": reason} for path, reason in summary.failures]
        show_json({**counts, "pending": now.pending, "failures": failures})
        return
    show([counts], output)
    say(f"failed: {path}: {reason}" for path, reason in summary.failures)


def run(
    watch: Annotated[
        Path | None, typer.Option("--watch", help="folder to watch, instead of the configuration's")
    ] = None,
    plate: o.PlateOption = None,
    layout: o.LayoutOption = None,
    pattern: o.PatternOption = None,
    db: o.DatabaseOption = None,
    model: o.ModelOption = None,
    channel: o.ChannelOption = None,
    z: o.PlaneOption = None,
    pixel_um: o.PixelOption = None,
    timezone: o.ZoneOption = None,
    frame_interval_s: o.IntervalOption = None,
    plate_wells: o.WellsOption = None,
    platemap: o.MapOption = None,
    treated_at: o.TreatedOption = None,
    no_refuse: o.NoRefuseOption = False,
    config: o.ConfigOption = None,
) -> None:
    """Watch folders and score what lands, until Ctrl-C or SIGTERM."""
    values = {
        "folder": watch,
        "plate": plate,
        "layout": layout,
        "pattern": pattern,
        "channel": channel,
        "z": z,
        "pixel_um": pixel_um,
        "timezone": timezone,
        "frame_interval_s": frame_interval_s,
        "plate_wells": plate_wells,
        "platemap": platemap,
        "treated_at": o.parse_moment(treated_at, timezone),
    }
    with stop_on_signal() as stop:  # before the slow imports, so that a stop at any moment is a clean one
        settings = o.settings_for(config, db=db, model=model, no_refuse=no_refuse, watch=values)
        folders = ", ".join(str(item.folder) for item in settings.watch)
        if folders:
            say([f"watching {folders}; scores go to {settings.database.url}; Ctrl-C ends"])
        from sesmo_live.service import run as serve

        summary = serve(settings, stop, _Ticker())
    show_summary(summary, Format.table)


class _Ticker:
    """Say how a run goes: every change on a terminal's one line, elsewhere a line a minute."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = ""
        self._next = 0.0

    def __call__(self, now: "Progress") -> None:
        text = (
            f"{now.images} images: {now.scored + now.unchanged} scored, {now.pending} pending, {now.refused} refused, "
            f"{now.failed} failed, {now.skipped} skipped; {now.cells} cells"
        )
        if text == self._last or (not self._terminal and time.monotonic() < self._next):
            return
        self._last, self._next = text, time.monotonic() + 60
        clock = time.strftime("%H:%M:%S")
        end = "\r" if self._terminal else "\n"
        sys.stderr.write(f"{clock} {text}{end}")
        sys.stderr.flush()


def demo(
    output: Annotated[Path, typer.Option("--output", help="where images and sesmo.db go")] = Path("sesmo-demo"),
    seed: Annotated[int, typer.Option(help="seed of the virtual plate")] = 1,
    layout: Annotated[str, typer.Option(help="layout in which the virtual microscope writes")] = "sesmo",
) -> None:
    """Image a virtual 24-well plate and score it live: nothing else is needed."""
    from sesmo_live.demo import run_demo

    with stop_on_signal() as stop:
        run_demo(output, seed=seed, layout=layout, stop=stop)
