"""Files made to harm: bombs, loops, names that lead elsewhere. Each is settled in 2 s and opens no other file."""

import gc
import multiprocessing
import os
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import imagecodecs
import numpy as np
import pytest
import tifffile

from acquisition.completeness import MAX_PAGES, MAX_TEXT
from acquisition.ndtiff import INDEX_NAME, ndtiff_pages, ndtiff_pixels
from acquisition.ome import MAX_COMPANIONS, companions
from acquisition.tiff import companions_of, read_pages
from sesmo_live.errors import ImageError
from tests.faults import damage
from tests.figures import figure
from tests.test_ndtiff import index_entry

LIMIT_S = 2.0
Tags = list[tuple[int, int, int, int]]


def tiff_of(directories: list[tuple[Tags, int]], body: bytes = b"", at: int = 8) -> bytes:
    """Return a classic TIFF: `body` at byte 8, then directories of (tags, offset of the next)."""
    data = b"II*\0" + struct.pack("<I", at) + body
    for tags, following in directories:
        data += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
        data += struct.pack("<I", following)
    return data


def page_tags(width: int, height: int, compression: int, start: int, size: int) -> Tags:
    return [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, compression), (262, 3, 1, 1),
        (273, 4, 1, start), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, size),
    ]  # fmt: skip


def bomb(compression: int, stream: bytes, width: int, height: int) -> bytes:
    """Return a TIFF that declares `width` × `height` and whose one strip holds `stream`."""
    tags = page_tags(width, height, compression, 8, len(stream))
    return tiff_of([(tags, 0)], stream + bytes(len(stream) % 2), 8 + len(stream) + len(stream) % 2)


def zeros_deflated(mebibytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(mebibytes)) + packer.flush()


def zeros_zstd(mebibytes: int) -> bytes:
    """Return a frame of blocks that each repeat one byte 128 KiB times."""
    block = (1 << 1) | (2**17 << 3)
    blocks = struct.pack("<I", block)[:3] + b"\0"
    last = struct.pack("<I", block | 1)[:3] + b"\0"
    size = struct.pack("<Q", mebibytes * 2**20)
    return b"\x28\xb5\x2f\xfd\xe0" + size + blocks * (mebibytes * 8 - 1) + last


