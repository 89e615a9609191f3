"""Settings: `config.toml` read strictly, every key described with its unit."""

import difflib
import platform
import tomllib
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sesmo_live.errors import ConfigError, PlateMapError
from sesmo_live.platemap.times import to_utc
from sesmo_live.records import Precision
from sesmo_live.wells import PLATE_SHAPES

COMMAND_LINE = "the command line"
"""What `settings_from` calls values that options gave; messages then name the option."""

Seconds = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Database(_Section):
    """Where scores are kept."""

    url: str = Field("sesmo.db", description="SQLite file, or a PostgreSQL URL")


class Service(_Section):
    """Who this daemon is among those that write one PostgreSQL database."""

    name: str = Field("", description="name of its own; empty: this computer's name")

    @field_validator("name")
    @classmethod
    def _not_shared(cls, value: str) -> str:
        if value.strip() == "*":  # db.schema.SHARED, which loads slowly
            raise ValueError("'*' stands for shared folders")
        return value

    @property
    def daemon(self) -> str:
        """The name, never empty."""
        return self.name.strip() or platform.node() or "sesmo-live"


class Scoring(_Section):
    """How images become scores."""

    model: str = Field("", description="model folder or name; empty: the shipped demonstration model")
    readers: int = Field(2, ge=1, le=64, description="threads that read and crop")
    batch_cells: int = Field(1024, ge=1, description="cells in a micro-batch before it is scored")
    max_wait_s: float = Field(0.01, ge=0, description="seconds a micro-batch waits for more cells")
    refuse: bool = Field(True, description="refuse images that are not fit to be scored")
    precision: Precision = Field("fp32", description="numbers that the network computes in: fp32, or bf16, faster")
    gpu_memory_mb: int | None = Field(None, ge=256, description="MiB of GPU memory at most; absent: as needed")


class Watching(_Section):
    """How folders are watched."""

    scan_interval_s: Seconds = Field(5.0, description="seconds between two scans; events only come before it")
    settle_s: float = Field(3.0, ge=0, description="seconds a file must stay unchanged before it is read")
    share_scan_interval_s: Seconds = Field(10.0, description="seconds between two scans of a network share")
    share_settle_s: float = Field(10.0, ge=0, description="the same as settle_s, on a network share")
    events: bool = Field(True, description="let file system events wake the scan (never done on network shares)")
    retries: int = Field(3, ge=0, description="how often an incomplete or unreadable file is tried again")
    retry_after_s: Seconds = Field(5.0, description="seconds before the first new attempt; doubled each time")
    zero_tail_hold_s: float = Field(60.0, ge=0, description="seconds a file that ends in zeros is held")


class Decoding(_Section):
    """How files that nobody vouches for are decoded."""

    isolate: Literal["auto", "always", "never"] = Field("auto", description="decode in processes of their own")
    timeout_s: Seconds = Field(30.0, description="seconds an isolated image may take")
    memory_mb: int = Field(2048, ge=256, description="MiB of memory an isolated decoder may take (not on Windows)")


class Alerts(_Section):
    """Who is told when something is wrong."""

    urls: list[str] = Field(default_factory=list, description="where incidents are sent, as Apprise URLs")
    stall_factor: float = Field(1.5, gt=1, description="a plate has stalled after so many of its frame intervals")
    failed_fraction: float = Field(0.2, gt=0, le=1, description="alarm when more of the last 50 images failed")
    refused_fraction: float = Field(0.5, gt=0, le=1, description="alarm when more of the last 50 images were refused")


class Logging(_Section):
    """Where the log goes besides the terminal."""

    file: Path | None = Field(None, description="log file; absent: none")
    max_mb: float = Field(10.0, gt=0, description="MB after which a new log file is begun")
    keep: int = Field(5, ge=1, description="old log files that are kept")


class Web(_Section):
    """The page and the API."""

    enabled: bool = Field(True, description="serve the page beside run and demo")
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; others than 127.0.0.1 need a token")
    port: int = Field(8766, ge=0, le=65535, description="port; 0: any free one")
    token: str = Field("", description="what changes need; empty: made, and kept beside the database")
    token_file: Path | None = Field(None, description="file that holds the token, instead of token")
    names: list[str] = Field(default_factory=list, description="further names under which the page is addressed")


