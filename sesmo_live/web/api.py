"""The API's questions, all under /api/v1: plates, wells, compounds, images, models, incidents, the run."""

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from db import queries, shown
from sesmo_live import overview, results, screens
from sesmo_live.answers import Answer
from sesmo_live.overview import (
    CellView,
    FieldCells,
    FieldView,
    IncidentView,
    PlateMap,
    PlateSummary,
    RunStatus,
    WellView,
)
from sesmo_live.records import ImageState, WellScore
from sesmo_live.web.problems import PROBLEMS
from sesmo_live.web.screening import table
from sesmo_live.web.screenshapes import BridgeRow
from sesmo_live.web.shapes import (
    Answered,
    At,
    CompoundName,
    CompoundView,
    FormatName,
    HistoryRow,
    ImageId,
    ModelName,
    ModelView,
    PlateName,
    RankedCell,
    RunName,
    Table,
    WellName,
    WellRow,
)
from sesmo_live.web.tables import CSV_ANSWER, csv_answer

Limit = Annotated[int, Query(ge=1, le=100_000, description="rows at most")]
Skip = Annotated[int, Query(ge=0, le=2**31 - 1, description="rows left out first")]

router = APIRouter(prefix="/api/v1", responses=PROBLEMS, tags=["questions"])


@router.get("/plates", responses=CSV_ANSWER)
def plates(
    request: Request, form: FormatName = Answered.json, limit: Limit = 1000, skip: Skip = 0
) -> tuple[PlateSummary, ...]:
    """The runs of all plates, the latest imaged first."""
    found = overview.plates(request.app.state.engine, limit=limit, skip=skip)
    return _told(found, PlateSummary, "plates") if form is Answered.csv else found


@router.get("/plates/{name:path}/wells/{well}/timecourse", responses=CSV_ANSWER, response_model=Table[WellScore])
def timecourse(
    request: Request,
    name: PlateName,
    well: WellName,
    run: RunName = None,
    model: ModelName = None,
    form: FormatName = Answered.json,
) -> Any:
    """The score of a well at each time point, as `sesmo-live timecourse` prints it."""
    rows, notes = results.timecourse(request.app.state.engine, name, well, run=run, model=model)
    if form is Answered.csv:
        return _told(rows, WellScore, f"{name}-{well}")
    return Table(rows=rows, notes=notes)


@router.get("/plates/{name:path}/wells/{well}/cells")
def ranked_cells(
    request: Request,
    name: PlateName,
    well: WellName,
    run: RunName = None,
    model: ModelName = None,
    timepoint: At = None,
    number: Annotated[int, Query(ge=1, le=500, description="cells at most, evenly picked over the ranks")] = 50,
) -> tuple[RankedCell, ...]:
    """Cells of a well at a time point from the lowest score to the highest, for a montage."""
    engine = request.app.state.engine
    view = overview.well_view(engine, name, well, run=run, model=model, timepoint=timepoint)
    images = [field.image_id for field in overview.counted(view)]
    with engine.connect() as connection:
        found = shown.ranked_cells(connection, images, view.model, number)
    return tuple(RankedCell(*cell) for cell in found)


@router.get("/plates/{name:path}/wells/{well}")
def well(
    request: Request,
    name: PlateName,
    well: WellName,
    run: RunName = None,
    model: ModelName = None,
    timepoint: At = None,
) -> WellView:
    """A well: time course, negative controls, and the images of a time point."""
    return overview.well_view(request.app.state.engine, name, well, run=run, model=model, timepoint=timepoint)


@router.get("/plates/{name:path}/wells", responses=CSV_ANSWER, response_model=Table[WellRow])
def wells(
    request: Request,
    name: PlateName,
    run: RunName = None,
    model: ModelName = None,
    timepoint: At = None,
    form: FormatName = Answered.json,
) -> Any:
    """One row a well beside the controls of its time point, as `sesmo-live plate` prints it."""
    found = screens.plate_wells(request.app.state.engine, name, timepoint=timepoint, run=run, model=model)
    return table(found, WellRow, name, form)


@router.get("/plates/{name:path}/timecourse", responses=CSV_ANSWER, response_model=Table[WellScore])
def timecourses(
    request: Request, name: PlateName, run: RunName = None, model: ModelName = None, form: FormatName = Answered.json
) -> Any:
    """The score of every well at each time point."""
    rows, notes = results.timecourse(request.app.state.engine, name, run=run, model=model)
    return _told(rows, WellScore, name) if form is Answered.csv else Table(rows=rows, notes=notes)


