"""Calls to devices on threads of their own, so that one that never answers hangs nothing but its thread."""

import threading
from collections.abc import Callable
from typing import Any

from acquisition.micromanager.stand import Pulse, Stop, StuckError

GIVE_UP_S = 0.6
"""Seconds for which a device may be silent once told to stop: an abort must not take two seconds."""

STUCK: "list[tuple[str, Worker]]" = []
"""What was waited for in acquisitions that were given up, and the threads that still wait."""


class Worker:
    """A call on a thread of its own, which never keeps the program from ending."""

    def __init__(self, act: Callable[[], Any], pulse: Pulse | None = None) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._pulse = pulse or Pulse()
        self._pulse.beat()

        def work() -> None:
            try:
                self._value = act()
            except BaseException as error:  # noqa: BLE001 — a worker's top: handed to whoever waits
                self._error = error

        self._thread = threading.Thread(target=work, name="microscope", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait, and say whether the call has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def ended(self, stop: Stop, timeout_s: float) -> bool:
        """Wait while there is progress; say whether the call ended. Once stopped it has little time left."""
        while not self.join(0.02):
            if self._pulse.silent_s > (min(GIVE_UP_S, timeout_s) if stop.is_set() else timeout_s):
                return False
        return True

    def result(self) -> Any:
        """Return what the call returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._value


def watched(act: Callable[[], Any], pulse: Pulse, stop: Stop, timeout_s: float) -> Any:
    """Do something with a device on a thread of its own and return its value; raise StuckError when it falls silent.

    Once `stop` is set it has GIVE_UP_S left. A thread that is left behind counts as hanging until it ends.
    """
    worker = Worker(act, pulse)
    if not worker.ended(stop, timeout_s):
        STUCK.append((pulse.doing, worker))
        raise StuckError(f"{pulse.doing} does not answer for {pulse.silent_s:.0f} s")
    return worker.result()


def stuck() -> str:
    """Return the device in which this process hangs, else ""; nothing can be imaged until that ends.

    The engine has one thread for all acquisitions.
    """
    return next((doing for doing, worker in STUCK if not worker.join(0)), "")


def hangs() -> bool:
    """Say whether something of this process hangs in a device for ever, so that its end must not wait for it."""
    return bool(stuck())
