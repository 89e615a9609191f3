"""The pages of a TIFF: what it says of them, and their pixels.

The walk of `completeness` finds the pages, tifffile decodes them; whatever tifffile logs while it does so counts as a
file that is not all there.
"""

import logging
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from acquisition.completeness import Directory, walk
from acquisition.metadata import (
    PageInfo,
    PageTags,
    as_text,
    imagej_infos,
    metamorph_page,
    micro_manager_page,
    tiff_info,
)
from acquisition.ome import companions, ome_infos
from acquisition.zeros import pages_with_zeros, zero_tail
from sesmo_live.errors import ImageError, IncompleteImageError
from sesmo_live.records import Pixels

COMPRESSIONS = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 34926: "zstd", 50000: "zstd"}
"""The lossless compressions that are read; each decoder stops at the size that the tags announce."""
DAMAGE = (
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
)
"""What tifffile and its decoders raise on damaged files (struct.error apart)."""
_TAGS = (270, 282, 283, 296, 306, 33628, 33629, 50839, 51123)


class _Complaints(logging.Handler):
    """Keeps what tifffile logs, for each thread apart, while that thread listens."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the words of `record` if this thread listens."""
        words = getattr(self.heard, "words", None)
        if words is not None:
            words.append(record.getMessage())


_complaints = _Complaints()
_logger = logging.getLogger("tifffile")
_logger.setLevel(logging.WARNING)
_logger.addHandler(_complaints)


def read_pages(path: Path, *, growing: bool = False) -> list[PageInfo]:
    """Return what the TIFF at `path` says of each of its pages, in page order; every page is an image of its own.

    Thumbnails and pyramid levels are no pages; each image of an ImageJ or MetaMorph stack is one, also behind a single
    directory. No other file is opened, whatever OME-XML names. Raises as `check_complete` does, and
    IncompleteImageError with tifffile's words when it complains.

    Of a stack that is `growing` the pages that will not change any more are returned, perhaps none: those with a whole
    page after them, whose strips do not end in zeros and of which no description that is written last (OME, ImageJ)
    can still change a word. That a growing file is not all there yet raises nothing.
    """
    directories = _begun(path) if growing else [directory for directory in _layout(path) if not directory.reduced]
    if not directories:
        return []
    pages: list[PageTags] = []
    with _opened(path) as file:
        for directory in directories:
            tags = _page(file, directory).tags
            words = {code: value for code in _TAGS if (value := tags.valueof(code)) is not None}
            pages += [PageTags(words, directory.index, plane) for plane in range(directory.planes)]
    infos = page_infos(pages, path.name)
    if not growing:
        return infos
    held = pages_with_zeros(path, directories)
    open_ended = _rewritten_at_the_end(pages[0], path.name)
    return [info for info in infos if info.page not in held and not (open_ended and not _final(pages[info.page]))]


def companions_of(path: Path) -> list[str]:
    """Return the names of the other files that the TIFF at `path` says belong to its set, none of them opened.

    Looks at the first directory only. Raises as `read_pages` does.
    """
    next(walk(path))  # its tags are in the file and of bearable length
    with _opened(path) as file:
        return companions(as_text(file.pages.first.tags.valueof(270)), path.name)


def _begun(path: Path) -> list[Directory]:
    """Return the directories of the pages of a growing stack that have a whole one after them."""
    found = []
    with suppress(IncompleteImageError):
        for directory in walk(path):
            if directory.planes > 1:  # its description is written last and decides what its pages are
                return []
            if not directory.reduced:
                found.append(directory)
    return found[:-1]


def _rewritten_at_the_end(first: PageTags, name: str) -> bool:
    """Say whether the file's writer may fill or change the `first` page's description when it closes the file."""
    text = as_text(first.tags.get(270))
    blank = 270 in first.tags and not text.strip("\0 \n")
    return blank or ".ome." in name.lower() or "OME" in text[:2000] or text.startswith("ImageJ=")


def _final(page: PageTags) -> bool:
    """Say whether Micro-Manager's own record of `page`, written with it, leaves nothing for a later word to fill."""
    info = micro_manager_page(page, 0) if isinstance(page.tags.get(51123), Mapping) else None
    return info is not None and None not in (
        (info.timepoint, info.channel, info.z, info.position, info.acquired_at, info.pixel_um, info.stage_um)
    )


