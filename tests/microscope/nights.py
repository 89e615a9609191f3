"""Short acquisitions on a real MMCore with demo devices, each with one thing wrong.

`python -m tests.microscope.nights FOLDER NIGHT ...`: they run in a process of their own, one after the other, each on a
core started anew; every result is a line of JSON.
Faults are put between our code and the real core's functions, where a device adapter would have raised or lied. The
camera writes the true position of the stage into each picture, so that a frame can prove where it was taken.
"""

import contextlib
import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from acquisition.micromanager import microscope, sweep
from acquisition.micromanager.frames import write_frame
from acquisition.micromanager.microscope import Headless
from acquisition.micromanager.plan import Plan, plan_from
from acquisition.micromanager.runner import Done
from acquisition.micromanager.stand import Stand
from acquisition.micromanager.virtual import demo_connection
from acquisition.micromanager.watch import hangs
from sesmo_live.acquire import acquire
from sesmo_live.errors import SesmoError

WELLS = ["B02:B04", "C02:C04"]
BAD = "B03"
"""The well at which things go wrong; its middle is at 18 000, 9 000 µm."""
SAFE_Z = 3.0
SIDE = 64

Break = Callable[[Any], None]


def plan(folder: Path, **changes: dict[str, Any]) -> Plan:
    """Return a plan of six wells, two fields, and one round; `changes` go into its sections."""
    data: dict[str, Any] = {
        "folder": folder / "images",
        "database": str(folder / "sesmo.db"),
        "plate": {"name": "P", "wells": 96, "reference": {"A01": (0, 0), "A12": (99_000, 0), "H01": (0, 63_000)}},
        "imaging": {
            **{"wells": WELLS, "fields": 2, "frame_px": (SIDE, SIDE)},
            **{"pixel_um": 1.0, "exposure_ms": 1, "channel": "Phase"},
        },
        "microscope": {**demo_connection().model_dump(), "timeout_s": 4.0},
        "focus": {"device": "Autofocus", "safe_z_um": SAFE_Z, "z_um": 50.0},
        "rounds": {"every_min": 0.01, "for_h": 0},
    }
    for section, values in changes.items():
        data[section] = {**data.get(section, {}), **values}
    return plan_from(data, "the test")


def open_core(break_it: Break | None = None) -> Headless:
    """Return the demo devices, quick and small, with the stage's true position in each picture, and one fault."""
    connection = demo_connection()
    assert connection.program is not None
    opened = Headless(connection.program, connection.config)
    core = opened.core
    core.set_property("XY", "Velocity", 200.0)
    core.set_property("Camera", "OnCameraCCDXSize", SIDE)
    core.set_property("Camera", "OnCameraCCDYSize", SIDE)
    read, x_of, y_of = core.get_tagged_image, core.get_x_position, core.get_y_position

    def get_tagged_image(*values: Any) -> Any:
        tagged = read(*values)
        tagged.pix = np.ascontiguousarray(tagged.pix)
        tagged.pix[0, :2] = round(x_of() / 2), round(y_of() / 2)
        return tagged

    core.get_tagged_image = get_tagged_image
    if break_it is not None:
        break_it(core)
    return opened


def at_bad_well(core: Any) -> bool:
    """Say whether the stage really stands at the bad well."""
    return bool(abs(core.get_x_position() - 18_000) < 4_000 and abs(core.get_y_position() - 9_000) < 4_000)


def slow_stage(core: Any) -> None:
    """Let the stage travel longer from well to well than a device may be silent."""
    core.set_property("XY", "Velocity", 20.0)


def stage_offset(core: Any) -> None:
    """Let the stage stop 300 µm short at one well, as one that lost steps."""
    go = core.set_xy_position
    core.set_xy_position = lambda x, y: go(x - 300 if abs(x - 18_000) < 4_000 and y < 13_000 else x, y)


def stage_raises(core: Any) -> None:
    """Let the stage refuse one well."""
    go = core.set_xy_position

    def refuse(x: float, y: float) -> None:
        if abs(x - 18_000) < 4_000 and y < 13_000:
            raise RuntimeError('Error in device "XY": Serial command failed (107)')
        go(x, y)

    core.set_xy_position = refuse


