"""The notebooks' scoring: a folder per condition in, ratio and mean P(senescent) out, as CSV and bar charts."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from acquisition.pictures import list_pictures, own_pixel_um, read_picture
from models.passport import find_model, read_passport, read_weights
from models.prepare import judge_field, prepare_field
from sesmo_live.errors import ImageError, IncompleteImageError, UsageError
from sesmo_live.records import CellCrops, FieldImage, ImageFile, Site
from sesmo_live.screening.intervals import FieldSums, mean_interval
from sesmo_live.spreadsheet import harmless

if TYPE_CHECKING:
    from models.scorer import Scorer
    from sesmo_live.records import ModelPassport


@dataclass(frozen=True, slots=True)
class ConditionScores:
    """One row a condition, what must be said with them, the images that failed, and those refused or flagged."""

    rows: list[dict[str, Any]]
    notes: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    unfit: tuple[tuple[str, str], ...]


def score_conditions(
    folder: Path, out: Path, model: str | Path | None = None, *, pixel_um: float | None = None, refuse: bool = True
) -> ConditionScores:
    """Score the images in each folder below `folder`; write `scores.csv`, `ratio.csv` and two bar charts to `out`.

    `scores.csv` has the condition, its mean P(senescent), then one column per cell. Intervals are 95 % over images
    (over cells where a condition has one image). Images that are not fit to be scored are left out if `refuse`. Raises
    UsageError when there are no condition folders or one holds no pictures, before the network is loaded.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; give one that holds a folder of images per condition")
    names = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UsageError(f"{folder} holds no folders; put the images of each condition into a folder of its name")
    pictures = {path.name: list_pictures(path) for path in names}
    home = find_model(model)
    passport = read_passport(home)
    read_weights(home, passport)
    out.mkdir(parents=True, exist_ok=True)
    from models.scorer import Scorer  # TensorFlow takes seconds to load: all that can be wrong was looked at before

    scorer = Scorer(home)
    failures: list[tuple[str, str]] = []
    unfit: list[tuple[str, str]] = []
    cells = {
        name: _score_images(_fields(found, passport, pixel_um, failures), scorer, unfit, refuse=refuse)
        for name, found in pictures.items()
    }
    rows = [_row(name, fields, passport.threshold) for name, fields in cells.items()]
    _write_csv(out, rows, cells)
    title = f"{passport.model_id}" + (f"\n{passport.demonstration}" if passport.demonstration else "")
    _write_chart(out / "mean_score.png", rows, "mean_score", "mean P(senescent)", title)
    _write_chart(out / "ratio_senescent.png", rows, "ratio_senescent", "ratio of senescent cells", title)
    notes = [f"model {passport.model_id}: {passport.demonstration}"] if passport.demonstration else []
    notes.append(f"wrote scores.csv, ratio.csv, mean_score.png and ratio_senescent.png to {out}")
    return ConditionScores(rows, tuple(notes), tuple(failures), tuple(unfit))


def _fields(
    pictures: list[Path], passport: "ModelPassport", pixel_um: float | None, failures: list[tuple[str, str]]
) -> Iterator[tuple[CellCrops, list[str]]]:
    """Yield the cells of each image of one condition, and why it is not fit to be scored ([] if it is)."""
    for path in pictures:
        try:
            own = own_pixel_um(path) if pixel_um is None else pixel_um
            file = ImageFile(path, 0, Site("", "A01", 1, 1), 0, 0, pixel_um=own)
            field = FieldImage(file, read_picture(path))
            cells = prepare_field(field, passport)
        except (ImageError, OSError) as error:
            failures.append((str(path), _reason(error)))
            continue
        yield cells, judge_field(field, cells, passport)[1]


def _score_images(
    fields: Iterator[tuple[CellCrops, list[str]]], scorer: "Scorer", unfit: list[tuple[str, str]], *, refuse: bool
) -> list[NDArray[np.float32]]:
    """Return the scores of the cells of each image; name those that are unfit, and leave them out if `refuse`."""
    scores = []
    for cells, reasons in fields:
        if reasons:
            unfit.append((str(cells.file.path), "; ".join(reasons)))
        if not (reasons and refuse):
            scores.append(scorer.score(cells.pixels))
    return scores


def _reason(error: ImageError | OSError) -> str:
    """Return why a picture failed; nobody waits for an incomplete one here, so that remedy is another."""
    if isinstance(error, IncompleteImageError):
        return f"{str(error).partition(';')[0]}; copy it anew and run the same command again"
    return str(error)


def _row(name: str, fields: list[NDArray[np.float32]], threshold: float) -> dict[str, Any]:
    mean = mean_interval(_sums(fields))
    ratio = mean_interval(_sums([(field >= threshold).astype(np.float32) for field in fields]))
    return {
        "condition": name,
        "n_images": len(fields),
        "n_cells": sum(map(len, fields)),
        "mean_score": mean[0],
        "mean_low": mean[1],
        "mean_high": mean[2],
        "ratio_senescent": ratio[0],
        "ratio_low": ratio[1],
        "ratio_high": ratio[2],
    }


def _sums(fields: list[NDArray[np.float32]]) -> FieldSums:
    counts = np.array([len(field) for field in fields], float)
    totals = np.array([field.sum(dtype=float) for field in fields])
    squares = sum(float((field.astype(float) ** 2).sum()) for field in fields)
    return FieldSums(
        n_fields=int((counts > 0).sum()),
        n_cells=int(counts.sum()),
        score_sum=float(totals.sum()),
        score_sum_sq=squares,
        field_ss=float((totals**2).sum()),
        field_sn=float((totals * counts).sum()),
        field_nn=float((counts**2).sum()),
    )


def _write_csv(out: Path, rows: list[dict[str, Any]], cells: dict[str, list[NDArray[np.float32]]]) -> None:
    most = max((row["n_cells"] for row in rows), default=0)
    with (out / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["condition", "mean_score", *(f"cell_{number}" for number in range(1, most + 1))])
        for row in rows:
            values = [f"{value:.6f}" for field in cells[row["condition"]] for value in field]
            writer.writerow([harmless(row["condition"]), row["mean_score"], *values, *[""] * (most - len(values))])
    with (out / "ratio.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows({key: harmless(value) for key, value in row.items()} for row in rows)


def _write_chart(path: Path, rows: list[dict[str, Any]], value: str, label: str, title: str) -> None:
    """Draw one bar a condition, with its 95 % interval where there is one."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if row[value] is not None]
    prefix = value.partition("_")[0]
    heights = [row[value] for row in shown]
    lows = [row[value] - (row[f"{prefix}_low"] if row[f"{prefix}_low"] is not None else row[value]) for row in shown]
    highs = [(row[f"{prefix}_high"] if row[f"{prefix}_high"] is not None else row[value]) - row[value] for row in shown]
    figure = Figure(figsize=(max(4.0, 1.1 * len(shown) + 1.5), 4), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['condition']}\n{row['n_cells']} cells\n{row['n_images']} images" for row in shown]
    axes.bar(names, heights, color="#4477aa", yerr=(lows, highs), capsize=4, ecolor="#222222", width=0.6)
    axes.set(ylim=(0, 1), ylabel=f"{label}\n95 % interval over images")
    axes.set_title(title, fontsize=8, wrap=True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
