"""The demonstration: from an empty folder to a scored plate that agrees with the planted truth."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sesmo_live.demo import agreement, simulate_plate, spearman
from sesmo_live.errors import UsageError
from sesmo_live.records import WellScore

ROOT = Path(__file__).parents[1]
PROGRAM = (sys.executable, "-c", "from sesmo_live.cli import main; main()")


def sesmo(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(
        [*PROGRAM, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.timeout(400)
def test_the_demo_scores_its_plate_and_finds_the_dose_response(tmp_path: Path) -> None:
    done = sesmo("demo", "--output", tmp_path / "demo", "--port", 0)
    assert done.returncode == 0, done.stderr
    assert re.search(r"the page: http://127\.0\.0\.1:\d+/ \(changes need the token in ", done.stderr)
    assert "189 of 192 images scored, 3 refused" in done.stderr
    assert "not for biological conclusions" in done.stderr
    found = re.search(r"Spearman ρ = ([\d.]+) \(95 % interval ([\d.]+) to ([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    assert float(found[1]) > 0.8
    assert 0.5 < float(found[2]) < float(found[1]) < float(found[3])
    db = tmp_path / "demo" / "sesmo.db"
    plate = json.loads(sesmo("plate", "DEMO", "--db", db, "--format", "json").stdout)
    assert len(plate) == 24
    by_role = {
        role: np.mean([row["score"] for row in plate if row["role"] == role]) for role in ("negative", "positive")
    }
    assert by_role["positive"] - by_role["negative"] > 0.3
    course = json.loads(sesmo("timecourse", "--plate", "DEMO", "--well", "b6", "--db", db, "--format", "json").stdout)
    assert [round(row["hours"]) for row in course] == [0, 24, 48, 72]
    assert course[-1]["score"] > course[0]["score"] + 0.2
    history = json.loads(sesmo("compound", "DOXORUBICIN", "--db", db, "--format", "json").stdout)
    assert len(history) == 12 * 4
    assert {row["dose"] for row in history} == {0.01, 0.03, 0.1, 0.3, 1.0, 3.0}


def test_a_folder_with_something_else_in_it_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    done = sesmo("demo", "--output", tmp_path)
    assert done.returncode == 2
    assert "thesis.docx, which no demo wrote; give --output a new folder" in done.stderr
    assert (tmp_path / "thesis.docx").read_text() == "years of work"


def test_simulate_writes_a_plate_in_a_vendors_layout(tmp_path: Path) -> None:
    done = sesmo("simulate", tmp_path / "in", "--layout", "imagexpress", "--plate-wells", 6, "--hours", "0,24")
    assert done.returncode == 0, done.stderr
    assert "wrote 12 images" in done.stderr
    assert len(list((tmp_path / "in").rglob("*.[tT][iI][fF]*"))) == 12
    assert (tmp_path / "truth.csv").is_file()
    assert sesmo("simulate", tmp_path / "x", "--hours", "0,noon").returncode == 2
    with pytest.raises(UsageError, match="no plate of 7 wells"):
        simulate_plate(wells=7, hours=(0,), fields=1, seed=1)


def test_agreement_is_the_rank_correlation_over_wells_and_times(tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text(
        "well,timepoint,fraction_senescent\n"
        + "".join(
            f"{well},{t},{fraction}\n" for well, t, fraction in [("A01", 1, 0.1), ("A02", 1, 0.5), ("A03", 1, 0.9)]
        )
    )
    scores = [
        WellScore("P", well, 1, None, None, 1, 5, value, None, None, None, "m")
        for well, value in (("A01", 0.2), ("A02", 0.3), ("A03", 0.8), ("A04", 0.9))
    ]
    text = agreement(scores, truth)
    assert "Spearman ρ = 1.00" in text
    assert "over 3 wells" in text
    assert spearman(np.array([[1.0, 3], [2, 2], [3, 1]])) == pytest.approx(-1)
