"""Commands on single images: crop, simulate."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sesmo_live.cli.output import count, say
from sesmo_live.errors import ImageError, IncompleteImageError, UsageError


def crop(
    image: Annotated[Path, typer.Argument(help="field image")],
    out: Annotated[Path | None, typer.Option("--out", help="crops as .npy, uint8 N×H×W")] = None,
    positions: Annotated[Path | None, typer.Option("--positions", help="cell centres as CSV (x, y in px)")] = None,
    cropper: Annotated[str, typer.Option(help="centres, or deep-sesmo as the original study")] = "centres",
    cell_diameter_px: Annotated[
        float | None, typer.Option("--cell-diameter-px", help="diameter of a typical cell, in px [guessed]")
    ] = None,
    cell_diameter_um: Annotated[
        float | None, typer.Option("--cell-diameter-um", help="the same in µm; needs the image's µm per pixel")
    ] = None,
    pixel_um: Annotated[
        float | None, typer.Option("--pixel-um", help="µm per pixel in the sample [the file's own]")
    ] = None,
    model_pixel_um: Annotated[
        float | None, typer.Option("--model-pixel-um", help="µm per pixel of the crops [as the image]")
    ] = None,
    crop_px: Annotated[int | None, typer.Option("--crop-px", help="side of a crop, in px [50]")] = None,
    detector: Annotated[
        str | None, typer.Option("--detector", help="detector folder or name, or texture for none [the shipped one]")
    ] = None,
    percentile: Annotated[
        float | None, typer.Option(help="deep-sesmo: darkest share of the pixels, in percent (advised 1 to 10) [5]")
    ] = None,
    min_area: Annotated[
        int | None, typer.Option("--min-area", help="deep-sesmo: smallest contour area, in px [50]")
    ] = None,
    fluorescence: Annotated[
        bool, typer.Option("--fluorescence", help="deep-sesmo: cells are bright, not dark")
    ] = False,
    page: Annotated[int, typer.Option(help="page of a stack, from 0")] = 0,
) -> None:
    """Find the single cells of an image, to cut them out or to write where they are."""
    from models.cropper import CROPPERS
    from sesmo_live.cli.detection import Scale, crop_found

    if cropper not in CROPPERS:
        raise UsageError(f"there is no cropper {cropper!r}; the croppers are {', '.join(CROPPERS)}")
    if out is None and positions is None:
        raise UsageError("say what to write: --out crops.npy, --positions centres.csv, or both")
    sizes = {"--cell-diameter-px": cell_diameter_px, "--cell-diameter-um": cell_diameter_um, "--pixel-um": pixel_um}
    sizes |= {"--model-pixel-um": model_pixel_um, "--crop-px": crop_px}
    if cropper == "centres":
        dark = {"--percentile": percentile, "--min-area": min_area, "--fluorescence": fluorescence or None}
        _refuse(dark, "deep-sesmo", cropper)
        scale = Scale(cell_diameter_px, cell_diameter_um, pixel_um, model_pixel_um, 50 if crop_px is None else crop_px)
        crop_found(image, page, _read(image, page), detector, scale, out, positions)
        return
    _refuse({**sizes, "--detector": detector}, "centres", cropper)
    settings: dict[str, Any] = {"percentile": 5.0 if percentile is None else percentile}
    settings["min_area_px"] = 50 if min_area is None else min_area
    if fluorescence:
        _refuse({"--fluorescence": None if cropper == "deep-sesmo" else True}, "deep-sesmo", cropper)
        settings["fluorescence"] = True
    _crop_patches(image, _read(image, page), cropper, settings, out, positions)


def _refuse(given: Mapping[str, object], of: str, cropper: str) -> None:
    """Raise UsageError for an option that belongs to another cropper and is given all the same."""
    if odd := [name for name, value in given.items() if value is not None]:
        raise UsageError(
            f"{odd[0]} is a setting of cropper {of}, not of {cropper}; leave it out, or choose --cropper {of}"
        )


def _crop_patches(
    image: Path, pixels: Any, cropper: str, settings: Mapping[str, Any], out: Path | None, positions: Path | None
) -> None:
    """Crop as the original study did, by dark or bright patches, and write what was asked for."""
    import numpy as np

    from models.convert import to_uint8
    from models.cropper import CROPPERS

    crops, centres = CROPPERS[cropper](to_uint8(pixels), **settings)
    if out is not None:
        np.save(out, crops)
    if positions is not None:
        with positions.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["x", "y"])
            writer.writerows(centres.tolist())
    say([f"{count(len(crops), 'cell')} in {image.name}"])


def _read(image: Path, page: int) -> Any:
    """Return the pixels of a picture or of a page of a stack; errors carry a remedy that fits a single command."""
    from acquisition.pictures import read_picture
    from acquisition.tiff import read_pixels

    try:
        return read_pixels(image, page) if page else read_picture(image)
    except ImageError as error:
        if not page and not isinstance(error, IncompleteImageError):
            raise
        cause = str(error).partition(";")[0]
        raise ImageError(f"{cause}; give a whole image" + (" and a page that it has" if page else "")) from error


def simulate(
    folder: Annotated[Path, typer.Argument(help="where the images go; the planted truth goes beside it")],
    layout: Annotated[str, typer.Option(help="layout preset to write")] = "sesmo",
    wells: Annotated[int, typer.Option("--plate-wells", help="wells of the plate: 6 to 1536")] = 24,
    hours: Annotated[str, typer.Option(help="imaging times in hours, separated by commas")] = "0,24,48,72",
    fields: Annotated[int, typer.Option(help="fields per well")] = 1,
    interval_s: Annotated[float, typer.Option("--interval-s", help="seconds between images at least")] = 0.0,
    slow: Annotated[bool, typer.Option("--slow", help="let each file grow in pieces, as many instruments do")] = False,
    seed: Annotated[int, typer.Option(help="seed of the virtual plate")] = 1,
) -> None:
    """Write the images of a virtual plate, as an instrument would, with the truth beside the folder."""
    from acquisition.simulator import write_plate, write_platemap, write_truth
    from sesmo_live.demo import check_layout, simulate_plate

    times = _hours(hours)
    for name, value, least in (("--fields", fields, 1), ("--interval-s", interval_s, 0), ("--seed", seed, 0)):
        if not least <= value < math.inf:
            raise UsageError(f"{name} {value} is too small or no number; give {least} or more")
    plate = simulate_plate(wells=wells, hours=times, fields=fields, seed=seed)
    check_layout(plate, layout)
    truth, platemap = (folder.parent / name for name in ("truth.csv", "platemap.csv"))
    for path in (truth, platemap, folder):
        if path.is_file() or (path.is_dir() and next(path.iterdir(), None)):
            raise UsageError(f"{path} exists already and would be overwritten; give a new folder in an empty one")
    folder.mkdir(parents=True, exist_ok=True)
    write_truth(plate, folder.parent)
    write_platemap(plate, platemap)
    say([f"truth: {truth}", f"plate map: {platemap}"])
    written = sum(1 for _ in write_plate(plate, folder, layout, interval_s=interval_s, slow_bytes=slow))
    say([f"wrote {count(written, 'image')} of plate {plate.name} to {folder}"])


def _hours(text: str) -> tuple[float, ...]:
    """Return imaging times; raise UsageError unless they are numbers from 0 in rising order."""
    try:
        times = tuple(float(hour) for hour in text.split(","))
    except ValueError as error:
        raise UsageError(f"--hours {text!r} is not a list of numbers; write for example 0,24,48") from error
    if not all(0 <= hour < math.inf for hour in times) or list(times) != sorted(set(times)):
        raise UsageError(f"--hours {text!r} must be times from 0 in rising order; write for example 0,24,48")
    return times
