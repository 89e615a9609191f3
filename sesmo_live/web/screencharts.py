"""What the charts of statistics show: Z′ over time, fitted curves, EC50 over time."""

from collections import defaultdict
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement

import numpy as np
from markupsafe import Markup

from sesmo_live.compounds import Curve
from sesmo_live.results import Row
from sesmo_live.web.charts import HOURS, SCORE_AXIS, Chart
from sesmo_live.web.colours import shade
from sesmo_live.web.platesvg import markup

WIDTH, HEIGHT = 300, 64
LOWEST = -1.0
"""Z′ below this is drawn at the bottom: how bad a useless plate is tells nothing."""
STEPS = 80
"""Points of a drawn curve."""


def quality_svg(rows: Sequence[Row], timepoint: int | None) -> Markup:
    """Draw Z′ over time from −1 to 1, the line of 0.5 behind it, the time point shown as a dot; "" for one value."""
    known = [(row["timepoint"], row["hours"], row["z_prime"]) for row in rows if row["z_prime"] is not None]
    if len(known) < 2:
        return Markup("")
    times = [at if hours is None else hours for at, hours, _ in known]
    first, span = min(times), (max(times) - min(times)) or 1.0

    def place(time: float, value: float) -> tuple[float, float]:
        height = (max(LOWEST, min(1.0, value)) - LOWEST) / (1 - LOWEST)
        return 4 + (WIDTH - 40) * (time - first) / span, HEIGHT - 6 - (HEIGHT - 12) * height

    svg = Element("svg", {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "class": "spark", "role": "img"})
    svg.set("aria-label", f"Z′ over time, from {known[0][2]:.2f} to {known[-1][2]:.2f}")
    for level in (0.5, 0.0):
        at = f"{place(first, level)[1]:.1f}"
        SubElement(svg, "line", {"x1": "0", "x2": f"{WIDTH - 32}", "y1": at, "y2": at, "class": "level"})
        SubElement(svg, "text", {"x": f"{WIDTH - 28}", "y": at, "class": "tick"}).text = f"{level:g}"
    points = [place(time, value) for time, (_, _, value) in zip(times, known, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    SubElement(svg, "polyline", {"points": path, "class": "line"})
    shown = [point for point, row in zip(points, known, strict=True) if timepoint is None or row[0] <= timepoint]
    if shown:
        x, y = shown[-1]
        SubElement(svg, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "4.5", "class": "dot"})
    return markup(svg)


def curve_charts(curves: Sequence[Curve]) -> list[tuple[Chart, list[Row]]]:
    """Return, for each unit of dose, the chart of the wells and the curves through them, and the curves' lines.

    The negative controls, dose zero, stand at a tenth of the lowest dose.
    """
    units: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        units[curve.row["unit"]].append(curve)
    return [(_chart(unit, found), [curve.row for curve in found]) for unit, found in sorted(units.items())]


def _chart(unit: str, curves: Sequence[Curve]) -> Chart:
    lines: list[Chart] = []
    for number, curve in enumerate(curves):
        tone = "accent" if len(curves) == 1 else shade(0.15 + 0.6 * number / (len(curves) - 1))
        low, high = float(curve.doses[curve.doses > 0].min()), float(curve.doses.max())
        xs = np.geomspace(low / 10, high * 1.5, STEPS)
        name = f"{curve.row['plate']} {curve.row['run']}"
        doses = np.where(curve.doses > 0, curve.doses, low / 10)
        lines.append({"label": name, "tone": tone, "kind": "points", "x": doses.tolist(), "y": curve.scores.tolist()})
        label = "no effect of the dose" if curve.row["is_flat"] else "fitted curve"
        lines.append({"label": label, "tone": tone, "kind": "curve", "x": xs.tolist(), "y": curve.fit.at(xs).tolist()})
    marks = [
        {"x": row["ec50"], "low": row["ec50_low"], "high": row["ec50_high"], "label": "EC50"}
        for row in (curve.row for curve in curves[:1])
        if row["ec50"] is not None
    ]
    label = f"dose, {unit}" if unit else "dose, no unit given"
    return {"x": {"label": label, "log": True}, "y": SCORE_AXIS, "lines": lines, "marks": marks}


def ec50_chart(rows: Sequence[Row]) -> Chart | None:
    """Return EC50 and its interval over time, where the curve is not flat; None without such a time point."""
    known = [row for row in rows if row["ec50"] is not None and row["hours"] is not None]
    if not known:
        return None
    line = {
        "label": "EC50, 95 % interval",
        "tone": "accent",
        "kind": "points",
        "x": [row["hours"] for row in known],
        "y": [row["ec50"] for row in known],
        "low": [row["ec50_low"] for row in known],
        "high": [row["ec50_high"] for row in known],
    }
    unit = known[0]["unit"]
    return {"x": {"label": HOURS}, "y": {"label": f"EC50, {unit}".strip(", "), "log": True}, "lines": [line]}
