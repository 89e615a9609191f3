"""The command line: `sesmo-live --help`."""

import logging
import os
import sys
import traceback

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
    except KeyboardInterrupt:
        sys.exit(3)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing is wrong, and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 — the command line's top: exit code 1 would say that images failed
        traceback.print_exc()
        print(f"sesmo-live: this is a fault of the program ({error!r}); please report the lines above", file=sys.stderr)  # noqa: T201
        sys.exit(3)
