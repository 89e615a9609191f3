"""A plate's report: one HTML file with its figures inside, that needs nothing else to be read."""

import base64
import html
import io
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine

from sesmo_live import compounds, export, screens
from sesmo_live.answers import Row
from sesmo_live.errors import StatisticsError, UsageError
from sesmo_live.screening import DoseResponse
from sesmo_live.screens import Screen, load_screen
from sesmo_live.wells import row_letters, well_position

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#888888"
"""Negative controls, positive controls, the rest (Okabe and Ito's colours, told apart by everybody)."""

MOST_CURVES = 12
"""Dose-response curves that are drawn; the table has them all."""

MOST_HITS = 25
"""Compounds in the table of hits."""

LEFT_COLUMNS = ("well", "role", "compound", "dose", "dose_unit", "onset_hours", "direction", "area_over_negative")
RANKED_COLUMNS = (
    *("rank", "compound", "dose", "wells", "score", "effect", "effect_low", "effect_high", "q", "hit"),
    *("percent_of_control", "cells_percent", "toxic"),
)
CURVE_COLUMNS = (
    *("compound", "ec50", "ec50_low", "ec50_high", "unit", "slope", "bottom", "top", "is_flat", "p_flat", "wells"),
    "note",
)
"""Columns that a page's width has room for: what a drug does to the cells must not lie beyond its edge."""

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;font-size:13px}td,th{padding:.15rem .7rem;border-bottom:1px solid #ddd;
text-align:left;white-space:nowrap}.wide{overflow-x:auto}img{max-width:100%}
.note{background:#fff3cd;padding:.5rem 1rem;margin:.5rem 0}pre{white-space:pre-wrap;font-size:12px}"""


def write_report(
    engine: Engine, plate: str, out: Path, *, run: str | None = None, model: str | None = None
) -> tuple[str, ...]:
    """Write the report of a plate to an HTML file; return what must be said. Raises as `load_screen`."""
    screen = load_screen(engine, plate, run=run, model=model)
    run, model = screen.plate.run, screen.model[1]
    shown = screen.index(None)
    statistics = screens.statistics_of(screen)
    notes = dict.fromkeys((*screen.notes, *statistics.notes))
    curves = _table_of(lambda: compounds.dose_responses(engine, plate, run=run, model=model), notes)
    ranked = _table_of(lambda: compounds.hits(engine, [plate], run=run, model=model), notes)
    courses = _table_of(lambda: screens.courses_of(screen), notes)
    left = [row for row in courses if row["onset_timepoint"] is not None]
    about = export.provenance(engine, screen)
    parts = [
        _picture("plate map", lambda figure: _draw_map(figure, screen)),
        _heading(f"Controls at time point {screen.timepoints[shown]}", _upright(statistics.rows[shown])),
        _picture("controls over time", lambda figure: _draw_controls(figure, screen, statistics.rows)),
        _heading("Wells that left the control band", _only(left, LEFT_COLUMNS)),
        _heading(
            f"Compounds against the negative controls (first {MOST_HITS})", _only(ranked[:MOST_HITS], RANKED_COLUMNS)
        ),
        _picture("dose and response", lambda figure: _draw_curves(figure, screen, curves)) if curves else "",
        _heading("Dose and response", _only(curves, CURVE_COLUMNS)),
        _heading("Images", [{"state": state, "images": number} for state, number in about["images"].items()]),
        f"<h2>Where these numbers come from</h2><pre>{html.escape(json.dumps(about, indent=1))}</pre>",
    ]
    said = "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    title = html.escape(f"Plate {screen.plate.name}, run {screen.plate.run}")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    text = (
        f"{head}<h1>{title}</h1>{said}<p>{len(screen.wells)} wells, {len(screen.timepoints)} time points, scores of "
        f"model {html.escape(model)}. Intervals are 95 %. What each number means: docs/statistics.md.</p>"
    )
    out.write_text(text + "".join(parts) + "</html>\n", encoding="utf-8")
    return (*screen.notes, f"report of plate {screen.plate.name} written to {out}")


def _table_of(ask: Callable[[], Any], notes: dict[str, None]) -> list[Row]:
    """Return the rows of an answer, none where it cannot be given; the notes say why."""
    try:
        answer = ask()
    except (StatisticsError, UsageError) as error:
        notes.setdefault(str(error))
        return []
    notes.update(dict.fromkeys(answer.notes))
    rows: list[Row] = answer.rows
    return rows


def _upright(row: Row) -> list[Row]:
    return [{"statistic": name, "value": value} for name, value in row.items()]


