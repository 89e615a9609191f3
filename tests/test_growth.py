"""What docs/scaling.md promises: a plate whose cells were put away answers as before, but for its single cells."""

import sqlite3
from contextlib import closing
from pathlib import Path

from db.engine import open_reader
from sesmo_live import overview, results
from tests.web import PLATE, live, plate_db, scored_plate

__all__ = ["plate_db", "scored_plate"]


def test_a_plate_whose_cells_were_put_away_answers_as_before(plate_db: Path) -> None:
    engine = open_reader(plate_db)

    def answers() -> list[object]:
        courses = [results.timecourse(engine, PLATE), results.plate_table(engine, PLATE).rows]
        return [*courses, overview.well_view(engine, PLATE, "A01").fields]

    before = answers()
    with closing(sqlite3.connect(plate_db)) as connection:
        assert connection.execute("DELETE FROM cell").rowcount > 100
        connection.commit()
    assert answers() == before
    with live(plate_db) as server:
        assert server.get("/plates/P%3Cb%3E1/wells/A01").status == 200
        assert server.get("/api/v1/images/1/cells").json["cells"] == []
        assert server.get("/api/v1/images/1/field.png?rings=true").status == 200
