"""Commands that find cells: train a detector on one's own fields; choose how `crop` finds them."""

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sesmo_live.cli.output import count, say
from sesmo_live.errors import ImageError, ModelError, UsageError
from sesmo_live.records import Pixels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.centres import Centres
    from models.detector_samples import LabelledImage
    from models.matching import Detection

HELD_OUT_FROM = 4
"""With at least this many fields a fifth of them is kept from training, to measure the detector on."""

Points = Mapping[str, list[tuple[float, float]]]


def train_detector(
    images: Annotated[Path, typer.Argument(help="folder of field images")],
    out: Annotated[Path, typer.Option("--out", help="folder of the new detector")],
    masks: Annotated[
        Path | None, typer.Option("--masks", help="folder of instance masks, named as the images; 0 is background")
    ] = None,
    points: Annotated[
        Path | None, typer.Option("--points", help="CSV with columns image, x, y: one row a cell")
    ] = None,
    cell_diameter_px: Annotated[
        float | None, typer.Option("--cell-diameter-px", help="diameter of a typical cell; masks tell it themselves")
    ] = None,
    cell_diameter_um: Annotated[
        float | None, typer.Option("--cell-diameter-um", help="the same in µm; needs --pixel-um")
    ] = None,
    pixel_um: Annotated[float | None, typer.Option("--pixel-um", help="µm per pixel in the sample")] = None,
    start: Annotated[str | None, typer.Option("--start", help="detector to go on from [the shipped one]")] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="do not go on from any detector")] = False,
    steps: Annotated[int, typer.Option(help="training steps")] = 300,
    seed: Annotated[int, typer.Option(help="seed of split and training")] = 0,
) -> None:
    """Train a cell detector on your own labelled fields, and measure it on those kept from training."""
    from models.detector_passport import PASSPORT

    if (out / PASSPORT).exists():
        raise UsageError(f"{out} holds a detector already; give another folder")
    if start is not None and from_scratch:
        raise UsageError("--start and --from-scratch exclude each other; give one of them")
    if steps < 1:
        raise UsageError(f"--steps {steps} trains nothing; give at least 1, some hundred for a useful detector")
    base = None if from_scratch else _detector_folder(start)
    diameter = declared_diameter(cell_diameter_px, cell_diameter_um, pixel_um)
    fields = labelled_fields(images, masks, points, diameter)
    say([f"{count(len(fields), 'field')} with {count(sum(len(f.centres) for f in fields), 'cell')}"])
    metrics = train_and_write(fields, out, base, steps, seed)
    say([f"detector: {out}", *_told(metrics)])


