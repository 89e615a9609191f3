"""Pixels of every kind of TIFF that is read, a clear sentence for each kind that is not, and no pixel that is wrong."""

import logging
import os
import shutil
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from acquisition.completeness import check_complete, walk
from acquisition.tiff import read_pages, read_pixels
from acquisition.zeros import zero_tail
from sesmo_live.errors import ImageError, IncompleteImageError
from tests.figures import figure

RNG = np.random.default_rng(11)
GREY = RNG.normal(3000, 300, (50, 67)).astype(np.uint16)
STACK = RNG.normal(3000, 300, (5, 33, 40)).astype(np.uint16)
RGB = RNG.integers(0, 256, (50, 67, 3), dtype=np.uint8)
Array = NDArray[Any]

opened: list[str] = []
"""Every path that Python opened while `watching` holds something."""
watching: list[bool] = []


def _note_open(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and watching:
        opened.append(str(arguments[0]))


sys.addaudithook(_note_open)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 7},
        {"tile": (16, 32)},
        {"compression": "lzw"},
        {"compression": "lzw", "predictor": True, "rowsperstrip": 9},
        {"compression": "zlib", "tile": (32, 16)},
        {"compression": "zlib", "predictor": True},
        {"compression": "zstd"},
        {"compression": "zstd", "predictor": True, "tile": (16, 16)},
        {"compression": "packbits"},
    ],
    ids=str,
)
def test_grey_pixels_come_back_as_written(
    tmp_path: Path, dtype: Any, order: Any, big: bool, options: dict[str, Any]
) -> None:
    path, image = tmp_path / "a.tif", (GREY % np.iinfo(dtype).max).astype(dtype)
    tifffile.imwrite(path, image, byteorder=order, bigtiff=big, **options)
    pixels = read_pixels(path)
    assert pixels.dtype == dtype
    assert pixels.dtype.isnative
    np.testing.assert_array_equal(pixels, image)


def set_tags(path: Path, values: dict[int, int]) -> None:
    """Overwrite the values of tags of the first directory."""
    with tifffile.TiffFile(path) as file:
        tags = {code: file.pages.first.tags[code] for code in values}
        order = file.byteorder
    with path.open("r+b") as handle:
        for code, value in values.items():
            handle.seek(tags[code].valueoffset)
            handle.write(struct.pack(order + ("I" if tags[code].dtype == 4 else "H"), value))


def write_packed(path: Path, image: Array, bits: int, order: Any) -> None:
    """Write `image` as packed `bits`, each row filled to a byte (tifffile writes them wrongly in big-endian files)."""
    digits = (image[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(digits.astype(np.uint8).reshape(len(image), -1), axis=1)
    tifffile.imwrite(path, rows, byteorder=order, metadata=None, rowsperstrip=7)
    set_tags(path, {256: image.shape[1], 258: bits})


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("order", ["<", ">"])
def test_packed_bits_are_unpacked(tmp_path: Path, bits: int, order: Any) -> None:
    path, image = tmp_path / "a.tif", RNG.integers(0, 2**bits, (31, 45), dtype=np.uint16)
    write_packed(path, image, bits, order)
    assert path.stat().st_size < 31 * 45 * 2
    pixels = read_pixels(path)
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, image)


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (RGB, {"photometric": "rgb"}, RGB[..., 0]),
        (np.moveaxis(RGB, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}, RGB[..., 0]),
        (np.dstack([RGB, RGB[..., :1]]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, RGB[..., 0]),
        (RGB[..., :2], {"photometric": "minisblack", "planarconfig": "contig"}, RGB[..., 0]),
        (RGB, {"photometric": "rgb", "compression": "zlib", "tile": (16, 16)}, RGB[..., 0]),
        (RGB.astype(np.uint16) * 99, {"photometric": "rgb"}, RGB[..., 0].astype(np.uint16) * 99),
    ],
)
def test_of_colour_the_first_channel_counts(
    tmp_path: Path, image: Array, options: dict[str, Any], expected: Array
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, **options)
    pixels = read_pixels(path)
    assert pixels.dtype == image.dtype
    np.testing.assert_array_equal(pixels, expected)
    assert check_complete(path) == len(read_pages(path)) == 1


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (12, np.uint16), (16, np.uint16)])
def test_bright_is_bright_where_white_is_zero(tmp_path: Path, bits: int, dtype: Any) -> None:
    path, image = tmp_path / "a.tif", RNG.integers(0, 2**bits, (31, 45)).astype(dtype)
    tifffile.imwrite(path, image, photometric="miniswhite", bitspersample=bits)
    np.testing.assert_array_equal(read_pixels(path), 2**bits - 1 - image)


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_signed_numbers_pass_while_none_is_negative(tmp_path: Path, dtype: Any) -> None:
    path, image = tmp_path / "a.tif", (GREY % 128).astype(dtype)
    tifffile.imwrite(path, image)
    pixels = read_pixels(path)
    assert pixels.dtype.kind == "u"
    np.testing.assert_array_equal(pixels, image)
    image[3, 4] = -1
    tifffile.imwrite(path, image)
    with pytest.raises(ImageError, match="negative pixels, which cannot be scored; save it as 8- or 16-bit grey"):
        read_pixels(path)


