"""docs/web.md keeps its word: its examples are run as they stand, its tables name what there is."""

import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from sesmo_live.platemap import read_platemap
from tests.web import TOKEN, Live, live, plate_db, reading, scored_plate

__all__ = ["plate_db", "reading", "scored_plate"]

PAGE = (Path(__file__).parents[1] / "docs" / "web.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_examples_run_as_they_stand(plate_db: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(plate_db)) as connection:
        connection.execute("UPDATE plate SET name = 'DEMO', key = 'demo'")
        connection.execute("UPDATE image SET well = 'B05' WHERE well = 'B02'")
        connection.commit()
    (tmp_path / "sesmo.db.token").write_text(TOKEN)
    (tmp_path / "platemap.csv").write_text("well,compound,role\nA01,DMSO,negative\nB05,nutlin,treatment\n")
    assert read_platemap(tmp_path / "platemap.csv").treatments
    assert len(COMMANDS) == 11
    with live(plate_db) as server:
        for command in COMMANDS:
            here = command.replace("127.0.0.1:8766", server.host).replace("curl -s", "curl -s -w '\\n%{http_code}'")
            done = subprocess.run(["bash", "-c", here], cwd=tmp_path, capture_output=True, text=True, check=True)
            *body, status = done.stdout.rsplit("\n", 1)
            assert status == ("503" if command.endswith("/health") else "200"), (command, done.stdout)
            assert body
    assert (tmp_path / "field.png").read_bytes().startswith(b"\x89PNG")


def test_every_question_and_figure_is_in_the_document(reading: Live) -> None:
    examples = {"{image_id}": "1", "{name}": "DEMO", "{incident_id}": "1"}  # changes are shown by examples
    for path in reading.get("/openapi.json").json["paths"]:
        asked = path.removeprefix("/api/v1").replace("{image_id}", "{number}").replace("{idx}", "{cell}")
        shown = path
        for name, value in examples.items():
            shown = shown.replace(name, value)
        assert asked in PAGE or shown in PAGE, asked
    for line in reading.get("/metrics").body.decode().splitlines():
        if line.startswith("# TYPE"):
            assert line.split()[2] in PAGE, line
