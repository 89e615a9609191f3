"""The watched folders: rights, images, kind of disk, names, and whether events can reach us."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from acquisition.folder import scan
from acquisition.layouts import open_layout, recognise
from acquisition.shares import filesystem_of
from acquisition.tree import TIFF_SUFFIXES, SeenFile
from sesmo_live.config import Watch, Watching
from sesmo_live.doctor.findings import Check, Findings, gigabytes
from sesmo_live.errors import ImageError

NAMES_TRIED = 2000
"""At most so many names are tried against the layout, evenly over the folder."""

_PROC = Path("/proc")


def check_folder(watch: Watch, watching: Watching, scans: dict[Path, list[SeenFile]]) -> Findings:
    """Look at one watched folder as a run would; enter its images into `scans`."""
    root = watch.folder.expanduser().resolve()
    name = f"folder {watch.folder}"
    if not root.is_dir():
        yield Check(name, "fail", "it is not there", "create it, mount its share, or correct folder in [[watch]]")
        return
    began = time.monotonic()
    files = scans[root] = scan(root)
    seconds = time.monotonic() - began
    closed: list[str] = []
    folders = sum(1 for _ in os.walk(root, onerror=lambda error: closed.append(str(error.filename))))
    place = filesystem_of(root)
    interval = watching.share_scan_interval_s if place.network else watching.scan_interval_s
    size = gigabytes(sum(file.size for file in files))
    found = f"{len(files)} images ({size}) in {folders} folders, scanned in {seconds:.2f} s; "
    found += f"network share ({place.kind})" if place.network else f"local disk ({place.kind})"
    found += f", scanned every {interval:g} s" + (", no events" if place.network else "")
    if closed or not os.access(root, os.R_OK | os.X_OK):
        yield Check(name, "fail", f"{found}; not readable: {', '.join(closed[:3]) or root}", "give this user the right")
    elif seconds > interval:
        yield Check(name, "warn", found, "move finished plates elsewhere, or scan less often ([watching])")
    else:
        yield Check(name, "ok", found)
    yield from _check_images(f"images {watch.folder}", files)
    yield from _check_layout(f"layout {watch.folder}", watch, root, [file.path for file in files])


def _check_images(name: str, files: list[SeenFile]) -> Findings:
    """Open the newest image: a folder's listing says nothing of the right to read what is in it."""
    plain = [file for file in files if file.path.is_file()]
    if not plain:
        return
    newest = max(plain, key=lambda file: file.mtime_ns)
    try:
        with newest.path.open("rb") as image:
            image.read(1)
    except OSError as error:
        yield Check(name, "fail", f"{newest.path.name} cannot be read ({error.strerror})", "give this user the right")
    others = [file for file in plain if file.path.suffix.lower() not in TIFF_SUFFIXES]
    if others:
        kinds = ", ".join(sorted({file.path.suffix.lower() for file in others}))
        yield Check(name, "warn", f"{len(others)} files are no TIFFs ({kinds}) and skipped", "let TIFFs be exported")


def _check_layout(name: str, watch: Watch, root: Path, paths: list[Path]) -> Findings:
    parse = open_layout(watch.layout, pattern=watch.pattern or None, wells=watch.wells or None)
    images = [path for path in paths if path.suffix.lower() in TIFF_SUFFIXES]
    if not images:
        yield Check(name, "ok", f"{watch.layout}; there are no names yet to try it on")
        return
    sample = images[:: -(-len(images) // NAMES_TRIED)]
    unknown: list[str] = []
    for path in sample:
        try:
            if parse(root, path) is None:
                unknown.append(path.name)
        except ImageError as error:
            unknown.append(f"{path.name} ({error})")
    kind = recognise(path.relative_to(root) for path in sample) if watch.layout == "auto" else None
    found = (
        f"{watch.layout}{f': {kind}' if kind else ''}; {len(sample) - len(unknown)} of {len(sample)} names are known"
    )
    if not unknown:
        yield Check(name, "ok", found)
        return
    found, remedy = f"{found}, not {', '.join(unknown[:2])}", "set layout or pattern: docs/layouts.md"
    yield Check(name, "fail" if len(unknown) == len(sample) else "warn", found, remedy)


def check_events(roots: list[Path]) -> Findings:
    """Compare Linux' free inotify watches with the number of folders on local disks."""
    limit_file = _PROC / "sys/fs/inotify/max_user_watches"
    if sys.platform != "linux" or not limit_file.exists():
        yield Check("events", "ok", "no limit on watches is known here; the scan finds what events miss")
        return
    limit, used = int(limit_file.read_text()), _used_watches()
    local = [root for root in roots if root.is_dir() and not filesystem_of(root).network]
    needed = sum(sum(1 for _ in os.walk(root)) for root in local)
    found = f"{needed} inotify watches are needed, {max(0, limit - used)} of {limit} are free"
    if needed > limit - used:
        remedy = "raise it: sysctl fs.inotify.max_user_watches=524288 (the scan still finds every image, only later)"
        yield Check("events", "warn", found, remedy)
    else:
        yield Check("events", "ok", found)


def _used_watches() -> int:
    """Count the watches that this user's programs hold, other than a running sesmo-live's, which are for the same."""
    used = 0
    for process in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile, or is another user's, who has a limit of his own
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            ours = any(argument.endswith(b"/sesmo-live") for argument in arguments[:2])
            if ours or process.stat().st_uid != os.getuid():
                continue
            for handle in (process / "fd").iterdir():
                with suppress(OSError):
                    if str(handle.readlink()) == "anon_inode:inotify":
                        used += (process / "fdinfo" / handle.name).read_text().count("inotify wd:")
    return used
