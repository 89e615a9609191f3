"""What the page and the API show of plates, wells and fields: the numbers of `results`, laid out for a screen."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, Engine, RowMapping

from db import incidents as db_incidents
from db import queries, shown
from db.engine import utc_now
from db.incidents import IncidentRow
from db.plates import plate_names
from db.queries import PlateRow, TreatmentRow
from sesmo_live import results, screens
from sesmo_live.overview.views import Counts, IncidentView, PlateMap, PlateSummary, TimePoint, WellOnMap
from sesmo_live.reasons import without_paths
from sesmo_live.records import WellScore
from sesmo_live.wells import PLATE_SHAPES, smallest_plate, well_position

FOLDER_KINDS = frozenset({"failures", "refusals", "share-gone", "watching"})
"""Kinds of incidents that concern every plate of the folder that they are about."""


BESIDE = screens.WELL_COLUMNS[len(results.PLATE_COLUMNS) :]
"""What stands beside the controls of a well's time point."""


def plates(engine: Engine, *, limit: int | None = None, skip: int = 0) -> tuple[PlateSummary, ...]:
    """Return the runs of all plates, the latest imaged first: at most `limit` of them, after the first `skip`."""
    with engine.connect() as connection:
        known = plate_names(connection)
        open_now = db_incidents.open_incidents(connection)
        found = []
        for plate in queries.plate_runs(connection)[::-1][skip : None if limit is None else skip + limit]:
            about = [row for row in open_now if concerns(row, plate.plate_id, known[plate.plate_id][1])]
            counts = shown.state_counts(connection, plate.plate_id).get(plate.plate_id, {})
            found.append(_summary(connection, plate, counts, len(about)))
    return tuple(found)


def _summary(connection: Connection, plate: PlateRow, counts: Mapping[str, int], incidents: int) -> PlateSummary:
    models = queries.plate_models(connection, plate.plate_id)
    imaged = queries.imaged_wells(connection, plate.plate_id)
    first, last = shown.imaged_span(connection, plate.plate_id)
    return PlateSummary(
        name=plate.name,
        run=plate.run,
        wells=_size(plate, {*imaged, *queries.treated_wells(connection, plate.plate_id)}),
        images=counts_of(counts),
        first_at=first,
        last_at=last,
        model=models[-1][1] if models else "",
        demonstration=models[-1][2] if models else "",
        incidents=incidents,
    )


def _size(plate: PlateRow, wells: Iterable[str]) -> int:
    """Return how many wells a plate has: as declared, or as many as it takes to hold all `wells`, the larger."""
    return max(plate.wells or 0, smallest_plate(list(wells)))


def counts_of(states: Mapping[str, int]) -> Counts:
    """Return counts with their total."""
    return Counts(**states, total=sum(number for state, number in states.items() if state != "excluded"))


def concerns(incident: IncidentRow, plate_id: int, folder: str) -> bool:
    """Say whether an incident is about a plate: its own, or one of the folder that it lies in."""
    if incident.plate_id is not None:
        return incident.plate_id == plate_id
    return bool(folder) and incident.kind in FOLDER_KINDS and Path(folder).is_relative_to(incident.subject)


def incident_view(row: IncidentRow, names: Mapping[int, tuple[str, str]]) -> IncidentView:
    """Return an incident with the names of plate and folder; `names` are name and folder of plates by key."""
    return IncidentView(
        incident_id=row.incident_id,
        kind=row.kind,
        subject=without_paths(row.subject, row.subject),
        message=without_paths(row.message, row.subject, *(folder for _, folder in names.values())),
        plate=names.get(row.plate_id or 0, ("", ""))[0],
        opened_at=row.opened_at,
        closed_at=row.closed_at,
        acknowledged_at=row.acknowledged_at,
    )


