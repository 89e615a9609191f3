"""Measured figures: told by tests with `figure`, shown when all tests are over, whichever process ran them."""

import os

FIGURES: list[str] = []
"""What was told in this process, a line each."""


def figure(text: str) -> None:
    """Have a measured figure shown, under the test's name, when the tests are over."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" (")[0].rpartition("::")[2]
    FIGURES.append(f"{test}: {text}")
