"""The vendors' XML files beside the images, read as data only: no DTD, no entities, no other file opened."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree as ET

from sesmo_live.errors import ImageError

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 30
"""A sidecar larger than this is ignored, with a warning."""

Stamp = tuple[int, int]
"""Modification time in ns and size in bytes: while both stay, what was read from the file stays true."""


@dataclass(slots=True)
class Record:
    """One XML element without namespaces: its attributes, the text of its children by tag, its own text."""

    tag: str
    attributes: dict[str, str]
    children: dict[str, str] = field(default_factory=dict)
    text: str = ""


class _Collector:
    """A parser target that keeps the wanted elements alone, so that an index of any length needs little memory."""

    def __init__(self, wanted: frozenset[str], keep: frozenset[str]) -> None:
        self.found: list[Record] = []
        self._wanted = wanted
        self._keep = keep
        self._open: list[Record] = []
        self._text: list[str] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._text.clear()
        if _local(tag) in self._wanted:
            kept = {_local(key): value for key, value in attributes.items() if _local(key) in self._keep}
            self._open.append(Record(_local(tag), kept))

    def data(self, text: str) -> None:
        if self._open:
            self._text.append(text)

    def end(self, tag: str) -> None:
        if not self._open:
            return
        record, text = self._open[-1], "".join(self._text).strip()
        self._text.clear()
        if record.tag == _local(tag):
            record.text = text
            self.found.append(self._open.pop())
        elif _local(tag) in self._keep:
            record.children.setdefault(_local(tag), text)

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ImageError(f"it declares a document type ({name}, {public}, {system})")

    def close(self) -> list[Record]:
        return self.found


@lru_cache(maxsize=1024)
def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def find(root: Path, folder: Path, names: Iterable[str], levels: int = 0) -> tuple[Path, Stamp] | None:
    """Return the first of `names` in `folder` or up to `levels` folders above it, never above `root`, with its stamp.

    None when there is none (yet), or when it cannot be looked at: an image is then known by its name alone.
    """
    for _ in range(levels + 1):
        for name in names:
            try:
                status = (folder / name).stat()
            except OSError:  # not there, or a share that is away: the image itself will tell
                continue
            return folder / name, (status.st_mtime_ns, status.st_size)
        if folder == root:
            break
        folder = folder.parent
    return None


def read_records(path: Path, wanted: Iterable[str], keep: Iterable[str]) -> list[Record]:
    """Return the elements of `path` whose tag is `wanted`, in the order in which they end.

    Of their attributes and children only those named in `keep` are kept: plates have a million images.

    Instruments write these files while they image: of one that breaks off, the elements that are complete are
    returned. A document type, a size beyond `MAX_BYTES` or an unreadable file gives no records and one warning.
    """
    collector = _Collector(frozenset(wanted), frozenset(keep))
    parser = ET.XMLParser(target=collector)  # noqa: S314 - the collector refuses a DTD; expat opens no other file
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(f"it is larger than {MAX_BYTES >> 20} MiB")
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                parser.feed(chunk)
    except ET.ParseError as error:
        log.debug("%s is not complete (%s); read up to there", path, error)
    except (ImageError, OSError) as error:
        log.warning("%s is ignored, since %s; images are known by their names alone", path, error)
        return []
    return collector.found


def read_head(path: Path, limit: int, encoding: str = "utf-8") -> str:
    """Return the first `limit` characters of a text sidecar, nothing (with a warning) when it cannot be read."""
    try:
        with path.open(encoding=encoding, errors="replace") as stream:
            return stream.read(limit)
    except OSError as error:
        log.warning("%s is ignored, since %s; images are known by their names alone", path, error)
        return ""


def number(text: str | None, scale: float = 1.0) -> float | None:
    """Return `text` times `scale`; None when it is missing or no finite number."""
    try:
        value = float(text or "") * scale
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def positive(text: str | None, scale: float = 1.0) -> float | None:
    """Return `text` times `scale` when it is a finite number above zero, else None."""
    value = number(text, scale)
    return value if value is not None and value > 0 else None


def pair(x: str | None, y: str | None, scale: float = 1.0) -> tuple[float, float] | None:
    """Return both numbers times `scale`, or None when one of them is missing."""
    first, second = number(x, scale), number(y, scale)
    return None if first is None or second is None else (first, second)


def moment(text: str | None) -> datetime | None:
    """Return an ISO 8601 time, aware if it carries a zone; None when it is missing or no time."""
    try:
        return datetime.fromisoformat(text or "")
    except ValueError:
        return None
