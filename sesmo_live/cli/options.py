"""Options that several commands share, and the settings they make."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sesmo_live.cli.output import Format
from sesmo_live.config import Settings, in_zone, load_settings, settings_from
from sesmo_live.errors import UsageError

DatabaseOption = Annotated[str | None, typer.Option("--db", help="SQLite file or SQLAlchemy URL [sesmo.db]")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="configuration file [config.toml, if there]")]
FormatOption = Annotated[Format, typer.Option("--format", help="how the answer is printed")]
ModelOption = Annotated[str | None, typer.Option("--model", help="model folder or name [the demonstration model]")]
PlateOption = Annotated[str | None, typer.Option("--plate", help="plate name [from the layout or the folder]")]
LayoutOption = Annotated[str | None, typer.Option("--layout", help="layout preset, auto or regex [auto]")]
PatternOption = Annotated[str | None, typer.Option("--pattern", help="regular expression for --layout regex")]
ChannelOption = Annotated[str | None, typer.Option("--channel", help="channel to score, by number or name")]
PlaneOption = Annotated[int | None, typer.Option("--z", help="focal plane to score")]
PixelOption = Annotated[float | None, typer.Option("--pixel-um", help="µm per pixel in the sample")]
ZoneOption = Annotated[str | None, typer.Option("--timezone", help="zone of times without one, as Europe/Berlin")]
IntervalOption = Annotated[
    float | None, typer.Option("--frame-interval-s", help="seconds between time points, if the files carry no time")
]
WellsOption = Annotated[int | None, typer.Option("--plate-wells", help="wells of the plate: 6 to 1536")]
MapOption = Annotated[Path | None, typer.Option("--platemap", help="plate map to import first (needs --plate)")]
TreatedOption = Annotated[str | None, typer.Option("--treated-at", help="when the plate was treated (ISO 8601)")]
NoRefuseOption = Annotated[bool, typer.Option("--no-refuse", help="score also images that look unfit, flagged")]


def settings_for(
    config: Path | None, *, db: str | None, model: str | None, no_refuse: bool, watch: dict[str, Any]
) -> Settings:
    """Return the configuration file's settings, changed by what the command line says.

    `watch` holds the command line's values for one folder, which then stands alone; without a `folder` among them
    there must be none, as it would not be clear which of the configuration's folders they are for.
    """
    data = load_settings(_config_file(config)).model_dump(exclude_unset=True)
    given = {name: value for name, value in watch.items() if value is not None}
    if "folder" in given:
        data["watch"] = [given]
    elif given:
        name = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{name} is for a folder named by --watch; set it in the configuration's [[watch]] instead")
    if db is not None:
        data["database"] = {"url": db}
    if model is not None:
        data["watch"] = [{**folder, "model": model} for folder in data.get("watch", [])]
    if no_refuse:
        data["scoring"] = {**data.get("scoring", {}), "refuse": False}
    return settings_from(data, "the command line")


def model_of(model: str | None, config: Path | None = None) -> str | None:
    """Return the model that a command scores with: `--model`, else the configuration's, else None."""
    return model or load_settings(_config_file(config)).scoring.model or None


def database_of(db: str | None, config: Path | None = None) -> str:
    """Return the database that a query reads: `--db`, else the configuration's."""
    return db if db is not None else load_settings(_config_file(config)).database.url


def _config_file(config: Path | None) -> Path | None:
    return config if config is not None else Path("config.toml") if Path("config.toml").is_file() else None


def parse_moment(text: str | None, timezone: str | None) -> datetime | None:
    """Read an ISO 8601 time; one without a zone is in `timezone`, else this computer's."""
    if text is None:
        return None
    try:
        return in_zone(datetime.fromisoformat(text), timezone or "")
    except ValueError as error:
        raise UsageError(f"{text!r} is no time ({error}); write it as 2026-11-20T18:00+01:00") from error