@router.get("/plates/{name:path}/images", responses=CSV_ANSWER)
def images(
    request: Request,
    name: PlateName,
    run: RunName = None,
    model: ModelName = None,
    well: Annotated[str | None, Query(max_length=10)] = None,
    timepoint: At = None,
    state: ImageState | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    form: FormatName = Answered.json,
) -> tuple[FieldView, ...]:
    """The images of a plate, of one well, time point or state, with their numbers, states and reasons."""
    found = overview.fields_of(
        request.app.state.engine, name, run=run, model=model, well=well, timepoint=timepoint, state=state, limit=limit
    )
    return _told(found, FieldView, f"{name}-images") if form is Answered.csv else found


@router.get("/plates/{name:path}")
def plate(
    request: Request, name: PlateName, run: RunName = None, model: ModelName = None, timepoint: At = None
) -> PlateMap:
    """A plate as a map: each well at its latest time point, or all as they stood at one (replay)."""
    return overview.plate_map(request.app.state.engine, name, run=run, model=model, timepoint=timepoint)


@router.get("/compounds")
def compounds(
    request: Request,
    part: Annotated[str, Query(max_length=300, description="only names that hold this")] = "",
    limit: Limit = 10_000,
    skip: Skip = 0,
) -> tuple[CompoundView, ...]:
    """The compounds by name."""
    with request.app.state.engine.connect() as connection:
        return tuple(map(CompoundView, queries.compound_names(connection, part, limit=limit, skip=skip)))


@router.get("/compounds/{name:path}", responses=CSV_ANSWER, response_model=Table[BridgeRow] | Table[HistoryRow])
def compound(
    request: Request,
    name: CompoundName,
    model: ModelName = None,
    bridge: Annotated[bool, Query(description="plates of all models, in percent between their own controls")] = False,
    limit: Limit = 10_000,
    skip: Skip = 0,
    form: FormatName = Answered.json,
) -> Any:
    """Every plate, well, dose and time point of a compound, as `sesmo-live compound` prints it."""
    found = results.compound_history(request.app.state.engine, name, model=model, bridge=bridge)
    rows, total = found.rows[skip : skip + limit], len(found.rows)
    some = (f"rows {skip + 1} to {skip + len(rows)} of {total}; go on with skip",) if len(rows) < total else ()
    return table(Answer(rows, found.notes + some), BridgeRow if bridge else HistoryRow, name, form)


@router.get("/images/{image_id}/cells", responses=CSV_ANSWER)
def cells(request: Request, image_id: ImageId, model: ModelName = None, form: FormatName = Answered.json) -> FieldCells:
    """The cells of an image: position in its pixels, and score."""
    found = overview.field_cells(request.app.state.engine, image_id, model)
    return _told(found.cells, CellView, f"cells-{image_id}") if form is Answered.csv else found


@router.get("/images/{image_id}")
def image(request: Request, image_id: ImageId, model: ModelName = None) -> FieldView:
    """An image: its place, state and reason, score and quality."""
    return overview.field_cells(request.app.state.engine, image_id, model).field


@router.get("/models")
def models(request: Request) -> tuple[ModelView, ...]:
    """The models that have scored something, with their passports."""
    with request.app.state.engine.connect() as connection:
        rows = shown.models_known(connection)
    return tuple(ModelView(row["model_id"], row["demonstration"], row["added_at"], row["passport"]) for row in rows)


@router.get("/incidents", responses=CSV_ANSWER)
def incidents(
    request: Request,
    everything: Annotated[bool, Query(description="also those that are over, the newest first")] = False,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    form: FormatName = Answered.json,
) -> tuple[IncidentView, ...]:
    """What is wrong now; or all that ever was."""
    found = overview.incidents(request.app.state.engine, everything=everything, limit=limit)
    return _told(found, IncidentView, "incidents") if form is Answered.csv else found


@router.get("/run")
def run_status(request: Request) -> RunStatus:
    """How the run goes: images by state, rates, queue, folders, incidents, room on the disk."""
    return overview.run_status(request.app.state.engine, request.app.state.url)


def _told(rows: Iterable[Any], shape: type, name: str) -> Any:
    return csv_answer(rows, shape, name)
