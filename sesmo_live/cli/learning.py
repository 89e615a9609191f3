"""Commands that make and judge models: train, validate, model calibrate."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sesmo_live.cli.options import ConfigOption, DatabaseOption, FormatOption, LayoutOption, database_of, model_of
from sesmo_live.cli.output import Format, count, say, show, show_json
from sesmo_live.errors import UsageError

if TYPE_CHECKING:
    from models.datasets import LabelledCells
    from models.training import Recipe
    from models.validation import Validation
    from sesmo_live.labelled import Reading

ControlOption = Annotated[
    list[Path] | None, typer.Option("--control", help="healthy cells: folder of images or crops, or a .npy; repeatable")
]
SenescentOption = Annotated[
    list[Path] | None, typer.Option("--senescent", help="senescent cells, as --control; repeatable")
]
PlateOption = Annotated[str | None, typer.Option("--plate", help="take the cells from this plate of the database")]
FromControlsOption = Annotated[
    bool, typer.Option("--from-controls", help="with --plate: negative control wells are healthy, positive senescent")
]
RunOption = Annotated[str | None, typer.Option("--run", help="with --plate: which run of it [the latest]")]
HoursOption = Annotated[
    float | None, typer.Option("--from-hours", help="with --plate: only images from so many hours after treatment on")
]
GroupsOption = Annotated[
    Path | None, typer.Option("--groups", help="CSV: file, group and, for .npy, cell (from 0): what is never split")
]
ImagesOption = Annotated[str, typer.Option("--images", help="what the pictures show: fields, cells or auto (by size)")]
PixelOption = Annotated[float | None, typer.Option("--pixel-um", help="µm per pixel of the pictures [the files' own]")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**31, help="seed of split, draws and intervals")]
ReportOption = Annotated[Path, typer.Option("--out", help="folder for CSV files, figures and report.html")]


def train(
    out: Annotated[Path, typer.Option("--out", help="folder of the new model")],
    control: ControlOption = None,
    senescent: SenescentOption = None,
    plate: PlateOption = None,
    from_controls: FromControlsOption = False,
    run: RunOption = None,
    from_hours: HoursOption = None,
    network: Annotated[str, typer.Option(help="compact, or deep-sesmo with the original recipe")] = "compact",
    epochs: Annotated[int | None, typer.Option(help="epochs at most [the recipe's]")] = None,
    seed: SeedOption = 0,
    search: Annotated[
        Path | None, typer.Option("--search", help="TOML or JSON grid of recipes to try first by cross-validation")
    ] = None,
    start: Annotated[str, typer.Option("--start", help="model whose weights to go on from [random ones]")] = "",
    groups: GroupsOption = None,
    images: ImagesOption = "auto",
    pixel_um: PixelOption = None,
    model_pixel_um: Annotated[
        float | None, typer.Option("--model-pixel-um", help="µm per pixel that the model shall work at [the images']")
    ] = None,
    cropper: Annotated[str | None, typer.Option(help="how cells are cut from fields [the default cropper]")] = None,
    conversion: Annotated[str, typer.Option(help="how 16 bit become 8")] = "percentile-0.35-99.65",
    name: Annotated[str | None, typer.Option("--name", help="name of the model [that of its folder]")] = None,
    layout: LayoutOption = None,
    db: DatabaseOption = None,
    config: ConfigOption = None,
    output: FormatOption = Format.table,
) -> None:
    """Train a model on healthy and senescent cells; run the same command again to go on after an interruption."""
    import dataclasses

    from models.fit import CHECKPOINT, HELD_OUT, fit_model
    from models.search import read_grid, recipe_of
    from models.splits import split_cells
    from models.training import RECIPES
    from models.validation import select
    from sesmo_live.labelled import Reading, draft_passport

    if network not in RECIPES:
        raise UsageError(f"network {network!r} is unknown; use one of {', '.join(RECIPES)}")
    if epochs is not None and epochs < 1:
        raise UsageError(f"--epochs {epochs} is too few; give 1 or more")
    _check_model_folder(out)
    changes: dict[str, Any] = {"start": start} | ({} if epochs is None else {"epochs": epochs})
    recipe = dataclasses.replace(RECIPES[network], **changes)
    recipes = None if search is None else read_grid(search, network, changes)
    draft = draft_passport(
        name or out.resolve().name, pixel_um if model_pixel_um is None else model_pixel_um, cropper, conversion
    )
    reading = Reading(draft, _kind(images), pixel_um, layout or "auto", _groups(groups))
    cells = _cells(control, senescent, plate, from_controls, run, from_hours, reading, database_of(db, config))
    if draft.pixel_um is None:
        draft = dataclasses.replace(draft, pixel_um=cells.pixel_um)
    table: list[dict[str, Any]] = []
    if recipes is not None:
        # The part that the final figures are of must not choose the recipe.
        table = _search(
            select(cells, ~split_cells(cells.labels, cells.groups, HELD_OUT, seed).test), recipes, seed, out
        )
        recipe = recipe_of(table[0])

    if (out / CHECKPOINT).is_file():
        say([f"going on with the unfinished training in {out}"])
    try:
        with training_bar(recipe.epochs) as progress:
            fitted = fit_model(cells, recipe, draft, out, seed=seed, progress=progress)
    except KeyboardInterrupt:
        if (out / CHECKPOINT).is_file():
            say([f"interrupted; run the same command again to go on after the last whole epoch ({out / CHECKPOINT})"])
        raise
    say([*_new_notes(fitted.result, cells), f"model {fitted.passport.model_id} and its report are in {out}"])
    _show_figures(
        fitted.result,
        output,
        {"model": fitted.passport.model_id, "search": table} if table else {"model": fitted.passport.model_id},
    )
    _end(cells)


def validate(
    model: Annotated[str | None, typer.Option("--model", help="model folder or name [the demonstration model]")] = None,
    control: ControlOption = None,
    senescent: SenescentOption = None,
    plate: PlateOption = None,
    from_controls: FromControlsOption = False,
    run: RunOption = None,
    from_hours: HoursOption = None,
    out: ReportOption = Path("validation"),
    groups: GroupsOption = None,
    images: ImagesOption = "auto",
    pixel_um: PixelOption = None,
    seed: SeedOption = 0,
    layout: LayoutOption = None,
    db: DatabaseOption = None,
    config: ConfigOption = None,
    output: FormatOption = Format.table,
) -> None:
    """Measure a model on newly acquired healthy and senescent cells, with intervals; write a report."""
    from models.passport import read_passport
    from sesmo_live.labelled import Reading

    _check_folder(out)
    folder = model_of(model, config)
    passport = read_passport(folder)
    reading = Reading(passport, _kind(images), pixel_um, layout or "auto", _groups(groups))
    cells = _cells(control, senescent, plate, from_controls, run, from_hours, reading, database_of(db, config))
    from models.report import write_report
    from models.validation import validate_model

    result = validate_model(folder, cells, seed=seed)
    write_report(out, result, title=f"Validation of model {passport.model_id}")
    say([*_new_notes(result, cells), f"wrote the report to {out}"])
    _show_figures(result, output, {"model": passport.model_id})
    _end(cells)


def model_calibrate(
    out: Annotated[Path, typer.Option("--out", help="folder of the calibrated model")],
    model: Annotated[str | None, typer.Option("--model", help="model folder or name [the demonstration model]")] = None,
    control: ControlOption = None,
    senescent: SenescentOption = None,
    plate: PlateOption = None,
    from_controls: FromControlsOption = False,
    run: RunOption = None,
    from_hours: HoursOption = None,
    groups: GroupsOption = None,
    images: ImagesOption = "auto",
    pixel_um: PixelOption = None,
    seed: SeedOption = 0,
    layout: LayoutOption = None,
    db: DatabaseOption = None,
    config: ConfigOption = None,
    output: FormatOption = Format.table,
) -> None:
    """Fit a model's probabilities and its threshold to your own controls; the weights stay as they are."""
    from models.passport import read_passport
    from sesmo_live.labelled import Reading

    _check_model_folder(out)
    folder = model_of(model, config)
    reading = Reading(read_passport(folder), _kind(images), pixel_um, layout or "auto", _groups(groups))
    cells = _cells(control, senescent, plate, from_controls, run, from_hours, reading, database_of(db, config))
    from models.fit import recalibrate

    fitted = recalibrate(folder, cells, out, seed=seed)
    say([*_new_notes(fitted.result, cells), f"model {fitted.passport.model_id} and its report are in {out}"])
    calibration = {key: value for key, value in fitted.passport.calibration.items() if key not in ("x", "y")}
    _show_figures(fitted.result, output, {"model": fitted.passport.model_id, "calibration": calibration})
    _end(cells)