COLOURS = np.stack([np.arange(256), np.arange(256)[::-1], np.arange(256)]).astype(np.uint16) * 257


@pytest.mark.parametrize(
    ("image", "options", "words"),
    [
        (GREY.astype(np.float32), {}, "holds no whole numbers"),
        (GREY.astype(np.float16), {}, "holds no whole numbers"),
        (GREY.astype(np.complex64), {}, "holds no whole numbers"),
        (GREY.astype(np.uint32), {}, "has 32 bits a pixel"),
        (GREY > 3000, {}, "has 1 bits a pixel"),
        (np.zeros((16, 64, 64), np.uint16), {"volumetric": True, "tile": (16, 16, 16)}, "is a volume in one page"),
        (GREY.astype(np.uint8), {"photometric": "palette", "colormap": COLOURS}, "has a colour palette"),
        (np.zeros((50, 60, 4), np.uint8), {"photometric": "separated"}, "has colours of kind"),
        (np.zeros((50, 60, 7), np.uint8), {"photometric": "minisblack", "planarconfig": "contig"}, "has 7 samples"),
        (GREY.astype(np.uint8), {"compression": "jpeg"}, "TIFF compression 7"),
        (GREY, {"compression": "lzma"}, "TIFF compression 34925"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_the_remedy(
    tmp_path: Path, image: Array, options: dict[str, Any], words: str
) -> None:
    path = tmp_path / "plate B03.tif"
    tifffile.imwrite(path, image, **options)
    with pytest.raises(ImageError, match=f"plate B03.tif .*{words}.*; sa(ve|me)") as caught:
        read_pixels(path)
    assert not isinstance(caught.value, IncompleteImageError)
    assert "\n" not in str(caught.value)


def test_a_grey_palette_is_grey(tmp_path: Path) -> None:
    path, image = tmp_path / "a.tif", (GREY % 256).astype(np.uint8)
    ramp = np.stack([np.arange(256)] * 3).astype(np.uint16) * 257
    tifffile.imwrite(path, image, photometric="palette", colormap=ramp)
    np.testing.assert_array_equal(read_pixels(path), image)
    tifffile.imwrite(path, image, photometric="palette", colormap=ramp[:, ::-1])
    with pytest.raises(ImageError, match="palette"):
        read_pixels(path)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"ome": True}, {"imagej": True}], ids=str)
def test_each_page_of_a_stack_is_an_image(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, **options)
    assert [info.page for info in read_pages(path)] == [0, 1, 2, 3, 4]
    for page in (4, 0, 2, 1, 3):
        np.testing.assert_array_equal(read_pixels(path, page), STACK[page])


@pytest.mark.parametrize("page", [-1, 5, 10**9])
def test_a_page_that_is_not_there(tmp_path: Path, page: int) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK)
    with pytest.raises(ImageError, match=f"has 5 pages and no page {page}"):
        read_pixels(path, page)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("image", [STACK, RGB[None].repeat(3, 0)], ids=["grey", "RGB"])
def test_imagej_stacks_behind_a_single_directory(tmp_path: Path, order: Any, image: Array) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, imagej=True, truncate=True, byteorder=order)
    assert len(list(walk(path))) == 1
    assert check_complete(path) == len(read_pages(path)) == len(image)
    for page, expected in enumerate(image):
        pixels = read_pixels(path, page)
        assert pixels.dtype.isnative
        np.testing.assert_array_equal(pixels, expected if expected.ndim == 2 else expected[..., 0])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IncompleteImageError, match="the last of its"):
        read_pixels(path, 0)


