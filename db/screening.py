"""Reading for statistics: sums of wells, of whole plates at once; histories of compounds; cells."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Float, case, cast, func, select

from db.queries import PlateRow, imaged
from db.schema import Cell, FieldScore, Image, Model, Plate, UtcDateTime, WellTreatment


class WellSums(NamedTuple):
    """Sums over a well's fields at a time point under a model: n cells, s summed scores, o cells over threshold.

    A tuple, as a plate has 40 000 of them; `newest` is the key of the last of its images.
    """

    plate_id: int
    well: str
    timepoint: int
    model_key: int
    n_images: int
    n_file_times: int
    acquired_at: datetime | None
    newest: int
    n_fields: int
    n_cells: int
    score_sum: float
    score_sum_sq: float
    field_ss: float
    field_sn: float
    field_nn: float
    n_over: int
    over_ss: float
    over_sn: float


def _counted() -> list[ColumnElement[bool]]:
    """Return the conditions on images that are part of their wells, those of the view `well_score`."""
    return [Image.state == "scored", Image.excluded == ""]


def _sums() -> list[ColumnElement[Any]]:
    n, s, o = cast(FieldScore.n, Float), FieldScore.sum, cast(FieldScore.n_over, Float)
    return [
        func.count(), func.sum(case((Image.acquired_from == "file", 1), else_=0)),
        func.coalesce(func.min(Image.acquired_at), None, type_=UtcDateTime()),
        func.max(Image.id), func.sum(case((FieldScore.n > 0, 1), else_=0)), func.sum(FieldScore.n),
        func.sum(s), func.sum(FieldScore.sum_sq), func.sum(s * s), func.sum(s * n), func.sum(n * n),
        func.sum(FieldScore.n_over), func.sum(o * o), func.sum(o * n),
    ]  # fmt: skip


def well_sums(
    connection: Connection,
    plate_id: int,
    model_key: int,
    timepoint: int | None = None,
    wells: Sequence[str] | None = None,
) -> list[WellSums]:
    """Return the sums of all wells of a plate, or of some, under one model, at all time points or at one."""
    at = [] if timepoint is None else [Image.timepoint == timepoint]
    at += [] if wells is None else [Image.well.in_(wells)]
    if not at:  # in the order of their keys the images of a whole plate, and their scores, lie side by side
        low, high = (select(end(Image.id)).where(Image.plate_id == plate_id) for end in (func.min, func.max))
        at = [Image.id.between(low.scalar_subquery(), high.scalar_subquery())]
    statement = (
        select(Image.plate_id, Image.well, Image.timepoint, FieldScore.model_id, *_sums())
        .join(FieldScore, FieldScore.image_id == Image.id)
        .where(Image.plate_id == plate_id, FieldScore.model_id == model_key, *_counted(), *at)
        .group_by(Image.plate_id, Image.well, Image.timepoint, FieldScore.model_id)
    )
    return [WellSums._make(row) for row in connection.execute(statement) if row[1] is not None and row[2] is not None]


def scored_wells(connection: Connection, plate_id: int, model_key: int) -> list[str]:
    """Return the wells of a plate of which an image counts under one model."""
    seen = imaged(plate_id)
    counts = (
        select(Image.id)
        .join(FieldScore, FieldScore.image_id == Image.id)
        .where(Image.plate_id == plate_id, Image.well == seen.c.well, Image.timepoint.is_not(None), *_counted())
        .where(FieldScore.model_id == model_key)
        .limit(1)  # the first by the index is enough
        .correlate(seen)
        .scalar_subquery()
    )
    return list(connection.execute(select(seen.c.well).where(counts.is_not(None))).scalars())


def mean_scores(
    connection: Connection, plate_id: int, model_key: int, wells: Sequence[str]
) -> list[tuple[str, int, float]]:
    """Return (well, time point, mean score) of some wells under one model, where they have cells."""
    cells = func.sum(FieldScore.n)
    statement = (
        select(Image.well, Image.timepoint, func.sum(FieldScore.sum) / cells)
        .join(FieldScore, FieldScore.image_id == Image.id)
        .where(Image.plate_id == plate_id, FieldScore.model_id == model_key, Image.well.in_(wells), *_counted())
        .group_by(Image.well, Image.timepoint)
        .having(cells > 0)
    )
    return [(row[0] or "", row[1], row[2]) for row in connection.execute(statement) if row[1] is not None]


def history_sums(connection: Connection, compound_ids: Sequence[int]) -> list[WellSums]:
    """Return the sums of every well that holds one of these compounds, on every plate, under every model."""
    wells = (
        select(WellTreatment.plate_id, WellTreatment.well)
        .where(WellTreatment.compound_id.in_(compound_ids))
        .distinct()
        .subquery()
    )
    statement = (
        select(Image.plate_id, Image.well, Image.timepoint, FieldScore.model_id, *_sums())
        .select_from(wells)
        .join(Image, (Image.plate_id == wells.c.plate_id) & (Image.well == wells.c.well))
        .join(FieldScore, FieldScore.image_id == Image.id)
        .where(*_counted())
        .group_by(Image.plate_id, Image.well, Image.timepoint, FieldScore.model_id)
    )
    return [WellSums._make(row) for row in connection.execute(statement) if row[2] is not None]


def scored_at(
    connection: Connection, image_ids: Sequence[int], model_keys: Sequence[int]
) -> dict[tuple[int, int], datetime]:
    """Return when some images were scored, by (image, model)."""
    statement = select(FieldScore.image_id, FieldScore.model_id, FieldScore.scored_at).where(
        FieldScore.image_id.in_(image_ids), FieldScore.model_id.in_(model_keys)
    )
    return {(row[0], row[1]): row[2] for row in connection.execute(statement)}


def control_means(
    connection: Connection, plate_ids: Sequence[int], model_key: int
) -> dict[tuple[int, int, str], list[float]]:
    """Return the mean scores of the pure control wells by (plate, time point, role) of some plates under a model."""
    treatments = (
        select(
            WellTreatment.plate_id,
            WellTreatment.well,
            func.min(WellTreatment.role).label("role"),
        )
        .where(WellTreatment.plate_id.in_(plate_ids))
        .group_by(WellTreatment.plate_id, WellTreatment.well)
        .having(func.min(WellTreatment.role) == func.max(WellTreatment.role))
        .subquery()
    )
    statement = (
        select(Image.plate_id, Image.timepoint, treatments.c.role, func.sum(FieldScore.sum) / func.sum(FieldScore.n))
        .join(treatments, (Image.plate_id == treatments.c.plate_id) & (Image.well == treatments.c.well))
        .join(FieldScore, FieldScore.image_id == Image.id)
        .where(treatments.c.role.in_(("negative", "positive")), FieldScore.model_id == model_key, *_counted())
        .group_by(Image.plate_id, Image.timepoint, treatments.c.role, Image.well)
        .having(func.sum(FieldScore.n) > 0)
    )
    found: dict[tuple[int, int, str], list[float]] = {}
    for plate_id, timepoint, role, mean in connection.execute(statement):
        found.setdefault((plate_id, timepoint, role), []).append(mean)
    return found


def coverage(connection: Connection, plate_id: int, model_key: int, timepoint: int) -> dict[str, float]:
    """Return the mean share of each well's fields that looks covered by cells, where it was measured."""
    share = FieldScore.quality["coverage"].as_float()
    statement = (
        select(Image.well, func.avg(share))
        .join(FieldScore, FieldScore.image_id == Image.id)
        .where(Image.plate_id == plate_id, FieldScore.model_id == model_key, Image.timepoint == timepoint, *_counted())
        .group_by(Image.well)
    )
    return {well: float(mean) for well, mean in connection.execute(statement) if well and mean is not None}