def _only(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    return [{name: row[name] for name in columns} for row in rows]


def _heading(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return f"<h2>{html.escape(title)}</h2><p>none</p>"

    def line(values: Iterable[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(_shown(value))}</{tag}>" for value in values) + "</tr>"

    body = line(rows[0], "th") + "".join(line(row.values(), "td") for row in rows)
    return f'<h2>{html.escape(title)}</h2><div class="wide"><table>{body}</table></div>'


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _picture(title: str, draw: Callable[[Any], None]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    draw(figure)
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks is a box here
        figure.savefig(data, dpi=110, format="png")
    coded = base64.b64encode(data.getvalue()).decode()
    return f'<p><img alt="{html.escape(title)}" src="data:image/png;base64,{coded}"></p>'


def _draw_map(figure: Any, screen: Screen) -> None:
    from matplotlib import colormaps

    shown = screen.index(None)
    table = screen.map(screen.scores[:, shown])
    rows, columns = table.shape
    figure.set_size_inches(10, max(2.2, 10 * rows / columns))
    axes = figure.subplots()
    image = axes.imshow(table, cmap=colormaps["viridis"].with_extremes(bad="#f0f0f0"), vmin=0, vmax=1)
    size = 420 / columns
    for role, colour in (("negative", BLUE), ("positive", ORANGE)):
        places = [well_position(screen.wells[place]) for place in screen.of_role(role)]
        if places:
            y, x = np.array(places).T - 1
            axes.scatter(x, y, s=size**2 * 0.28, facecolors="none", edgecolors="white", linewidths=3.4, marker="s")
            axes.scatter(
                x, y, s=size**2 * 0.28, facecolors="none", edgecolors=colour, linewidths=1.8, marker="s", label=role
            )
    axes.set_xticks(range(columns), [str(number + 1) for number in range(columns)], fontsize=7)
    axes.set_yticks(range(rows), [row_letters(number + 1) for number in range(rows)], fontsize=7)
    axes.tick_params(length=0)
    axes.set_title(f"Mean score of each well at time point {screen.timepoints[shown]}", fontsize=10)
    figure.colorbar(image, ax=axes, label="P(senescent)", shrink=0.8)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.05), ncols=2, frameon=False, fontsize=8, markerscale=0.4)


def _draw_controls(figure: Any, screen: Screen, rows: Sequence[Row]) -> None:
    figure.set_size_inches(10, 5.5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    hours = np.array([np.nan if row["hours"] is None else row["hours"] for row in rows])
    x = hours if np.isfinite(hours).all() else np.array([row["timepoint"] for row in rows], float)
    for place, well in enumerate(screen.wells):
        if screen.roles.get(well) not in ("negative", "positive"):
            above.plot(x, screen.scores[place], color=GREY, alpha=0.25, linewidth=0.6, marker=".", markersize=2)
    for role, colour in (("negative", BLUE), ("positive", ORANGE)):
        wells = screen.scores[screen.of_role(role)]
        if len(wells):
            count = np.isfinite(wells).sum(axis=0)
            mean = np.nansum(wells, axis=0) / np.where(count, count, np.nan)
            deviation = np.array([row[f"sd_{role}"] or 0.0 for row in rows])
            above.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.25, linewidth=0)
            above.plot(x, mean, color=colour, marker="o", markersize=3, label=f"{role} controls, mean ± SD")
    above.set(ylim=(0, 1), ylabel="P(senescent)")
    above.set_title("Wells (grey) and controls over time", fontsize=10)
    if above.get_legend_handles_labels()[0]:
        above.legend(frameon=False, fontsize=8)
    for name, label, style in (("z_prime", "Z′", "-"), ("robust_z_prime", "robust Z′", "--")):
        values = [np.nan if row[name] is None else row[name] for row in rows]
        below.plot(x, values, style, color="black", marker="o", markersize=3, linewidth=1, label=label)
    below.axhline(0.5, color=GREY, linewidth=0.8)
    below.set(ylim=(-1, 1), ylabel="Z′ (below −1 not shown)", xlabel="hours" if x is hours else "time point")
    below.legend(frameon=False, fontsize=8)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)


def _draw_curves(figure: Any, screen: Screen, curves: Sequence[Row]) -> None:
    shown = sorted(curves, key=lambda row: row["p_flat"])[:MOST_CURVES]
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure.set_size_inches(max(3.2 * columns, 4), 2.7 * lines)
    for axes, row in zip(figure.subplots(lines, columns, squeeze=False).ravel(), shown, strict=False):
        fit, unit, doses, values = compounds.fit_at(screen, row["compound"], screen.index(None))
        _draw_curve(axes, row["compound"], fit, unit, doses, values)
    for axes in figure.axes[len(shown) :]:
        axes.set_visible(False)


def _draw_curve(axes: Any, name: str, fit: DoseResponse, unit: str, doses: Any, values: Any) -> None:
    lowest, highest = doses[doses > 0].min(), doses.max()
    zero = lowest / 10
    axes.plot(np.where(doses > 0, doses, zero), values, "o", color=GREY, markersize=3, alpha=0.7)
    x = np.geomspace(lowest / 2, highest * 1.5, 100)
    axes.plot(x, fit.at(x), color=BLUE, linewidth=1.5)
    if fit.ec50_um is not None:
        axes.axvline(fit.ec50_um, color=ORANGE, linewidth=1)
        ends = (max(fit.ec50_low_um or 0.0, zero), min(fit.ec50_high_um or highest * 3, highest * 3))
        axes.axvspan(*ends, color=ORANGE, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xlim(zero / 2, highest * 3)
    axes.set_ylim(0, 1)
    powers = np.arange(np.ceil(np.log10(lowest)), np.floor(np.log10(highest)) + 1)[:: 1 + int(highest / lowest > 1e5)]
    axes.set_xticks([zero, *10.0**powers], ["0", *(f"{10.0**power:g}" for power in powers)])
    axes.minorticks_off()
    said = "flat" if fit.ec50_um is None else f"EC50 {fit.ec50_um:.3g} {unit}"
    said += "\n(outside the doses: extrapolated)" if "extrapolated" in fit.note else ""
    axes.set_title(f"{name}: {said}", fontsize=8, parse_math=False)  # a name with two $ is no formula
    axes.set_xlabel(f"dose ({unit}), 0: negative controls", fontsize=7)
    axes.set_ylabel("P(senescent)", fontsize=7)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
