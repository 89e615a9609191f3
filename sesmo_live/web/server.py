"""Serving the application: where it may listen, whose token opens it, how it ends."""

import contextlib
import ipaddress
import os
import platform
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from db.engine import open_reader
from db.sqlite import database_url, sqlite_path
from sesmo_live.errors import ConfigError, UsageError
from sesmo_live.web.app import create_app

LOOPBACK = ("127.0.0.1", "::1", "localhost")
TOKEN_LETTERS = 16
"""Fewest letters of a token that opens a server."""
BIND_WAIT_S = 3.0
"""Seconds that a port is waited for: the last server may just be ending."""
GRACE_S = 3


@dataclass(frozen=True, slots=True)
class Serving:
    """Where and how to serve: `token` is the one that was given, "" for none; `models` are folders of models."""

    url: str
    host: str
    port: int
    token: str = ""
    names: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    open: bool = False


def serve(serving: Serving, stop: threading.Event, say: Callable[[str], None]) -> None:
    """Serve until `stop` is set or a signal says so; `say` is told the address once the server answers.

    Raises UsageError where the port is in use or the address is not this computer's, ConfigError for an address that
    other computers reach without a token, or with a short one.
    """
    loopback = is_loopback(serving.host)
    open_reader(serving.url).dispose()  # before a token is put beside what is no database
    token, where = token_of(serving, loopback=loopback)
    with bind(serving.host, serving.port) as listening:
        port = listening.getsockname()[1]
        server = _Server(uvicorn.Config("", log_level="warning", access_log=False, lifespan="on"))
        hosts = host_names(serving.host, serving.names)
        models = [Path(folder) for folder in serving.models]
        app = create_app(serving.url, token=token, hosts=hosts, models=models, closing=lambda: server.should_exit)
        server.config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="on",
            timeout_graceful_shutdown=GRACE_S,
            timeout_keep_alive=15,
        )
        threading.Thread(target=_end, args=(server, stop), daemon=True).start()
        threading.Thread(
            target=_announce, args=(server, address_of(serving.host, port), where, serving, say), daemon=True
        ).start()
        server.run(sockets=[listening])


def is_loopback(host: str) -> bool:
    """Say whether only this computer reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_names(host: str, names: Sequence[str]) -> list[str]:
    """Return the names under which the server may be addressed."""
    if is_loopback(host):
        return [*LOOPBACK, host, *names]
    return [*LOOPBACK, host, platform.node(), socket.getfqdn(), *names]


def address_of(host: str, port: int) -> str:
    """Return the address for a browser."""
    shown = {"0.0.0.0": platform.node() or "127.0.0.1", "::": platform.node() or "::1"}.get(host, host)  # noqa: S104
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


def token_of(serving: Serving, *, loopback: bool) -> tuple[str | None, str]:
    """Return the token, and in words where a person finds it; None where nothing can be changed.

    On loopback one is made when none was given, and kept beside the database for this user alone. Raises ConfigError.
    """
    given = serving.token.strip()
    if given:
        if len(given) < TOKEN_LETTERS or not given.isascii() or not given.isprintable() or " " in given:
            raise ConfigError(
                f"the token must have {TOKEN_LETTERS} ASCII letters or more and no spaces; make one with: "
                'python -c "import secrets; print(secrets.token_urlsafe())"'
            )
        return given, "changes need the token that was given"
    if not loopback:
        raise ConfigError(
            f"{serving.host} can be reached from other computers, which must not change anything without a token; give "
            "one with --token-file FILE, or serve on 127.0.0.1"
        )
    file = sqlite_path(database_url(serving.url))
    if file is None:
        return None, "nothing can be changed, as no token was given"
    kept = Path(f"{file}.token")
    try:
        return stored_token(kept), f"changes need the token in {kept}"
    except OSError:
        return None, f"nothing can be changed, as {kept} cannot be written; give --token-file FILE"


def stored_token(file: Path) -> str:
    """Return the token in a file, which is made for this user alone when it is not there; raise OSError."""
    with contextlib.suppress(FileExistsError):
        made = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(made, "w", encoding="ascii") as target:
            target.write(secrets.token_urlsafe(24) + "\n")
    token = read_token(file)
    return token or _renewed(file)


def _renewed(file: Path) -> str:
    """Make a token in place of an empty file, as a full disk leaves it."""
    file.unlink()
    return stored_token(file)


def read_token(file: Path) -> str:
    """Return the token in a file; raise OSError."""
    return file.read_text(encoding="utf-8").strip()


@contextlib.contextmanager
def bind(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that listens; raise UsageError where the port is in use or the address not ours."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise UsageError(f"{host} is no address of this computer ({error.strerror}); give another --host") from error
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(listening, address, host, port)
        yield listening
    finally:
        listening.close()


def _bind(listening: socket.socket, address: object, host: str, port: int) -> None:
    until = time.monotonic() + BIND_WAIT_S
    while True:
        try:
            listening.bind(address)  # type: ignore[arg-type]
            listening.listen(128)
            return
        except OSError as error:
            if time.monotonic() > until or error.errno == 99:  # 99: not an address of ours, which waiting does not mend
                text = f"port {port} of {host} cannot be served ({error.strerror}); give another --port or --host"
                raise UsageError(text) from error
            time.sleep(0.2)


class _Server(uvicorn.Server):
    """Ends at SIGINT and SIGTERM as uvicorn does, without raising them once more afterwards."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals end the server while it runs."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(_number: int, _frame: FrameType | None) -> None:
            self.should_exit = True

        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _end(server: uvicorn.Server, stop: threading.Event) -> None:
    stop.wait()
    server.should_exit = True


def _announce(server: uvicorn.Server, address: str, where: str, serving: Serving, say: Callable[[str], None]) -> None:
    while not server.started:
        if server.should_exit:
            return
        time.sleep(0.05)
    say(f"the page: {address} ({where})")
    if serving.open:
        import webbrowser

        webbrowser.open(address)
