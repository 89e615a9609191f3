"""One well, one field: time course with controls behind it, images, cells."""

from collections.abc import Mapping, Sequence

import numpy as np
from sqlalchemy import ColumnElement, Connection, Engine, RowMapping

from db import queries, shown
from db.queries import PlateRow
from db.schema import Image
from sesmo_live import results, screens
from sesmo_live.errors import StatisticsError, UnknownNameError
from sesmo_live.overview.views import Beside, CellView, ControlBand, Departure, FieldCells, FieldView, WellView
from sesmo_live.reasons import without_paths
from sesmo_live.records import WellScore
from sesmo_live.screening import Band
from sesmo_live.screens import Numbers
from sesmo_live.wells import parse_well


def well_view(
    engine: Engine,
    plate: str,
    well: str,
    *,
    run: str | None = None,
    model: str | None = None,
    timepoint: int | None = None,
) -> WellView:
    """Return a well's time course, the negative controls, and the images of `timepoint`, the latest unless given.

    Raises UnknownNameError for what the database does not hold, UsageError for what is no well.
    """
    name = parse_well(well)
    with engine.connect() as connection:
        found, notes = results.find_plate(connection, plate, run)
        chosen, more = results.pick_model(connection, found, model)
        treatments = queries.treatments(connection, found.plate_id, [name])
        content = results.contents(treatments).get(name)
        if content is None and not queries.has_images(connection, found.plate_id, name):
            raise UnknownNameError(f"plate {found.name} has no image of well {name}; see its map for those it has")
        scores = results.courses(connection, found, chosen, [name]) if chosen else []
        controls, departure, said = _among_controls(connection, found, chosen, name, scores)
        shown_at = shown.last_timepoint(connection, found.plate_id, name) if timepoint is None else timepoint
        imaged = shown.well_timepoints(connection, found.plate_id, name)
        where = (Image.plate_id == found.plate_id, Image.well == name, Image.timepoint == shown_at)
        fields = _fields(connection, chosen[0] if chosen else None, where)
        demonstration = queries.demonstration_of(connection, chosen[0]) if chosen else ""
    return WellView(
        plate=found.name,
        run=found.run,
        well=name,
        **(content or results.NOTHING),
        compounds=tuple(dict.fromkeys(row.compound for row in treatments if row.compound)),
        model=chosen[1] if chosen else "",
        demonstration=demonstration,
        scores=tuple(scores),
        controls=controls,
        departure=departure,
        timepoint=shown_at,
        timepoints=tuple(imaged),
        fields=fields,
        notes=notes + more + results.before_treatment(found, scores) + said,
    )


def counted(view: WellView) -> list[FieldView]:
    """Return the images whose cells are in the well's score, under the model that is shown."""
    return [field for field in view.fields if field.state == "scored" and not field.excluded and field.n_cells]


Among = tuple[tuple[ControlBand, ...], Departure | None, tuple[str, ...]]


def _among_controls(
    connection: Connection, plate: PlateRow, model: tuple[int, str] | None, well: str, scores: list[WellScore]
) -> Among:
    """Return the negative controls' band over time, when the well left it, and what could not be computed."""
    if model is None:
        return (), None, ()
    try:
        screen = screens.read_screen(connection, plate, model, (), only=[well])
    except StatisticsError as error:
        return (), None, (str(error),)
    table, band, missing = screens.band_beside(connection, screen)
    hours = {score.timepoint: score.hours for score in scores}
    controls = _controls(table, band, screen.timepoints, hours)
    if not screen.wells:
        return controls, None, ()
    said: dict[str, None] = {missing: None} if missing else {}
    course = screens.course_of(screen, 0, band, said)
    return controls, Departure(**{name: course[name] for name in Departure.__dataclass_fields__}), tuple(said)


