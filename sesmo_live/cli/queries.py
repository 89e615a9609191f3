"""The queries: plate, timecourse, compound, images."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated

import typer

from sesmo_live.cli.options import ConfigOption, DatabaseOption, FormatOption, database_of
from sesmo_live.cli.output import Format, say, show
from sesmo_live.errors import UsageError
from sesmo_live.records import ImageState, WellScore

TABLE_ROWS = 100
"""Images that a table shows unless it is asked for more."""

RunOption = Annotated[str | None, typer.Option("--run", help="which run of the plate [the latest]")]
ScoredBy = Annotated[str | None, typer.Option("--model", help="model id or its beginning [the latest that scored]")]


def plate(
    name: Annotated[str, typer.Argument(help="plate name")],
    db: DatabaseOption = None,
    timepoint: Annotated[int | None, typer.Option(help="time point [each well's latest]")] = None,
    run: RunOption = None,
    model: ScoredBy = None,
    statistics: Annotated[
        bool, typer.Option("--statistics", help="one row a time point instead: Z′, SSMD, signal window, plate effects")
    ] = False,
    output: FormatOption = Format.table,
    config: ConfigOption = None,
) -> None:
    """Show one row a well: role, compound, dose, score with its 95 % interval, cells, and where it stands."""
    from db.engine import open_reader, store_errors
    from sesmo_live import screens

    if statistics and timepoint is not None:
        raise UsageError("--statistics shows every time point; leave out --timepoint")
    url = database_of(db, config)
    with store_errors(url):
        engine = open_reader(url)
        if statistics:
            answer = screens.plate_statistics(engine, name, run=run, model=model)
        else:
            answer = screens.plate_wells(engine, name, timepoint=timepoint, run=run, model=model)
    say(answer.notes)
    show(answer.rows, output, screens.CONTROL_COLUMNS if statistics else screens.WELL_COLUMNS)


def timecourse(
    plate: Annotated[str, typer.Option("--plate", help="plate name")],
    well: Annotated[str | None, typer.Option("--well", help="well in any spelling [all wells]")] = None,
    db: DatabaseOption = None,
    run: RunOption = None,
    model: ScoredBy = None,
    onset: Annotated[
        bool, typer.Option("--onset", help="one row a well instead: when it left the control band, slope, area")
    ] = False,
    output: FormatOption = Format.table,
    config: ConfigOption = None,
) -> None:
    """Show the score of a well at each time point, with its 95 % interval and hours since treatment."""
    from db.engine import open_reader, store_errors
    from sesmo_live import results, screens

    url = database_of(db, config)
    if onset:
        with store_errors(url):
            answer = screens.plate_courses(open_reader(url), plate, well, run=run, model=model)
        say(answer.notes)
        show(answer.rows, output, screens.COURSE_COLUMNS)
        return
    with store_errors(url):
        rows, notes = results.timecourse(open_reader(url), plate, well, run=run, model=model)
    say(notes)
    show([asdict(row) for row in rows], output, [field.name for field in fields(WellScore)])


def compound(
    name: Annotated[str, typer.Argument(help="compound name, alias or InChIKey, in any case")],
    db: DatabaseOption = None,
    model: ScoredBy = None,
    bridge: Annotated[
        bool, typer.Option("--bridge", help="plates of all models, in percent between each plate's own controls")
    ] = False,
    fit: Annotated[bool, typer.Option("--fit", help="one row a plate instead: EC50 and its 95 % interval")] = False,
    over_time: Annotated[bool, typer.Option("--over-time", help="with --fit: a curve for each time point")] = False,
    output: FormatOption = Format.table,
    config: ConfigOption = None,
) -> None:
    """Show every plate, dose and time point of a compound."""
    from db.engine import open_reader, store_errors
    from sesmo_live import compounds, history

    if fit and bridge:
        raise UsageError("--fit fits each plate by itself and needs no --bridge; leave one out")
    if over_time and not fit:
        raise UsageError("--over-time belongs to --fit; give both")
    url = database_of(db, config)
    with store_errors(url):
        engine = open_reader(url)
        if fit:
            answer = compounds.compound_curves(engine, name, model=model, over_time=over_time)
        else:
            answer = history.compound_history(engine, name, model=model, bridge=bridge)
    columns = compounds.DOSE_COLUMNS if fit else history.BRIDGE_COLUMNS if bridge else history.HISTORY_COLUMNS
    say(answer.notes)
    show(answer.rows, output, columns)


def images(
    plate: Annotated[str | None, typer.Argument(help="plate name [all images]")] = None,
    state: Annotated[ImageState | None, typer.Option(help="only images in this state")] = None,
    folder: Annotated[Path | None, typer.Option(help="only images in or below this folder")] = None,
    summary: Annotated[bool, typer.Option("--summary", help="count the images of each state and reason")] = False,
    limit: Annotated[
        int | None, typer.Option(min=0, help="at most so many images, 0 for all [100 as a table, else all]")
    ] = None,
    skip: Annotated[int, typer.Option(min=0, help="leave out so many first")] = 0,
    db: DatabaseOption = None,
    output: FormatOption = Format.table,
    config: ConfigOption = None,
) -> None:
    """Show what became of every image: its place, its state, and the reason unless it is scored."""
    from db.engine import open_reader, store_errors
    from sesmo_live import results

    url = database_of(db, config)
    where = None if folder is None else folder.expanduser().resolve()
    if limit is None:
        limit = TABLE_ROWS if output is Format.table else 0
    with store_errors(url):
        engine = open_reader(url)
        if summary:
            answer = results.image_summary(engine, plate, state=state, folder=where)
        else:
            answer = results.image_table(engine, plate, state=state, folder=where, limit=limit or None, skip=skip)
    say(answer.notes)
    show(answer.rows, output, results.REASON_COLUMNS if summary else results.IMAGE_COLUMNS)