def zeros_packbits(mebibytes: int) -> bytes:
    return b"\x81\x00" * (mebibytes * 2**20 // 128)


def zeros_lzw(mebibytes: int) -> bytes:
    return bytes(imagecodecs.lzw_encode(bytes(mebibytes * 2**20)))


STREAMS: dict[str, tuple[int, Callable[[int], bytes]]] = {
    "deflate": (8, zeros_deflated),
    "zstd": (50000, zeros_zstd),
    "PackBits": (32773, zeros_packbits),
    "LZW": (5, zeros_lzw),
}


def timed(path: Path) -> tuple[str, float]:
    """Inspect a file; return its verdict and the seconds of work that it took, which other loads do not change."""
    started = time.process_time()
    try:
        pages = damage.inspect(path)
        answer = f"{len(pages)} pages"
    except ImageError as error:
        answer = f"{type(error).__name__}: {error}"
    return answer, time.process_time() - started


def inspect_all(paths: list[Path]) -> tuple[list[tuple[str, float]], float]:
    """Return verdict and seconds of each file, and the most memory that the process held, in MiB."""
    return [timed(path) for path in paths], damage.peak_mib()


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run `function` in a process of its own: its memory and its audit hooks end with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.alone
def test_bombs(tmp_path: Path, kind: str) -> None:
    compression, stream = STREAMS[kind]
    inflated = 1024 if kind != "LZW" else 512
    data = stream(inflated)
    sizes = {"small": (64, 64), "just allowed": (16_384, 16_384), "large": (65_000, 65_000), "a line": (2**31 - 1, 1)}
    paths = []
    for name, (width, height) in sizes.items():
        path = tmp_path / f"{name}.tif"
        path.write_bytes(bomb(compression, data, width, height))
        paths.append(path)
    results, peak = in_child(inspect_all, paths)
    for (answer, seconds), path in zip(results, paths, strict=True):
        figure(f"bomb {kind} {inflated} MiB in {len(data) / 2**20:.2f}, {path.stem}: {seconds:.2f} s, {answer[:60]}")
        assert seconds <= LIMIT_S
        assert answer.startswith("ImageError") or path.stem == "small"
    figure(f"peak {peak:.0f} MiB")
    assert peak < 1024


def loops() -> dict[str, bytes]:
    """Return files whose directories lead back to themselves."""
    pixels, first = bytes(range(1, 129)), 8 + 128
    tags = page_tags(8, 8, 1, 8, 128)
    length = 2 + 12 * len(tags) + 4
    with_sub = length + 12
    second = first + length

    def sub(offset: int) -> tuple[int, int, int, int]:
        return (330, 4, 1, offset)

    found = {
        "itself": tiff_of([(tags, first)], pixels, first),
        "each other": tiff_of([(tags, second), (tags, first)], pixels, first),
        "three": tiff_of([(tags, second), (tags, second + length), (tags, second)], pixels, first),
        "its own pyramid": tiff_of([([*tags, sub(first)], 0)], pixels, first),
        "a pyramid that is the next": tiff_of(
            [([*tags, sub(first + with_sub)], first + with_sub), (tags, 0)], pixels, first
        ),
        "a pyramid that leads back": tiff_of(
            [([*tags, sub(first + with_sub)], 0), ([*tags, sub(first)], first)], pixels, first
        ),
        "header": tiff_of([(tags, 4)], pixels, first),
    }
    many = [([*tags, (330, 4, 4000, 8)], 0)]
    found["4000 pyramids at one place"] = tiff_of(many, struct.pack("<I", 8 + 16_000 + 0) * 4000, 8 + 16_000)
    chain, start = b"", 8 + 128
    for number in range(MAX_PAGES + 4000):
        following = start + (number + 1) * length
        chain += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        chain += struct.pack("<I", following)
    found["a chain without end"] = b"II*\0" + struct.pack("<I", start) + pixels + chain
    return found


@pytest.mark.alone
def test_loops_of_directories(tmp_path: Path) -> None:
    slowest = 0.0
    for name, data in loops().items():
        path = tmp_path / "a.tif"
        path.write_bytes(data)
        answer, seconds = timed(path)
        slowest = max(slowest, seconds)
        figure(f"loop, {name}: {seconds:.3f} s, {answer.replace(str(tmp_path), '')[:80]}")
        assert seconds <= LIMIT_S, name
        refused = "pyramid" not in name or "next" in name
        assert answer.startswith(("ImageError", "IncompleteImageError")) or not refused, (name, answer)


def counts() -> dict[str, bytes]:
    """Return files that announce more of something than they can hold, or that hold a great deal of it."""
    pixels, first = bytes(range(1, 129)), 8 + 128
    tags = {tag[0]: tag for tag in page_tags(8, 8, 1, 8, 128)}

    def with_tag(*tag: int) -> bytes:
        changed = {**tags, tag[0]: (tag[0], tag[1], tag[2], tag[3])}
        return tiff_of([(list(changed.values()), 0)], pixels, first)

    found = {f"tag {code} of {2**32 - 1} values": with_tag(code, 4, 2**32 - 1, 8) for code in (256, 273, 279, 270, 330)}
    found["65 535 tags"] = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 65_535) + b"\1\1\3\0\1\0\0\0" * 200_000
    found["2⁶³ tags"] = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63) + bytes(range(1, 255)) * 50
    found["10⁹ strips"] = tiff_of([([*tags.values(), (322, 4, 1, 1)][:8], 0)], pixels, first)
    one = dict(tags)
    one[256], one[257], one[278] = (256, 4, 1, 1), (257, 4, 1, 400_000_000), (278, 4, 1, 1)
    found["a strip for each of 4·10⁸ rows"] = tiff_of([(list(one.values()), 0)], pixels, first)
    words = b"<OME " + b"x" * (MAX_TEXT + 10)
    changed = [*tags.values(), (270, 2, len(words), 136)]
    found["a description of 16 MiB"] = tiff_of([(changed, 0)], pixels + words, 136 + len(words))
    return found


@pytest.mark.alone
def test_counts_beyond_all_files(tmp_path: Path) -> None:
    paths = []
    for number, (name, data) in enumerate(counts().items()):
        paths.append(tmp_path / f"{number} {name.replace('/', ' ')}.tif")
        paths[-1].write_bytes(data)
    results, peak = in_child(inspect_all, paths)
    for path, (answer, seconds) in zip(paths, results, strict=True):
        figure(f"count, {path.stem}: {seconds:.3f} s, {answer.replace(str(tmp_path), '')[:70]}")
        assert seconds <= LIMIT_S, path
        assert answer.startswith(("ImageError", "IncompleteImageError")), (path, answer)
    figure(f"peak {peak:.0f} MiB")
    assert peak < 1024


def xml_bombs() -> dict[str, str]:
    pixels = '<Pixels DimensionOrder="XYZCT" SizeC="1" SizeT="{t}" SizeX="8" SizeY="8" SizeZ="1" Type="uint16">'
    head = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
    laughs = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    image = pixels.format(t=999_999_999) + '<TiffData IFD="0" PlaneCount="999999999"/>' * 40_000 + "</Pixels>"
    return {
        "entities": f'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a0 "ha">{laughs}]><OME>&a9;</OME>',
        "another file": '<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY x SYSTEM "file:///etc/passwd">]><OME>&x;</OME>',
        "planes told over and over": head + image + "</Image></OME>",
        "depth": head + "<a>" * 100_000 + "</a>" * 100_000 + "</Image></OME>",
        "cut short": head,
    }


