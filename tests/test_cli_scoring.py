"""score and run: which settings hold, what ends with which exit code, and what is said of images that have no score."""

import json
import signal
import threading
import time
from pathlib import Path

import pytest

from sesmo_live.cli import service as commands
from tests.cli import Sesmo, runner, sentence, write_wells
from tests.conftest import write_image
from tests.test_service import rows

pytestmark = pytest.mark.usefixtures("stub_scorer")


@pytest.fixture
def sesmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sesmo:
    monkeypatch.chdir(tmp_path)  # no config.toml of the checkout
    return runner(capsys, monkeypatch)


def test_a_block_of_the_configuration_holds_for_its_folder_and_those_below(
    sesmo: Sesmo, tmp_path: Path, stub_model: Path
) -> None:
    inner = tmp_path / "in" / "today"
    write_image(inner / "10X_T0001_XY01_00001_Z001_CH2.tif", 1)
    (tmp_path / "config.toml").write_text(
        "[watching]\nsettle_s = 0\n[[watch]]\nfolder = 'in'\nplate = 'P'\nlayout = 'keyence'\n"
        "wells = { XY01 = 'B02' }\ntimezone = 'Europe/Berlin'\n"
    )
    common = ("--db", tmp_path / "s.db", "--model", stub_model, "--format", "json")
    done = sesmo("score", inner, "--treated-at", "2026-07-01T10:00", *common)
    assert json.loads(done.out)["scored"] == 1
    assert f"{inner}: with the settings of the [[watch]] block of" in done.err
    assert rows(tmp_path / "s.db", "SELECT name, treated_at FROM plate") == [("P", "2026-07-01 08:00:00.000000")]
    assert rows(tmp_path / "s.db", "SELECT well FROM image") == [("B02",)]
    other = sesmo("score", inner, "--plate", "Q", *("--db", tmp_path / "q.db", *common[2:]))
    assert json.loads(other.out)["scored"] == 1
    assert rows(tmp_path / "q.db", "SELECT name FROM plate") == [("Q",)]


def test_score_without_a_folder_scores_all_blocks(sesmo: Sesmo, tmp_path: Path, stub_model: Path) -> None:
    for name in ("one", "two"):
        write_wells(tmp_path / name, "A01")
    (tmp_path / "config.toml").write_text(
        f"[database]\nurl = 's.db'\n[scoring]\nmodel = {json.dumps(str(stub_model))}\n[watching]\nsettle_s = 0\n"
        "[[watch]]\nfolder = 'one'\n[[watch]]\nfolder = 'two'\n"
    )
    done = sesmo("score", "--format", "json")
    assert json.loads(done.out)["scored"] == 2
    assert f"scoring the folders of the configuration: {tmp_path / 'one'}, {tmp_path / 'two'}" in done.err
    assert "--plate is for a folder that is named with it" in sentence(sesmo("score", "--plate", "P", code=2))
    whole = sesmo("score", tmp_path, "--db", tmp_path / "whole.db")
    assert f"without the settings of the [[watch]] blocks of {tmp_path / 'one'}, {tmp_path / 'two'}" in whole.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--treated-at", "2026-03-29T02:30", "--timezone", "Europe/Berlin"), "does not exist in Europe/Berlin"),
        (("--treated-at", "2026-10-25T02:30", "--timezone", "Europe/Berlin"), "comes twice in Europe/Berlin"),
        (("--treated-at", "2026-10-25"), "has no time of day; write it like 2026-10-25T14:30"),
        (("--treated-at", "2026-10-25T12:00"), "has no time zone; write it with its offset"),
        (("--model", "nonesuch"), "model 'nonesuch' is not there; give a model folder or one of"),
    ],
)
@pytest.mark.parametrize("command", ["score", "run"])
def test_what_leaves_a_choice_or_is_not_there_is_refused(
    sesmo: Sesmo, tmp_path: Path, command: str, words: tuple[str, ...], said: str
) -> None:
    write_wells(tmp_path / "in")
    folder = (tmp_path / "in",) if command == "score" else ("--watch", tmp_path / "in")
    assert said in sentence(sesmo(command, *folder, "--db", tmp_path / "s.db", *words, code=2))
    assert not (tmp_path / "s.db").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("in",), "takes no FOLDER; leave one of them out"),
        (("--db", "s.db"), "takes no --db"),
        (("--plate", "P"), "takes no --plate"),
    ],
)
def test_conditions_refuse_what_they_would_ignore(sesmo: Sesmo, words: tuple[str, ...], said: str) -> None:
    assert said in sentence(sesmo("score", "--conditions", "c", *words, code=2))


