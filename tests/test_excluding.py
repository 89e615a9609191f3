"""A field that a person took out of its well stays out, whatever happens to its file and whoever starts again."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from db.engine import open_reader
from sesmo_live import changes, results, service
from sesmo_live.config import Settings
from sesmo_live.errors import UnknownNameError
from tests.conftest import blobs, settings, write_image

pytestmark = pytest.mark.usefixtures("stub_scorer")


def rows(db: Path, question: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(db)) as connection:
        return connection.execute(question).fetchall()


@pytest.fixture
def run(tmp_path: Path, stub_model: Path) -> Settings:
    """Score two fields of one well, and take the first one out; return the settings of that run."""
    for field in (1, 2):
        write_image(tmp_path / "in" / f"A01_f{field}_t1_cPhase_z0.tif", field)
    found = settings(tmp_path / "in", tmp_path / "s.db", stub_model, plate="P", layout="sesmo")
    found = found.model_copy(update={"scoring": found.scoring.model_copy(update={"refuse": False})})
    assert service.score_folder(found).progress.scored == 2
    changes.exclude(str(tmp_path / "s.db"), 1, "a fibre lies in it")
    return found


def images_of_the_well(db: Path) -> int:
    """Return how many fields count."""
    (score,), _ = results.timecourse(open_reader(db), "P", "A01")
    return score.n_images


def test_a_restart_and_a_touched_file_leave_it_out(run: Settings, tmp_path: Path) -> None:
    db, file = tmp_path / "s.db", tmp_path / "in" / "A01_f1_t1_cPhase_z0.tif"
    assert images_of_the_well(db) == 1
    service.score_folder(run)
    assert images_of_the_well(db) == 1
    os.utime(file, ns=(10**18, 10**18))  # as a copy from a backup has it
    service.score_folder(run)
    assert images_of_the_well(db) == 1
    assert rows(db, "SELECT state, excluded FROM image WHERE field = 1") == [("scored", "a fibre lies in it")]


def test_a_copy_does_not_come_in_its_place(run: Settings, tmp_path: Path) -> None:
    source = tmp_path / "in" / "A01_f1_t1_cPhase_z0.tif"
    (tmp_path / "in" / "again").mkdir()
    shutil.copy2(source, tmp_path / "in" / "again" / source.name)
    service.score_folder(run)
    assert images_of_the_well(tmp_path / "s.db") == 1
    assert sorted(rows(tmp_path / "s.db", "SELECT state FROM image")) == [("scored",), ("scored",), ("skipped",)]


def test_a_moved_file_stays_out(run: Settings, tmp_path: Path) -> None:
    source = tmp_path / "in" / "A01_f1_t1_cPhase_z0.tif"
    (tmp_path / "in" / "moved").mkdir()
    source.rename(tmp_path / "in" / "moved" / source.name)
    service.score_folder(run)
    assert images_of_the_well(tmp_path / "s.db") == 1


def test_other_pixels_are_another_image_and_count(run: Settings, tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "in" / "A01_f1_t1_cPhase_z0.tif", blobs(77))
    service.score_folder(run)
    assert images_of_the_well(tmp_path / "s.db") == 2
    assert rows(tmp_path / "s.db", "SELECT excluded FROM image WHERE state = 'scored'") == [("",), ("",)]


def test_it_is_counted_told_and_brought_back(run: Settings, tmp_path: Path) -> None:
    assert run.watch
    db = tmp_path / "s.db"
    answer = results.plate_table(open_reader(db), "P")
    assert any("1 of its images is taken out of their wells by a person" in note for note in answer.notes)
    listed = results.image_table(open_reader(db), "P").rows
    assert [row["excluded"] for row in listed] == ["a fibre lies in it", ""]
    assert rows(db, "SELECT COUNT(*) FROM cell WHERE image_id = 1")[0][0] > 0  # its scores are kept
    changes.exclude(str(db), 1, "")
    assert images_of_the_well(db) == 2
    with pytest.raises(UnknownNameError, match="there is no image 9"):
        changes.exclude(str(db), 9, "dust")


def test_a_well_of_excluded_fields_alone_has_no_score(run: Settings, tmp_path: Path) -> None:
    assert run.watch
    changes.exclude(str(tmp_path / "s.db"), 2, "another fibre")
    (row,) = results.plate_table(open_reader(tmp_path / "s.db"), "P").rows
    assert (row["well"], row["score"], row["n_images"]) == ("A01", None, 0)
