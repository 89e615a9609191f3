"""The parts of pages that statistics fill: they cost more than a map, so they are fetched after it."""

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from sesmo_live import compounds, overview
from sesmo_live.errors import StatisticsError, UnknownNameError, UsageError
from sesmo_live.overview import Plated
from sesmo_live.results import compound_history
from sesmo_live.web import charts, screencharts, views
from sesmo_live.web.pages import MOST_WELLS, Number, PageRoute, Text, render, some_wells
from sesmo_live.wells import parse_well

router = APIRouter(include_in_schema=False, route_class=PageRoute)

MOST_HITS = 50
"""Compounds in the table of hits; the API and the command have them all."""
FIRST_LEFT = 5
"""Wells that left the band and are shown at once; the others are unfolded."""


@router.get("/plates/{name:path}/parts/panel")
def panel_part(
    request: Request, name: str, run: Text = None, model: Text = None, timepoint: Number = None
) -> HTMLResponse:
    """Return which wells left the control band, and how good the controls are."""
    state = request.app.state

    def ask() -> Plated | str:
        try:
            return overview.plated(state.engine, name, run=run, model=model)
        except UnknownNameError:
            raise
        except UsageError as error:  # not scored yet
            return str(error)

    found, again = state.seldom.answer(("plate", name.casefold(), run, model), state.changes.version, ask)
    context = {"missing": found} if isinstance(found, str) else _panel(found, timepoint)
    return render("_panel.html", plate=name, run=run, model=model, again=again, **context)


def _panel(found: Plated, timepoint: int | None) -> dict[str, Any]:
    rows = [row for row in found.statistics if timepoint is None or row["timepoint"] <= timepoint]
    every = [item for item in found.left if timepoint is None or item.row["onset_timepoint"] <= timepoint]
    return {
        "missing": "",
        "found": found,
        "now": rows[-1] if rows else None,
        "left": [item for item in every if item.row["role"] != "positive"],
        "positive": [item for item in every if item.row["role"] == "positive"],
        "first": FIRST_LEFT,
        "flags": {item.row["well"]: views.left_text(item.row) for item in every},
        "course": screencharts.quality_svg(found.statistics, timepoint),
        "verdict": views.verdict(rows[-1]["z_prime"]) if rows else "",
        "why": [note for note in found.notes if note.startswith("not all of Z′")],
    }


@router.get("/plates/{name:path}/parts/hits")
def hits_part(
    request: Request, name: str, run: Text = None, model: Text = None, timepoint: Number = None
) -> HTMLResponse:
    """Return the compounds of a plate, ranked against its negative controls."""
    try:
        found = compounds.hits(request.app.state.engine, [name], timepoint=timepoint, run=run, model=model)
    except StatisticsError as error:
        return render("_hits.html", hits=[], number=0, total=0, notes_of=(str(error),))
    number = sum(row["hit"] for row in found.rows)
    return render("_hits.html", hits=found.rows[:MOST_HITS], number=number, total=len(found.rows), notes_of=found.notes)


@router.get("/plates/{name:path}/wells/{well}/parts/beside")
def beside_part(request: Request, name: str, well: str, run: Text = None, model: Text = None) -> HTMLResponse:
    """Return where a well stands beside the controls of its last time point."""
    engine = request.app.state.engine
    view = overview.well_view(engine, name, well, run=run, model=model)
    if not view.scores:
        return render("_beside.html", beside=None, last=None, said=())
    last = view.scores[-1]
    beside, said = overview.well_beside(
        engine, view.plate, parse_well(well), run=view.run, model=view.model, timepoint=last.timepoint
    )
    return render("_beside.html", beside=beside, last=last, said=said)


@router.get("/compounds/{name:path}/parts/curves")
def curves_part(request: Request, name: str, model: Text = None) -> HTMLResponse:
    """Return the fitted dose-response curves of a compound on its newest plates."""
    state = request.app.state
    key = ("curves", name.casefold(), model)

    def ask() -> Any:
        return overview.newest_curves(state.engine, name, model=model)

    (found, said), again = state.seldom.answer(key, state.changes.version, ask)
    plain = [] if found else charts.dose_charts(compound_history(state.engine, name, model=model).rows)
    by_unit = screencharts.curve_charts(found)
    return render(
        "_curves.html", name=name, curves=found, by_unit=by_unit, plain=plain, said=said, again=again, model=model
    )


@router.get("/compounds/{name:path}/parts/ec50")
def ec50_part(request: Request, name: str, plate: Text = None, run: Text = None, model: Text = None) -> HTMLResponse:
    """Return the EC50 of a compound on a plate over time."""
    state = request.app.state
    if plate is None:
        raise UnknownNameError("no plate was named; open the compound's page and choose one there")

    def ask() -> Any:
        return compounds.dose_responses(state.engine, plate, name, over_time=True, run=run, model=model)

    key = ("ec50", name.casefold(), plate, run, model)
    found, again = state.seldom.answer(key, state.changes.version, ask)
    chart = screencharts.ec50_chart(found.rows)
    address = f"/compounds/{quote(name, safe='')}/parts/ec50"
    return render("_ec50.html", rows=found.rows, chart=chart, said=found.notes, again=again, address=address,
                  plate=plate, run=run, model=model)  # fmt: skip


@router.get("/compounds/{name:path}/parts/bridge")
def bridge_part(request: Request, name: str) -> HTMLResponse:
    """Return all plates of a compound, of all models, in percent between their own controls."""
    found = compound_history(request.app.state.engine, name, bridge=True)
    rows = charts.last_rows(found.rows)
    return render("_bridge.html", rows=rows[:MOST_WELLS], total=len(rows), said=found.notes)


@router.get("/compounds/{name:path}/parts/wells")
def wells_part(request: Request, name: str, model: Text = None, skip: Number = None) -> HTMLResponse:
    """Return further wells of a compound."""
    rows = charts.last_rows(compound_history(request.app.state.engine, name, model=model).rows)
    return render("_wells.html", name=name, model=model, **some_wells(rows, skip or 0))
