"""The web application: guard, API, pictures, events, health, metrics, pages."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from db.engine import open_reader
from sesmo_live.web import api, events, health, pages, pictures, screening, screenpages, writes
from sesmo_live.web.events import Changes
from sesmo_live.web.explaining import Explainer
from sesmo_live.web.guard import Guard
from sesmo_live.web.once import Once
from sesmo_live.web.problems import tell_problems
from sesmo_live.web.seldom import Seldom

BUSY_S = 2.0
"""Seconds that a question waits for a database that another program holds; then its asker is told so."""

STATIC = Path(__file__).parent / "static"


def create_app(
    url: str,
    *,
    token: str | None,
    hosts: Sequence[str],
    models: Sequence[Path] = (),
    closing: Callable[[], bool] = lambda: False,
) -> FastAPI:
    """Return the application over the database `url`.

    Writes need `token`, and are refused altogether without one. `hosts` are the names under which the server may be
    addressed; `0.0.0.0` or `::` among them stands for any address. `models` are folders of models besides those that
    can be named. `closing` says that the server is about to end, so that streams end first.

    `app.state` holds `engine` (for reading), `url`, `changes`, `seldom` and `explainer`. Raises UsageError without a
    database.
    """
    engine = open_reader(url, busy_s=BUSY_S, pooled=True)
    changes = Changes(engine, url)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with changes.watched(closing):
            yield
        engine.dispose()

    app = FastAPI(
        title="sesmo-live",
        description="Live senescence scores of plates. Changes need the header `Authorization: Bearer TOKEN`.",
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.engine, app.state.url, app.state.changes = engine, url, changes
    app.state.seldom = Seldom()
    app.state.explainer = Explainer(engine, url, models, closing=closing)
    tell_problems(app)
    for part in (writes, pictures, events, screening, api, health, screenpages, pages):
        app.include_router(part.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(Once, changes=changes)
    app.add_middleware(Guard, token=token, hosts=hosts)  # added last, so it is asked first
    return app
