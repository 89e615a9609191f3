"""A peer that speaks the wire protocol of Micro-Manager's server (PyJavaZ 5.1.0) over a real MMCore.

`python -m tests.microscope.peer PORT [FAULT]`: the application's part, without its Java. One REP socket takes JSON
commands; arrays travel as parts of their own behind it, named by four random bytes. It offers the functions of the core
that pycromanager's `Core()` would list, with the types that Java declares, and answers errors as the server does.
"""

import json
import secrets
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import zmq

from tests.microscope import nights

VERSION = "5.1.0"
CORE, IMAGE = "mmcorej.CMMCore", "mmcorej.TaggedImage"
_NONE: tuple[list[str], ...] = ([],)
API: dict[str, tuple[str, tuple[list[str], ...]]] = {
    "getXYStageDevice": ("java.lang.String", _NONE),
    "getFocusDevice": ("java.lang.String", _NONE),
    "getCameraDevice": ("java.lang.String", _NONE),
    "getShutterDevice": ("java.lang.String", _NONE),
    "setAutoFocusDevice": ("void", (["java.lang.String"],)),
    "setConfig": ("void", (["java.lang.String", "java.lang.String"],)),
    "waitForConfig": ("void", (["java.lang.String", "java.lang.String"],)),
    "setExposure": ("void", (["double"], ["java.lang.String", "double"])),
    "getPosition": ("double", ([], ["java.lang.String"])),
    "setPosition": ("void", (["double"], ["java.lang.String", "double"])),
    "getXPosition": ("double", ([], ["java.lang.String"])),
    "getYPosition": ("double", ([], ["java.lang.String"])),
    "setXYPosition": ("void", (["double", "double"], ["java.lang.String", "double", "double"])),
    "deviceBusy": ("boolean", (["java.lang.String"],)),
    "stop": ("void", (["java.lang.String"],)),
    "fullFocus": ("void", _NONE),
    "getImageWidth": ("long", _NONE),
    "getImageHeight": ("long", _NONE),
    "getPixelSizeUm": ("double", _NONE),
    "setShutterOpen": ("void", (["boolean"], ["java.lang.String", "boolean"])),
    "getProperty": ("java.lang.String", (["java.lang.String", "java.lang.String"],)),
    "snapImage": ("void", _NONE),
    "getTaggedImage": (IMAGE, _NONE),
}
"""Function: what it returns, and the arguments of each overload."""

LOST = (("snapImage", 5), ("setExposure", 4))
"""Commands at which one that restarts does so: within the first round, and when the third is prepared."""


def snake(name: str) -> str:
    """Return the core's own Python name of a Java function."""
    from mmpycorex.launcher import _camel_to_snake

    return str(_camel_to_snake(name))


class Peer:
    """The server's side of one connection."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self._objects: dict[int, Any] = {}

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """Return the reply to one command, and the array that goes with it."""
        command = request["command"]
        if command == "connect":
            return {"type": "none", "version": VERSION}, []
        if command == "get-constructors":
            return {"type": "none", "api": [{"name": request["classpath"], "arguments": []}]}, []
        if command == "constructor":
            return self._shadow(CORE, self.core), []
        if command == "destructor":
            self._objects.pop(request["hash-code"], None)
            return {"type": "none"}, []
        if command == "get-field":
            return self._field(self._objects[request["hash-code"]], request["name"])
        if command == "run-method":
            return self._run(self._objects[request["hash-code"]], request["name"], request["arguments"])
        raise ValueError(f"Command not recognized: {command}")

    def _shadow(self, kind: str, thing: Any) -> dict[str, Any]:
        """Keep an object and return how the other side may use it."""
        key = secrets.randbits(31)
        self._objects[key] = thing
        api = [
            {"name": name, "return-type": returns, "arguments": arguments}
            for name, (returns, overloads) in API.items()
            for arguments in overloads
            if kind == CORE
        ]
        fields = ["pix", "tags"] if kind == IMAGE else []
        shadow = {"type": "unserialized-object", "class": kind, "interfaces": [kind], "hash-code": key}
        return {**shadow, "fields": fields, "api": api}

    def _run(self, core: Any, name: str, arguments: list[Any]) -> tuple[dict[str, Any], list[bytes]]:
        if name == "getTaggedImage":
            tagged = core.get_tagged_image(0, core.get_camera_device(), core.get_image_height(), core.get_image_width())
            return self._shadow(IMAGE, tagged), []
        value = getattr(core, snake(name))(*arguments)
        return ({"type": "null"} if value is None else {"type": "primitive", "value": value}), []

    def _field(self, tagged: Any, name: str) -> tuple[dict[str, Any], list[bytes]]:
        if name == "tags":
            height, width = tagged.pix.shape
            tags = json.dumps({"Width": width, "Height": height, "PixelType": "GRAY16"})
            return {"type": "object", "class": "JSONObject", "value": tags}, []
        key = secrets.token_bytes(4)
        pixels = np.ascontiguousarray(tagged.pix, np.uint16).tobytes()
        return {"type": "short-array", "value": f"@{int.from_bytes(key, sys.byteorder):x}"}, [key, pixels]


def bound(port: int) -> Any:
    """Return a socket that answers on `port`."""
    socket: Any = zmq.Context.instance().socket(zmq.REP)
    while True:
        try:
            socket.bind(f"tcp://127.0.0.1:{port}")
            return socket
        except zmq.ZMQError:  # the socket before it is still being closed
            time.sleep(0.05)


def main() -> None:
    """Serve until killed."""
    port, fault = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    peer = Peer(nights.open_core(nights.FAULTS.get(fault)).core)
    socket = bound(port)
    print("ready", flush=True)  # noqa: T201 — told to the test
    asked = Counter[str]()
    while True:
        request = json.loads(socket.recv_multipart()[0].decode("iso-8859-1"))
        name = str(request.get("name"))
        asked[name] += 1
        if fault == "restarts" and (name, asked[name]) in LOST:
            peer = Peer(peer.core)  # as an application that ended and was started again: nobody is answered
            socket.close(linger=0)
            socket = bound(port)
            continue
        try:
            reply, parts = peer.answer(request)
        except Exception as error:  # noqa: BLE001 — the server answers every error
            reply, parts = {"type": "exception", "value": f"java.lang.Exception: {error}\n  at mmcorej.CMMCore"}, []
        socket.send_multipart([json.dumps(reply).encode("iso-8859-1"), *parts])


if __name__ == "__main__":
    main()
