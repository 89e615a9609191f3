"""The command line: `sesmo-live --help`."""

import errno
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
    except OSError as error:
        sentence, code = explain(error)
        print(f"sesmo-live: {sentence}", file=sys.stderr)  # noqa: T201
        sys.exit(code)
    except Exception as error:  # noqa: BLE001 — the command line's top: exit code 1 would say that images failed
        traceback.print_exc()
        print(f"sesmo-live: this is a fault of the program ({error!r}); please report the lines above", file=sys.stderr)  # noqa: T201
        sys.exit(3)


_REMEDIES = {
    errno.EACCES: "choose a place where you may read and write, or have its rights changed",
    errno.EPERM: "choose a place where you may read and write, or have its rights changed",
    errno.EROFS: "it cannot be written to; choose another place",
    errno.ENOENT: "correct the path, or create its folder first",
    errno.ENOTDIR: "a file stands where a folder is needed; give another path",
    errno.EISDIR: "a folder stands there; give the path of a file",
    errno.EEXIST: "a file stands there already; give another path",
    errno.ENAMETOOLONG: "give a shorter path",
}
"""What helps against the system errors that a wrong path or missing rights cause."""


def explain(error: OSError) -> tuple[str, int]:
    """Return a sentence that names the file and the remedy, and the exit code: 2 for a wrong path, else 3."""
    name = error.filename if error.filename is not None else "a file"
    shown = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else str(name)
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy:
        return f"{shown}: {error.strerror}; {remedy}", 2
    return f"{shown}: {error.strerror or error}; check its disk, its room and its connection, then try again", 3