def train_and_write(
    fields: "list[LabelledImage]", out: Path, base: Path | None, steps: int, seed: int
) -> "Detection | None":
    """Train on four fifths of the fields, write the detector, and return how it finds the others (None: too few).

    `base` is the folder of a detector to go on from, None trains from nothing.
    """
    import numpy as np

    from models.detector_passport import (
        DetectorPassport,
        detector_of,
        read_detector_passport,
        read_detector_weights,
        write_detector,
    )
    from models.detector_samples import CELL_PX
    from models.detector_training import train_detector as train

    passport = None if base is None else read_detector_passport(base)
    weights = None if base is None or passport is None else read_detector_weights(base, passport)
    order = np.random.default_rng(seed).permutation(len(fields))
    n_held = max(1, len(fields) // 5) if len(fields) >= HELD_OUT_FROM else 0
    seen, held = [fields[k] for k in order[n_held:]], [fields[k] for k in order[:n_held]]
    trained = train(
        seen,
        steps=steps,
        seed=seed,
        start=weights,
        progress=lambda step, loss: say([f"step {step} of {steps}: loss {loss:.3f}"]),
    )
    threshold = 0.3 if passport is None else passport.threshold
    found = _measured(held, detector_of(out.name, trained, CELL_PX, threshold)) if held else None
    new = DetectorPassport(
        name=out.name,
        version="1",
        network="centre-unet",
        cell_px=CELL_PX,
        threshold=threshold,
        weights_sha256="",
        training={
            "fields": sorted(field.group for field in seen),
            "held_out": sorted(field.group for field in held),
            "n_cells": sum(len(field.centres) for field in seen),
            "started_from": "nothing" if passport is None else f"{passport.name} {passport.version}",
            "steps": steps,
            "seed": seed,
        },
        metrics={} if found is None else {**asdict(found), "interval": "95 %, bootstrap over the fields held out"},
    )
    write_detector(out, new, trained)
    return found


def labelled_fields(
    images: Path, masks: Path | None, points: Path | None, cell_diameter_px: float | None
) -> "list[LabelledImage]":
    """Return the fields of a folder that have labels; raise UsageError where these or a needed size are missing."""
    import numpy as np

    from acquisition.pictures import list_pictures, read_picture
    from models.detector_samples import from_masks, from_points

    if (masks is None) == (points is None):
        raise UsageError("say where the cells are: --masks FOLDER or --points CSV, one of them")
    if points is not None and cell_diameter_px is None:
        raise UsageError("points do not tell how large cells are; give --cell-diameter-px or --cell-diameter-um")
    pictures = list_pictures(images)
    if masks is not None:
        labels = _by_place(masks, list_pictures(masks))
        named = _by_place(images, pictures)
        _say_unlabelled(images, [path.name for name, path in named.items() if name not in labels], len(pictures))
        return [
            from_masks(read_picture(path), _read_labels(labels[name]), name)
            for name, path in named.items()
            if name in labels
        ]
    rows = read_points(points) if points is not None else {}
    if strange := sorted(rows.keys() - {path.name for path in pictures}):
        raise UsageError(f"{points} has points of {strange[0]}, which is not in {images}; correct its name")
    _say_unlabelled(images, [path.name for path in pictures if path.name not in rows], len(pictures))
    return [
        from_points(read_picture(path), np.array(rows[path.name], np.float64), cell_diameter_px or 0.0, path.stem)
        for path in pictures
        if path.name in rows
    ]


def _by_place(folder: Path, files: list[Path]) -> dict[str, Path]:
    """Return the files by their path below the folder, without suffix; raise UsageError where two have the same."""
    named: dict[str, Path] = {}
    for path in files:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if named.setdefault(name, path) != path:
            raise UsageError(f"{named[name]} and {path} differ in their ending only; remove one of them")
    return named


def _say_unlabelled(images: Path, without: list[str], n: int) -> None:
    """Say which pictures have no labels and are left out; raise UsageError where none has any."""
    if len(without) == n:
        raise UsageError(f"none of the {count(n, 'picture')} in {images} has labels; name them alike")
    if without:
        say([f"{count(len(without), 'picture')} without labels left out, such as {without[0]}"])


def read_points(path: Path) -> Points:
    """Return the points (x, y in px) of each image from a CSV with the columns image, x and y."""
    rows: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            if missing := {"image", "x", "y"} - set(table.fieldnames or ()):
                raise UsageError(f"{path} has no column {sorted(missing)[0]!r}; give image, x and y")
            for row in table:
                rows.setdefault(Path(row["image"]).name, []).append((float(row["x"]), float(row["y"])))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); give a CSV with image, x and y") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} holds a place that is no number ({error}); correct it") from error
    return rows


def declared_diameter(
    cell_diameter_px: float | None, cell_diameter_um: float | None, pixel_um: float | None
) -> float | None:
    """Return the declared cell diameter in image px, None where none is declared; raise UsageError for half a one."""
    if cell_diameter_px is not None and cell_diameter_um is not None:
        raise UsageError("--cell-diameter-px and --cell-diameter-um exclude each other; give one of them")
    if cell_diameter_um is None:
        return cell_diameter_px
    if pixel_um is None:
        raise UsageError("--cell-diameter-um needs the image's scale; add --pixel-um, or give --cell-diameter-px")
    _check_scale("--pixel-um", pixel_um)
    return cell_diameter_um / pixel_um


@dataclass(frozen=True, slots=True)
class Scale:
    """What `crop` was told of sizes: a typical cell's diameter, the µm per pixel of image and crops, a crop's side."""

    cell_diameter_px: float | None
    cell_diameter_um: float | None
    pixel_um: float | None
    model_pixel_um: float | None
    crop_px: int


def crop_found(
    image: Path,
    page: int,
    pixels: Pixels,
    detector: str | None,
    scale: Scale,
    out: Path | None,
    positions: Path | None,
) -> None:
    """Find the cells of an image, write their crops and all centres as asked for, and say how many there are."""
    import numpy as np

    from acquisition.pictures import own_pixel_um

    _check_scale("--pixel-um", scale.pixel_um)
    _check_scale("--model-pixel-um", scale.model_pixel_um)
    pixel_um = own_pixel_um(image, page) if scale.pixel_um is None else scale.pixel_um
    if scale.model_pixel_um is not None and pixel_um is None:
        raise UsageError(f"{image.name} does not tell its µm per pixel, which --model-pixel-um needs; add --pixel-um")
    found = find_for_crop(pixels, detector, declared_diameter(scale.cell_diameter_px, scale.cell_diameter_um, pixel_um))
    zoom = pixel_um / scale.model_pixel_um if pixel_um and scale.model_pixel_um else 1.0
    crops = cut_found(pixels, found, scale.crop_px, zoom)
    if out is not None:
        np.save(out, crops)
    if positions is not None:
        write_positions(positions, found)
    left_out = len(found) - len(crops)
    say([f"{count(len(found), 'cell')} in {image.name}, found by {found.how}"])
    if left_out:
        say([f"{left_out} of them too near the rim for a crop of {scale.crop_px} px; --positions has them too"])
    if found.guessed:
        say(
            [
                f"the cell diameter was guessed: {found.cell_diameter_px:.0f} px; if a typical cell is of another "
                "size, declare it with --cell-diameter-px or --cell-diameter-um"
            ]
        )