def incidents(engine: Engine, *, everything: bool = False, limit: int = 200) -> tuple[IncidentView, ...]:
    """Return the incidents that are open, the oldest first; or `everything`, the newest first."""
    with engine.connect() as connection:
        names = plate_names(connection)
        rows = (
            db_incidents.incidents(connection, limit=limit) if everything else db_incidents.open_incidents(connection)
        )
    return tuple(incident_view(row, names) for row in rows)


def incident(engine: Engine, incident_id: int) -> IncidentView:
    """Return one incident; raise UnknownNameError when there is none of that number."""
    with engine.connect() as connection:
        return incident_view(db_incidents.incident(connection, incident_id), plate_names(connection))


def plate_map(
    engine: Engine, plate: str, *, run: str | None = None, model: str | None = None, timepoint: int | None = None
) -> PlateMap:
    """Return a plate as a map: each well at its latest time point, or all as they stood at `timepoint` (replay).

    Raises UnknownNameError for a plate, run, model or time point that the database does not hold.
    """
    with engine.connect() as connection:
        found, notes = results.find_plate(connection, plate, run)
        chosen, more = results.pick_model(connection, found, model)
        treatments = queries.treatments(connection, found.plate_id)
        imaged = queries.imaged_wells(connection, found.plate_id)
        scores = results.scores_shown(connection, found, chosen, imaged, timepoint)
        stops = _stops(connection, found, treatments)
        unfit = _unfit(connection, found, imaged, scores, timepoint)
        taken_out = _taken_out(connection, found, scores, timepoint)
        sharp = _sharpness(connection, found, chosen, scores)
        stops_shown = sorted({score.timepoint for score in scores.values()})
        beside, said = screens.wells_beside(connection, found, chosen, stops_shown)
        about = plate_incidents(connection, found)
        runs = tuple(other.run for other in queries.plate_runs(connection, plate))
        demonstration = queries.demonstration_of(connection, chosen[0]) if chosen else ""
    what = results.contents(treatments)
    wells = sorted({*imaged, *what}, key=well_position)
    size = _size(found, wells)
    moments = [score.acquired_at for score in scores.values() if score.acquired_at]
    now = utc_now() if timepoint is None else max(moments, default=utc_now())
    alarms = _alarms(about)
    late = _late(scores, unfit) if timepoint is None else set(wells)
    return PlateMap(
        name=found.name,
        run=found.run,
        runs=runs,
        plate_wells=size,
        rows=PLATE_SHAPES[size][0],
        columns=PLATE_SHAPES[size][1],
        model=chosen[1] if chosen else "",
        demonstration=demonstration,
        timepoint=timepoint,
        timepoints=stops,
        wells=tuple(
            _well_on_map(
                well,
                scores.get(well),
                what.get(well),
                unfit.get(well, []),
                taken_out.get(well, 0),
                sharp,
                now,
                alarms if well in late else tuple(flag for flag in alarms if flag != "stalled"),
                beside,
            )
            for well in wells
        ),
        incidents=about,
        notes=notes + more + said,
    )


def _stops(connection: Connection, plate: PlateRow, treatments: list[TreatmentRow]) -> tuple[TimePoint, ...]:
    """Return the stops of the time slider, with hours since the first treatment, else since the first image."""
    treated = min(results.treated_at(treatments).values(), default=None)
    by_file_time = plate.frame_interval_s is not None and shown.is_timed_by_files(connection, plate.plate_id)
    stops = []
    for timepoint, first_at in queries.time_points(connection, plate.plate_id):
        moment, hours = queries.hours_since(plate, treated, timepoint, first_at, by_file_time)
        stops.append(TimePoint(timepoint, hours, moment))
    return tuple(stops)


def _unfit(
    connection: Connection,
    plate: PlateRow,
    imaged: list[str],
    scores: Mapping[str, WellScore],
    timepoint: int | None,
) -> dict[str, list[RowMapping]]:
    """Return the refused and failed images of each well: of the time point shown, or since its last score."""
    wells: dict[str, list[RowMapping]] = defaultdict(list)
    since = min((score.timepoint for score in scores.values()), default=None) if timepoint is None else timepoint
    unscored = [well for well in imaged if well not in scores] if timepoint is None else []
    for row in shown.unfit_images(connection, plate.plate_id, since, timepoint, unscored):
        if _is_shown(row["well"], row["timepoint"], scores, timepoint):
            wells[row["well"]].append(row)
    return wells


