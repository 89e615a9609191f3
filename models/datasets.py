"""Labelled cells: crops with what they share, so that no split and no interval takes neighbours for strangers."""

import csv
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sesmo_live.errors import ImageError, UsageError
from sesmo_live.records import Pixels

LABELS = ("healthy", "senescent")
"""The classes in the order of their labels, 0 and 1."""

MIN_CELLS = 10
"""Fewer cells of a class cannot be split into a part to learn from and a part to measure on."""

DIGEST_LETTERS = 16
"""Letters of a picture's hash that are kept: two of a million differ with a chance of 0.99999997."""

Groups = Mapping[tuple[str, int | None], str]
"""Group by file name and cell number (None: all cells of the file)."""


@dataclass(frozen=True, slots=True)
class Source:
    """The cells of one picture or one `.npy` file, all of one label (0 healthy, 1 senescent).

    `crops` is uint8 N×H×H, `digests` one hash for all or one a cell. `plate`, `well`, `field` are empty where unknown;
    `group` names what cells share, for each cell or for all, where it was declared. `stressor` is what was given.
    `read` reads a field's picture again, `scale` is its µm per pixel over the model's; a single cell has no field.
    `pixel_um` is the picture's µm per pixel, None where it is not known.
    """

    name: str
    label: int
    crops: NDArray[np.uint8]
    digests: Sequence[str]
    plate: str = ""
    well: str = ""
    field: str = ""
    stressor: str = ""
    group: Sequence[str] = ()
    read: Callable[[], Pixels] | None = None
    scale: float = 1.0
    pixel_um: float | None = None


@dataclass(frozen=True, slots=True)
class LabelledCells:
    """Cells of both classes: uint8 N×H×H crops, labels N, and for each cell its group, picture, plate and stressor.

    `digests` are of the pictures that the cells come from. `split` says in words what the groups are, `notes` what
    must be said with every figure, `failures` which pictures were left out and why. `fields` reads the pictures that
    are fields again, by name, and `scale` is their usual µm per pixel over the model's. `pixel_um` is the one µm per
    pixel that all pictures have, None where it is not known or differs.
    """

    crops: NDArray[np.uint8]
    labels: NDArray[np.int_]
    groups: list[str]
    pictures: list[str]
    digests: list[str]
    plates: list[str]
    stressors: list[str]
    split: str
    notes: tuple[str, ...] = ()
    failures: tuple[tuple[str, str], ...] = ()
    fields: Mapping[str, Callable[[], Pixels]] = field(default_factory=dict)
    scale: float = 1.0
    pixel_um: float | None = None

    def __len__(self) -> int:
        return len(self.labels)


def gather(
    sources: Sequence[Source], *, notes: Sequence[str] = (), failures: Sequence[tuple[str, str]] = ()
) -> LabelledCells:
    """Put the cells of all sources together; group them by plate, else well, else field, else picture.

    The coarsest is taken of which each class has two. Raises UsageError where a class has too few cells, and where one
    picture stands in both classes.
    """
    held, copies = _without_copies([source for source in sources if len(source.crops)])
    _check(held, failures)
    groups, split, warning = _group(held)
    sizes = [len(source.crops) for source in held]

    def spread(values: Sequence[str]) -> list[str]:
        return [value for value, size in zip(values, sizes, strict=True) for _ in range(size)]

    return LabelledCells(
        crops=np.concatenate([source.crops for source in held]),
        labels=np.repeat([source.label for source in held], sizes),
        groups=groups,
        pictures=spread([source.name for source in held]),
        digests=[digest for source in held for digest in _of_each(source.digests, len(source.crops))],
        plates=spread([source.plate for source in held]),
        stressors=spread([source.stressor for source in held]),
        split=split,
        notes=(*dict.fromkeys(notes), *(note for note in (copies, _scales(held), warning) if note)),
        failures=tuple(failures),
        fields={source.name: source.read for source in held if source.read is not None},
        scale=float(np.median([source.scale for source in held])),
        pixel_um=_one_scale([source.pixel_um for source in held]),
    )


