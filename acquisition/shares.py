"""Which file system a folder lies on, and whether that is a network share: those send no events and lock badly."""

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import Protocol, TypeVar

import psutil

PATIENCE_S = 2.0
"""Seconds that the system has to answer; a dead mount may never do so."""
# fmt: off
NETWORK_KINDS = frozenset(
    ("9p", "afpfs", "afs", "auristorfs", "autofs", "beegfs", "ceph", "cifs", "coda", "davfs", "davfs2", "drvfs",
     "fakeowner", "fhgfs", "ftpfs", "gfs2", "glusterfs", "gpfs", "lustre", "macfuse", "moosefs", "ncp", "ncpfs",
     "ocfs2", "orangefs", "osxfs", "osxfuse", "panfs", "prl_fs", "pvfs2", "sshfs", "vboxsf", "virtiofs", "vmhgfs",
     "webdav", "wekafs")
)
"""File systems whose files may be changed by another computer (a virtual machine's host too), so without an event."""
NETWORK_FUSE = frozenset(
    ("blobfuse", "blobfuse2", "ceph-fuse", "curlftpfs", "gcsfuse", "goofys", "grpcfuse", "gvfsd-fuse", "juicefs",
     "mfs", "s3fs", "seaweedfs", "smbnetfs", "vmhgfs-fuse")
)
"""The same among those that run as a program, as their kind reads after `fuse.`"""
# fmt: on

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Filesystem:
    """Where a file system begins, what the system calls it, and whether it is a `network` share."""

    mount: Path
    kind: str
    network: bool


class Partition(Protocol):
    """A mounted file system as psutil lists it."""

    @property
    def mountpoint(self) -> str:
        """Where it is mounted."""

    @property
    def fstype(self) -> str:
        """Its kind."""

    @property
    def opts(self) -> str:
        """Its options, with commas; Windows says `remote` among them."""


def filesystem_of(path: Path) -> Filesystem:
    """Return the file system on which `path` lies, or would lie if it existed.

    It answers within a few seconds also where a mount is dead, never raises, and takes a file system that the system
    does not name (`kind` "unknown") for a local one.
    """
    lexical = Path(os.path.abspath(path))  # noqa: PTH100 it never asks the disk, which may hang
    if is_unc(lexical):
        return find_mount(lexical, [])
    table: list[Partition] = _patiently(lambda: list(psutil.disk_partitions(all=True)), [])
    return find_mount(_patiently(lexical.resolve, lexical), table)


def is_network(path: Path) -> bool:
    """Say whether `path` lies on a network share, or would lie there if it existed."""
    return filesystem_of(path).network


def find_mount(path: PurePath, partitions: Iterable[Partition]) -> Filesystem:
    """Return the file system of an absolute path by a table of what is mounted; the last of two at one place counts."""
    if is_unc(path):
        return Filesystem(Path(PureWindowsPath(path).anchor), "UNC", network=True)
    best: Partition | None = None
    depth = 0
    for partition in partitions:
        mount = type(path)(partition.mountpoint)
        if path.is_relative_to(mount) and len(mount.parts) >= depth:
            best, depth = partition, len(mount.parts)
    if best is None:
        return Filesystem(Path(path.anchor), "unknown", network=False)
    kind = best.fstype.lower()
    remote = "remote" in best.opts.lower().split(",")
    return Filesystem(Path(best.mountpoint), kind or "unknown", network=remote or is_network_kind(kind))


def is_network_kind(kind: str) -> bool:
    """Say whether a file system of that kind (in lower case, as the system writes it) is a network share."""
    name = kind.removeprefix("fuse.")
    if name != kind and name in NETWORK_FUSE:
        return True
    return name in NETWORK_KINDS or name.startswith(("nfs", "smb", "rclone"))


def is_unc(path: PurePath) -> bool:
    r"""Say whether a path is written as Windows writes shares: `\\server\share` or `\\?\UNC\server\share`."""
    text = str(path)
    if text.upper().startswith("\\\\?\\UNC\\"):
        return True
    return text.startswith("\\\\") and not text.startswith(("\\\\?\\", "\\\\.\\"))


def _patiently(ask: Callable[[], T], otherwise: T) -> T:
    """Return what `ask` returns, or `otherwise` where it fails or takes longer than PATIENCE_S."""
    answers: list[T] = []

    def work() -> None:
        try:
            answers.append(ask())
        except (OSError, RuntimeError):  # RuntimeError: links in a ring, before Python 3.13
            return

    worker = threading.Thread(target=work, name="file system", daemon=True)
    worker.start()
    worker.join(PATIENCE_S)
    return answers[0] if answers else otherwise
