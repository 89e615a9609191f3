"""Files that are done leave memory: what happens to them later is still seen, counted and done once."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import acquisition.folder
from acquisition.ndtiff import INDEX_NAME, ndtiff_pixels
from acquisition.tree import list_tree
from db.engine import open_engine
from db.ledger import ask_again
from sesmo_live import service, session
from sesmo_live.config import Settings
from sesmo_live.ingest.intake import Intake
from sesmo_live.service import score_folder
from tests.conftest import blobs, settings, write_image
from tests.test_ndtiff import entries
from tests.test_service import during, rows

pytestmark = pytest.mark.usefixtures("stub_scorer")


def name(well: str, channel: str = "Phase") -> str:
    return f"{well}_f1_t1_c{channel}_z0.tif"


def states(db: Path) -> dict[str, str]:
    return {Path(path).name: state for path, state in rows(db, "SELECT path, state FROM image ORDER BY generation")}


@pytest.fixture
def intakes(monkeypatch: pytest.MonkeyPatch) -> list[Intake]:
    """Return the intakes that a run makes, as it makes them."""
    made: list[Intake] = []
    build: Callable[..., None] = Intake.__init__

    def keep(self: Intake, *arguments: Any) -> None:
        build(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Intake, "__init__", keep)
    return made


def in_memory(intakes: list[Intake]) -> list[str]:
    return sorted(state.path.name for intake in intakes for state in intake.files)


def test_no_file_stays_in_memory_scored_lost_or_moved(tmp_path: Path, stub_model: Path, intakes: list[Intake]) -> None:
    folder = tmp_path / "in"
    for number in range(1, 7):
        write_image(folder / name(f"A0{number}"), number)

    def act(wait_for: Any) -> None:
        wait_for(lambda now: now.scored == 6)
        assert in_memory(intakes) == []
        for number in (1, 2, 3):
            (folder / name(f"A0{number}")).unlink()
        (folder / "archive").mkdir()
        for number in (4, 5, 6):
            (folder / name(f"A0{number}")).rename(folder / "archive" / name(f"A0{number}"))
        time.sleep(2.5)

    summary = during(settings(folder, tmp_path / "s.db", stub_model, plate="P"), act)
    assert (summary.progress.scored, summary.progress.pending) == (6, 0)
    assert in_memory(intakes) == []
    assert rows(tmp_path / "s.db", "SELECT COUNT(*), SUM(state = 'scored') FROM image") == [(6, 6)]


def test_no_file_stays_in_memory_that_was_held(tmp_path: Path, stub_model: Path, intakes: list[Intake]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in (1, 2, 3):
        pixels = blobs(number)
        pixels[-10:] = 0
        tifffile.imwrite(folder / name(f"A0{number}"), pixels)
    config = settings(folder, tmp_path / "s.db", stub_model, plate="P", black_edges=True)
    config = config.model_copy(update={"watching": config.watching.model_copy(update={"zero_tail_hold_s": 0.8})})
    during(config, lambda wait_for: wait_for(lambda now: now.scored == 3))
    assert in_memory(intakes) == []


def test_a_set_of_files_that_name_each_other_leaves_memory(
    tmp_path: Path, stub_model: Path, intakes: list[Intake]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = [f"A01_f1_t{number + 1}_cPhase_z0.ome.tif" for number in range(4)]
    plane = '<TiffData FirstT="{0}" IFD="0" PlaneCount="1"><UUID FileName="{1}">urn:uuid:{0}</UUID></TiffData>'
    planes = "".join(plane.format(number, each) for number, each in enumerate(names))
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:{}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="256" '
        f'SizeY="256" SizeC="1" SizeZ="1" SizeT="4">{planes}</Pixels></Image></OME>'
    )

    def act(wait_for: Any) -> None:
        for number, each in enumerate(names):
            tifffile.imwrite(folder / each, blobs(number), description=text.format(number), metadata=None)
            wait_for(lambda now, done=number + 1: now.scored == done)

    during(settings(folder, tmp_path / "s.db", stub_model, plate="P"), act)
    assert in_memory(intakes) == []


def test_a_channel_that_turns_out_to_be_the_right_one_is_scored(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "in", tmp_path / "s.db"
    for number in (1, 2):
        write_image(folder / f"P_B02_s1_w{number}.tif", number)

    def act(wait_for: Any) -> None:
        wait_for(lambda now: (now.scored, now.skipped) == (1, 1))
        described = {"axes": "YX", "Channel": {"Name": "Phase contrast"}}
        tifffile.imwrite(folder / "P_B03_s1_w2.tif", blobs(3), ome=True, metadata=described)
        wait_for(lambda now: (now.scored, now.skipped, now.pending) == (2, 1, 0))

    during(settings(folder, db, stub_model, plate="P", layout="imagexpress"), act)
    assert states(db) == {"P_B02_s1_w1.tif": "skipped", "P_B02_s1_w2.tif": "scored", "P_B03_s1_w2.tif": "scored"}


def test_another_channel_in_the_configuration_counts_for_all_files_of_a_large_folder(
    tmp_path: Path, stub_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SIGHTING_PIECE", 2)
    folder, db = tmp_path / "in", tmp_path / "s.db"
    files = [name(well, channel) for well in ("A01", "A02", "A03") for channel in ("Phase", "DAPI")]
    for number, file in enumerate(files):
        write_image(folder / file, number)
    for channel in ("Phase", "DAPI", "Phase"):
        score_folder(settings(folder, db, stub_model, plate="P", channel=channel))
        assert states(db) == {file: "scored" if channel in file else "skipped" for file in files}


def slow_first_scan(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    real, first = list_tree, [True]

    def slow(*arguments: Any) -> Any:
        found = real(*arguments)
        if first:
            first.clear()
            time.sleep(seconds)
        return found

    monkeypatch.setattr(acquisition.folder, "list_tree", slow)


def asked_again(tmp_path: Path, model: Path, n: int, *, sound: bool) -> Settings:
    """Return settings of a folder whose images failed and were asked to be tried again; they are `sound` now or not."""
    folder, db = tmp_path / "in", tmp_path / "s.db"
    folder.mkdir()
    config = settings(folder, db, model, plate="P")
    files = [folder / f"A01_f{number + 1}_t1_cPhase_z0.tif" for number in range(n)]
    for file in files:
        file.write_bytes(b"II*\0" + b"\xff" * 500)
    score_folder(config)
    for number, file in enumerate(files if sound else ()):
        write_image(file, number)
    engine = open_engine(db, write=True)
    with engine.begin() as connection:
        assert ask_again(connection, {}) == n
    engine.dispose()
    return config


def test_what_was_asked_while_nobody_ran_waits_for_the_first_look(
    tmp_path: Path, stub_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = asked_again(tmp_path, stub_model, 3, sound=False)
    slow_first_scan(monkeypatch, 1.5)
    assert score_folder(config).progress.failed == 3


def test_what_was_asked_is_scored_by_a_daemon_that_begins(
    tmp_path: Path, stub_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = asked_again(tmp_path, stub_model, 40, sound=True)
    slow_first_scan(monkeypatch, 1.0)
    during(config, lambda wait_for: wait_for(lambda now: now.scored == 40))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("lamp_on", [True, False])
def test_an_ndtiff_that_grows_frame_by_frame_is_read_once_a_frame(
    tmp_path: Path, stub_model: Path, monkeypatch: pytest.MonkeyPatch, lamp_on: bool
) -> None:
    from ndstorage import NDTiffDataset

    reads: list[int] = []

    def read(path: Path, page: int) -> Any:
        reads.append(page)
        return ndtiff_pixels(path, page)

    monkeypatch.setattr(service, "ndtiff_pixels", read)
    folder, db = tmp_path / "in", tmp_path / "s.db"
    folder.mkdir()
    data = NDTiffDataset(str(tmp_path), name="acq", summary_metadata={}, writable=True)
    for number in range(5):
        pixels = blobs(number).astype(np.uint16) if lamp_on else np.full((256, 256), 90, np.uint16)
        data.put_image({"time": number, "position": "Pos0"}, pixels, {"PositionName": "Pos0"})
    data.finish()
    data.close()
    made = tmp_path / "acq_1"
    ends, index = entries(made), (made / INDEX_NAME).read_bytes()
    (made / INDEX_NAME).write_bytes(index[: ends[1]])
    made.rename(folder / "acq_1")

    def act(wait_for: Any) -> None:
        for frames in range(1, 6):
            (folder / "acq_1" / INDEX_NAME).write_bytes(index[: ends[frames]])
            wait_for(lambda now, done=frames: (now.scored + now.refused, now.pending) == (done, 0))

    during(settings(folder, db, stub_model, plate="P", wells={"Pos0": "B02"}), act)
    assert sorted(reads) == list(range(5))
    state = "scored" if lamp_on else "refused"
    assert rows(db, "SELECT page, timepoint, state FROM image ORDER BY page") == [(k, k, state) for k in range(5)]
