"""The two ways to a microscope, behind one small protocol: a core in this process, or the running application.

Both are pycromanager's: its acquisition engine over a core in this process (Python backend), and its remote `Core()`
on the application's port. What happens at each field is a `Visitor`'s business; nothing that it does may raise.
"""

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock, Timeout

from acquisition.micromanager.plan import Microscope as Connection
from acquisition.micromanager.stand import DeviceError, Pulse, Stop, StuckError, words
from acquisition.micromanager.watch import STUCK, Worker, stuck, watched
from sesmo_live.errors import UsageError
from sesmo_live.records import Pixels

READOUT_S = 1.0
"""Seconds for which a camera is asked again for an image that it could not read out."""

LAST_CHANCE_S = 0.3
"""Seconds for which a stuck acquisition is given the chance to end."""

SEQUENCE_BUFFER_MB = 16
"""MB for image sequences, which are never taken; Micro-Manager clears this memory at its start (1 GB takes seconds)."""

_FAILURE = "sesmo-live failure"


class Visitor(Protocol):
    """What is done at each field; fields are numbered from 0, and none of these may raise."""

    pulse: Pulse
    """What is being waited for, and since when."""

    def arrive(self, number: int) -> bool:
        """Travel there, focus, and compare; False leaves the field out, True is followed by the exposure."""

    def deliver(self, number: int, pixels: Pixels) -> None:
        """Take the image, uint8 or uint16 H×W."""

    def failed_camera(self, number: int, reason: str) -> None:
        """Learn that the camera gave no image, in its own words."""


class Microscope(Protocol):
    """A microscope that can be travelled with."""

    core: Any
    """MMCore with snake-case names."""

    def take(self, fields: int, visitor: Visitor, stop: Stop, timeout_s: float) -> None:
        """Image `fields` fields in one short acquisition; raise StuckError after `timeout_s` without progress.

        Once `stop` is set no further field is begun.
        """

    def watch(self, act: Callable[[], Any], pulse: Pulse, stop: Stop, timeout_s: float) -> None:
        """Do something with the devices; raise what it raises, or StuckError after `timeout_s` without progress."""

    def close(self) -> None:
        """Let the devices go."""


@contextlib.contextmanager
def held(connection: Connection) -> Iterator[None]:
    """Hold the right to move a microscope; raise UsageError when another sesmo-live of this computer moves it.

    Without the application the devices themselves let no second process in.
    """
    if connection.connection != "application":
        yield
        return
    lock = FileLock(Path(tempfile.gettempdir()) / f"sesmo-live-port-{connection.port}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"another sesmo-live drives the microscope on port {connection.port}; stop that one first"
        ) from error
    try:
        yield
    finally:
        lock.release()


def connect(connection: Connection) -> Microscope:
    """Return the microscope that a plan names; raise DeviceError with the remedy when it cannot be reached."""
    if connection.connection == "application":
        return Application(connection.port)
    return Headless(connection.program or Path(), connection.config)


class Headless:
    """Micro-Manager's core in this process, imaged with pycromanager's acquisition engine (Python backend)."""

    def __init__(self, program: Path, config: str) -> None:
        file = program / config
        if not file.is_file():
            raise DeviceError(f"there is no Micro-Manager configuration {file}; correct microscope.program and config")
        from mmpycorex import Core
        from pycromanager import start_headless

        if device := stuck():
            raise DeviceError(f"{device} still does not answer; switch it off and on, then start sesmo-live again")
        _forget_engine()
        try:
            with _quiet():
                start_headless(str(program), str(file), python_backend=True, buffer_size_mb=SEQUENCE_BUFFER_MB)
        except Exception as error:
            _forget_engine()
            raise DeviceError(f"Micro-Manager cannot load {file}: {words(error)}") from error
        self.core: Any = Core()

    def take(self, fields: int, visitor: Visitor, stop: Stop, timeout_s: float) -> None:
        """Image the fields; see the protocol."""
        from pycromanager import Acquisition

        if device := stuck():
            raise StuckError(f"{device} still does not answer; switch it off and on, then start sesmo-live again")

        def before(event: dict[str, Any]) -> dict[str, Any] | None:
            visitor.pulse.beat()
            return event if not stop.is_set() and visitor.arrive(int(event["axes"]["position"])) else None

        def process(image: Any, metadata: dict[str, Any]) -> None:
            visitor.pulse.beat()
            number = int(metadata["Axes"]["position"])
            if _FAILURE in metadata:
                visitor.failed_camera(number, metadata[_FAILURE])
            else:
                _deliver(visitor, number, image)

        visitor.pulse.beat()
        with _patient_camera(self.core, visitor.pulse):
            # The last hook before an exposure: the events move nothing, so the engine does nothing in between.
            acquisition = Acquisition(name="sesmo-live", image_process_fn=process, post_hardware_hook_fn=before)
            # One call an event: the engine would merge what it takes for a sequence, and image it all in one place.
            for number in range(fields):
                acquisition.acquire({"axes": {"position": number}})
            acquisition.mark_finished()
            try:
                self.watch(acquisition.await_completion, visitor.pulse, stop, timeout_s)
            except StuckError:
                with contextlib.suppress(Exception):
                    acquisition.abort()
                STUCK[-1][1].join(LAST_CHANCE_S)
                raise

    def watch(self, act: Callable[[], Any], pulse: Pulse, stop: Stop, timeout_s: float) -> None:
        """Do something under watch; see the protocol."""
        watched(act, pulse, stop, timeout_s)

    def close(self) -> None:
        """Unload the devices, unless one of them holds the core for ever."""
        if not stuck():
            _forget_engine()


