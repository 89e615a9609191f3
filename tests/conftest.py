"""What every test shares: where the real images lie."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real images and golden results; skip with the reason where it is not there."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"needs the shared data folder {SHARED}; it lies beside the checkout in CI")
    return SHARED
