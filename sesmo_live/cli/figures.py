"""Commands that make figures to look at: check, montage, explain."""

import csv
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sesmo_live.cli.options import ConfigOption, ModelOption, model_of
from sesmo_live.cli.output import count, say
from sesmo_live.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sesmo_live.records import CellCrops, ModelPassport, Pixels

PixelOption = Annotated[float | None, typer.Option("--pixel-um", help="µm per pixel of the picture [the model's]")]
PageOption = Annotated[int, typer.Option("--page", help="page of a stack, from 0")]
FIGURE_SUFFIXES = (".png", ".pdf", ".svg", ".jpg")
MOST_ROWS = 15
"""Rows of one check: more than these nobody compares."""
MOST_PICTURES = 50
"""Pictures of a folder from which one montage takes its cells."""
_TITLE_WIDTH = 130


def check(
    images: Annotated[list[Path], typer.Argument(help="pictures, or folders of them")],
    out: Annotated[Path, typer.Option("--out", help="figure to write: .png, .pdf, .svg or .jpg")] = Path("qc.png"),
    percentiles: Annotated[str, typer.Option(help="percentiles to compare, separated by commas")] = "1,3,5,7,10",
    min_area: Annotated[int, typer.Option("--min-area", help="smallest contour area, in px")] = 50,
    bright: Annotated[
        bool | None, typer.Option("--fluorescence/--phase", help="cells are bright, or dark [as the picture tells]")
    ] = None,
) -> None:
    """Show each picture beside its binarisation and the cells that would be cropped, at several percentiles."""
    from models.checks import draw_check
    from models.convert import to_uint8
    from models.cropper import shows_bright_cells
    from sesmo_live.cli.images import _read

    chosen = _percentiles(percentiles)
    _check_figure(out)
    paths = _pictures(images, max(1, MOST_ROWS // len(chosen)))
    _spare_input(out, paths)
    names = _names(paths)
    shown = []
    for path, name in zip(paths, names, strict=True):
        image = to_uint8(_read(path, 0))
        shown.append((name, image, shows_bright_cells(image) if bright is None else bright))
    if bright is None and (seen := [name for name, _, is_bright in shown if is_bright]):
        say([f"cells look bright in {', '.join(seen)}: the brightest pixels are taken; --phase takes the darkest"])
    figure = draw_check(shown, chosen, min_area_px=min_area)
    _save(figure, out)
    say([f"wrote {out}: {count(len(shown), 'picture')} at {count(len(chosen), 'percentile')}"])


def montage(
    image: Annotated[Path, typer.Argument(help="field image, folder of field images, or crops as .npy")],
    out: Annotated[Path, typer.Option("--out", help="figure to write: .png, .pdf, .svg or .jpg")] = Path("montage.png"),
    model: ModelOption = None,
    by_score: Annotated[bool, typer.Option("--sorted", help="from the lowest to the highest score")] = False,
    scores: Annotated[bool, typer.Option("--scores/--no-scores", help="score the cells, written beneath")] = True,
    cells: Annotated[int, typer.Option("--cells", help="how many cells to show")] = 50,
    seed: Annotated[int, typer.Option(help="seed of the random choice")] = 0,
    pixel_um: PixelOption = None,
    config: ConfigOption = None,
) -> None:
    """Show cropped cells, drawn at random or sorted by score."""
    import numpy as np

    from models.montage import choose_cells, draw_montage, order_by_score
    from models.passport import read_passport
    from models.scorer import Scorer

    for name, value, least in (("--cells", cells, 1), ("--seed", seed, 0)):
        if value < least:
            raise UsageError(f"{name} {value} is too small; give {least} or more")
    if by_score and not scores:
        raise UsageError("--sorted needs scores; leave --no-scores out")
    _check_figure(out)
    folder = model_of(model, config)
    passport = read_passport(folder)
    crops, whence = _crops_of(image, passport, pixel_um, out)
    if by_score:
        values = Scorer(folder).score(crops)
        chosen = order_by_score(values, cells)
        values = values[chosen]
    else:
        chosen = choose_cells(len(crops), cells, seed)
        values = Scorer(folder).score(crops[chosen]) if scores else np.empty(0, np.float32)
    how = "sorted by P(senescent)" if by_score else f"drawn at random (seed {seed})"
    title = f"{len(chosen)} of {len(crops)} cells of {whence}, {how}; each {_width(passport, pixel_um)} wide"
    if scores:
        title += f"\nP(senescent) by model {passport.model_id}" + _demonstration(passport)
    _save(draw_montage(crops[chosen], values if scores else None, title=title), out)
    say([f"wrote {out}: {len(chosen)} of {count(len(crops), 'cell')}"])


def explain(
    image: Annotated[Path, typer.Argument(help="field image")],
    out: Annotated[Path, typer.Option("--out", help="folder for field.png, gradcam.png, cells.png and cells.csv")],
    model: ModelOption = None,
    page: PageOption = 0,
    pixel_um: PixelOption = None,
    config: ConfigOption = None,
) -> None:
    """Show what a model sees in a picture: the score of every cell, and by Grad-CAM what in it speaks for which."""
    from models.explain import Explainer, explain_field
    from models.montage import draw_cells, draw_field, draw_field_map, lowest_middle_highest
    from models.prepare import judge_field, scale_of
    from models.refusal import untested
    from models.scorer import Scorer
    from sesmo_live.records import FieldImage

    folder = model_of(model, config)
    explainer = Explainer(folder)
    passport = explainer.passport
    pixels, cells = _read_cells(image, passport, page, pixel_um)
    pixel_um = cells.file.pixel_um
    scale = scale_of(pixel_um, passport)
    unfit = judge_field(FieldImage(cells.file, pixels), cells, passport)[1]
    say([f"{image.name} would be refused: {reason}" for reason in unfit])
    if gap := untested(passport.reference):
        say([f"model {passport.model_id}: {gap}"])
    if not len(cells.pixels):
        raise UsageError(f"no cells were found in {image}; look at it with: sesmo-live check {image}")
    out.mkdir(parents=True, exist_ok=True)
    for name in ("field.png", "gradcam.png", "cells.png"):
        _spare_input(out / name, [image])
    scores = Scorer(folder).score(cells.pixels)
    maps = explainer.explain(cells.pixels)
    whose = f"\nmodel {passport.model_id}{_demonstration(passport)}"
    if unfit:
        whose += "\n" + textwrap.fill(f"would be refused: {unfit[0]}", _TITLE_WIDTH)
    who = f"{image.name}: {len(scores)} cells, mean P(senescent) {scores.mean():.2f}{whose}"
    few = lowest_middle_highest(scores)
    title = f"{image.name}: cells of lowest, middle and highest P(senescent){whose}"
    cell_px = passport.input_px / scale
    field = draw_field(pixels, cells.centres, scores, who, cell_px=cell_px, pixel_um=pixel_um)
    _save(field, out / "field.png")
    evidence = explain_field(pixels.shape, cells.centres, maps, scale=scale)
    _save(draw_field_map(pixels, evidence, who, pixel_um=pixel_um), out / "gradcam.png")
    _save(draw_cells(cells.pixels[few], maps[few], scores[few].tolist(), title), out / "cells.png")
    _write_cells(out / "cells.csv", cells, scores)
    say([f"wrote field.png, gradcam.png, cells.png and cells.csv of {count(len(scores), 'cell')} to {out}"])


def _percentiles(text: str) -> tuple[float, ...]:
    try:
        chosen = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--percentiles {text!r} is not a list of numbers; write for example 1,5,10") from error
    if not all(0 < percentile <= 50 for percentile in chosen):
        raise UsageError(f"--percentiles {text!r} must lie above 0 and not above 50; 1 to 10 suit most images")
    return chosen


def _pictures(images: list[Path], most: int) -> list[Path]:
    """Return the pictures named and those in the folders named; of too many, a few evenly picked ones."""
    from acquisition.pictures import list_pictures

    found = [path for image in images for path in (list_pictures(image) if image.is_dir() else [image])]
    if len(found) <= most:
        return found
    say([f"{most} of {count(len(found), 'picture')} are taken, evenly picked; name fewer to see particular ones"])
    return [found[place * (len(found) - 1) // max(most - 1, 1)] for place in range(most)]


def _names(paths: list[Path]) -> list[str]:
    """Return the name of each picture, with its folder where two have the same."""
    names = [path.name for path in paths]
    return [path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}" for path in paths]


def _spare_input(out: Path, paths: list[Path]) -> None:
    if any(out.exists() and path.exists() and out.samefile(path) for path in paths):
        raise UsageError(f"{out} is a picture that was to be looked at; give --out another name")


def _crops_of(image: Path, passport: "ModelPassport", pixel_um: float | None, out: Path) -> tuple[Any, str]:
    """Return the crops of a picture, of pictures of a folder, or of an .npy file, as the model takes them, and whence.

    Says how many of the pictures would be refused. Raises UsageError where there are no cells.
    """
    import numpy as np

    from models.prepare import judge_field
    from sesmo_live.records import FieldImage

    if image.suffix.lower() == ".npy":
        from models.datasets import load_crops

        crops, whence = load_crops(image, passport.input_px), image.name
    else:
        paths = _pictures([image], MOST_PICTURES)
        _spare_input(out, paths)
        whence = image.name if not image.is_dir() else f"{count(len(paths), 'picture')} in {image.name or image}"
        fields = [_read_cells(path, passport, 0, pixel_um) for path in paths]
        reasons = [judge_field(FieldImage(cells.file, pixels), cells, passport)[1] for pixels, cells in fields]
        bad = [f"{path.name} ({why[0]})" for path, why in zip(paths, reasons, strict=True) if why]
        if bad:
            say([f"{len(bad)} of {count(len(paths), 'picture')} would be refused, such as {bad[0]}"])
        crops = np.concatenate([cells.pixels for _, cells in fields])
    if not len(crops):
        raise UsageError(f"no cells were found in {image}; " + _advice(image))
    return crops, whence


def _advice(image: Path) -> str:
    return "give another" if image.suffix.lower() == ".npy" else f"look at it with: sesmo-live check {image}"


def _read_cells(
    image: Path, passport: "ModelPassport", page: int, pixel_um: float | None
) -> "tuple[Pixels, CellCrops]":
    """Return the pixels of a picture and its cells, prepared exactly as for scoring."""
    from acquisition.pictures import own_pixel_um
    from models.prepare import prepare_field, scale_of
    from sesmo_live.cli.images import _read
    from sesmo_live.records import FieldImage, ImageFile, Site

    if pixel_um is not None and not 0 < pixel_um < 1000:
        raise UsageError(f"--pixel-um {pixel_um} is no size of a pixel; give µm in the sample, such as 0.65")
    pixels = _read(image, page)
    pixel_um = own_pixel_um(image, page) if pixel_um is None else pixel_um
    height, width = pixels.shape
    if min(height, width) * scale_of(pixel_um, passport) < passport.input_px:
        raise UsageError(
            f"{image} ({width} × {height} px) is smaller than a crop of {passport.input_px} px; give a larger picture"
        )
    file = ImageFile(image, page, Site("", "A01", 1, 1), 0, 0, pixel_um=pixel_um)
    return pixels, prepare_field(FieldImage(file, pixels), passport)


def _width(passport: "ModelPassport", pixel_um: float | None) -> str:
    """Return how wide a crop is, in µm where the pictures' scale is known, to which they were resampled."""
    width = f"{passport.input_px} px"
    return f"{width} ({passport.input_px * passport.pixel_um:.0f} µm)" if pixel_um and passport.pixel_um else width


def _demonstration(passport: "ModelPassport") -> str:
    return " (demonstration weights)" if passport.demonstration else ""


def _write_cells(path: Path, cells: "CellCrops", scores: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["x", "y", "score"])
        table.writerows(
            (round(x, 1), round(y, 1), round(float(s), 4)) for (x, y), s in zip(cells.centres, scores, strict=True)
        )


def _check_figure(out: Path) -> None:
    if out.suffix.lower() not in FIGURE_SUFFIXES:
        raise UsageError(f"--out {out} is no figure; give a name that ends in {', '.join(FIGURE_SUFFIXES)}")
    if not out.parent.is_dir():
        raise UsageError(f"the folder {out.parent} of --out is not there; make it first or give another")


def _save(figure: "Figure", out: Path) -> None:
    figure.savefig(out)