def test_metamorph_stacks_behind_a_single_directory(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    days, noon = 2_460_311, 43_200_000  # Julian day of 2024-01-01; milliseconds
    values = [number for plane in range(5) for number in (0, 1, days + plane, noon + 1500 * plane, days, noon)]
    tag = (33629, 4, len(values), values, True)
    tifffile.imwrite(path, STACK, truncate=True, metadata=None, extratags=[tag])
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.tags[33629].offset
    with path.open("r+b") as handle:
        handle.seek(place + 2)
        handle.write(struct.pack("<HI", 5, 5))  # UIC2: five times three rationals under a count of five
    assert check_complete(path) == 5
    infos = read_pages(path)
    assert [info.acquired_at for info in infos[:2]] == [
        datetime.fromisoformat("2024-01-01T12:00:00"),
        datetime.fromisoformat("2024-01-02T12:00:01.500"),
    ]
    assert infos[4].source == "metamorph"
    for page in range(5):
        np.testing.assert_array_equal(read_pixels(path, page), STACK[page])


def test_packed_stacks_behind_a_single_directory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_packed(path, STACK.reshape(-1, 40) % 4096, 12, "<")
    data = path.read_bytes()
    tifffile.imwrite(
        path,
        np.frombuffer(data, np.uint8)[:9900].reshape(5, 33, 60),
        imagej=True,
        truncate=True,
        metadata={"axes": "TYX"},
    )
    set_tags(path, {256: 40, 258: 12})
    assert check_complete(path) == 5
    with pytest.raises(ImageError, match="a stack of 12-bit planes; save each as its own page"):
        read_pixels(path, 1)


@pytest.mark.parametrize("read", [read_pages, read_pixels])
def test_a_file_that_is_gone_may_come_back(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(IncompleteImageError, match=r"gone\.tif cannot be (found|read) now \(No such file"):
        read(tmp_path / "gone.tif")


def test_thumbnails_do_not_shift_the_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for image in STACK[:3]:
            writer.write(image, subifds=1, metadata=None)
            writer.write(image[::2, ::2], subfiletype=1, metadata=None)
            writer.write(image[::4, ::4], subfiletype=1, metadata=None)
    assert len(read_pages(path)) == 3
    for page in range(3):
        np.testing.assert_array_equal(read_pixels(path, page), STACK[page])


def test_a_growing_stack_gives_its_whole_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for image in STACK:
            writer.write(image, contiguous=False, metadata=None, compression="zlib")
    ends = [int((directory.starts + directory.sizes).max()) for directory in walk(path)]
    path.write_bytes(path.read_bytes()[: ends[3] - 1])
    for page in range(3):
        np.testing.assert_array_equal(read_pixels(path, page), STACK[page])
    for page in (3, 4):
        with pytest.raises(IncompleteImageError):
            read_pixels(path, page)


def test_a_rewritten_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for image in (STACK, STACK[:2], STACK[3:, ::-1]):
        tifffile.imwrite(path, image, compression="zlib")
        os.utime(path, ns=(time.time_ns(), time.time_ns()))
        assert len(read_pages(path)) == len(image)
        np.testing.assert_array_equal(read_pixels(path, 1), image[1])


def test_damaged_pixels_are_refused_in_the_decoders_words(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY, compression="zlib")
    data = bytearray(path.read_bytes())
    data[-500:-400] = bytes(range(100))
    path.write_bytes(data)
    assert check_complete(path) == 1
    with pytest.raises(ImageError, match=r"a\.tif is damaged \(libdeflate.*\); export it again") as caught:
        read_pixels(path)
    assert not isinstance(caught.value, IncompleteImageError)


def test_pixels_that_cannot_be_decoded_before_zeros_may_still_come(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY, compression="zlib")
    data = path.read_bytes()
    path.write_bytes(data[:2000] + bytes(len(data) - 2000))
    with pytest.raises(IncompleteImageError, match="ends in zeros and cannot be decoded"):
        read_pixels(path)


def write_with_complaint(path: Path) -> None:
    """Write a TIFF that is whole, about which tifffile logs a warning."""
    tifffile.imwrite(path, GREY, extratags=[(42113, 2, 0, "nothing", True)], metadata=None)


@pytest.mark.parametrize("read", [read_pages, read_pixels])
def test_whatever_tifffile_complains_of_is_incomplete(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    path = tmp_path / "a.tif"
    write_with_complaint(path)
    assert check_complete(path) == 1
    with pytest.raises(IncompleteImageError, match=r"a\.tif is not all there \(.*GDAL_NODATA.*\)"):
        read(path)


def test_complaints_are_heard_whatever_the_root_logger_hides(tmp_path: Path) -> None:
    path, root = tmp_path / "a.tif", logging.getLogger()
    write_with_complaint(path)
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with pytest.raises(IncompleteImageError):
            read_pixels(path)
    finally:
        root.setLevel(level)


def test_complaints_of_other_threads_are_not_ours(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.tif", tmp_path / "bad.tif"
    tifffile.imwrite(good, GREY, metadata=None)
    write_with_complaint(bad)

    def complained(path: Path) -> bool:
        try:
            read_pixels(path)
        except IncompleteImageError:
            return True
        return False

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(complained, [good, bad] * 150))
    assert answers == [False, True] * 150


def ome(blocks: str, count: int) -> str:
    """Return OME-XML of `count` time points that lie where the TiffData `blocks` say."""
    return (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f'<Pixels DimensionOrder="XYZCT" SizeC="1" SizeT="{count}" SizeX="40" SizeY="33" SizeZ="1" Type="uint16">'
        f"{blocks}</Pixels></Image></OME>"
    )


def test_no_other_file_is_opened_whatever_ome_names(tmp_path: Path) -> None:
    secret, root = tmp_path / "secret.ome.tif", tmp_path / "watched"
    root.mkdir()
    tifffile.imwrite(secret, GREY)
    names = ["../secret.ome.tif", "secret.ome.tif", str(secret), "companion.ome", "b.ome.tif"]
    shutil.copy(secret, root / "b.ome.tif")
    blocks = "".join(
        f'<TiffData FirstT="{t}"><UUID FileName="{name}">urn:{t}</UUID></TiffData>' for t, name in enumerate(names)
    )
    text = ome(blocks + '<TiffData FirstT="5" IFD="0"/>', 6)
    path = root / "a.ome.tif"
    tifffile.imwrite(path, STACK[0], description=text, metadata=None)
    watching.append(True)
    opened.clear()
    try:
        assert check_complete(path) == 1
        assert [info.timepoint for info in read_pages(path)] == [5]
        np.testing.assert_array_equal(read_pixels(path), STACK[0])
    finally:
        watching.clear()
    assert {name for name in opened if name.startswith(str(tmp_path))} == {str(path)}


def test_a_missing_companion_gives_no_zero_plane(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.ome.tif" for name in "ab"]
    blocks = "".join(
        f'<TiffData FirstT="{t}" IFD="0" PlaneCount="1"><UUID FileName="{path.name}">urn:{t}</UUID></TiffData>'
        for t, path in enumerate(paths)
    )
    tifffile.imwrite(paths[0], STACK[0], description=ome(blocks, 2), metadata=None)
    assert check_complete(paths[0]) == len(read_pages(paths[0])) == 1
    np.testing.assert_array_equal(read_pixels(paths[0]), STACK[0])
    with pytest.raises(ImageError, match="no page 1"):
        read_pixels(paths[0], 1)


@pytest.mark.alone
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((8, 8), np.uint16), compression="zlib", metadata=None)
    set_tags(path, {256: 65_000, 257: 65_000, 278: 65_000})
    started = time.monotonic()
    with pytest.raises(ImageError, match="65000 × 65000 .* above the limit"):
        read_pixels(path)
    assert time.monotonic() - started < 2


def test_a_strip_that_unpacks_to_more_than_its_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4000, 4000), np.uint16), compression="zlib", metadata=None, rowsperstrip=4000)
    set_tags(path, {257: 4, 278: 4})
    with pytest.raises(ImageError, match="INSUFFICIENT_SPACE"):
        read_pixels(path)


