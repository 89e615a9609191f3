"""Which plate, well, field and moment a file's pages belong to: its name first, then what the file itself says."""

import csv
import re
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

from acquisition.layouts import Named
from acquisition.metadata import PageInfo
from acquisition.ndtiff import INDEX_NAME, is_ndtiff
from acquisition.tree import SeenFile, time_ns
from sesmo_live.config import Watch, Watching, in_zone, zone
from sesmo_live.errors import ConfigError, ImageError, UsageError
from sesmo_live.pipeline import Recipe
from sesmo_live.records import ImageState, Site
from sesmo_live.wells import fits_plate, parse_well

Read = Callable[..., Any]
"""How a function that opens an untrusted file is called: `read(function, *arguments)`, here or in another process."""

WAITING = "waiting until the file is complete"
TURN = "waiting to be scored"


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """One watched folder, wired: how names are parsed and how images are scored."""

    root: Path
    options: Watch
    parse: Callable[[Path, Path], Named | None]
    recipe: Recipe
    model_key: int
    threshold: float
    watching: Watching
    read: Read
    suspects: MutableMapping[str, list[int]] = field(default_factory=dict)
    once: bool = False
    source: str = ""
    """Whose the paths below `root` are in the database: this daemon's, by its name; SHARED; "" in a SQLite file."""
    barcodes: Mapping[str, str] = field(default_factory=dict)

    @property
    def zone(self) -> tzinfo | None:
        """The time zone of times that carry none; None is this computer's."""
        return zone(self.options.timezone)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a file at its place."""

    page: int
    site: Site
    channel_label: str
    acquired_at: datetime
    acquired_from: str
    pixel_um: float | None
    stage_um: tuple[float, float] | None


def sight(path: Path) -> SeenFile:
    """Return a file, or an NDTiff folder by its index, as it is on disk now; raise OSError when it is gone."""
    state = (path / INDEX_NAME if is_ndtiff(path) else path).stat()
    return SeenFile(path, state.st_size, time_ns(state))


def surprise(path: Path, error: Exception) -> str:
    """Return the reason why a file failed that nobody foresaw."""
    return f"{path} could not be read: {type(error).__name__}: {error}; please report it"


def classify(plan: WatchPlan, path: Path) -> tuple[Named | None, ImageState, str]:
    """Return what a file's name says, the state it starts in, and the reason."""
    if is_ndtiff(path):
        return Named(well=None, plate=path.name), "pending", WAITING
    if path.suffix.lower() not in (".tif", ".tiff"):
        kind = path.suffix.lstrip(".").upper()
        return None, "skipped", f"{kind} files are not read; have the instrument export TIFF"
    try:
        named = plan.parse(plan.root, path)
    except ImageError as error:
        return None, "failed", str(error)
    if named is None:
        return (
            None,
            "failed",
            (
                f"layout {plan.options.layout!r} does not know the name {path.name}; "
                "set layout, or layout = 'regex' with a pattern, for this folder"
            ),
        )
    if named.skip:
        return named, "skipped", named.skip
    if named.well is not None:
        try:
            check_well(plan, named.well)
        except ImageError as error:
            return None, "failed", str(error)
    return named, "pending", WAITING


def check_well(plan: WatchPlan, well: str) -> None:
    """Raise ImageError when `well` lies outside the configured plate."""
    wells = plan.options.plate_wells
    if wells and not fits_plate(well, wells):
        raise ImageError(f"well {well} lies outside the {wells}-well plate; correct plate_wells or the layout")


def plate_name(plan: WatchPlan, named: Named, path: Path) -> str:
    """Return the plate's name: configured, from a barcode file, from the layout, else the watched folder's."""
    name = plan.options.plate or _barcode_beside(plan, path) or named.plate or plan.root.name
    return plan.barcodes.get(name, name)


def _barcode_beside(plan: WatchPlan, path: Path) -> str:
    """Return the first line of the nearest barcode file at or above the image, up to the watched folder."""
    if not plan.options.barcode_file:
        return ""
    for folder in path.parents:
        file = folder / plan.options.barcode_file
        with suppress(OSError):  # it is not there, or cannot be read now
            return file.read_text(encoding="utf-8-sig", errors="replace").strip().partition("\n")[0].strip()
        if folder == plan.root:
            break
    return ""


def read_barcodes(path: Path) -> dict[str, str]:
    """Read a CSV of two columns, plate name in the layout and plate name to use; a heading line is harmless."""
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the barcode file {path} cannot be read: {error}; give a CSV of two columns") from error
    short = next((number for number, row in enumerate(rows, 1) if row and len(row) < 2), None)
    if short:
        raise ConfigError(f"{path}, line {short}: two columns are needed, plate in the layout and plate to use")
    return {row[0].strip(): row[1].strip() for row in rows if row}


