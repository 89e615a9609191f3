"""The computer: program, packages, memory, GPU, clock."""

import getpass
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version

import psutil

from sesmo_live.doctor.findings import Check, Findings, gigabytes

TENSORFLOW_LIMIT_S = 180.0
"""Importing TensorFlow from a cold disk alone takes up to a minute."""

TOOL_LIMIT_S = 15.0
"""Seconds that nvidia-smi, timedatectl or chronyc may take to answer."""

MEMORY_BYTES = 3e9
"""TensorFlow takes about 1.5 GB, and readers and queue as much again."""

CLOCK_SLACK = timedelta(minutes=2)
"""A moment in the future by less is the ordinary difference between two clocks."""

_PACKAGES = ("tensorflow", "keras", "numpy", "opencv-python-headless", "tifffile", "imagecodecs", "sqlalchemy")
_LIST_GPUS = """
import tensorflow as tf
print("devices:", ", ".join(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
                           for gpu in tf.config.list_physical_devices("GPU")))
"""


def check_program() -> Findings:
    """Say which program this is, on which computer, and as which user it sees files and rights."""
    python = f"Python {platform.python_version()} on {platform.system()} {platform.release()} ({platform.machine()})"
    yield Check("program", "ok", f"sesmo-live {version('sesmo-live')}, {python}, as user {getpass.getuser()}")


def check_packages() -> Findings:
    """Say the versions of what scores depend on, without importing it."""
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Check("packages", "fail", f"not installed: {', '.join(missing)}", "install sesmo-live anew")
    yield Check("packages", "ok", ", ".join(found))


def check_memory(readers: int) -> Findings:
    """Compare memory and processors with what a run needs."""
    memory, cores = psutil.virtual_memory(), os.cpu_count() or 1
    found = f"{gigabytes(memory.available)} of {gigabytes(memory.total)} free, {cores} CPU cores"
    if memory.available < MEMORY_BYTES:
        yield Check("memory", "warn", found, f"end other programs: a run needs about {gigabytes(MEMORY_BYTES)}")
    elif readers > cores:
        yield Check("memory", "warn", f"{found}, {readers} readers", f"set readers to {cores} in [scoring]")
    else:
        yield Check("memory", "ok", found)


def check_gpu(*, ask_tensorflow: bool) -> Findings:
    """Say whether there is a GPU; with `ask_tensorflow` whether TensorFlow sees it, in a process of its own."""
    query = ("--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader")
    cards = _answer("nvidia-smi", *query) if shutil.which("nvidia-smi") else None
    if ask_tensorflow:
        yield _tensorflow_devices(cards)
    elif cards:
        yield Check("gpu", "ok", f"{'; '.join(cards.splitlines())} (doctor --gpu asks TensorFlow, too)")
    elif cards is None and shutil.which("nvidia-smi"):
        yield Check("gpu", "warn", "nvidia-smi does not answer", "mend the NVIDIA driver, or score on the CPU")
    else:
        yield Check("gpu", "ok", "no NVIDIA GPU is seen; the CPU scores")


def _tensorflow_devices(cards: str | None) -> Check:
    command = [sys.executable, "-c", _LIST_GPUS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TENSORFLOW_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return Check("gpu", "fail", f"TensorFlow did not answer within {TENSORFLOW_LIMIT_S:.0f} s", "mend its driver")
    answer = [line for line in done.stdout.splitlines() if line.startswith("devices:")]
    if done.returncode or not answer:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Check("gpu", "fail", f"TensorFlow cannot be used: {said}", "install sesmo-live anew")
    if devices := answer[-1].removeprefix("devices:").strip():
        return Check("gpu", "ok", f"TensorFlow uses {devices}")
    if cards:
        remedy = "install its CUDA libraries: pip install 'tensorflow[and-cuda]'; on Windows use WSL 2"
        return Check("gpu", "warn", f"TensorFlow does not see the GPU ({cards}); the CPU scores", remedy)
    return Check("gpu", "ok", "TensorFlow works and sees no GPU; the CPU scores")


def check_clock(newest: list[tuple[str, datetime]], *, zones_given: bool) -> Findings:
    """Check zone, NTP, and that the moments in `newest` (what, when) do not lie in the future."""
    now = datetime.now(UTC)
    local = now.astimezone()
    ahead = [f"{what} is of {when.astimezone():%Y-%m-%d %H:%M %Z}" for what, when in newest if when > now + CLOCK_SLACK]
    found = f"{local:%Y-%m-%d %H:%M:%S %Z} ({local:%z})"
    if ahead:
        remedy = "set this computer's clock, or the microscope's and its timezone in [[watch]]; hours would be wrong"
        yield Check("clock", "warn", f"it is {found}, and {', '.join(ahead)}", remedy)
    elif not local.utcoffset() and not zones_given:
        found += "; times without a zone in image files are taken for UTC"
        yield Check("clock", "warn", found, "set timezone in [[watch]], as Europe/Berlin; UTC, too, if it is meant")
    else:
        yield Check("clock", "ok", found)
    synchronised = _synchronised()
    if synchronised is None:
        yield Check("time server", "ok", "this computer does not tell whether its clock is synchronised")
    elif synchronised:
        yield Check("time server", "ok", "the clock is synchronised")
    else:
        yield Check("time server", "warn", "the clock is not synchronised", "turn it on: timedatectl set-ntp true")


def _synchronised() -> bool | None:
    answer = _answer("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if answer in ("yes", "no"):
        return answer == "yes"
    tracking = _answer("chronyc", "-n", "tracking")
    return None if tracking is None else "Normal" in tracking


def _answer(*command: str) -> str | None:
    """Return what a tool prints, None if it is not there, fails or hangs."""
    if (tool := shutil.which(command[0])) is None:
        return None
    try:
        done = subprocess.run([tool, *command[1:]], capture_output=True, text=True, timeout=TOOL_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
