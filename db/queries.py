"""Reading: rows for plates, time courses, compounds. Numbers are derived from the sums of `well_score`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Integer,
    RowMapping,
    and_,
    column,
    func,
    literal_column,
    nulls_first,
    or_,
    select,
    table,
)

from db.schema import STATES, Compound, CompoundAlias, FieldScore, Image, Model, Plate, UtcDateTime, WellTreatment

WELL_SCORE = table(
    "well_score",
    *(column(name, Integer) for name in ("plate_id", "timepoint", "model_id", "n_images", "n_cells", "n_fields")),
    *(column(name) for name in ("well", "score_sum", "score_sum_sq", "n_over", "field_ss", "field_sn", "field_nn")),
    column("acquired_at", UtcDateTime()),
    column("n_file_times", Integer),
)


INCHIKEY = "_" * 14 + "-" + "_" * 10 + "-_"
"""How an InChIKey looks among the aliases: two vendors' names with the same one are the same substance."""


@dataclass(frozen=True, slots=True)
class PlateRow:
    """One run of a plate; `first_at` and `first_timepoint` are of its first scored image."""

    plate_id: int
    name: str
    run: str
    wells: int | None
    frame_interval_s: float | None
    treated_at: datetime | None
    choice: str
    first_at: datetime | None
    first_timepoint: int | None


@dataclass(frozen=True, slots=True)
class TreatmentRow:
    """One compound (or none) in one well."""

    plate_id: int
    well: str
    compound: str
    role: str
    dose: float | None
    dose_unit: str
    dose_um: float | None
    treated_at: datetime | None


def plate_runs(connection: Connection, name: str | None = None) -> list[PlateRow]:
    """Return the runs of the plates of that name (in any case) or of all plates, the earliest imaged first."""
    scored = (Image.plate_id == Plate.id, Image.state == literal_column("'scored'"))
    first_at = select(func.min(Image.acquired_at)).where(*scored).scalar_subquery()
    timepoint = select(func.min(Image.timepoint)).where(*scored).scalar_subquery()
    statement = select(
        Plate.id, Plate.name, Plate.run, Plate.wells, Plate.frame_interval_s, Plate.treated_at, Plate.choice,
        func.coalesce(first_at, None, type_=UtcDateTime()).label("first_at"), timepoint,
    )  # fmt: skip
    if name is not None:
        statement = statement.where(Plate.key == name.casefold())
    return [
        PlateRow(*row)
        for row in connection.execute(statement.order_by(nulls_first(literal_column("first_at")), Plate.id))
    ]


def images_apart(connection: Connection, plate_id: int) -> tuple[int, int, int, int]:
    """Return how many images of a plate are refused, failed, scored though unfit, and taken out by a person."""
    reason, excluded = Image.reason > literal_column("''"), Image.excluded > literal_column("''")  # as the indexes say
    wanted = (
        (Image.state == "refused", reason),
        (Image.state == "failed", reason),
        (Image.state == "scored", reason),
        (excluded, Image.state != "superseded"),
    )
    parts = [select(func.count()).where(Image.plate_id == plate_id, *where).scalar_subquery() for where in wanted]
    row = connection.execute(select(*parts)).one()
    return row[0], row[1], row[2], row[3]


def plate_models(connection: Connection, plate_id: int) -> list[tuple[int, str, str]]:
    """Return (key, model id, demonstration warning) of the models that scored a plate, the latest last.

    The latest is the one whose score of the newest image that it scored was made last.
    """
    low, high = (
        select(end(Image.id)).where(Image.plate_id == plate_id).scalar_subquery() for end in (func.min, func.max)
    )
    scored = (FieldScore.model_id == Model.id, FieldScore.image_id.between(low, high))
    newest = (
        select(FieldScore.scored_at)
        .join(Image, Image.id == FieldScore.image_id)
        .where(*scored, Image.plate_id == plate_id, Image.state == "scored")
        .order_by(FieldScore.image_id.desc())
        .limit(1)
        .correlate(Model)
        .scalar_subquery()
    )
    found = select(Model.id, Model.model_id, Model.demonstration, newest.label("at")).subquery()
    statement = select(found.c.id, found.c.model_id, found.c.demonstration).where(found.c.at.is_not(None))
    return [(row[0], row[1], row[2]) for row in connection.execute(statement.order_by(found.c.at, found.c.id))]


def well_scores(
    connection: Connection,
    plate_id: int,
    model_key: int,
    wells: Sequence[str] | None = None,
    timepoint: int | None = None,
) -> list[RowMapping]:
    """Return the sums of every well and time point (or of those asked for) of a plate under one model, in order."""
    statement = select(WELL_SCORE).where(WELL_SCORE.c.plate_id == plate_id, WELL_SCORE.c.model_id == model_key)
    if wells is not None:
        statement = statement.where(WELL_SCORE.c.well.in_(wells))
    if timepoint is not None:
        statement = statement.where(WELL_SCORE.c.timepoint == timepoint)
    statement = statement.order_by(WELL_SCORE.c.well, WELL_SCORE.c.timepoint)
    return list(connection.execute(statement).mappings())


