"""Text that a spreadsheet may open."""

from typing import Any


def harmless(value: Any) -> Any:
    """Return `value`, a text that a spreadsheet would run as a formula with an apostrophe before it."""
    risky = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if risky else value
