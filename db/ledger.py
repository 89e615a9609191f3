"""The ledger of images: what was seen, where it stands, and why."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, func, insert, literal, or_, select, true, update

from db.engine import utc_now
from db.schema import FieldScore, Image
from sesmo_live.records import ImageFile, ImageState


@dataclasses.dataclass(slots=True)
class LedgerRow:
    """Where one page of one file stands; `scored_by` holds the database keys of the models that scored it."""

    image_id: int
    path: str
    page: int
    generation: int
    plate_id: int | None
    well: str | None
    field: int | None
    timepoint: int | None
    channel: str
    z: int
    size: int
    mtime_ns: int
    state: ImageState
    reason: str
    attempts: int
    sha256: str | None
    scored_by: frozenset[int] = frozenset()


_ROW = (
    Image.id,
    Image.path,
    Image.page,
    Image.generation,
    Image.plate_id,
    Image.well,
    Image.field,
    Image.timepoint,
    Image.channel,
    Image.z,
    Image.size,
    Image.mtime_ns,
    Image.state,
    Image.reason,
    Image.attempts,
    Image.sha256,
)


# A path counts beside its source: the daemon on whose computer it lies, or "" for one that all computers know.


def known_images(
    connection: Connection, root: Path, states: Sequence[ImageState] = (), source: str = ""
) -> list[LedgerRow]:
    """Return the rows, superseded ones apart, of all files under `root`; with `states` only those in one of them."""
    here = and_(Image.source == source, below(root))
    return _rows(connection, and_(here, Image.state.in_(states) if states else true()))


def images_at(connection: Connection, paths: Iterable[str], source: str | None = "") -> Iterator[LedgerRow]:
    """Yield the rows, superseded ones apart, of the files at `paths` (of any source: None), in a query for 500."""
    whose = true() if source is None else Image.source == source
    for some in _batches(paths):
        yield from _rows(connection, and_(whose, Image.path.in_(some)))


def _batches(paths: Iterable[str]) -> Iterator[list[str]]:
    several = list(dict.fromkeys(paths))
    return (several[start : start + 500] for start in range(0, len(several), 500))


def paths_of_plate(connection: Connection, plate_id: int) -> list[str]:
    """Return the paths of a plate's images."""
    return list(connection.execute(select(Image.path).where(Image.plate_id == plate_id).distinct()).scalars())


def row_of(connection: Connection, image_id: int) -> LedgerRow:
    """Return one row."""
    return _rows(connection, Image.id == image_id)[0]


def path_of(connection: Connection, image_id: int) -> str | None:
    """Return the path that a row has in the database, where another folder's intake may have changed it."""
    return connection.execute(select(Image.path).where(Image.id == image_id)).scalar()


def moved_from(
    connection: Connection,
    image_id: int,
    file: ImageFile,
    page: int,
    sha256: str,
    state: ImageState = "scored",
    source: str = "",
) -> list[tuple[int, str]]:
    """Return (id, path) of images in `state` of the same name, size, time and pixels elsewhere: a file that moved."""
    statement = select(Image.id, Image.path).where(
        Image.name == file.path.name,
        Image.size == file.size,
        Image.mtime_ns == file.mtime_ns,
        Image.sha256 == sha256,
        Image.page == page,
        Image.source == source,
        Image.state == state,
        Image.id != image_id,
    )
    return [(key, path) for key, path in connection.execute(statement)]


def adopt(connection: Connection, image_id: int, old_id: int, path: str) -> None:
    """Give a scored image its new path, in place of the row `image_id` that its file was entered with there."""
    old = connection.execute(select(Image.source, Image.path, Image.page).where(Image.id == old_id)).one()
    connection.execute(delete(Image).where(Image.id == image_id))
    before = (Image.source == old.source, Image.path == old.path, Image.page == old.page)
    taken = next_generation(connection, path, old.page, old.source)
    shift = Image.generation + (taken - 1)
    connection.execute(update(Image).where(*before).values(path=path, generation=shift))


def next_generation(connection: Connection, path: str, page: int, source: str = "") -> int:
    """Return the generation of the next row for a page of the file at `path`: 1 for a path never seen."""
    here = (Image.source == source, Image.path == path, Image.page == page)
    statement = select(func.max(Image.generation)).where(*here)
    return (connection.execute(statement).scalar() or 0) + 1


