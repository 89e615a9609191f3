"""The page beside the scoring: a child process that is started, watched and ended, and never stops the scoring."""

import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sesmo_live.children import child, child_environment
from sesmo_live.config import Settings
from sesmo_live.errors import ConfigError

TOKEN_VARIABLE = "SESMO_TOKEN"  # noqa: S105 — the name of the variable, no token
RESTARTS = 5
"""How often a page's process that crashed is started again."""
RESTART_AFTER_S = 1.0
"""Seconds before it is started again; doubled each time."""
END_S = 8.0
"""Seconds that its end is waited for."""

log = logging.getLogger(__name__)


def token_of(settings: Settings, file: Path | None = None) -> str:
    """Return the token that a person gave: in `file`, the environment, or the configuration; "" for none."""
    named = file or settings.web.token_file
    if named is None:
        return os.environ.get(TOKEN_VARIABLE, "") or settings.web.token
    try:
        token = named.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(
            f"the token file {named} cannot be read ({reason}); correct the path or its rights"
        ) from error
    if not token:
        raise ConfigError(f"the token file {named} is empty; write a token of 16 letters or more into it")
    return token


def model_folders(settings: Settings) -> list[str]:
    """Return the model folders that the settings name."""
    names = {settings.scoring.model, *(watch.model for watch in settings.watch)}
    return sorted(str(Path(name).absolute()) for name in names if name and Path(name).is_dir())


def told(settings: Settings, token: str, *, open_page: bool) -> dict[str, Any]:
    """Return what the page's process is told to serve."""
    web = settings.web
    return {
        "url": settings.database.url,
        "host": web.host,
        "port": web.port,
        "token": token,
        "names": web.names,
        "models": model_folders(settings),
        "open": open_page,
    }


@contextmanager
def page(settings: Settings, *, open_page: bool = False) -> Iterator[Callable[[], None]]:
    """Give a function that starts the page, once, when there is a database; the page ends with the context.

    The child ends by itself when this process does, also when that is killed: its standard input then ends.
    """
    if not settings.web.enabled:
        yield lambda: None
        return
    words = told(settings, token_of(settings), open_page=open_page)
    stop, started = threading.Event(), threading.Event()
    thread = threading.Thread(target=_watch, args=(words, stop), name="page", daemon=True)

    def start() -> None:
        if not started.is_set():
            started.set()
            thread.start()

    try:
        yield start
    finally:
        stop.set()
        if started.is_set():
            thread.join(END_S + 5)


def _watch(words: dict[str, Any], stop: threading.Event) -> None:
    """Run the page's process until `stop`, again after a crash."""
    wait_s = RESTART_AFTER_S
    for left in range(RESTARTS, -1, -1):
        began = time.monotonic()
        code = _serve(words, stop)
        if stop.is_set() or code == 0:
            return
        if code == 2:  # it said why: its port is in use, or it must not be reached like that
            log.warning("the page is not served; scoring goes on")
            return
        if left == 0:
            log.error("the page's process ended (%s) again and again; it stays off, and scoring goes on", code)
            return
        log.warning("the page's process ended (%s); it is started again, and scoring goes on", code)
        wait_s = RESTART_AFTER_S if time.monotonic() - began > 600 else 2 * wait_s
        words = {**words, "open": False}
        if stop.wait(wait_s):
            return


def _serve(words: dict[str, Any], stop: threading.Event) -> int:
    """Run the page's process once, until it ends or `stop` is set; return its exit code."""
    process = subprocess.Popen(
        child("sesmo_live.web.__main__:main"), stdin=subprocess.PIPE, env=child_environment(), text=True
    )
    try:
        with suppress(OSError):  # it died at its start: the exit code tells
            if process.stdin:
                process.stdin.write(json.dumps(words) + "\n")
                process.stdin.flush()
        while process.poll() is None and not stop.wait(0.2):
            pass
    finally:
        _end(process)
    return process.returncode


def _end(process: "subprocess.Popen[str]") -> None:
    with suppress(OSError):
        if process.stdin:
            process.stdin.close()
    for last_word in (process.terminate, process.kill):
        try:
            process.wait(END_S / 2)
        except subprocess.TimeoutExpired:
            last_word()
    process.wait()