class Watch(_Section):
    """One watched folder."""

    folder: Path = Field(description="the folder; images may lie in folders below it")
    shared: bool = Field(False, description="daemons on other computers watch this folder, too, by the same path")
    plate: str = Field("", description="plate name; empty: from the layout, else the folder's name")
    layout: str = Field("auto", description="auto, regex, or the name of a layout preset")
    pattern: str = Field("", description="with layout = 'regex': a regular expression with named groups")
    wells: dict[str, str] = Field(default_factory=dict, description="position label to well, for names without wells")
    stack_axis: Literal["timepoint", "z"] = Field("timepoint", description="what the pages of an unlabelled stack are")
    model: str = Field("", description="model folder or name; empty: the one of [scoring]")
    channel: str = Field("", description="channel to score, by number or name; empty: chosen and said aloud")
    z: int | None = Field(None, description="focal plane to score; absent: chosen and said aloud")
    pixel_um: float | None = Field(None, gt=0, description="µm per pixel in the sample; absent: from the files")
    timezone: str = Field("", description="zone of times without one, such as Europe/Berlin; empty: this computer's")
    frame_interval_s: float | None = Field(None, gt=0, description="seconds between time points without a time")
    plate_wells: int | None = Field(None, description="wells of the plate; a well outside it fails")
    treated_at: datetime | None = Field(None, description="when the plate was treated")
    platemap: Path | None = Field(None, description="plate map to import at the start (needs plate)")
    barcodes: Path | None = Field(None, description="CSV of two columns: plate name in the layout, plate name to use")
    barcode_file: str = Field("", description="text file beside the images whose first line is the plate's name")
    arrival: Literal["settle", "rename"] = Field("settle", description="rename: files appear complete, never wait")
    black_edges: bool = Field(False, description="images may end in black: believe zeros after zero_tail_hold_s")
    timepoints: int | None = Field(None, ge=1, description="time points of the whole run; absent: not known")

    @field_validator("plate_wells")
    @classmethod
    def _standard_plate(cls, value: int | None) -> int | None:
        if value is not None and value not in PLATE_SHAPES:
            raise ValueError(f"plates have {', '.join(map(str, PLATE_SHAPES))} wells")
        return value

    @model_validator(mode="after")
    def _place_in_time(self) -> "Watch":
        if self.treated_at is None:
            return self
        try:
            moment = to_utc(self.treated_at, self.timezone or None)
        except PlateMapError as error:
            raise ValueError(str(error)) from error
        return self.model_copy(update={"treated_at": moment})

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        zone(value)
        return value


class Settings(_Section):
    """All of `config.toml`."""

    database: Database = Database()
    service: Service = Service()
    scoring: Scoring = Scoring()
    watching: Watching = Watching()
    decoding: Decoding = Decoding()
    alerts: Alerts = Alerts()
    logging: Logging = Logging()
    web: Web = Web()
    watch: list[Watch] = Field(default_factory=list, description="the watched folders")


def zone(name: str) -> tzinfo | None:
    """Return the time zone of that name, None (this computer's own) for an empty one."""
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is no time zone; write one such as Europe/Berlin or UTC") from error


def in_zone(moment: datetime, name: str) -> datetime:
    """Return `moment` with a zone: its own, else the named one, else this computer's."""
    if moment.tzinfo is not None:
        return moment
    local = zone(name)
    return moment.replace(tzinfo=local) if local else moment.astimezone()


def load_settings(path: Path | None) -> Settings:
    """Read a configuration file, or the defaults when `path` is None.

    Relative paths in the file count from the file's folder. Raises ConfigError naming the key and the remedy.
    """
    if path is None:
        return Settings()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}; give --config an existing one") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}; correct that line") from error
    settings = settings_from(data, str(path))
    return _resolve_paths(settings, path.absolute().parent)


def settings_from(data: dict[str, Any], source: str) -> Settings:
    """Check configuration values; `source` names them in the ConfigError that the first wrong one raises."""
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        location = first["loc"]
        place = {"watch": 2, "scoring": 1}.get(str(location[0]), len(location)) if location else 0
        if source == COMMAND_LINE and 0 < place < len(location):
            option = str(location[place]).replace("_", "-")
            text = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"--{option}: {text}; correct this value") from error
        raise ConfigError(f"{source}: {_explain(location, first['type'], first['msg'])}") from error


def _explain(location: tuple[int | str, ...], kind: str, message: str) -> str:
    where = ".".join(str(part + 1) if isinstance(part, int) else part for part in location)
    if kind == "extra_forbidden":
        known = list(_fields_at(location[:-1]))
        near = difflib.get_close_matches(str(location[-1]), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"there is no setting {where!r}; {hint}"
    return f"{where}: {message.removeprefix('Value error, ')}; correct this value"


def _fields_at(location: tuple[int | str, ...]) -> dict[str, Any]:
    """Return the fields of the section at a location in the file."""
    sections: dict[str, type[BaseModel]] = {
        "database": Database,
        "service": Service,
        "scoring": Scoring,
        "watching": Watching,
        "decoding": Decoding,
        "alerts": Alerts,
        "logging": Logging,
        "web": Web,
        "watch": Watch,
    }
    section = sections[str(location[0])] if location else Settings
    return dict(section.model_fields)


def _resolve_paths(settings: Settings, base: Path) -> Settings:
    def absolute(path: Path | None) -> Path | None:
        return None if path is None else base / path.expanduser()

    def model(name: str) -> str:
        return str(base / name) if name and (base / name).is_dir() else name

    url = settings.database.url
    database = settings.database if "://" in url else Database(url=str(absolute(Path(url))))
    watches = [
        watch.model_copy(
            update={
                "folder": absolute(watch.folder),
                "platemap": absolute(watch.platemap),
                "barcodes": absolute(watch.barcodes),
                "model": model(watch.model),
            }
        )
        for watch in settings.watch
    ]
    updates = {
        "database": database,
        "watch": watches,
        "scoring": settings.scoring.model_copy(update={"model": model(settings.scoring.model)}),
        "logging": settings.logging.model_copy(update={"file": absolute(settings.logging.file)}),
        "web": settings.web.model_copy(update={"token_file": absolute(settings.web.token_file)}),
    }
    return settings.model_copy(update=updates)