@pytest.mark.parametrize("kind", xml_bombs())
@pytest.mark.alone
def test_ome_xml_made_to_harm(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as writer:
        for number in range(200):
            text = xml_bombs()[kind] if number == 0 else None
            writer.write(np.full((8, 8), 9, np.uint16), description=text, metadata=None, contiguous=False)
    gc.freeze()  # else it counts how long this process collects what other tests left in memory
    try:
        started = time.thread_time()
        assert len(read_pages(path)) == 200
        assert companions_of(path) == []
        seconds = time.thread_time() - started
    finally:
        gc.unfreeze()
    figure(f"OME-XML, {kind}: {seconds:.2f} s")
    assert seconds <= LIMIT_S


# names that lead elsewhere


def traversals() -> list[str]:
    """Return 200 file names that a reader might follow out of its folder."""
    targets = ["secret.tif", "secret.ome.tif"]
    ups = [
        "../",
        "../../",
        "..\\",
        "..\\..\\",
        "./../",
        ".\\..\\",
        "....//",
        "..//",
        "..;/",
        "../watched/../",
        "~/",
        "~",
    ]
    ups += [
        "%2e%2e%2f",
        "%2e%2e/",
        "..%2f",
        "%2e%2e%5c",
        "..%5c",
        "%252e%252e%252f",
        "..%c0%af",
        "%00../",
        "file://../",
    ]
    ups += ["file:///", "file://localhost/", "//server/share/", "\\\\server\\share\\", "\\\\?\\C:\\", "\\\\.\\C:\\"]
    ups += [
        "C:/",
        "C:\\",
        "C:",
        "c:..\\",
        "/",
        "//",
        "\\",
        "/etc/../",
        "/proc/self/root/",
        "smb://server/",
        "http://host/",
    ]
    ups += ["ftp://host/", "a/../../", "watched/", "./", ".\\", "a/", "a\\", " ../", "\t../", "\n../", "..\u2215../"]
    ups += [
        "..\uff0f",
        "\u202e../",
        "../\u200b",
        "A:../",
        "z:\\..\\",
        "\\\\localhost\\c$\\",
        "//?/",
        "/./",
        "/../",
        "/dev/shm/",
    ]
    names = [up + target for up in ups for target in targets]
    names += [f"{device}.tif" for device in ("NUL", "con", "AUX", "PRN", "COM1", "LPT9", "nul.ome", "CON ", "COM0")]
    names += [
        "..",
        ".",
        "",
        "/",
        "\\",
        "..tif",
        ".tif",
        "...tif",
        ".hidden.tif",
        "~lock.tif",
        "a.tif:b.tif",
        "a.tif::$DATA",
    ]
    names += [
        "../../../../../../etc/passwd",
        "/etc/passwd",
        "C:\\Windows\\win.ini",
        "a.tif ",
        "a.tif.",
        "a.tif\\",
        "a.tif/",
    ]
    names += [
        "a?.tif",
        "a*.tif",
        "a|b.tif",
        'a".tif',
        "<a>.tif",
        "a" * 300 + ".tif",
        "companion.ome",
        "a.exe",
        "a.tif.exe",
    ]
    names += ["$(id).tif/../b.tif", "`id`/.tif", "../" * 40 + "secret.tif", "%2e%2e%2f" * 9 + "secret.tif"]
    for depth in range(3, 60):
        names.append("../" * depth + "secret.tif")
    return list(dict.fromkeys(names))[:200]


HARMLESS = {"..%c0%af", "%252e"}
"""Odd but plain names, which lie beside the file on every system as long as nobody decodes them twice."""


def open_and_count(root: Path, paths: list[Path]) -> tuple[list[str], list[list[str]], float, dict[str, int]]:
    """Inspect the OME-TIFFs `paths`; return the opens outside `root`, each file's companions, seconds, and verdicts."""
    damage.inspect(paths[0])  # what is imported on first use is not of interest
    opened: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.listdir"):
            opened.append(str(arguments[0]))

    sys.addaudithook(note)
    slowest, named = 0.0, []
    verdicts: Counter[str] = Counter()
    for path in paths:
        answer, seconds = timed(path)
        verdicts[answer] += 1
        named.append(companions_of(path))
        slowest = max(slowest, seconds)
    strays = [name for name in opened if not name.startswith(str(root))]
    assert len(opened) >= len(paths)
    return strays, named, slowest, dict(verdicts)


@pytest.mark.alone
def test_names_in_ome_xml_open_nothing(tmp_path: Path) -> None:
    root = tmp_path / "watched"
    root.mkdir()
    for name in ("secret.tif", "secret.ome.tif"):
        tifffile.imwrite(tmp_path / name, np.full((8, 8), 666, np.uint16))
    names = traversals()
    assert len(names) == 200
    paths = []
    for number, name in enumerate(names):
        clean = "".join(sign if sign >= " " or sign in "\t\n" else "?" for sign in name)
        block = f'<TiffData FirstT="{{t}}" IFD="0"><UUID FileName={quoteattr(clean)}>urn:uuid:9</UUID></TiffData>'
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><OME UUID="urn:uuid:1"><Image ID="Image:0">'
            '<Pixels DimensionOrder="XYZCT" SizeC="1" SizeT="2" SizeX="8" SizeY="8" SizeZ="1" Type="uint16">'
            f'<TiffData FirstT="0" IFD="0"/>{block.format(t=1)}</Pixels></Image></OME>'
        )
        path = root / f"{number}.ome.tif"
        tifffile.imwrite(path, np.full((8, 8), 5, np.uint16), description=xml.encode(), metadata=None)
        paths.append(path)
    strays, named, slowest, verdicts = in_child(open_and_count, root, paths)
    figure(f"traversal: {len(names)} names, {len(strays)} opens outside, slowest {slowest:.3f} s, {verdicts}")
    assert strays == []
    assert slowest <= LIMIT_S
    assert verdicts == {"1 pages": 200}
    believed = [name for name, others in zip(names, named, strict=True) if others]
    assert all(any(part in name for part in HARMLESS) for name in believed), believed


