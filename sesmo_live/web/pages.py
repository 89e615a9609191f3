"""The pages: server-made HTML over the same answers as the API; their parts are fetched again as things change."""

import logging
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BeforeValidator, Field
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from sesmo_live import overview
from sesmo_live.errors import SesmoError, UnknownNameError, UsageError
from sesmo_live.overview import PlateMap, WellView
from sesmo_live.results import compound_history
from sesmo_live.rhythm import span
from sesmo_live.web import addresses, charts, views
from sesmo_live.web.platesvg import legend_svg, plate_svg, tally_svg
from sesmo_live.wells import well_position

Number = Annotated[
    Annotated[int, Field(ge=0, le=2**62)] | None, BeforeValidator(lambda value: None if value == "" else value), Query()
]
"""A whole number; an empty field of a form is none."""

Text = Annotated[Annotated[str, Field(max_length=300)] | None, BeforeValidator(lambda value: value or None), Query()]
"""Words; an empty field of a form is none."""

MOST_PLATES = 60
"""Plates that are listed at a time."""

TITLES = {404: "There is nothing here", 422: "This address does not work", 503: "The database does not answer"}


def _query(**values: Any) -> str:
    """Return the part of an address from `?` on; values that are None or empty are left out."""
    given = {name: value for name, value in values.items() if value not in (None, "")}
    return f"?{urlencode(given)}" if given else ""


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


