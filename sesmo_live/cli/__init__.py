"""The command line: `sesmo-live --help`."""

import logging
import os
import sys

from sesmo_live.cli.app import app
from sesmo_live.errors import SesmoError


def main() -> None:
    """Run the command line; errors end it with one sentence and the exit code of the README's table."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("sesmo_live").setLevel(logging.INFO)
    try:
        app()
    except SesmoError as error:
        print(f"sesmo-live: {error}", file=sys.stderr)  # noqa: T201 — the command line's own voice
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing is wrong, and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