def test_companions_are_plain_names_only() -> None:
    def xml(names: list[str]) -> str:
        blocks = "".join(f"<TiffData><UUID FileName={quoteattr(name)}>u</UUID></TiffData>" for name in names)
        return f"<OME><Image><Pixels>{blocks}</Pixels></Image></OME>"

    good = ["a.tif", "B03 f01.ome.TIFF", "µ 50%.tif", "a (1)#2.ome.tif", "NULL.tif", "a..b.tif", "100%25.tif"]
    assert companions(xml([*good, *good, "own.ome.tif"]), "own.ome.tif") == good
    control = [name for name in traversals() if all(sign.isprintable() or sign in "\t\n" for sign in name)]
    left = companions(xml(control), "own.ome.tif")
    assert all(any(part in name for part in HARMLESS) for name in left), left
    assert all(os.path.basename(name) == name for name in left)  # noqa: PTH119 the plainest way to say it
    many = companions(xml([f"{number}.tif" for number in range(MAX_COMPANIONS + 500)]), "0.tif")
    assert len(many) == MAX_COMPANIONS
    assert companions("<OME", "a.tif") == companions("", "a.tif") == companions("<MetaData/>", "a.tif") == []


def open_ndtiff(root: Path, folders: list[Path]) -> tuple[list[str], dict[str, int], float]:
    """Read NDTiff folders; return the opens outside `root`, the verdicts, and the seconds of the slowest."""
    from contextlib import suppress

    with suppress(ImageError), warnings.catch_warnings():
        ndtiff_pages(folders[0])  # imports dask
    opened: list[str] = []
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
    verdicts: Counter[str] = Counter()
    slowest = 0.0
    for folder in folders:
        for read in (ndtiff_pages, ndtiff_pixels):
            started = time.monotonic()
            try:
                read(folder)
                verdicts["read"] += 1
            except ImageError as error:
                verdicts[type(error).__name__] += 1
            slowest = max(slowest, time.monotonic() - started)
    return [name for name in opened if not name.startswith(str(root))], dict(verdicts), slowest


@pytest.mark.alone
def test_names_in_an_ndtiff_index_open_nothing_elsewhere(tmp_path: Path) -> None:
    root = tmp_path / "watched"
    tifffile.imwrite(tmp_path / "secret.tif", np.full((8, 8), 666, np.uint16))
    folders = []
    for number, name in enumerate(name for name in traversals() if "\0" not in name and name):
        folder = root / str(number)
        folder.mkdir(parents=True)
        (folder / INDEX_NAME).write_bytes(index_entry_of(name))
        folders.append(folder)
    strays, verdicts, slowest = in_child(open_ndtiff, root, folders)
    figure(f"NDTiff: {len(folders)} names, {len(strays)} opens outside, slowest {slowest:.3f} s, {verdicts}")
    assert strays == []
    assert slowest <= LIMIT_S
    assert "read" not in verdicts


def index_entry_of(name: str) -> bytes:
    """Return an index entry with `name`, whose length is counted in bytes."""
    plain = index_entry("x" * len(name.encode()))
    return plain.replace(b"x" * len(name.encode()), name.encode())
