"""Telling systemd that the service is up and alive (sd_notify's protocol); nothing happens elsewhere."""

import os
import socket


def notify(state: str) -> bool:
    """Send a state such as "READY=1", "WATCHDOG=1" or "STATUS=…"; return whether it was handed to systemd.

    Never raises: a supervisor that does not listen must not stop the work.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux' abstract names
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(1)  # a full queue must not hold up the ledger's thread
            sender.sendto(state.encode(), address)
    except OSError:
        return False
    return True


def watchdog_interval_s() -> float | None:
    """Return the seconds between two "WATCHDOG=1", half of what systemd allows; None where nobody watches us."""
    microseconds, watched = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or watched not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 2e6