def _forget_engine() -> None:
    """End an earlier core and engine of this process: a second `start_headless` would meet the dead ones."""
    from mmpycorex import terminate_core_instances
    from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

    engine = Engine.get_instance()
    if engine is not None:
        engine.shutdown()
        del Engine.singleton
    terminate_core_instances()


@contextlib.contextmanager
def _patient_camera(core: Any, pulse: Pulse) -> Iterator[None]:
    """Let a camera that fails say so instead of ending the acquisition or being asked for ever.

    The engine ends everything when an exposure fails, and repeats a failing read-out without end. Here both give an
    empty image that carries the device's words.
    """
    snap, read = core.snap_image, core.get_tagged_image
    failure: list[str] = []

    def snap_image(*values: Any) -> None:
        pulse.beat("the camera")
        failure.clear()
        try:
            snap(*values)
        except Exception as error:  # noqa: BLE001 — device adapters raise what they like
            failure.append(words(error))

    def get_tagged_image(*values: Any) -> Any:
        until = time.monotonic() + READOUT_S
        while not failure:
            try:
                return read(*values)
            except Exception as error:  # noqa: BLE001 — see above
                if time.monotonic() > until:
                    failure.append(words(error))
                time.sleep(0.05)
        return core.TaggedImage({_FAILURE: failure[0]}, np.zeros((1, 1), np.uint8))

    core.snap_image, core.get_tagged_image = snap_image, get_tagged_image
    try:
        yield
    finally:
        core.snap_image, core.get_tagged_image = snap, read


def _deliver(visitor: Visitor, number: int, image: Any) -> None:
    """Hand on an image; one that is no grey image is a failure of the camera."""
    pixels = np.asarray(image)
    if pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16):
        visitor.deliver(number, pixels)
    else:
        visitor.failed_camera(number, f"its image is {pixels.dtype} {pixels.shape}; set the camera to 8 or 16 bit grey")


class Application:
    """The running Micro-Manager application, call by call over its server's port (4827)."""

    def __init__(self, port: int) -> None:
        self.port = port
        try:
            socket.create_connection(("127.0.0.1", port), 2.0).close()
        except OSError as error:
            raise DeviceError(
                f"no Micro-Manager answers on port {port}; start it, and tick 'Run server on port {port}' under "
                "Tools, Options"
            ) from error
        with _quiet_threads():
            opening = Worker(lambda: _open_core(port))
            answered = opening.join(10.0)
        if not answered:
            raise DeviceError(f"port {port} does not speak Micro-Manager's protocol; give the port of its server")
        try:
            self.core: Any = opening.result()
        except Exception as error:
            raise DeviceError(f"Micro-Manager on port {port} refuses: {words(error)}") from error
        self._lost = False

    def take(self, fields: int, visitor: Visitor, stop: Stop, timeout_s: float) -> None:
        """Image the fields; see the protocol."""

        def image() -> None:
            for number in range(fields):
                if stop.is_set() or self._lost:
                    return
                visitor.pulse.beat()
                if visitor.arrive(number):
                    self._snap(number, visitor)

        self.watch(image, visitor.pulse, stop, timeout_s)

    def watch(self, act: Callable[[], Any], pulse: Pulse, stop: Stop, timeout_s: float) -> None:
        """Do something under watch; see the protocol."""
        worker = Worker(act, pulse)
        if not worker.ended(stop, timeout_s):
            self._lost = True
            raise StuckError(
                f"the connection to Micro-Manager on port {self.port} does not answer for {pulse.silent_s:.0f} s "
                f"(waiting for {pulse.doing})"
            )
        worker.result()

    def _snap(self, number: int, visitor: Visitor) -> None:
        visitor.pulse.beat("the camera")
        try:
            self.core.snap_image()
            tagged = self.core.get_tagged_image()
            tags = tagged.tags
            pixels = np.asarray(tagged.pix).reshape(int(tags["Height"]), int(tags["Width"]))
        except Exception as error:  # noqa: BLE001 — the wire raises what the devices say
            visitor.failed_camera(number, words(error))
            return
        _deliver(visitor, number, pixels)

    def close(self) -> None:
        """Close the connection; one that is lost is left behind, as closing it would wait for its answer."""
        if self._lost:
            _abandon(self.core, self.port)
        else:
            closing = Worker(self.core._close)
            if not closing.join(2.0):
                _abandon(self.core, self.port)


def _open_core(port: int) -> Any:
    from mmpycorex.core import ZMQRemoteMMCoreJ
    from pyjavaz.bridge import Bridge

    Bridge._ports_with_terminated_servers.discard(port)
    return ZMQRemoteMMCoreJ(port=port)


def _abandon(core: Any, port: int) -> None:
    """Leave a lost connection behind so that nothing waits for it, at exit or when a new one is made.

    pyjavaz waits for an answer without end, also in finalisers; it has no public way to leave.
    """
    from pyjavaz import server_terminated
    from pyjavaz.bridge import Bridge

    server_terminated(port)
    bridge = core._bridge
    core._closed = True
    if bridge is not None:
        bridge._cached = False
        _ABANDONED.append((core, bridge))
    Bridge._cached_bridges_by_port.pop(port, None)


_ABANDONED: list[Any] = []
"""Lost connections: kept, as their finalisers would wait for an answer."""


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Keep away the traceback of pyjavaz' thread, which a port without a Micro-Manager makes; words say it."""
    before, threading.excepthook = threading.excepthook, lambda _error: None
    try:
        yield
    finally:
        threading.excepthook = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what libraries print on standard output away from it: it may be JSON."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        yield
