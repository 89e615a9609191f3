"""systemd hears of us through a real socket, takes our unit, and nobody else is bothered."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from sesmo_live.heartbeat import notify, watchdog_interval_s
from tests.figures import figure

UNIT = Path(__file__).parents[1] / "docs" / "deploy" / "sesmo-live.service"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no AF_UNIX datagram sockets")


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    """Return an unbound datagram socket with a time limit."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(5)
        yield listening


def test_a_state_arrives(receiver: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    assert notify("READY=1\nSTATUS=watching 3 plates – all well")
    assert receiver.recv(4096).decode() == "READY=1\nSTATUS=watching 3 plates – all well"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract socket names")
def test_a_state_arrives_under_an_abstract_name(receiver: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"sesmo-{uuid4()}"
    receiver.bind(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    assert notify("WATCHDOG=1")
    assert receiver.recv(4096) == b"WATCHDOG=1"


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert not notify("READY=1")
    assert watchdog_interval_s() is None


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative/path", ""])
def test_an_address_of_another_kind_is_left_alone(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1")


def test_a_listener_that_is_gone_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify("WATCHDOG=1")


def test_a_listener_that_does_not_read_holds_nobody_up(
    receiver: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    for _ in range(2000):
        if not notify("WATCHDOG=1"):
            break
    else:
        pytest.fail("the queue never filled, so the time limit was not tried")


@pytest.mark.parametrize(
    ("microseconds", "beyond", "seconds"),
    [
        ("120000000", None, 60.0),
        ("120000000", 0, 60.0),
        ("120000000", 1, None),
        ("0", None, None),
        ("soon", None, None),
    ],
)
def test_the_watchdog_is_ours_or_nobodys(
    microseconds: str, beyond: int | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", "" if beyond is None else str(os.getpid() + beyond))
    assert watchdog_interval_s() == seconds


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux'")
def test_the_unit_is_valid_and_hardened(tmp_path: Path) -> None:
    """Verify the unit as it ships; only the program's place is this checkout's, as systemd looks for the file."""
    shipped = UNIT.read_text(encoding="utf-8")
    place = Path(sys.executable).with_name("sesmo-live")
    assert shipped.count("ExecStart=/opt/sesmo-live/bin/sesmo-live run") == 1
    unit = tmp_path / "sesmo-live.service"
    unit.write_text(shipped.replace("/opt/sesmo-live/bin/sesmo-live", str(place)), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text(encoding="utf-8").replace("Restart=on-failure", "Restart=on-failurre"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "on-failurre" in done.stderr  # the verification does look
    secure = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=25", str(unit)]
    done = subprocess.run(secure, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    figure(done.stdout.strip().splitlines()[-1])