KINDS: dict[str, dict[str, Any]] = {
    "raw": {"rowsperstrip": 9},
    "LZW": {"compression": "lzw"},
    "deflate": {"compression": "zlib", "rowsperstrip": 9},
    "zstd": {"compression": "zstd", "predictor": True},
    "BigTIFF": {"bigtiff": True},
    "OME": {"ome": True},
    "ImageJ": {"imagej": True},
    "tiles": {"tile": (16, 16), "compression": "zlib"},
}


def written(folder: Path) -> list[tuple[str, bytes, Array]]:
    """Return name, bytes and images of one file of each kind, as single image and as stack."""
    files = []
    for kind, options in KINDS.items():
        for image in (GREY[None], STACK):
            path = folder / "whole.tif"
            tifffile.imwrite(path, image if len(image) > 1 else image[0], **options)
            files.append((f"{kind}, {len(image)}", path.read_bytes(), image))
    return files


def verdict(path: Path, images: Array) -> str:
    """Return what became of a damaged file: its error, or whether its pages are pixel by pixel what was written."""
    try:
        pages = check_complete(path)
        read_pages(path)
        pixels = [read_pixels(path, page) for page in range(pages)]
    except ImageError as error:
        return type(error).__name__
    same = len(pixels) == len(images) and all(map(np.array_equal, pixels, images))
    return "same" if same else "held" if zero_tail(path) else "wrong"


