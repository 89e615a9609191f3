"""Where a database file lies: on a disk of this computer, or on a network share."""

from pathlib import Path

import psutil

NETWORK_FILESYSTEMS = (
    "nfs nfs3 nfs4 cifs smb smb2 smb3 smbfs afpfs afs webdav davfs fuse.davfs2 fuse.sshfs fuse.rclone fuse.s3fs ceph "
    "fuse.ceph glusterfs fuse.glusterfs lustre beegfs gpfs pvfs2 ocfs2 gfs2 vboxsf vmhgfs fuse.vmhgfs-fuse"
)
"""File systems whose locks and shared memory do not hold between computers, by the names psutil gives them."""


def network_filesystem(path: Path) -> str | None:
    """Return the kind of network share that a file lies on, or would, as `nfs4`; None for a disk of this computer."""
    place = path.expanduser().resolve()
    if place.drive.startswith("\\\\") and (place.drive[2:3] != "?" or place.drive.startswith("\\\\?\\UNC")):
        return "a Windows share"
    try:
        partitions = psutil.disk_partitions(all=True)
    except OSError:  # a container may hide its mounts; a path that cannot be judged is taken as local
        return None
    around = [part for part in partitions if place.is_relative_to(part.mountpoint)]
    if not around:
        return None
    nearest = sorted(around, key=lambda part: len(part.mountpoint))[-1]  # of two mounted at one place the later counts
    remote = nearest.fstype.lower() in NETWORK_FILESYSTEMS.split() or "remote" in nearest.opts.split(",")
    return (nearest.fstype or "a network drive") if remote else None
