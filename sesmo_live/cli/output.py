"""How answers are printed: a table for people, CSV and JSON for programs; notes go to standard error."""

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sesmo_live.spreadsheet import harmless


class Format(StrEnum):
    """Output formats of every query."""

    table = "table"
    csv = "csv"
    json = "json"


def show(rows: Sequence[Mapping[str, Any]], output: Format, columns: Sequence[str] = ()) -> None:
    """Print rows; with JSON, standard output is JSON alone. `columns` serve for an empty answer."""
    names = list(rows[0]) if rows else list(columns)
    if output is Format.json:
        show_json([dict(row) for row in rows])
    elif output is Format.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([harmless(_plain(row[name])) for name in names] for row in rows)
    else:
        _show_table(rows, names)


def show_json(value: Any) -> None:
    """Print a value as JSON; times are ISO 8601 in UTC."""
    json.dump(value, sys.stdout, default=_plain, indent=1, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def say(notes: Iterable[str]) -> None:
    """Print notes to standard error."""
    for note in notes:
        print(note, file=sys.stderr)  # noqa: T201 — the command line's own voice


def count(number: int, noun: str) -> str:
    """Return `1 image`, `2 images`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return "" if value is None else value


def _show_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    numeric = {name for name in names if any(isinstance(row[name], int | float) for row in rows)}
    for name in names:
        title = f"{name} (UTC)" if name.endswith("_at") else name
        table.add_column(title, justify="right" if name in numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_short(row[name])) for name in names))
    console = Console()
    # As wide as its content, also on a narrow terminal: a long line that wraps loses nothing, a squeezed column does.
    unbound = console.options.update(max_width=100_000)
    console.width = max(console.width, console.measure(table, options=unbound).maximum)
    console.print(table, crop=False)
    if not rows:
        console.print("(no rows)")


def _short(value: Any) -> str:
    if isinstance(value, float):
        # Three figures count: a dose of 5e-5 is not 0.000.
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
    return "" if value is None else str(value)
