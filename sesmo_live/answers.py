"""What an answer is: rows and notes."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
"""One line of an answer: column name to value, in the order shown."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows, and what must be said with them (which run, which model, demonstration warnings)."""

    rows: list[Row]
    notes: tuple[str, ...] = ()


def nearest(wanted: str, known: Sequence[str], what: str) -> str:
    """Return what was meant, or what there is, to end a message with; `what` is the plural of the thing."""
    if not known:
        return f"the database holds no {what} yet"
    near = difflib.get_close_matches(wanted, known, 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else f"the {what} are {', '.join(known[:20])}"
