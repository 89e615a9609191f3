"""Copying a database to PostgreSQL and back: all of it or nothing, and the same answers from both."""

import json
import math
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import func, select, text

from db import copying, folders
from db.care import migration_config
from db.copying import copy_database
from db.engine import ingest_lock, open_engine, open_reader, schema_revision
from db.plates import find_or_add_plate
from db.schema import Cell, Image
from sesmo_live.doctor.database import last_rate, looking, newest_moments
from sesmo_live.errors import StoreError
from tests.cli import Sesmo, runner, sentence
from tests.postgres import Server
from tests.screens import add_image, add_plate
from tests.web import PLATE, live, plate_db, scored_plate

__all__ = ["plate_db", "scored_plate"]

pytestmark = pytest.mark.postgres

QUESTIONS = (
    ("plate", "{plate}"),
    ("plate", "{plate}", "--run", "{run}"),
    ("timecourse", "--plate", "{plate}", "--well", "a1"),
    ("compound", "doxorubicin"),
    ("compound", "adriamycin"),
    ("images", "{plate}"),
    ("images", "--state", "failed"),
    ("images", "--state", "refused"),
    ("hits", "{plate}"),
)
PATHS = (
    "plates",
    "plates/{plate}",
    "plates/{plate}/wells",
    "plates/{plate}/wells?timepoint=1",
    "plates/{plate}/wells/A01",
    "plates/{plate}/wells/A02/timecourse",
    "plates/{plate}/wells/A02/cells",
    "plates/{plate}/timecourse",
    "plates/{plate}/images",
    "plates/{plate}/images?state=failed",
    "compounds",
    "compounds/doxorubicin",
    "images/1",
    "images/1/cells",
    "models",
    "incidents",
)


@pytest.fixture
def sesmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sesmo:
    return runner(capsys, monkeypatch)


@pytest.fixture
def screen(plate_db: Path) -> Path:
    """Return a SQLite database of plates, one never imaged; with failed and refused images."""
    add_plate(plate_db, "Screen")
    add_plate(plate_db, "Again", times=1)
    add_plate(plate_db, "never imaged", run="", times=0)
    with open_engine(plate_db, write=True).begin() as connection:
        plate = find_or_add_plate(connection, "Screen", "2026-07-01", "")
        for number, state in enumerate(("failed", "refused")):
            add_image(connection, plate, "Screen", "C05", 1, number, state=state, reason="too dark: 100% of it")
        connection.execute(text("UPDATE image SET excluded = 'a hair' WHERE id = 20"))
        folders.start_watching(connection, "scope", {Path("/acq"): ""})
    return plate_db