def source_folder(plan: WatchPlan, path: Path, name: str) -> str:
    """Return the folder that holds one run of a plate: the one of the plate's `name`, else the watched one."""
    relative = path.relative_to(plan.root)
    if plan.options.plate or name not in relative.parts[:-1]:
        return str(plan.root)
    return str(plan.root.joinpath(*relative.parts[: relative.parts.index(name) + 1]))


def file_time(plan: WatchPlan, named: Named, mtime_ns: int) -> datetime:
    """Return when the image was taken, in UTC, as far as name and file time tell."""
    return utc(plan, named.acquired_at) or moment_of(mtime_ns)


def moment_of(mtime_ns: int) -> datetime:
    """Return a file's time in UTC; one outside the years 1970 to 2100, as odd file systems have, is brought within."""
    return datetime.fromtimestamp(min(max(mtime_ns, 0), 4_102_444_800 * 10**9) / 1e9, UTC)


def utc(plan: WatchPlan, moment: datetime | None) -> datetime | None:
    """Return a moment in UTC; one without a zone is in the configured one, else this computer's."""
    # An instrument's "no time" is often the year 1; near the ends of the calendar there is no UTC.
    if moment is None or not 1970 < moment.year < 2100:
        return None
    return in_zone(moment, plan.options.timezone).astimezone(UTC)


def place_pages(
    plan: WatchPlan, file: SeenFile, plate: str, run: str, named: Named, pages: list[PageInfo], *, stack: bool = False
) -> list[Page]:
    """Return the place of every page; raise ImageError when a page has no well.

    The name is believed before the file, except within a stack, whose pages only the file can tell apart. Pages
    that say nothing are time points (or focal planes, by `stack_axis`) in their order. `stack`: more pages will come.
    """
    stack = stack or len(pages) > 1
    silent = stack and all(info.timepoint is None and info.z is None and info.channel is None for info in pages)
    return [_place(plan, file, plate, run, named, info, stack, silent) for info in pages]


def _place(
    plan: WatchPlan, file: SeenFile, plate: str, run: str, named: Named, info: PageInfo, stack: bool, silent: bool
) -> Page:
    well, field_number = _well(plan, file, named, info)
    check_well(plan, well)
    timepoint, z, channel = named.timepoint, named.z, named.channel or info.channel or ""
    if stack:
        timepoint = info.timepoint if info.timepoint is not None else timepoint
        z = info.z if info.z is not None else z
        channel = info.channel or channel
    if silent and plan.options.stack_axis == "timepoint":
        timepoint = info.page + 1
    elif silent:
        z = info.page + 1
    # A plain DateTime tag is often the time of export: the name or the vendor's index knows better.
    said = None if info.source == "tiff" and named.acquired_at else info.acquired_at
    measured = utc(plan, said)
    by_name = utc(plan, named.acquired_at)
    moment = measured or by_name or moment_of(file.mtime_ns)
    return Page(
        page=info.page,
        site=Site(plate, well, field_number, timepoint, channel, z, run),
        channel_label=named.channel_name or info.channel or named.channel,
        acquired_at=moment,
        acquired_from=info.source if measured else "name" if by_name else "file",
        pixel_um=plan.options.pixel_um or named.pixel_um or info.pixel_um,
        stage_um=named.stage_um or info.stage_um,
    )


def _well(plan: WatchPlan, file: SeenFile, named: Named, info: PageInfo) -> tuple[str, int]:
    """Return (well, field) of a page: from the `wells` map, the name, or a label in the file such as `B03-Site_2`.

    A layout's own position label is never read as a well: some count positions `W0029` that are no wells.
    """
    for label in (info.position, named.position):
        if label and label in plan.options.wells:
            return parse_well(plan.options.wells[label]), named.field
    if named.well is not None:
        return named.well, named.field
    try:
        return _well_in(info.position or "", named.field)
    except UsageError as error:
        label = info.position or named.position
        said = f"says position {label!r} but no well" if label else "says neither well nor position"
        remedy = f'wells = {{ "{label}" = "A01" }}' if label else "layout = 'regex' with a pattern that finds the well"
        raise ImageError(f"{file.path.name} {said}; give its folder {remedy}") from error


def _well_in(label: str, field: int) -> tuple[str, int]:
    """Read Micro-Manager's position labels `B03-Site_2` and `B03`; raise UsageError for `Pos0`, `S1` and the like."""
    head, _, tail = label.partition("-")
    well = parse_well(head)
    if not tail and not fits_plate(well, 96):
        raise UsageError(f"{label!r} may count positions; it is not taken for a well")
    digits = re.sub(r"\D", "", tail)
    return well, int(digits) if digits else field
