"""Labelled cells from folders, crops and plates: grouped as coarsely as their names allow, refused in one sentence."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from db.engine import open_engine
from db.plates import import_treatments
from models.datasets import Source, digest_of, fit_cell, gather, groups_of, load_crops, read_groups
from sesmo_live.errors import ImageError, UsageError
from sesmo_live.labelled import Reading, draft_passport, gather_controls, gather_folders
from sesmo_live.records import Treatment
from sesmo_live.service import score_folder
from tests.cli import write_wells
from tests.conftest import settings, write_image

DRAFT = draft_passport("m", None, "deep-sesmo-either")
FIELDS = Reading(DRAFT)


def crops(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 50, 50)).astype(np.uint8)


def source(label: int, name: str, n: int = 8, **more: Any) -> Source:
    return Source(name, label, crops(n), [f"{label}{name}"], **more)


def single(folder: Path, names: Sequence[str], size: int = 80, **options: Any) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        rng = np.random.default_rng([number, len(str(folder))])
        tifffile.imwrite(folder / name, rng.integers(0, 256, (size, size)).astype(np.uint8), **options)
    return folder


@pytest.mark.parametrize(
    ("places", "split", "n_groups"),
    [
        ([(label, f"P{plate}", f"A{well}", "1") for label in (0, 1) for plate in "12" for well in "34"], "by plate", 2),
        ([(label, "P1", f"{'AB'[label]}0{well}", "1") for label in (0, 1) for well in (1, 2)], "by well", 4),
        ([(label, "", f"A0{well}", "1") for label in (0, 1) for well in (1, 2)], "by well", 4),
        ([(label, "P1", f"{'AB'[label]}01", f"f{field}") for label in (0, 1) for field in (1, 2, 2)], "by field", 4),
        ([(label, "", "", "") for label in (0, 1) for _ in range(3)], "by picture", 6),
    ],
)  # fmt: skip
def test_the_coarsest_group_that_each_class_has_twice_is_taken(
    places: list[tuple[int, str, str, str]], split: str, n_groups: int
) -> None:
    sources = [
        source(label, str(number), plate=plate, well=well, field=field)
        for number, (label, plate, well, field) in enumerate(places)
    ]
    cells = gather(sources)
    assert cells.split.startswith(split)
    assert len(set(cells.groups)) == n_groups
    for index in range(2):
        rows = [number for number, place in enumerate(places) if place == places[index]]
        of_rows = {cells.groups[8 * number] for number in rows}
        assert len(of_rows) == 1 or split == "by picture"  # time points of one field stay together
    assert len(cells) == len(cells.groups) == len(cells.plates) == len(cells.pictures) == 8 * len(places)
    assert bool(cells.notes) == (split == "by picture")


def test_ungrouped_crops_are_used_and_warned_of() -> None:
    cells = gather([source(0, "c.npy", 20), source(1, "s.npy", 20)])
    assert (len(set(cells.groups)), cells.split) == (40, "by cell")
    assert "may lie on both sides" in cells.notes[0]
    declared = gather([source(0, "c", 20, group=["a"] * 10 + ["b"] * 10), source(1, "s", 20, group=["c"] * 20)])
    assert declared.groups == ["a"] * 10 + ["b"] * 10 + ["c"] * 20
    assert declared.notes == ()


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ([source(0, "c", 20)], "no cell was found among the senescent images; give at least 10"),
        ([source(0, "c", 20), source(1, "s", 0)], "no cell was found among the senescent"),
        ([source(0, "c", 3), source(1, "s", 20)], "only 3 cells were found among the healthy images"),
        ([source(0, "c", 1), source(1, "s", 20)], "only 1 cell was found"),
        ([source(0, "x", 20), Source("y", 1, crops(20), ["0x"])], "y and x hold the same picture"),
    ],
)
def test_too_little_and_contradictions_are_one_sentence(sources: list[Source], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        gather(sources)


def test_copies_are_used_once_and_told_of() -> None:
    some, others = crops(12, 1), crops(12, 2)

    def loose(name: str, label: int, cells: NDArray[np.uint8], group: str) -> Source:
        return Source(name, label, cells, [digest_of(cell) for cell in cells], group=[group])

    half = np.concatenate([some[:5], crops(7, 3)])
    cells = gather([loose("a", 0, some, "p1"), loose("copy", 0, half, "p2"), loose("s", 1, others, "p3")])
    assert len(cells) == 12 + 7 + 12
    assert len(set(cells.digests)) == len(cells)
    assert cells.groups == ["p1"] * 12 + ["p2"] * 7 + ["p3"] * 12
    assert cells.notes == ("5 cells were copies of others, and left out",)
    twice = gather([source(0, "f", 12), source(0, "f", 12), source(1, "s", 12)])
    assert twice.pictures == ["f"] * 12 + ["s"] * 12


def test_pictures_of_several_scales_are_told_of_unless_they_are_resampled() -> None:
    def pictures(**more: Any) -> list[Source]:
        return [source(0, "a", 12, pixel_um=0.65, **more), source(1, "s", 12, pixel_um=1.3, **more)]

    assert "0.65 to 1.3 µm per pixel" in gather(pictures()).notes[0]
    assert "scales" not in gather(pictures(scale=0.5)).notes[0]


def test_fields_of_a_layout_are_cropped_and_grouped_by_well(tmp_path: Path) -> None:
    control = write_wells(tmp_path / "control", "A01 A02", times=2)
    senescent = tmp_path / "senescent"
    for number, name in enumerate(("B01_f1_t1", "B01_f2_t1", "B02_f1_t1")):
        write_image(senescent / f"{name}_cPhase_z0.tif", 50 + number)
    cells = gather_folders([control], [senescent], FIELDS)
    assert cells.split == "by well"
    assert len(set(cells.groups)) == 4
    assert cells.crops.shape[1:] == (50, 50)
    assert len(set(cells.pictures)) == 7
    assert not cells.failures
    assert cells.labels.sum() == sum("senescent" in Path(name).parts for name in cells.pictures)
    assert set(cells.fields) == set(cells.pictures)
    assert cells.fields[cells.pictures[0]]().shape == (256, 256)


def test_the_scale_of_the_pictures_is_known_only_where_all_have_the_same(tmp_path: Path) -> None:
    folders = [write_wells(tmp_path / "c", "A01 A02", times=2), tmp_path / "s"]
    for number, name in enumerate(("B01_f1_t1", "B01_f2_t1", "B02_f1_t1")):
        write_image(folders[1] / f"{name}_cPhase_z0.tif", 50 + number)
    unknown, declared = (
        gather_folders(folders[:1], folders[1:], dataclasses.replace(FIELDS, pixel_um=scale)) for scale in (None, 0.5)
    )
    assert (unknown.pixel_um, declared.pixel_um) == (None, 0.5)
    scales = (0.5, 0.51), (0.5, 0.7), (0.5, None)
    of_two = [gather([source(0, "a", 12, pixel_um=one), source(1, "b", 12, pixel_um=two)]) for one, two in scales]
    assert [cells.pixel_um for cells in of_two] == [0.505, None, None]
    one, other = ([single(tmp_path / name, [f"{name}{i}.tif" for i in range(12)])] for name in ("one", "other"))
    single_cells = gather_folders(one, other, dataclasses.replace(FIELDS, pixel_um=0.5))
    assert single_cells.pixel_um is None  # resized whole, they have no scale that is known


def test_single_cells_are_brought_to_size(tmp_path: Path) -> None:
    control, senescent = (single(tmp_path / name, [f"x{i}.tif" for i in range(12)]) for name in ("c", "longer"))
    cells = gather_folders([control], [senescent], FIELDS)
    assert len(cells) == 24
    assert any("80×80 px were taken for single cells and resized to 50×50 px" in note for note in cells.notes)
    scaled = Reading(draft_passport("m", 1.0, "deep-sesmo-either"), pixel_um=0.5)
    cells = gather_folders([control], [senescent], scaled)
    assert not any("resized" in note for note in cells.notes)
    assert (cells.crops[0, :4] == cells.crops[0, :1]).all()  # 40 px of cell, its edge continued to 50
    with pytest.raises(UsageError, match="no cell was found"):  # noise holds no cells, and small fields no crops
        gather_folders([control], [senescent], Reading(DRAFT, kind="fields", crop=None, layout="auto"))


def test_a_declared_scale_keeps_the_cell_in_the_middle() -> None:
    image = np.full((200, 160), 100, np.uint8)
    image[80:120, 60:100] = 200
    for scale, side in ((0.5, 20), (1.0, 40), (None, None)):
        crop = fit_cell(image, 50, scale)
        assert crop.shape == (50, 50)
        bright = np.argwhere(crop > 150)
        assert abs(bright.mean(axis=0) - 24.5).max() <= 1
        if side:
            assert abs(np.ptp(bright, axis=0) + 1 - side).max() <= 1
    small = fit_cell(image[90:110, 70:90], 50, 2.0)
    assert (small == 200).all()


def test_npy_crops_are_read_and_grouped_by_csv(tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", crops(20))
    np.save(tmp_path / "s.npy", crops(20, 1))
    table = tmp_path / "groups.csv"
    lines = [f"c.npy,{cell},w{cell % 4}" for cell in range(20)] + ["s.npy,,w9"]
    table.write_text("file,cell,group\n" + "\n".join(lines) + "\n", encoding="utf-8")
    both = [tmp_path / "c.npy"], [tmp_path / "s.npy"]
    cells = gather_folders(*both, Reading(DRAFT, groups=read_groups(table)))
    assert cells.groups == [f"w{cell % 4}" for cell in range(20)] + ["w9"] * 20
    assert len(set(cells.digests)) == 40
    assert "leak" in gather_folders(*both, FIELDS).notes[0] or "both sides" in gather_folders(*both, FIELDS).notes[0]
    table.write_text("file,cell,group\nc.npy,0,a\n", encoding="utf-8")
    with pytest.raises(UsageError, match="--groups says nothing of cell 1 of .*c.npy"):
        gather_folders(*both, Reading(DRAFT, groups=read_groups(table)))


def test_a_group_file_that_is_wrong_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "g.csv"
    for text, words in (
        ("name,group\nx,y\n", "needs the columns file and group"),
        ("file,group\na,b\nc,\n", "line 3"),
        ("file,group,cell\na,b,-1\n", "line 2"),
        ("file,group,cell\na,b,²\n", "line 2"),
        ("file,group\na,b\na,c\n", "line 3: a was in group 'b' before"),
        (f"file,group\na,{'x' * 140_000}\n", "cannot be read as CSV"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=words):
            read_groups(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read as CSV"):
        read_groups(path)
    assert groups_of({("a", 1): "x", ("a", None): "y"}, ["dir/a", "a"], 3) == ["y", "x", "y"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (crops(3)[:, :40], r"holds uint8 of shape \(3, 40, 50\); crops are uint8 of shape \(cells, 50, 50\)"),
        (crops(3).astype(np.float32), "holds float32"),
        (crops(3)[0], r"shape \(50, 50\)"),
        (b"no array", "is no whole NumPy file of plain numbers; write it with numpy.save"),
        (np.array([{}]), "is no whole NumPy file of plain numbers; write it with numpy.save"),
    ],
)
def test_crops_of_a_wrong_shape_are_named(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "x.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(ImageError, match=words):
        load_crops(path, 50)


def test_folders_that_cannot_be_are_refused(tmp_path: Path) -> None:
    control = write_wells(tmp_path / "control", "A01")
    for other, words in (
        (control, "both as healthy and as senescent"),
        (control / ".." / "control", "both as healthy and as senescent"),
        (tmp_path, "one lies in the other"),
        (tmp_path / "none", "there is no folder"),
    ):
        with pytest.raises(UsageError, match=words):
            gather_folders([control], [other], FIELDS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no pictures"):
        gather_folders([control], [tmp_path / "empty"], FIELDS)
    mixed = write_wells(tmp_path / "mixed", "B01")
    write_image(mixed / "B02_f1_t1_cGFP_z0.tif", 3)
    with pytest.raises(UsageError, match="the channels GFP, Phase"):
        gather_folders([control], [mixed], FIELDS)


def test_an_unreadable_picture_is_left_out_and_named(tmp_path: Path) -> None:
    control, senescent = write_wells(tmp_path / "c", "A01"), write_wells(tmp_path / "s", "B01 B02 B03")
    (senescent / "B01_f1_t1_cPhase_z0.tif").unlink()  # the same picture as that of A01
    (senescent / "B03_f1_t1_cPhase_z0.tif").write_bytes(b"II*\0broken")
    cells = gather_folders([control], [senescent], FIELDS)
    ((path, reason),) = cells.failures
    assert path.endswith("B03_f1_t1_cPhase_z0.tif")
    assert reason.endswith("copy it anew and run the same command again")
    for file in senescent.glob("B02*"):
        file.unlink()
    with pytest.raises(UsageError, match="no cell was found among the senescent images.*first of 1 that failed: .*B03"):
        gather_folders([control], [senescent], FIELDS)


def test_a_copy_under_another_name_has_the_same_digest(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.tif", 1)
    pixels = tifffile.imread(path)
    tifffile.imwrite(tmp_path / "b.tif", pixels, compression="zlib")
    assert digest_of(tifffile.imread(tmp_path / "b.tif")) == digest_of(pixels)
    assert digest_of(pixels.astype(np.uint16)) != digest_of(pixels)
    assert digest_of(pixels.T) != digest_of(pixels)


@pytest.mark.usefixtures("stub_scorer")
def test_control_wells_of_a_plate_become_labelled_cells(tmp_path: Path, stub_model: Path) -> None:
    folder, db = tmp_path / "plate", tmp_path / "sesmo.db"
    write_wells(folder, "A01 A02 B01 B02 C01", times=2)
    score_folder(settings(folder, db, stub_model, plate="P1"))
    engine = open_engine(db, write=True, checkpoint=False)
    with pytest.raises(UsageError, match="no negative control wells"):
        gather_controls(engine, "P1", FIELDS)
    treatments = [
        *(Treatment(well, "DMSO", "negative") for well in ("A01", "A02")),
        *(Treatment(well, "doxorubicin", "positive", 1.0, "uM", 1.0) for well in ("B01", "B02")),
        Treatment("C01", "other", "treatment"),
    ]
    with engine.begin() as connection:
        import_treatments(connection, "P1", treatments, None)
    cells = gather_controls(engine, "P1", FIELDS)
    assert cells.split == "by well"
    assert {group.split()[-1]: label for group, label in zip(cells.groups, cells.labels, strict=True)} == {
        "A01": 0, "A02": 0, "B01": 1, "B02": 1,
    }  # fmt: skip
    assert set(cells.stressors) == {"", "doxorubicin"}
    assert set(cells.plates) == {"P1"}
    assert len(set(cells.pictures)) == 8
    assert any("--from-hours" in note for note in cells.notes)
    with pytest.raises(UsageError, match="no scored images of its control wells from 1000 h"):
        gather_controls(engine, "P1", FIELDS, from_hours=1000)
    with pytest.raises(UsageError, match="there is no plate 'Q'"):
        gather_controls(engine, "Q", FIELDS)
