"""Commands on single images: crop, simulate."""

import csv
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from sesmo_live.cli.output import count, say
from sesmo_live.errors import ImageError, IncompleteImageError, UsageError


def crop(
    image: Annotated[Path, typer.Argument(help="field image")],
    out: Annotated[Path | None, typer.Option("--out", help="crops as .npy, uint8 N×H×W")] = None,
    positions: Annotated[Path | None, typer.Option("--positions", help="cell centres as CSV (x, y in px)")] = None,
    cropper: Annotated[str, typer.Option(help="which cropper")] = "deep-sesmo",
    percentile: Annotated[float, typer.Option(help="darkest share of the pixels, in percent (advised 1 to 10)")] = 5.0,
    min_area: Annotated[int, typer.Option("--min-area", help="smallest contour area, in px")] = 50,
    fluorescence: Annotated[bool, typer.Option("--fluorescence", help="cells are bright, not dark")] = False,
    page: Annotated[int, typer.Option(help="page of a stack, from 0")] = 0,
) -> None:
    """Cut the single cells out of an image."""
    import numpy as np

    from models.convert import to_uint8
    from models.cropper import CROPPERS

    if cropper not in CROPPERS:
        raise UsageError(f"there is no cropper {cropper!r}; the croppers are {', '.join(CROPPERS)}")
    if out is None and positions is None:
        raise UsageError("say what to write: --out crops.npy, --positions centres.csv, or both")
    pixels = _read(image, page)
    settings: dict[str, Any] = {"percentile": percentile, "min_area_px": min_area}
    if fluorescence:
        if cropper != "deep-sesmo":
            raise UsageError(f"--fluorescence is a setting of cropper deep-sesmo, not of {cropper}; leave it out")
        settings["fluorescence"] = True
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
