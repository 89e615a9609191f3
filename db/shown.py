"""Reading for screens: what the page and the metrics count, and single images with their cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Float, RowMapping, and_, cast, func, literal_column, or_, select, true

from db.engine import utc_now
from db.schema import Cell, FieldScore, Image, Model, Plate

OPEN_STATES = ("refused", "failed")
_EMPTY: ColumnElement[str] = literal_column("''")  # a literal, by which SQLite finds the partial index


@dataclass(frozen=True, slots=True)
class ImagePlace:
    """Where an image lies, for the server alone: paths are never shown."""

    image_id: int
    path: str
    page: int
    pixel_um: float | None
    state: str
    sha256: str | None


def state_counts(connection: Connection, plate_id: int | None = None) -> dict[int | None, dict[str, int]]:
    """Return by plate how many images stand in each state, and under `excluded` how many a person took out."""
    where = () if plate_id is None else (Image.plate_id == plate_id,)
    found: dict[int | None, dict[str, int]] = {}
    states = select(Image.plate_id, Image.state, func.count()).where(*where).group_by(Image.plate_id, Image.state)
    for key, state, number in connection.execute(states):
        found.setdefault(key, {})[state] = number
    taken = (Image.excluded > _EMPTY, Image.state != "superseded", *where)
    for key, number in connection.execute(select(Image.plate_id, func.count()).where(*taken).group_by(Image.plate_id)):
        found[key]["excluded"] = number
    return found


def imaged_span(connection: Connection, plate_id: int) -> tuple[datetime | None, datetime | None]:
    """Return when the first and the last scored image of a plate were taken."""
    where = (Image.plate_id == plate_id, Image.state == literal_column("'scored'"))
    first, last = (select(end(Image.acquired_at)).where(*where).scalar_subquery() for end in (func.min, func.max))
    row = connection.execute(select(first, last)).one()
    return row[0], row[1]


def is_timed_by_files(connection: Connection, plate_id: int) -> bool:
    """Say whether the first scored image of a plate did not say itself when it was taken."""
    statement = select(Image.acquired_from).where(Image.plate_id == plate_id, Image.state == "scored")
    return connection.execute(statement.order_by(Image.timepoint).limit(1)).scalar() == "file"


def unfit_images(
    connection: Connection, plate_id: int, since: int | None, until: int | None, wells: Sequence[str]
) -> list[RowMapping]:
    """Return well, time point, state, reason, path and time of the images of a plate that failed or were refused.

    From the time point `since` to `until`, None for no limit; of `wells` all of them.
    """
    columns = (Image.well, Image.timepoint, Image.state, Image.reason, Image.path, Image.acquired_at)
    where = (Image.plate_id == plate_id, Image.state.in_(OPEN_STATES), Image.reason > _EMPTY, Image.well.is_not(None))
    between = and_(
        true() if since is None else Image.timepoint >= since, true() if until is None else Image.timepoint <= until
    )
    at = or_(between, Image.well.in_(wells)) if wells else between
    statement = select(*columns).where(*where, at).order_by(Image.timepoint, Image.id)
    return list(connection.execute(statement).mappings())


def excluded_images(connection: Connection, plate_id: int) -> list[tuple[str, int | None]]:
    """Return (well, time point) of the images of a plate that a person took out."""
    where = (Image.plate_id == plate_id, Image.excluded > _EMPTY, Image.state != "superseded", Image.well.is_not(None))
    rows = connection.execute(select(Image.well, Image.timepoint).where(*where))
    return [(row[0], row[1]) for row in rows if row[0] is not None]


def sharpness(
    connection: Connection, plate_id: int, model_key: int, timepoints: Sequence[int]
) -> dict[tuple[str, int], float]:
    """Return the mean sharpness of the fields by well and time point: of cells, else of the liveliest tiles."""
    measured = func.coalesce(_quality("cell_sharpness"), _quality("tile_sharpness"))
    statement = (
        select(Image.well, Image.timepoint, func.avg(measured))
        .join(FieldScore, FieldScore.image_id == Image.id)
        .where(Image.plate_id == plate_id, Image.state == "scored", Image.timepoint.in_(timepoints))
        .where(FieldScore.model_id == model_key, Image.excluded == "")
        .group_by(Image.timepoint, Image.well)
    )
    return {(row[0], row[1]): row[2] for row in connection.execute(statement) if row[2] is not None}


def _quality(name: str) -> ColumnElement[float | None]:
    return cast(FieldScore.quality[name].as_string(), Float)


_FIELD = (
    Image.id, Image.plate_id, Image.well, Image.field, Image.timepoint, Image.channel, Image.z, Image.acquired_at,
    Image.state, Image.reason, Image.excluded, Image.name, Image.path, Image.page, Image.pixel_um,
)  # fmt: skip


def field_rows(
    connection: Connection, model_key: int | None, where: Sequence[ColumnElement[bool]], limit: int = 1000
) -> list[RowMapping]:
    """Return images, superseded ones apart, with their sums and quality under a model."""
    score = (FieldScore.n, FieldScore.sum, FieldScore.quality)
    statement = (
        select(*_FIELD, *score)
        .outerjoin(FieldScore, (FieldScore.image_id == Image.id) & (FieldScore.model_id == (model_key or 0)))
        .where(*where, Image.state != "superseded")
        .order_by(Image.well, Image.timepoint, Image.field, Image.channel, Image.z, Image.id)
        .limit(limit)
    )
    return list(connection.execute(statement).mappings())


def last_timepoint(connection: Connection, plate_id: int, well: str, state: str | None = None) -> int | None:
    """Return the last time point at which a well was imaged, or has an image in a state."""
    where = [Image.plate_id == plate_id, Image.well == well] + ([Image.state == state] if state else [])
    return connection.execute(select(func.max(Image.timepoint)).where(*where)).scalar()


def well_timepoints(connection: Connection, plate_id: int, well: str) -> list[int]:
    """Return the time points of which a well has an image, whatever became of it unless it is superseded."""
    where = (Image.plate_id == plate_id, Image.well == well, Image.state != "superseded", Image.timepoint.is_not(None))
    statement = select(Image.timepoint).where(*where).distinct().order_by(Image.timepoint)
    return [at for at in connection.execute(statement).scalars() if at is not None]


def cells_of(connection: Connection, image_id: int, model_key: int) -> list[tuple[int, float, float, float]]:
    """Return (number, x, y, score) of the cells of an image under a model."""
    statement = select(Cell.idx, Cell.x, Cell.y, Cell.score)
    where = (Cell.image_id == image_id, Cell.model_id == model_key)
    return [(row[0], row[1], row[2], row[3]) for row in connection.execute(statement.where(*where).order_by(Cell.idx))]


def ranked_cells(
    connection: Connection, images: Sequence[int], model_id: str, most: int
) -> list[tuple[int, int, float]]:
    """Return (image, number, score) of cells of images from the lowest score to the highest, evenly picked by rank."""
    statement = (
        select(Cell.image_id, Cell.idx, Cell.score)
        .join(Model, Model.id == Cell.model_id)
        .where(Cell.image_id.in_(images), Model.model_id == model_id)
        .order_by(Cell.score, Cell.image_id, Cell.idx)
    )
    found = [(row[0], row[1], row[2]) for row in connection.execute(statement)]
    picked = min(most, len(found))
    return [found[place * (len(found) - 1) // max(picked - 1, 1)] for place in range(picked)]


def image_models(connection: Connection, image_id: int) -> list[RowMapping]:
    """Return key (`id`), `model_id`, `demonstration` and `passport` of the models that scored an image, latest last."""
    statement = (
        select(Model.id, Model.model_id, Model.demonstration, Model.passport)
        .join(FieldScore, FieldScore.model_id == Model.id)
        .where(FieldScore.image_id == image_id)
        .order_by(FieldScore.scored_at, Model.id)
    )
    return list(connection.execute(statement).mappings())


def image_place(connection: Connection, image_id: int) -> ImagePlace | None:
    """Return where an image lies, None for an unknown one."""
    columns = (Image.id, Image.path, Image.page, Image.pixel_um, Image.state, Image.sha256)
    row = connection.execute(select(*columns).where(Image.id == image_id)).first()
    return None if row is None else ImagePlace(*row)


def scored_since(connection: Connection, window_s: float) -> tuple[int, int]:
    """Return how many images and cells were scored in the last `window_s` seconds."""
    since = utc_now() - timedelta(seconds=window_s)
    statement = select(func.count(), func.coalesce(func.sum(FieldScore.n), 0)).where(FieldScore.scored_at >= since)
    row = connection.execute(statement).one()
    return int(row[0]), int(row[1])


def last_scored(connection: Connection, number: int) -> list[RowMapping]:
    """Return the images that were scored last, the last one first, with plate, run, `scored_at` and `seen_at`."""
    columns = (Image.id, Image.well, Image.field, Image.timepoint, Image.name, Image.seen_at, Plate.name.label("plate"))
    statement = (
        select(*columns, Plate.run, FieldScore.scored_at)
        .select_from(FieldScore)
        .join(Image, Image.id == FieldScore.image_id)
        .outerjoin(Plate, Plate.id == Image.plate_id)
        .order_by(FieldScore.scored_at.desc())
        .limit(number)
    )
    return list(connection.execute(statement).mappings())


def cell_total(connection: Connection) -> int:
    """Return how many cells were scored, each once for every model."""
    statement = select(func.coalesce(func.sum(FieldScore.n), 0))
    return int(connection.execute(statement).scalar_one())


def models_known(connection: Connection) -> list[RowMapping]:
    """Return every model that has scored something, the latest added last."""
    columns = (Model.id, Model.model_id, Model.demonstration, Model.passport, Model.added_at)
    return list(connection.execute(select(*columns).order_by(Model.added_at, Model.id)).mappings())


def change_token(connection: Any, dialect: str) -> tuple[Any, ...]:
    """Return what differs after every commit of somebody else, as this driver's own `connection` sees it.

    The connection must not be in a transaction, which would show it the past.
    """
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA data_version" if dialect == "sqlite" else "SELECT pg_current_snapshot()::text")
        return tuple(cursor.fetchone())
    finally:
        cursor.close()
        if dialect != "sqlite":
            connection.rollback()
