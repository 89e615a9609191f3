"""The database: schema and migrations, ledger, treatments, scores, backup, lock."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from db import ledger, plates, queries, scores
from db.care import upgrade
from db.disks import network_filesystem
from db.engine import (
    head_revision,
    ingest_lock,
    kept_open,
    open_engine,
    open_reader,
    schema_revision,
    store_answers,
    store_errors,
    utc_now,
)
from db.schema import Base, FieldScore, Plate, WellTreatment
from db.sqlite import log_bytes
from sesmo_live.errors import StoreError, StorePausedError, UsageError
from sesmo_live.records import CellScores, ImageFile, ModelPassport, Site, Treatment

PASSPORT = ModelPassport(
    name="m",
    version="1",
    network="deep-sesmo",
    input_px=50,
    pixel_um=None,
    conversion="c",
    cropper="deep-sesmo",
    cropper_settings={"percentile": 5},
    threshold=0.5,
    weights_sha256="ab" * 32,
)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    upgrade(tmp_path / "s.db")
    engine = open_engine(tmp_path / "s.db", write=True)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.begin() as connection:
        yield connection


def image_row(path: str, plate_id: int | None, **changes: Any) -> dict[str, Any]:
    row = {
        "path": path,
        "name": Path(path).name,
        "page": 0,
        "generation": 1,
        "plate_id": plate_id,
        "well": "B03",
        "field": 1,
        "timepoint": 1,
        "channel": "",
        "z": 0,
        "size": 10,
        "mtime_ns": 20,
        "state": "pending",
        "reason": "waiting",
        "seen_at": utc_now(),
    }
    return {**row, **changes}


def scores_of(values: list[float]) -> CellScores:
    file = ImageFile(Path("a.tif"), 0, Site("P", "B03", 1, 1), 1, 1)
    return CellScores(file, np.array(values, np.float32), np.zeros((len(values), 2)), "m")


def test_migrations_make_exactly_the_declared_schema(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    assert schema_revision(engine) == head_revision()


def test_sqlite_is_opened_durably(connection: Connection) -> None:
    assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_a_write_transaction_excludes_others_from_its_beginning(engine: Engine, tmp_path: Path) -> None:
    with engine.begin(), sqlite3.connect(tmp_path / "s.db", timeout=0, isolation_level=None) as other:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        assert other.execute("SELECT count(*) FROM image").fetchone() == (0,)
    other.close()


def test_what_passes_pauses_and_what_stays_does_not(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    hasty = open_engine(path, write=True, busy_s=0.05)
    with engine.begin():
        assert not store_answers(path)
        with pytest.raises(StorePausedError, match="is locked by another program"), store_errors(path):
            hasty.connect().begin()
    assert store_answers(path)
    with engine.begin() as connection:
        ledger.insert_images(connection, [image_row("a", None)])
    path.rename(tmp_path / "away.db")
    assert not store_answers(path)
    with pytest.raises(StorePausedError, match="is not there any more; bring its disk"), store_errors(path):
        engine.connect()
    assert not path.exists()
    (tmp_path / "away.db").rename(path)
    assert store_answers(path)
    with engine.begin() as connection:
        assert ledger.image_counts(connection) == {"pending": 1}
    with pytest.raises(StoreError, match="no such table") as caught, store_errors(path):
        engine.connect().exec_driver_sql("SELECT * FROM nobody")
    assert not isinstance(caught.value, StorePausedError)


def test_a_disk_that_fails_pauses(tmp_path: Path) -> None:
    failed = sqlite3.OperationalError("disk I/O error")
    failed.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE  # as SQLite reports it
    with pytest.raises(StorePausedError, match="does not answer"), store_errors(tmp_path / "s.db"):
        raise failed


def test_a_server_that_goes_away_pauses_and_its_password_is_not_told() -> None:
    url = "postgresql://user:secret@host/sesmo"
    lost = OperationalError("SELECT 1", {}, Exception("server closed the connection"), connection_invalidated=True)
    with pytest.raises(StorePausedError, match="postgresql://user:[*]+@host/sesmo does not answer"), store_errors(url):
        raise lost
    unknown = OperationalError("SELECT 1", {}, Exception("password authentication failed"))
    with pytest.raises(StoreError, match="authentication failed") as caught, store_errors(url):
        raise unknown
    assert not isinstance(caught.value, StorePausedError)
    assert "secret" not in str(caught.value)


def test_a_database_in_a_read_only_folder_can_be_read(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.begin() as connection:
        ledger.insert_images(connection, [image_row("a", None)])
    folder = tmp_path / "archive"
    folder.mkdir()
    shutil.copy(tmp_path / "s.db", folder / "s.db")
    folder.chmod(0o555)
    access = os.access  # root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder and access(path, mode))
    with open_reader(folder / "s.db").connect() as connection:
        assert ledger.image_counts(connection) == {"pending": 1}
    assert [path.name for path in folder.iterdir()] == ["s.db"]
    folder.chmod(0o755)


class Partition(NamedTuple):
    mountpoint: str
    fstype: str
    opts: str = "rw"


def test_a_network_share_is_refused_and_copies_on_it_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"
    upgrade(path)
    mounts = [Partition(str(tmp_path.parent), "ext4"), Partition(str(tmp_path), "nfs4")]
    assert network_filesystem(path) is None
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)  # noqa: ARG005, A006 — psutil's own name
    said = r"s\.db lies on a network share \(nfs4\): SQLite's WAL does not work there; give --db a path on a local"
    for opened in (upgrade, lambda path: open_engine(path, write=True), lambda path: ingest_lock(path).__enter__()):
        with pytest.raises(StoreError, match=said):
            opened(path)
    assert ledger.image_counts(open_reader(path).connect()) == {}
    Path(f"{path}-wal").write_bytes(b"somebody writes")
    with pytest.raises(StoreError, match=said):
        open_reader(path)
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts[:1])  # noqa: ARG005, A006
    assert network_filesystem(path) is None
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [mounts[0]._replace(opts="rw,remote")])  # noqa: ARG005, A006
    assert network_filesystem(path) == "ext4"


def test_files_that_are_no_database_are_named(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"this is not a database, but long enough to look at" * 40)
    with pytest.raises(StoreError, match="s.db cannot be used: file is not a database"):
        upgrade(path)
    with pytest.raises(UsageError, match="there is no database"):
        open_reader(tmp_path / "none.db")
    with pytest.raises(UsageError, match="the folder .* does not exist"):
        upgrade(tmp_path / "no" / "s.db")


def test_the_ledger_wants_a_reason_and_one_scored_image_a_site(engine: Engine) -> None:
    with engine.begin() as connection:
        plate = plates.find_or_add_plate(connection, "P", "r", "f")
        first, second = ledger.insert_images(connection, [image_row("a", plate), image_row("b", plate)])
        ledger.update_images(connection, [{"image_id": first, "state": "scored", "reason": ""}])
    with engine.begin() as connection:
        owner = ledger.site_owner(connection, second, image_row("b", plate))
        assert owner == (first, "a", None)
    with pytest.raises(IntegrityError), engine.begin() as connection:
        ledger.update_images(connection, [{"image_id": second, "state": "scored", "reason": ""}])
    with pytest.raises(IntegrityError), engine.begin() as connection:
        ledger.update_images(connection, [{"image_id": second, "state": "failed", "reason": ""}])
    with pytest.raises(IntegrityError), engine.begin() as connection:
        ledger.update_images(connection, [{"image_id": second, "state": "lost", "reason": "x"}])


def test_known_images_are_those_below_the_folder_and_not_superseded(connection: Connection) -> None:
    rows = [image_row(p, None) for p in ("/data/a/1.tif", "/data/ab/2.tif", "/data/a_b/3.tif", "/data/a/b/4.tif")]
    rows.append(image_row("/data/a/1.tif", None, generation=2))
    ids = ledger.insert_images(connection, rows)
    ledger.update_images(connection, [{"image_id": ids[0], "state": "superseded", "reason": "changed"}])
    found = ledger.known_images(connection, Path("/data/a"))
    assert [(row.path, row.generation) for row in found] == [("/data/a/1.tif", 2), ("/data/a/b/4.tif", 1)]
    assert ledger.next_generation(connection, "/data/a/1.tif", 0) == 3
    assert ledger.next_generation(connection, "/data/a/9.tif", 0) == 1


def test_a_file_that_moved_is_found_by_its_pixels_and_keeps_its_row(connection: Connection) -> None:
    plate = plates.find_or_add_plate(connection, "P", "r", "f")
    old, other, new = ledger.insert_images(
        connection,
        [image_row("/a/1.tif", plate), image_row("/a/1.tif", plate, generation=2), image_row("/b/1.tif", plate)],
    )
    ledger.update_images(connection, [{"image_id": old, "state": "superseded", "reason": "changed"}])
    ledger.update_images(connection, [{"image_id": other, "state": "scored", "reason": "", "sha256": "ff"}])
    file = ImageFile(Path("/b/1.tif"), 0, Site("P", "B03", 1, 1), 10, 20)
    assert ledger.moved_from(connection, new, file, 0, "ee") == []
    assert ledger.moved_from(connection, new, replace(file, mtime_ns=21), 0, "ff") == []
    assert ledger.moved_from(connection, new, file, 0, "ff") == [(other, "/a/1.tif")]
    ledger.adopt(connection, new, other, "/b/1.tif")
    assert ledger.known_images(connection, Path("/a")) == []
    (row,) = ledger.known_images(connection, Path("/b"))
    assert (row.image_id, row.generation, row.state) == (other, 2, "scored")
    assert ledger.next_generation(connection, "/a/1.tif", 0) == 1


def test_the_well_score_view_forgets_superseded_images(connection: Connection) -> None:
    plate = plates.find_or_add_plate(connection, "P", "r", "f")
    ids = ledger.insert_images(connection, [image_row("a", plate), image_row("b", plate, field=2)])
    model = scores.ensure_model(connection, PASSPORT)
    assert scores.ensure_model(connection, PASSPORT) == model
    for image_id, values in zip(ids, ([0.25, 0.75], [1.0]), strict=True):
        scores.save_scores(connection, image_id, model, scores_of(values), 0.5, {})
        ledger.update_images(connection, [{"image_id": image_id, "state": "scored", "reason": ""}])
    (row,) = queries.well_scores(connection, plate, model)
    assert (row["n_images"], row["n_cells"], row["score_sum"], row["n_over"]) == (2, 3, 2.0, 2)
    assert (row["field_ss"], row["field_sn"], row["field_nn"]) == (2.0, 3.0, 5.0)
    assert connection.execute(text("SELECT idx, score FROM cell ORDER BY image_id, idx")).all() == [
        (0, 0.25),
        (1, 0.75),
        (0, 1.0),
    ]
    histogram = connection.execute(select(FieldScore.histogram).order_by(FieldScore.image_id)).scalars().first()
    assert histogram is not None
    assert (sum(histogram), histogram[8], histogram[24]) == (2, 1, 1)
    ledger.update_images(connection, [{"image_id": ids[1], "state": "superseded", "reason": "changed"}])
    assert queries.well_scores(connection, plate, model)[0]["n_cells"] == 2
    assert queries.well_scores(connection, plate, model, ["A01"]) == []


def test_scores_of_one_image_and_model_are_written_once(engine: Engine) -> None:
    with engine.begin() as connection:
        (image_id,) = ledger.insert_images(connection, [image_row("a", None)])
        model = scores.ensure_model(connection, PASSPORT)
        scores.save_scores(connection, image_id, model, scores_of([0.5]), 0.5, {})
    with pytest.raises(IntegrityError), engine.begin() as connection:
        scores.save_scores(connection, image_id, model, scores_of([0.5]), 0.5, {})


def test_other_settings_make_another_model(connection: Connection) -> None:
    other = replace(PASSPORT, cropper_settings={"percentile": 6})
    assert other.model_id != PASSPORT.model_id
    assert scores.ensure_model(connection, other) != scores.ensure_model(connection, PASSPORT)


TREATMENTS = [
    Treatment("A01", "DMSO", "negative"),
    Treatment("A02", "Doxorubicin", "treatment", 1.0, "µM", 1.0, aliases=("NSC-123127",)),
    Treatment("A03", "", "blank"),
]


def test_a_plate_map_waits_for_its_plate_and_is_taken_over_by_its_next_run(connection: Connection) -> None:
    treated = datetime(2026, 1, 1, tzinfo=UTC)
    assert plates.import_treatments(connection, "P", TREATMENTS, treated) == [""]
    first = plates.find_or_add_plate(connection, "P", "2026-01-02", "f")
    assert [row.well for row in queries.treatments(connection, first)] == ["A01", "A02", "A03"]
    second = plates.find_or_add_plate(connection, "P", "2026-02-02", "g")
    assert second != first
    assert [row.compound for row in queries.treatments(connection, second)] == ["DMSO", "Doxorubicin", ""]
    assert connection.execute(select(Plate.treated_at).where(Plate.id == first)).scalar() == treated
    assert plates.find_or_add_plate(connection, "P", "2026-01-02", "f") == first
    assert plates.run_in_folder(connection, "P", "g") == "2026-02-02"


def test_importing_again_replaces_and_compounds_are_found_by_any_name(connection: Connection) -> None:
    plates.import_treatments(connection, "P", TREATMENTS)
    plates.import_treatments(connection, "P", TREATMENTS[1:2])
    assert connection.execute(select(WellTreatment.well)).scalars().all() == ["A02"]
    plates.import_treatments(connection, "Q", [Treatment("B01", "nsc-123127", "treatment", 2.0, "µM", 2.0)])
    for name in ("doxorubicin", "NSC-123127", " DOXORUBICIN "):
        ((key, found),) = queries.find_compounds(connection, name)
        assert found == "Doxorubicin"
        assert [row.well for row in queries.treatments_of(connection, [key])] == ["A02", "B01"]
    assert queries.find_compounds(connection, "nothing") == []


def test_a_file_kept_open_keeps_its_log_and_a_clean_end_leaves_none(engine: Engine, tmp_path: Path) -> None:
    def commit() -> None:
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = version_num"))

    (file,) = tmp_path.glob("*.db")
    commit()
    assert log_bytes(file) == 0
    with kept_open(file):
        commit()
        assert log_bytes(file) > 0
    commit()
    assert log_bytes(file) == 0


def test_only_one_daemon_ingests_and_a_dead_one_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with ingest_lock(path), pytest.raises(StoreError, match="another sesmo-live is already writing"):
        ingest_lock(path).__enter__()
    hold = f"with ingest_lock({str(path)!r}): print('held', flush=True); sys.stdin.read()"
    program = f"import sys\nfrom db.engine import ingest_lock\n{hold}"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError):
            ingest_lock(path).__enter__()
        holder.kill()
    with ingest_lock(path):
        pass


def test_a_folder_without_rights_for_the_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.db.lock").mkdir()  # root may write everywhere; this nobody can open
    with pytest.raises(StoreError, match=r"the lock file .*s\.db\.lock cannot be made .*; let this user write"):
        ingest_lock(tmp_path / "s.db").__enter__()