def _taken_out(
    connection: Connection, plate: PlateRow, scores: Mapping[str, WellScore], timepoint: int | None
) -> Counter[str]:
    images = shown.excluded_images(connection, plate.plate_id)
    return Counter(well for well, at in images if _is_shown(well, at, scores, timepoint))


def _is_shown(well: str, at: int | None, scores: Mapping[str, WellScore], timepoint: int | None) -> bool:
    if timepoint is not None:
        return at == timepoint
    score = scores.get(well)
    return score is None or at is None or at >= score.timepoint


def _sharpness(
    connection: Connection, plate: PlateRow, chosen: tuple[int, str] | None, scores: Mapping[str, WellScore]
) -> dict[tuple[str, int], float]:
    if chosen is None:
        return {}
    timepoints = sorted({score.timepoint for score in scores.values()})
    return shown.sharpness(connection, plate.plate_id, chosen[0], timepoints)


def plate_incidents(connection: Connection, plate: PlateRow) -> tuple[IncidentView, ...]:
    """Return the open incidents that concern a plate."""
    names = plate_names(connection)
    folder = names[plate.plate_id][1]
    rows = db_incidents.open_incidents(connection)
    return tuple(incident_view(row, names) for row in rows if concerns(row, plate.plate_id, folder))


def _alarms(about: Iterable[IncidentView]) -> tuple[str, ...]:
    """Return the flags that all wells of a plate carry because of its open incidents."""
    flags = {"stalled" if incident.kind == "stalled" else "alarm" for incident in about}
    return tuple(sorted(flags))


def _late(scores: Mapping[str, WellScore], unfit: Mapping[str, list[RowMapping]]) -> set[str]:
    """Return the wells whose image is overdue when a plate has stalled: those that the last round did not reach.

    They were imaged in the round before it; when none is left, the next round is overdue, and all wells of the last.
    """
    seen: dict[str, int] = {well: score.timepoint for well, score in scores.items()}
    for well, images in unfit.items():
        for image in images:
            if image["timepoint"] is not None:
                seen[well] = max(image["timepoint"], seen.get(well, image["timepoint"]))
    last = max(seen.values(), default=0)
    rounds = sorted(set(seen.values()))
    before = {well for well, at in seen.items() if len(rounds) > 1 and at == rounds[-2] == last - 1}
    return before or {well for well, at in seen.items() if at == last}


def _well_on_map(
    well: str,
    score: WellScore | None,
    what: results.Row | None,
    unfit: list[RowMapping],
    excluded: int,
    sharp: Mapping[tuple[str, int], float],
    now: datetime,
    alarms: tuple[str, ...],
    beside: Mapping[tuple[str, int | None], results.Row],
) -> WellOnMap:
    row, column = well_position(well)
    states = Counter(image["state"] for image in unfit)
    moments = [image["acquired_at"] for image in unfit] + [score.acquired_at if score else None]
    last = max((moment for moment in moments if moment is not None), default=None)
    line = results.plate_row(well, score, what or results.NOTHING)
    line.pop("model")
    more = beside.get((well, line["timepoint"])) or dict.fromkeys(BESIDE)
    return WellOnMap(
        **line,
        **more,
        row=row,
        column=column,
        acquired_at=score.acquired_at if score else None,
        focus=sharp.get((well, score.timepoint)) if score else None,
        age_s=None if last is None else max(0.0, (now - last).total_seconds()),
        refused=states["refused"],
        failed=states["failed"],
        excluded=excluded,
        reasons=tuple(dict.fromkeys(without_paths(image["reason"], image["path"]) for image in unfit)),
        flags=(*sorted(states), *alarms),
    )