def _controls(
    table: Numbers, band: Band | None, timepoints: Sequence[int], hours: Mapping[int, float | None]
) -> tuple[ControlBand, ...]:
    """Return mean, standard deviation and band of the negative control wells at each time point that has any."""
    found = []
    for column, timepoint in enumerate(timepoints):
        values = table[np.isfinite(table[:, column]), column]
        if len(values):
            sd = float(values.std(ddof=1)) if len(values) > 1 else None
            width = float(band.half_width[column]) if band and np.isfinite(band.half_width[column]) else None
            found.append(ControlBand(timepoint, hours.get(timepoint), float(values.mean()), sd, len(values), width))
    return tuple(found)


def well_beside(
    engine: Engine, plate: str, well: str, *, run: str | None = None, model: str | None = None, timepoint: int
) -> tuple[Beside | None, tuple[str, ...]]:
    """Return where a well stands beside the controls of a time point, None without a score there, and why not all."""
    name = parse_well(well)
    with engine.connect() as connection:
        found, _ = results.find_plate(connection, plate, run)
        chosen, _ = results.pick_model(connection, found, model)
        beside, said = screens.wells_beside(connection, found, chosen, [timepoint])
    row = beside.get((name, timepoint))
    return (Beside(timepoint, **row) if row else None), said


def fields_of(
    engine: Engine,
    plate: str,
    *,
    well: str | None = None,
    timepoint: int | None = None,
    state: str | None = None,
    run: str | None = None,
    model: str | None = None,
    limit: int = 1000,
) -> tuple[FieldView, ...]:
    """Return the images of a plate, of one well and time point or state if given, at most `limit`."""
    with engine.connect() as connection:
        found, _ = results.find_plate(connection, plate, run)
        chosen, _ = results.pick_model(connection, found, model)
        where: list[ColumnElement[bool]] = [Image.plate_id == found.plate_id]
        if well is not None:
            where.append(Image.well == parse_well(well))
        if timepoint is not None:
            where.append(Image.timepoint == timepoint)
        if state is not None:
            where.append(Image.state == state)
        return _fields(connection, chosen[0] if chosen else None, where, limit)


def _fields(
    connection: Connection,
    model_key: int | None,
    where: Sequence[ColumnElement[bool]],
    limit: int = 1000,
) -> tuple[FieldView, ...]:
    return tuple(_field(row) for row in shown.field_rows(connection, model_key, where, limit))


def _field(row: RowMapping) -> FieldView:
    return FieldView(
        image_id=row["id"],
        well=row["well"] or "",
        field=row["field"],
        timepoint=row["timepoint"],
        channel=row["channel"],
        z=row["z"],
        acquired_at=row["acquired_at"],
        state=row["state"],
        reason=without_paths(row["reason"], row["path"]),
        excluded=row["excluded"],
        file=row["name"],
        score=row["sum"] / row["n"] if row["n"] else None,
        n_cells=row["n"] or 0,
        quality=row["quality"] or {},
    )


def field_cells(engine: Engine, image_id: int, model: str | None = None) -> FieldCells:
    """Return the cells of an image under a model, the latest that scored it unless named.

    Raises UnknownNameError for an image, or a model that did not score it.
    """
    with engine.connect() as connection:
        models = shown.image_models(connection, image_id)
        chosen = [found for found in models if model is None or found["model_id"].startswith(model)]
        if model is not None and not chosen:
            raise UnknownNameError(f"image {image_id} was not scored by a model {model!r}; leave the model out")
        best = chosen[-1] if chosen else None
        rows = shown.field_rows(connection, best["id"] if best else None, (Image.id == image_id,))
        if not rows:
            raise UnknownNameError(f"there is no image {image_id}; the images of a well are listed with their numbers")
        plate = next((run for run in queries.plate_runs(connection) if run.plate_id == rows[0]["plate_id"]), None)
        cells = shown.cells_of(connection, image_id, best["id"]) if best else []
    return FieldCells(
        field=_field(rows[0]),
        plate=plate.name if plate else "",
        run=plate.run if plate else "",
        model=best["model_id"] if best else "",
        demonstration=best["demonstration"] if best else "",
        threshold=best["passport"].get("threshold") if best else None,
        cells=tuple(CellView(*cell) for cell in cells),
    )
