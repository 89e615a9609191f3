"""What was measured, for people: CSV files, figures, and one HTML page that holds all and needs nothing beside it."""

import base64
import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.datasets import LABELS
from models.metrics import calibration_curve, precision_recall_curve, roc_curve
from models.validation import FIGURES, Validation
from sesmo_live.spreadsheet import harmless

_MOST_POINTS = 2000
"""A curve of more points is thinned: nobody sees the difference, and the file stays small."""

_NAMES = {
    "auc": "area under the ROC curve",
    "f1": "F1",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall (sensitivity)",
    "ece": "calibration error",
}
_BLUE, _ORANGE, _GREY = "#4477aa", "#ee7733", "#888888"


def write_report(
    folder: Path, result: Validation, *, title: str, history: Sequence[Mapping[str, float]] = ()
) -> list[str]:
    """Write metrics, confusion, roc, pr, calibration, cells (and parts, history) as CSV, figures and `report.html`.

    Returns the names of the files. Files of an earlier report are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = _tables(result)
    if history:
        tables["history.csv"] = [{"epoch": number, **entry} for number, entry in enumerate(history, start=1)]
    for name, rows in tables.items():
        write_csv(folder / name, rows)
    pictures = {f"{name}.png": _png(draw) for name, draw in _figures(result, history).items()}
    for name, picture in pictures.items():
        (folder / name).write_bytes(picture)
    (folder / "report.html").write_text(_page(title, result, pictures), encoding="utf-8")
    return [*tables, *pictures, "report.html"]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that share their keys as CSV; None becomes an empty cell, and no text a formula."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows({key: harmless(value) for key, value in row.items()} for row in rows)


def _tables(result: Validation) -> dict[str, list[dict[str, Any]]]:
    labels, scores = result.cells.labels, result.scores
    flat = result.row()
    tables: dict[str, list[dict[str, Any]]] = {
        "metrics.csv": [
            {"figure": name, "value": flat[name], "low": flat[f"{name}_low"], "high": flat[f"{name}_high"]}
            for name in FIGURES
        ],
        "confusion.csv": [
            {"true": LABELS[label], **{f"called_{name}": count for name, count in zip(LABELS, row, strict=True)}}
            for label, row in enumerate(_matrix(result))
        ],
        "roc.csv": _points(("threshold", "false_positive_rate", "true_positive_rate"), roc_curve(labels, scores)),
        "pr.csv": _points(("threshold", "precision", "recall"), precision_recall_curve(labels, scores)),
        "calibration.csv": _points(("mean_score", "share_senescent", "n"), calibration_curve(labels, scores)),
        "cells.csv": _cell_rows(result),
    }
    if result.parts:
        tables["parts.csv"] = result.parts
    return tables


def _cell_rows(result: Validation) -> list[dict[str, Any]]:
    cells = result.cells
    columns = zip(cells.pictures, cells.groups, cells.labels, result.scores, strict=True)
    return [
        {
            "picture": picture,
            "group": group,
            "true": LABELS[label],
            "score": round(float(score), 6),
            "called": LABELS[int(score >= result.threshold)],
        }
        for picture, group, label, score in columns
    ]


def _points(names: tuple[str, ...], columns: Iterable[Any]) -> list[dict[str, Any]]:
    arrays = [np.asarray(column) for column in columns]
    chosen = np.unique(np.linspace(0, len(arrays[0]) - 1, min(len(arrays[0]), _MOST_POINTS)).astype(int))
    return [dict(zip(names, (round(float(array[i]), 6) for array in arrays), strict=True)) for i in chosen]


def _matrix(result: Validation) -> list[list[int]]:
    counts = result.confusion
    return [[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]]


def _figures(result: Validation, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return a function that draws on axes for each figure."""
    labels, scores = result.cells.labels, result.scores

    def roc(axes: Any) -> None:
        _, false, true = roc_curve(labels, scores)
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle="--")
        axes.plot(false, true, color=_BLUE)
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate", title=f"ROC, area {_said(result, 'auc')}")

    def precision_recall(axes: Any) -> None:
        _, precision, recall = precision_recall_curve(labels, scores)
        axes.plot(recall, precision, color=_BLUE)
        axes.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02), title="Precision and recall")

    def calibration(axes: Any) -> None:
        mean, share, n = calibration_curve(labels, scores)
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle="--")
        axes.plot(mean, share, color=_BLUE, linewidth=1)
        axes.scatter(mean, share, s=8 + 80 * n / n.max(), color=_BLUE)
        axes.set(xlabel="score", ylabel="share of senescent cells", title=f"Calibration, error {_said(result, 'ece')}")

    def matrix(axes: Any) -> None:
        counts = np.array(_matrix(result))
        axes.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1.6)
        for (y, x), count in np.ndenumerate(counts):
            axes.text(x, y, str(count), ha="center", va="center")
        axes.set(xticks=[0, 1], yticks=[0, 1], xticklabels=LABELS, yticklabels=LABELS, xlabel="called", ylabel="true")
        axes.set_title(f"Confusion at threshold {result.threshold:.2f}")

    def distribution(axes: Any) -> None:
        for label, colour in enumerate((_BLUE, _ORANGE)):
            axes.hist(scores[labels == label], np.linspace(0, 1, 26), color=colour, alpha=0.6, label=LABELS[label])
        axes.axvline(result.threshold, color=_GREY, linestyle="--", linewidth=0.8)
        axes.set(xlabel="score", ylabel="cells", title="Scores")
        axes.legend(frameon=False)

    figures = {"roc": roc, "pr": precision_recall, "calibration": calibration, "confusion": matrix}
    curves = {"curves": lambda axes: _curves(axes, history)} if history else {}
    return {**curves, **figures, "scores": distribution}