def find_for_crop(image: Pixels, detector: str | None, cell_diameter_px: float | None) -> "Centres":
    """Find the cells of one image for `crop`: with a detector (None: the shipped one), or `texture` without one."""
    from models.centres import find_centres
    from models.cropper import TEXTURE
    from models.detector_passport import load_detector

    model = None if detector == TEXTURE else load_detector(_detector_folder(detector))
    return find_centres(image, cell_diameter_px=cell_diameter_px, model=model)


def cut_found(image: Pixels, found: "Centres", crop_px: int, zoom: float) -> "NDArray[np.uint8]":
    """Return the 8-bit crops of the cells that have room for one, at `zoom` times the image's size.

    16-bit images are converted as those of new models are; sizes that differ by less than 5 % stay, as in scoring.
    """
    import numpy as np

    from models.centres import crop_cells_at
    from models.convert import to_uint8
    from models.prepare import at_zoom
    from sesmo_live.labelled import CONVERSION

    grey, zoom = at_zoom(to_uint8(image, CONVERSION), zoom)
    crops, _ = crop_cells_at(grey, found.xy * zoom, crop_px)
    return np.asarray(crops, np.uint8)


def _detector_folder(name: str | None) -> Path:
    """Return the folder of a detector; raise UsageError that lists what exists where a named one is not there."""
    from models.detector_passport import find_detector

    try:
        return find_detector(name)
    except ModelError as error:
        if name is None:
            raise
        raise UsageError(str(error)) from error


def _check_scale(name: str, value: float | None) -> None:
    if value is not None and not 0 < value < 1000:
        raise UsageError(f"{name} {value} is no scale; give µm per pixel in the sample, such as 0.65")


def write_positions(path: Path, found: "Centres") -> None:
    """Write the centres as CSV: x, y, score, diameter_px (empty where unknown), the surest first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "score", "diameter_px"])
        for (x, y), score, diameter in zip(
            found.xy.tolist(), found.scores.tolist(), found.diameters.tolist(), strict=True
        ):
            writer.writerow([f"{x:.2f}", f"{y:.2f}", f"{score:.4f}", "" if diameter != diameter else f"{diameter:.1f}"])


def _read_labels(path: Path) -> "NDArray[np.integer[Any]]":
    """Return an instance mask; TIFFs of whole numbers of any width are welcome."""
    import tifffile

    from acquisition.pictures import read_picture

    if path.suffix.lower() not in (".tif", ".tiff"):
        return read_picture(path)
    try:
        labels = tifffile.imread(path)
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise ImageError(f"{path} cannot be read ({error}); give a TIFF or PNG of instance ids") from error
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ImageError(f"{path} is {labels.dtype} of shape {labels.shape}; give one page of whole instance ids")
    return labels


def _measured(held: "list[LabelledImage]", model: Any) -> "Detection | None":
    """Return how the cells of fields kept from training are found, as centres within 0.4 diameters of the truth."""
    import numpy as np

    from models.centres import find_centres
    from models.matching import match_to_points, summarize

    matches = []
    for field in held:
        low, high = float(field.image.min()), float(field.image.max())
        grey = np.asarray((field.image - low) * (65535 / max(high - low, 1e-6)), np.uint16)
        found = find_centres(grey, cell_diameter_px=field.cell_px, model=model)
        matches.append(match_to_points(found.xy, field.centres, 0.4 * field.cell_px))
    return summarize(matches) if any(match.n_true for match in matches) else None


def _told(metrics: "Detection | None") -> list[str]:
    if metrics is None:
        return [f"not measured: give at least {HELD_OUT_FROM} labelled fields, of which some are kept from training"]
    f1 = metrics.f1
    interval = "" if f1.low is None else f" (95 % {f1.low:.2f} to {f1.high:.2f})"
    return [
        f"on {count(metrics.n_fields, 'field')} kept from training: F1 {f1.value:.2f}{interval}, "
        f"count off by {metrics.count_error.value:.0%}"
    ]
