"""Screening on the command line: hits, compare, export."""

from pathlib import Path
from typing import Annotated

import typer

from sesmo_live.cli.options import ConfigOption, DatabaseOption, FormatOption, database_of
from sesmo_live.cli.output import Format, say, show
from sesmo_live.cli.queries import RunOption, ScoredBy
from sesmo_live.errors import UsageError


def hits(
    plate: Annotated[list[str], typer.Option("--plate", help="plate name; again for its replicates")],
    timepoint: Annotated[int | None, typer.Option(help="time point [each plate's last]")] = None,
    fdr: Annotated[float, typer.Option("--fdr", help="false-discovery rate below which a compound is a hit")] = 0.05,
    db: DatabaseOption = None,
    run: RunOption = None,
    model: ScoredBy = None,
    output: FormatOption = Format.table,
    config: ConfigOption = None,
) -> None:
    """Rank the compounds of a plate by their effect against its negative controls."""
    from db.engine import open_reader, store_errors
    from sesmo_live import compounds

    url = database_of(db, config)
    with store_errors(url):
        answer = compounds.hits(open_reader(url), plate, timepoint=timepoint, run=run, model=model, level=fdr)
    say(answer.notes)
    show(answer.rows, output, compounds.HIT_COLUMNS)


def compare(
    model: Annotated[list[str], typer.Option("--model", help="model id or its beginning; give two")],
    plate: Annotated[str | None, typer.Option("--plate", help="plate name [all that both scored]")] = None,
    db: DatabaseOption = None,
    run: RunOption = None,
    output: FormatOption = Format.table,
    config: ConfigOption = None,
) -> None:
    """Show the scores of two models well by well, and how far they agree."""
    from db.engine import open_reader, store_errors
    from sesmo_live import comparison

    if len(model) != 2:
        raise UsageError(f"{len(model)} models were named and two are compared; give --model A --model B")
    if run is not None and plate is None:
        raise UsageError("--run is of a plate; name it with --plate")
    url = database_of(db, config)
    with store_errors(url):
        answer = comparison.compare(open_reader(url), *model, plate=plate, run=run)
    say(answer.notes)
    show(answer.rows, output, comparison.COMPARE_COLUMNS)


def export(
    plate: Annotated[str, typer.Option("--plate", help="plate name")],
    out: Annotated[Path, typer.Option("--out", help="file to write: .csv, .parquet, .xlsx, .h5ad or .html (report)")],
    cells: Annotated[bool, typer.Option("--cells", help="one row a cell instead of one a well and time point")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a file that is there")] = False,
    db: DatabaseOption = None,
    run: RunOption = None,
    model: ScoredBy = None,
    config: ConfigOption = None,
) -> None:
    """Write a plate as a tidy table (CSV, Parquet, XLSX, AnnData) or as a report in one HTML file."""
    from db.engine import open_reader, store_errors
    from sesmo_live import export as exporting
    from sesmo_live import report

    out = out.expanduser()
    if out.suffix.lower() == ".html":
        if cells:
            raise UsageError("a report has no rows of cells; export --cells to .csv, .parquet or .xlsx")
        exporting.check_target(out, overwrite=overwrite)
    url = database_of(db, config)
    with store_errors(url):
        engine = open_reader(url)
        if out.suffix.lower() == ".html":
            notes = report.write_report(engine, plate, out, run=run, model=model)
        elif cells:
            notes = exporting.export_cells(engine, plate, out, run=run, model=model, overwrite=overwrite)
        else:
            notes = exporting.export_wells(engine, plate, out, run=run, model=model, overwrite=overwrite)
    say(notes)