TEMPLATES = Environment(
    loader=PackageLoader("sesmo_live.web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"utc": _utc, "sentence": views.sentence}
TEMPLATES.globals |= {
    "link": views.link,
    "query": _query,
    "dose_text": views.dose_text,
    "quality": views.quality_text,
    "share": views.share_text,
    "age": views.age_text,
    "tally": tally_svg,
    "address": addresses,
    "span": span,
    "since": views.since_text,
    "band_text": views.band_text,
}


def render(template: str, **context: Any) -> HTMLResponse:
    """Return a page, or a part of one."""
    context.setdefault("version", "")
    return HTMLResponse(TEMPLATES.get_template(template).render(context), headers={"cache-control": "no-store"})


def error_page(status: int, sentence: str) -> HTMLResponse:
    """Return a page that says in one sentence what is wrong."""
    title = TITLES.get(status, "This did not work")
    page = render("error.html", here="", status=status, title=title, sentence=sentence)
    page.status_code = status
    return page


class PageRoute(APIRoute):
    """A route whose errors are pages, not JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the usual handler, with the errors of what is asked for turned into pages."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                where = error.errors()[0]["loc"][-1]
                return error_page(422, f"The address has a value for {where!r} that cannot be; take it out.")
            except UsageError as error:
                return error_page(404, f"{error}.")
            except (SesmoError, DBAPIError) as error:
                log.error("a page could not be shown: %s", error)
                return error_page(503, "The database cannot be read now; what the server prints says why.")

        return handle


log = logging.getLogger(__name__)
router = APIRouter(include_in_schema=False, route_class=PageRoute)


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


@router.get("/")
def plates_page(request: Request, skip: Number = None) -> HTMLResponse:
    """Show the plates, the latest imaged first, so many at a time."""
    return render("plates.html", version=request.app.state.changes.version, here="plates", **_plates(request, skip))


@router.get("/parts/plates")
def plates_part(request: Request, skip: Number = None) -> HTMLResponse:
    """Return the list of plates alone."""
    return render("_plates.html", **_plates(request, skip))


def _plates(request: Request, given: int | None) -> dict[str, Any]:
    skip = given or 0
    found = overview.plates(_engine(request), limit=MOST_PLATES + 1, skip=skip)
    return {
        "plates": found[:MOST_PLATES],
        "skip": skip,
        "newer": max(0, skip - MOST_PLATES) if skip else None,
        "older": skip + MOST_PLATES if len(found) > MOST_PLATES else None,
        "database": views.file_name(str(request.app.state.url)),
    }


@router.get("/plates/{name:path}/parts/map")
def plate_part(
    request: Request, name: str, show: Text = None, run: Text = None, model: Text = None, timepoint: Number = None
) -> HTMLResponse:
    """Return the map, and beside it what else changes with it."""
    answer = overview.plate_map(_engine(request), name, run=run, model=model, timepoint=timepoint)
    return render("_live.html", **_plate(_engine(request), answer, show, model))


@router.get("/plates/{name:path}/parts/unscored")
def unscored_part(request: Request, name: str, run: Text = None) -> HTMLResponse:
    """Return why images of a plate have no score."""
    reasons, images = views.unscored(_engine(request), name, run)
    return render("_unscored.html", plate=name, run=run, reasons=reasons, unscored=images)


@router.get("/plates/{name:path}/parts/table")
def table_part(
    request: Request, name: str, run: Text = None, model: Text = None, timepoint: Number = None
) -> HTMLResponse:
    """Return the wells as a table."""
    answer = overview.plate_map(_engine(request), name, run=run, model=model, timepoint=timepoint)
    wells = [well for well in answer.wells if views.was_imaged(well)]
    return render("_table.html", plate=answer, wells=sorted(wells, key=lambda well: well_position(well.well)))


def _plate(engine: Engine, answer: PlateMap, key: str | None, model: str | None) -> dict[str, Any]:
    show = views.SHOWS.get(key or "score")
    if show is None:
        raise UnknownNameError(f"a plate cannot be coloured by {key!r}; choose one of {', '.join(views.SHOWS)}")
    scale, divisor = views.scale_of(show, answer.wells)
    query = _query(run=answer.run if len(answer.runs) > 1 else None, model=model, timepoint=answer.timepoint)
    marks = views.marks_of(answer, show, scale, divisor, query)
    return {
        "plate": answer,
        "shows": views.SHOWS.values(),
        "show": show.key,
        "scale": scale,
        "legend": legend_svg(scale),
        "svg": plate_svg(answer.name, answer.plate_wells, marks, scale),
        "kinds": views.kinds_of(marks.values()),
        "rest": views.rest_text(answer.wells, show, answer.notes),
        "times": [{"timepoint": point.timepoint, "label": views.time_label(point)} for point in answer.timepoints],
        "standing": views.standing(engine, answer.name, answer.run),
        "top": views.highest(answer.wells),
    }


@router.get("/plates/{name:path}/wells/{well}")
def well_page(
    request: Request, name: str, well: str, run: Text = None, model: Text = None, timepoint: Number = None
) -> HTMLResponse:
    """Show a well: its time course and its images."""
    view = overview.well_view(_engine(request), name, well, run=run, model=model, timepoint=timepoint)
    before, after = views.neighbours(views.imaged_wells(_engine(request), view.plate, view.run), view.well)
    context = {**_course(view), **_fields(view, timepoint)}
    return render(
        "well.html",
        version=request.app.state.changes.version,
        here="plates",
        before=before,
        after=after,
        model=model,
        **context,
    )


@router.get("/plates/{name:path}/wells/{well}/parts/course")
def course_part(request: Request, name: str, well: str, run: Text = None, model: Text = None) -> HTMLResponse:
    """Return a well's time course alone."""
    return render("_course.html", **_course(overview.well_view(_engine(request), name, well, run=run, model=model)))


@router.get("/plates/{name:path}/wells/{well}/parts/fields")
def fields_part(
    request: Request, name: str, well: str, run: Text = None, model: Text = None, timepoint: Number = None
) -> HTMLResponse:
    """Return a well's images at a time point."""
    view = overview.well_view(_engine(request), name, well, run=run, model=model, timepoint=timepoint)
    return render("_fields.html", **_fields(view, timepoint))


@router.get("/plates/{name:path}/wells/{well}/parts/cells")
def cells_part(
    request: Request, name: str, well: str, run: Text = None, model: Text = None, timepoint: Number = None
) -> HTMLResponse:
    """Return cells of a well at a time point from the lowest to the highest score."""
    engine = _engine(request)
    view = overview.well_view(engine, name, well, run=run, model=model, timepoint=timepoint)
    fields = [overview.field_cells(engine, field.image_id, view.model) for field in overview.counted(view)]
    total, cells = views.spread(fields)
    return render("_cells.html", total=total, cells=cells)


def _course(view: WellView) -> dict[str, Any]:
    return {"view": view, "last": view.scores[-1] if view.scores else None, "chart": charts.course_chart(view)}


def _fields(view: WellView, timepoint: int | None) -> dict[str, Any]:
    labels = {score.timepoint: views.stop_label(score) for score in view.scores}
    stops = sorted({*view.timepoints, *labels, *([] if timepoint is None else [timepoint])})
    points = [{"timepoint": stop, "label": labels.get(stop, f"time point {stop}")} for stop in stops]
    return {"view": view, "asked": timepoint, "points": points}


@router.get("/plates/{name:path}")
def plate_page(
    request: Request, name: str, show: Text = None, run: Text = None, model: Text = None, timepoint: Number = None
) -> HTMLResponse:
    """Show a plate as a map."""
    answer = overview.plate_map(_engine(request), name, run=run, model=model, timepoint=timepoint)
    stops = [point.timepoint for point in answer.timepoints]
    position = len(stops) if timepoint is None else stops.index(timepoint) if timepoint in stops else len(stops)
    context = _plate(_engine(request), answer, show, model)
    return render(
        "plate.html",
        version=request.app.state.changes.version,
        here="plates",
        position=position,
        model=model,
        **context,
    )


@router.get("/compounds")
def find_compound(name: Text = None) -> Response:
    """Lead from the search box to a compound's page."""
    if name is None:
        return error_page(404, "No compound was named; write a name into the search box.")
    return RedirectResponse(views.link("compounds", name.strip()), 303)


@router.get("/parts/compounds")
def compounds_part(request: Request, name: Text = None) -> HTMLResponse:
    """Return names for the search box."""
    names = views.compound_names(_engine(request), name or "")
    return HTMLResponse(Markup("").join(Markup('<option value="{}"></option>').format(name) for name in names))


@router.get("/compounds/{name:path}/parts/history")
def history_part(request: Request, name: str, model: Text = None) -> HTMLResponse:
    """Return the history alone."""
    return render("_history.html", **_history(_engine(request), name, model))


@router.get("/compounds/{name:path}")
def compound_page(request: Request, name: str, model: Text = None) -> HTMLResponse:
    """Show the history of a compound over all plates."""
    return render(
        "compound.html",
        version=request.app.state.changes.version,
        here="compounds",
        **_history(_engine(request), name, model),
    )


def _history(engine: Engine, name: str, model: str | None) -> dict[str, Any]:
    answer = compound_history(engine, name, model=model)
    wells = charts.last_rows(answer.rows)
    return {
        "name": wells[0]["compound"] if wells else name,
        **some_wells(wells),
        "number": len(wells),
        "model": model,
        "plates": len({(row["plate"], row["run"]) for row in wells}),
        "doses": charts.doses(wells),
        "course": charts.history_chart(answer.rows),
        "models": views.demonstrations(answer.notes),
        "said": answer.notes,
    }


MOST_WELLS = 200
"""Wells of a compound that are listed at a time."""


def some_wells(rows: list[Any], skip: int = 0) -> dict[str, Any]:
    """Return the part of a compound's wells that is listed at once, and where the next part begins."""
    following = skip + MOST_WELLS
    return {
        "wells": rows[skip:following],
        "following": following if following < len(rows) else None,
        "rest": len(rows) - following,
    }


@router.get("/run")
def run_page(request: Request) -> HTMLResponse:
    """Show how the run goes."""
    return render("run.html", version=request.app.state.changes.version, here="run", **_status(request))


@router.get("/run/parts/status")
def status_part(request: Request) -> HTMLResponse:
    """Return how the run goes, alone."""
    return render("_status.html", **_status(request))


def _status(request: Request) -> Mapping[str, Any]:
    engine = _engine(request)
    over = [item for item in overview.incidents(engine, everything=True, limit=50) if item.closed_at]
    return {"run": overview.run_status(engine, str(request.app.state.url)), "over": over}
