"""The hand on the devices: travel, focus, read-back and parking through one MMCore, near or far.

`core` is what pycromanager's `Core()` returns (snake-case MMCore): the core in this process, or the one in the running
Micro-Manager application. Nothing is believed: after each move the position is read back and compared.
"""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from acquisition.micromanager.plan import Plan
from acquisition.micromanager.plates import Position
from sesmo_live.errors import SesmoError

POLL_S = 0.002
"""Seconds between two questions whether a stage has arrived."""

_JAVA = re.compile(r"^(?:[\w.]+(?:Exception|Error):\s*)+")


class DeviceError(SesmoError):
    """A device did not do what it was told; the message names it and has its own words."""


class StoppedError(SesmoError):
    """The user asked to stop."""


class StuckError(DeviceError):
    """A device or the connection does not answer at all; nothing more can be asked of it."""


class Stop(Protocol):
    """Anything that can be asked whether to stop, such as a threading.Event."""

    def is_set(self) -> bool:
        """Say whether to stop."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Where the devices say that they stand, in µm; `focused` says whether the autofocus has just run."""

    x_um: float
    y_um: float
    z_um: float | None
    focused: bool = False


@dataclass(slots=True)
class Pulse:
    """What is being waited for, in words, and when a device last answered."""

    doing: str = "Micro-Manager"
    at: float = field(default_factory=time.monotonic)

    def beat(self, doing: str = "") -> None:
        """Note that there is progress, and what comes next."""
        self.doing, self.at = doing or self.doing, time.monotonic()

    @property
    def silent_s(self) -> float:
        """Return for how many seconds nothing has answered."""
        return time.monotonic() - self.at


@dataclass(slots=True)
class Heights:
    """Focus positions (µm) that outlive a connection and a process: the last one in use, and each well's autofocus."""

    base_um: float | None = None
    wells: dict[str, float] = field(default_factory=dict)

    def of(self, well: str) -> float:
        """Return the focus of a well: what its last autofocus found, else that of the last well that had one."""
        return self.wells.get(well, self.base_um or 0.0)


