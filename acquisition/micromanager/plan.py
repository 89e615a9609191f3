"""The plan of an acquisition: which wells of which plate, how, how often, and what happens when something fails."""

import difflib
import tomllib
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from acquisition.layouts import image_name
from sesmo_live.errors import ConfigError, UsageError
from sesmo_live.records import Site
from sesmo_live.wells import PLATE_SHAPES, fits_plate, parse_well, row_letters, well_name, well_position

Positive = Annotated[float, Field(gt=0)]
Pixels = Annotated[int, Field(ge=1, le=100_000)]


def _standard(value: int) -> int:
    if value not in PLATE_SHAPES:
        raise ValueError(f"plates have {', '.join(map(str, PLATE_SHAPES))} wells")
    return value


def _time(value: object) -> object:
    if isinstance(value, int | float):
        raise ValueError(f"{value} is no time; write one such as 2026-11-20T18:00:00+01:00")
    return value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Microscope(_Section):
    """How Micro-Manager is reached, and what counts as having arrived."""

    connection: Literal["application", "headless"] = Field(
        "application", description="the running Micro-Manager, or its core without the window"
    )
    port: int = Field(4827, ge=1, le=65535, description="application: port of its server (Tools, Options)")
    program: Path | None = Field(None, description="headless: folder of Micro-Manager with its device adapters")
    config: str = Field("", description="headless: configuration file of the devices")
    tolerance_um: Positive = Field(10.0, description="µm between wanted and measured stage position, at most")
    z_tolerance_um: Positive = Field(5.0, description="µm between wanted and measured focus, at most")
    speed_um_s: Positive = Field(10_000.0, description="µm per second that the stage travels, for the estimates")
    timeout_s: Positive = Field(30.0, description="seconds without any progress after which a device counts as stuck")
    properties: list[str] = Field(
        default_factory=list, description="device properties kept with each frame, as 'Objective-Label'"
    )


class Plate(_Section):
    """Which plate, and where three of its wells stand on the stage."""

    name: str = Field(min_length=1, description="name under which the scores are kept")
    run: str = Field("", description="name of this run, if the plate is imaged more than once")
    wells: Annotated[int, AfterValidator(_standard)] = Field(description="wells of the plate: 6 to 1536")
    reference: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="stage position (x, y in µm) of the middle of three wells"
    )


class Imaging(_Section):
    """What is imaged in a round."""

    wells: list[str] = Field(
        default_factory=lambda: ["all"], min_length=1, description="wells and ranges: 'B02:G11', 'A01', 'all'"
    )
    fields: int = Field(1, ge=1, le=1000, description="fields of each well")
    pattern: Literal["grid", "random"] = Field("grid", description="how the fields lie in the well")
    gap_percent: float = Field(
        10.0, ge=-50, description="grid: room between fields, % of a field; below 0 they overlap"
    )
    seed: int = Field(1, ge=0, description="random: seed of the places, which stay the same in all rounds")
    frame_px: tuple[Pixels, Pixels] = Field(description="width and height of the camera's image in pixels")
    pixel_um: Positive = Field(description="µm per pixel in the sample")
    exposure_ms: Positive = Field(description="exposure in milliseconds")
    channel: str = Field("Phase", description="name of the channel in the images' names; the preset's if there is one")
    channel_group: str = Field("", description="Micro-Manager's configuration group; empty: the light stays as it is")
    compression: Literal["none", "zstd"] = Field("none", description="how frames are compressed")


class Focus(_Section):
    """How the focus is held."""

    z_um: float | None = Field(None, description="focus position in µm; absent: where it is when the plan starts")
    device: str = Field("", description="autofocus device; empty: no autofocus")
    every: int = Field(1, ge=1, description="autofocus at each n-th well of a round")
    seconds: Positive = Field(2.0, description="seconds that one autofocus takes, for the estimates")
    safe_z_um: float | None = Field(None, description="focus position in µm for travel between wells and for parking")


class Rounds(_Section):
    """When the plate is imaged."""

    every_min: float = Field(ge=0.01, description="minutes from the beginning of a round to that of the next")
    for_h: float = Field(ge=0, le=10_000, description="hours from the first round to the last; 0: one round")
    start: Annotated[datetime, BeforeValidator(_time)] | None = Field(
        None, description="when the first round begins; absent: at once"
    )
    timezone: str = Field("", description="zone of `start` if it has none; empty: this computer's")


class Faults(_Section):
    """What happens when a field cannot be imaged."""

    retries: int = Field(1, ge=0, le=10, description="how often a field is tried again, at the end of the round")
    then: Literal["skip", "stop"] = Field("skip", description="after the retries: skip the field, or stop and park")
    in_a_row: int = Field(6, ge=1, description="wells that fail one after the other before the round is broken off")
    bad_share: float = Field(0.5, gt=0, le=1, description="a round that misses more of its fields is a bad one")
    bad_rounds: int = Field(3, ge=1, description="bad rounds in a row after which it stops and parks")


