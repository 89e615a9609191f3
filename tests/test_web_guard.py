"""What comes in: known hosts, own origins, the token, bodies of a sane size; and what goes out with every answer."""

import asyncio
import json
import socket
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from starlette.types import Message, Receive, Scope, Send

from sesmo_live.web.guard import BODY_BYTES, HEADERS, Guard
from sesmo_live.web.server import host_names
from tests.web import TOKEN, Answer, Live, read, reading, scored_plate

__all__ = ["reading", "scored_plate"]

OURS = ("127.0.0.1", "localhost", "[::1]")
FOREIGN = (
    *("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.7", "[::2]", "2130706433"),
    "0.0.0.0",  # noqa: S104 — a Host header
    *("", "127.0.0.1@evil.example", "evil.example#127.0.0.1", "127.0.0.1 evil.example", "xn--lcalhost-xxx", "[::1"),
)


def ask(live: Live, method: str, path: str, *headers: tuple[str, str], body: bytes = b"") -> Answer:
    """Send a request with exactly these headers, a Host among them or not."""
    with closing(live.connection()) as connection:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        if body:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        return read(connection.getresponse())


def combinations(port: int) -> list[tuple[str, str | None, bool, bool]]:
    """Return 50 pairs of Host and Origin, whether a question with them is answered, and whether a change is heard."""
    pairs: list[tuple[str, str | None, bool, bool]] = []
    for name in OURS:
        host = f"{name}:{port}"
        pairs += [
            (host, None, True, True),
            (host, f"http://{host}", True, True),
            (host, f"https://{host}", True, True),
            (host, "null", True, False),
            (host, "", True, False),
            (host, "http://evil.example", True, False),
            (host, f"http://{host}.evil.example", True, False),
            (host, f"http://{name}:{port + 1}", True, False),
            (host, f"file://{host}", True, False),
            (name, None, True, True),  # as behind a tunnel or a proxy
        ]
    for host in FOREIGN:
        pairs.append((host, None, False, False))
    pairs += [("evil.example", "http://evil.example", False, False), (f"127.0.0.1:{port}x", None, False, False)]
    pairs += [
        ("127.0.0.1:99999", None, False, False),
        ("127.0.0.1:" + "9" * 5000, None, False, False),
        ("LOCALHOST.", None, True, True),
    ]
    pairs += [("localhost:", None, False, False), (f"{OURS[0]}:{port}", "http://localhost", True, False)]
    pairs.append((f"LocalHost:{port}", f"http://LocalHost:{port}", True, True))
    return pairs


def test_fifty_pairs_of_host_and_origin_are_judged_right(reading: Live) -> None:
    port = urlsplit(reading.address).port or 0
    pairs = combinations(port)
    wrong = []
    for host, origin, answered, heard in pairs:
        headers = [("Host", host), *([("Origin", origin)] if origin is not None else [])]
        question = ask(reading, "GET", "/api/v1/plates", *headers).status
        change = ask(
            reading, "POST", "/api/v1/incidents/77/acknowledgement", *headers, ("Authorization", f"Bearer {TOKEN}")
        ).status
        expected = (200 if answered else 400, 404 if heard else 403 if answered else 400)
        if (question, change) != expected:
            wrong.append((host, origin, question, change, expected))
    print(f"{len(pairs)} pairs of Host and Origin, {len(wrong)} judged wrong")  # noqa: T201 — the issue's figure
    assert wrong == []
    assert len(pairs) >= 50


def test_two_hosts_or_none_are_refused(reading: Live) -> None:
    port = urlsplit(reading.address).port
    twice = [("Host", f"localhost:{port}"), ("Host", "evil.example")]
    assert ask(reading, "GET", "/health", *twice).status == 400
    assert ask(reading, "GET", "/health").status == 400


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer ",
        "Bearer",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN.upper()}",
        "Bearer é",
        f"Bearer {TOKEN} {TOKEN}",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/retry"),
        ("PUT", "/api/v1/images/1/exclusion"),
        ("DELETE", "/api/v1/images/1/exclusion"),
        ("PUT", "/api/v1/plates/P/platemap?filename=a.csv"),
        ("POST", "/api/v1/incidents/1/acknowledgement"),
        ("PATCH", "/anything"),
    ],
)
def test_a_change_without_the_token_is_401(reading: Live, method: str, path: str, given: str | None) -> None:
    headers = [("Host", reading.host), *([("Authorization", given)] if given is not None else [])]
    answer = ask(reading, method, path, *headers, body=b'{"everything": true}')
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "Authorization: Bearer TOKEN" in answer.detail


