"""The hand on the devices: travel, focus, read-back and parking through one MMCore, near or far.

`core` is what pycromanager's `Core()` returns (snake-case MMCore): the core in this process, or the one in the running
Micro-Manager application. Nothing is believed: after each move the position is read back and compared.
"""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
class Stand:
    """One microscope's stage and focus, as the plan wants them used."""

    core: Any
    plan: Plan
    stop: Stop
    xy: str = ""
    z: str = ""
    doing: str = "looking for the devices"
    heights: dict[str, float] = field(default_factory=dict)
    _well: str = ""
    _base_z: float = 0.0
    _prepared: bool = False

    def prepare(self) -> None:
        """Look for the devices and set channel and exposure; raise DeviceError for what is missing or refuses."""
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
        asked("the camera", self.core.set_exposure, float(imaging.exposure_ms))
        if self.z and not self._prepared:
            self._base_z = focus.z_um if focus.z_um is not None else float(asked(self.z, self.core.get_position))
            self._prepared = True
        self._check_camera()

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
        self._travel(place)
        focused = False
        if self.z:
            self.move_z(self._height(place))
        if focus and self.plan.focus.device:
            self.doing = f"the autofocus {self.plan.focus.device}"
            asked(self.doing, self.core.full_focus)
            self._base_z = self.heights[place.well] = float(asked(self.z, self.core.get_position))
            focused = True
        self._well = place.well
        return replace(self.check(place), focused=focused)

    def check(self, place: Position) -> Reading:
        """Return where stage and focus stand; raise DeviceError unless both stand where they should."""
        self.doing = f"the stage {self.xy}"
        x, y = (float(asked(self.doing, get)) for get in (self.core.get_x_position, self.core.get_y_position))
        off = math.hypot(x - place.x_um, y - place.y_um)
        if not off <= self.plan.microscope.tolerance_um:
            raise DeviceError(
                f"the stage {self.xy} stands at {x:.1f}, {y:.1f} µm, {off:.1f} µm from {place.well} field "
                f"{place.field} at {place.x_um:.1f}, {place.y_um:.1f} (limit {self.plan.microscope.tolerance_um:g})"
            )
        if not self.z:
            return Reading(x, y, None)
        z = float(asked(f"the focus {self.z}", self.core.get_position))
        wanted = self._height(place)
        if not abs(z - wanted) <= self.plan.microscope.z_tolerance_um:
            raise DeviceError(
                f"the focus {self.z} stands at {z:.2f} µm, not at {wanted:.2f} "
                f"(limit {self.plan.microscope.z_tolerance_um:g})"
            )
        return Reading(x, y, z)

    def _height(self, place: Position) -> float:
        """Return the focus of a well: what its last autofocus found, else that of the last well that had one."""
        return self.heights.get(place.well, self._base_z)

    def retreat(self) -> None:
        """Take the focus to the safe height, where the plan has one, before anything travels sideways."""
        if self.z and self.plan.focus.safe_z_um is not None:
            self.move_z(self.plan.focus.safe_z_um)

    def move_z(self, z_um: float) -> None:
        """Move the focus and wait until it has arrived."""
        self.doing = f"the focus {self.z}"
        asked(self.doing, self.core.set_position, float(z_um))
        self._arrive(self.z, self.plan.microscope.timeout_s)

    def _travel(self, place: Position) -> None:
        self.doing = f"the stage {self.xy}"
        x, y = (float(asked(self.doing, get)) for get in (self.core.get_x_position, self.core.get_y_position))
        distance = math.hypot(x - place.x_um, y - place.y_um)
        asked(self.doing, self.core.set_xy_position, float(place.x_um), float(place.y_um))
        self._arrive(self.xy, 5.0 + 3 * distance / self.plan.microscope.speed_um_s)

    def _arrive(self, device: str, within_s: float) -> None:
        """Wait for a device; the core's own wait would end after its time-out, and could not be stopped."""
        until = time.monotonic() + within_s
        while asked(self.doing, self.core.device_busy, device):
            if self.stop.is_set():
                asked(self.doing, self.core.stop, device)
                raise StoppedError("stopped on the way")
            if time.monotonic() > until:
                raise DeviceError(f"{self.doing} is still busy after {within_s:.0f} s; look whether it is blocked")
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
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return _JAVA.sub("", line).rstrip(".") or type(error).__name__
