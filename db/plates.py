"""Writing plates and what is in their wells."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from db.engine import utc_now
from db.schema import Compound, CompoundAlias, Plate, WellTreatment
from sesmo_live.records import Treatment


def find_or_add_plate(connection: Connection, name: str, run: str, folder: str, **values: Any) -> int:
    """Return the key of one run of a plate, adding it the first time it is met.

    A plate that so far has only a plate map (no run yet) becomes this run; a later run of the same plate takes
    over the treatments of the run before it. `values` are further columns of `plate`.
    """
    same_name = connection.execute(select(Plate).where(Plate.name == name).order_by(Plate.id)).all()
    for plate in same_name:
        if plate.run == run:
            return int(plate.id)
    empty = [plate for plate in same_name if not plate.run]
    if empty:
        change = {"run": run, "folder": folder, **values}
        connection.execute(update(Plate).where(Plate.id == empty[0].id).values(change))
        return int(empty[0].id)
    row = {"name": name, "run": run, "folder": folder, "created_at": utc_now(), "channels": {}, "planes": [], **values}
    key = connection.execute(insert(Plate).values(row).returning(Plate.id)).scalar_one()
    if same_name:
        _copy_treatments(connection, same_name[-1].id, key)
    return key


def _copy_treatments(connection: Connection, source: int, target: int) -> None:
    columns = [c for c in WellTreatment.__table__.columns if c.name not in ("id", "plate_id")]
    rows = connection.execute(select(*columns).where(WellTreatment.plate_id == source)).mappings()
    copies = [{**row, "plate_id": target} for row in rows]
    if copies:
        connection.execute(insert(WellTreatment), copies)


def run_in_folder(connection: Connection, name: str, folder: str) -> str | None:
    """Return the run of plate `name` whose images lie in `folder`, None if there is none yet."""
    statement = select(Plate.run).where(Plate.name == name, Plate.folder == folder, Plate.run != "")
    return connection.execute(statement.order_by(Plate.id.desc())).scalar()


def import_treatments(
    connection: Connection, name: str, treatments: Iterable[Treatment], treated_at: datetime | None = None
) -> list[str]:
    """Replace what is in the wells of every run of plate `name`; return the runs.

    A plate that was never imaged is added without a run, which its first images then become.
    """
    runs = connection.execute(select(Plate.id, Plate.run).where(Plate.name == name)).all()
    if not runs:
        values = {"name": name, "run": "", "created_at": utc_now(), "channels": {}, "planes": []}
        key = connection.execute(insert(Plate).values(values).returning(Plate.id)).scalar_one()
        runs = connection.execute(select(Plate.id, Plate.run).where(Plate.id == key)).all()
    wells = [(item, _ensure_compound(connection, item)) for item in treatments]
    for plate_id, _ in runs:
        connection.execute(delete(WellTreatment).where(WellTreatment.plate_id == plate_id))
        connection.execute(update(Plate).where(Plate.id == plate_id).values(treated_at=treated_at))
        rows = [
            {
                "plate_id": plate_id,
                "well": item.well,
                "compound_id": compound,
                "role": item.role,
                "dose": item.dose,
                "dose_unit": item.dose_unit,
                "dose_um": item.dose_um,
                "treated_at": item.treated_at,
            }
            for item, compound in wells
        ]
        if rows:
            connection.execute(insert(WellTreatment), rows)
    return [run for _, run in runs]


def _ensure_compound(connection: Connection, treatment: Treatment) -> int | None:
    if not treatment.compound:
        return None
    key = treatment.compound.casefold()
    found = connection.execute(select(Compound.id).where(Compound.key == key)).scalar()
    if found is None:
        found = connection.execute(select(CompoundAlias.compound_id).where(CompoundAlias.key == key)).scalar()
    if found is None:
        values = {"name": treatment.compound, "key": key}
        found = connection.execute(insert(Compound).values(values).returning(Compound.id)).scalar_one()
    known = set(connection.execute(select(CompoundAlias.key).where(CompoundAlias.compound_id == found)).scalars())
    for alias in treatment.aliases:
        if alias.casefold() not in known | {key}:
            connection.execute(insert(CompoundAlias).values(key=alias.casefold(), compound_id=found, alias=alias))
            known.add(alias.casefold())
    return found


def choice_of(connection: Connection, plate_id: int) -> tuple[str | None, int | None, str, dict[str, str], list[int]]:
    """Return (channel, focal plane, why, labels by channel, focal planes met) of a plate."""
    columns = (Plate.channel, Plate.z, Plate.choice, Plate.channels, Plate.planes)
    row = connection.execute(select(*columns).where(Plate.id == plate_id)).one()
    return row.channel, row.z, row.choice, dict(row.channels), list(row.planes)


def set_choice(
    connection: Connection,
    plate_id: int,
    channel: str | None,
    z: int | None,
    why: str,
    channels: dict[str, str],
    planes: list[int],
) -> None:
    """Record which channel and focal plane of a plate are scored, why, and out of which."""
    values = {"channel": channel, "z": z, "choice": why, "channels": channels, "planes": planes}
    connection.execute(update(Plate).where(Plate.id == plate_id).values(values))


def set_treated_at(connection: Connection, plate_id: int, treated_at: datetime) -> None:
    """Record when a plate was treated."""
    connection.execute(update(Plate).where(Plate.id == plate_id).values(treated_at=treated_at))
