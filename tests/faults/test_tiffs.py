"""Thousands of damaged TIFFs and stacks that grow: never a wrong pixel, never a page too few or too many."""

import multiprocessing
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from acquisition.completeness import check_complete
from acquisition.isolation import Isolated
from acquisition.tiff import companions_of, read_pages, read_pixels
from acquisition.zeros import check_zero_tail
from sesmo_live.errors import ImageError, IncompleteImageError, ZeroTailError
from tests.faults import damage
from tests.figures import figure

RNG = np.random.default_rng(29)
PAGES = RNG.integers(1, 60_000, (40, 60, 80), dtype=np.uint16)


def test_whole_files_are_accepted(tmp_path: Path) -> None:
    for sample in damage.samples(tmp_path):
        path = tmp_path / "a.tif"
        path.write_bytes(sample.data)
        assert damage.verdict(path, sample.images) == "same", sample.name


@pytest.mark.parametrize(
    ("maker", "each"), [(damage.truncations, 150), (damage.zero_tails, 75)], ids=["truncations", "zero tails"]
)
def test_truncated_and_unfilled_files_are_never_taken_for_whole(
    tmp_path: Path, maker: Callable[[damage.Sample, int, np.random.Generator], Iterator[bytes]], each: int
) -> None:
    verdicts: Counter[str] = Counter()
    path = tmp_path / "a.tif"
    for sample in damage.samples(tmp_path):
        for data in maker(sample, each, RNG):
            path.write_bytes(data)
            answer = damage.verdict(path, sample.images)
            verdicts[answer] += 1
            if answer not in ("same", "IncompleteImageError", "ZeroTailError"):
                raise AssertionError((sample.name, answer, len(data), len(sample.data)))
    figure(f"{maker.__name__}: {verdicts.total()} files, {dict(verdicts)}, 0 accepted with wrong pixels")
    assert verdicts.total() == each * 2 * len(damage.KINDS)
    assert verdicts["same"] < verdicts.total() / 20


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_mutated_files_end_in_pixels_or_in_one_sentence(tmp_path: Path, seed: int) -> None:
    """Inspect 3 000 of the 9 000 files in a process whose memory is measured."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        tally = process.submit(damage.inspect_mutations, tmp_path, 3000, seed).result()
    figure(
        f"mutations, seed {seed}: {sum(tally.verdicts.values())} files, {tally.verdicts}, "
        f"slowest {tally.slowest_s:.2f} s, peak {tally.peak_mib:.0f} MiB"
    )
    assert not tally.wrong
    assert sum(tally.verdicts.values()) == 3000
    assert min(tally.verdicts.get(answer, 0) for answer in ("pixels", "ImageError", "IncompleteImageError")) > 300
    assert tally.slowest_s <= 5
    assert tally.peak_mib <= 1024


def test_mutated_files_in_processes_of_their_own(tmp_path: Path) -> None:
    answers: Counter[str] = Counter()
    slowest, unnamed = 0.0, 0
    with Isolated(workers=1, timeout_s=5, memory_mb=1024) as isolated:
        for sample in damage.samples(tmp_path):
            for number, data in enumerate(damage.mutations(sample, 5, RNG)):
                path = tmp_path / f"{number}.tif"
                path.write_bytes(data)
                started = time.monotonic()
                try:
                    isolated.call(damage.inspect, path)
                    answers["pixels"] += 1
                except ImageError as error:
                    answers[type(error).__name__] += 1
                    unnamed += str(path) not in str(error)
                slowest = max(slowest, time.monotonic() - started)
    figure(f"mutations, isolated: {answers.total()} files, {dict(answers)}, slowest {slowest:.2f} s")
    assert unnamed == 0
    assert answers.total() == 10 * len(damage.KINDS)
    assert len(answers) >= 3


# holes: zeros with pixels behind them, as copies leave that write blocks out of order


@pytest.mark.parametrize(
    ("options", "hole"),
    [
        ({"rowsperstrip": 8}, (8192, 4096)),
        ({"rowsperstrip": 1}, (8192, 4096)),
        ({"tile": (32, 32)}, (8192, 4096)),
        ({"compression": "lzw", "rowsperstrip": 8}, (8192, 4096)),
        ({"compression": "zstd", "rowsperstrip": 8}, (8192, 4096)),
        ({"compression": "zlib", "rowsperstrip": 8}, (8192, 4096)),
    ],
    ids=str,
)
def test_holes_amid_a_page_are_held(tmp_path: Path, options: dict[str, Any], hole: tuple[int, int]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PAGES[:4].reshape(-1, 160), metadata=None, **options)
    check_zero_tail(path)
    data = bytearray(path.read_bytes())
    start, size = hole
    data[start : start + size] = bytes(size)
    path.write_bytes(data)
    assert check_complete(path) == 1
    with pytest.raises(ZeroTailError, match=r"has zeros where the pixels of image 1 end \(byte \d+\)"):
        check_zero_tail(path)


@pytest.mark.parametrize("options", [{}, {"imagej": True, "truncate": True}, {"compression": "zstd"}], ids=str)
def test_a_page_that_ends_in_a_hole_amid_a_stack_is_held(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PAGES, **options)
    check_zero_tail(path)
    place = tmp_path.joinpath("a.tif").read_bytes()
    with tifffile.TiffFile(path) as file:
        end = file.pages.first.dataoffsets[0] + 3 * PAGES[0].nbytes
        if "compression" in options:
            page = file.pages[2]
            assert isinstance(page, tifffile.TiffPage | tifffile.TiffFrame)
            end = page.dataoffsets[0] + page.databytecounts[0]
    path.write_bytes(place[: end - 40] + bytes(40) + place[end:])
    with pytest.raises(ZeroTailError, match=rf"\(byte {end}\)"):
        check_zero_tail(path)


def test_black_edges_and_corners_amid_a_page_are_not_held(tmp_path: Path) -> None:
    path, image = tmp_path / "a.tif", PAGES[:16].reshape(240, 320).copy()
    image[:, 100:] = 0
    image[:40] = PAGES[0, :40, :40].repeat(8, 1)
    image[-1, -1] = 7
    for options in ({"rowsperstrip": 1}, {"rowsperstrip": 16}, {"tile": (64, 64), "compression": "zlib"}):
        tifffile.imwrite(path, image, metadata=None, **options)
        check_zero_tail(path)
        np.testing.assert_array_equal(read_pixels(path), image)


# stacks that grow


def by_writer(path: Path) -> None:
    """Write the pages one by one, each flushed, as a program does that acquires."""
    with tifffile.TiffWriter(path) as writer:
        for image in PAGES:
            writer.write(image, contiguous=False, metadata=None, compression=random.choice([None, "zlib", "lzw"]))
            writer.filehandle.flush()
            time.sleep(0.02)


def by_pieces(options: dict[str, Any]) -> Callable[[Path], None]:
    """Return what copies a finished file in small pieces."""

    def write(path: Path) -> None:
        whole = path.with_name("whole.bin")
        damage.write(whole, PAGES, options)
        data = whole.read_bytes()
        with path.open("wb", buffering=0) as handle:
            for start in range(0, len(data), 2900):
                handle.write(data[start : start + 2900])
                time.sleep(0.004)

    return write


def in_room_set_aside(options: dict[str, Any]) -> Callable[[Path], None]:
    """Return what copies a finished file into room of its full size."""

    def write(path: Path) -> None:
        whole = path.with_name("whole.bin")
        damage.write(whole, PAGES, options)
        data = whole.read_bytes()
        path.write_bytes(bytes(len(data)))
        with path.open("r+b", buffering=0) as handle:
            for start in range(0, len(data), 2900):
                handle.write(data[start : start + 2900])
                time.sleep(0.004)

    return write


EACH = {"contiguous": False, "metadata": None}
GROWING: dict[str, tuple[Callable[[Path], None], bool]] = {
    "writer": (by_writer, True),
    "pieces, a directory before each page": (by_pieces(EACH), True),
    "pieces, deflate": (by_pieces({**EACH, "compression": "zlib", "rowsperstrip": 10}), True),
    "pieces, BigTIFF": (by_pieces({**EACH, "bigtiff": True}), True),
    "pieces, directories last": (by_pieces({}), False),
    "pieces, ImageJ": (by_pieces({"imagej": True}), False),
    "pieces, ImageJ behind one directory": (by_pieces({"imagej": True, "truncate": True}), False),
    "pieces, OME": (by_pieces({"ome": True}), False),
    "room, a directory before each page": (in_room_set_aside(EACH), True),
    "room, zstd": (in_room_set_aside({**EACH, "compression": "zstd"}), True),
    "room, directories last": (in_room_set_aside({}), False),
}


@pytest.mark.parametrize("kind", GROWING)
def test_released_pages_of_a_growing_stack_never_change(tmp_path: Path, kind: str) -> None:
    write, while_growing = GROWING[kind]
    path = tmp_path / "a.tif"
    path.touch()
    thread = threading.Thread(target=write, args=(path,))
    thread.start()
    released: dict[int, object] = {}
    early, looks = 0, 0
    while True:
        last = not thread.is_alive()
        looks += 1
        for info in read_pages(path, growing=True):
            assert released.setdefault(info.page, info) == info
            np.testing.assert_array_equal(read_pixels(path, info.page), PAGES[info.page])
        if last:
            break
        early = len(released)
    thread.join()
    infos = read_pages(path)
    assert {page: infos[page] for page in released} == released
    assert [info.page for info in infos] == list(range(40))
    assert [info.page for info in infos if info.page not in released] in ([39], list(range(40)))
    for page, image in enumerate(PAGES):
        np.testing.assert_array_equal(read_pixels(path, page), image)
    figure(f"growing, {kind}: {early} of 40 pages released before the end in {looks} looks, 0 of them wrong")
    assert early > 10 if while_growing else early >= 0
    assert not (early and ("ImageJ" in kind or "OME" in kind))


def test_a_growing_stack_through_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.touch()
    thread = threading.Thread(target=by_writer, args=(path,))
    released: set[int] = set()
    with Isolated(workers=1) as isolated:
        isolated.call(is_there, path)
        thread.start()
        while thread.is_alive():
            for info in isolated.call(read_pages, path, growing=True):
                if info.page not in released:
                    np.testing.assert_array_equal(isolated.call(read_pixels, path, info.page), PAGES[info.page])
                released.add(info.page)
    thread.join()
    assert len(released) > 10


def is_there(path: Path) -> bool:
    return path.exists()


@pytest.mark.parametrize("name", ["a.ome.tif", "a.OME.TIFF"])
def test_nothing_is_released_while_ome_may_still_be_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    damage.write(path, PAGES[:3], EACH)
    assert len(read_pages(path)) == 3
    assert read_pages(path, growing=True) == []


@pytest.mark.parametrize("description", ["", "\0" * 9, "<?xml version='1.0'?><OME/>", "ImageJ=1.53t\nimages=2\n"])
def test_nothing_is_released_while_the_description_may_change(tmp_path: Path, description: str) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for image in PAGES[:3]:
            writer.write(image, contiguous=False, metadata=None, extratags=[(270, 2, 0, description, True)])
    assert read_pages(path, growing=True) == []


def test_pages_of_which_micro_manager_has_said_all_are_released(tmp_path: Path) -> None:
    path = tmp_path / "run_MMStack.ome.tif"
    record = {
        "FrameIndex": 0, "ChannelName": "Phase", "SliceIndex": 0, "PositionName": "B03-1", "PixelSizeUm": 0.65,
        "XPositionUm": 1, "YPositionUm": 2, "Time": "2024-01-01 00:00:00 -0700", "ChannelIndex": 0,
    }  # fmt: skip
    with tifffile.TiffWriter(path) as writer:
        for time_point, image in enumerate(PAGES[:4]):
            said = {**record, "FrameIndex": time_point}
            if time_point == 1:
                del said["PositionName"]
            tag = (51123, 2, 0, str(said).replace("'", '"'), True)
            writer.write(image, contiguous=False, metadata=None, extratags=[tag])
    assert [(info.page, info.timepoint) for info in read_pages(path, growing=True)] == [(0, 0), (2, 2)]


def test_a_page_that_ends_in_zeros_is_not_released_and_shifts_no_other(tmp_path: Path) -> None:
    path, pages = tmp_path / "a.tif", PAGES[:5].copy()
    pages[1, -1] = 0
    damage.write(path, pages, EACH)
    assert [info.page for info in read_pages(path, growing=True)] == [0, 2, 3]
    thumbs = tmp_path / "thumbs.tif"
    with tifffile.TiffWriter(thumbs) as writer:
        writer.write(PAGES[0], contiguous=False, metadata=None)
        writer.write(PAGES[0, ::2, ::2], contiguous=False, metadata=None, subfiletype=1)
    assert read_pages(thumbs, growing=True) == []  # a thumbnail is no next page


def test_a_growing_file_that_never_can_be_good_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    assert read_pages(path, growing=True) == []
    for data in (b"", b"II*\0", bytes(900)):
        path.write_bytes(data)
        assert read_pages(path, growing=True) == []
    path.write_bytes(b"this is no image, whatever it is called")
    with pytest.raises(ImageError, match="is not a TIFF") as caught:
        read_pages(path, growing=True)
    assert not isinstance(caught.value, IncompleteImageError)


# sets of files


def ome_set(names: list[str], ours: int) -> str:
    """Return the OME-XML of a set with one time point in each of the files `names`."""
    blocks = "".join(
        f'<TiffData FirstT="{t}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{t}</UUID></TiffData>'
        for t, name in enumerate(names)
    )
    return (
        f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{ours}">'
        f'<Image ID="Image:0"><Pixels DimensionOrder="XYZCT" SizeC="1" SizeT="{len(names)}" SizeX="80" SizeY="60" '
        f'SizeZ="1" Type="uint16">{blocks}</Pixels></Image></OME>'
    )


def test_a_set_with_a_missing_companion_gives_what_is_there(tmp_path: Path) -> None:
    names = [f"set_{t}.ome.tif" for t in range(5)]
    present = [0, 1, 3, 4]
    for t in present:
        tifffile.imwrite(tmp_path / names[t], PAGES[t], description=ome_set(names, t), metadata=None)
    planes: list[NDArray[Any]] = []
    for t in present:
        path = tmp_path / names[t]
        assert companions_of(path) == [name for name in names if name != names[t]]
        planes += damage.inspect(path)
        assert [info.timepoint for info in read_pages(path)] == [t]
    np.testing.assert_array_equal(planes, PAGES[present])
    assert all(plane.any() for plane in planes)
    figure(f"OME set without file 2 of 5: {len(planes)} pages right, 0 zero planes, companion named")
