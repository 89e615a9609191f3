"""PostgreSQL's own ways: connections, one writer at a time, whose folder it is, fast rows, what a refusal means."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool, QueuePool

from sesmo_live.errors import StoreError, UsageError

DRIVER = "postgresql+psycopg"

HUNG_S = 60
"""A writer that does nothing for so long in the middle of a transaction is cut off: the others wait for it."""

_ALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4, "tcp_user_timeout": 30_000}
_AWAY = "the server of the database {} does not answer; check it and the network"
_LOCKED = "the database {} is locked by another program; close that program or wait for it"
_CROWDED = "the server of the database {} has no connection or memory left; close other programs' connections"
_PASSING = (  # by the beginning of the SQLSTATE
    ("53100", "the disk of the server of the database {} is full; make room on it"),
    ("53", _CROWDED),
    ("08", _AWAY),
    ("57P", _AWAY),
    ("25P03", _AWAY),
    ("55P03", _LOCKED),
    ("40", _LOCKED),
)
_PASSING_ONCE_WRITTEN = (
    ("25006", "the database {} cannot be written any more; it became read-only, check its server"),
)
_REMEDIES = (
    ("25006", "it is read-only; give the URL of the server that can be written"),
    ("42501", "give this user the right to it: docs/postgres.md"),
)


def server_engine(url: str, *, write: bool, wait_s: float, pooled: bool) -> Engine:
    """Return an engine on a PostgreSQL database.

    Write transactions exclude each other from their beginning, as SQLite's do: everything here that reads before it
    writes is right without further locks, and nothing can deadlock. A connection without `write` cannot change
    anything and sees one state of the database throughout a transaction. `pooled` keeps connections open; a pool that
    writes has one, with which the locks of its folders come and go.
    """
    parsed = make_url(url)
    own = "-c default_transaction_read_only=on"
    if write:
        alive = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=4"
        own = f"-c lock_timeout={round(wait_s * 1000)} -c idle_in_transaction_session_timeout={HUNG_S}s {alive}"
    given = parsed.query.get("options", ())
    options = " ".join([*([given] if isinstance(given, str) else given), own])
    connect = {
        "connect_timeout": max(2, round(min(wait_s, 10))),
        "application_name": "sesmo-live",
        "client_encoding": "UTF8",
        "options": options,
    }
    engine = _create_engine(
        parsed.set(drivername=DRIVER),
        connect_args={**connect, **_ALIVE},
        isolation_level="READ COMMITTED" if write else "REPEATABLE READ",
        **({"poolclass": NullPool} if not pooled else {"poolclass": QueuePool, "pool_pre_ping": not write}),
        **({"pool_size": 1, "max_overflow": 0} if pooled and write else {}),
    )
    event.listen(engine, "connect", _replace_nuls)
    if write:

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_key("writers"),))

    return engine


def _create_engine(url: URL, **options: Any) -> Engine:
    try:
        return create_engine(url, **options)
    except ModuleNotFoundError as error:
        raise UsageError("PostgreSQL needs psycopg; install it with: pip install 'sesmo-live[postgres]'") from error


def _replace_nuls(raw: Any, _record: object) -> None:
    """Have what PostgreSQL cannot keep in text replaced: a NUL in a file's metadata must not end the night."""
    from psycopg.types.string import StrDumperUnknown

    class Dumper(StrDumperUnknown):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}"))

    raw.adapters.register_dumper(str, Dumper)


def _key(text: str) -> int:
    """Return the number of an advisory lock; 64 bits of a hash, so that no two of a facility's folders share one."""
    return int.from_bytes(sha256(f"sesmo-live {text}".encode()).digest()[:8], "big", signed=True)


