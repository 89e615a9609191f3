"""The API's questions about whole plates and compounds: controls, onset, hits, doses, two models, files to keep."""

import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParameter
from starlette.responses import Response

from sesmo_live import comparison, compounds, screens
from sesmo_live.answers import Answer
from sesmo_live.errors import UnknownNameError
from sesmo_live.web.explaining import BusyError
from sesmo_live.web.problems import PROBLEMS
from sesmo_live.web.screenshapes import CompareRow, CourseRow, DoseRow, HitRow, StatisticsRow
from sesmo_live.web.shapes import Answered, At, CompoundName, FormatName, ModelName, PlateName, RunName, Table
from sesmo_live.web.tables import CSV_ANSWER, csv_answer, safe_name

router = APIRouter(prefix="/api/v1", responses=PROBLEMS, tags=["screening"])

OverTime = Annotated[bool, Query(description="a curve for each time point")]


def table(answer: Answer, shape: type, name: str, form: Answered) -> Any:
    """Return an answer's rows as JSON with its notes, or as CSV."""
    if form is Answered.csv:
        return csv_answer(answer.rows, shape, name)
    return Table(rows=[shape(**row) for row in answer.rows], notes=answer.notes)


@router.get("/plates/{name:path}/statistics", responses=CSV_ANSWER, response_model=Table[StatisticsRow])
def statistics(
    request: Request, name: PlateName, run: RunName = None, model: ModelName = None, form: FormatName = Answered.json
) -> Any:
    """Z′, SSMD, signal window, and what rim, rows and columns do, at each time point of a plate."""
    found = screens.plate_statistics(request.app.state.engine, name, run=run, model=model)
    return table(found, StatisticsRow, f"{name}-statistics", form)


@router.get("/plates/{name:path}/courses", responses=CSV_ANSWER, response_model=Table[CourseRow])
def courses(
    request: Request,
    name: PlateName,
    well: Annotated[str | None, Query(max_length=10, description="one well alone")] = None,
    run: RunName = None,
    model: ModelName = None,
    form: FormatName = Answered.json,
) -> Any:
    """When each well left the band of the negative controls, its slope and its area above them."""
    found = screens.plate_courses(request.app.state.engine, name, well, run=run, model=model)
    return table(found, CourseRow, f"{name}-courses", form)


@router.get("/plates/{name:path}/hits", responses=CSV_ANSWER, response_model=Table[HitRow])
def hits(
    request: Request,
    name: PlateName,
    run: RunName = None,
    model: ModelName = None,
    timepoint: At = None,
    fdr: Annotated[float, Query(gt=0, lt=1, description="false-discovery rate below which a compound is a hit")] = 0.05,
    form: FormatName = Answered.json,
) -> Any:
    """The compounds of a plate, each dose by itself, ranked by their effect against its negative controls."""
    found = compounds.hits(request.app.state.engine, [name], timepoint=timepoint, run=run, model=model, level=fdr)
    return table(found, HitRow, f"{name}-hits", form)


@router.get("/plates/{name:path}/doses", responses=CSV_ANSWER, response_model=Table[DoseRow])
def doses(
    request: Request,
    name: PlateName,
    compound: Annotated[str | None, Query(max_length=300, description="one compound alone")] = None,
    run: RunName = None,
    model: ModelName = None,
    timepoint: At = None,
    over_time: OverTime = False,
    form: FormatName = Answered.json,
) -> Any:
    """The dose-response curve of each compound of a plate, with the interval of its EC50."""
    found = compounds.dose_responses(
        request.app.state.engine,
        name,
        compound or None,
        timepoint=timepoint,
        over_time=over_time,
        run=run,
        model=model,
    )
    return table(found, DoseRow, f"{name}-doses", form)


@router.get("/compounds/{name:path}/doses", responses=CSV_ANSWER, response_model=Table[DoseRow])
def compound_doses(
    request: Request,
    name: CompoundName,
    model: ModelName = None,
    over_time: OverTime = False,
    form: FormatName = Answered.json,
) -> Any:
    """The dose-response curve of a compound on each plate, with the interval of its EC50."""
    found = compounds.compound_curves(request.app.state.engine, name, model=model, over_time=over_time)
    return table(found, DoseRow, f"{name}-doses", form)


@router.get("/compare", responses=CSV_ANSWER, response_model=Table[CompareRow])
def compare(
    request: Request,
    a: Annotated[str, Query(min_length=1, max_length=200, description="a model id or its beginning")],
    b: Annotated[str, Query(min_length=1, max_length=200, description="another")],
    plate: Annotated[str, Query(min_length=1, max_length=200, pattern=r"\S", description="name of a plate")],
    run: RunName = None,
    form: FormatName = Answered.json,
) -> Any:
    """The scores of two models well by well on a plate; the notes tell how far they agree."""
    found = comparison.compare(request.app.state.engine, a, b, plate=plate, run=run)
    return table(found, CompareRow, f"{plate}-compare", form)


FILES = {
    "csv": "text/csv",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "parquet": "application/vnd.apache.parquet",
    "html": "text/html",
}
"""Files that a plate can be taken away in: three tables, and the report."""

_one_at_a_time = threading.Lock()  # matplotlib draws for one, and a file is work for seconds


@router.get(
    "/plates/{name:path}/export.{suffix}",
    response_class=Response,
    responses={200: {"content": {kind: {"schema": {"type": "string"}} for kind in FILES.values()}}},
)
def export(
    request: Request,
    name: PlateName,
    suffix: Annotated[str, PathParameter(max_length=10, description="csv, xlsx, parquet; html is the report")],
    run: RunName = None,
    model: ModelName = None,
) -> Response:
    """A plate to keep: one row a well and time point, or (html) its report; as `sesmo-live export` writes it."""
    if suffix not in FILES:
        raise UnknownNameError(f"a plate is not exported as {suffix!r}; ask for one of {', '.join(FILES)}")
    if not _one_at_a_time.acquire(timeout=20):
        raise BusyError("other files are being made; ask again in a minute")
    try:
        with tempfile.TemporaryDirectory(prefix="sesmo-") as folder:
            out = Path(folder) / f"plate.{suffix}"
            _write(request.app.state.engine, name, out, run, model)
            content = out.read_bytes()
    finally:
        _one_at_a_time.release()
    headers = {"content-disposition": f'attachment; filename="{safe_name(name)}.{suffix}"'}
    return Response(content, media_type=FILES[suffix], headers=headers)


def _write(engine: Any, name: str, out: Path, run: str | None, model: str | None) -> None:
    from sesmo_live import export as exporting  # these load slowly, and are rarely asked for
    from sesmo_live import report

    if out.suffix == ".html":
        report.write_report(engine, name, out, run=run, model=model)
    else:
        exporting.export_wells(engine, name, out, run=run, model=model)