def _curves(axes: Any, history: Sequence[Mapping[str, float]]) -> None:
    epochs = range(1, len(history) + 1)
    for name, colour in (("loss", _BLUE), ("accuracy", _ORANGE)):
        axes.plot(epochs, [entry[name] for entry in history], color=colour, label=f"{name}, trained on")
        held_out = [entry[f"held_out_{name}"] for entry in history]
        axes.plot(epochs, held_out, color=colour, linestyle="--", label=f"{name}, held out")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", title="Training", ylim=(0, max(1.0, min(2.0, max(e["held_out_loss"] for e in history)))))
    axes.legend(frameon=False, fontsize=7)


def _said(result: Validation, name: str) -> str:
    row = result.row()
    if row[name] is None:
        return "unknown"
    interval = "" if row[f"{name}_low"] is None else f" ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"
    return f"{row[name]:.3f}{interval}"


def _png(draw: Any) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3.6), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.title.set_fontsize(9)
    axes.spines[["top", "right"]].set_visible(False)
    data = io.BytesIO()
    figure.savefig(data, dpi=120)
    return data.getvalue()


_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:left}
img{max-width:28rem;width:100%}.note{background:#fff3cd;padding:.5rem 1rem;margin:.5rem 0}"""


def _page(title: str, result: Validation, pictures: Mapping[str, bytes]) -> str:
    row = result.row()
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in result.notes)
    figures = [(_NAMES[name], _said(result, name)) for name in FIGURES]
    images = "".join(
        f'<img alt="{html.escape(name.removesuffix(".png"))}" '
        f'src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        for name, picture in pictures.items()
    )
    parts = _html_table([_part_line(part) for part in result.parts]) if result.parts else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>{notes}"
        f"<p>{row['n']} cells of {row['groups']} groups ({html.escape(result.cells.split)}); called senescent from a "
        f"score of {result.threshold:.3f}. Intervals are 95 %, by bootstrap over whole groups.</p>"
        + _html_table([{"figure": name, "value (interval)": value} for name, value in figures])
        + f"{images}{parts}</html>\n"
    )


def _part_line(part: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: part[name] for name in ("part", "name", "n", "n_senescent")}
    for name in ("auc", "f1", "recall"):
        low, high = part[f"{name}_low"], part[f"{name}_high"]
        interval = "" if low is None else f" ({low:.3f} to {high:.3f})"
        shown[name] = "" if part[name] is None else f"{part[name]:.3f}{interval}"
    return shown


def _html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    def line(values: Iterable[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values) + "</tr>"

    return "<table>" + line(rows[0], "th") + "".join(line(row.values(), "td") for row in rows) + "</table>"
