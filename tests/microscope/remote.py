"""Acquire through the running application's port, in a process without a core of its own.

`python -m tests.microscope.remote FOLDER PORT ROUNDS EVERY_S`
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sesmo_live.acquire import acquire
from sesmo_live.errors import SesmoError
from tests.microscope.nights import plan


def main() -> None:
    """Acquire, and print what was said, then how it ended."""
    folder, port, rounds, every_s = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    changes: dict[str, dict[str, Any]] = {
        "microscope": {"connection": "application", "port": port, "timeout_s": 4.0, "properties": ["Camera-Binning"]},
        "rounds": {"every_min": every_s / 60, "for_h": (rounds - 1) * every_s / 3600},
    }
    began, ended = time.monotonic(), ""
    try:
        acquire(plan(folder, **changes), threading.Event(), lambda text: print(text, flush=True))  # noqa: T201
    except SesmoError as error:
        ended = str(error)
    print(json.dumps({"ended": ended, "seconds": time.monotonic() - began}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
