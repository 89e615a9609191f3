"""Loose pictures: PNG, JPEG, BMP and TIFF, grey and colour, whole and cut short."""

import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile

from acquisition.pictures import PICTURE_SUFFIXES, list_pictures, read_picture
from sesmo_live.errors import ImageError, IncompleteImageError, UsageError

RNG = np.random.default_rng(5)
RGB = RNG.integers(0, 256, (40, 61, 3), dtype=np.uint8)
SMOOTH = np.dstack([np.add.outer(np.arange(40), np.arange(61) * k) for k in (1, 2, 3)]).astype(np.uint8)


def write(path: Path, image: Any) -> None:
    """Write `image`, colours as red, green, blue."""
    blue_first = image if image.ndim == 2 else image[..., [2, 1, 0, *range(3, image.shape[2])]]
    assert cv2.imwrite(str(path), blue_first)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("grey.png", RGB[..., 0]),
        ("grey16.png", RGB[..., 0].astype(np.uint16) * 251),
        ("colour.png", RGB),
        ("alpha.png", np.dstack([RGB, RGB[..., :1]])),
        ("colour16.png", RGB.astype(np.uint16) * 251),
        ("grey.bmp", RGB[..., 0]),
        ("colour.BMP", RGB),
    ],
)
def test_lossless_pictures_give_their_red_channel(tmp_path: Path, name: str, image: Any) -> None:
    path = tmp_path / name
    write(path, image)
    pixels = read_picture(path)
    assert pixels.dtype == image.dtype
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, image if image.ndim == 2 else image[..., 0])


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG"])
def test_of_a_jpeg_it_is_the_red_channel_too(tmp_path: Path, name: str) -> None:
    path, image = tmp_path / name, np.zeros((40, 61, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = 200, 100, 30
    write(path, image)
    pixels = read_picture(path)
    assert pixels.shape == (40, 61)
    assert np.abs(pixels.astype(int) - 200).max() <= 4


def test_grey_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    write(path, SMOOTH[..., 0])
    assert np.abs(read_picture(path).astype(int) - SMOOTH[..., 0]).mean() < 3


def test_bitmap_with_a_palette(tmp_path: Path) -> None:
    palette = b"".join(struct.pack("<4B", blue, 0, 255 - blue, 0) for blue in range(256))
    rows = RGB[..., 0][:, :60]
    header = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 54 + 1024 + 2400, 0, 1078, 40, 60, 40, 1, 8, 0, 2400, 0, 0, 256, 0)
    path = tmp_path / "a.bmp"
    path.write_bytes(header + palette + rows[::-1].tobytes())
    np.testing.assert_array_equal(read_picture(path), 255 - rows)


@pytest.mark.parametrize("suffix", [".tif", ".TIFF"])
def test_tiffs_go_the_way_of_all_tiffs(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    tifffile.imwrite(path, RGB, photometric="rgb")
    np.testing.assert_array_equal(read_picture(path), RGB[..., 0])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(IncompleteImageError):
        read_picture(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_pictures_cut_short_are_never_taken_for_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, RGB)
    data = path.read_bytes()
    whole = read_picture(path)
    for cut in [*range(0, len(data), len(data) // 60), *range(len(data) - 20, len(data))]:
        path.write_bytes(data[:cut])
        if cut < len(data) - 10:
            with pytest.raises(ImageError, match=f"a{suffix} "):
                read_picture(path)
            continue
        with suppress(ImageError):
            np.testing.assert_array_equal(read_picture(path), whole)


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_damaged_pictures_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, RGB)
    data = bytearray(path.read_bytes())
    data[28 if suffix == ".bmp" else 60] ^= 255
    path.write_bytes(data)
    with pytest.raises(ImageError, match="is damaged"):
        read_picture(path)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b""))
    with pytest.raises(ImageError, match="has 60000 × 60000 pixels, above the limit"):
        read_picture(path)


def test_printing_colours_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(imagecodecs.jpeg_encode(np.dstack([RGB, RGB[..., :1]]), colorspace="CMYK", outcolorspace="CMYK"))
    with pytest.raises(ImageError, match="CMYK"):
        read_picture(path)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", IncompleteImageError, "is empty"),
        (bytes(500), IncompleteImageError, "is empty"),
        (b"GIF89a and so on", ImageError, "neither TIFF, PNG, JPEG nor BMP"),
        (b"\x89PNG\r\n\x1a\n", ImageError, "is damaged"),
    ],
)
def test_what_is_no_picture(tmp_path: Path, data: bytes, error: type[ImageError], words: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(error, match=words):
        read_picture(path)
    with pytest.raises(ImageError, match=r"gone\.png cannot be read \(No such file"):
        read_picture(tmp_path / "gone.png")


def test_the_list_is_sorted_deep_and_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/1.tif", "a.jpg", "c.txt", ".hidden.png", ".git/x.png", "~$a.png", "d.bmp", "e.Tiff"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in list_pictures(tmp_path)] == [
        "a.jpg",
        "b/1.tif",
        "b/2.PNG",
        "d.bmp",
        "e.Tiff",
    ]
    assert set(PICTURE_SUFFIXES) == {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp"}


def test_a_list_of_nothing_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no pictures; give a folder with"):
        list_pictures(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        list_pictures(tmp_path / "gone")


@pytest.mark.realdata
def test_real_pictures(shared: Path) -> None:
    folder = shared / "data/phase_unlabelled/cellprofiler_wound"
    pictures = list_pictures(folder)
    assert [path.name for path in pictures] == ["DMSO_B5_t0.JPG", "DMSO_B5_t24.JPG"]
    for path in pictures:
        pixels = read_picture(path)
        colour = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert colour is not None
        assert np.abs(pixels.astype(int) - colour[..., 2]).max() <= 2