@dataclass(slots=True)
class Stand:
    """One microscope's stage and focus, as the plan wants them used."""

    core: Any
    plan: Plan
    stop: Stop
    heights: Heights = field(default_factory=Heights)
    pulse: Pulse = field(default_factory=Pulse)
    xy: str = ""
    z: str = ""
    _well: str = ""
    _prepared: bool = False

    def prepare(self) -> None:
        """Look for the devices and set channel and exposure; raise DeviceError for what is missing or refuses."""
        self.pulse.beat("Micro-Manager")
        self.xy = str(asked("the core", self.core.get_xy_stage_device))
        self.z = str(asked("the core", self.core.get_focus_device))
        if not self.xy:
            raise DeviceError("Micro-Manager has no XY stage; choose one in its configuration (Core-XYStage)")
        if not asked("the core", self.core.get_camera_device):
            raise DeviceError("Micro-Manager has no camera; choose one in its configuration (Core-Camera)")
        focus, imaging = self.plan.focus, self.plan.imaging
        if not self.z and (focus.z_um is not None or focus.safe_z_um is not None or focus.device):
            raise DeviceError("the plan sets a focus, but Micro-Manager has no focus device; choose one (Core-Focus)")
        if focus.device:
            asked(f"the autofocus {focus.device}", self.core.set_auto_focus_device, focus.device)
        if imaging.channel_group:
            what = f"the preset {imaging.channel} of group {imaging.channel_group}"
            asked(what, self.core.set_config, imaging.channel_group, imaging.channel)
            asked(what, self.core.wait_for_config, imaging.channel_group, imaging.channel)
        self.pulse.beat("the camera")
        asked("the camera", self.core.set_exposure, float(imaging.exposure_ms))
        self._check_camera()
        if self.z and not self._prepared:
            self._begin_focus()
            self._prepared = True

    def _begin_focus(self) -> None:
        """Take the focus from the plan, else from where it is; a parked one goes on where it was before."""
        focus, heights = self.plan.focus, self.heights
        here = float(asked(self.z, self.core.get_position))
        parked = focus.safe_z_um is not None and abs(here - focus.safe_z_um) <= self.plan.microscope.z_tolerance_um
        if heights.base_um is None or not (focus.device or (focus.z_um is None and parked)):
            heights.base_um = here if focus.z_um is None else focus.z_um

    def _check_camera(self) -> None:
        """Raise DeviceError where the camera's image is not the one that the plan speaks of."""
        size = int(self.core.get_image_width()), int(self.core.get_image_height())
        if size != self.plan.imaging.frame_px:
            wanted = " × ".join(map(str, self.plan.imaging.frame_px))
            raise DeviceError(
                f"the camera's images have {size[0]} × {size[1]} pixels, the plan says {wanted}; "
                "correct imaging.frame_px, or binning and region of the camera"
            )
        pixel = float(self.core.get_pixel_size_um())
        if pixel > 0 and abs(pixel / self.plan.imaging.pixel_um - 1) > 0.02:
            raise DeviceError(
                f"Micro-Manager says {pixel:g} µm per pixel, the plan {self.plan.imaging.pixel_um:g}; "
                "correct imaging.pixel_um, or choose the objective that the plan is for"
            )

    def visit(self, place: Position, *, focus: bool) -> Reading:
        """Travel to `place`, hold or find the focus, and return where the devices then stand.

        Raises DeviceError when one refuses or has not arrived, StoppedError when told to stop on the way.
        """
        if place.well != self._well:
            self.retreat()
        self._well = ""  # until it stands there: whatever fails on the way, the next travel begins at the safe height
        self._travel(place)
        self._compare_xy(place)
        self._well = place.well
        if self.z:
            self.move_z(self.heights.of(place.well))
        focused = focus and bool(self.plan.focus.device)
        if focused:
            self.pulse.beat(f"the autofocus {self.plan.focus.device}")
            asked(self.pulse.doing, self.core.full_focus)
            found = float(asked(self.z, self.core.get_position))
            self.heights.base_um = self.heights.wells[place.well] = found
        x, y = self._compare_xy(place)
        return Reading(x, y, self._compare_z(self.heights.of(place.well)) if self.z else None, focused)

    def _compare_xy(self, place: Position) -> tuple[float, float]:
        """Return where the stage stands; raise DeviceError unless that is where it should."""
        self.pulse.beat(f"the stage {self.xy}")
        x, y = self._xy_um()
        off = math.hypot(x - place.x_um, y - place.y_um)
        if not off <= self.plan.microscope.tolerance_um:
            raise DeviceError(
                f"the stage {self.xy} stands at {x:.1f}, {y:.1f} µm, {off:.1f} µm from {place.well} field "
                f"{place.field} at {place.x_um:.1f}, {place.y_um:.1f} (limit {self.plan.microscope.tolerance_um:g})"
            )
        return x, y

    def _compare_z(self, wanted: float) -> float:
        """Return where the focus stands; raise DeviceError unless that is where it should."""
        self.pulse.beat(f"the focus {self.z}")
        z = float(asked(self.pulse.doing, self.core.get_position))
        if not abs(z - wanted) <= self.plan.microscope.z_tolerance_um:
            raise DeviceError(
                f"the focus {self.z} stands at {z:.2f} µm, not at {wanted:.2f} "
                f"(limit {self.plan.microscope.z_tolerance_um:g})"
            )
        return z

    def _xy_um(self) -> tuple[float, float]:
        what = f"the stage {self.xy}"
        return float(asked(what, self.core.get_x_position)), float(asked(what, self.core.get_y_position))

    def retreat(self) -> None:
        """Take the focus to the safe height, where the plan has one, before anything travels sideways."""
        if self.z and self.plan.focus.safe_z_um is not None:
            self.move_z(self.plan.focus.safe_z_um)
            self._compare_z(self.plan.focus.safe_z_um)

    def move_z(self, z_um: float) -> None:
        """Move the focus and wait until it has arrived."""
        self.pulse.beat(f"the focus {self.z}")
        asked(self.pulse.doing, self.core.set_position, float(z_um))
        self._arrive(self.z, self.plan.microscope.timeout_s)

    def _travel(self, place: Position) -> None:
        self.pulse.beat(f"the stage {self.xy}")
        x, y = self._xy_um()
        distance = math.hypot(x - place.x_um, y - place.y_um)
        asked(self.pulse.doing, self.core.set_xy_position, float(place.x_um), float(place.y_um))
        self._arrive(self.xy, 5.0 + 3 * distance / self.plan.microscope.speed_um_s)

    def _arrive(self, device: str, within_s: float) -> None:
        """Wait for a device; the core's own wait would end after its time-out, and could not be stopped."""
        until = time.monotonic() + within_s
        while asked(self.pulse.doing, self.core.device_busy, device):
            self.pulse.beat()  # it travels, and says so
            if self.stop.is_set():
                asked(self.pulse.doing, self.core.stop, device)
                raise StoppedError("stopped on the way")
            if time.monotonic() > until:
                raise DeviceError(
                    f"{self.pulse.doing} is still busy after {within_s:.0f} s; look whether it is blocked"
                )
            time.sleep(POLL_S)

    def park(self) -> str:
        """Close the shutter and take the focus to its safe height; return what went wrong, empty if nothing did."""
        wrong = []
        for act in (self._close_shutter, self._park_z):
            try:
                act()
            except DeviceError as error:
                wrong.append(str(error))
        self._well = ""
        return "; ".join(wrong)

    def _park_z(self) -> None:
        if self.z and self.plan.focus.safe_z_um is not None:
            asked(f"the focus {self.z}", self.core.set_position, float(self.plan.focus.safe_z_um))

    def _close_shutter(self) -> None:
        if asked("the core", self.core.get_shutter_device):
            asked("the shutter", self.core.set_shutter_open, False)

    def properties(self) -> dict[str, str]:
        """Return the device properties that the plan wants kept; one that cannot be read is left out."""
        found = {}
        for name in self.plan.microscope.properties:
            device, _, key = name.partition("-")
            try:
                found[name] = str(asked(name, self.core.get_property, device, key))
            except DeviceError:
                continue
        return found


def asked(what: str, ask: Callable[..., Any], *values: Any) -> Any:
    """Call one function of the core; raise DeviceError with `what` and the core's own words when it fails."""
    try:
        return ask(*values)
    except StuckError:
        raise
    except Exception as error:
        raise DeviceError(f"{what} failed: {words(error)}") from error


def words(error: BaseException) -> str:
    """Return what an error of the core says, in one line and without Java's class names; never empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("at ")]  # Java's stack
    return _JAVA.sub("", "; ".join(said)[:400]).rstrip(".") or type(error).__name__
