"""Each question is answered once for all who ask it, until something changes."""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sesmo_live.web.events import Changes

FRESH_S = 2.0
"""Seconds after which an answer is made anew though nothing changed: ages in it grow."""
MOST_ANSWERS = 128
MOST_BYTES = 2**20
"""Longest answer that is kept."""
_NOT_KEPT = ("/api/v1/events", "/metrics", "/health", "/static")
_APART = (".png", ".xlsx", ".parquet", "/parts/panel", "/parts/curves", "/parts/ec50")
"""Pictures do not change, and browsers keep them; files are made anew; costly parts are kept by `seldom.py`."""


@dataclass(slots=True)
class _Kept:
    version: int
    since: float
    answer: "asyncio.Future[list[Message]]"


class Once:
    """ASGI middleware: viewers that ask the same at the same time cost the database one question.

    Only GET answers are kept, for as long as the database is the same, and for two seconds at most.
    """

    def __init__(self, app: ASGIApp, *, changes: Changes) -> None:
        self._app = app
        self._changes = changes
        self._kept: OrderedDict[tuple[bytes, ...], _Kept] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from what is kept, else ask on."""
        if scope["type"] != "http" or not self._changes.running or scope["method"] != "GET":
            await self._app(scope, receive, send)
            if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                self._changes.bump()
            return
        if scope["path"].startswith(_NOT_KEPT) or scope["path"].endswith(_APART):
            await self._app(scope, receive, send)
            return
        for message in await self._answer(scope, receive):
            await send(message)

    async def _answer(self, scope: Scope, receive: Receive) -> list[Message]:
        key = (scope.get("raw_path") or scope["path"].encode(), scope["query_string"], *_that_matter(scope))
        kept = self._kept.get(key)
        now = time.monotonic()
        if kept is None or kept.version != self._changes.version or now - kept.since > FRESH_S:
            kept = _Kept(self._changes.version, now, asyncio.ensure_future(self._ask(key, scope, receive)))
            self._kept[key] = kept
            self._kept.move_to_end(key)
            while len(self._kept) > MOST_ANSWERS:
                self._kept.popitem(last=False)
        return await asyncio.shield(kept.answer)

    async def _ask(self, key: tuple[bytes, ...], scope: Scope, receive: Receive) -> list[Message]:
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        try:
            await self._app(scope, receive, keep)
        except BaseException:
            self._kept.pop(key, None)
            raise
        if sum(len(message.get("body", b"")) for message in messages) > MOST_BYTES:
            self._kept.pop(key, None)
        return messages


def _that_matter(scope: Scope) -> list[bytes]:
    """Return the headers on which an answer may depend."""
    wanted = (b"host", b"accept", b"hx-request", b"hx-target", b"hx-current-url", b"cookie", b"if-none-match")
    return [name + b"=" + value for name, value in sorted(scope["headers"]) if name in wanted]
