"""One pass over fields of a plate: travel, compare, expose, write; what fails is named and left for later."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path

from acquisition.micromanager.frames import Frame, write_frame
from acquisition.micromanager.microscope import Microscope
from acquisition.micromanager.plan import Plan
from acquisition.micromanager.plates import Position
from acquisition.micromanager.stand import DeviceError, Reading, Stand, Stop, StoppedError
from sesmo_live.records import Pixels

NOT_TRIED = "not tried, as the wells before it failed one after the other"
"""The reason of fields that come after a pass was broken off."""


class Sweep:
    """A visitor that images `places`; read `written` and `failed` (field: reason) once the microscope is through.

    Its methods are called by the microscope's own threads. None of them raises: an error there would end an acquisition
    of pycromanager without a word, or make it hang.
    """

    def __init__(self, stand: Stand, plan: Plan, timepoint: int, places: Sequence[Position], focus: set[str]) -> None:
        self.written: dict[Position, Path] = {}
        self.failed: dict[Position, str] = {}
        self._stand = stand
        self._plan = plan
        self._timepoint = timepoint
        self._places = places
        self._focus = focus
        self._readings: dict[int, tuple[Reading, datetime, dict[str, str]]] = {}
        self._failing: set[str] = set()
        self.pulse = stand.pulse

    def take(self, microscope: Microscope, stop: Stop) -> None:
        """Image all places; raise StuckError when the microscope does not answer any more."""
        patience_s = self._plan.microscope.timeout_s + self._plan.imaging.exposure_ms / 1000
        microscope.take(len(self._places), self, stop, patience_s)
        if not stop.is_set():
            for number, place in enumerate(self._places):
                if place not in self.written and place not in self.failed:
                    self.failed[place] = f"the camera gave no image of field {number + 1} of this pass"

    def arrive(self, number: int) -> bool:
        """Travel to a field; see `Visitor`."""
        place = self._places[number]
        if place.well not in self._failing and len(self._failing) >= self._plan.faults.in_a_row:
            self.failed[place] = NOT_TRIED
            return False
        return self._guard(number, lambda: self._visit(number, place))

    def deliver(self, number: int, pixels: Pixels) -> None:
        """Write the frame; see `Visitor`."""
        self._guard(number, lambda: self._write(number, pixels))

    def failed_camera(self, number: int, reason: str) -> None:
        """Note that the camera failed."""
        self._fail(number, f"the camera failed: {reason}")

    def _visit(self, number: int, place: Position) -> None:
        reading = self._stand.visit(place, focus=place.well in self._focus)
        self._focus.discard(place.well)
        self._readings[number] = reading, datetime.now().astimezone(), self._stand.properties()

    def _write(self, number: int, pixels: Pixels) -> None:
        place = self._places[number]
        width, height = self._plan.imaging.frame_px
        if pixels.shape != (height, width):
            raise DeviceError(f"the camera gave {pixels.shape[1]} × {pixels.shape[0]} pixels, not {width} × {height}")
        frame = Frame(place, self._timepoint, *self._readings[number][:2], pixels, self._readings[number][2])
        self.written[place] = write_frame(self._plan, frame)
        self._failing.clear()

    def _guard(self, number: int, act: Callable[[], None]) -> bool:
        """Do something at a field, and turn whatever goes wrong into the field's reason."""
        try:
            act()
        except StoppedError:
            return False
        except DeviceError as error:
            self._fail(number, str(error))
            return False
        except OSError as error:
            where = error.filename or self._plan.folder
            self._fail(number, f"{where} cannot be written: {error.strerror or error}; check the disk and its room")
            return False
        except Exception as error:  # noqa: BLE001 — a callback's top: an error here would hang the acquisition
            self._fail(number, f"this is a fault of the program ({error!r}); please report it")
            return False
        return True

    def _fail(self, number: int, reason: str) -> None:
        self.failed[self._places[number]] = reason
        self._failing.add(self._places[number].well)


def focus_wells(plan: Plan, places: Iterable[Position]) -> set[str]:
    """Return the wells of a round at whose first field the autofocus runs: each n-th in the order of imaging."""
    wells = list(dict.fromkeys(place.well for place in places))
    return set(wells[:: plan.focus.every]) if plan.focus.device else set()
