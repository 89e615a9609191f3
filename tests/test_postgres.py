"""PostgreSQL, a real server: schema, one writer at a time, whose folder it is, what it refuses, care."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from db import folders, ledger, plates, postgres, shown
from db.care import check_quickly, upgrade
from db.engine import head_revision, open_engine, open_reader, schema_revision, store_answers, store_errors, utc_now
from db.schema import Base
from db.sqlite import database_url, display_name
from sesmo_live.errors import StoreError, StorePausedError, UsageError
from sesmo_live.overview import run
from tests.cli import Sesmo, runner, sentence
from tests.postgres import Server
from tests.test_db import image_row

pytestmark = pytest.mark.postgres


@pytest.fixture
def postgres_url(postgres_server: Server) -> str:
    """Return the address of a new database with the newest schema."""
    return postgres_server.migrated_database()


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    engine = open_engine(postgres_url, write=True)
    yield engine
    engine.dispose()


@pytest.fixture
def sesmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sesmo:
    return runner(capsys, monkeypatch)


def test_migrations_make_the_declared_schema_from_an_empty_database(postgres_server: Server) -> None:
    postgres_url = postgres_server.new_database()
    assert not check_quickly(postgres_url)
    assert upgrade(postgres_url) is None
    engine = open_reader(postgres_url)
    assert schema_revision(engine) == head_revision()
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    names = sorted(difference[1].name for difference in found if difference[0] == "add_fk")
    assert names == ["fk_cell_image_id_image", "fk_cell_model_id_model"], found  # SQLite's alone
    assert len(found) == 2


def test_programs_that_migrate_at_the_same_time_wait_for_each_other(postgres_server: Server) -> None:
    postgres_url = postgres_server.new_database()
    code = f"from db.care import upgrade\nupgrade({postgres_url!r})"
    both = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], said
    assert schema_revision(open_engine(postgres_url)) == head_revision()


def test_nothing_is_migrated_under_a_daemon(postgres_server: Server, engine: Engine, postgres_url: str) -> None:
    postgres_server.do("UPDATE alembic_version SET version_num = '0003'", database=engine.url.database or "")
    with engine.begin() as connection:
        assert folders.claim(connection, "scope1", Path("/data"))
    with pytest.raises(StoreError, match="daemons are at work on the database .*; stop all of them first"):
        upgrade(postgres_url)
    assert schema_revision(open_engine(postgres_url)) == "0003"


def test_a_write_transaction_excludes_others_from_its_beginning_and_readers_do_not_wait(
    engine: Engine, postgres_url: str
) -> None:
    hasty = open_engine(postgres_url, write=True, checkpoint=False, busy_s=0.2)
    with engine.begin() as connection:
        ledger.insert_images(connection, [image_row("a", None)])
        with open_reader(postgres_url).connect() as reader:
            assert ledger.image_counts(reader) == {}
        with (
            pytest.raises(StorePausedError, match="is locked by another program"),
            store_errors(postgres_url),
            hasty.begin(),
        ):
            pass
        assert store_answers(postgres_url), "others write, so that it can be written"
    assert store_answers(postgres_url)
    with psycopg.connect(postgres_url) as theirs:
        theirs.execute("LOCK TABLE alembic_version")
        assert not store_answers(postgres_url), "another program's lock"
    with open_reader(postgres_url).connect() as reader:
        assert ledger.image_counts(reader) == {"pending": 1}
        with engine.begin() as connection:
            ledger.insert_images(connection, [image_row("b", None)])
        assert ledger.image_counts(reader) == {"pending": 1}, "a reader sees one state of the database"


def test_a_reader_can_change_nothing(postgres_url: str) -> None:
    with (
        open_engine(postgres_url).connect() as connection,
        pytest.raises(DBAPIError, match="read-only transaction"),
    ):
        connection.execute(text("DELETE FROM image"))


def test_many_writers_that_read_first_never_collide(engine: Engine, postgres_url: str) -> None:
    def add(name: str) -> None:
        mine = open_engine(postgres_url, write=True)
        for _ in range(10):
            with mine.begin() as connection:
                page = ledger.next_generation(connection, "a", 0)
                time.sleep(0.002)
                ledger.insert_images(connection, [image_row("a", None, generation=page, reason=name)])
        mine.dispose()

    threads = [threading.Thread(target=add, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with engine.begin() as connection:
        assert ledger.next_generation(connection, "a", 0) == 41


def test_after_an_error_in_a_savepoint_the_transaction_goes_on(engine: Engine) -> None:
    with engine.begin() as connection:
        (first,) = ledger.insert_images(connection, [image_row("a", None)])
        with pytest.raises(IntegrityError), connection.begin_nested():
            ledger.insert_images(connection, [image_row("a", None)])
        ledger.update_images(connection, [{"image_id": first, "state": "scored", "reason": ""}])
    with engine.begin() as connection:
        assert ledger.image_counts(connection) == {"scored": 1}


def test_what_sqlite_keeps_is_kept_here_too(engine: Engine) -> None:
    large = 2**40
    row = image_row(
        f"/d/{'long ' * 400}.tif",
        None,
        page=large,
        field=large,
        z=-large,
        size=large * 1000,
        mtime_ns=2**62,
        timepoint=large,
        channel="c" * 500,
        reason="a NUL \0 in it, Größe 5 µm, 細胞",
        seen_at=datetime(2026, 11, 30, 23, 59, 59, 123456, tzinfo=UTC),
    )
    with engine.begin() as connection:
        plate = plates.find_or_add_plate(connection, "n" * 300, "r", "f")
        (key,) = ledger.insert_images(connection, [row | {"plate_id": plate}])
    with engine.begin() as connection:
        found = ledger.row_of(connection, key)
        moment = connection.execute(text("SELECT seen_at::text FROM image")).scalar()
    assert (found.page, found.field, found.z, found.size) == (large, large, -large, large * 1000)
    assert found.reason == "a NUL \N{REPLACEMENT CHARACTER} in it, Größe 5 µm, 細胞"
    assert moment == "2026-11-30 23:59:59.123456", "UTC, whatever the server's zone is"


def test_a_folder_has_one_daemon_and_so_have_those_above_and_below_it(engine: Engine, postgres_url: str) -> None:
    other = open_engine(postgres_url, write=True)
    with other.begin() as connection:
        assert folders.claim(connection, "", Path("/nas/acq"))
        assert folders.claim(connection, "", Path("/nas/acq")), "mine already"
    with engine.begin() as connection:
        for taken in ("/nas/acq", "/nas/acq/PLATE7", "/nas"):
            assert not folders.claim(connection, "", Path(taken)), taken
        for free in ("/nas/acq2", "/data"):
            assert folders.claim(connection, "", Path(free)), free
        assert folders.claim(connection, "scope2", Path("/nas/acq")), "another computer's folder of that path"
        assert not postgres.claim_folder(connection, "", "/nas/acq")
    other.dispose()  # as when it is killed: its connection closes
    until = time.monotonic() + 10
    taken_over = False
    while not taken_over and time.monotonic() < until:
        with engine.begin() as connection:
            taken_over = folders.claim(connection, "", Path("/nas/acq"))
    assert taken_over


def test_windows_folders_are_told_apart_and_nested_as_there(engine: Engine, postgres_url: str) -> None:
    other = open_engine(postgres_url, write=True)
    with other.begin() as connection:
        assert postgres.claim_folder(connection, "", r"\\nas\acq\scope1")
    with engine.begin() as connection:
        assert not postgres.claim_folder(connection, "", r"\\nas\acq\scope1\PLATE7")
        assert not postgres.claim_folder(connection, "", "\\\\nas\\acq\\")
        assert postgres.claim_folder(connection, "", r"\\nas\acq2\scope1")
    other.dispose()


def test_equal_paths_and_plates_of_two_computers_are_two(engine: Engine) -> None:
    folder = "D:/acquisition/PLATE7"
    with engine.begin() as connection:
        first = plates.find_or_add_plate(connection, "PLATE7", "2026-11-30", folder, "scope1")
        second = plates.find_or_add_plate(connection, "plate7", "2026-11-30", folder, "scope2")
        assert first != second
        assert plates.find_or_add_plate(connection, "PLATE7", "2026-11-30", folder, "scope2") == second
        assert plates.run_in_folder(connection, "PLATE7", folder, "scope1") == "2026-11-30"
        assert plates.run_in_folder(connection, "PLATE7", folder, "scope2") == "2026-11-30 scope2"
        run = plates.run_in_folder(connection, "PLATE7", folder, "scope2") or ""
        assert plates.find_or_add_plate(connection, "PLATE7", run, folder, "scope2") == second
        rows = [image_row(f"{folder}/A01.tif", first, source="scope1")]
        rows += [image_row(f"{folder}/A01.tif", second, source="scope2")]
        ids = ledger.insert_images(connection, rows)
        ledger.update_images(connection, [{"image_id": key, "state": "scored", "reason": ""} for key in ids])
        assert [row.image_id for row in ledger.images_at(connection, [f"{folder}/A01.tif"], "scope2")] == ids[1:]
        assert len(list(ledger.images_at(connection, [f"{folder}/A01.tif"], None))) == 2
        assert ledger.known_images(connection, Path(folder)) == []


def test_the_page_is_told_of_others_commits(engine: Engine, postgres_url: str) -> None:
    reader = open_reader(postgres_url, pooled=True)
    watching = reader.raw_connection()
    before = shown.change_token(watching, "postgresql")
    assert shown.change_token(watching, "postgresql") == before
    with engine.begin() as connection:
        ledger.insert_images(connection, [image_row("a", None)])
    assert shown.change_token(watching, "postgresql") != before
    watching.close()
    reader.dispose()


def test_a_server_that_is_down_or_refuses_is_one_sentence(
    postgres_server: Server, sesmo: Sesmo, tmp_path: Path, stub_model: Path
) -> None:
    postgres_url = postgres_server.new_database()
    (tmp_path / "plate").mkdir()
    score = ("score", tmp_path / "plate", "--model", stub_model, "--db")
    down = "postgresql://sesmo:secret@127.0.0.1:1/sesmo"
    said = sentence(sesmo(*score, down, code=3))
    assert "the server of the database postgresql://sesmo:***@127.0.0.1:1/sesmo does not answer" in said
    assert "secret" not in said
    said = sentence(sesmo(*score, postgres_server.url("nobody_made_this"), code=3))
    assert 'database "nobody_made_this" does not exist; check its URL, user and rights' in said
    said = sentence(sesmo("plate", "P", "--db", postgres_url, code=3))
    assert "is empty; run: sesmo-live db upgrade --db postgresql://sesmo:***@" in said
    assert "secret" not in said
    said = sentence(sesmo(*score, "mysql://sesmo:secret@host/x", code=2))
    assert "mysql://sesmo:***@host/x is no database of ours; give a file" in said
    name = postgres_url.rpartition("/")[2]
    postgres_server.do(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    said = sentence(sesmo(*score, postgres_url, code=3))
    assert "cannot execute CREATE TABLE in a read-only transaction; it is read-only; give the URL" in said
    postgres_server.do(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    postgres_server.do("DROP ROLE IF EXISTS guest", "CREATE ROLE guest LOGIN")
    guest = postgres_url.replace("sesmo:secret", "guest")
    said = sentence(sesmo(*score, guest, code=3))
    assert "permission denied for schema public; give this user the right to it: docs/postgres.md" in said
    assert postgres_server.do("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", database=name) == [(0,)]
    ascii_only = postgres_server.new_database("ENCODING SQL_ASCII LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0")
    said = sentence(sesmo(*score, ascii_only, code=3))
    assert "has the encoding SQL_ASCII; make it with: createdb --encoding UTF8" in said
    postgres_server.do("CREATE TABLE theirs (id int)", database=name)
    said = sentence(sesmo(*score, postgres_url, code=3))
    assert "is a database of another program; give --db another" in said


def test_the_driver_need_not_be_named_and_its_password_is_not_told() -> None:
    assert database_url("postgres://me:secret@host/db") == "postgresql://me:secret@host/db"
    assert display_name("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    query = "sslmode=require&p%61ssword=geheim&sslpassword=geheim&password=geheim%26x&oauth_client_secret=geheim"
    assert display_name(f"postgresql://me@host/db?{query}") == (
        "postgresql://me@host/db?oauth_client_secret=***&password=***&password=***&sslmode=require&sslpassword=***"
    )
    assert open_engine("postgresql://me@host/db").dialect.driver == "psycopg"
    for wrong in (
        "postgresql://host",
        "postgresql://me:s3cret@host:port/db",
        "nonsense://x",
        "my://x/y?password=s3cret",
    ):
        with pytest.raises(UsageError, match="is no database of ours") as caught:
            open_engine(wrong)
        assert "s3cret" not in str(caught.value)


def test_care_of_a_server(engine: Engine, postgres_url: str, sesmo: Sesmo) -> None:
    with engine.begin() as connection:
        ledger.insert_images(connection, [image_row("a", None), image_row("b", None)])
    assert json.loads(sesmo("db", "check", "--db", postgres_url, "--format", "json").out) == [
        {"images": 2, "pending": 2}
    ]
    said = sentence(sesmo("db", "backup", "x.db", "--db", postgres_url, code=2))
    assert "use its server's own backup: pg_dump --format=custom --file=x.db" in said
    assert "secret" not in said
    assert "is up to date" in sesmo("db", "upgrade", "--db", postgres_url).err


def test_a_ledger_without_a_name_is_taken_over_by_who_watches_the_folder(engine: Engine) -> None:
    with engine.begin() as connection:
        plate = plates.find_or_add_plate(connection, "P", "r", "/data/P")
        rows = [image_row("/data/P/1.tif", plate), image_row("/other/2.tif", None)]
        ids = ledger.insert_images(connection, rows)
        folders.take_over(connection, "scope1", "", Path("/data"))
        assert [row.image_id for row in ledger.known_images(connection, Path("/"), source="scope1")] == ids[:1]
        assert plates.plate_folders(connection, "scope1") == {plate: ("P", "/data/P")}
        ledger.insert_images(connection, [image_row("/data/P/1.tif", None)])
        folders.take_over(connection, "scope1", "", Path("/data"))  # known there: stays as it is
        assert len(ledger.known_images(connection, Path("/data"))) == 1


def test_signs_of_life_are_each_daemons_own(engine: Engine) -> None:
    with engine.begin() as connection:
        folders.start_watching(connection, "a", {Path("/one"): "a", Path("/nas"): ""})
        folders.start_watching(connection, "b", {Path("/nas"): ""})
        folders.beat(connection, "b", Path("/nas"), "polling", "", utc_now())
        rows = [(row.daemon, row.path, row.mode) for row in folders.watched_folders(connection)]
        assert rows == [("a", "/nas", ""), ("b", "/nas", "polling"), ("a", "/one", "")]
        assert [view.name for view in run.folders(connection)] == ["a: nas", "b: nas", "a: one"]
        folders.stop_watching(connection, "a", [Path("/one"), Path("/nas")])
        assert [row.daemon for row in folders.watched_folders(connection)] == ["b"]


@pytest.mark.parametrize(
    ("state", "before", "once_written"),
    [
        ("57P03", "does not answer", "does not answer"),
        ("53100", "the disk of the server of the database {} is full", "is full"),
        ("53300", "no connection or memory left", "no connection"),
        ("40P01", "locked by another program", "locked"),
        ("25006", None, "it became read-only, check its server"),
        ("42501", None, None),
        ("22P02", None, None),
    ],
)
def test_what_passes_on_a_server_and_what_stays(state: str, before: str | None, once_written: str | None) -> None:
    refused = DBAPIError("SELECT 1", None, psycopg.errors.lookup(state)("no"))
    for written, expected in ((False, before), (True, once_written)):
        found = postgres.passing(refused, written=written)
        assert (found is None) == (expected is None)
        assert (expected or "") in (found or "")
