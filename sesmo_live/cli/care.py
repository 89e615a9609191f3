"""Plate maps, models and the database: platemap, model, db."""

from pathlib import Path
from typing import Annotated

import typer

from sesmo_live.cli.options import (
    ConfigOption,
    DatabaseOption,
    FormatOption,
    WellsOption,
    ZoneOption,
    database_of,
    model_folder,
)
from sesmo_live.cli.output import Format, say, show, show_json
from sesmo_live.errors import StoreError, UsageError

platemap_app = typer.Typer(help="What is in the wells: compounds, doses, controls.", no_args_is_help=True)
model_app = typer.Typer(help="Models and their passports.", no_args_is_help=True)
db_app = typer.Typer(help="Care of the database.", no_args_is_help=True)


def metadata_beside(file: Path) -> Path | None:
    """Return the table of compounds that lies beside a plate map as JUMP and LINCS name it, None if there is none."""
    found = file.with_name(file.name.replace("platemap", "metadata"))
    return found if found != file and found.is_file() else None


@platemap_app.command("import")
def import_map(
    file: Annotated[Path, typer.Argument(help="CSV, TSV, XLSX or Incucyte .PlateMap")],
    plate: Annotated[str, typer.Option("--plate", help="plate name")],
    db: DatabaseOption = None,
    column: Annotated[list[str] | None, typer.Option("--column", help="FIELD=COLUMN, as well=Position")] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(help="table of the compounds, joined on a shared column [X_metadata beside X_platemap]"),
    ] = None,
    negative: Annotated[list[str] | None, typer.Option(help="compound or well that is a negative control")] = None,
    positive: Annotated[list[str] | None, typer.Option(help="compound or well that is a positive control")] = None,
    treated_at: Annotated[
        str | None, typer.Option("--treated-at", help="when the wells were treated (ISO 8601)")
    ] = None,
    timezone: ZoneOption = None,
    sheet: Annotated[str | None, typer.Option(help="sheet of an XLSX file")] = None,
    plate_wells: WellsOption = None,
    config: ConfigOption = None,
    output: FormatOption = Format.table,
) -> None:
    """Record what is in the wells of a plate, for all its runs; a later import replaces an earlier one."""
    from db.care import upgrade
    from db.engine import open_engine, store_errors
    from db.plates import import_treatments
    from sesmo_live.platemap import read_platemap
    from sesmo_live.platemap.times import parse_treated_at

    pairs = [item.partition("=") for item in column or []]
    wrong = next((item for item, pair in zip(column or [], pairs, strict=True) if not pair[2]), None)
    if wrong:
        raise UsageError(f"--column {wrong!r} is not FIELD=COLUMN; write for example --column well=Position")
    moment = parse_treated_at(treated_at, timezone) if treated_at is not None else None
    if metadata is None and (metadata := metadata_beside(file)):
        say([f"compounds are looked up in {metadata.name}, which lies beside the plate map"])
    found = read_platemap(
        file,
        columns={field: name for field, _, name in pairs} or None,
        metadata=metadata,
        wells=plate_wells,
        treated_at=moment,
        timezone=timezone,
        sheet=sheet,
        negative=negative or (),
        positive=positive or (),
    )
    url = database_of(db, config)
    upgrade(url)
    with store_errors(url), open_engine(url, write=True, checkpoint=False).begin() as connection:
        runs = import_treatments(connection, plate, found.treatments, moment)
    say(found.notes)
    counts = {
        "plate": plate,
        "runs": ", ".join(run for run in runs if run) or "(not imaged yet)",
        "wells": len({item.well for item in found.treatments}),
        "compounds": len({item.compound for item in found.treatments if item.compound}),
        "negative": len({item.well for item in found.treatments if item.role == "negative"}),
        "positive": len({item.well for item in found.treatments if item.role == "positive"}),
        "blank": len({item.well for item in found.treatments if item.role == "blank"}),
    }
    if output is Format.json:
        show_json(counts)
    else:
        show([counts], output)


@model_app.command("list")
def list_models(output: FormatOption = Format.table) -> None:
    """List the models that can be named."""
    from models.passport import list_models as found

    rows = [
        {
            "name": passport.name,
            "model": passport.model_id,
            "network": passport.network,
            "cropper": passport.cropper,
            "threshold": passport.threshold,
            "folder": str(folder),
            "demonstration": passport.demonstration,
        }
        for folder, passport in found()
    ]
    show(rows, output, ("name", "model", "network", "cropper", "threshold", "folder", "demonstration"))


