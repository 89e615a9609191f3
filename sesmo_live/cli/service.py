"""The commands that score: demo, run, score."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sesmo_live.cli import options as o
from sesmo_live.cli.output import Format, count, say, show, show_json
from sesmo_live.errors import UsageError
from sesmo_live.logs import start_logging

if TYPE_CHECKING:
    from sesmo_live.config import Settings
    from sesmo_live.records import ImageState
    from sesmo_live.service import Progress, Summary

PROGRESS_EVERY_S = 60.0
"""Seconds between two lines of progress where there is no terminal."""

_BESIDE_CONDITIONS = {"conditions", "out", "model", "pixel_um", "no_refuse", "config", "output"}
_MOST_REASONS = 20


@contextmanager
def stop_on_signal(*, quiet: bool = False) -> Iterator[threading.Event]:
    """Set the event at Ctrl-C or SIGTERM; a second Ctrl-C ends the program at once."""
    stop = threading.Event()

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)
        if not quiet:
            say(["stopping: images under way are finished, the others stay pending"])

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_bar() -> Iterator[Callable[["Progress"], None]]:
    """Show a progress bar on a terminal; elsewhere write a line a minute."""
    if not sys.stderr.isatty():
        yield _Ticker(first_after_s=PROGRESS_EVERY_S)
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
    context: typer.Context,
    folder: Annotated[
        list[Path] | None, typer.Argument(help="folders of images, read once [the configuration's folders]")
    ] = None,
    conditions: Annotated[
        Path | None, typer.Option("--conditions", help="score a folder per condition, without a database")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="with --conditions: where CSV and charts go")] = Path("conditions"),
    plate: o.PlateOption = None,
    layout: o.LayoutOption = None,
    pattern: o.PatternOption = None,
    db: o.DatabaseOption = None,
    name: o.NameOption = None,
    model: o.ModelOption = None,
    channel: o.ChannelOption = None,
    z: o.PlaneOption = None,
    pixel_um: o.PixelOption = None,
    timezone: o.ZoneOption = None,
    frame_interval_s: o.IntervalOption = None,
    plate_wells: o.WellsOption = None,
    platemap: o.MapOption = None,
    treated_at: o.TreatedOption = None,
    precision: o.PrecisionOption = None,
    no_refuse: o.NoRefuseOption = False,
    dask: o.DaskOption = None,
    config: o.ConfigOption = None,
    output: o.FormatOption = Format.table,
) -> None:
    """Score everything in folders once (back-fill); what was scored before stays as it is."""
    _check_conditions(context, conditions)
    if conditions is not None:
        _score_conditions(conditions, out, o.model_of(model, config), pixel_um, output, refuse=not no_refuse)
        return
    watch = {
        "folder": folder or None,
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
        "treated_at": treated_at,
    }
    settings = o.settings_for(
        config, db=db, model=model, no_refuse=no_refuse, watch=watch, precision=precision, name=name
    )
    folders = ", ".join(str(item.folder) for item in settings.watch)
    if not folders:
        raise UsageError(
            "score needs a folder of images, [[watch]] blocks in the configuration, or --conditions with a folder of "
            "condition folders"
        )
    if not folder:
        say([f"scoring the folders of the configuration: {folders}"])
    with stop_on_signal() as stop, progress_bar() as report:
        summary = _score(settings, dask, stop, report)
    if not summary.progress.images:
        raise UsageError(f"there are no images in {folders}; correct the path, or copy the images there first")
    show_summary(summary, output)
    if summary.progress.pending:
        raise typer.Exit(3)
    if say_nothing_scored(settings, summary) or summary.progress.failed:
        raise typer.Exit(1)


def _score(
    settings: "Settings", dask: str | None, stop: threading.Event, report: Callable[["Progress"], None]
) -> "Summary":
    """Score here, or with the workers of a cluster."""
    if dask is None:
        from sesmo_live.service import score_folder

        return score_folder(settings, stop, report)
    try:
        from sesmo_live.cluster import score_on_cluster
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--dask needs the package {error.name}; install it with: pip install 'sesmo-live[cluster]'"
        ) from error
    return score_on_cluster(settings, dask, stop, report)


def _check_conditions(context: typer.Context, conditions: Path | None) -> None:
    """Raise UsageError for what is given beside --conditions and would be ignored, and for --out without it."""
    given = [
        parameter
        for parameter in context.command.params
        if parameter.name and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    ]
    if conditions is None:
        if any(parameter.name == "out" for parameter in given):
            raise UsageError("--out says where --conditions writes; leave it out, or give --conditions DIR")
        return
    for parameter in given:
        if parameter.name not in _BESIDE_CONDITIONS:
            name = "FOLDER" if parameter.name == "folder" else parameter.opts[0]
            raise UsageError(
                f"--conditions scores folders of pictures without a database and takes no {name}; leave one of them out"
            )


def _score_conditions(
    folder: Path, out: Path, model: Path, pixel_um: float | None, output: Format, *, refuse: bool
) -> None:
    from sesmo_live.conditions import score_conditions

    found = score_conditions(folder, out, model, pixel_um=pixel_um, refuse=refuse)
    say(found.notes)
    show(found.rows, output)
    say_reasons("refused" if refuse else "scored all the same", "refused", found.unfit)
    if found.failures:
        say_reasons("failed", "failed", found.failures)
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
        say([f"stopped early: {count(now.pending, 'image')} stay pending; run the same command again to go on"])
    if output is Format.json:
        failures = [{"path": path, "reason": reason} for path, reason in summary.failures]
        show_json({**counts, "pending": now.pending, "failures": failures})
        return
    show([counts], output)
    if now.refused:
        say([f"refused: {count(now.refused, 'image')}; see why with: sesmo-live images --state refused --summary"])
    say_reasons("failed", "failed", summary.failures)


def say_reasons(what: str, state: "ImageState", images: Sequence[tuple[str, str]]) -> None:
    """Say what became of images and why: one line a reason, with the number of its images."""
    from sesmo_live.reasons import group_reasons

    groups = group_reasons(images)
    for group in groups[:_MOST_REASONS]:
        if group.number == 1:
            named = group.example if group.path in group.example else f"{group.path}: {group.example}"
            say([f"{what}: {named}"])
        else:
            say([f"{what}: {group.number} images: {group.reason}; first: {Path(group.path).name}"])
    if len(groups) > _MOST_REASONS:
        rest = sum(group.number for group in groups[_MOST_REASONS:])
        say([f"{what}: {rest} images for other reasons; list them with: sesmo-live images --state {state}"])


def say_nothing_scored(settings: "Settings", summary: "Summary") -> bool:
    """Say of each folder in which there are images and none is scored why that is; say whether there was one."""
    from db.engine import open_reader, store_errors
    from sesmo_live.reasons import nothing_scored

    if summary.progress.scored or not summary.progress.images:
        return False
    url = settings.database.url
    with store_errors(url):
        engine = open_reader(url)
        notes = [note for item in settings.watch for note in nothing_scored(engine, item.folder.expanduser().resolve())]
    say(notes)
    return bool(notes)


def run(
    watch: Annotated[
        Path | None, typer.Option("--watch", help="folder to watch, instead of the configuration's")
    ] = None,
    plate: o.PlateOption = None,
    layout: o.LayoutOption = None,
    pattern: o.PatternOption = None,
    db: o.DatabaseOption = None,
    name: o.NameOption = None,
    model: o.ModelOption = None,
    channel: o.ChannelOption = None,
    z: o.PlaneOption = None,
    pixel_um: o.PixelOption = None,
    timezone: o.ZoneOption = None,
    frame_interval_s: o.IntervalOption = None,
    plate_wells: o.WellsOption = None,
    platemap: o.MapOption = None,
    treated_at: o.TreatedOption = None,
    precision: o.PrecisionOption = None,
    no_refuse: o.NoRefuseOption = False,
    port: o.PortOption = None,
    no_page: o.NoPageOption = False,
    open_page: o.OpenOption = False,
    config: o.ConfigOption = None,
) -> None:
    """Watch folders and score what lands, until Ctrl-C or SIGTERM; exit code 1 if images failed."""
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
        "treated_at": treated_at,
    }
    with stop_on_signal() as stop:  # before the slow imports, so that a stop at any moment is a clean one
        web = {"port": port, "enabled": False if no_page else None}
        settings = o.settings_for(
            config, db=db, model=model, no_refuse=no_refuse, watch=values, web=web, precision=precision, name=name
        )
        log = settings.logging
        start_logging(log.file, log.max_mb, log.keep)
        folders = ", ".join(str(item.folder) for item in settings.watch)
        from db.sqlite import display_name
        from sesmo_live.service import run as watch_folders
        from sesmo_live.serving import page

        with page(settings, open_page=open_page) as start_page:
            # Both at the first report: what cannot start must not have said that it watches.
            opening = f"watching {folders}; scores go to {display_name(settings.database.url)}; Ctrl-C ends"
            summary = watch_folders(settings, stop, _Ticker(opening, begin=start_page))
    show_summary(summary, Format.table)
    say_nothing_scored(settings, summary)
    if summary.progress.failed:
        raise typer.Exit(1)


class _Ticker:
    """Say how a run goes: every change on a terminal's one line, elsewhere a line a minute."""

    def __init__(self, opening: str = "", first_after_s: float = 0.0, begin: Callable[[], None] = lambda: None) -> None:
        self._terminal = sys.stderr.isatty()
        self._opening = opening
        self._begin = begin
        self._last = ""
        self._next = time.monotonic() + first_after_s

    def __call__(self, now: "Progress") -> None:
        if self._opening:
            say([self._opening])
            self._opening = ""
            self._begin()
        text = (
            f"{count(now.images, 'image')}: {now.scored + now.unchanged} scored, {now.pending} pending, "
            f"{now.refused} refused, {now.failed} failed, {now.skipped} skipped; {count(now.cells, 'cell')}"
            + (f"; WAITING: {now.trouble}" if now.trouble else "")
        )
        if text == self._last or (not self._terminal and time.monotonic() < self._next):
            return
        self._last, self._next = text, time.monotonic() + PROGRESS_EVERY_S
        clock = time.strftime("%H:%M:%S")
        end = "\r" if self._terminal else "\n"
        sys.stderr.write(f"{clock} {text}{end}")
        sys.stderr.flush()


def demo(
    output: Annotated[Path, typer.Option("--output", help="where images and sesmo.db go")] = Path("sesmo-demo"),
    seed: Annotated[int, typer.Option(help="seed of the virtual plate")] = 1,
    layout: Annotated[str, typer.Option(help="layout in which the virtual microscope writes")] = "sesmo",
    port: o.PortOption = None,
    no_page: o.NoPageOption = False,
    open_page: o.OpenOption = False,
    microscope: Annotated[
        bool, typer.Option("--microscope", help="drive Micro-Manager's demo devices through a plan")
    ] = False,
) -> None:
    """Image a virtual 24-well plate and score it live: nothing else is needed."""
    from sesmo_live.demo import run_demo

    web: dict[str, Any] = ({} if port is None else {"port": port}) | {"enabled": not no_page}
    if microscope and layout != "sesmo":
        raise UsageError("--microscope writes the layout sesmo; leave --layout out")
    with stop_on_signal() as stop:
        if microscope:
            from sesmo_live.demo_microscope import run_microscope_demo

            run_microscope_demo(output, seed=seed, stop=stop, web=web, open_page=open_page)
            return
        run_demo(output, seed=seed, layout=layout, stop=stop, web=web, open_page=open_page)
