"""The ledger of images: what was seen, where it stands, and why."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, literal, or_, select, update

from db.schema import FieldScore, Image
from sesmo_live.records import ImageState


@dataclass(slots=True)
class LedgerRow:
    """Where one page of one file stands; `scored_by` holds the database keys of the models that scored it."""

    image_id: int
    path: str
    page: int
    generation: int
    plate_id: int | None
    channel: str
    z: int
    size: int
    mtime_ns: int
    state: ImageState
    reason: str
    attempts: int
    sha256: str | None
    scored_by: set[int] = field(default_factory=set)


_ROW = (
    Image.id,
    Image.path,
    Image.page,
    Image.generation,
    Image.plate_id,
    Image.channel,
    Image.z,
    Image.size,
    Image.mtime_ns,
    Image.state,
    Image.reason,
    Image.attempts,
    Image.sha256,
)


def known_images(connection: Connection, root: Path) -> list[LedgerRow]:
    """Return the rows, superseded ones apart, of all files under `root`."""
    return _rows(connection, _under(root))


def images_like(connection: Connection, name: str, size: int, mtime_ns: int) -> list[LedgerRow]:
    """Return the rows of files of the same name, size and time anywhere: a file that was moved is found so."""
    # The two numbers are selective enough; the name is compared in Python, path separators being what they are.
    rows = _rows(connection, (Image.size == size) & (Image.mtime_ns == mtime_ns))
    return [row for row in rows if Path(row.path).name == name]


def _under(root: Path) -> Any:
    text = str(root)
    prefix = text if text.endswith(("/", "\\")) else text + ("\\" if "\\" in text and "/" not in text else "/")
    return or_(Image.path == text, func.substr(Image.path, 1, len(prefix)) == literal(prefix))


def _rows(connection: Connection, where: Any) -> list[LedgerRow]:
    statement = select(*_ROW).where(where, Image.state != "superseded").order_by(Image.path, Image.page)
    rows = {row.id: LedgerRow(*tuple(row)) for row in connection.execute(statement)}
    scored = select(FieldScore.image_id, FieldScore.model_id).join(Image).where(where, Image.state != "superseded")
    for image_id, model_id in connection.execute(scored):
        rows[image_id].scored_by.add(model_id)
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


def set_state(connection: Connection, ids: Sequence[int], state: ImageState, reason: str) -> None:
    """Put images into `state` with a reason in words."""
    update_images(connection, [{"image_id": i, "state": state, "reason": reason} for i in ids])


def site_owner(connection: Connection, image: Mapping[str, Any]) -> tuple[int, str, str | None] | None:
    """Return (id, path, pixel hash) of the scored image at the same site as `image`, None if the site is free."""
    names = ("plate_id", "well", "field", "timepoint", "channel", "z")
    where = [getattr(Image, name) == image[name] for name in names]
    row = connection.execute(
        select(Image.id, Image.path, Image.sha256).where(*where, Image.state == "scored", Image.id != image["id"])
    ).first()
    return None if row is None else (row.id, row.path, row.sha256)


def image_counts(connection: Connection, plate_id: int | None = None) -> dict[str, int]:
    """Return how many images stand in each state, of one plate or of all."""
    statement = select(Image.state, func.count()).group_by(Image.state)
    if plate_id is not None:
        statement = statement.where(Image.plate_id == plate_id)
    return {row[0]: row[1] for row in connection.execute(statement)}