def plates_by_id(connection: Connection, plate_ids: Sequence[int]) -> dict[int, PlateRow]:
    """Return plates by their key, without the time of their first image (see `first_images`)."""
    columns = (Plate.id, Plate.name, Plate.run, Plate.wells, Plate.frame_interval_s, Plate.treated_at, Plate.choice)
    statement = select(*columns).where(Plate.id.in_(plate_ids))
    return {row[0]: PlateRow(*row, first_at=None, first_timepoint=None) for row in connection.execute(statement)}


def first_images(connection: Connection, plate_ids: Sequence[int]) -> dict[int, tuple[datetime | None, int | None]]:
    """Return when the first scored image of each plate was taken, and its time point."""
    statement = (
        select(
            Image.plate_id,
            func.coalesce(func.min(Image.acquired_at), None, type_=UtcDateTime()),
            func.min(Image.timepoint),
        )
        .where(Image.plate_id.in_(plate_ids), Image.state == "scored")
        .group_by(Image.plate_id)
    )
    return {row[0]: (row[1], row[2]) for row in connection.execute(statement) if row[0] is not None}


def models(connection: Connection) -> dict[int, tuple[str, str]]:
    """Return (model id, demonstration warning) of every model by its key, in the order in which they came."""
    statement = select(Model.id, Model.model_id, Model.demonstration).order_by(Model.id)
    return {row[0]: (row[1], row[2]) for row in connection.execute(statement)}


def passport(connection: Connection, model_key: int) -> dict[str, Any]:
    """Return the passport of a model."""
    return dict(connection.execute(select(Model.passport).where(Model.id == model_key)).scalar_one())


def image_states(connection: Connection, plate_id: int) -> dict[str, int]:
    """Return the number of images of a plate in each state."""
    statement = select(Image.state, func.count()).where(Image.plate_id == plate_id).group_by(Image.state)
    return {row[0]: row[1] for row in connection.execute(statement)}


def cells(
    connection: Connection, plate_id: int, model_key: int
) -> Iterator[tuple[str, int, int, int, float, float, float]]:
    """Yield (well, time point, field, cell, x, y, score) of every cell of a plate under one model."""
    statement = (
        select(Image.well, Image.timepoint, Image.field, Cell.idx, Cell.x, Cell.y, Cell.score)
        .join(Cell, Cell.image_id == Image.id)
        .where(Image.plate_id == plate_id, Cell.model_id == model_key, *_counted())
        .order_by(Image.well, Image.timepoint, Image.field, Cell.idx)
        .execution_options(yield_per=10_000)
    )
    for row in connection.execute(statement):
        yield (row[0] or "", row[1] or 0, row[2] or 0, row[3], row[4], row[5], row[6])
