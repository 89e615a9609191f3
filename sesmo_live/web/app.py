"""The web application: guard, API, events, health, metrics, pages."""

from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from db.engine import open_reader
from sesmo_live.web import pages
from sesmo_live.web.guard import Guard

STATIC = Path(__file__).parent / "static"


def create_app(url: str, *, token: str | None, hosts: Sequence[str]) -> FastAPI:
    """Return the application over the database `url`.

    Writes need `token`, and are refused altogether without one. `hosts` are the names under which the server may be
    addressed; `0.0.0.0` or `::` among them stands for any address. `app.state` holds `engine` (for reading), `url`.
    Raises UsageError when there is no database.
    """
    app = FastAPI(title="sesmo-live", version="1", docs_url=None, redoc_url=None)
    app.state.engine = open_reader(url)
    app.state.url = url
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(Guard, token=token, hosts=hosts)
    return app