def test_a_server_gives_the_same_answers(screen: Path, postgres_server: Server, sesmo: Sesmo, tmp_path: Path) -> None:
    url = postgres_server.new_database()
    done = json.loads(sesmo("db", "copy", screen, url, "--format", "json").out)
    rows = {table["table"]: table["rows"] for table in done}
    assert rows["image"] > 40
    assert rows["cell"] > 300
    assert all(len(table["checksum"]) == 32 for table in done)
    for plate, run in (("Screen", "2026-07-01"), (PLATE, "")):
        for question in QUESTIONS:
            words = [word.format(plate=plate, run=run) for word in question]
            if "" in words:
                continue
            said = [ask(sesmo, [*words, "--format", "json"], db) for db in (screen, url)]
            assert said[0][0] == said[1][0], words
            assert differences(*(json.loads(out or "0") for _, out, _ in said)) == [], words
            assert said[0][2] == said[1][2], words
    said = [ask(sesmo, ["plate", "never imaged"], db) for db in (screen, url)]
    assert said[0] == said[1]
    outputs = [tmp_path / f"{name}.csv" for name in ("here", "there")]
    for db, output in zip((screen, url), outputs, strict=True):
        sesmo("export", "--plate", "Screen", "--cells", "--out", output, "--db", db)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    rates = []
    for db in (screen, url):
        with looking(str(db)) as connection:
            assert connection is not None
            rates.append((last_rate(connection, Path("/acq")), newest_moments(connection)))
    assert rates[0] == rates[1]
    assert rates[0][0] is not None
    with live(screen) as here, live(Path(url), url=url) as there:
        for path in PATHS:
            for plate in ("Screen", PLATE):
                asked = f"/api/v1/{path.format(plate=plate)}"
                assert differences(here.get(asked).json, there.get(asked).json) == [], asked
        for page in ("/", "/plates/Screen", "/plates/Screen/wells/A02", "/compounds/doxorubicin"):
            first, second = here.get(page), there.get(page)
            assert (first.status, second.status) == (200, 200)
            # The number of changes seen since a server began is its own.
            bodies = [re.sub(rb'data-version="\d+"', b"", answer.body) for answer in (first, second)]
            assert bodies[0] == bodies[1], page
        run = there.get("/api/v1/run").json
        assert run["images"] == here.get("/api/v1/run").json["images"]
        assert run["folders"] == [], "daemons say anew which folders they watch"
        assert there.get("/health").status == here.get("/health").status
        assert there.write("PUT", "/api/v1/images/1/exclusion", {"reason": "dust"}).json["excluded"] == "dust"
        assert there.write("POST", "/api/v1/retry", {"reason": "TOO DARK: 100%"}).json == {"images": 1}


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Return where two answers differ; a sum of floating-point numbers depends on their order."""
    if isinstance(first, dict) and isinstance(second, dict) and list(first) == list(second):
        return [found for name in first for found in differences(first[name], second[name], f"{where}.{name}")]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = zip(first, second, strict=True)
        return [found for at, (one, other) in enumerate(pairs) for found in differences(one, other, f"{where}[{at}]")]
    if where.endswith("age_s"):  # it grows between two questions
        return []
    if isinstance(first, float) and isinstance(second, float) and math.isclose(first, second, rel_tol=1e-9):
        return []
    return [] if first == second else [f"{where}: {first} is not {second}"]


def ask(sesmo: Sesmo, words: list[str], db: object) -> tuple[int, str, str]:
    """Return exit code and what a command says, whatever it is."""
    for code in (0, 2):
        try:
            done = sesmo(*words, "--db", db, code=code)
        except AssertionError:
            continue
        return done.code, done.out, done.err
    raise AssertionError(words)


def test_there_and_back_is_the_same(screen: Path, postgres_server: Server, tmp_path: Path) -> None:
    url, back = postgres_server.new_database(), tmp_path / "back.db"
    there = copy_database(screen, url)
    assert copy_database(url, back) == there
    assert {table.table for table in there} >= {"plate", "image", "field_score", "cell", "incident", "model"}
    engine = open_engine(url, write=True, checkpoint=False)
    with engine.begin() as connection:  # the server's keys go on after the copied ones
        last = connection.execute(select(func.max(Image.id))).scalar_one()
        plate = find_or_add_plate(connection, "new", "r", "f")
        assert add_image(connection, plate, "new", "A01", 1, 1, state="failed", reason="x") == last + 1
    with closing(sqlite3.connect(back)) as raw:
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_what_is_not_empty_or_in_use_or_not_there_is_refused(
    screen: Path, postgres_server: Server, sesmo: Sesmo, tmp_path: Path
) -> None:
    url, empty = postgres_server.migrated_database(), postgres_server.new_database()
    copy_database(screen, url)
    said = sentence(sesmo("db", "copy", screen, url, code=2))
    assert "holds rows of compound already; name an empty database" in said
    assert "secret" not in said
    assert "cannot be copied onto itself" in sentence(sesmo("db", "copy", url, url, code=2))
    assert "there is no database" in sentence(sesmo("db", "copy", tmp_path / "none.db", empty, code=2))
    assert "does not exist" in sentence(sesmo("db", "copy", screen, tmp_path / "no" / "x.db", code=2))
    assert "is no database of ours" in sentence(sesmo("db", "copy", screen, "oracle://x/y", code=2))
    assert "is empty; run: sesmo-live db upgrade" in sentence(sesmo("db", "copy", empty, tmp_path / "x.db", code=3))
    down = "postgresql://sesmo:secret@127.0.0.1:1/sesmo"
    assert "does not answer" in sentence(sesmo("db", "copy", screen, down, code=3))
    with ingest_lock(screen):
        assert "is already writing to" in sentence(sesmo("db", "copy", screen, empty, code=3))
    with closing(sqlite3.connect(screen)) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '0003'")
        raw.commit()
    assert "has the older schema 0003; run" in sentence(sesmo("db", "copy", screen, empty, code=3))
    old = tmp_path / "old.db"
    with open_engine(old, write=True, create=True).begin() as connection:
        command.upgrade(migration_config(connection), "0003")
        plate = "'P', 'p', 'r', '/f', '', 96, 'Phase', 0, '', '{}', '[0]', 3600, NULL, '2026-11-30 12:00:00'"
        connection.execute(text(f"INSERT INTO plate VALUES (1, {plate})"))
        values = "1, '/f/a', 'a', 0, 1, 1, 'Phase', 0, 5, 5, 'file', 'scored', '', 2, '2026-11-30 12:00:00', ''"
        columns = "id, path, name, page, generation, plate_id, channel, z, size, mtime_ns, acquired_from"
        more = "state, reason, attempts, seen_at, excluded"
        connection.execute(text(f"INSERT INTO image ({columns}, {more}) VALUES ({values})"))
        model = "'m', '', '{}', '2026-11-30 12:00:00'"
        connection.execute(text(f"INSERT INTO model VALUES (1, {model})"))
        connection.execute(text("INSERT INTO cell VALUES (1, 1, 0, 1.5, 2.5, 0.5)"))
    before = old.read_bytes()
    assert "old.db holds rows of" in sentence(sesmo("db", "copy", url, old, code=2))
    assert (old.read_bytes(), schema_revision(open_engine(old))) == (before, "0003")
    daemon = open_engine(url, write=True)
    with daemon.begin() as connection:
        assert folders.claim(connection, "scope", Path("/acq"))
    assert "daemons are at work on" in sentence(sesmo("db", "copy", url, tmp_path / "y.db", code=3))
    daemon.dispose()
    with open_engine(empty).connect() as connection:
        tables = connection.execute(text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")).scalar()
    assert tables == 0, "nothing half-written"


@pytest.mark.parametrize("to_server", [True, False])
def test_a_copy_that_is_killed_leaves_an_empty_database(
    screen: Path, postgres_server: Server, tmp_path: Path, to_server: bool
) -> None:
    url = postgres_server.new_database()
    if not to_server:
        copy_database(screen, url)
    source, target = (screen, url) if to_server else (url, tmp_path / "t.db")
    code = (
        "import os, sys\nfrom db import copying\nwrite = copying._write\n"
        "def then_die(into, table, rows):\n    write(into, table, rows)\n    if table.name == 'cell': os._exit(9)\n"
        f"copying._write = then_die\ncopying.copy_database({str(source)!r}, {str(target)!r})"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 9
    with pytest.raises(StoreError, match="is empty"):
        open_reader(target)
    assert copy_database(source, target)


def test_a_copy_that_differs_is_not_kept(
    screen: Path, postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, write = postgres_server.new_database(), copying._write

    def spoil(into: Any, table: Any, rows: list[tuple[Any, ...]]) -> None:
        write(into, table, [(*row[:-1], row[-1] + 1e-12) for row in rows] if table.name == Cell.__tablename__ else rows)

    monkeypatch.setattr(copying, "_write", spoil)
    with pytest.raises(StoreError, match=r"table cell is not the same in .*; nothing was copied, please report it"):
        copy_database(screen, url)
    with pytest.raises(StoreError, match="is empty"):
        open_reader(url)
