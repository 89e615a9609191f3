"""Tidy tables of a plate in files: CSV, Parquet, XLSX, AnnData; one row a well and time point, or one a cell."""

import csv
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine

from db import screening
from sesmo_live import results
from sesmo_live.answers import Row, over_looks
from sesmo_live.errors import StatisticsError, UsageError
from sesmo_live.history import sums_of
from sesmo_live.loading import over_sums
from sesmo_live.screening import onset
from sesmo_live.screening.checks import or_none
from sesmo_live.screening.intervals import fraction_intervals, mean_intervals
from sesmo_live.screens import Screen, band_of, beside_controls, load_screen
from sesmo_live.spreadsheet import harmless

XLSX_ROWS = 1_048_575
"""Rows that a sheet holds below its head."""

BATCH = 50_000
"""Rows written at a time."""

EXPORT_COLUMNS = (
    *("plate", "run", "well", "role", "compound", "dose", "dose_unit", "timepoint", "acquired_at", "hours"),
    *("score", "ci_low", "ci_high", "fraction_senescent", "fraction_low", "fraction_high", "n_cells", "n_images"),
    *("percent_of_control", "robust_z", "b_score", "density_adjusted", "onset_hours", "model"),
)
"""The columns of an exported plate; `onset_hours` is the same at all time points of a well."""

CELL_COLUMNS = ("plate", "run", "well", "timepoint", "field", "cell", "x", "y", "score", "model")
"""The columns of exported cells; x and y in pixels of their image."""


def tidy_wells(screen: Screen) -> tuple[list[Row], tuple[str, ...]]:
    """Return one row a well and time point with `EXPORT_COLUMNS`, and what could not be computed."""
    what = results.contents([row for rows in screen.treatments.values() for row in rows])
    left, why = _onsets(screen)
    said: list[tuple[int, str]] = []
    beside: list[dict[str, list[float | None]]] = []
    for column, timepoint in enumerate(screen.timepoints):
        values, notes = beside_controls(screen, column)
        beside.append({name: or_none(numbers) for name, numbers in values.items()})
        said += [(timepoint, note) for note in notes]
    found = intervals(screen)
    rows = []
    for place, well in enumerate(screen.wells):
        of_well: Row = {"plate": screen.plate.name, "run": screen.plate.run, "well": well, "model": screen.model[1]}
        of_well |= {**what.get(well, results.NOTHING), "onset_hours": left.get(well)}
        hours = or_none(screen.hours[place])
        for column, timepoint in enumerate(screen.timepoints):
            if scored := found.get((well, timepoint)):
                row = of_well | scored | {"timepoint": timepoint, "hours": hours[column]}
                row |= {name: values[place] for name, values in beside[column].items()}
                rows.append({name: row[name] for name in EXPORT_COLUMNS})
    return rows, (*why, *over_looks(said, len(screen.timepoints)))


def intervals(screen: Screen) -> dict[tuple[str, int], Row]:
    """Return score and fraction with their intervals of each well and time point that has an image."""
    items = list(screen.sums.values())
    limits = [or_none(v) for v in (*mean_intervals(sums_of(items)), *fraction_intervals(over_sums(items)))]
    names = ("score", "ci_low", "ci_high", "fraction_senescent", "fraction_low", "fraction_high")
    counts = ({"n_cells": i.n_cells, "n_images": i.n_images, "acquired_at": i.acquired_at} for i in items)
    rows = (dict(zip(names, row, strict=True)) | count for count, *row in zip(counts, *limits, strict=True))
    return dict(zip(screen.sums, rows, strict=True))


def _onsets(screen: Screen) -> tuple[dict[str, float | None], tuple[str, ...]]:
    """Return the hours of onset of the wells that left the band, the negative controls aside, as `plate_courses`."""
    try:
        band = band_of(screen)
    except StatisticsError as error:
        return {}, (f"no onset: {error}",)
    negative = set(screen.of_role("negative"))
    found = {place: onset(scores, band) for place, scores in enumerate(screen.scores) if place not in negative}
    return {screen.wells[place]: _plain(screen.hours[place, left.look]) for place, left in found.items() if left}, ()


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def provenance(engine: Engine, screen: Screen) -> dict[str, Any]:
    """Return where a plate's numbers come from: model and its passport, images by state, versions, when."""
    with engine.connect() as connection:
        passport = screening.passport(connection, screen.model[0])
        states = screening.image_states(connection, screen.plate.plate_id)
    names = ("sesmo-live", "numpy", "scipy", "lmfit", "sqlalchemy")
    return {
        "plate": screen.plate.name,
        "run": screen.plate.run,
        "model": screen.model[1],
        "weights_sha256": passport.get("weights_sha256", ""),
        "settings": {
            name: passport.get(name) for name in ("network", "cropper", "cropper_settings", "conversion", "threshold")
        },
        "images": states,
        "versions": {name: version(name) for name in names},
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def export_wells(
    engine: Engine, plate: str, out: Path, *, run: str | None = None, model: str | None = None, overwrite: bool = False
) -> tuple[str, ...]:
    """Write a plate to `out`, one row a well and time point; return what must be said.

    The suffix chooses the format. Raises UsageError for another suffix, a file that is there, and as `load_screen`.
    """
    write = _writer(out, overwrite=overwrite)
    screen = load_screen(engine, plate, run=run, model=model)
    rows, said = tidy_wells(screen)
    write(out, EXPORT_COLUMNS, iter(rows), provenance(engine, screen))
    return (*screen.notes, *said, f"{len(rows)} rows written to {out}")


def export_cells(
    engine: Engine, plate: str, out: Path, *, run: str | None = None, model: str | None = None, overwrite: bool = False
) -> tuple[str, ...]:
    """Write the cells of a plate to `out`, one row each; otherwise as `export_wells`."""
    write = _writer(out, overwrite=overwrite)
    screen = load_screen(engine, plate, run=run, model=model)
    number = 0

    def rows() -> Iterator[Row]:
        nonlocal number
        name, of, by = screen.plate.name, screen.plate.run, screen.model[1]
        with engine.connect() as connection:
            for cell in screening.cells(connection, screen.plate.plate_id, screen.model[0]):
                number += 1
                yield dict(zip(CELL_COLUMNS, (name, of, *cell, by), strict=True))

    write(out, CELL_COLUMNS, rows(), provenance(engine, screen))
    return (*screen.notes, f"{number} rows written to {out}")


Writer = Callable[[Path, Sequence[str], Iterator[Row], Mapping[str, Any]], None]
"""Writes columns and rows with their provenance to a file."""


def check_target(out: Path, *, overwrite: bool) -> None:
    """Raise UsageError when a file cannot or should not be written."""
    if not out.parent.is_dir():
        raise UsageError(f"the folder {out.parent} of --out is not there; make it first or give another")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} is there already; give another name, or --overwrite")