def page_infos(pages: list[PageTags], name: str) -> list[PageInfo]:
    """Return what the file called `name` says of its `pages`: on each field the richest source that has a word on it.

    Micro-Manager speaks before OME, MetaMorph and ImageJ. Plain tags are asked for the time, and for µm per pixel only
    in a file that none of these wrote.
    """
    first = pages[0].tags if pages else {}
    description = as_text(first.get(270))
    ome = ome_infos(description, [page.chain for page in pages], name) if "<OME" in description[:2000] else None
    imagej = imagej_infos(first, len(pages)) if description.startswith("ImageJ=") else None
    infos = []
    for number, page in enumerate(pages):
        spoken = [
            micro_manager_page(page, number),
            ome[number] if ome else None,
            metamorph_page(page, number),
            imagej[number] if imagej else None,
        ]
        known = [info for info in spoken if info is not None]
        plain = tiff_info(page.tags, number)
        infos.append(_merged([*known, replace(plain, pixel_um=None) if known else plain]))
    return infos


def _merged(known: list[PageInfo]) -> PageInfo:
    timed = next((info for info in known if info.acquired_at), known[-1])

    def word(field: str) -> Any:
        return next((value for info in known if (value := getattr(info, field)) is not None), None)

    return replace(
        timed,
        timepoint=word("timepoint"),
        channel=word("channel"),
        z=word("z"),
        position=word("position"),
        pixel_um=word("pixel_um"),
        stage_um=word("stage_um"),
    )


def read_pixels(path: Path, page: int = 0) -> Pixels:
    """Return the grey pixels (uint8 or uint16, height × width) of `page`, counted from 0, of the TIFF at `path`.

    8 to 16 bits a sample, packed or not, as strips or tiles, uncompressed, LZW, deflate, zstd or PackBits. Of RGB it is
    channel 0; where white is zero the values are turned round, so that bright is bright.
    Raises IncompleteImageError when the page is not wholly there, and ImageError when it is damaged, in a format that
    cannot be scored (float, negative, 1-bit, colour palette, volume) or not in the file at all.
    """
    directory, plane = _find(path, page)
    if directory.compression not in COMPRESSIONS:
        raise ImageError(
            f"{path} is compressed in a way that is not read (TIFF compression {directory.compression}); "
            "save it uncompressed or with LZW, deflate or zstd"
        )
    with _opened(path) as file:
        found = _page(file, directory)
        _refuse_unfit(path, found)
        pixels = _plane(file, found, directory, plane) if directory.planes > 1 else found.asarray(maxworkers=1)
        if pixels.shape != found.shape:
            raise ValueError(f"decodes to {pixels.shape} where {found.shape} should be")
        return _grey(path, found, pixels)


def _layout(path: Path) -> tuple[Directory, ...]:
    """Return the directories of the file; remembered, as the pages of a stack are read one after the other."""
    try:
        state = path.stat()
    except OSError as error:
        raise IncompleteImageError(f"{path} cannot be found now ({error.strerror}); it is read again") from error
    return _remembered(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=32)
def _remembered(path: Path, size: int, mtime_ns: int) -> tuple[Directory, ...]:  # noqa: ARG001 size, mtime: the key
    return tuple(walk(path))


def _find(path: Path, page: int) -> tuple[Directory, int]:
    """Return the directory of `page` and its place behind it; of a growing stack the pages before its end are found."""
    try:
        directories: Iterator[Directory] = iter(_layout(path))
    except IncompleteImageError:
        directories = walk(path)
    before = 0
    for directory in directories:
        if not directory.reduced:
            if before <= page < before + directory.planes:
                return directory, page - before
            before += directory.planes
    raise ImageError(f"{path} has {before} pages and no page {page} (counted from 0); scan the folder again")


@contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffFile]:
    """Open the TIFF at `path`, alone; tifffile's log and the system's errors become ours."""
    complaints: list[str] = []
    _complaints.heard.words = complaints
    try:
        with tifffile.TiffFile(path, _multifile=False, is_lsm=False, is_scanimage=False, is_ndpi=False) as file:
            yield file
        if complaints:
            raise IncompleteImageError(
                f"{path} is not all there ({complaints[0]}); it is read again, else export it again"
            )
    except OSError as error:
        raise IncompleteImageError(
            f"{path} cannot be read now ({error.strerror or error}); it is read again, else check the folder's rights"
        ) from error
    except MemoryError as error:
        raise ImageError(
            f"{path} needs more memory than there is to be decoded; export it in smaller images"
        ) from error
    except (*DAMAGE, struct.error) as error:
        words = str(error) or type(error).__name__
        if zero_tail(path):
            raise IncompleteImageError(
                f"{path} ends in zeros and cannot be decoded ({words}); it is read again, else copy it anew"
            ) from error
        raise ImageError(f"{path} is damaged ({words}); export it again") from error
    finally:
        _complaints.heard.words = None


