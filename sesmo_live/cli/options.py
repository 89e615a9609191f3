"""Options that several commands share, and the settings they make."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sesmo_live.cli.output import Format, say
from sesmo_live.config import COMMAND_LINE, Settings, load_settings, settings_from
from sesmo_live.errors import ModelError, UsageError

DatabaseOption = Annotated[str | None, typer.Option("--db", help="SQLite file or PostgreSQL URL [sesmo.db]")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="configuration file [config.toml, if there]")]
FormatOption = Annotated[Format, typer.Option("--format", help="how the answer is printed")]
ModelOption = Annotated[str | None, typer.Option("--model", help="model folder or name [the demonstration model]")]
NameOption = Annotated[
    str | None, typer.Option("--name", help="this daemon's name in a shared database [this computer's]")
]
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
PortOption = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="port of the page, 0 for a free one [8766]")
]
NoPageOption = Annotated[bool, typer.Option("--no-page", help="do not serve the page")]
OpenOption = Annotated[bool, typer.Option("--open", help="open the page in the browser")]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="numbers the network computes in: fp32 or bf16 [fp32]")
]
DaskOption = Annotated[
    str | None, typer.Option("--dask", help="spread over workers: a dask scheduler's address, or local")
]
NoRefuseOption = Annotated[bool, typer.Option("--no-refuse", help="score also images that look unfit, flagged")]


def settings_for(
    config: Path | None,
    *,
    db: str | None,
    model: str | None,
    no_refuse: bool,
    watch: dict[str, Any],
    precision: str | None = None,
    web: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Settings:
    """Return the configuration file's settings, changed by what the command line says.

    `watch` holds the command line's values for one `folder`, or a list of them, which then stand alone, each on top of
    the [[watch]] block that it lies in; without a `folder` among them there must be none, as it would not be clear
    which of the configuration's folders they are for. `treated_at` is text. Raise UsageError for a model that is not
    there.
    """
    file = _config_file(config)
    data = load_settings(file).model_dump(exclude_unset=True)
    given = {name: value for name, value in watch.items() if value is not None}
    if "folder" in given:
        folders = given["folder"] if isinstance(given["folder"], list) else [given["folder"]]
        blocks = data.get("watch", [])
        data["watch"] = [_on_top(_block_of(folder, blocks, file), {**given, "folder": folder}) for folder in folders]
    elif given:
        option = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{option} is for a folder that is named with it; set it in the [[watch]] block instead")
    if db is not None:
        data["database"] = {"url": db}
    if name is not None:
        data["service"] = {"name": name}
    if model is not None:
        data["watch"] = [{**folder, "model": model} for folder in data.get("watch", [])]
    if no_refuse:
        data["scoring"] = {**data.get("scoring", {}), "refuse": False}
    if precision is not None:
        data["scoring"] = {**data.get("scoring", {}), "precision": precision}
    if web_given := {name: value for name, value in (web or {}).items() if value is not None}:
        data["web"] = {**data.get("web", {}), **web_given}
    settings = settings_from(data, COMMAND_LINE)
    for wanted in {folder.model or settings.scoring.model for folder in settings.watch}:
        model_folder(wanted)
    return settings


def _block_of(folder: Path, blocks: Sequence[Mapping[str, Any]], file: Path | None) -> Mapping[str, Any]:
    """Return the innermost [[watch]] block whose folder is or holds `folder`, an empty one if there is none."""
    wanted = folder.expanduser().resolve()
    places = [block["folder"].expanduser().resolve() for block in blocks]
    around = [number for number, place in enumerate(places) if wanted.is_relative_to(place)]
    if around:
        block = blocks[max(around, key=lambda number: len(places[number].parts))]
        say([f"{folder}: with the settings of the [[watch]] block of {block['folder']} in {file}"])
        return block
    below = [str(place) for place in places if place.is_relative_to(wanted)]
    if below:
        say([f"{folder}: without the settings of the [[watch]] blocks of {', '.join(below)}, which lie below it"])
    return {}


def _on_top(block: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a block's values changed by the command line's; another layout does not keep the block's pattern."""
    kept = {name: value for name, value in block.items() if name != "pattern" or "layout" not in given}
    values = {**kept, **given}
    if "treated_at" in given:
        from sesmo_live.platemap.times import parse_treated_at

        values["treated_at"] = parse_treated_at(given["treated_at"], values.get("timezone") or None)
    return values


def model_folder(name: str | None) -> Path:
    """Return the folder of a model; raise UsageError that lists what exists when there is none of that name."""
    from models.passport import find_model

    try:
        return find_model(name or None)
    except ModelError as error:
        raise UsageError(str(error)) from error


def model_of(model: str | None, config: Path | None = None) -> Path:
    """Return the folder of the model that a command scores with: `--model`, else the configuration's, else the demo's.

    Raise UsageError when there is no such model.
    """
    return model_folder(model or load_settings(_config_file(config)).scoring.model)


def watched_blocks(config: Path | None) -> list[Path]:
    """Return the folders of the configuration's [[watch]] blocks."""
    return [block.folder for block in load_settings(_config_file(config)).watch]


def database_of(db: str | None, config: Path | None = None) -> str:
    """Return the database that a query reads: `--db`, else the configuration's."""
    return db if db is not None else load_settings(_config_file(config)).database.url


def _config_file(config: Path | None) -> Path | None:
    return config if config is not None else Path("config.toml") if Path("config.toml").is_file() else None