def claim_folder(connection: Connection, source: str, folder: str) -> bool:
    """Take a folder for this connection, until it closes; say whether it could be had.

    Nobody else can then have the folder, nor one above or below it: the folder's own lock is exclusive, those of the
    folders above it are shared.
    """
    path = PureWindowsPath(folder) if "\\" in folder else PurePosixPath(folder)
    wanted = [("", str(path)), *(("_shared", str(above)) for above in path.parents)]
    for number, (kind, place) in enumerate(wanted):
        if not _lock(connection, f"try_advisory_lock{kind}", f"folder {source}\n{place}"):
            for taken, where in wanted[:number]:
                _lock(connection, f"advisory_unlock{taken}", f"folder {source}\n{where}")
            return False
    _lock(connection, "try_advisory_lock_shared", "daemons")
    return True


def exclude_daemons(connection: Connection, name: str) -> None:
    """Keep daemons from beginning until this transaction ends; raise StoreError while one is at work."""
    if not _lock(connection, "try_advisory_xact_lock", "daemons"):
        raise StoreError(f"daemons are at work on the database {name}; stop all of them first")


def _lock(connection: Connection, function: str, what: str) -> bool:
    return bool(connection.exec_driver_sql(f"SELECT pg_{function}(%s)", (_key(what),)).scalar())


def check_encoding(connection: Connection, name: str) -> None:
    """Raise StoreError for a database that cannot hold every letter."""
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise StoreError(
            f"the database {name} has the encoding {encoding}; "
            "make it with: createdb --encoding UTF8 --template template0"
        )


_CELL = np.dtype(
    [("fields", ">i2")]
    + [
        item
        for name, kind in (
            ("image_id", ">i8"),
            ("model_id", ">i4"),
            ("idx", ">i4"),
            ("x", ">f8"),
            ("y", ">f8"),
            ("score", ">f8"),
        )
        for item in ((f"{name}_bytes", ">i4"), (name, kind))
    ]
)
"""A row of `cell` in COPY's binary format (PostgreSQL's manual, COPY, "Binary Format")."""


def copy_cells(connection: Connection, columns: Sequence[Sequence[float]]) -> None:
    """Write cells within the connection's transaction: image_id, model_id, idx, x, y, score, column by column.

    COPY takes them ten times as fast as INSERT.
    """
    rows = np.empty(len(columns[0]), _CELL)
    rows["fields"] = len(columns)
    names = [name for name in _CELL.names or () if name != "fields" and not name.endswith("_bytes")]
    for name, column in zip(names, columns, strict=True):
        rows[f"{name}_bytes"] = _CELL[name].itemsize
        rows[name] = column
    raw: Any = connection.connection.driver_connection
    try:
        with raw.cursor() as cursor, cursor.copy(f"COPY cell ({', '.join(names)}) FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8) + rows.tobytes() + b"\xff\xff")
    except connection.dialect.loaded_dbapi.Error as error:
        raise DBAPIError("COPY cell", None, error, connection_invalidated=bool(raw.closed)) from error


def is_locked(error: Exception) -> bool:
    """Say whether a server refused because a lock was not free in time."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == "55P03"


def passing(error: DBAPIError, *, written: bool) -> str | None:
    """Return the sentence for a refusal that passes, with {} for the database's name; None for one that stays.

    `written`: this program has written to that database before, so its address and rights were right.
    """
    if error.connection_invalidated:
        return _AWAY
    state = str(getattr(error.orig, "sqlstate", None) or "")
    if not state:
        return _AWAY if written and isinstance(error, OperationalError) else None
    known = _PASSING + (_PASSING_ONCE_WRITTEN if written else ())
    return next((sentence for start, sentence in known if state.startswith(start)), None)


def staying(error: DBAPIError, name: str) -> str:
    """Return the sentence for a refusal that stays."""
    state = str(getattr(error.orig, "sqlstate", None) or "")
    cause = (str(error.orig).strip().splitlines() or [type(error.orig).__name__])[0].strip()
    if not state and isinstance(error, OperationalError) and "FATAL" not in cause:
        return f"the server of the database {name} does not answer ({cause}); check its URL, the server and the network"
    remedy = next((remedy for start, remedy in _REMEDIES if state.startswith(start)), "check its URL, user and rights")
    return f"the database {name} cannot be used: {cause}; {remedy}"
