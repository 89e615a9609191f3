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
    from db.engine import open_reader, store_errors
    from sesmo_live import changes

    if not (path or plate or reason or everything):
        raise UsageError("say which images to try again: a PATH, --plate NAME, --reason WORDS, or --all")
    url = database_of(db, config)
    open_reader(url)  # there must be a database, with this program's schema
    folder = path.expanduser().absolute() if path else None
    with store_errors(url):
        count = changes.retry(url, plate=plate, folder=folder, reason=reason, everything=everything)
    say([f"{count} image{'s' if count > 1 else ''} will be tried again"])
