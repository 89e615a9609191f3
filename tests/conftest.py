"""What every test shares: where the real images lie, a model without a network, images of blobs."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from sesmo_live import service
from sesmo_live.config import Settings, settings_from
from tests.alone import room
from tests.figures import FIGURES
from tests.postgres import Server, running_server
from tests.stub import lazy_stub, write_stub_model

MUST_RUN = ("realdata", "microscope", "browser", "postgres", "slow")
"""Markers whose tests skip on a user's machine for want of something, and never in CI."""

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test that CI must run into a failure, and make what was captured fit to be sent."""
    report = yield
    # What no encoding holds (the name of a file, in a log) cannot be sent to the process that shows it.
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    if os.environ.get("CI") and report.skipped and any(item.get_closest_marker(name) for name in MUST_RUN):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} must run in CI and was skipped: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Keep the other processes' tests away from one that measures time or memory; waiting is not on its clock."""
    with room(alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the figures of this process to the one that began the others."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["figures"] = FIGURES


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the figures of a process that has ended."""
    FIGURES.extend(getattr(node, "workeroutput", {}).get("figures", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what was measured."""
    if FIGURES:
        terminalreporter.section("figures")
    for line in sorted(FIGURES):
        terminalreporter.line(line)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real images and golden results; skip with the reason where it is not there."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"needs the shared data folder {SHARED}; it lies beside the checkout in CI")
    return SHARED


@pytest.fixture(scope="session")
def stub_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model without a network."""
    return write_stub_model(tmp_path_factory.mktemp("model") / "stub")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """Return a PostgreSQL server of this process's own; skip with the reason where there is none."""
    with running_server() as server:
        yield server


@pytest.fixture
def stub_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the service score with the stub, so that a test does not wait for TensorFlow."""
    monkeypatch.setattr(service, "lazy_scorer", lazy_stub)


def blobs(seed: int, size: int = 256, n: int = 12) -> NDArray[np.uint8]:
    """Return an image of dark spots on a noisy ground, in which the cropper finds cells."""
    rng = np.random.default_rng(seed)
    image = rng.normal(170, 4, (size, size))
    y, x = np.mgrid[:size, :size]
    for cx, cy in rng.uniform(30, size - 30, (n, 2)):
        image -= rng.uniform(60, 120) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 100)
    return image.clip(0, 255).astype(np.uint8)


def write_image(path: Path, seed: int = 1, **options: object) -> Path:
    """Write an image of blobs as TIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, blobs(seed), **options)  # type: ignore[arg-type]
    return path


def settings(folder: Path, db: Path, scorer: Path, **watch: object) -> Settings:
    """Return settings that watch one folder, quickly."""
    data = {
        "database": {"url": str(db)},
        "scoring": {"model": str(scorer)},
        "watching": {"settle_s": 0.3, "scan_interval_s": 0.2},
        "watch": [{"folder": folder, **watch}],
    }
    return settings_from(data, "test")