def treatments(connection: Connection, plate_id: int, wells: Sequence[str] | None = None) -> list[TreatmentRow]:
    """Return what is in the wells of a plate, all unless some are named."""
    here = WellTreatment.plate_id == plate_id
    return _treatments(connection, here if wells is None else and_(here, WellTreatment.well.in_(wells)))


def control_wells(connection: Connection, plate_id: int) -> list[str]:
    """Return the negative control wells of a plate."""
    where = (WellTreatment.plate_id == plate_id, WellTreatment.role == "negative")
    statement = select(WellTreatment.well).where(*where).distinct().order_by(WellTreatment.well)
    return list(connection.execute(statement).scalars())


def mean_course(
    connection: Connection, plate_id: int, model_key: int, wells: Sequence[str]
) -> list[tuple[int, int, float, float]]:
    """Return (time point, wells, Σ of their mean scores, Σ of the squares of these) over some wells of a plate."""
    mean = WELL_SCORE.c.score_sum / WELL_SCORE.c.n_cells
    statement = (
        select(WELL_SCORE.c.timepoint, func.count(), func.sum(mean), func.sum(mean * mean))
        .where(WELL_SCORE.c.plate_id == plate_id, WELL_SCORE.c.model_id == model_key)
        .where(WELL_SCORE.c.well.in_(wells), WELL_SCORE.c.n_cells > 0)
        .group_by(WELL_SCORE.c.timepoint)
        .order_by(WELL_SCORE.c.timepoint)
    )
    return [(row[0], row[1], row[2], row[3]) for row in connection.execute(statement)]


def demonstration_of(connection: Connection, model_key: int) -> str:
    """Return a model's warning that it is for demonstration alone, "" for one fit for use."""
    return connection.execute(select(Model.demonstration).where(Model.id == model_key)).scalar_one()


def treatments_of(connection: Connection, compound_ids: Sequence[int]) -> list[TreatmentRow]:
    """Return every well that holds one of these compounds."""
    return _treatments(connection, WellTreatment.compound_id.in_(compound_ids))


def _treatments(connection: Connection, where: Any) -> list[TreatmentRow]:
    statement = (
        select(
            WellTreatment.plate_id,
            WellTreatment.well,
            func.coalesce(Compound.name, ""),
            WellTreatment.role,
            WellTreatment.dose,
            WellTreatment.dose_unit,
            WellTreatment.dose_um,
            WellTreatment.treated_at,
        )
        .outerjoin(Compound, Compound.id == WellTreatment.compound_id)
        .where(where)
        .order_by(WellTreatment.plate_id, WellTreatment.well, WellTreatment.id)
    )
    return [TreatmentRow(*row) for row in connection.execute(statement)]


def treated_wells(connection: Connection, plate_id: int) -> list[str]:
    """Return the wells of a plate that its plate map says something of."""
    statement = select(WellTreatment.well).where(WellTreatment.plate_id == plate_id).distinct()
    return list(connection.execute(statement).scalars())


def find_compounds(connection: Connection, name: str) -> list[tuple[int, str]]:
    """Return (key, name) of the compounds of that name or alias, in any case, and of those with the same InChIKey."""
    key = name.strip().casefold()
    aliased = select(CompoundAlias.compound_id).where(CompoundAlias.key == key)
    named = select(Compound.id).where(or_(Compound.key == key, Compound.id.in_(aliased)))
    structures = select(CompoundAlias.key).where(CompoundAlias.compound_id.in_(named), CompoundAlias.key.like(INCHIKEY))
    alike = select(CompoundAlias.compound_id).where(CompoundAlias.key.in_(structures))
    statement = select(Compound.id, Compound.name).where(or_(Compound.id.in_(named), Compound.id.in_(alike)))
    return [(row[0], row[1]) for row in connection.execute(statement.order_by(Compound.name))]


def compound_names(connection: Connection, part: str = "", *, limit: int | None = None, skip: int = 0) -> list[str]:
    """Return the names of compounds, in any case with `part` in them: at most `limit` after the first `skip`."""
    statement = select(Compound.name).order_by(Compound.name)
    if part:
        statement = statement.where(Compound.key.contains(part.strip().casefold(), autoescape=True))
    return list(connection.execute(statement.limit(limit).offset(skip)).scalars())


def imaged_wells(connection: Connection, plate_id: int) -> list[str]:
    """Return the wells of a plate that any image was seen of, whatever became of it."""
    return [well for well in connection.execute(select(imaged(plate_id).c.well)).scalars() if well]


def imaged(plate_id: int) -> CTE:
    """Return the wells of `imaged_wells`, and NULL, as a part of a statement: from well to well by the index."""
    first = select(func.min(Image.well).label("well")).where(Image.plate_id == plate_id).cte("seen", recursive=True)
    following = select(func.min(Image.well)).where(Image.plate_id == plate_id, Image.well > first.c.well)
    return first.union_all(select(following.scalar_subquery()).where(first.c.well.is_not(None)))