@model_app.command("show")
def show_model(
    model: Annotated[str | None, typer.Argument(help="model folder or name [the demonstration model]")] = None,
) -> None:
    """Print a model's passport as JSON, once its weights were found to be the ones it names."""
    from dataclasses import asdict

    from models.passport import read_passport, read_weights

    folder = model_folder(model)
    passport = read_passport(folder)
    read_weights(folder, passport)
    show_json({"model_id": passport.model_id, **asdict(passport)})


@model_app.command("import-keras")
def import_keras(
    architecture: Annotated[Path, typer.Argument(help="the original study's Keras JSON")],
    weights: Annotated[Path, typer.Argument(help="its H5 weights")],
    out: Annotated[Path, typer.Option("--out", help="model folder to write")],
    name: Annotated[str, typer.Option(help="name of the model")] = "deep-sesmo-imported",
    senescent_index: Annotated[int, typer.Option(help="which of the two outputs means senescent")] = 1,
    pixel_um: Annotated[
        float | None, typer.Option("--pixel-um", help="µm per pixel of the training images [not known]")
    ] = None,
) -> None:
    """Turn a model of the original notebooks into a passport folder."""
    from models.keras_import import import_keras as convert

    passport = convert(architecture, weights, out, name=name, senescent_index=senescent_index, pixel_um=pixel_um)
    say([f"wrote {out}: {passport.model_id}"])


@db_app.command("upgrade")
def upgrade_database(db: DatabaseOption = None, config: ConfigOption = None) -> None:
    """Bring the database to this program's schema, after a backup; no daemon may be running on it."""
    from db.care import upgrade
    from db.engine import ingest_lock
    from db.sqlite import display_name, existing_file

    url = database_of(db, config)
    existing_file(url)
    with ingest_lock(url):
        copy = upgrade(url, create=False)
    say([f"{display_name(url)} is up to date" + (f"; the backup is {copy}" if copy else "")])


@db_app.command("backup")
def backup_database(
    target: Annotated[Path, typer.Argument(help="file to write, as sesmo.2026-11-20.db; it may lie on a share")],
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> None:
    """Copy the database to a file, also while it is in use."""
    from db.care import backup
    from db.sqlite import display_name, existing_file

    url = database_of(db, config)
    source = existing_file(url)
    if source is None:
        raise UsageError(
            f"{display_name(url)} is not a SQLite file; use its server's own backup: pg_dump --format=custom "
            f"--file={target} --dbname=URL, or copy it to a SQLite file with: sesmo-live db copy"
        )
    say([f"wrote {backup(source, target)}"])


@db_app.command("copy")
def copy_to(
    source: Annotated[str, typer.Argument(help="SQLite file or PostgreSQL URL to read")],
    target: Annotated[str, typer.Argument(help="the empty one to write; a SQLite file is made")],
    output: FormatOption = Format.table,
) -> None:
    """Copy a database to another one, from SQLite to PostgreSQL or back, and read it back to be sure."""
    from dataclasses import asdict

    from db.copying import copy_database
    from db.sqlite import display_name

    copied = copy_database(source, target)
    show([asdict(table) for table in copied], output)
    say([f"{display_name(target)} holds the same as {display_name(source)}: {sum(t.rows for t in copied)} rows"])


@db_app.command("check")
def check_database(db: DatabaseOption = None, config: ConfigOption = None, output: FormatOption = Format.table) -> None:
    """Check a database for damage (SQLite; a server checks its own), and count the images of its ledger by state."""
    from db.care import check, damage_sentence
    from db.engine import known_revision, open_engine, store_errors
    from db.ledger import image_counts
    from db.sqlite import display_name, existing_file

    url = database_of(db, config)
    file, name = existing_file(url), display_name(url)
    if file is not None and (wrong := check(file)):
        say(wrong)
        raise StoreError(damage_sentence(file))
    engine = open_engine(url)
    if known_revision(engine, url) is None:
        raise StoreError(f"the database {name} is empty; run or score something first")
    with store_errors(url), engine.connect() as connection:
        counts = image_counts(connection)
    show([{"images": sum(counts.values()), **counts}], output)
    say([f"{name} is sound" if file else f"{name} can be read; for damage ask its server: pg_amcheck"])
