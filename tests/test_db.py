"""The database: schema and migrations, ledger, treatments, scores, backup, lock."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import IntegrityError

from db import ledger, plates, queries, scores
from db.engine import (
    backup,
    check,
    head_revision,
    ingest_lock,
    open_engine,
    open_reader,
    schema_revision,
    upgrade,
    utc_now,
)
from db.schema import Base, FieldScore, Plate, WellTreatment
from sesmo_live.errors import StoreError, UsageError
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


def test_a_newer_schema_is_refused_and_a_second_upgrade_does_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    upgrade(path)
    before = path.read_bytes()
    assert upgrade(path) is None
    assert path.read_bytes() == before
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(StoreError, match="newer schema 9999; install a newer sesmo-live"):
        upgrade(path)
    with pytest.raises(StoreError, match="sesmo-live db upgrade"):
        open_reader(path)


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


def test_damage_is_found(engine: Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        ledger.insert_images(connection, [image_row(f"/a/{k}.tif", None) for k in range(2000)])
        assert ledger.image_counts(connection) == {"pending": 2000}
    engine.dispose()
    path = tmp_path / "s.db"
    assert check(path) == []
    backup(path, tmp_path / "hurt.db")
    with (tmp_path / "hurt.db").open("r+b") as file:
        file.seek(4096 * 30)
        file.write(b"\xff" * 4096 * 4)
    try:
        found = check(tmp_path / "hurt.db")
    except StoreError as error:
        found = [str(error)]
    assert found
    with pytest.raises(UsageError, match="there is no database"):
        check(tmp_path / "none.db")
