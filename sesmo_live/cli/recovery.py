"""Trying images again: retry."""

from pathlib import Path
from typing import Annotated

import typer

from sesmo_live.cli.options import ConfigOption, DatabaseOption, database_of
from sesmo_live.cli.output import say
from sesmo_live.errors import UsageError


def retry(
    path: Annotated[Path | None, typer.Argument(help="one image, or a folder of images")] = None,
    plate: Annotated[str | None, typer.Option("--plate", help="all failed images of a plate")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="only those whose reason contains these words")] = None,
    everything: Annotated[bool, typer.Option("--all", help="every failed image in the database")] = False,
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> None:
    """Have failed images tried again: by the running daemon within seconds, else by the next run or score."""
    from db.engine import open_engine, open_reader, store_errors
    from db.ledger import ask_again
    from db.queries import plate_runs

    if not (path or plate or reason or everything):
        raise UsageError("say which images to try again: a PATH, --plate NAME, --reason WORDS, or --all")
    url = database_of(db, config)
    reader = open_reader(url)  # there must be a database, with this program's schema
    with store_errors(url):
        where: dict[str, object] = {}
        if plate:
            with reader.connect() as connection:
                where["plate_id"] = [row.plate_id for row in plate_runs(connection, plate)]
            if not where["plate_id"]:
                raise UsageError(f"no plate {plate!r} in {url}; see: sesmo-live plate")
        if path:
            where["folder"] = path.expanduser().absolute()
        if reason:
            where["reason"] = reason
        with open_engine(url, write=True, checkpoint=False).begin() as connection:
            count = ask_again(connection, where)
    if not count:
        raise UsageError("no failed image is like that; see: sesmo-live images --state failed")
    say([f"{count} image{'s' if count > 1 else ''} will be tried again"])
