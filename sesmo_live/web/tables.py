"""Tables as CSV, harmless in a spreadsheet."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from fastapi import Response

from sesmo_live.spreadsheet import harmless

CSV_ANSWER: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}
"""For OpenAPI: an answer that may be CSV."""


def csv_answer(rows: Iterable[Any], shape: type, name: str) -> Response:
    """Return dataclasses, or rows with its fields' names, as a CSV file; `shape` gives the columns."""
    columns = [field.name for field in fields(shape)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([harmless(_plain(_get(row, column))) for column in columns])
    headers = {"content-disposition": f'attachment; filename="{safe_name(name)}.csv"'}
    return Response(text.getvalue(), media_type="text/csv", headers=headers)


def safe_name(name: str) -> str:
    """Return a name that may stand in a header, and be a file's."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "_" for letter in name)


def _get(row: Any, column: str) -> Any:
    return row[column] if isinstance(row, dict) else getattr(row, column)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, dict | Sequence) and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else value