class Loop(_Section):
    """What is done upon the scores."""

    refocus: bool = Field(False, description="image a field once more that was refused as out of focus or empty")
    wait_s: Positive = Field(60.0, description="seconds to wait for the scores of a round before refocusing")
    moved_by: float | None = Field(None, gt=0, le=1, description="image wells more often whose score moved by more")
    divide: int = Field(2, ge=2, le=20, description="how often in one interval such wells are imaged")


class Plan(_Section):
    """All of a plan file."""

    folder: Path = Field(description="folder that sesmo-live watches; the frames go there")
    database: str = Field("sesmo.db", description="database of the scores, where incidents are recorded too")
    microscope: Microscope = Microscope()
    plate: Plate
    imaging: Imaging
    focus: Focus = Focus()
    rounds: Rounds
    faults: Faults = Faults()
    loop: Loop = Loop()

    @model_validator(mode="after")
    def _fits(self) -> "Plan":
        for well in [*self.plate.reference, *(part for text in self.imaging.wells for part in _ends(text))]:
            if not fits_plate(_well(well), self.plate.wells):
                raise ValueError(f"well {well} is not on a plate of {self.plate.wells} wells")
        _named(Site(self.plate.name, "A01", 1, 1, self.imaging.channel, 0, self.plate.run))
        if self.microscope.connection == "headless" and not (self.microscope.config and self.microscope.program):
            raise ValueError("a headless microscope needs program (Micro-Manager's folder) and config")
        if self.loop.refocus and not self.focus.device:
            raise ValueError("loop.refocus needs an autofocus; set focus.device, or leave refocus out")
        if self.rounds.timezone:
            _zone(self.rounds.timezone)
        return self

    @property
    def wells(self) -> list[str]:
        """Return the wells to image, row by row, each row the other way round than the one before."""
        chosen = {well for text in self.imaging.wells for well in _expand(text, self.plate.wells)}
        return sorted(chosen, key=_snake)

    @property
    def start(self) -> datetime | None:
        """Return when the first round begins, with a zone; None: at once."""
        start = self.rounds.start
        if start is None or start.tzinfo is not None:
            return start
        return start.replace(tzinfo=_zone(self.rounds.timezone)) if self.rounds.timezone else start.astimezone()


def _snake(well: str) -> tuple[int, int]:
    row, column = well_position(well)
    return row, column if row % 2 else -column


def _well(text: str) -> str:
    try:
        return parse_well(text)
    except UsageError as error:
        raise ValueError(str(error)) from error


def _ends(text: str) -> list[str]:
    """Return the wells that a choice of wells names: none for `all`, the only one, or the corners of a range."""
    return [] if text == "all" else text.split(":", 1)


def _named(site: Site) -> None:
    """Raise ValueError unless images of `site` can have a name."""
    try:
        image_name("sesmo", site)
    except UsageError as error:
        raise ValueError(
            f"plate.name {site.plate!r}, plate.run {site.run!r} and imaging.channel {site.channel!r} make no file "
            "name; use letters, digits, spaces, - and single _"
        ) from error


def _expand(text: str, wells: int) -> list[str]:
    """Return the wells that `A01`, `B02:G11` or `all` stand for."""
    rows, columns = PLATE_SHAPES[wells]
    corners = _ends(text) or ["A1", f"{row_letters(rows)}{columns}"]
    (top, left), (bottom, right) = well_position(_well(corners[0])), well_position(_well(corners[-1]))
    return [
        well_name(row, column)
        for row in range(min(top, bottom), max(top, bottom) + 1)
        for column in range(min(left, right), max(left, right) + 1)
    ]


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is no time zone; write one such as Europe/Berlin or UTC") from error


def load_plan(path: Path) -> Plan:
    """Read a plan; its relative paths count from the plan's folder.

    Raises ConfigError that names the key and the remedy.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no plan {path}; give the path of an existing one") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}; correct that line") from error
    return _resolved(plan_from(data, str(path)), path.absolute().parent)


def plan_from(data: dict[str, Any], source: str) -> Plan:
    """Check the values of a plan; `source` names them in the ConfigError that the first wrong one raises."""
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        first = next(
            (one for one in found if one["type"] == "extra_forbidden"), found[0]
        )  # a typo is missing elsewhere
        location = [str(part) for part in first["loc"]]
        where, message = ".".join(location), first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            hint = _nearest(location)
            raise ConfigError(f"{source}: there is no setting {where!r} in a plan; {hint}") from error
        if first["type"] == "missing":
            raise ConfigError(f"{source}: {where} is missing; set it") from error
        raise ConfigError(f"{source}: {where + ': ' if where else ''}{message}; correct this value") from error


def _nearest(location: list[str]) -> str:
    """Return the key that was probably meant, or those there are."""
    section: Any = Plan
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    known = list(section.model_fields)
    near = difflib.get_close_matches(location[-1], known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"


def _resolved(plan: Plan, base: Path) -> Plan:
    microscope = plan.microscope
    if microscope.program is not None:
        microscope = microscope.model_copy(update={"program": base / microscope.program.expanduser()})
    database = plan.database if "://" in plan.database else str(base / Path(plan.database).expanduser())
    updates = {"folder": base / plan.folder.expanduser(), "database": database, "microscope": microscope}
    return plan.model_copy(update=updates)
