"""What the charts show, as plain data that `static/charts.js` hands to uPlot."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from sesmo_live.overview import WellView
from sesmo_live.results import Row
from sesmo_live.web.colours import shade
from sesmo_live.web.views import dose_text

Chart = dict[str, Any]

SCORE_AXIS = {"label": "score, mean P(senescent)", "range": [-0.02, 1.02]}
HOURS = "hours since treatment"
MOST_LINES = 40
"""A chart with more lines tells nothing; the table beneath has them all."""


def course_chart(view: WellView) -> Chart:
    """Return a well's scores over time with their 95 % band, the band that it has to leave, and when it did.

    Where there are too few negative controls for a band, theirs is mean ± SD.
    """
    lines = []
    controls = [band for band in view.controls if band.hours is not None]
    if controls:
        whole = all(band.half_width is not None for band in controls)
        widths = [(band.half_width if whole else band.sd) or 0.0 for band in controls]
        lines.append(
            {
                "label": "negative controls, the band to leave" if whole else "negative controls ± SD",
                "tone": "soft",
                "dash": True,
                "x": [band.hours for band in controls],
                "y": [band.mean for band in controls],
                "low": [band.mean - width for band, width in zip(controls, widths, strict=True)],
                "high": [band.mean + width for band, width in zip(controls, widths, strict=True)],
            }
        )
    scores = [score for score in view.scores if score.hours is not None and score.score is not None]
    if scores:
        lines.append(
            {
                "label": f"{view.well}, 95 % interval",
                "tone": "accent",
                "x": [score.hours for score in scores],
                "y": [score.score for score in scores],
                "low": [score.ci_low for score in scores],
                "high": [score.ci_high for score in scores],
            }
        )
    left = view.departure.onset_hours if view.departure else None
    marks = [] if left is None else [{"x": left, "label": f"⚑ left at {left:.1f} h"}]
    return {"x": {"label": HOURS}, "y": SCORE_AXIS, "lines": lines, "marks": marks}


def doses(rows: Iterable[Row]) -> tuple[str, str]:
    """Return the lowest and the highest dose in words, "" where they are one."""
    found = sorted((row for row in rows if row["dose"] is not None), key=_dose)
    words = [dose_text(row["dose"], row["dose_unit"]) for row in found]
    return (words[0], words[-1]) if words and words[0] != words[-1] else ("", "")


def last_rows(rows: Iterable[Row]) -> list[Row]:
    """Return of each plate, run and well of a compound's history the row of its last time point."""
    last: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = (row["plate"], row["run"], row["well"])
        if key not in last or row["timepoint"] > last[key]["timepoint"]:
            last[key] = row
    return list(last.values())


def dose_charts(rows: Iterable[Row]) -> list[Chart]:
    """Return score against dose, a point for each well at its last time point: a chart for each unit of dose.

    Doses that are known in µM are drawn in µM, whatever unit the plate map wrote.
    """
    units: dict[str, list[tuple[float, Row]]] = defaultdict(list)
    for row in last_rows(rows):
        dose, unit = (row["dose"], row["dose_unit"]) if row["dose_um"] is None else (row["dose_um"], "µM")
        if isinstance(dose, float | int) and dose > 0 and row["score"] is not None:
            units[unit].append((dose, row))
    return [_dose_chart(unit, found) for unit, found in sorted(units.items())]


def _dose_chart(unit: str, points: Iterable[tuple[float, Row]]) -> Chart:
    """Return the chart of doses in one unit, a colour for each run of a plate."""
    plates: dict[tuple[str, str], list[tuple[float, Row]]] = defaultdict(list)
    for dose, row in points:
        plates[row["plate"], row["run"]].append((dose, row))
    lines = [
        {
            "label": f"{plate} {run}",
            "tone": shade(0.15 + 0.6 * number / max(1, len(plates) - 1)) if len(plates) > 1 else "accent",
            "kind": "points",
            "x": [dose for dose, _ in found],
            "y": [row["score"] for _, row in found],
            "low": [row["ci_low"] for _, row in found],
            "high": [row["ci_high"] for _, row in found],
        }
        for number, ((plate, run), found) in enumerate(sorted(plates.items()))
    ]
    label = f"dose, {unit}" if unit else "dose, no unit given"
    return {"x": {"label": label, "log": True}, "y": SCORE_AXIS, **_drawn(lines, "plate runs")}


def _drawn(lines: list[Chart], what: str) -> Chart:
    """Return at most MOST_LINES of sorted lines, evenly picked with the first and the last, and what to say of it."""
    number = len(lines)
    if number <= MOST_LINES:
        return {"lines": lines, "note": ""}
    picked = [lines[place * (number - 1) // (MOST_LINES - 1)] for place in range(MOST_LINES)]
    return {"lines": picked, "note": f"{MOST_LINES} of {number} {what} drawn"}


def history_chart(rows: Iterable[Row]) -> Chart:
    """Return the time course of each well with a compound, coloured from the lowest dose to the highest."""
    wells: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["hours"] is not None and row["score"] is not None:
            wells[row["plate"], row["run"], row["well"]].append(row)
    doses = sorted({_dose(found[0]) for found in wells.values()})
    lines = [
        {
            "label": " ".join(filter(None, (plate, well, dose_text(found[0]["dose"], found[0]["dose_unit"])))),
            "tone": shade(0.1 + 0.75 * doses.index(_dose(found[0])) / max(1, len(doses) - 1)),
            "x": [row["hours"] for row in found],
            "y": [row["score"] for row in found],
        }
        for (plate, _, well), found in sorted(wells.items(), key=lambda item: _dose(item[1][0]))
    ]
    return {"x": {"label": HOURS}, "y": SCORE_AXIS, **_drawn(lines, "wells")}


def _dose(row: Row) -> float:
    dose = row["dose_um"] if row["dose_um"] is not None else row["dose"]
    return float(dose) if isinstance(dose, float | int) else -1.0
