"""The command that drives a microscope: acquire."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sesmo_live.cli.options import ConfigOption, FormatOption, ModelOption, model_of
from sesmo_live.cli.output import Format, count, say, show
from sesmo_live.cli.service import stop_on_signal
from sesmo_live.errors import SesmoError, UsageError

if TYPE_CHECKING:
    from acquisition.micromanager.plan import Plan


def acquire(
    plan: Annotated[Path, typer.Argument(help="plan of the acquisition (TOML)")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print positions, time and room; nothing moves")] = False,
    preview: Annotated[str | None, typer.Option("--preview", help="image one well now, show crops and scores")] = None,
    here: Annotated[
        str | None, typer.Option("--here", help="keep the stage's position as the middle of this reference well")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="with --preview: figure to write [preview-WELL.png]")
    ] = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    output: FormatOption = Format.table,
) -> None:
    """Drive Micro-Manager through a plate by a plan, round after round, into a folder that `run` watches."""
    from acquisition.micromanager.plan import load_plan

    if sum([dry_run, preview is not None, here is not None]) > 1:
        raise UsageError("--dry-run, --preview and --here each do one thing; give one of them")
    if out is not None and preview is None:
        raise UsageError("--out says where --preview draws; leave it out, or give --preview WELL")
    loaded = load_plan(plan)
    if dry_run:
        _dry_run(loaded, output)
    elif here is not None:
        _here(loaded, here)
    elif preview is not None:
        _preview(loaded, preview, out or Path(f"preview-{preview}.png"), model_of(model, config))
    else:
        _acquire(loaded)


def _dry_run(plan: "Plan", output: Format) -> None:
    from sesmo_live.acquire import lay_out

    laid = lay_out(plan)
    one, lay = laid.round, laid.calibration
    show(
        [{"well": p.well, "field": p.field, "x_um": round(p.x_um, 1), "y_um": round(p.y_um, 1)} for p in laid.places],
        output,
    )
    mirror = ", mirrored" if lay.mirrored else ""
    say(
        [
            f"plate {plan.plate.name}: A01 at {lay.a1_um[0]:.1f}, {lay.a1_um[1]:.1f} µm, turned by "
            f"{lay.rotation_deg:.2f}°{mirror}",
            f"a round: {count(one.frames, 'frame')}, {one.travel_um / 1000:.0f} mm of travel, about "
            f"{one.time.total_seconds():.0f} s, {one.bytes / 1e6:.0f} MB",
            f"{count(laid.rounds, 'round')}: {count(laid.rounds * one.frames, 'frame')}, "
            f"{laid.rounds * one.bytes / 1e9:.2f} GB",
            *(f"warning: {warning}" for warning in laid.warnings),
        ]
    )


def _here(plan: "Plan", well: str) -> None:
    from sesmo_live.acquire import store_here

    reference, path, found = store_here(plan, well)
    say([f"{name}: {x:.1f}, {y:.1f} µm" for name, (x, y) in reference.items()])
    if found is None:
        say([f"kept in {path}; {3 - len(reference)} more to go: steer to another well and run this again"])
    else:
        say([f"kept in {path}: A01 at {found.a1_um[0]:.1f}, {found.a1_um[1]:.1f} µm, turned {found.rotation_deg:.2f}°"])


def _preview(plan: "Plan", well: str, out: Path, model: Path) -> None:
    from sesmo_live.cli.figures import _check_figure, _save
    from sesmo_live.preview import preview

    _check_figure(out)
    with _leaving_what_hangs(), stop_on_signal(quiet=True) as stop:
        seen = preview(plan, well, model, stop)
    say([f"{seen.well} would be refused: {reason}" for reason in seen.unfit])
    if seen.figure is None:
        raise UsageError(f"no cells were found in {seen.well}; look at focus and light in Micro-Manager")
    _save(seen.figure, out)
    say([f"wrote {out}: {count(len(seen.scores), 'cell')}, mean P(senescent) {seen.scores.mean():.2f}"])


def _acquire(plan: "Plan") -> None:
    from sesmo_live.acquire import acquire as run_plan

    with _leaving_what_hangs(), stop_on_signal(quiet=True) as stop:
        done = run_plan(plan, stop, lambda text: say([text]))
    frames, wanted = sum(len(one.written) for one in done), sum(one.wanted for one in done)
    say([f"{count(len(done), 'round')}: {frames} of {count(wanted, 'frame')} taken"])
    if frames < wanted:
        raise typer.Exit(1)


@contextmanager
def _leaving_what_hangs() -> Iterator[None]:
    """End the process at once when a device hangs for ever: Python would wait for its thread."""
    from acquisition.micromanager.watch import hangs

    try:
        yield
    except SesmoError as error:
        if hangs():
            say([f"sesmo-live: {error}"])
            sys.stdout.flush()
            os._exit(error.exit_code)
        raise
    if hangs():
        sys.stdout.flush()
        os._exit(3)
