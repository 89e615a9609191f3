"""What every request passes: known Host, own Origin, a token for writes, bodies of a sane size, safe headers."""

import hmac
import ipaddress
import json
from collections.abc import Iterable, Sequence

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
BODY_BYTES = 64 * 1024
"""Most bytes of a request's body, plate maps apart."""
PLATEMAP_BYTES = 5 * 2**20
"""Most bytes of an uploaded plate map."""

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Sent with every answer: nothing inline, nothing from elsewhere, in no frame."""


class Guard:
    """ASGI middleware that turns away what must not come in, each with one sentence as JSON."""

    def __init__(self, app: ASGIApp, *, token: str | None, hosts: Sequence[str]) -> None:
        self._app = app
        self._token = token
        self._hosts = frozenset(host.casefold() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        send = _with_headers(send)
        headers = _headers(scope["headers"])
        verdict = self._judge(scope["method"], headers)
        if verdict:
            await _refuse(send, *verdict)
            return
        limit = PLATEMAP_BYTES if scope["path"].endswith("/platemap") else BODY_BYTES
        length = headers.get("content-length", ["0"])[-1]
        if not (length.isascii() and length.isdigit()) or len(length) > 12 or int(length) > limit:
            await _refuse(send, 413, f"the request's body is larger than {limit} bytes; send less")
            return
        await self._app(scope, _limited(receive, limit), send)

    def _judge(self, method: str, headers: dict[str, list[str]]) -> tuple[int, str] | None:
        """Return status and sentence for what is refused."""
        hosts = headers.get("host", [])
        if len(hosts) != 1 or not self.knows(hosts[0]):
            return 400, "this Host is not one of this server's names; add it to [web] names in the configuration"
        if method not in WRITES:
            return None
        for origin in headers.get("origin", []):
            if origin.partition("://")[0] not in ("http", "https") or origin.partition("://")[2] != hosts[0]:
                return 403, "a page of another origin may not write here; open this server's own page"
        if any(site not in ("same-origin", "none") for site in headers.get("sec-fetch-site", [])):
            return 403, "a page of another origin may not write here; open this server's own page"
        if self._token is None:
            return 401, "this server has no token, so nothing can be changed; start it with --token-file FILE"
        if not _bears(headers.get("authorization", []), self._token):
            return 401, "a change needs the token: send the header Authorization: Bearer TOKEN"
        return None

    def knows(self, host: str) -> bool:
        """Say whether a Host header names this server."""
        name = _name_of(host)
        if name is None:
            return False
        if name in self._hosts:
            return True
        # Bound to every address of the computer, any address is its own; a name may be another site's (DNS rebinding).
        return bool(self._hosts & {"0.0.0.0", "::"}) and _is_address(name)  # noqa: S104 — compared, not bound


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in raw:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip())
    return found


def _name_of(host: str) -> str | None:
    """Return the name in a Host header in lower case, without the port; None if it is malformed."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        port = port.removeprefix(":") if port.startswith(":") or not port else "x"
        ok = bool(bracket) and _is_address(name)
    else:
        name, colon, port = host.partition(":")
        ok = bool(name) and not (colon and not port)
    if not ok or (port and not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 65536)):
        return None
    return name.casefold().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _bears(authorization: list[str], token: str) -> bool:
    """Say whether the header carries the token, in a time that does not depend on where it differs."""
    if len(authorization) != 1:
        return False
    scheme, _, given = authorization[0].partition(" ")
    same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), token.encode())
    return scheme.casefold() == "bearer" and same


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in given]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sending


def _limited(receive: Receive, limit: int) -> Receive:
    taken = 0

    async def receiving() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise HTTPException(413, f"the request's body is larger than {limit} bytes; send less")
        return message

    return receiving


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
