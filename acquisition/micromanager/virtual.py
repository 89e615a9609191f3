"""A microscope without optics: Micro-Manager's demo devices, whose camera shows the virtual plate under the stage."""

from collections.abc import Callable
from typing import Any

from acquisition.micromanager.microscope import Headless
from acquisition.micromanager.plan import Microscope
from acquisition.simulator import VirtualPlate, render_at
from sesmo_live.errors import UsageError

DEMO_CONFIG = "MMConfig_demo.cfg"
STAGE_MM_S = 200.0
"""Speed of the demo stage: as fast as its driver allows for, so that a demonstration does not wait for travel."""

FOCUS_UM = 40.0
"""Height of the cells at the origin of the stage."""

TILT = (3e-4, 2e-4)
"""How the plate tilts: µm of height per µm along x and y, 30 µm over a plate, as plates do."""


def demo_connection() -> Microscope:
    """Return how the demo devices are reached; raise UsageError where they are not installed."""
    try:
        from mm_test_adapters import device_adapter_path
    except ModuleNotFoundError as error:
        raise UsageError(
            "Micro-Manager's demo devices are not installed; install them with: uv pip install 'mm-test-adapters==75.*'"
        ) from error
    return Microscope.model_validate(
        {"connection": "headless", "program": device_adapter_path(), "config": DEMO_CONFIG, "speed_um_s": 2e5}
    )


def focus_at(x_um: float, y_um: float) -> float:
    """Return the height (µm) of the cells under a stage position."""
    return FOCUS_UM + TILT[0] * x_um + TILT[1] * y_um


def open_virtual(plate: VirtualPlate, hours: Callable[[], float]) -> Headless:
    """Return demo devices on a real core, with the virtual plate (A01 at the stage's 0, 0) before the camera.

    Exposure, stage, focus, shutter and read-out are the core's own; pixels come from `render_at`, out of focus by as
    much as the focus stands off the cells. The autofocus finds them. `hours` tells how old the plate is.
    """
    connection = demo_connection()
    if connection.program is None:
        raise UsageError("the demo devices have no folder; install them anew")
    microscope = Headless(connection.program, connection.config)
    core = microscope.core
    core.set_property(core.get_xy_stage_device(), "Velocity", STAGE_MM_S)
    core.set_pixel_size_um(core.get_current_pixel_size_config(), plate.pixel_um)
    read, frames = core.get_tagged_image, iter(range(10**9))

    def get_tagged_image(*values: Any) -> Any:
        tagged = read(*values)
        x, y = core.get_x_position(), core.get_y_position()
        off = core.get_position() - focus_at(x, y)
        tagged.pix = render_at(plate, x, y, hours(), z_um=off, frame=next(frames))
        return tagged

    def full_focus() -> None:
        core.set_position(focus_at(core.get_x_position(), core.get_y_position()))

    core.get_tagged_image, core.full_focus = get_tagged_image, full_focus
    return microscope