def test_out_without_conditions_is_refused(sesmo: Sesmo, tmp_path: Path) -> None:
    assert "--out says where --conditions writes" in sentence(sesmo("score", tmp_path, "--out", "x", code=2))


def test_an_empty_folder_and_a_wrong_channel_or_plane_are_said(sesmo: Sesmo, tmp_path: Path, stub_model: Path) -> None:
    common = ("--db", tmp_path / "s.db", "--model", stub_model)
    (tmp_path / "empty").mkdir()
    assert f"there are no images in {tmp_path / 'empty'}" in sentence(
        sesmo("score", tmp_path / "empty", *common, code=2)
    )
    write_wells(tmp_path / "in", "A01 A02")
    for words in (("--z", 7), ("--channel", "DAPI")):
        done = sesmo("score", tmp_path / "in", *common, *words, code=1)
        assert f"not scored: 2 of the images in {tmp_path / 'in'}, skipped: " in done.err
        assert "has the channels Phase and the focal planes 0; choose with --channel and --z" in done.err
    assert sesmo("score", tmp_path / "in", *common).err.count("not scored") == 0
    assert sesmo("score", tmp_path / "in", *common).err == ""  # all unchanged: nothing to complain of


def test_a_folder_of_other_pictures_is_said(sesmo: Sesmo, tmp_path: Path, stub_model: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"A0{number + 1}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = sesmo("score", tmp_path / "in", "--db", tmp_path / "s.db", "--model", stub_model, code=1)
    assert "not scored: 3 of the images in" in done.err
    assert "PNG files are not read" in done.err


def test_failures_of_one_kind_take_one_line(sesmo: Sesmo, tmp_path: Path, stub_model: Path) -> None:
    write_wells(tmp_path / "in", "A01")
    for number in range(2, 8):
        (tmp_path / "in" / f"A0{number}_f1_t1_cPhase_z0.tif").write_bytes(b"not a TIFF at all, whatever its name says")
    (tmp_path / "in" / "holiday.tif").write_bytes(b"x")
    done = sesmo("score", tmp_path / "in", "--db", tmp_path / "s.db", "--model", stub_model, code=1)
    lines = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert [line for line in lines if line.startswith("failed: 6 images: FILE ")], lines
    assert any(line.endswith("; first: A02_f1_t1_cPhase_z0.tif") for line in lines)
    assert [line.count("holiday.tif") for line in lines if "holiday" in line] in ([1], [2]), lines


@pytest.mark.parametrize("broken", [True, False])
def test_run_ends_with_1_when_images_failed_and_0_when_none_did(
    sesmo: Sesmo, tmp_path: Path, stub_model: Path, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wells(tmp_path / "in", "A01")
    if broken:
        (tmp_path / "in" / "holiday.tif").write_bytes(b"x")
    (tmp_path / "config.toml").write_text("[watching]\nsettle_s = 0.1\nscan_interval_s = 0.2\nretries = 0\n")
    monkeypatch.setattr(commands, "PROGRESS_EVERY_S", 0.0)

    over = threading.Event()

    def end() -> None:
        until = time.monotonic() + 60
        done = False
        while not (done or over.is_set()) and time.monotonic() < until:
            time.sleep(0.1)
            if (tmp_path / "s.db").exists():
                try:
                    done = rows(tmp_path / "s.db", "SELECT count(*) FROM image WHERE state = 'scored'") == [(1,)]
                except Exception:  # noqa: BLE001, S112 — the schema is being made
                    continue
        if not over.is_set():  # a signal after the command's end would end the tests
            signal.raise_signal(signal.SIGTERM)

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    words = ("run", "--watch", tmp_path / "in", "--db", tmp_path / "s.db", "--model", stub_model, "--no-page")
    try:
        done = sesmo(*words, code=1 if broken else 0)
    finally:
        over.set()
        thread.join(10)
    assert f"watching {tmp_path / 'in'}; scores go to" in done.err
    assert ("failed: " in done.err) is broken


def test_run_does_not_say_that_it_watches_before_it_can(sesmo: Sesmo, tmp_path: Path, stub_model: Path) -> None:
    words = ("run", "--watch", tmp_path / "none", "--db", tmp_path / "s.db", "--model", stub_model)
    assert "there is no folder" in sentence(sesmo(*words, code=2))


def test_progress_is_told_where_there_is_no_terminal(
    sesmo: Sesmo, tmp_path: Path, stub_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wells(tmp_path / "in", "A01 A02 A03")
    words = ("score", tmp_path / "in", "--db", tmp_path / "s.db", "--model", stub_model)
    monkeypatch.setattr(commands, "PROGRESS_EVERY_S", 0.0)
    assert "3 images: 3 scored, 0 pending" in sesmo(*words).err