def stage_raises_once(core: Any) -> None:
    """Let the stage refuse once, and obey when asked again."""
    go, left = core.set_xy_position, [1]

    def refuse(x: float, y: float) -> None:
        if abs(x - 18_000) < 4_000 and left:
            left.pop()
            raise RuntimeError('Error in device "XY": Serial command failed (107)')
        go(x, y)

    core.set_xy_position = refuse


def stage_lies_still(core: Any) -> None:
    """Let the stage never move and never complain."""
    core.set_xy_position = lambda _x, _y: None


def readout_fails(core: Any) -> None:
    """Let the camera expose and never read out at one well."""
    read = core.get_tagged_image

    def refuse(*values: Any) -> Any:
        if at_bad_well(core):
            raise RuntimeError('Error in device "Camera": image buffer read failed')
        return read(*values)

    core.get_tagged_image = refuse


def exposure_fails(core: Any) -> None:
    """Let the camera refuse to expose at one well."""
    snap = core.snap_image

    def refuse() -> None:
        if at_bad_well(core):
            raise RuntimeError('Error in device "Camera": trigger time-out')
        snap()

    core.snap_image = refuse


def autofocus_fails(core: Any) -> None:
    """Let the autofocus find nothing at one well."""
    focus = core.full_focus

    def refuse() -> None:
        if at_bad_well(core):
            raise RuntimeError('Error in device "Autofocus": no reflection found')
        focus()

    core.full_focus = refuse


def focus_slips(core: Any) -> None:
    """Let the focus drive stand elsewhere than it was sent, at one well."""
    go = core.set_position
    core.set_position = lambda z: go(z + 30 if at_bad_well(core) and z > SAFE_Z else z)


def camera_hangs(core: Any) -> None:
    """Let an exposure never end."""
    core.snap_image = lambda: time.sleep(600)


def autofocus_fails_last(core: Any) -> None:
    """Let the last well fail when the focus is up, and leave a field of the first for the second pass."""
    autofocus_fails(core)
    snap, left = core.snap_image, [1]

    def refuse() -> None:
        if left:
            left.pop()
            raise RuntimeError('Error in device "Camera": trigger time-out')
        snap()

    core.snap_image = refuse


_OPENED: list[int] = []


def camera_hangs_once(core: Any) -> None:
    """Let one exposure take too long; the focus drive stays where it is from one connection to the next."""
    core.set_position(SAFE_Z if _OPENED else 50.0)
    snap = core.snap_image

    def hang() -> None:
        if not _OPENED:
            _OPENED.append(1)
            time.sleep(2.0)
        snap()

    core.snap_image = hang


def focus_stays_up(core: Any) -> None:
    """Let the focus drive never leave the height of imaging, and never complain."""
    core.set_position(50.0)
    core.set_position = lambda _z: None


def second_preparation_hangs(core: Any) -> None:
    """Let the core not answer any more when the second round begins: the stage stands, and nothing is under way."""
    expose, asked = core.set_exposure, [0]

    def hang(ms: float) -> None:
        asked[0] += 1
        if asked[0] == 3:
            time.sleep(3.0)
        expose(ms)

    core.set_exposure = hang


FAULTS: dict[str, Break] = {
    fault.__name__: fault
    for fault in (
        *(
            slow_stage,
            stage_offset,
            stage_raises,
            stage_raises_once,
            readout_fails,
            exposure_fails,
            autofocus_fails,
            focus_slips,
        ),
        *(stage_lies_still, camera_hangs, focus_stays_up, second_preparation_hangs),
        *(autofocus_fails_last, camera_hangs_once),
    )
}