def _writer(out: Path, *, overwrite: bool) -> Writer:
    """Return what writes the format of a file; raise UsageError when it is none, or the file cannot be written."""
    known = {".csv": _write_csv, ".parquet": _write_parquet, ".xlsx": _write_xlsx, ".h5ad": _write_anndata}
    write = known.get(out.suffix.lower())
    if write is None:
        raise UsageError(f"--out {out} has no known format; end it in {', '.join(known)} or .html")
    check_target(out, overwrite=overwrite)

    def whole(out: Path, columns: Sequence[str], rows: Iterator[Row], about: Mapping[str, Any]) -> None:
        part = out.with_name(f".{out.name}.part{out.suffix}")
        try:
            write(part, columns, rows, about)
            os.replace(part, out)  # noqa: PTH105 — atomic, as a reader may look while it is written
        finally:
            part.unlink(missing_ok=True)

    return whole


def _write_csv(out: Path, columns: Sequence[str], rows: Iterator[Row], _about: Mapping[str, Any]) -> None:
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([harmless(_text(row[name])) for name in columns] for row in rows)


def _text(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return "" if value is None else value


def _write_xlsx(out: Path, columns: Sequence[str], rows: Iterator[Row], about: Mapping[str, Any]) -> None:
    from openpyxl import Workbook

    book = Workbook(write_only=True)
    sheet = book.create_sheet("data")
    sheet.append(list(columns))
    for row in itertools.islice(rows, XLSX_ROWS):
        sheet.append([harmless(_cell(row[name])) for name in columns])
    if next(rows, None) is not None:
        sheet.close()
        raise UsageError(f"there are more rows than the {XLSX_ROWS} of an XLSX sheet; export to .parquet or .csv")
    notes = book.create_sheet("provenance")
    for name, value in about.items():
        notes.append([name, harmless(value if isinstance(value, str) else json.dumps(value))])
    book.save(out)


def _cell(value: Any) -> Any:
    return value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime) else value


_KINDS = {
    "acquired_at": "time",
    **dict.fromkeys(("timepoint", "field", "cell", "n_cells", "n_images"), "int64"),
    **dict.fromkeys(("plate", "run", "well", "role", "compound", "dose_unit", "model"), "string"),
}
"""Columns that are no float64."""


def _write_parquet(out: Path, columns: Sequence[str], rows: Iterator[Row], about: Mapping[str, Any]) -> None:
    import pyarrow
    from pyarrow import parquet

    kinds = {"time": pyarrow.timestamp("us", tz="UTC"), "int64": pyarrow.int64(), "string": pyarrow.string()}
    fields = [(name, kinds.get(_KINDS.get(name, ""), pyarrow.float64())) for name in columns]
    schema = pyarrow.schema(fields, metadata={"sesmo-live": json.dumps(about)})
    with parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        while batch := list(itertools.islice(rows, BATCH)):
            arrays = [pyarrow.array([_of_kind(row[name], name) for row in batch], kind) for name, kind in fields]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def _of_kind(value: Any, name: str) -> Any:
    """Return a value as its column has it: a dose of several compounds is text and no number, so it is left out."""
    return None if isinstance(value, str) and name not in _KINDS else value


def _write_anndata(out: Path, columns: Sequence[str], rows: Iterator[Row], about: Mapping[str, Any]) -> None:
    try:
        import anndata
        import pandas
    except ImportError as error:
        raise UsageError("an .h5ad file needs anndata; install it with: pip install 'sesmo-live[anndata]'") from error
    table = list(rows)
    measured = [
        name for name in columns if name not in _KINDS and name not in ("dose", "hours", "x", "y", "onset_hours")
    ]
    names = [
        f"{row['well']}-{row['timepoint']}" + (f"-{row['field']}-{row['cell']}" if "cell" in row else "")
        for row in table
    ]
    obs = pandas.DataFrame({name: _obs(name, table) for name in columns if name not in measured}, index=names)
    values = np.array([[np.nan if row[name] is None else row[name] for name in measured] for row in table], float)
    data = anndata.AnnData(values.reshape(len(table), len(measured)), obs=obs, var=pandas.DataFrame(index=measured))
    data.uns["sesmo_live"] = json.dumps(about)
    data.write_h5ad(out)


def _obs(name: str, rows: Iterable[Row]) -> list[Any]:
    if name in ("dose", "acquired_at"):
        return [str(_text(row[name])) for row in rows]
    if _KINDS.get(name) is None:
        return [np.nan if row[name] is None else row[name] for row in rows]
    return ["" if row[name] is None else row[name] for row in rows]
