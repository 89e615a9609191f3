"""Commands that write files: refused before anything is touched, in one sentence with a remedy."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sesmo_live.cli import explain
from tests.cli import Sesmo, runner, sentence
from tests.conftest import write_image
from tests.stub import write_stub_model

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("stub_scorer")


@pytest.fixture
def sesmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sesmo:
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch)


AS_ANYBODY = """
import os, sys
if os.geteuid() == 0:  # to whom no folder is closed: give up the powers that override rights
    import ctypes
    for power in (1, 2):
        assert ctypes.CDLL(None).prctl(24, power, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-m", "tests.stub", *sys.argv[1:]])
"""
SIX = ("--plate-wells", 6, "--hours", "0")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--layout", "keyence"), "layout 'keyence' carry no well and are not written"),
        (("--layout", "imagexprss"), "did you mean 'imagexpress'"),
        (("--fields", 0), "--fields 0 is too small"),
        (("--hours", "0,-24"), "times from 0 in rising order"),
        (("--hours", "24,0"), "times from 0 in rising order"),
        (("--hours", "0,nan"), "times from 0 in rising order"),
        (("--interval-s", "-1"), "--interval-s -1.0 is too small"),
        (("--seed", "-1"), "--seed -1 is too small"),
        (("--plate-wells", 7), "no plate of 7 wells"),
    ],
)
def test_simulate_checks_everything_first(sesmo: Sesmo, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    assert said in sentence(sesmo("simulate", tmp_path / "a" / "in", *SIX, *words, code=2))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["platemap.csv", "truth.csv", "in/A01.tif", "in"])
def test_simulate_overwrites_nothing(sesmo: Sesmo, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    said = sentence(sesmo("simulate", tmp_path / "in", *SIX, code=2))
    assert f"{tmp_path / name.split('/')[0]} exists already and would be overwritten; give a new folder" in said
    assert (tmp_path / name).read_text() == "mine"
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 1


def test_simulate_writes_into_an_empty_folder(sesmo: Sesmo, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert f"wrote 6 images of plate VIRTUAL to {tmp_path / 'in'}" in sesmo("simulate", tmp_path / "in", *SIX).err
    assert (tmp_path / "truth.csv").is_file()


@pytest.mark.parametrize("layout", ["keyence", "nonesuch"])
def test_a_demo_in_a_layout_that_cannot_be_written_touches_nothing(sesmo: Sesmo, tmp_path: Path, layout: str) -> None:
    demo = tmp_path / "demo"
    demo.mkdir()
    for name in ("truth.csv", "platemap.csv", "sesmo.db"):
        (demo / name).write_text("of an earlier demo")
    sentence(sesmo("demo", "--output", demo, "--layout", layout, code=2))
    assert (demo / "sesmo.db").read_text() == "of an earlier demo"


def test_conditions_without_pictures_fail_before_tensorflow_loads(tmp_path: Path) -> None:
    (tmp_path / "c" / "control").mkdir(parents=True)
    program = (
        "import sys, sesmo_live.cli as c\n"
        "try: c.main()\n"
        "except SystemExit as end: print(end.code, {'tensorflow', 'keras'} & set(sys.modules))\n"
    )
    words = ("score", "--conditions", tmp_path / "c", "--out", tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "2 set()\n"
    assert "holds no pictures" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_one_sentence(sesmo: Sesmo, tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "x"
    for words in (
        ("crop", tmp_path / "a.tif", "--out", inside),
        ("crop", tmp_path / "a.tif", "--positions", inside),
        ("simulate", inside / "in", *SIX),
        ("demo", "--output", inside),
    ):
        said = sentence(sesmo(*words, code=2))
        assert str(tmp_path / "file") in said
        assert "; " in said
    missing = sentence(sesmo("crop", tmp_path / "a.tif", "--out", tmp_path / "none" / "c.npy", code=2))
    assert "create its folder first" in missing


@pytest.mark.skipif(sys.platform == "win32", reason="rights of folders are another thing on Windows")
def test_a_folder_that_is_read_only_is_one_sentence(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    for words in (
        ("crop", tmp_path / "a.tif", "--out", closed / "c.npy"),
        ("simulate", closed / "in", *map(str, SIX)),
        ("demo", "--output", closed / "demo"),
        ("score", "--conditions", tmp_path / "c", "--out", closed / "out"),
    ):
        (tmp_path / "c" / "control").mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "c" / "control" / "a.tif")
        done = subprocess.run(
            [sys.executable, "-c", AS_ANYBODY, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert str(closed) in last
        assert "Permission denied; choose a place where you may read and write" in last
        assert "Traceback" not in done.stderr


def test_errors_of_the_system_name_the_file_and_the_remedy() -> None:
    assert explain(PermissionError(errno.EACCES, "Permission denied", "a.npy")) == (
        "a.npy: Permission denied; choose a place where you may read and write, or have its rights changed",
        2,
    )
    assert explain(OSError(errno.ENOSPC, "No space left on device")) == (
        "a file: No space left on device; check its disk, its room and its connection, then try again",
        3,
    )


def test_crop_gives_remedies_that_fit_a_single_command(sesmo: Sesmo, tmp_path: Path) -> None:
    whole = write_image(tmp_path / "a.tif")
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole.read_bytes()[:2000])
    out = ("--out", tmp_path / "c.npy")
    for words in ((cut,), (tmp_path / "none.tif",), (whole, "--page", 3)):
        said = sentence(sesmo("crop", *words, *out, code=1))
        assert "again" not in said
        assert said.endswith("give a whole image" + (" and a page that it has" if "--page" in words else ""))
    assert "cells in a.tif" in sesmo("crop", whole, *out).err
    assert len(np.load(tmp_path / "c.npy")) > 1


def test_model_show_checks_the_weights(sesmo: Sesmo, tmp_path: Path) -> None:
    folder = write_stub_model(tmp_path / "m")
    assert json.loads(sesmo("model", "show", folder).out)["name"] == "stub"
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(weights)
    assert "does not have the hash in its passport" in sentence(sesmo("model", "show", folder, code=3))
    assert "model 'nonesuch' is not there" in sentence(sesmo("model", "show", "nonesuch", code=2))


def test_import_keras_takes_the_pixel_size_and_names_a_missing_file(sesmo: Sesmo, tmp_path: Path) -> None:
    from tests.test_keras_import import write_h5, write_json
    from tests.test_network import SHAPES

    rng = np.random.default_rng(1)
    write_h5(tmp_path / "w.h5", {name: rng.normal(0, 0.05, shape).astype("f4") for name, shape in SHAPES.items()})
    model = write_json(tmp_path / "m.json")
    words = ("model", "import-keras", model, tmp_path / "w.h5", "--out", tmp_path / "out")
    assert "is no size of a pixel" in sentence(sesmo(*words, "--pixel-um", 0, code=2))
    sesmo(*words, "--pixel-um", 0.65)
    assert json.loads(sesmo("model", "show", tmp_path / "out").out)["pixel_um"] == 0.65
    missing = ("model", "import-keras", tmp_path / "none.json", tmp_path / "w.h5", "--out", tmp_path / "x")
    assert "none.json cannot be read" in sentence(sesmo(*missing, code=2))