def _page(file: tifffile.TiffFile, directory: Directory) -> tifffile.TiffPage:
    """Return tifffile's view of `directory`, after a check that it sees the same pixels as the walk did."""
    page = file.pages.first
    if page.offset != directory.offset:
        file.filehandle.seek(directory.offset)
        page = tifffile.TiffPage(file, index=directory.index)
    if tuple(page.dataoffsets) != tuple(directory.starts.tolist()):
        raise IncompleteImageError(f"{file.filename} changed while it was read; it is read again")
    return page


def _refuse_unfit(path: Path, page: tifffile.TiffPage) -> None:
    """Raise ImageError unless the samples of `page` are whole numbers of 8 to 16 bits, grey or RGB(A), in a plane."""
    bits = page.bitspersample
    unfit = (
        (page.imagedepth > 1, "is a volume in one page", "save each plane as its own page"),
        (not isinstance(bits, int) or bits < 8, f"has {bits} bits a pixel", "save it as 8- or 16-bit grey"),
        (page.sampleformat not in (1, 2), "holds no whole numbers", "save it as 8- or 16-bit grey"),
        (isinstance(bits, int) and bits > 16, f"has {bits} bits a pixel", "save it as 8- or 16-bit grey"),
        (page.samplesperpixel > 4, f"has {page.samplesperpixel} samples a pixel", "save each channel as its own page"),
        (
            page.photometric not in (0, 1, 2, 3),
            f"has colours of kind {page.photometric}",
            "save it as 8- or 16-bit grey",
        ),
        (page.photometric == 3 and not _grey_palette(page), "has a colour palette", "save it as 8- or 16-bit grey"),
    )
    for wrong, what, remedy in unfit:
        if wrong:
            raise ImageError(f"{path} {what}, which cannot be scored; {remedy}")


def _grey_palette(page: tifffile.TiffPage) -> bool:
    """Say whether the palette of `page` is plain grey, dark to bright, as programs write it for 8-bit images."""
    palette = np.asarray(page.tags.valueof(320, default=np.zeros((0, 0))))
    if palette.ndim != 2 or len(palette) != 3 or palette.shape[1] < 2:
        return False
    ramp = np.linspace(0, palette[:, -1].max(), palette.shape[1])
    return bool((np.abs(palette - ramp) <= 257).all() and palette[0, -1] >= 255)


def _plane(file: tifffile.TiffFile, page: tifffile.TiffPage, directory: Directory, plane: int) -> NDArray[np.generic]:
    """Return image `plane` of the many that lie uncompressed behind `directory`."""
    if page.dtype is None or page.bitspersample not in (8, 16) or page.planarconfig != 1:
        raise ImageError(f"{file.filename} is a stack of {page.bitspersample}-bit planes; save each as its own page")
    file.filehandle.seek(int(directory.starts[0]) + plane * directory.plane_bytes)
    dtype = page.dtype.newbyteorder(file.byteorder)
    data = file.filehandle.read(directory.plane_bytes)
    return np.frombuffer(data, dtype).reshape(page.shape).astype(page.dtype)


def _grey(path: Path, page: tifffile.TiffPage, pixels: NDArray[np.generic]) -> Pixels:
    """Return channel 0 of the decoded `pixels` as unsigned numbers, bright where the specimen is bright."""
    if page.samplesperpixel > 1:
        pixels = pixels[0] if page.planarconfig == 2 else pixels[..., 0]
    if pixels.dtype.kind == "i":
        if pixels.min() < 0:
            raise ImageError(f"{path} has negative pixels, which cannot be scored; save it as 8- or 16-bit grey")
        pixels = pixels.view(f"u{pixels.dtype.itemsize}")
    byte = pixels.dtype.itemsize == 1
    grey: Pixels = np.ascontiguousarray(pixels, np.uint8) if byte else np.ascontiguousarray(pixels, np.uint16)
    return grey ^ (2**page.bitspersample - 1) if page.photometric == 0 else grey
