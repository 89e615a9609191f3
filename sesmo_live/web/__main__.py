"""The page's process as a child of `run` or `demo`: told what to serve on standard input, it ends when that does."""

import json
import logging
import os
import signal
import sys
import threading
from contextlib import suppress

from sesmo_live.errors import SesmoError
from sesmo_live.web.server import Serving, serve

NICE = 5
"""How much this process steps back behind the scoring."""


def main() -> None:
    """Serve what the first line of standard input says, until standard input ends: then the parent has, however."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    told = json.loads(sys.stdin.readline())
    serving = Serving(**{**told, "names": tuple(told["names"]), "models": tuple(told["models"])})
    stop = threading.Event()
    threading.Thread(target=_wait_for_end, args=(stop,), daemon=True).start()
    if hasattr(os, "nice"):
        with suppress(OSError):  # a sandbox may forbid it
            os.nice(NICE)
    try:
        serve(serving, stop, _say)
    except SesmoError as error:
        _say(f"the page is not served: {error}")
        sys.exit(error.exit_code)


def _wait_for_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
