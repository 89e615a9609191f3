"""Commands that make figures to look at: check, montage, explain."""

import csv
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
MOST_PICTURES = 6
"""Pictures of a folder that one check shows: more rows than these nobody compares."""


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
    from acquisition.pictures import read_picture
    from models.checks import draw_check
    from models.convert import to_uint8
    from models.cropper import shows_bright_cells

    chosen = _percentiles(percentiles)
    _check_figure(out)
    shown = []
    for path in _pictures(images):
        image = to_uint8(read_picture(path))
        shown.append((path.name, image, shows_bright_cells(image) if bright is None else bright))
        if bright is None and shown[-1][2]:
            say([f"{path.name}: cells look bright, so the brightest pixels are taken; --phase takes the darkest"])
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

    if cells < 1 or seed < 0:
        raise UsageError(f"--cells {cells} and --seed {seed} must be at least 1 and 0")
    if by_score and not scores:
        raise UsageError("--sorted needs scores; leave --no-scores out")
    _check_figure(out)
    folder = model_of(model, config)
    passport = read_passport(folder)
    crops = _crops_of(image, passport, pixel_um)
    if not len(crops):
        raise UsageError(f"no cells were found in {image}; look at it with: sesmo-live check {image}")
    if by_score:
        values = Scorer(folder).score(crops)
        chosen = order_by_score(values, cells)
        values = values[chosen]
    else:
        chosen = choose_cells(len(crops), cells, seed)
        values = Scorer(folder).score(crops[chosen]) if scores else np.empty(0, np.float32)
    how = "sorted by P(senescent)" if by_score else f"drawn at random (seed {seed})"
    title = f"{len(chosen)} of {len(crops)} cells of {image.name}, {how}"
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
    from models.scorer import Scorer

    folder = model_of(model, config)
    explainer = Explainer(folder)
    passport = explainer.passport
    pixels, cells = _read_cells(image, passport, page, pixel_um)
    scale = _scale(pixel_um, passport)
    _warn_if_unfit(image, pixels, cells, passport, scale)
    if not len(cells.pixels):
        raise UsageError(f"no cells were found in {image}; look at it with: sesmo-live check {image}")
    out.mkdir(parents=True, exist_ok=True)
    scores = Scorer(folder).score(cells.pixels)
    maps = explainer.explain(cells.pixels)
    whose = f"\nmodel {passport.model_id}{_demonstration(passport)}"
    who = f"{image.name}: {len(scores)} cells, mean P(senescent) {scores.mean():.2f}{whose}"
    few = lowest_middle_highest(scores)
    title = f"{image.name}: cells of lowest, middle and highest P(senescent){whose}"
    _save(draw_field(pixels, cells.centres, scores, who, cell_px=passport.input_px / scale), out / "field.png")
    evidence = explain_field(pixels.shape, cells.centres, maps, scale=scale)
    _save(draw_field_map(pixels, evidence, who), out / "gradcam.png")
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


def _pictures(images: list[Path]) -> list[Path]:
    """Return the pictures named and those in the folders named; of too many, a few evenly picked ones."""
    from acquisition.pictures import list_pictures

    found = [path for image in images for path in (list_pictures(image) if image.is_dir() else [image])]
    if len(found) <= MOST_PICTURES:
        return found
    say([f"{MOST_PICTURES} of {len(found)} pictures are shown, evenly picked; name fewer to see particular ones"])
    return [found[round(place * (len(found) - 1) / (MOST_PICTURES - 1))] for place in range(MOST_PICTURES)]


def _crops_of(image: Path, passport: "ModelPassport", pixel_um: float | None) -> Any:
    """Return the crops of a picture, of all pictures of a folder, or of an .npy file, as the model takes them."""
    import numpy as np

    if image.suffix.lower() == ".npy":
        from models.datasets import load_crops

        return load_crops(image, passport.input_px)
    crops = [_read_cells(path, passport, 0, pixel_um)[1].pixels for path in _pictures([image])]
    return np.concatenate(crops)


def _read_cells(
    image: Path, passport: "ModelPassport", page: int, pixel_um: float | None
) -> "tuple[Pixels, CellCrops]":
    """Return the pixels of a picture and its cells, prepared exactly as for scoring."""
    from models.prepare import prepare_field
    from sesmo_live.cli.images import _read
    from sesmo_live.records import FieldImage, ImageFile, Site

    if pixel_um is not None and not 0 < pixel_um < 1000:
        raise UsageError(f"--pixel-um {pixel_um} is no size of a pixel; give µm in the sample, such as 0.65")
    pixels = _read(image, page)
    file = ImageFile(image, page, Site("", "A01", 1, 1), 0, 0, pixel_um=pixel_um)
    return pixels, prepare_field(FieldImage(file, pixels), passport)


def _scale(pixel_um: float | None, passport: "ModelPassport") -> float:
    """Return how many times as large as the picture the model's crops show everything, as `prepare_field` has it."""
    from models.prepare import SCALE_TOLERANCE

    scale = pixel_um / passport.pixel_um if pixel_um and passport.pixel_um else 1.0
    return scale if abs(scale - 1) > SCALE_TOLERANCE else 1.0


def _warn_if_unfit(image: Path, pixels: "Pixels", cells: "CellCrops", passport: "ModelPassport", scale: float) -> None:
    """Say why `run` and `score` would refuse this picture; it is explained all the same."""
    from models.quality import measure_field
    from models.refusal import unfit, untested

    reasons = unfit(measure_field(pixels, cells.pixels, scale=scale), passport.reference)
    say([f"{image.name} would be refused: {reason}" for reason in reasons])
    if gap := untested(passport.reference):
        say([f"model {passport.model_id}: {gap}"])


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
