"""The command line over a microscope that shows virtual cells: `python -m tests.microscope.cells acquire PLAN`."""

from typing import Any
from unittest.mock import patch

from acquisition.micromanager import runner, virtual
from acquisition.micromanager.microscope import Headless
from sesmo_live import preview
from sesmo_live.cli import main
from sesmo_live.demo import simulate_plate

PLATE = simulate_plate(wells=96, hours=(24.0,), fields=2, seed=1)


def connect(_connection: Any) -> Headless:
    """Return the virtual microscope instead of the one that the plan names."""
    return virtual.open_virtual(PLATE, lambda: 24.0)


if __name__ == "__main__":
    with patch.object(runner, "connect", connect), patch.object(preview, "connect", connect):
        main()
