"""Virtual plates on disk: every layout's names, half-written files, metadata and the planted truth."""

import csv
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import tifffile

from acquisition.layouts import open_layout
from acquisition.ome import ome_infos
from acquisition.simulator import (
    Response,
    VirtualPlate,
    platemap_rows,
    render_field,
    visible_cells,
    well_truth,
    write_plate,
    write_platemap,
    write_truth,
)
from acquisition.simulator.plate import acquired_at, stage_position_um
from acquisition.simulator.writer import SLOW_PIECES, layout_names
from sesmo_live.errors import UsageError
from sesmo_live.records import Site, Treatment

PLATE = VirtualPlate(
    "TINY",
    24,
    seed=3,
    treatments=(Treatment("A01", "DMSO", "negative"), Treatment("C05", "poison", "treatment", 300, "nM", 0.3)),
    responses={"poison": Response(ec50_um=0.1, onset_hours=5)},
    hours=(0.0, 24.0),
    fields=2,
    shape=(120, 140),
)
CARRY_ALL = (
    "phenix",
    "yokogawa",
    "scanr",
    "sesmo",
    "micro-manager",
    "cytation",
    "imagexpress-db",
    "imagexpress",
    "metamorph",
    "incucyte",
)


def plain(site: Site, _moment: datetime) -> PurePosixPath:
    return PurePosixPath(f"{site.well}/f{site.field}t{site.timepoint}.tif")


def read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("layout", CARRY_ALL)
def test_names_of_every_layout_parse_back(layout: str, tmp_path: Path) -> None:
    read = open_layout(layout)
    found = []
    for path in write_plate(PLATE, tmp_path, layout):
        named = read(tmp_path, path)
        assert named is not None
        assert named.skip == ""
        found.append((named.plate, named.well, named.field, named.timepoint))
    assert found == [("TINY", site.well, site.field, site.timepoint) for site in PLATE.sites]
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == len(PLATE.sites) == 8


@pytest.mark.parametrize(("layout", "message"), [("nikon", "carry no well"), ("micromangler", "did you mean")])
def test_layouts_that_cannot_be_written_say_so(layout: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        next(write_plate(PLATE, tmp_path, layout))


def test_images_on_disk_are_those_rendered(tmp_path: Path) -> None:
    for site, path in zip(PLATE.sites, write_plate(PLATE, tmp_path, "", name_of=plain), strict=True):
        assert path == tmp_path / site.well / f"f{site.field}t{site.timepoint}.tif"
        assert (tifffile.imread(path) == render_field(PLATE, site.well, site.field, site.timepoint)).all()


def test_metadata_tells_when_where_and_how_large(tmp_path: Path) -> None:
    site = PLATE.sites[-1]
    path = list(write_plate(PLATE, tmp_path, "", name_of=plain))[-1]
    with tifffile.TiffFile(path) as file:
        text = file.ome_metadata or ""
    (info,) = ome_infos(text, [0], path.name) or []
    assert info.acquired_at == acquired_at(PLATE, site)
    assert info.acquired_at - PLATE.start == timedelta(hours=24, seconds=6)
    assert info.pixel_um == pytest.approx(1.24)
    assert info.stage_um == pytest.approx(stage_position_um(PLATE, site.well, site.field))
    assert 'SignificantBits="12"' in text


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = ([p.read_bytes() for p in write_plate(PLATE, tmp_path / n, "", name_of=plain)] for n in "ab")
    assert first == second


def test_a_slow_writer_shows_half_a_file_under_its_final_name(tmp_path: Path) -> None:
    sizes: dict[str, set[int]] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for path in tmp_path.rglob("*.tif"):
                sizes.setdefault(path.name, set()).add(path.stat().st_size)
            time.sleep(0.004)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        path = next(write_plate(PLATE, tmp_path, "", slow_bytes=True, name_of=plain))
    finally:
        done.set()
        watcher.join()
    whole = path.stat().st_size
    assert any(0 < size < whole for size in sizes[path.name])
    assert len(sizes[path.name]) <= SLOW_PIECES + 1


def test_a_quick_writer_never_shows_half_a_file(tmp_path: Path) -> None:
    paths = list(write_plate(PLATE, tmp_path, "sesmo"))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(paths)
    assert not list(tmp_path.rglob("*.part"))


def test_a_stopped_writer_ends_after_its_image(tmp_path: Path) -> None:
    stop = threading.Event()
    written = []
    for path in write_plate(PLATE, tmp_path, "sesmo", stop=stop):
        written.append(path)
        if len(written) == 3:
            stop.set()
    assert len(written) == len(list(tmp_path.rglob("*.tif"))) == 3


def test_the_interval_is_kept(tmp_path: Path) -> None:
    began = time.monotonic()
    images = write_plate(PLATE, tmp_path, "sesmo", interval_s=0.25)
    for _ in range(3):
        next(images)
    assert time.monotonic() - began >= 0.5


def test_the_truth_file_holds_what_was_planted(tmp_path: Path) -> None:
    path = write_truth(PLATE, tmp_path / "truth", cells=True)
    rows = read_rows(path)
    assert path.name == "truth.csv"
    assert [(row["well"], int(row["timepoint"])) for row in rows] == [("A01", 1), ("C05", 1), ("A01", 2), ("C05", 2)]
    for row in rows:
        truth = well_truth(PLATE, row["well"], int(row["timepoint"]))
        assert int(row["n_cells"]) == truth.n_cells
        assert float(row["mean_level"]) == truth.mean_level
        assert float(row["fraction_senescent"]) == truth.fraction_senescent
        assert float(row["hours"]) == truth.hours
    assert float(rows[3]["mean_level"]) > float(rows[1]["mean_level"]) + 0.3
    cells = read_rows(tmp_path / "truth" / "cells.csv")
    planted = [visible_cells(PLATE, s.well, s.field, s.timepoint) for s in PLATE.sites]
    assert [int(row["cell"]) for row in cells] == [int(ident) for part, _ in planted for ident in part.ident]
    places = np.array([[float(row["x"]), float(row["y"])] for row in cells])
    np.testing.assert_allclose(places, np.concatenate([at for _, at in planted]), atol=0.006)
    levels = np.array([float(row["level"]) for row in cells if row["well"] == "C05" and row["timepoint"] == "2"])
    assert (levels > 0.5).mean() == pytest.approx(float(rows[3]["fraction_senescent"]), abs=1e-3)


def test_the_plate_map_is_written_as_csv(tmp_path: Path) -> None:
    rows = read_rows(write_platemap(PLATE, tmp_path / "map.csv"))
    assert rows == platemap_rows(PLATE)
    assert rows[1] == {"well": "C05", "compound": "poison", "dose": "300", "unit": "nM", "role": "treatment"}


def test_layouts_that_number_channels_get_a_number() -> None:
    site = PLATE.sites[0]
    assert "C01" in layout_names("yokogawa")(site, datetime(2026, 3, 2, tzinfo=UTC)).name
    assert "Phase" in layout_names("sesmo")(site, datetime(2026, 3, 2, tzinfo=UTC)).name
