"""NDTiff data sets: written by ndstorage, by Micro-Manager, half written, and damaged."""

import gc
import json
import struct
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from acquisition.ndtiff import INDEX_NAME, is_ndtiff, ndtiff_pages, ndtiff_pixels
from sesmo_live.errors import ImageError, IncompleteImageError

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(100, 4000, (6, 20, 30), dtype=np.uint16)
AXES: list[dict[str, Any]] = [
    {"time": t, "channel": channel, "position": "B03-1"} for t in range(3) for channel in ("Phase", "GFP")
]


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """Write a data set of six images as pycromanager does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # ndstorage's writer leaves its reader open
        from ndstorage import NDTiffDataset

        writer = NDTiffDataset(str(tmp_path), name="run", summary_metadata={"Prefix": "run"}, writable=True)
        for number, (axes, image) in enumerate(zip(AXES, IMAGES, strict=True)):
            time = f"2024-01-01 00:00:0{number} -0700"
            writer.put_image(axes, image, {"PixelSizeUm": 0.65, "Time": time, "XPositionUm": 5, "YPositionUm": -7})
        writer.finish()
        writer.close()
        del writer
        gc.collect()
    return tmp_path / "run_1"


def stack(folder: Path) -> Path:
    (path,) = folder.glob("*.tif")
    return path


def entries(folder: Path) -> list[int]:
    """Return where each entry of the index begins, and where the last one ends."""
    data, place, starts = (folder / INDEX_NAME).read_bytes(), 0, []
    while place < len(data):
        starts.append(place)
        for _ in range(2):
            place += 4 + struct.unpack("<I", data[place : place + 4])[0]
        place += 32
    return [*starts, place]


def index_entry(
    name: str, *, width: int = 4, height: int = 3, kind: int = 1, pixels: int = 0, metadata: int = 0
) -> bytes:
    axes, length = b'{"time":0}', 2
    head = struct.pack("<I", len(axes)) + axes + struct.pack("<I", len(name)) + name.encode()
    return head + struct.pack("<8I", pixels, width, height, kind, 0, metadata, length, 0)


def test_pages_carry_their_axes_and_metadata(data_set: Path) -> None:
    infos = ndtiff_pages(data_set)
    assert [(info.page, info.timepoint, info.channel, info.position, info.z) for info in infos] == [
        (number, axes["time"], axes["channel"], "B03-1", None) for number, axes in enumerate(AXES)
    ]
    assert infos[4].acquired_at == datetime(2024, 1, 1, 7, 0, 4, tzinfo=UTC)
    assert (infos[4].pixel_um, infos[4].stage_um, infos[4].source) == (0.65, (5.0, -7.0), "micro-manager")


def test_pixels_come_back_as_written(data_set: Path) -> None:
    for page, image in enumerate(IMAGES):
        pixels = ndtiff_pixels(data_set, page)
        assert pixels.dtype == np.uint16
        assert pixels.flags.writeable
        np.testing.assert_array_equal(pixels, image)


@pytest.mark.parametrize("page", [-1, 6])
def test_a_page_that_is_not_there(data_set: Path, page: int) -> None:
    with pytest.raises(ImageError, match=f"has 6 images and no image {page}"):
        ndtiff_pixels(data_set, page)


def test_pages_from_a_start_keep_their_numbers(data_set: Path) -> None:
    assert ndtiff_pages(data_set, 4) == ndtiff_pages(data_set)[4:]
    assert ndtiff_pages(data_set, 6) == []


def test_a_growing_index_is_read_as_far_as_it_goes(data_set: Path) -> None:
    whole, ends = (data_set / INDEX_NAME).read_bytes(), entries(data_set)
    for cut in range(ends[2], ends[4] + 1):
        (data_set / INDEX_NAME).write_bytes(whole[:cut])
        expected = sum(end <= cut for end in ends[1:])
        assert len(ndtiff_pages(data_set)) == expected, cut
    (data_set / INDEX_NAME).write_bytes(whole[: ends[3]] + bytes(500))
    assert len(ndtiff_pages(data_set)) == 3
    (data_set / INDEX_NAME).write_bytes(whole)
    assert len(ndtiff_pages(data_set)) == 6


@pytest.mark.parametrize("data", [b"", bytes(100), b"\x20\0\0\0{"])
def test_an_index_without_images_is_incomplete(tmp_path: Path, data: bytes) -> None:
    (tmp_path / INDEX_NAME).write_bytes(data)
    with pytest.raises(IncompleteImageError, match="names no image yet"):
        ndtiff_pages(tmp_path)


@pytest.mark.parametrize("axes", [b"[1,2]", b"7", b'{"time":[1]}'])
def test_an_index_of_nonsense_is_damaged(tmp_path: Path, axes: bytes) -> None:
    entry = index_entry("a.tif")
    (tmp_path / INDEX_NAME).write_bytes(struct.pack("<I", len(axes)) + axes + entry[14:])
    with pytest.raises(ImageError, match="is damaged; copy the data set again") as caught:
        ndtiff_pages(tmp_path)
    assert not isinstance(caught.value, IncompleteImageError)


def test_an_index_without_its_images_says_so(data_set: Path) -> None:
    stack(data_set).unlink()
    for read in (ndtiff_pages, ndtiff_pixels):
        with pytest.raises(IncompleteImageError, match=r"has an index but not its images in run_NDTiffStack\.tif"):
            read(data_set)


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(IncompleteImageError, match=r"NDTiff\.index cannot be read now \(No such file"):
        ndtiff_pages(tmp_path / "gone")


def test_images_that_are_listed_and_not_written_are_incomplete(data_set: Path) -> None:
    path = stack(data_set)
    whole = path.read_bytes()
    middle = whole.index(IMAGES[3].tobytes())
    for damaged in (whole[:middle], whole[: middle + 900], whole[:middle] + bytes(len(whole) - middle)):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(ndtiff_pixels(data_set, 2), IMAGES[2])
        for page in (3, 4, 5):
            with pytest.raises(IncompleteImageError):
                ndtiff_pixels(data_set, page)
        with pytest.raises(IncompleteImageError):
            ndtiff_pages(data_set)


@pytest.mark.parametrize(
    "name", ["../secret.tif", "/etc/secret.tif", "..", "", "x\0.tif", "C:secret.tif", "..\\secret.tif"]
)
def test_names_that_lead_out_of_the_data_set_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run_1"
    folder.mkdir()
    (tmp_path / "secret.tif").write_bytes(b"{}" + bytes(100))
    (folder / INDEX_NAME).write_bytes(index_entry(name, pixels=2))
    with pytest.raises(ImageError, match="outside the data set"):
        ndtiff_pixels(folder)


@pytest.mark.parametrize("shape", [{"width": 70_000, "height": 70_000}, {"kind": 9}, {"width": 0}])
def test_entries_that_cannot_be_good_are_refused(tmp_path: Path, shape: dict[str, int]) -> None:
    (tmp_path / INDEX_NAME).write_bytes(index_entry("a.tif", **shape))
    (tmp_path / "a.tif").write_bytes(b"{}" + bytes(100))
    with pytest.raises(ImageError, match="which cannot be scored") as caught:
        ndtiff_pixels(tmp_path)
    assert not isinstance(caught.value, IncompleteImageError)


@pytest.mark.parametrize(
    ("kind", "dtype", "samples"), [(0, np.uint8, 1), (1, np.uint16, 1), (4, np.uint16, 1), (2, np.uint8, 3)]
)
def test_pixel_types(tmp_path: Path, kind: int, dtype: Any, samples: int) -> None:
    values: NDArray[Any] = RNG.integers(0, 250, (3, 4, samples)).astype(dtype)
    (tmp_path / INDEX_NAME).write_bytes(index_entry("a.tif", kind=kind, pixels=2))
    (tmp_path / "a.tif").write_bytes(b"{}" + values.tobytes())
    pixels = ndtiff_pixels(tmp_path)
    assert pixels.dtype == dtype
    np.testing.assert_array_equal(pixels, values[..., 0])


def test_only_full_resolution_counts_as_a_data_set(tmp_path: Path) -> None:
    for name in ("Full resolution", "Downsampled_x2", "run_1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / INDEX_NAME).touch()
    assert is_ndtiff(tmp_path / "Full resolution")
    assert is_ndtiff(tmp_path / "run_1")
    assert not is_ndtiff(tmp_path / "Downsampled_x2")
    assert not is_ndtiff(tmp_path)


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "count"), [("12_bit_pycromanager_mda", 8), ("labeled_positions_1", 3)])
def test_real_data_sets_agree_with_ndstorage(
    shared: Path, capsys: pytest.CaptureFixture[str], name: str, count: int
) -> None:
    folder = shared / "data/vendor/ndtiff" / name
    infos = ndtiff_pages(folder)
    pixels = [ndtiff_pixels(folder, page) for page in range(len(infos))]
    assert capsys.readouterr().out == ""
    assert len(infos) == count
    from ndstorage import Dataset

    theirs = Dataset(str(folder))
    for info, image in zip(infos, pixels, strict=True):
        named = {"time": info.timepoint, "channel": info.channel, "position": info.position}
        axes = {axis: value for axis, value in named.items() if axis in theirs.axes}
        np.testing.assert_array_equal(image, theirs.read_image(**axes))
        assert json.dumps(axes, sort_keys=True) == json.dumps(theirs.read_metadata(**axes)["Axes"], sort_keys=True)
    theirs.close()


@pytest.mark.realdata
def test_real_index_without_images(shared: Path) -> None:
    with pytest.raises(IncompleteImageError, match=r"not its images in mm_mda_tcz_15_NDTiffStack\.tif"):
        ndtiff_pages(shared / "data/vendor/ndtiff/mm_mda_tcz_15")