def night(folder: Path, name: str, break_it: Break | None, **differences: dict[str, Any]) -> dict[str, Any]:
    """Acquire with a fault, and return how it ended and what it said."""
    said: list[str] = []
    kept: list[Headless] = []

    moves: list[list[float]] = []
    raised: list[float] = []

    def opened() -> Headless:
        kept.append(open_core(break_it))
        keep_moves(kept[-1].core, moves, raised)
        return kept[-1]

    began, ended, done = time.monotonic(), "", list[Done]()
    height = [float("nan")]
    park = Stand.park

    def parked(stand: Any) -> str:
        wrong = park(stand)
        height[0] = stand.core.get_position()
        return wrong

    try:
        with patch.object(Stand, "park", parked):
            done = acquire(plan(folder / name, **differences), threading.Event(), said.append, opened)
    except SesmoError as error:
        ended = str(error)
    return {
        "night": name,
        "ended": ended,
        "rounds": [[len(one.written), one.wanted] for one in done],
        "said": said,
        "seconds": round(time.monotonic() - began, 2),
        "parked_z": height[0],
        "moves": moves,
        "raised": raised,
    }


def keep_moves(core: Any, moves: list[list[float]], raised: list[float]) -> None:
    """Keep of each travel where it began and ended, and at which height; and each height above the safe one (µm)."""
    go, x_of, y_of, z_of = core.set_xy_position, core.get_x_position, core.get_y_position, core.get_position

    def travel(x: float, y: float) -> None:
        moves.append([x_of(), y_of(), x, y, z_of()])
        go(x, y)

    focus = core.set_position

    def lift(z: float) -> None:
        raised.extend([z] if z > SAFE_Z else [])
        focus(z)

    core.set_xy_position, core.set_position = travel, lift


@contextlib.contextmanager
def writing_fails(error: Exception, times: int) -> Iterator[None]:
    """Let the writing of frames of the bad well fail so often."""
    left = [times]

    def refuse(plan_: Plan, frame: Any) -> Path:
        if frame.place.well == BAD and left[0]:
            left[0] -= 1
            raise error
        return write_frame(plan_, frame)

    with patch.object(sweep, "write_frame", refuse):
        yield


def changes(name: str) -> dict[str, dict[str, Any]]:
    """Return how the plan of a night differs from the others'."""
    slow = {"timeout_s": 1.0}
    many: dict[str, dict[str, Any]] = {
        "rounds": {"for_h": 9 * 0.01 / 60},
        "faults": {"in_a_row": 3, "retries": 0},
        "microscope": slow,
    }
    past = datetime.now(UTC) - timedelta(seconds=100)
    table: dict[str, dict[str, dict[str, Any]]] = {
        "stage_lies_still": many,
        "camera_hangs": many,
        "stage_raises": {"faults": {"in_a_row": 2}},  # wells, not fields
        "slow_stage": {
            "microscope": {"timeout_s": 2.0, "speed_um_s": 20_000},
            "imaging": {"wells": ["B02", "B08"]},
        },
        "second_preparation_hangs": {"microscope": slow, "rounds": {"every_min": 0.05, "for_h": 0.05 / 60}},
        "autofocus_fails_last": {"imaging": {"wells": ["B03:B04"]}},
        "begun_late": {"rounds": {"every_min": 40 / 60, "for_h": 80 / 3600, "start": past}},
        "camera_hangs_once": {
            "focus": {"device": "", "z_um": None},
            "microscope": slow,
            "rounds": {"every_min": 0.1, "for_h": 0.1 / 60},
        },
    }
    return table.get(name, {})


def main() -> None:
    """Run the nights named on the command line in the folder named first; print a line of JSON for each."""
    folder, microscope.READOUT_S = Path(sys.argv[1]), 0.2
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    errors = {"callback_raises": ValueError("a slip of ours"), "disk_full": full}
    for name in sys.argv[2:]:
        of = "all_is_well" if name == "again" else name
        with writing_fails(errors[name], 99) if name in errors else contextlib.nullcontext():
            result = night(folder, of, FAULTS.get(name), **changes(name))
        while name in ("second_preparation_hangs", "camera_hangs_once") and hangs():
            time.sleep(0.05)  # it comes back, and the next night has a core of its own
        print(json.dumps(result | {"night": name}), flush=True)  # noqa: T201 — the result
    if hangs():
        os._exit(0)


if __name__ == "__main__":
    main()
