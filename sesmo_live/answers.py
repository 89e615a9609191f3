"""What an answer is: rows and notes."""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sesmo_live.errors import UsageError

Row = dict[str, Any]
"""One line of an answer: column name to value, in the order shown."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows, and what must be said with them (which run, which model, demonstration warnings)."""

    rows: list[Row]
    notes: tuple[str, ...] = ()


def model_named(wanted: str, models: Sequence[str]) -> str | None:
    """Return the model of that id, or the one whose id begins so, None if none is; raise UsageError for several."""
    found = [model for model in dict.fromkeys(models) if model.startswith(wanted)]
    if len(found) > 1 and wanted not in found:
        raise UsageError(f"{wanted!r} is the beginning of several models, {', '.join(sorted(found))}; write more of it")
    return wanted if wanted in found else found[0] if found else None


def nearest(wanted: str, known: Sequence[str], what: str) -> str:
    """Return what was meant, or what there is, to end a message with; `what` is the plural of the thing."""
    if not known:
        return f"the database holds no {what} yet"
    near = difflib.get_close_matches(wanted, known, 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else f"the {what} are {', '.join(known[:20])}"


def over_looks(said: Iterable[tuple[int, str]], looks: int) -> tuple[str, ...]:
    """Return what could not be computed at which of `looks` time points, a sentence for each thing.

    `said` are (time point, `no onset: why`), in the order of time; the reason told is that of the last of them.
    """
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for timepoint, note in said:
        what, _, why = note.partition(": ")
        found[what].setdefault(timepoint, why)
    notes: list[str] = []
    for what, at in found.items():
        stops = list(at)
        s, more = "s" * (len(stops) > 1), f", … {stops[-1]} ({len(stops)} of {looks})" * (len(stops) > 3)
        when = f" at time point{s} " + (", ".join(map(str, stops[: 2 if more else 3])) + more)
        notes.append(f"{what}{when if len(stops) < looks else ''}: {at[stops[-1]]}")
    return tuple(notes)
