"""The queries: plate, timecourse, compound."""

from dataclasses import asdict, fields
from typing import Annotated

import typer

from sesmo_live.cli.options import ConfigOption, DatabaseOption, FormatOption, database_of
from sesmo_live.cli.output import Format, say, show
from sesmo_live.records import WellScore

RunOption = Annotated[str | None, typer.Option("--run", help="which run of the plate [the latest]")]
ScoredBy = Annotated[str | None, typer.Option("--model", help="model id or its beginning [the latest that scored]")]


def plate(
    name: Annotated[str, typer.Argument(help="plate name")],
    db: DatabaseOption = None,
    timepoint: Annotated[int | None, typer.Option(help="time point [each well's latest]")] = None,
    run: RunOption = None,
    model: ScoredBy = None,
    output: FormatOption = Format.table,
    config: ConfigOption = None,
) -> None:
    """Show one row a well: role, compound, dose, score with its 95 % interval, cells."""
    from db.engine import open_reader, store_errors
    from sesmo_live.results import plate_table

    url = database_of(db, config)
    with store_errors(url):
        answer = plate_table(open_reader(url), name, timepoint=timepoint, run=run, model=model)
    say(answer.notes)
    show(answer.rows, output, ("well",))


def timecourse(
    plate: Annotated[str, typer.Option("--plate", help="plate name")],
    well: Annotated[str | None, typer.Option("--well", help="well in any spelling [all wells]")] = None,
    db: DatabaseOption = None,
    run: RunOption = None,
    model: ScoredBy = None,
    output: FormatOption = Format.table,
    config: ConfigOption = None,
) -> None:
    """Show the score of a well at each time point, with its 95 % interval and hours since treatment."""
    from db.engine import open_reader, store_errors
    from sesmo_live import results

    url = database_of(db, config)
    with store_errors(url):
        rows, notes = results.timecourse(open_reader(url), plate, well, run=run, model=model)
    say(notes)
    show([asdict(row) for row in rows], output, [field.name for field in fields(WellScore)])


def compound(
    name: Annotated[str, typer.Argument(help="compound name or alias, in any case")],
    db: DatabaseOption = None,
    model: ScoredBy = None,
    output: FormatOption = Format.table,
    config: ConfigOption = None,
) -> None:
    """Show every plate, dose and time point of a compound."""
    from db.engine import open_reader, store_errors
    from sesmo_live.results import compound_history

    url = database_of(db, config)
    with store_errors(url):
        answer = compound_history(open_reader(url), name, model=model)
    say(answer.notes)
    show(answer.rows, output, ("compound",))