def has_images(connection: Connection, plate_id: int, well: str) -> bool:
    """Say whether any image of a well was seen."""
    statement = select(Image.id).where(Image.plate_id == plate_id, Image.well == well).limit(1)
    return connection.execute(statement).first() is not None


def time_points(connection: Connection, plate_id: int) -> list[tuple[int, datetime | None]]:
    """Return the time points of which an image of a plate is scored, and when the first image of each was taken."""
    # From each time point to the next one by the index: a plate has few of them, and many images.
    scored = (Image.plate_id == plate_id, Image.state == literal_column("'scored'"))
    stop = select(func.min(Image.timepoint).label("at")).where(*scored).cte("stop", recursive=True)
    following = select(func.min(Image.timepoint)).where(*scored, Image.timepoint > stop.c.at).scalar_subquery()
    stops = stop.union_all(select(following).where(stop.c.at.is_not(None)))
    first = select(func.min(Image.acquired_at)).where(*scored, Image.timepoint == stops.c.at).scalar_subquery()
    rows = connection.execute(select(stops.c.at, first).where(stops.c.at.is_not(None)))
    return [(row[0], row[1]) for row in rows]


def last_timepoints(connection: Connection, plate_id: int, number: int) -> list[int]:
    """Return the last time points of which an image of a plate is scored, the last one first."""
    found: list[int] = []
    scored = (Image.plate_id == plate_id, Image.state == literal_column("'scored'"))
    while len(found) < number:
        before = [Image.timepoint < found[-1]] if found else []
        last = connection.execute(select(func.max(Image.timepoint)).where(*scored, *before)).scalar()
        if last is None:
            break
        found.append(last)
    return found


def images_where(plate_ids: Sequence[int] | None, state: str | None, folder: Path | None) -> list[ColumnElement[bool]]:
    """Return the conditions on images: of these plates, in this state, in or below this folder; None for any."""
    wanted: list[ColumnElement[bool]] = []
    if plate_ids is not None:
        wanted.append(Image.plate_id.in_(plate_ids))
    if state is not None:
        wanted.append(Image.state == state)
    if folder is not None:
        prefix = str(folder / "_")[:-1]  # ends in the system's separator
        wanted.append(or_(Image.path == str(folder), func.substr(Image.path, 1, len(prefix)) == prefix))
    return wanted


def count_images(connection: Connection, wanted: Sequence[ColumnElement[bool]]) -> int:
    """Return the number of images under these conditions."""
    return int(connection.execute(select(func.count()).select_from(Image).where(*wanted)).scalar_one())


def image_rows(
    connection: Connection, wanted: Sequence[ColumnElement[bool]], *, limit: int | None = None, skip: int = 0
) -> list[RowMapping]:
    """Return what the ledger says of images, by path: at most `limit` of them after the first `skip`."""
    statement = (
        select(
            Image.state, Plate.name.label("plate"), Plate.run, Image.well, Image.field, Image.timepoint,
            Image.channel, Image.z, Image.acquired_at, Image.seen_at, Image.path, Image.page, Image.reason,
            Image.excluded,
        )
        .outerjoin(Plate, Plate.id == Image.plate_id)
        .where(*wanted)
        .order_by(Image.path, Image.page, Image.generation)
        .limit(limit)
        .offset(skip)
    )  # fmt: skip
    return list(connection.execute(statement).mappings())


def image_reasons(connection: Connection, wanted: Sequence[ColumnElement[bool]]) -> dict[str, list[tuple[str, str]]]:
    """Return (path, reason) of the images of each state, the states in the order in which the schema names them."""
    found: dict[str, list[tuple[str, str]]] = {}
    for state, path, reason in connection.execute(select(Image.state, Image.path, Image.reason).where(*wanted)):
        found.setdefault(state, []).append((path, reason))
    return {state: found[state] for state in STATES if state in found}


def channels_seen(
    connection: Connection, wanted: Sequence[ColumnElement[bool]]
) -> list[tuple[str, dict[str, str], list[int]]]:
    """Return (plate, labels by channel, focal planes) of the plates of these images."""
    plates = select(Image.plate_id).where(*wanted).distinct()
    statement = select(Plate.name, Plate.channels, Plate.planes).where(Plate.id.in_(plates)).order_by(Plate.id)
    return [(name, dict(channels), list(planes)) for name, channels, planes in connection.execute(statement)]


def hours_since(
    plate: PlateRow, treated_at: datetime | None, timepoint: int, acquired_at: datetime | None, by_file_time: bool
) -> tuple[datetime | None, float | None]:
    """Return (when, hours since treatment or since the plate's first image) of a time point.

    Where the files carry no time (`by_file_time`) and the plate has a frame interval, the time point's number
    counts instead.
    """
    if by_file_time and plate.frame_interval_s is not None and plate.first_timepoint is not None and plate.first_at:
        acquired_at = plate.first_at + timedelta(seconds=plate.frame_interval_s * (timepoint - plate.first_timepoint))
    origin = treated_at or plate.treated_at or plate.first_at
    if acquired_at is None or origin is None:
        return acquired_at, None
    return acquired_at, (acquired_at - origin).total_seconds() / 3600
