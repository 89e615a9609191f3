"""The running application's path: the real wire protocol, spoken by a peer of ours over a real core."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from acquisition.micromanager.microscope import connect, held
from acquisition.micromanager.plan import Microscope
from acquisition.micromanager.stand import DeviceError, words
from tests.cli import Sesmo, sentence
from tests.figures import figure
from tests.microscope.test_acquire import write_plan
from tests.microscope.test_faults import frames, python, recorded

pytest.importorskip("mm_test_adapters", reason="needs mm-test-adapters")
pytestmark = pytest.mark.microscope


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def peer(port: int, fault: str = "") -> Iterator["subprocess.Popen[str]"]:
    """Run a peer until the end of the block."""
    process = python("tests.microscope.peer", port, fault)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def ended(process: "subprocess.Popen[str]") -> tuple[str, dict[str, Any]]:
    """Wait for an acquisition; return what it said, and how it ended."""
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    *said, result = out.splitlines()
    return "\n".join(said), json.loads(result)


def test_a_plate_is_imaged_through_the_applications_port(tmp_path: Path, port: int) -> None:
    with peer(port, "stage_raises"):
        said, result = ended(python("tests.microscope.remote", tmp_path, port, 1, 1))
    assert result["ended"] == ""
    assert "round 1: 10 of 12 frames" in said
    assert {well: len(names) for well, names in frames(tmp_path).items()} == dict.fromkeys(
        ("B02", "B04", "C02", "C03", "C04"), 2
    )
    (message,) = recorded(tmp_path)  # the device's own words, through the wire
    assert message.startswith("B03 fields 1, 2 are missing in round 1: the stage XY failed: ")
    assert message.endswith('Error in device "XY": Serial command failed (107)')
    figure(
        "running application (peer): 10 of 12 frames, each at its well; the refused well named in the device's words"
    )


def test_a_lost_connection_costs_a_round_and_is_made_again(tmp_path: Path, port: int) -> None:
    with peer(port, "restarts"):
        said, result = ended(python("tests.microscope.remote", tmp_path, port, 3, 10))
    assert result["ended"] == ""
    lost = f"round 1: the connection to Micro-Manager on port {port} does not answer for"
    assert lost in said
    assert any(message.startswith(lost) for message in recorded(tmp_path))
    assert "round 2: 12 of 12 frames" in said
    assert "round 3: 12 of 12 frames" in said  # lost while nothing was under way, and made again in time
    found = frames(tmp_path)
    assert {len(names) for names in found.values()} <= {2, 3, 4, 5, 6}
    assert sum(map(len, found.values())) == 4 + 24
    figure("lost connection: 4 of 12 frames of that round, 24 of 24 of the next two, none at a wrong well")


def test_reference_wells_are_kept_from_where_the_stage_stands(tmp_path: Path, port: int) -> None:
    plan = write_plan(tmp_path, plate='name = "P7"\nwells = 96', microscope=f"port = {port}")
    kept = tmp_path / "images" / "P7" / "calibration.json"

    def here(well: str, code: int = 0) -> str:
        process = python("sesmo-live", "acquire", plan, "--here", well)
        _, err = process.communicate(timeout=100)
        assert process.returncode == code, err
        return err

    with peer(port):
        err = here("A1")
        assert "A01: 0.0, 0.0 µm" in err
        assert "2 more to go: steer to another well and run this again" in err
        kept.write_text(json.dumps({"reference": {"A12": [99_000, 0], "H01": [0, 63_000]}}))
        assert "A01 at 0.0, 0.0 µm, turned 0.00°" in here("A1")
        moved = here("H1", 2)  # the plate lies elsewhere now
    assert moved.endswith(f"if the plate was moved, delete {kept} and measure all three anew\n")
    assert json.loads(kept.read_text())["reference"]["A01"] == [0, 0]


def test_one_port_is_driven_by_one_program(sesmo: Sesmo, tmp_path: Path, port: int) -> None:
    plan = write_plan(tmp_path, microscope=f"port = {port}")
    with held(Microscope(port=port)):
        for words in ((), ("--preview", "B03")):
            busy = sentence(sesmo("acquire", plan, *words, code=2))
            assert f"another sesmo-live drives the microscope on port {port}; stop that one first" in busy


def test_what_does_not_answer_is_said_with_the_remedy(port: int) -> None:
    settings = Microscope(port=port)
    with pytest.raises(DeviceError, match=f"no Micro-Manager answers on port {port}; start it, and tick"):
        connect(settings)


def test_words_are_the_devices_own() -> None:
    text = 'java.lang.Exception: mmcorej.MMException: Error in device "XY": blocked.\n  at org.micromanager.Core'
    assert words(Exception(text)) == 'Error in device "XY": blocked'
    assert words(ValueError()) == "ValueError"
