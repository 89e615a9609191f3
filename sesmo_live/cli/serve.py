"""The page and the API over a database alone: serve."""

from pathlib import Path
from typing import Annotated

import typer

from sesmo_live.cli.options import ConfigOption, DatabaseOption
from sesmo_live.cli.output import say


def serve(
    db: DatabaseOption = None,
    host: Annotated[str | None, typer.Option("--host", help="address to listen on [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="port, 0 for a free one [8766]")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="file that holds the token for changes [made beside it]"),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="open the page in the browser")] = False,
    config: ConfigOption = None,
) -> None:
    """Serve the page and the API over a database until Ctrl-C; a daemon may be writing to it."""
    from sesmo_live import serving
    from sesmo_live.cli.options import settings_for
    from sesmo_live.cli.service import stop_on_signal

    settings = settings_for(config, db=db, model=None, no_refuse=False, watch={}, web={"host": host, "port": port})
    token = serving.token_of(settings, token_file)
    with stop_on_signal(quiet=True) as stop:
        from sesmo_live.web.server import Serving
        from sesmo_live.web.server import serve as serve_page

        words = serving.told(settings, token, open_page=open_page)
        words |= {"names": tuple(words["names"]), "models": tuple(words["models"])}
        serve_page(Serving(**words), stop, lambda text: say([f"{text}; Ctrl-C ends"]))
