"""Labelled cells from what users have: folders of fields, folders of single cells, `.npy` crops, a plate's controls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, select

from acquisition.layouts import Layout, open_layout
from acquisition.ndtiff import is_ndtiff, ndtiff_pixels
from acquisition.pictures import PICTURE_SUFFIXES, list_pictures, own_pixel_um, read_picture
from acquisition.tiff import read_pixels
from db import queries
from db.schema import Image
from models.convert import CONVERSIONS, to_uint8
from models.cropper import CROPPERS, settings_of_new_model
from models.datasets import Groups, LabelledCells, Source, digest_of, fit_cell, gather, groups_of, load_crops
from models.prepare import prepare_field
from sesmo_live.errors import ImageError, IncompleteImageError, UsageError
from sesmo_live.records import CellCrops, FieldImage, ImageFile, ModelPassport, Pixels, Site
from sesmo_live.results import find_plate

Kind = Literal["auto", "fields", "cells"]
"""What the pictures show: fields to be cropped, single cells, or either, as their size tells."""

SINGLE_CELL_PX = 255
"""Pictures that are nowhere larger are taken for single cells."""

CONVERSION = "percentile-0.35-99.65"
CROPPER = "centres" if "centres" in CROPPERS else "deep-sesmo-either"
"""How new models read 16-bit images and find cells, unless told otherwise."""

Crop = Callable[[FieldImage], CellCrops]


@dataclass(frozen=True, slots=True)
class Reading:
    """How pictures become crops: with which passport, of which kind, at which µm per pixel (None: the file's own)."""

    passport: ModelPassport
    kind: Kind = "auto"
    pixel_um: float | None = None
    layout: str = "auto"
    groups: Groups | None = None
    crop: Crop | None = None

    def cells(self, field: FieldImage) -> CellCrops:
        """Crop a field as the passport says."""
        return self.crop(field) if self.crop else prepare_field(field, self.passport)

    def scale(self, pixel_um: float | None) -> float | None:
        """Return a picture's µm per pixel over the model's, None where one of them is not known."""
        return pixel_um / self.passport.pixel_um if pixel_um and self.passport.pixel_um else None


def draft_passport(
    name: str, pixel_um: float | None, cropper: str | None = None, conversion: str = CONVERSION
) -> ModelPassport:
    """Return the passport of a model to be trained, as far as it is known before; its cells are cut by `cropper`.

    Raises UsageError for an unknown cropper or conversion, or an impossible scale, and ModelError where the detector
    that `centres` needs is not there.
    """
    for noun, value, known in (("cropper", cropper or CROPPER, CROPPERS), ("conversion", conversion, CONVERSIONS)):
        if value not in known:
            raise UsageError(f"there is no {noun} {value!r}; use one of {', '.join(known)}")
    if pixel_um is not None and not 0 < pixel_um < 1000:
        raise UsageError(f"{pixel_um} µm per pixel is impossible; give a number such as 0.65")
    return ModelPassport(
        name=name,
        version="1",
        network="compact",
        input_px=50,
        pixel_um=pixel_um,
        conversion=conversion,
        cropper=cropper or CROPPER,
        cropper_settings=settings_of_new_model(cropper or CROPPER),
        threshold=0.5,
        weights_sha256="",
    )


def gather_folders(control: Sequence[Path], senescent: Sequence[Path], reading: Reading) -> LabelledCells:
    """Return the cells of folders of pictures or crops (or single `.npy` files): `control` healthy, `senescent` not.

    A picture that cannot be read is left out and named in `failures`. Raises UsageError for folders that are not there
    or the same, for files of several channels, and where a class has too few cells.
    """
    _refuse_same(control, senescent)
    sources: list[Source] = []
    notes: list[str] = []
    failures: list[tuple[str, str]] = []
    for label, roots in enumerate((control, senescent)):
        for root in roots:
            sources += _read_root(root, label, reading, notes, failures)
    return gather(sources, notes=notes, failures=failures)


def gather_controls(
    engine: Engine, plate: str, reading: Reading, *, run: str | None = None, from_hours: float | None = None
) -> LabelledCells:
    """Return the cells of a plate's control wells: negative controls are healthy, positive ones senescent.

    `from_hours`: only images from so many hours after treatment on. Raises UsageError where the plate is unknown, lacks
    a control, or was not scored.
    """
    with engine.connect() as connection:
        found, notes = find_plate(connection, plate, run)
        rows = _control_images(connection, found, from_hours)
    sources: list[Source] = []
    failures: list[tuple[str, str]] = []
    for row in rows:
        try:
            sources.append(_read_control(row, found.name, reading))
        except (ImageError, OSError) as error:
            failures.append((str(row.path), _reason(error)))
    said = [*notes]
    if from_hours is None and len({row.timepoint for row in rows}) > 1:
        said.append(
            "cells of the positive controls are labelled senescent at every time point, also before the treatment can "
            "have worked; say with --from-hours from when on they are"
        )
    return gather(sources, notes=said, failures=failures)


class _ControlImage(NamedTuple):
    path: Path
    page: int
    well: str
    field: int
    timepoint: int
    pixel_um: float | None
    role: str
    compound: str


def _read_control(row: _ControlImage, plate: str, reading: Reading) -> Source:
    pixel_um = reading.pixel_um or row.pixel_um
    file = ImageFile(row.path, row.page, Site(plate, row.well, row.field, row.timepoint), 0, 0, pixel_um=pixel_um)
    read = partial(ndtiff_pixels if is_ndtiff(row.path) else read_pixels, row.path, row.page)
    pixels = read()
    crops = reading.cells(FieldImage(file, pixels)).pixels
    label = int(row.role == "positive")
    return Source(
        name=f"{row.path} page {row.page}" if row.page else str(row.path),
        label=label,
        crops=crops,
        digests=[digest_of(pixels)],
        plate=plate,
        well=row.well,
        field=f"field {row.field}",
        stressor=row.compound if label else "",
        read=read,
        scale=reading.scale(pixel_um) or 1.0,
        pixel_um=pixel_um,
    )


def _control_images(connection: Connection, plate: queries.PlateRow, from_hours: float | None) -> list[_ControlImage]:
    """Return the scored images of the control wells, from `from_hours` after treatment on."""
    treatments = queries.treatments(connection, plate.plate_id)
    roles = {row.well: row for row in treatments if row.role in ("negative", "positive")}
    missing = {"negative", "positive"} - {row.role for row in roles.values()}
    if missing:
        raise UsageError(
            f"plate {plate.name} has no {sorted(missing)[0]} control wells; import its plate map with their roles "
            "(sesmo-live platemap import --negative … --positive …)"
        )
    columns = (Image.path, Image.page, Image.well, Image.field, Image.timepoint, Image.pixel_um)
    statement = (
        select(*columns, Image.acquired_at, Image.acquired_from)
        .where(Image.plate_id == plate.plate_id, Image.state == "scored", Image.well.in_(list(roles)))
        .order_by(Image.well, Image.field, Image.timepoint)
    )
    rows: list[_ControlImage] = []
    for row in connection.execute(statement):
        treated = roles[row.well]
        by_file = row.acquired_from == "file"
        _, hours = queries.hours_since(plate, treated.treated_at, row.timepoint, row.acquired_at, by_file)
        if from_hours is None or (hours is not None and hours >= from_hours):
            place = (Path(row.path), row.page, row.well, row.field, row.timepoint, row.pixel_um)
            rows.append(_ControlImage(*place, treated.role, treated.compound))
    if not rows:
        if from_hours is not None:
            raise UsageError(
                f"plate {plate.name} has no scored images of its control wells from {from_hours:g} h after treatment "
                "on; give an earlier --from-hours, or score later images first"
            )
        raise UsageError(f"plate {plate.name} has no scored images of its control wells; score the plate first")
    return rows


def _refuse_same(control: Sequence[Path], senescent: Sequence[Path]) -> None:
    if not control or not senescent:
        raise UsageError("give both --control (healthy cells) and --senescent (senescent cells)")
    for healthy in control:
        for other in senescent:
            one, two = healthy.resolve(), other.resolve()
            if one == two:
                raise UsageError(f"{healthy} is given both as healthy and as senescent; give a folder for each")
            if one in two.parents or two in one.parents:
                raise UsageError(f"of {healthy} and {other} one lies in the other; give folders that lie side by side")


def _read_root(
    root: Path, label: int, reading: Reading, notes: list[str], failures: list[tuple[str, str]]
) -> list[Source]:
    files = [root] if root.is_file() else sorted(root.rglob("*.npy")) if root.is_dir() else []
    if files and any(file.suffix.lower() == ".npy" for file in files):
        return _read_crops(root, files, label, reading, failures)
    if root.is_file():
        raise UsageError(f"{root} is neither a folder nor a .npy file of crops; give a folder of pictures")
    if not root.exists():
        raise UsageError(f"there is no folder {root}; give one with pictures or .npy crops")
    pictures = list_pictures(root)
    layout = open_layout(reading.layout)
    places = {path: _place(layout, root, path) for path in pictures}
    channels = sorted({place.channel for place in places.values() if place and place.channel})
    if len(channels) > 1:
        raise UsageError(f"{root} holds the channels {', '.join(channels)}; leave the pictures of one channel in it")
    if reading.groups is not None:
        places = dict.fromkeys(places)  # what was declared counts
    sources = []
    for path, place in places.items():
        try:
            source = _read_one(root, path, place, label, reading, notes)
        except (ImageError, OSError) as error:
            failures.append((str(path), _reason(error)))
            continue
        sources.append(source)
    return sources


def _reason(error: ImageError | OSError) -> str:
    """Return why a picture was left out; nobody waits for an incomplete one here, so that remedy is another."""
    if isinstance(error, IncompleteImageError):
        return f"{str(error).partition(';')[0]}; copy it anew and run the same command again"
    return str(error)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where on a plate a file says that it is, and what more its name tells."""

    plate: str
    well: str
    field: str
    channel: str
    pixel_um: float | None


def _place(layout: Layout, root: Path, path: Path) -> _Place | None:
    try:
        named = layout(root, path)
    except ImageError:
        return None
    if named is None or (named.well is None and not named.position):
        return None
    return _Place(named.plate, named.well or named.position, f"field {named.field}", named.channel, named.pixel_um)


def _read_one(root: Path, path: Path, place: _Place | None, label: int, reading: Reading, notes: list[str]) -> Source:
    pixels = read_picture(path)
    relative = path.relative_to(root)
    pixel_um = reading.pixel_um or (place.pixel_um if place else None) or own_pixel_um(path)
    alone = reading.kind == "cells" or (reading.kind == "auto" and max(pixels.shape) <= SINGLE_CELL_PX)
    if alone:
        crops = _single_cell(pixels, pixel_um, reading, notes)
    else:
        file = ImageFile(path, 0, Site("", "A01", 1, 1), 0, 0, pixel_um=pixel_um)
        crops = reading.cells(FieldImage(file, pixels)).pixels
    names = (f"{root.name}/{relative.as_posix()}", relative.as_posix(), path.name)
    source = Source(
        name=str(path),
        label=label,
        crops=crops,
        digests=[digest_of(pixels)],
        group=groups_of(reading.groups, names, 1) if reading.groups is not None else (),
        read=None if alone else partial(read_picture, path),
        scale=reading.scale(pixel_um) or 1.0,
        pixel_um=None if alone and reading.scale(pixel_um) is None else pixel_um,
    )
    if place is not None:
        return replace(source, plate=place.plate, well=place.well, field=place.field)
    return replace(source, stressor=relative.parts[0] if label and len(relative.parts) > 1 else "")


def _single_cell(pixels: Pixels, pixel_um: float | None, reading: Reading, notes: list[str]) -> NDArray[np.uint8]:
    size = reading.passport.input_px
    scale = reading.scale(pixel_um)
    height, width = pixels.shape
    if scale is not None:
        notes.append("pictures taken for single cells were brought to the model's µm per pixel and cut to its input")
    elif (height, width) != (size, size):
        notes.append(
            f"pictures of {width}×{height} px were taken for single cells and resized to {size}×{size} px, as their µm "
            "per pixel or the model's is not declared; give --pixel-um and --model-pixel-um if cell size must count"
        )
    return fit_cell(to_uint8(pixels, reading.passport.conversion), size, scale)[None]


def _read_crops(
    root: Path, files: Sequence[Path], label: int, reading: Reading, failures: list[tuple[str, str]]
) -> list[Source]:
    """Read the `.npy` files of a folder, each as one picture full of cells."""
    base = root if root.is_dir() else root.parent
    if root.is_dir() and any(path.suffix.lower() in PICTURE_SUFFIXES for path in root.rglob("*")):
        raise UsageError(f"{root} holds both .npy crops and pictures; put them into folders of their own")
    sources = []
    for path in files:
        try:
            crops = load_crops(path, reading.passport.input_px)
        except ImageError as error:
            failures.append((str(path), _reason(error)))
            continue
        relative = path.relative_to(base).as_posix()
        sources.append(
            Source(
                name=str(path),
                label=label,
                crops=crops,
                digests=[digest_of(crop) for crop in crops],
                group=groups_of(reading.groups, (f"{base.name}/{relative}", relative, path.name), len(crops))
                if reading.groups is not None
                else (),
            )
        )
    return sources
