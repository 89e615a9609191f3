"""Telling viewers that something changed: one poller for all of them, and server-sent events."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import Engine
from starlette.responses import JSONResponse, Response, StreamingResponse

from db import shown
from db.sqlite import database_url, sqlite_path

POLL_S = 0.1
"""Seconds between two looks whether the database changed."""
GAP_S = 0.7
"""Seconds at least between two events: the daemon commits more often than anybody can look."""
HEARTBEAT_S = 15.0
"""Seconds after which a viewer is told that the server is there, though nothing changed."""
MOST_VIEWERS = 200
"""Streams that are open at a time; each is a connection, and more would be no people."""

log = logging.getLogger(__name__)
router = APIRouter(prefix="/api/v1", include_in_schema=False)


class Changes:
    """Counts the changes of a database, and wakes those who wait for one."""

    def __init__(self, engine: Engine, url: str) -> None:
        self.version = 0
        """Another number after every change that was seen."""
        self.running = False
        self.viewers = 0
        self._engine = engine
        self._file = sqlite_path(database_url(url))
        self._ended = threading.Event()
        self._waiting: set[asyncio.Future[None]] = set()
        self._closing: Callable[[], bool] = lambda: False

    def closing(self) -> bool:
        """Say whether the server is about to end."""
        return self._ended.is_set()

    @contextlib.asynccontextmanager
    async def watched(self, closing: Callable[[], bool]) -> AsyncIterator[None]:
        """Look for changes on a thread of its own; end every stream as soon as `closing()`."""
        loop = asyncio.get_running_loop()
        self._closing = closing
        self._ended.clear()
        thread = threading.Thread(target=self._look, args=(loop,), name="changes", daemon=True)
        thread.start()
        self.running = True
        try:
            yield
        finally:
            self.running = False
            self._ended.set()
            self._wake()
            await asyncio.to_thread(thread.join, 5.0)

    def bump(self) -> None:
        """Note a change of our own at once; from the event loop's thread."""
        self.version += 1
        self._wake()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        last: tuple[Any, ...] | None = None
        connection: Any = None
        while not self._ended.wait(POLL_S):
            if self._closing():
                self._ended.set()
                loop.call_soon_threadsafe(self._wake)
                break
            try:
                connection = connection or self._engine.raw_connection()
                token: tuple[Any, ...] = (shown.change_token(connection, self._engine.dialect.name), self._identity())
            except Exception as error:  # noqa: BLE001 — a worker's top: drivers have errors of their own
                log.debug("the database cannot be looked at: %s", error)
                token = ("away",)
            if token != last:
                if token == ("away",) or (last is not None and token[-1] != last[-1]):  # another file took its place
                    _close(connection)
                    connection = None
                last = token
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self.bump)
        _close(connection)

    def _identity(self) -> tuple[int, int] | None:
        if self._file is None:
            return None
        status = Path(self._file).stat()
        return status.st_dev, status.st_ino

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def after(self, version: int, timeout_s: float) -> int:
        """Return the version once it is another than `version`, or after `timeout_s`."""
        if self.version == version and not self.closing():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            try:
                await asyncio.wait_for(future, timeout_s)
            except TimeoutError:
                pass
            finally:
                self._waiting.discard(future)
        return self.version

    async def stream(self) -> AsyncIterator[str]:
        """Yield server-sent events: one at once, one for each change, and signs of life."""
        self.viewers += 1
        try:
            async for words in self._words():
                yield words
        finally:
            self.viewers -= 1

    async def _words(self) -> AsyncIterator[str]:
        seen = self.version
        yield f"retry: 2000\nevent: change\ndata: {seen}\n\n"
        told = time.monotonic()
        while not self.closing():
            version = await self.after(seen, HEARTBEAT_S)
            if self.closing():
                break
            if version == seen:
                yield ": alive\n\n"
                continue
            await asyncio.sleep(max(0.0, GAP_S - (time.monotonic() - told)))
            seen, told = self.version, time.monotonic()
            yield f"event: change\ndata: {seen}\n\n"


def _close(connection: Any) -> None:
    if connection is not None:
        with contextlib.suppress(Exception):  # it is gone either way
            connection.close()


@router.get("/events")
async def events(request: Request) -> Response:
    """Tell of every change, as server-sent events."""
    changes: Changes = request.app.state.changes
    if changes.viewers >= MOST_VIEWERS:
        return JSONResponse({"detail": f"{MOST_VIEWERS} viewers watch already; close a page"}, 503)
    return StreamingResponse(changes.stream(), media_type="text/event-stream", headers={"cache-control": "no-store"})
