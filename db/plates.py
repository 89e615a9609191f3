"""Writing plates and what is in their wells."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, or_, select, update

from db.engine import utc_now
from db.schema import SHARED, Compound, CompoundAlias, Plate, WellTreatment
from sesmo_live.records import Treatment


def find_or_add_plate(connection: Connection, name: str, run: str, folder: str, source: str = "") -> int:
    """Return the key of one run of a plate, adding it the first time it is met; names differ by more than case.

    A plate that so far has only a plate map (no run yet) becomes this run; a later run of the same plate takes
    over the treatments of the run before it. Two microscopes' plates of one name and run are two runs: the second is
    called by its daemon (`source`), too.
    """
    statement = select(Plate.id, Plate.run, Plate.source).where(Plate.key == name.casefold()).order_by(Plate.id)
    same_name = connection.execute(statement).all()
    run = _run_of(run, source, {plate.run: plate.source for plate in same_name})
    for plate in same_name:
        if plate.run == run:
            return int(plate.id)
    empty = [plate for plate in same_name if not plate.run]
    if empty:
        values = {"run": run, "folder": folder, "source": source}
        connection.execute(update(Plate).where(Plate.id == empty[0].id).values(values))
        return int(empty[0].id)
    plate_id = _add_plate(connection, name, run, folder, source)
    if same_name:
        _copy_treatments(connection, same_name[-1].id, plate_id)
    return plate_id


def _run_of(run: str, source: str, taken: Mapping[str, str]) -> str:
    """Return the name of a daemon's run beside those `taken`, by run the daemon that it belongs to."""
    named = f"{run} {'shared' if source == SHARED else source or 'local'}"
    return named if taken.get(run, source) != source or taken.get(named) == source else run


def plate_names(connection: Connection) -> dict[int, tuple[str, str]]:
    """Return name and folder of every run of every plate by its key."""
    return {row.id: (row.name, row.folder) for row in connection.execute(select(Plate.id, Plate.name, Plate.folder))}


def plate_folders(connection: Connection, source: str) -> dict[int, tuple[str, str]]:
    """Return name and folder of the runs of plates of one source by their key."""
    statement = select(Plate.id, Plate.name, Plate.folder).where(Plate.source == source)
    return {row.id: (row.name, row.folder) for row in connection.execute(statement)}


def _add_plate(connection: Connection, name: str, run: str, folder: str, source: str = "") -> int:
    values = {"name": name, "key": name.casefold(), "run": run, "source": source, "folder": folder}
    statement = insert(Plate).values(**values, channels={}, planes=[], created_at=utc_now()).returning(Plate.id)
    return int(connection.execute(statement).scalar_one())


def _copy_treatments(connection: Connection, source: int, target: int) -> None:
    columns = [c for c in WellTreatment.__table__.columns if c.name not in ("id", "plate_id")]
    rows = connection.execute(select(*columns).where(WellTreatment.plate_id == source)).mappings()
    copies = [{**row, "plate_id": target} for row in rows]
    if copies:
        connection.execute(insert(WellTreatment), copies)


def run_in_folder(connection: Connection, name: str, folder: str, source: str = "") -> str | None:
    """Return the run of plate `name` whose images lie in `folder`, None if there is none yet."""
    here = (Plate.key == name.casefold(), Plate.folder == folder, Plate.source == source, Plate.run != "")
    return connection.execute(select(Plate.run).where(*here).order_by(Plate.id.desc()).limit(1)).scalar()


def import_treatments(
    connection: Connection, name: str, treatments: Iterable[Treatment], treated_at: datetime | None = None
) -> list[str]:
    """Replace what is in the wells of every run of plate `name`; return the runs.

    A plate that was never imaged is added without a run, which its first images then become.
    """
    if not connection.execute(select(Plate.id).where(Plate.key == name.casefold())).first():
        _add_plate(connection, name, "", "")
    runs = connection.execute(select(Plate.id, Plate.run).where(Plate.key == name.casefold())).all()
    wells = [(item, _ensure_compound(connection, item)) for item in treatments]
    for plate_id, _ in runs:
        connection.execute(delete(WellTreatment).where(WellTreatment.plate_id == plate_id))
        if treated_at is not None:
            describe_plate(connection, plate_id, {"treated_at": treated_at})
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


def describe_plate(connection: Connection, plate_id: int, values: Mapping[str, Any]) -> None:
    """Record what is known of a plate: layout, wells, frame_interval_s, treated_at."""
    different = [getattr(Plate, name).is_distinct_from(value) for name, value in values.items()]
    if different:
        connection.execute(update(Plate).where(Plate.id == plate_id, or_(*different)).values(dict(values)))