def test_another_sites_page_may_not_write_even_with_the_token(reading: Live) -> None:
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 404), ("none", 404)):
        headers = {"Authorization": f"Bearer {TOKEN}", "Sec-Fetch-Site": site}
        assert reading.send("POST", "/api/v1/incidents/77/acknowledgement", **headers).status == status


def test_a_body_that_is_too_large_is_413_however_it_comes(reading: Live) -> None:
    large = reading.write("POST", "/api/v1/retry", b'{"reason": "' + b"x" * BODY_BYTES + b'"}')
    assert (large.status, "send less" in large.detail) == (413, True)
    head = f"POST /api/v1/retry HTTP/1.1\r\nHost: {reading.host}\r\nAuthorization: Bearer {TOKEN}\r\n"
    host, port = reading.host.split(":")
    for more, body in (
        ("Transfer-Encoding: chunked\r\n", b"".join(b"4000\r\n" + b"x" * 0x4000 + b"\r\n" for _ in range(6))),
        ("Content-Length: 99999999999\r\n", b""),
    ):
        with closing(socket.create_connection((host, int(port)), timeout=20)) as connection:
            connection.sendall((head + more + "\r\n").encode() + body)
            assert connection.recv(100).startswith(b"HTTP/1.1 413"), more
    assert reading.get("/api/v1/plates").status == 200


@pytest.mark.parametrize("path", ["/api/v1/plates", "/nope", "/health", "/openapi.json", "/api/v1/images/1/field.png"])
def test_every_answer_carries_the_safe_headers(reading: Live, path: str) -> None:
    answer = reading.get(path)
    assert HEADERS.items() <= answer.headers.items()
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "server" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers


def test_a_foreign_host_gets_the_safe_headers_too(reading: Live) -> None:
    answer = ask(reading, "GET", "/", ("Host", "evil.example"))
    assert HEADERS.items() <= answer.headers.items()
    assert answer.detail.endswith("add it to [web] names in the configuration")


def test_a_server_without_a_token_takes_no_change() -> None:
    said: list[Message] = []

    async def let_in(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError("let in")

    async def receive() -> Message:
        raise AssertionError("read")

    async def send(message: Message) -> None:
        said.append(message)

    guard = Guard(let_in, token=None, hosts=["localhost"])
    headers = [(b"host", b"localhost"), (b"authorization", b"Bearer None")]
    scope = {"type": "http", "method": "POST", "path": "/api/v1/retry", "headers": headers}
    asyncio.run(guard(scope, receive, send))
    assert said[0]["status"] == 401
    assert "no token" in json.loads(said[1]["body"])["detail"]


@pytest.mark.parametrize(
    ("bound", "names", "known", "unknown"),
    [
        ("127.0.0.1", [], ["localhost", "127.0.0.1", "[::1]:80"], ["10.0.0.7", "scope1"]),
        ("::", ["scope1.lab"], ["10.0.0.7:80", "scope1.lab", "localhost"], ["evil.example", "scope2.lab"]),
        ("192.168.1.5", [], ["192.168.1.5:8766", "localhost"], ["192.168.1.6", "evil.example"]),
    ],
)
def test_the_names_of_a_server_follow_from_its_address(
    bound: str, names: list[str], known: list[str], unknown: list[str]
) -> None:
    guard = Guard(None, token=None, hosts=host_names(bound, names))  # type: ignore[arg-type]
    assert [guard.knows(host) for host in known] == [True] * len(known)
    assert [guard.knows(host) for host in unknown] == [False] * len(unknown)


def test_files_outside_static_are_not_served(reading: Live, scored_plate: Path) -> None:
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", f"/static/{scored_plate}/s.db", "/static/..%2fapp.py"):
        assert ask(reading, "GET", path, ("Host", reading.host)).status in (404, 405), path