@contextmanager
def training_bar(epochs: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Show epochs and held-out figures on a terminal; elsewhere write a line for every tenth epoch."""
    if not sys.stderr.isatty():

        def write(epoch: int, figures: Mapping[str, float]) -> None:
            if epoch % 10 == 0 or epoch in (1, epochs):
                say([f"epoch {epoch} of {epochs}: {_epoch(figures)}"])

        yield write
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), "epochs", TextColumn("{task.fields[said]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        bar = bars.add_task("training", total=epochs, said="")
        yield lambda epoch, figures: bars.update(bar, completed=epoch, said=_epoch(figures))


def _epoch(figures: Mapping[str, float]) -> str:
    return f"loss {figures['loss']:.3f}, held out {figures['held_out_loss']:.3f} (AUC {figures['held_out_auc']:.3f})"


def _cells(
    control: list[Path] | None,
    senescent: list[Path] | None,
    plate: str | None,
    from_controls: bool,
    run: str | None,
    from_hours: float | None,
    reading: "Reading",
    url: str,
) -> "LabelledCells":
    """Gather the labelled cells that a command names and say what was found."""
    if reading.pixel_um is not None and not 0 < reading.pixel_um < 1000:
        raise UsageError(f"--pixel-um {reading.pixel_um} is no size of a pixel; give µm in the sample, such as 0.65")
    from sesmo_live.labelled import gather_controls, gather_folders

    if plate is None:
        if from_controls or run is not None or from_hours is not None:
            raise UsageError("--from-controls, --run and --from-hours go with --plate; name the plate")
        if not control or not senescent:
            raise UsageError("give --control and --senescent, or --plate with --from-controls")
        cells = gather_folders(control, senescent, reading)
    else:
        if control or senescent or not from_controls:
            raise UsageError("--plate goes with --from-controls, and without --control and --senescent")
        from db.engine import open_reader, store_errors

        with store_errors(url):
            cells = gather_controls(open_reader(url), plate, reading, run=run, from_hours=from_hours)
    n_senescent = int(cells.labels.sum())
    say(
        [
            f"{count(len(cells) - n_senescent, 'healthy cell')} and {count(n_senescent, 'senescent cell')} of "
            f"{count(len(set(cells.groups)), 'group')}, split {cells.split}",
            *cells.notes,
        ]
    )
    return cells


def _search(cells: "LabelledCells", recipes: "list[Recipe]", seed: int, out: Path) -> list[dict[str, Any]]:
    from models.report import write_csv
    from models.search import search

    say([f"trying {count(len(recipes), 'recipe')} by cross-validation"])
    table = search(cells, recipes, seed=seed, progress=lambda done, total: say([f"{done} of {total} trainings done"]))
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "search.csv", table)
    say([f"wrote the table of the search to {out / 'search.csv'}; training with its first recipe"])
    return table


def _show_figures(result: "Validation", output: Format, more: Mapping[str, Any]) -> None:
    """Print the figures: as one object with JSON, else one row a figure, after the table of a search."""
    row = result.row()
    if output is Format.json:
        show_json({**row, "parts": result.parts, "warnings": list(result.notes), **more})
        return
    names = [key for key in row if f"{key}_low" in row]
    rows = [
        {"figure": name, "value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]} for name in names
    ]
    counts = {**row["confusion"], "n": row["n"], "groups": row["groups"], "threshold": row["threshold"]}
    if output is Format.table and "search" in more:
        show(more["search"], output)
    show(
        [*rows, *({"figure": name, "value": value, "low": None, "high": None} for name, value in counts.items())],
        output,
    )


def _end(cells: "LabelledCells") -> None:
    """Name the pictures that were left out; there being any is exit code 1."""
    if cells.failures:
        say([f"{path} was left out: {reason}" for path, reason in cells.failures])
        raise typer.Exit(1)


def _new_notes(result: "Validation", cells: "LabelledCells") -> list[str]:
    """Return what was not said yet when the cells were gathered."""
    return [note for note in result.notes if note not in cells.notes]


def _check_folder(out: Path) -> None:
    """Raise UsageError, before any work is done, where no folder can be."""
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not place.is_dir():
        raise UsageError(f"--out {out} cannot be a folder, as {place} is a file; give another path")


def _check_model_folder(out: Path) -> None:
    from models.passport import PASSPORT

    _check_folder(out)
    if (out / PASSPORT).exists():
        raise UsageError(f"{out} holds a model already; choose another folder with --out, or delete that one first")


def _kind(images: str) -> Any:
    if images not in ("auto", "fields", "cells"):
        raise UsageError(f"--images {images!r} is unknown; use fields, cells or auto")
    return images


def _groups(path: Path | None) -> Any:
    from models.datasets import read_groups

    return None if path is None else read_groups(path)
