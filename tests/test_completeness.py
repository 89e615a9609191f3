"""The walk along a TIFF's directories: what is whole, what may still grow, what never can be good."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from acquisition.completeness import check_complete, walk
from acquisition.zeros import zero_tail
from sesmo_live.errors import ImageError, IncompleteImageError

RNG = np.random.default_rng(7)
STACK = RNG.normal(3000, 300, (5, 33, 40)).astype(np.uint16)
KINDS: dict[str, dict[str, Any]] = {
    "raw": {},
    "strips": {"rowsperstrip": 7},
    "big endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "BigTIFF big endian": {"bigtiff": True, "byteorder": ">"},
    "LZW": {"compression": "lzw", "predictor": True, "rowsperstrip": 8},
    "deflate": {"compression": "zlib"},
    "zstd": {"compression": "zstd"},
    "tiles": {"tile": (16, 16)},
    "tiles deflate": {"tile": (16, 16), "compression": "zlib"},
    "OME": {"ome": True},
    "ImageJ": {"imagej": True},
}


def patch_tag(path: Path, code: int, value: int) -> None:
    """Overwrite the first value of the tag `code` of the first directory."""
    with tifffile.TiffFile(path) as file:
        tag = file.pages.first.tags[code]
        layout = file.byteorder + {3: "H", 4: "I", 13: "I", 16: "Q"}[int(tag.dtype)]
    with path.open("r+b") as handle:
        handle.seek(tag.valueoffset)
        handle.write(struct.pack(layout, value))


def next_pointers(path: Path) -> list[int]:
    """Return where each directory of a small classic little-endian TIFF keeps the offset of the next."""
    data = path.read_bytes()
    offset, places = struct.unpack("<I", data[4:8])[0], []
    while offset:
        places.append(offset + 2 + 12 * struct.unpack("<H", data[offset : offset + 2])[0])
        offset = struct.unpack("<I", data[places[-1] : places[-1] + 4])[0]
    return places


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pages", [1, 5])
def test_whole_files_give_their_pages(tmp_path: Path, kind: str, pages: int) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[:pages] if pages > 1 else STACK[0], **KINDS[kind])
    assert check_complete(path) == pages
    assert not zero_tail(path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_into_the_pixels_is_incomplete(tmp_path: Path, kind: str) -> None:
    whole = tmp_path / "whole.tif"
    tifffile.imwrite(whole, STACK, **KINDS[kind])
    last_pixel = max(int((directory.starts + directory.sizes).max()) for directory in walk(whole))
    data, path = whole.read_bytes(), tmp_path / "a.tif"
    for cut in range(0, last_pixel, max(1, last_pixel // 150)):
        path.write_bytes(data[:cut])
        with pytest.raises(IncompleteImageError, match="it is read again"):
            check_complete(path)


@pytest.mark.parametrize(
    "data", [b"", bytes(5000), b"II", b"I" + bytes(99), b"II*\0", b"II*\0" + bytes(500), b"II+\0" + bytes(500)]
)
def test_a_file_not_begun_is_incomplete(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    with pytest.raises(IncompleteImageError):
        check_complete(path)


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n" + bytes(90), b"II\x2c\0" + bytes(90), b"hello, this is text", b"II+\0\x04"]
)
def test_what_is_no_tiff_is_an_error_for_good(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    with pytest.raises(ImageError, match="is not a TIFF whatever its name says; export it as TIFF") as caught:
        check_complete(path)
    assert not isinstance(caught.value, IncompleteImageError)


def test_a_missing_file_may_come_back(tmp_path: Path) -> None:
    with pytest.raises(IncompleteImageError, match=r"gone\.tif cannot be read now \(No such file"):
        check_complete(tmp_path / "gone.tif")


def test_pyramids_thumbnails_and_masks_are_no_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(STACK[0], subifds=2, metadata=None)
        writer.write(STACK[0, ::2, ::2], subfiletype=1, metadata=None)
        writer.write(STACK[0, ::4, ::4], subfiletype=1, metadata=None)
        writer.write(STACK[1, ::2, ::2], subfiletype=1, metadata=None)
        writer.write(STACK[2], subfiletype=2, metadata=None)
        writer.write(STACK[3] > 3000, subfiletype=4, metadata=None)
    assert check_complete(path) == 2


def test_a_file_of_thumbnails_only_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0], subfiletype=1)
    with pytest.raises(ImageError, match="thumbnails or masks only"):
        check_complete(path)


def test_pixels_of_a_pyramid_level_must_be_there_too(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(STACK[0], subifds=1, metadata=None)
        writer.write(STACK[0, ::2, ::2], subfiletype=1, metadata=None)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(IncompleteImageError):
        check_complete(path)


def test_a_ring_of_directories_ends_in_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, compression="zlib")
    places = next_pointers(path)
    data = bytearray(path.read_bytes())
    data[places[3] : places[3] + 4] = data[4:8]
    path.write_bytes(data)
    with pytest.raises(ImageError, match="in a ring") as caught:
        check_complete(path)
    assert not isinstance(caught.value, IncompleteImageError)


def test_directories_upon_each_other_cannot_eat_the_night(tmp_path: Path) -> None:
    base, entries = 66_000, 400
    needed = [(256, 4), (257, 4), (258, 8), (273, 8), (277, 1), (278, 4), (279, 16)]
    data = bytearray(b"II*\0" + struct.pack("<I", base) + bytes(base - 8) + struct.pack("<H", entries))
    for number in range(entries):  # the high half of each value is the number of entries of the directory after it
        code, value = needed[number % len(needed)]
        data += struct.pack("<HHIHH", code, 3, 1, value, entries)
    for number in range(entries):  # and each directory's pointer to the next reads as a tag to the one after
        data += struct.pack("<IIHH", base + 12 * (number + 1), 1, 0, entries)
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    with pytest.raises(ImageError, match="upon each other") as caught:
        check_complete(path)
    assert not isinstance(caught.value, IncompleteImageError)


@pytest.mark.parametrize(
    ("tag", "value", "error", "words"),
    [
        (256, 60_000, ImageError, "strips"),
        (257, 2**31, ImageError, "above the limit of"),
        (257, 0, IncompleteImageError, "zeros where the size of an image"),
        (258, 32, ImageError, "strips shorter than their rows"),
        (259, 0, IncompleteImageError, "zeros where the pixels"),
        (273, 0, IncompleteImageError, "zeros where the pixels of image 1"),
        (273, 10**6, IncompleteImageError, "image 1 should reach to byte"),
        (279, 0, IncompleteImageError, "zeros where the pixels"),
        (279, 100, ImageError, "strips shorter than their rows"),
        (277, 60_000, ImageError, "above the limit|strips"),
    ],
)
def test_tags_that_lie(tmp_path: Path, tag: int, value: int, error: type[ImageError], words: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0], metadata=None)
    patch_tag(path, tag, value)
    with pytest.raises(error, match=words) as caught:
        check_complete(path)
    assert type(caught.value) is error


def test_offsets_beyond_all_files_do_not_run_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0], bigtiff=True, rowsperstrip=33, metadata=None, compression="zlib")
    with tifffile.TiffFile(path) as file:
        assert file.pages.first.tags[279].dtype == 16
    for value in (2**63 - 1, 2**63 + 5, 2**64 - 1):
        patch_tag(path, 279, value)
        with pytest.raises(ImageError):
            check_complete(path)


def test_more_tags_than_any_program_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", 65_000) + b"\1" * 900_000)
    with pytest.raises(ImageError, match="a directory of 65000 tags"):
        check_complete(path)


def test_the_limit_holds_for_the_decoded_page(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, np.zeros((2000, 3000), np.uint16), compression="zlib")
    assert path.stat().st_size < 100_000
    assert check_complete(path) == 1
    assert check_complete(path, max_bytes=12_000_000) == 1
    with pytest.raises(ImageError, match=r"3000 × 2000 .* above the limit of 11999999 bytes"):
        check_complete(path, max_bytes=11_999_999)


def test_no_image_of_a_specimen_unpacks_to_hundreds_of_times_its_size(tmp_path: Path) -> None:
    path, image = tmp_path / "bomb.tif", np.zeros((6000, 6000), np.uint16)
    image[:3000] = RNG.integers(0, 4, (3000, 6000))
    tifffile.imwrite(path, image, compression="zlib")
    assert check_complete(path) == 1
    tifffile.imwrite(path, image * 0, compression="zlib")
    with pytest.raises(ImageError, match=r"unpacks from \d+ to 72000000 bytes"):
        check_complete(path)
    tifffile.imwrite(path, image[:5000, :5000] * 0, compression="zlib")
    assert check_complete(path) == 1


def test_pages_in_more_strips_than_any_program_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((2**18 + 1, 1), np.uint8), rowsperstrip=1)
    with pytest.raises(ImageError, match=r"an image in 262145 strips \(at most 262144\)"):
        check_complete(path)


def test_a_growing_stack_gives_the_pages_before_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for image in STACK:
            writer.write(image, contiguous=False, compression="zlib", metadata=None)
    ends = [int((directory.starts + directory.sizes).max()) for directory in walk(path)]
    path.write_bytes(path.read_bytes()[: ends[3] - 1])
    found = []
    with pytest.raises(IncompleteImageError):  # noqa: PT012 what came before the raise is the point
        for directory in walk(path):
            found.append(directory.index)
    assert found == [0, 1, 2]


@pytest.mark.parametrize("options", [{}, {"imagej": True}])
def test_a_stack_in_the_writing_is_held_to_what_its_description_promises(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, **options)
    first = next(walk(path))
    start, page = int(first.starts[0]), STACK[0].nbytes
    data = bytearray(path.read_bytes())
    place = next_pointers(path)[0]
    data[place : place + 4] = bytes(4)  # as tifffile leaves it until the last image is written
    for written in (0.5, 1, 2.5, 4.99):
        path.write_bytes(data[: start + int(written * page)])
        with pytest.raises(IncompleteImageError):
            check_complete(path)
    path.write_bytes(data[: start + 5 * page])
    assert check_complete(path) == 5


def test_a_description_in_every_directory_promises_once(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for image in STACK:
            writer.write(image, description="ImageJ=1.53t\nimages=5\nslices=5\n", metadata=None, contiguous=False)
    assert check_complete(path) == 5
    data, places = bytearray(path.read_bytes()), next_pointers(path)
    data[places[2] : places[2] + 4] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(IncompleteImageError, match="holds 3 of the 5 images that its description promises"):
        check_complete(path)


def test_series_of_several_shapes_are_each_held_to_their_promise(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(STACK, compression="zlib")
        writer.write(STACK[:2, :20, :20], compression="zlib")
    assert check_complete(path) == 7


ZEROED: list[tuple[str, Callable[[NDArray[Any]], NDArray[Any]], dict[str, Any], int, bool]] = [
    ("raw filled to the end", lambda a: a, {}, 0, False),
    ("raw with room for 8 bytes", lambda a: a, {}, 8, True),
    ("raw with room for half", lambda a: a, {}, 1200, True),
    ("raw black", lambda a: a * 0, {}, 0, True),
    ("deflate black", lambda a: a * 0, {"compression": "zlib"}, 0, False),
    ("LZW black", lambda a: a * 0, {"compression": "lzw"}, 0, False),
    ("zstd black", lambda a: a * 0, {"compression": "zstd"}, 0, False),
    ("deflate with room for 8 bytes", lambda a: a, {"compression": "zlib"}, 8, True),
    ("LZW with room for 2 bytes", lambda a: a, {"compression": "lzw"}, 2, True),
    ("zstd with room for 3 bytes", lambda a: a, {"compression": "zstd"}, 3, True),
]


@pytest.mark.parametrize(("what", "image", "options", "room", "held"), ZEROED, ids=[row[0] for row in ZEROED])
def test_zero_tails(
    tmp_path: Path,
    what: str,
    image: Callable[[NDArray[Any]], NDArray[Any]],
    options: dict[str, Any],
    room: int,
    held: bool,
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image(STACK[0]), metadata=None, **options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - room] + bytes(room))
    assert zero_tail(path) is held, what


def test_zeros_behind_the_pixels_may_be_images_to_come(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0], metadata=None)
    path.write_bytes(path.read_bytes() + bytes(3000))
    assert check_complete(path) == 1
    assert zero_tail(path)


def test_zeros_that_end_a_directory_are_no_tail(tmp_path: Path) -> None:
    pixels = STACK[0, :4, :4].tobytes()
    tags = [(256, 4), (257, 4), (258, 16), (259, 1), (262, 1), (273, 16), (277, 1), (278, 4), (279, len(pixels))]
    entries = b"".join(struct.pack("<HHQQ", code, 3, 1, value) for code, value in tags)
    head = b"II+\0\x08\0\0\0" + struct.pack("<Q", 16 + len(pixels))
    path = tmp_path / "a.tif"
    path.write_bytes(head + pixels + struct.pack("<Q", len(tags)) + entries + bytes(8))
    assert path.read_bytes()[-14:] == bytes(14)
    assert check_complete(path) == 1
    assert not zero_tail(path)


def test_deflate_padded_with_zeros_is_vouched_for_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0], compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as file:
        length = file.pages.first.databytecounts[0]
    path.write_bytes(path.read_bytes() + bytes(16))
    patch_tag(path, 279, length + 16)
    assert not zero_tail(path)


def test_of_a_stack_behind_one_directory_the_last_image_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, imagej=True, truncate=True)
    assert check_complete(path) == 5
    assert not zero_tail(path)
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    assert zero_tail(path)


def test_a_pyramid_level_without_a_place_is_not_written_yet(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(STACK[0], subifds=1, metadata=None)
        writer.write(STACK[0, ::2, ::2], subfiletype=1, metadata=None)
    patch_tag(path, 330, 0)
    with pytest.raises(IncompleteImageError, match="the place of a pyramid level"):
        check_complete(path)


def test_a_promise_of_more_images_than_any_stack_has(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0], description="ImageJ=1.53t\nimages=999999999\n", metadata=None)
    with pytest.raises(ImageError, match="promises 999999999 images") as caught:
        check_complete(path)
    assert not isinstance(caught.value, IncompleteImageError)


@pytest.mark.realdata
def test_all_real_tiffs_are_complete(shared: Path) -> None:
    paths = [path for path in (shared / "data").rglob("*") if path.suffix.lower() in (".tif", ".tiff")]
    assert len(paths) > 200
    for path in paths:
        pages = check_complete(path)
        assert pages == {"12_bit_pycromanager_mda": 8, "labeled_positions_1": 3}.get(path.parent.name, 1), path
        assert not zero_tail(path) or "cellprofiler_vitra" in path.parts, path  # black at its lower edge