def generations(connection: Connection, paths: Iterable[str], source: str = "") -> dict[tuple[str, int], int]:
    """Return the newest generation of every known page of the files at `paths`, in one query for 500 of them."""
    found: dict[tuple[str, int], int] = {}
    for some in _batches(paths):
        statement = select(Image.path, Image.page, func.max(Image.generation)).group_by(Image.path, Image.page)
        rows = connection.execute(statement.where(Image.source == source, Image.path.in_(some)))
        found |= {(path, page): generation for path, page, generation in rows}
    return found


def below(root: Path) -> Any:
    """Return the condition on images that they are `root` or lie below it."""
    text = str(root)
    prefix = text if text.endswith(("/", "\\")) else text + ("\\" if "\\" in text and "/" not in text else "/")
    return or_(Image.path == text, func.substr(Image.path, 1, len(prefix)) == literal(prefix))


def _rows(connection: Connection, where: Any) -> list[LedgerRow]:
    statement = select(*_ROW).where(where, Image.state != "superseded").order_by(Image.path, Image.page)
    rows = {row.id: LedgerRow(*tuple(row)) for row in connection.execute(statement)}
    scored = select(FieldScore.image_id, FieldScore.model_id).join(Image).where(where, Image.state != "superseded")
    for image_id, model_id in connection.execute(scored):
        rows[image_id].scored_by |= {model_id}
    return list(rows.values())


def insert_images(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Add rows (columns of `image` by name, the same in all) and return their ids in order."""
    if not rows:
        return []
    statement = insert(Image).returning(Image.id, sort_by_parameter_order=True)
    return list(connection.execute(statement, list(rows)).scalars())


def update_images(connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Change rows: each mapping has `image_id` and the same new values by column name."""
    changes = list(rows)
    if changes:
        columns: dict[str, Any] = {name: bindparam(name) for name in changes[0] if name != "image_id"}
        statement = update(Image).where(Image.id == bindparam("image_id")).values(columns)
        connection.execute(statement, changes)


def site_owner(connection: Connection, image_id: int, place: Mapping[str, Any]) -> tuple[int, str, str | None] | None:
    """Return (id, path, pixel hash) of another scored image at that place, None if the place is free."""
    names = ("plate_id", "well", "field", "timepoint", "channel", "z")
    where = [getattr(Image, name) == place[name] for name in names]
    row = connection.execute(
        select(Image.id, Image.path, Image.sha256).where(*where, Image.state == "scored", Image.id != image_id)
    ).first()
    return None if row is None else (row.id, row.path, row.sha256)


def ask_again(connection: Connection, where: Mapping[str, Any], states: Sequence[str] = ("failed",)) -> int:
    """Ask that images be tried again; return how many. `where`: columns of `image` with the value they must have.

    Besides a column, `folder` means a file or all files under a folder, and `reason` a part of the reason. A running
    daemon takes them up within seconds, else the next run does.
    """
    wanted: list[Any] = [Image.state.in_(states)]
    for name, value in where.items():
        if name == "folder":
            wanted.append(below(value))
        elif name == "reason":
            wanted.append(Image.reason.icontains(value, autoescape=True))
        else:
            wanted.append(getattr(Image, name).in_(value) if isinstance(value, list) else getattr(Image, name) == value)
    asked = {"state": "pending", "reason": "asked to be tried again", "attempts": 0, "next_attempt_at": utc_now()}
    return connection.execute(update(Image).where(*wanted).values(asked)).rowcount


def asked_again(connection: Connection, root: Path, source: str = "") -> list[tuple[str, int]]:
    """Return (path, page) of the images under `root` that somebody asked to be tried again, each once."""
    asked = (Image.next_attempt_at.is_not(None), Image.source == source)
    rows = connection.execute(select(Image.id, Image.path, Image.page).where(*asked)).all()
    mine = [row for row in rows if Path(row.path).is_relative_to(root)]
    update_images(connection, [{"image_id": row.id, "next_attempt_at": None} for row in mine])
    return [(row.path, row.page) for row in mine]


def image_counts(connection: Connection) -> dict[str, int]:
    """Return how many images stand in each state."""
    statement = select(Image.state, func.count()).group_by(Image.state).order_by(Image.state)
    return {row[0]: row[1] for row in connection.execute(statement)}
