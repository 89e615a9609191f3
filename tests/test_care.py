"""Care of a database: migrations, backups, checks, and the commands for them."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from db import care, ledger
from db.care import backup, check, check_quickly, migration_config, upgrade
from db.engine import (
    head_revision,
    ingest_lock,
    open_engine,
    open_reader,
    revisions,
    schema_revision,
    store_errors,
)
from db.schema import Base
from sesmo_live.cli.app import app
from sesmo_live.errors import StoreError, UsageError
from tests.test_db import image_row


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    upgrade(tmp_path / "s.db")
    engine = open_engine(tmp_path / "s.db", write=True)
    yield engine
    engine.dispose()


def test_a_newer_schema_is_refused_and_a_second_upgrade_does_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    upgrade(path)
    before = path.read_bytes()
    assert upgrade(path) is None
    assert path.read_bytes() == before
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    for opened in (upgrade, open_reader):
        with pytest.raises(StoreError, match="newer schema 9999; install a newer sesmo-live"):
            opened(path)


def test_an_older_schema_is_read_after_an_upgrade_whose_backup_has_a_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    copies = []
    for _ in range(2):
        path.unlink(missing_ok=True)
        with open_engine(path, write=True, create=True).begin() as connection:
            command.upgrade(migration_config(connection), "0001")
        with pytest.raises(StoreError, match="has the older schema 0001; run: sesmo-live db upgrade --db .*s.db"):
            open_reader(path)
        copies.append(upgrade(path))
        assert schema_revision(open_reader(path)) == head_revision()
    assert [copy and copy.name for copy in copies] == [
        f"s.before-{head_revision()}.db",
        f"s.before-{head_revision()}-2.db",
    ]
    assert all(copy and schema_revision(open_engine(copy)) == "0001" for copy in copies)


def test_rows_of_before_servers_come_through_and_stay_together(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with open_engine(path, write=True, create=True).begin() as connection:
        command.upgrade(migration_config(connection), "0003")
    when = "2026-11-30 12:00:00.000001"
    with closing(sqlite3.connect(path)) as raw:
        plate = "(7, 'P', 'p', 'r', '/f', '', 96, 'Phase', 0, '', '{}', '[0]', 3600, NULL, ?)"
        raw.execute(f"INSERT INTO plate VALUES {plate}", [when])
        raw.execute("INSERT INTO model VALUES (3, 'm', '', '{}', ?)", [when])
        columns = "id, path, name, page, generation, plate_id, well, field, timepoint, channel, z, size, mtime_ns"
        for key, generation, state in ((11, 1, "superseded"), (12, 2, "scored"), (19, 1, "failed")):
            raw.execute(
                f"INSERT INTO image ({columns}, acquired_from, state, reason, attempts, seen_at, leased_by, excluded) "
                "VALUES (?, ?, 'a.tif', 0, ?, 7, 'B03', 1, 1, 'Phase', 0, 5, ?, 'file', ?, ?, 2, ?, NULL, 'hair')",
                [key, f"/f/{key // 13}.tif", generation, 2**61, state, "" if state == "scored" else "why", when],
            )
        raw.execute("INSERT INTO field_score VALUES (12, 3, 1, 0.5, 0.25, 1, '[]', '{}', ?)", [when])
        raw.execute("INSERT INTO cell VALUES (12, 3, 0, 1.5, 2.5, 0.5)")
        raw.execute("INSERT INTO watched_folder VALUES ('/f', 1, 'h', '', '', ?, ?, NULL)", [when, when])
        raw.commit()
        before = raw.execute(f"SELECT {columns}, state, reason, seen_at, excluded FROM image ORDER BY id").fetchall()
    assert upgrade(path) is not None
    with closing(sqlite3.connect(path)) as raw:
        after = raw.execute(f"SELECT {columns}, state, reason, seen_at, excluded FROM image ORDER BY id").fetchall()
        assert after == before
        assert raw.execute("SELECT DISTINCT source FROM image UNION SELECT source FROM plate").fetchall() == [("",)]
        assert raw.execute("SELECT x, y, score FROM cell").fetchall() == [(1.5, 2.5, 0.5)]
        assert raw.execute("SELECT n_over FROM field_score").fetchall() == [(1,)]
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        references = {row[2] for row in raw.execute("PRAGMA foreign_key_list(cell)")}
        assert references == {"image", "model"}
        raw.execute("PRAGMA foreign_keys = ON")
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            raw.execute("DELETE FROM image WHERE id = 12")
    with open_engine(path, write=True).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_migration_that_fails_changes_nothing_and_leaves_no_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.db"
    with open_engine(path, write=True, create=True).begin() as connection:
        command.upgrade(migration_config(connection), "0001")

    def refuse(*_: object) -> None:
        raise sqlite3.OperationalError("no")

    monkeypatch.setattr(Operations, "create_table", refuse)  # 0002 adds a column before it makes a table
    with pytest.raises(StoreError, match="cannot be used: no"):
        upgrade(path)
    monkeypatch.undo()
    with sqlite3.connect(path) as raw:
        columns = [row[1] for row in raw.execute("PRAGMA table_info(incident)")]
    raw.close()
    assert "subject" not in columns
    assert list(tmp_path.glob("*before*")) == []
    upgrade(path)


def test_another_programs_database_is_never_adopted(tmp_path: Path) -> None:
    path = tmp_path / "places.db"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE bookmarks (id)")
    raw.close()
    before = path.read_bytes()
    for opened in (upgrade, open_reader):
        with pytest.raises(StoreError, match=r"places\.db is a SQLite database of another program"):
            opened(path)
    assert path.read_bytes() == before


def test_a_mistyped_name_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no database .*typo\.db"):
        upgrade(tmp_path / "typo.db", create=False)
    with pytest.raises(StoreError, match="unable to open"), store_errors(tmp_path / "typo.db"):
        open_engine(tmp_path / "typo.db", write=True).connect()
    assert list(tmp_path.iterdir()) == []


def test_a_reader_leaves_the_file_and_its_log_as_they_are(engine: Engine, tmp_path: Path) -> None:
    path, log = tmp_path / "s.db", tmp_path / "s.db-wal"
    keeper = sqlite3.connect(path)
    keeper.execute("SELECT count(*) FROM image").fetchall()
    with engine.begin() as connection:
        ledger.insert_images(connection, [image_row("a", None)])
    for end in ("", "-wal"):
        shutil.copy(f"{path}{end}", f"{tmp_path / 'left.db'}{end}")  # as a killed writer leaves them
    keeper.close()
    path, log = tmp_path / "left.db", tmp_path / "left.db-wal"
    before = path.read_bytes(), log.read_bytes()
    with open_reader(path).connect() as connection:
        assert ledger.image_counts(connection) == {"pending": 1}
        with pytest.raises(DBAPIError, match="readonly"):
            connection.exec_driver_sql("DELETE FROM image")
    backup(path, tmp_path / "copy.db")
    assert check(path) == []
    assert (path.read_bytes(), log.read_bytes()) == before
    assert len(before[1]) > 0
    assert check_quickly(path)


def test_a_backup_of_a_database_in_use_has_everything(engine: Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        ledger.insert_images(connection, [image_row(str(k), None) for k in range(100)])
        target = backup(tmp_path / "s.db", tmp_path / "copy.db") if not connection.closed else None
    assert target is not None
    with engine.begin() as connection:  # what was committed by now is in a later copy, without touching the log
        backup(tmp_path / "s.db", tmp_path / "later.db")
    with sqlite3.connect(tmp_path / "later.db") as raw:
        assert raw.execute("SELECT count(*) FROM image").fetchone() == (100,)
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    raw.close()


def test_damage_is_found_and_the_newest_backup_is_named(engine: Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        ledger.insert_images(connection, [image_row(f"/a/{k}.tif", None) for k in range(2000)])
        assert ledger.image_counts(connection) == {"pending": 2000}
    engine.dispose()
    path = tmp_path / "s.db"
    assert check(path) == []
    assert check_quickly(path)
    assert not check_quickly(tmp_path / "none.db")
    hurt = backup(path, tmp_path / "hurt.db")
    with hurt.open("r+b") as file:
        file.seek(4096 * 30)
        file.write(b"\xff" * 4096 * 4)
    assert check(hurt)
    with pytest.raises(StoreError, match=r"hurt\.db is damaged; .* and restore a backup of it"):
        check_quickly(hurt)
    for number, name in enumerate(("hurt.monday.db", "hurt.tuesday.db", "hurtful.db")):
        os.utime(backup(path, tmp_path / name), (number, number))
    with pytest.raises(StoreError, match=r"newest backup in its place: .*hurt\.tuesday\.db"):
        check_quickly(hurt)
    hurt.write_bytes(b"nothing like it" * 400)
    assert check(hurt) == ["file is not a database"]
    with pytest.raises(UsageError, match="there is no database"):
        check(tmp_path / "none.db")


def test_a_large_database_is_checked_only_after_an_unclean_end(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(care, "ALWAYS_CHECKED_BYTES", 0)
    path = tmp_path / "s.db"
    assert not check_quickly(path)
    with engine.begin() as connection:
        ledger.insert_images(connection, [image_row("a", None)])
        shutil.copy(path, tmp_path / "left.db")
    Path(f"{tmp_path / 'left.db'}-wal").write_bytes(bytes(4096))
    assert check_quickly(tmp_path / "left.db")


def test_a_backup_that_cannot_be_made_leaves_nothing(engine: Engine, tmp_path: Path) -> None:  # noqa: ARG001
    path = tmp_path / "s.db"
    with pytest.raises(UsageError, match="exists already"):
        backup(path, path)
    with pytest.raises(UsageError, match="the folder .* does not exist"):
        backup(path, tmp_path / "no" / "copy.db")
    (tmp_path / "bad.db").write_bytes(b"x" * 9000)
    with pytest.raises(StoreError, match=r"bad\.db is damaged"):
        backup(tmp_path / "bad.db", tmp_path / "copy.db")
    name = "n" * 240  # with its temporary ending it is longer than a file name may be
    with pytest.raises(StoreError, match="cannot be written: unable to open"):
        backup(path, tmp_path / f"{name}.db")
    assert {file.suffix for file in tmp_path.iterdir()} <= {".db", ".db-shm", ".db-wal"}
    assert not (tmp_path / "copy.db").exists()


def test_the_commands_of_care(engine: Engine, tmp_path: Path) -> None:
    db, copy = str(tmp_path / "s.db"), tmp_path / "s.monday.db"
    with engine.begin() as connection:
        ledger.insert_images(connection, [image_row("a", None)])

    def run(*words: str) -> tuple[str, BaseException | None]:
        done = CliRunner().invoke(app, ["db", *words])
        return done.output, done.exception

    assert run("backup", str(copy), "--db", db) == (f"wrote {copy}\n", None)
    assert run("upgrade", "--db", db) == (f"{db} is up to date\n", None)
    said, error = run("check", "--db", str(copy), "--format", "csv")
    assert (said, error) == (f"images,pending\n1,1\n{copy} is sound\n", None)
    with ingest_lock(db):
        _, error = run("upgrade", "--db", db)
        assert isinstance(error, StoreError)
    (tmp_path / "s.db").write_bytes(b"lost" * 4096)
    said, error = run("check", "--db", db)
    assert "file is not a database" in said
    assert isinstance(error, StoreError)
    assert str(copy) in str(error)
    for words in (("upgrade",), ("check",), ("backup", str(tmp_path / "new.db"))):
        _, error = run(*words, "--db", str(tmp_path / "typo.db"))
        assert isinstance(error, UsageError)
        assert "there is no database" in str(error)
    assert list(tmp_path.glob("typo*")) == []


def test_the_revisions_are_those_of_the_migrations() -> None:
    scripts = ScriptDirectory.from_config(migration_config())
    assert revisions() == sorted(script.revision for script in scripts.walk_revisions())
    assert head_revision() == scripts.get_current_head()
