"""Programs of ours that run as child processes."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def child(call: str, *words: str) -> list[str]:
    """Return the command that runs a function of ours, as `sesmo_live.cli:main`, in a Python like this one.

    What lies in the working directory is not imported by mistake (-P); `child_environment` says where we are instead.
    """
    module, _, function = call.partition(":")
    return [sys.executable, "-P", "-c", f"from {module} import {function}; {function}()", *words]


def child_environment() -> dict[str, str]:
    """Return the environment of such a child: ours, with the place of this program among the places of modules."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