def digest_of(pixels: Pixels) -> str:
    """Return a hash of a picture's decoded pixels: the same for a copy under another name or in another format."""
    digest = hashlib.sha256(repr((pixels.shape, pixels.dtype.str)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()[:DIGEST_LETTERS]


def fit_cell(image: NDArray[np.uint8], input_px: int, scale: float | None) -> NDArray[np.uint8]:
    """Return a single-cell image as a crop of `input_px`.

    With `scale` (the image's µm per pixel over the model's) it is resampled by it and cut or continued around its
    centre; without, the whole image is resized, whatever the size of its cell then is.
    """
    height, width = image.shape
    if scale is None:
        way = cv2.INTER_AREA if max(height, width) > input_px else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(image, (input_px, input_px), interpolation=way), np.uint8)
    if abs(scale - 1) > 0.05:
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = np.asarray(cv2.resize(image, size, interpolation=way), np.uint8)
    rims = [(max(0, -(-(input_px - side) // 2)),) * 2 for side in image.shape]
    image = np.pad(image, rims, mode="edge")
    top, left = ((side - input_px) // 2 for side in image.shape)
    return np.ascontiguousarray(image[top : top + input_px, left : left + input_px])


def load_crops(path: Path, input_px: int) -> NDArray[np.uint8]:
    """Return the crops in a `.npy` file; raise ImageError unless they are uint8 N×`input_px`×`input_px`."""
    try:
        crops = np.load(path, allow_pickle=False)
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror or error}); give a file that is yours") from error
    except (ValueError, EOFError, TypeError) as error:
        raise ImageError(f"{path} is no whole NumPy file of plain numbers; write it with numpy.save") from error
    if not isinstance(crops, np.ndarray):
        raise ImageError(f"{path} holds several arrays; write the crops alone with numpy.save")
    if crops.dtype != np.uint8 or crops.ndim != 3 or crops.shape[1:] != (input_px, input_px):
        raise ImageError(
            f"{path} holds {crops.dtype} of shape {crops.shape}; crops are uint8 of shape "
            f"(cells, {input_px}, {input_px})"
        )
    return np.asarray(crops, np.uint8)


def read_groups(path: Path) -> dict[tuple[str, int | None], str]:
    """Return the groups in a CSV file with the columns file, group and, for `.npy` files, cell (counted from 0).

    Raises UsageError, naming the line, for anything else.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            if not {"file", "group"} <= set(table.fieldnames or ()):
                raise UsageError(f"{path} needs the columns file and group (and cell for .npy files) in its first line")
            groups: dict[tuple[str, int | None], str] = {}
            for line, row in enumerate(table, start=2):
                cell = (row.get("cell") or "").strip()
                if not row["file"] or not row["group"] or not (cell == "" or cell.isdecimal()):
                    raise UsageError(f"{path}, line {line}: give a file, a group and, if any, a cell number from 0")
                key = (row["file"], int(cell) if cell else None)
                if groups.setdefault(key, row["group"]) != row["group"]:
                    raise UsageError(
                        f"{path}, line {line}: {row['file']} was in group {groups[key]!r} before; where two folders "
                        "hold files of one name, write folder/file"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as CSV ({error}); give a text file") from error
    return groups


def groups_of(groups: Groups, names: Sequence[str], n: int) -> list[str]:
    """Return the declared group of each of a file's `n` cells, the file being found under any of `names`.

    Raises UsageError for the first cell that has none.
    """
    found = []
    for cell in range(n):
        keys = [(name, number) for number in (cell, None) for name in names]
        group = next((groups[key] for key in keys if key in groups), None)
        if group is None:
            raise UsageError(f"--groups says nothing of cell {cell} of {names[0]}; add a line for it")
        found.append(group)
    return found


def _one_scale(scales: Sequence[float | None]) -> float | None:
    """Return the median of the µm per pixel where all pictures have one, and the same to 5 %."""
    known = [scale for scale in scales if scale is not None]
    if len(known) < len(scales) or max(known) > 1.05 * min(known):
        return None
    return float(np.median(known))


def _scales(sources: Sequence[Source]) -> str:
    """Return a warning where pictures differ in µm per pixel and nothing brought them to one."""
    known = {source.pixel_um for source in sources if source.pixel_um is not None}
    if len(known) < 2 or max(known) <= 1.05 * min(known) or any(source.scale != 1.0 for source in sources):
        return ""
    return (
        f"the pictures' scales differ ({min(known):g} to {max(known):g} µm per pixel): a network may learn the "
        "magnification; give --model-pixel-um, to which all are resampled"
    )


def _without_copies(sources: Sequence[Source]) -> tuple[list[Source], str]:
    """Return the sources with each picture or crop of a class once, and a note that says how many cells were copies."""
    seen: set[tuple[int, str]] = set()
    kept, n_copies = [], 0
    for source in sources:
        if len(source.digests) == 1 < len(source.crops):
            fresh = np.full(len(source.crops), (source.label, source.digests[0]) not in seen)
            seen.add((source.label, source.digests[0]))
        else:
            fresh = np.zeros(len(source.crops), np.bool_)
            for number, digest in enumerate(source.digests):
                fresh[number] = (source.label, digest) not in seen
                seen.add((source.label, digest))
        n_copies += int((~fresh).sum())
        if fresh.any():
            kept.append(source if fresh.all() else _part(source, fresh))
    return kept, f"{n_copies} cells were copies of others, and left out" if n_copies else ""


def _part(source: Source, chosen: NDArray[np.bool_]) -> Source:
    """Return the chosen cells of a source."""

    def pick(values: Sequence[str]) -> Sequence[str]:
        if len(values) != len(chosen):
            return values
        return [value for value, taken in zip(values, chosen, strict=True) if taken]

    return replace(source, crops=source.crops[chosen], digests=pick(source.digests), group=pick(source.group))


def _of_each(values: Sequence[str], n: int) -> Sequence[str]:
    return [values[0]] * n if len(values) == 1 else values


def _group(sources: Sequence[Source]) -> tuple[list[str], str, str]:
    """Return the group of each cell, what the groups are in words, and a warning where cells may be related."""
    if any(source.group for source in sources):
        groups = [
            group
            for source in sources
            for group in _of_each(source.group or (f"{LABELS[source.label]} {source.name}",), len(source.crops))
        ]
        return groups, "by declared group", ""
    for words, key in _LEVELS:
        names = [key(source) for source in sources]
        if all(names) and min(_distinct(sources, names)) >= 2:
            groups = [name for name, source in zip(names, sources, strict=True) for _ in source.crops]
            warning = "" if words != _BY_PICTURE else _LOOSE_PICTURES if _one_each(sources) else _UNPLACED
            return groups, words, warning
    groups = [f"{number} {cell}" for number, source in enumerate(sources) for cell in range(len(source.crops))]
    return groups, "by cell", _LEAK


def _distinct(sources: Sequence[Source], names: Sequence[str]) -> list[int]:
    return [
        len({name for name, source in zip(names, sources, strict=True) if source.label == label}) for label in (0, 1)
    ]


def _one_each(sources: Sequence[Source]) -> bool:
    return all(len(source.crops) == 1 for source in sources)


def _plate(source: Source) -> str:
    """Return the plate; where it is unknown, wells of one name in the two classes are of two plates."""
    return source.plate or LABELS[source.label]


_BY_PICTURE = "by picture"
_LEVELS: tuple[tuple[str, Callable[[Source], str]], ...] = (
    ("by plate", lambda source: source.plate),
    ("by well", lambda source: source.well and f"{_plate(source)} {source.well}"),
    (
        "by field, all its time points together",
        lambda source: source.field and f"{_plate(source)} {source.well} {source.field}",
    ),
    (_BY_PICTURE, lambda source: f"{LABELS[source.label]} {source.name}"),
)
_UNPLACED = (
    "the file names tell no plate, well or field, so each picture counts as a field of its own; if some show one place "
    "at several times, name the places with --groups, or the figures will flatter"
)
_LOOSE_PICTURES = (
    "the cells' origin is not known, so each counts as independent; if some come from one field or cell, name them "
    "with --groups, or the figures will flatter"
)
_LEAK = (
    "the crops are ungrouped: cells of one image may lie on both sides of the split, which flatters the figures; name "
    "their plates, wells or fields with --groups"
)


def _check(sources: Sequence[Source], failures: Sequence[tuple[str, str]]) -> None:
    first = f"; first of {len(failures)} that failed: {failures[0][1]}" if failures else ""
    for label, name in enumerate(LABELS):
        n = sum(len(source.crops) for source in sources if source.label == label)
        if n < MIN_CELLS:
            found = "no cell was" if not n else f"only {n} cell{'s were' if n > 1 else ' was'}"
            raise UsageError(f"{found} found among the {name} images; give at least {MIN_CELLS}{first}")
    seen: dict[str, Source] = {}
    for source in sources:
        for digest in source.digests:
            other = seen.setdefault(digest, source)
            if other.label != source.label:
                raise UsageError(
                    f"{source.name} and {other.name} hold the same picture, once as healthy and once as senescent; "
                    "remove it from one of them"
                )