def test_truncated_files_are_never_taken_for_whole(tmp_path: Path) -> None:
    verdicts: Counter[str] = Counter()
    for name, data, images in written(tmp_path):
        cuts = {*RNG.integers(0, len(data), 50).tolist(), *(len(data) - RNG.integers(1, 40, 10)).tolist()}
        for cut in cuts:
            path = tmp_path / f"{cut}.tif"
            path.write_bytes(data[:cut])
            verdicts[verdict(path, images)] += 1
            assert not verdicts["wrong"] + verdicts["held"], (name, cut, len(data))
            path.unlink()
    assert verdicts["IncompleteImageError"] > 700
    assert verdicts["ImageError"] == 0


def test_files_with_zero_tails_are_refused_or_held(tmp_path: Path) -> None:
    verdicts: Counter[str] = Counter()
    for name, data, images in written(tmp_path):
        for cut in RNG.integers(0, len(data) - 8, 40).tolist():
            path = tmp_path / f"{cut}.tif"
            path.write_bytes(data[:cut] + bytes(len(data) - cut))
            verdicts[verdict(path, images)] += 1
            assert not verdicts["wrong"], (name, cut, len(data))
            path.unlink()
    assert verdicts["IncompleteImageError"] > 300
    assert verdicts["held"] > 50


def test_mutated_files_end_in_pixels_or_in_one_clear_sentence(tmp_path: Path) -> None:
    verdicts: Counter[str] = Counter()
    for _, data, images in written(tmp_path):
        for number in range(40):
            damaged = bytearray(data)
            for place in RNG.integers(0, 400 if number % 2 else len(data), 4):
                damaged[place] = RNG.integers(256)
            path = tmp_path / f"{number}.tif"
            path.write_bytes(damaged)
            verdicts[verdict(path, images)] += 1  # anything but an ImageError fails here
            path.unlink()
    assert verdicts["ImageError"] > 50
    assert verdicts["IncompleteImageError"] > 50


@pytest.mark.alone
def test_reading_costs_little_more_than_tifffile_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RNG.integers(0, 60_000, (2048, 2048), dtype=np.uint16))

    def best(read: Callable[[], object]) -> float:
        times = []
        for _ in range(25):
            started = time.perf_counter()
            read()
            times.append(time.perf_counter() - started)
        return min(times)

    def plain() -> object:
        with tifffile.TiffFile(path) as file:
            return file.pages.first.asarray()

    ours, theirs = best(lambda: read_pixels(path)), best(plain)
    figure(f"2048² uint16: {ours * 1e3:.2f} ms, tifffile alone {theirs * 1e3:.2f} ms")
    assert ours < 2 * theirs + 1e-3


@pytest.mark.realdata
def test_all_real_images_are_read(shared: Path) -> None:
    paths = [path for path in (shared / "data").rglob("*") if path.suffix.lower() in (".tif", ".tiff")]
    paths = [path for path in paths if "yokogawa_cv8000" not in path.parts or "_D08_" in path.name]
    assert len(paths) > 200
    for path in paths:
        pixels = read_pixels(path)
        np.testing.assert_array_equal(pixels, tifffile.imread(path, key=0))
        assert pixels.ndim == 2
