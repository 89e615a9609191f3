"""Which file system a folder lies on: by tables of what is mounted on three systems, and on this machine."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import psutil
import pytest

from acquisition import shares
from acquisition.shares import Filesystem, filesystem_of, find_mount, is_network, is_network_kind
from tests.figures import figure


@dataclass(frozen=True)
class Partition:
    mountpoint: str
    fstype: str
    opts: str = "rw"


LINUX = [
    Partition("/", "ext4"),
    Partition("/proc", "proc"),
    Partition("/mnt/scope", "cifs"),
    Partition("/mnt/scope/local disk", "xfs"),
    Partition("/mnt/over", "ext4"),
    Partition("/mnt/over", "nfs4"),
    Partition("/data", "zfs"),
    Partition("/home", "autofs"),
    Partition("/run/user/1000/gvfs", "fuse.gvfsd-fuse"),
    Partition("/media/usb", "fuseblk"),
]
MACOS = [
    Partition("/", "apfs"),
    Partition("/System/Volumes/Data", "apfs"),
    Partition("/Volumes/scope", "smbfs"),
    Partition("/Volumes/old", "afpfs"),
]
WINDOWS = [
    Partition("C:\\", "NTFS", "rw,fixed"),
    Partition("Z:\\", "NTFS", "rw,remote"),
    Partition("E:\\", "", "cdrom"),
]


@pytest.mark.parametrize(
    ("path", "table", "mount", "kind", "network"),
    [
        (PurePosixPath("/scratch/a"), LINUX, "/", "ext4", False),
        (PurePosixPath("/mnt/scope"), LINUX, "/mnt/scope", "cifs", True),
        (PurePosixPath("/mnt/scope/plate/not/there"), LINUX, "/mnt/scope", "cifs", True),
        (PurePosixPath("/mnt/scope2/plate"), LINUX, "/", "ext4", False),
        (PurePosixPath("/mnt/scope/local disk/a"), LINUX, "/mnt/scope/local disk", "xfs", False),
        (PurePosixPath("/mnt/over/a"), LINUX, "/mnt/over", "nfs4", True),
        (PurePosixPath("/data/a"), LINUX, "/data", "zfs", False),
        (PurePosixPath("/home/anna/a"), LINUX, "/home", "autofs", True),
        (PurePosixPath("/run/user/1000/gvfs/smb-share/a"), LINUX, "/run/user/1000/gvfs", "fuse.gvfsd-fuse", True),
        (PurePosixPath("/media/usb/a"), LINUX, "/media/usb", "fuseblk", False),
        (PurePosixPath("/a"), [], "/", "unknown", False),
        (PurePosixPath("/Users/anna"), MACOS, "/", "apfs", False),
        (PurePosixPath("/Volumes/scope/a"), MACOS, "/Volumes/scope", "smbfs", True),
        (PurePosixPath("/Volumes/old/a"), MACOS, "/Volumes/old", "afpfs", True),
        (PureWindowsPath("C:\\plates"), WINDOWS, "C:\\", "ntfs", False),
        (PureWindowsPath("c:\\plates"), WINDOWS, "C:\\", "ntfs", False),
        (PureWindowsPath("z:\\plates\\p1"), WINDOWS, "Z:\\", "ntfs", True),
        (PureWindowsPath("E:\\"), WINDOWS, "E:\\", "unknown", False),
        (PureWindowsPath("X:\\a"), WINDOWS, "X:\\", "unknown", False),
        (PureWindowsPath("\\\\server\\share\\plate"), WINDOWS, "\\\\server\\share\\", "UNC", True),
        (PureWindowsPath("//server/share/plate"), [], "\\\\server\\share\\", "UNC", True),
        (PureWindowsPath("\\\\?\\UNC\\server\\share\\p"), WINDOWS, None, "UNC", True),
        (PureWindowsPath("\\\\?\\C:\\plates"), WINDOWS, None, "unknown", False),
    ],
    ids=lambda value: str(value) if isinstance(value, PurePath) else "",
)
def test_the_deepest_and_latest_mount_counts(
    path: PurePath, table: list[Partition], mount: str | None, kind: str, network: bool
) -> None:
    found = find_mount(path, table)
    assert (found.kind, found.network) == (kind, network)
    if mount is not None:
        assert str(found.mount) == mount


NETWORK = (
    "nfs nfs4 cifs smb3 smbfs fuse.sshfs sshfs 9p afpfs webdav davfs fuse.davfs2 glusterfs fuse.glusterfs ceph "
    "fuse.ceph lustre beegfs gpfs afs fuse.rclone vboxsf vmhgfs fuse.vmhgfs-fuse prl_fs virtiofs drvfs macfuse "
    "fuse.s3fs"
)
LOCAL = (
    "ext4 xfs btrfs zfs apfs hfs ntfs ntfs3 refs exfat vfat tmpfs overlay fuseblk fuse.mergerfs fuse.encfs squashfs ufs"
)


@pytest.mark.parametrize("kind", NETWORK.split())
def test_kinds_that_send_no_events(kind: str) -> None:
    assert is_network_kind(kind)


@pytest.mark.parametrize("kind", LOCAL.split())
def test_kinds_of_this_computer(kind: str) -> None:
    assert not is_network_kind(kind)


@pytest.mark.alone
def test_the_mounts_of_this_machine(tmp_path: Path) -> None:
    began = time.perf_counter()
    found = filesystem_of(tmp_path / "not" / "there" / "yet.db")
    figure(f"{found} in {1000 * (time.perf_counter() - began):.1f} ms")
    assert tmp_path.is_relative_to(found.mount)
    assert tmp_path.stat().st_dev == found.mount.stat().st_dev
    assert not is_network(tmp_path)
    assert found == filesystem_of(tmp_path)
    if Path("/dev/shm").is_dir():
        assert filesystem_of(Path("/dev/shm/x")) == Filesystem(Path("/dev/shm"), "tmpfs", network=False)
        (tmp_path / "link").symlink_to("/dev/shm")
        assert filesystem_of(tmp_path / "link" / "a.tif").kind == "tmpfs"


def test_a_path_on_the_way_here_counts_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert filesystem_of(Path("sesmo.db")) == filesystem_of(tmp_path)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the disk never answer, as a dead NFS mount does, for as long as the test lasts."""
    over = threading.Event()
    monkeypatch.setattr(shares, "PATIENCE_S", 0.2)

    def resolve(path: Path) -> Path:
        over.wait(30)
        return path

    monkeypatch.setattr(Path, "resolve", resolve)
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_options: LINUX)
    yield
    over.set()


@pytest.mark.usefixtures("hanging")
@pytest.mark.alone
def test_a_dead_mount_is_judged_by_its_name() -> None:
    began = time.perf_counter()
    assert filesystem_of(Path("/mnt/scope/plate")) == Filesystem(Path("/mnt/scope"), "cifs", network=True)
    assert time.perf_counter() - began < 2


def test_a_table_that_cannot_be_had_and_links_in_a_ring_raise_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    assert filesystem_of(tmp_path / "ring" / "a") == filesystem_of(tmp_path)

    def refuse(**_options: Any) -> None:
        raise PermissionError("no /proc here")

    monkeypatch.setattr(psutil, "disk_partitions", refuse)
    assert filesystem_of(tmp_path).kind == "unknown"
