"""The issue's promises on real images, through the command line, in processes that can be killed."""

import csv
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
STUB = (sys.executable, "-m", "tests.stub")
REAL = (sys.executable, "-c", "from sesmo_live.cli import main; main()")


def sesmo(
    *words: object, code: int = 0, program: tuple[str, ...] = STUB, timeout: float = 100
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end and check its exit code."""
    done = subprocess.run(
        [*program, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done


def start(*words: object) -> subprocess.Popen[str]:
    """Start a daemon with the stub scorer."""
    return subprocess.Popen([*STUB, *map(str, words)], cwd=ROOT, text=True, stderr=subprocess.PIPE)


def query(db: Path, statement: str) -> list[Any]:
    with sqlite3.connect(f"file:{db}?mode=ro", uri=True, timeout=10) as connection:
        rows = connection.execute(statement).fetchall()
    connection.close()
    return rows


def scored(db: Path) -> int:
    try:
        found: int = query(db, "SELECT count(*) FROM image WHERE state = 'scored'")[0][0]
    except sqlite3.OperationalError:  # not there yet
        return 0
    return found


def wait_until_scored(db: Path, n: int, daemon: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while scored(db) < n:
        assert daemon.poll() is None, daemon.communicate()[1]
        assert time.monotonic() < deadline, f"{scored(db)} of {n}"
        time.sleep(0.1)


def frames(shared: Path) -> list[Path]:
    return sorted((shared / "data/timelapse_treated/cellphe_mdamb231_docetaxel/images").glob("*.tif"))


@pytest.mark.realdata
def test_the_treated_time_lapse_lands_live_and_equals_a_back_fill(
    shared: Path, tmp_path: Path, stub_model: Path
) -> None:
    """81 real frames over 48 h, file by file into a watched folder, give 81 time points; `score` gives the same."""
    folder, live, later = tmp_path / "in", tmp_path / "live.db", tmp_path / "later.db"
    folder.mkdir()
    common = ("--plate", "MDA", "--layout", "imagexpress", "--model", stub_model, "--frame-interval-s", 2160)
    daemon = start("run", "--watch", folder, "--db", live, "--no-page", *common)
    for number, frame in enumerate(frames(shared), 1):
        target = folder / f"TimePoint_{number}" / "MDA_B03_s1_w1.tif"
        target.parent.mkdir()
        shutil.copy2(frame, target)
    wait_until_scored(live, 81, daemon)
    daemon.send_signal(signal.SIGTERM)
    said = daemon.communicate(timeout=30)[1]
    assert daemon.returncode == 0, said
    summary = json.loads(sesmo("score", folder, "--db", later, *common, "--format", "json").stdout)
    assert (summary["images"], summary["scored"], summary["failures"]) == (81, 81, [])
    answers = [
        json.loads(sesmo("timecourse", "--plate", "MDA", "--well", "b3", "--db", db, "--format", "json").stdout)
        for db in (live, later)
    ]
    assert answers[0] == answers[1]
    course = answers[0]
    assert [row["timepoint"] for row in course] == list(range(1, 82))
    assert [row["hours"] for row in course] == pytest.approx([0.6 * k for k in range(81)])
    assert all(row["n_cells"] > 0 and row["n_images"] == 1 for row in course)
    assert sum(row["n_cells"] for row in course) == summary["cells"]


@pytest.mark.realdata
def test_eight_real_fields_survive_kills_and_second_thoughts(shared: Path, tmp_path: Path, stub_model: Path) -> None:
    """Scored twice nothing changes; killed at any moment and started again the result is the same."""
    folder = tmp_path / "in"
    folder.mkdir()
    fields = sorted((shared / "data/phase_instances/usiigaci_t98g").glob("*/raw.tif"))
    assert len(fields) == 8
    for number, field in enumerate(fields, 1):
        shutil.copy2(field, folder / f"T98G_B0{1 + (number - 1) % 4}_s{1 + (number - 1) // 4}_w1.tif")
    common = (folder, "--plate", "T98G", "--layout", "imagexpress", "--model", stub_model, "--format", "json")
    tables = ("image", "cell", "field_score", "plate", "model")
    whole, killed = tmp_path / "whole.db", tmp_path / "killed.db"
    assert json.loads(sesmo("score", *common, "--db", whole).stdout)["scored"] == 8
    before = [query(whole, f"SELECT * FROM {table}") for table in tables]
    second = json.loads(sesmo("score", *common, "--db", whole).stdout)
    assert (second["scored"], second["unchanged"], second["cells"]) == (0, 8, 0)
    assert [query(whole, f"SELECT * FROM {table}") for table in tables] == before
    draw = random.Random(os.environ.get("KILL_SEED", "1"))
    for _ in range(6):
        victim = subprocess.Popen(
            [*STUB, "score", *map(str, common), "--db", str(killed)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 20
        wanted = scored(killed) + draw.choice((1, 2))
        while scored(killed) < wanted and victim.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        victim.kill()
        victim.wait()
    last = json.loads(sesmo("score", *common, "--db", killed).stdout)
    assert last["scored"] + last["unchanged"] == 8
    cells = "SELECT i.path, c.idx, c.x, c.y, c.score FROM cell c JOIN image i ON i.id = c.image_id ORDER BY 1, 2"
    assert query(killed, cells) == query(whole, cells)
    sums = "SELECT well, n_images, n_cells, score_sum FROM well_score ORDER BY well"
    assert query(killed, sums) == query(whole, sums)


@pytest.mark.realdata
def test_the_shipped_model_scores_real_cells_and_says_what_it_is(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    source = shared / "data/phase_instances/usiigaci_t98g/set2/raw.tif"
    shutil.copy2(source, folder / "B02_f1_t1_cPhase_z0.tif")
    done = sesmo("score", folder, "--plate", "P", "--db", tmp_path / "s.db", "--format", "json", program=REAL)
    assert "not for biological conclusions" in done.stderr
    summary = json.loads(done.stdout)
    assert (summary["scored"], summary["failed"]) == (1, 0)
    assert summary["cells"] > 50
    (row,) = json.loads(sesmo("plate", "P", "--db", tmp_path / "s.db", "--format", "json").stdout)
    assert row["well"] == "B02"
    assert 0 <= row["ci_low"] <= row["score"] <= row["ci_high"] <= 1
    crops = tmp_path / "crops.npy"
    sesmo("crop", source, "--cropper", "deep-sesmo", "--out", crops, "--positions", tmp_path / "old.csv")
    assert len(np.load(crops)) > 50  # of 54 cells, and of what is none
    sesmo("crop", source, "--out", crops, "--positions", tmp_path / "centres.csv")
    assert 40 <= len((tmp_path / "centres.csv").read_text().splitlines()) - 1 <= 60
    assert 25 < len(np.load(crops)) <= 60


@pytest.mark.realdata
def test_crop_writes_the_golden_crops(shared: Path, tmp_path: Path) -> None:
    import hashlib

    cases = json.loads((shared / "golden/deep_sesmo_crops/expected.json").read_text())
    case = next(case for case in cases if case["fluorescence"])
    image = shared / "golden/deep_sesmo_crops" / case["image"]
    out, positions = tmp_path / "crops.npy", tmp_path / "centres.csv"
    words: list[object] = ["crop", image, "--cropper", "deep-sesmo", "--percentile", case["percentile"]]
    words += ["--min-area", case["min_area_px"], "--fluorescence", "--out", out, "--positions", positions]
    sesmo(*words)
    crops = np.load(out)
    assert (crops.dtype, crops.shape) == (np.uint8, (case["n"], 50, 50))
    assert hashlib.sha256(crops.tobytes()).hexdigest() == case["crops_sha256"]
    rows = list(csv.DictReader(io.StringIO(positions.read_text())))
    assert [[int(float(row["y"])) - 25, int(float(row["x"])) - 25] for row in rows] in (
        case["top_left"],
        [[x, y] for y, x in case["top_left"]],
    )


def test_answers_come_as_table_csv_and_json(tmp_path: Path, stub_model: Path) -> None:
    from tests.conftest import write_image

    folder, db = tmp_path / "in", tmp_path / "s.db"
    for well, timepoint in (("B02", 1), ("B02", 2), ("B03", 1)):
        write_image(folder / f"{well}_f1_t{timepoint}_cPhase_z0.tif", timepoint)
    (tmp_path / "map.csv").write_text("well,compound,dose,unit,role\nb2,@Doxo,1.5,uM,\nB03,DMSO,,,negative control\n")
    sesmo("platemap", "import", tmp_path / "map.csv", "--plate", "P", "--db", db)
    sesmo("score", folder, "--plate", "P", "--db", db, "--model", stub_model)
    (first, second) = json.loads(sesmo("plate", "P", "--db", db, "--format", "json").stdout)
    head = "well role compound dose dose_unit timepoint hours score ci_low ci_high n_cells fraction_senescent n_images"
    assert list(first)[:13] == head.split()
    assert (first["well"], first["dose"], first["dose_unit"], first["timepoint"]) == ("B02", 1.5, "µM", 2)
    assert (second["well"], second["role"], second["timepoint"]) == ("B03", "negative", 1)
    text = sesmo("plate", "p", "--timepoint", 1, "--db", db, "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["well"], row["compound"], row["timepoint"]) for row in rows] == [
        ("B02", "'@Doxo", "1"),
        ("B03", "DMSO", "1"),
    ]
    head = "plate well timepoint acquired_at hours n_images n_cells score ci_low ci_high fraction_senescent model"
    text = sesmo("timecourse", "--plate", "P", "--well", "b2", "--db", db, "--format", "csv").stdout
    assert text.splitlines()[0] == head.replace(" ", ",")
    assert len(text.splitlines()) == 3
    history = json.loads(sesmo("compound", "@DOXO", "--db", db, "--format", "json").stdout)
    assert [(row["plate"], row["well"], row["dose"], row["timepoint"]) for row in history] == [
        ("P", "B02", 1.5, 1),
        ("P", "B02", 1.5, 2),
    ]
    assert "B02" in sesmo("plate", "P", "--db", db).stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("plate", "P", "--db", "{tmp}/none.db"), 2, "there is no database"),
        (("score", "{tmp}/nowhere", "--db", "{tmp}/s.db"), 2, "there is no folder"),
        (("score", "--db", "{tmp}/s.db"), 2, "score needs a folder"),
        (("score", "{tmp}", "--db", "{tmp}/s.db", "--model", "nonesuch"), 2, "model 'nonesuch' is not there"),
        (("score", "{tmp}", "--db", "{tmp}/s.db", "--plate-wells", "97"), 2, "plates have 6, 12, 24"),
        (("score", "{tmp}", "--db", "{tmp}/s.db", "--treated-at", "yesterday"), 2, "'yesterday' is not ISO 8601"),
        (("run", "--config", "{tmp}/bad.toml"), 2, "did you mean 'scoring'"),
        (("run", "--db", "{tmp}/s.db"), 2, "there is no folder to watch"),
        (("crop", "{tmp}/bad.toml", "--out", "{tmp}/c.npy"), 1, "bad.toml"),
        (("crop", "{tmp}/bad.toml"), 2, "say what to write"),
        (("crop", "{tmp}/none.tif", "--out", "{tmp}/c.npy"), 1, "none.tif"),
        (("platemap", "import", "{tmp}/bad.csv", "--plate", "P", "--db", "{tmp}/s.db"), 2, "B03"),
        (("model", "show", "{tmp}"), 2, "is no model folder"),
        (("timecourse",), 2, "--plate"),
    ],
)
def test_wrong_usage_gets_one_sentence_and_the_right_exit_code(
    tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    (tmp_path / "bad.toml").write_text("[scorring]\n")
    (tmp_path / "bad.csv").write_text("well,compound,dose,unit\nB03,X,1,uM\nB3,X,2,uM\n")
    done = sesmo(*(word.format(tmp=tmp_path) for word in words), code=code)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if not done.stderr.startswith("Usage"):
        assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_help_and_queries_start_without_tensorflow(tmp_path: Path) -> None:
    from db.care import upgrade

    upgrade(tmp_path / "s.db")
    program = (
        "import sys, sesmo_live.cli as c\n"
        "try: c.main()\n"
        "except SystemExit: pass\n"
        "found = {'tensorflow', 'keras', 'cv2', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {found}' if found else 0)\n"
    )
    for words in (("--help",), ("plate", "P", "--db", str(tmp_path / "s.db")), ("model", "list")):
        needless = {"tensorflow", "keras"} if words[0] == "model" else {"tensorflow", "keras", "cv2", "matplotlib"}
        text = program.replace("{'tensorflow', 'keras', 'cv2', 'matplotlib'}", repr(needless))
        done = subprocess.run(
            [sys.executable, "-c", text, *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_no_other_distribution_owns_our_packages() -> None:
    from importlib.metadata import packages_distributions

    owners = packages_distributions()
    for name in ("sesmo_live", "acquisition", "db", "models"):
        assert set(owners.get(name, [])) <= {"sesmo-live"}


@pytest.mark.realdata
def test_every_shared_plate_map_imports(shared: Path, tmp_path: Path) -> None:
    db = tmp_path / "s.db"
    found = {}
    for name in (
        "lincs/C-7161-01-LM6-001.txt",
        "lincs/C-7161-01-LM6-002.txt",
        "lincs/C-7161-01-LM6-003.txt",
        "jump/JUMP-Target-1_compound_platemap.tsv",
        "pyroptosis/Interstellar_plate1_platemap.csv",
        "incucyte/example.PlateMap",
        "incucyte/example_platemap.txt",
    ):
        file = shared / "data/plates" / name
        done = sesmo("platemap", "import", file, "--plate", file.stem, "--db", db, "--format", "json")
        found[file.name] = json.loads(done.stdout)
    jump = found["JUMP-Target-1_compound_platemap.tsv"]
    assert (jump["wells"], jump["positive"], jump["negative"]) == (384, 60, 64)
    assert all(found[f"C-7161-01-LM6-00{k}.txt"]["wells"] == 384 for k in (1, 2, 3))
    assert found["example.PlateMap"]["compounds"] == found["example_platemap.txt"]["compounds"]
    names = query(db, "SELECT name FROM compound")
    assert ("amlodipine",) in names
