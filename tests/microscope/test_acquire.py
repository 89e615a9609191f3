"""`sesmo-live acquire` as its users meet it: what it says, what it refuses, how it ends."""

import json
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.cli import Sesmo, sentence
from tests.figures import figure
from tests.microscope.test_faults import python

pytest.importorskip("mm_test_adapters", reason="needs mm-test-adapters")
pytestmark = pytest.mark.microscope


def write_plan(folder: Path, **changes: str) -> Path:
    """Write a plan; `changes` are whole sections as TOML."""
    from mm_test_adapters import device_adapter_path

    program = json.dumps(device_adapter_path())
    sections = {
        "microscope": f'connection = "headless"\nprogram = {program}\nconfig = "MMConfig_demo.cfg"\nspeed_um_s = 2e5',
        "plate": 'name = "P7"\nwells = 96\nreference = { A01 = [0, 0], A12 = [99000, 0], H01 = [0, 63000] }',
        "imaging": 'wells = ["B02:B04"]\nfields = 2\nframe_px = [512, 512]\npixel_um = 1.24\nexposure_ms = 5',
        "focus": 'device = "Autofocus"\nseconds = 0.1',
        "rounds": "every_min = 30\nfor_h = 2",
        **changes,
    }
    text = 'folder = "images"\n' + "".join(f"[{name}]\n{body}\n" for name, body in sections.items())
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def test_a_dry_run_moves_nothing_and_says_all(sesmo: Sesmo, tmp_path: Path) -> None:
    done = sesmo("acquire", write_plan(tmp_path), "--dry-run", "--format", "json")
    rows = json.loads(done.out)
    assert [(row["well"], row["field"]) for row in rows[:3]] == [("B04", 1), ("B04", 2), ("B03", 1)]
    assert (rows[0]["x_um"], rows[0]["y_um"]) == (27_000 - 349.2, 9_000)
    assert "A01 at 0.0, 0.0 µm, turned by 0.00°, mirrored" in done.err
    assert "a round: 6 frames" in done.err
    assert "5 rounds: 30 frames, 0.02 GB" in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.toml"]


def test_a_round_that_cannot_fit_is_warned_of(sesmo: Sesmo, tmp_path: Path) -> None:
    path = write_plan(tmp_path, rounds="every_min = 0.01\nfor_h = 1")
    assert "warning: a round takes about" in sesmo("acquire", path, "--dry-run").err


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"plate": 'name = "P7"\nwells = 96'}, (), "plate.reference names 0 wells; give the stage position"),
        ({"imaging": "field = 2"}, (), "there is no setting 'imaging.field' in a plan; did you mean 'fields'?"),
        ({}, ("--dry-run", "--preview", "B03"), "each do one thing; give one of them"),
        ({}, ("--out", "x.png"), "--out says where --preview draws"),
        ({}, ("--preview", "H12"), "the plan does not image well H12"),
        ({}, ("--preview", "Z99"), "'Z99' is not a well"),
        ({}, ("--here", "A01"), "the plan has plate.reference already"),
        ({"plate": 'name = "P7"\nwells = 96'}, ("--here", "A01"), "--here needs the running Micro-Manager"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    sesmo: Sesmo, tmp_path: Path, changes: dict[str, str], options: tuple[str, ...], said: str
) -> None:
    assert said in sentence(sesmo("acquire", write_plan(tmp_path, **changes), *options, code=2))


def test_a_preview_shows_cells_and_scores_and_records_nothing(tmp_path: Path) -> None:
    plan, figure_file = write_plan(tmp_path), tmp_path / "b03.png"
    process = python("tests.microscope.cells", "acquire", plan, "--preview", "b3", "--out", figure_file)
    out, err = process.communicate(timeout=110)
    assert process.returncode == 0, err
    assert out == ""
    assert f"wrote {figure_file}: " in err
    assert "mean P(senescent) 0." in err
    assert figure_file.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b03.png", "plan.toml"]


def test_a_microscope_of_another_size_is_refused_before_it_moves(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, rounds="every_min = 1\nfor_h = 0")
    process = python("sesmo-live", "acquire", plan)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "Micro-Manager says 1 µm per pixel, the plan 1.24; correct imaging.pixel_um, or choose the objective" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "sesmo.db").exists()
    assert [path.name for path in (tmp_path / "images").rglob("*.*")] == ["acquisition.lock"]


def test_a_port_or_a_configuration_of_something_else_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.cfg").write_text("Device,Camera,NoSuchLibrary,NoCamera\n")
    headless = f'connection = "headless"\nprogram = {json.dumps(str(tmp_path))}\nconfig = "bad.cfg"'
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for microscope, said in (
            (f"port = {port}", f"Micro-Manager on port {port} refuses: Couldn't create Core"),
            (headless, "Failed to load device"),
        ):
            process = python("sesmo-live", "acquire", write_plan(tmp_path, microscope=microscope))
            _, err = process.communicate(timeout=60)
            assert process.returncode == 3
            (line,) = err.splitlines()
            assert said in line


@pytest.mark.parametrize(
    ("microscope", "said"),
    [
        ("port = 1", "no Micro-Manager answers on port 1; start it, and tick 'Run server on port 1'"),
        ('connection = "headless"\nprogram = "."\nconfig = "none.cfg"', "there is no Micro-Manager configuration"),
    ],
)
def test_a_plan_is_not_begun_without_its_microscope(sesmo: Sesmo, tmp_path: Path, microscope: str, said: str) -> None:
    plan = write_plan(tmp_path, microscope=microscope)
    assert said in sentence(sesmo("acquire", plan, code=3))
    assert not (tmp_path / "sesmo.db").exists()
    assert [path.name for path in (tmp_path / "images").rglob("*.*")] == ["acquisition.lock"]


@pytest.mark.alone
def test_ctrl_c_while_waiting_ends_at_once(tmp_path: Path) -> None:
    process = python("tests.microscope.cells", "acquire", write_plan(tmp_path, rounds="every_min = 5\nfor_h = 1"))
    lines: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if line.startswith("round 2 begins"):
            break
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        lines.append(line)
        if "frames taken" in line:
            break
    seconds = time.monotonic() - began
    process.communicate(timeout=20)
    assert process.returncode == 0, lines
    assert any(line.startswith("round 1: 6 of 6 frames") for line in lines)
    assert "1 round: 6 of 6 frames taken" in lines[-1]
    assert seconds < 2
    figure(f"Ctrl-C while waiting: imaging ended and the microscope parked {seconds:.2f} s later")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demonstration_with_a_microscope(tmp_path: Path) -> None:
    process = python("sesmo-live", "demo", "--microscope", "--output", tmp_path / "demo")
    out, err = process.communicate(timeout=590)
    assert process.returncode == 0, err
    assert err.count("48 of 48 frames") == 4
    assert "imaged once more" in err
    assert "Spearman" in out
    assert "192 of 192 images scored" in err, err
    figure("demo --microscope: 192 of 192 places scored, " + err.partition("scored, ")[2].partition(",")[0])
