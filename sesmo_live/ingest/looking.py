"""Looking into a file: is it all there, which pages has it, which other files belong to it?"""

from dataclasses import dataclass, field
from pathlib import Path

from acquisition.completeness import check_complete
from acquisition.manifest import check_manifest
from acquisition.metadata import PageInfo
from acquisition.ndtiff import is_ndtiff, ndtiff_pages
from acquisition.tiff import companions_of, read_pages
from acquisition.tree import SeenFile
from acquisition.zeros import check_zero_tail
from sesmo_live.errors import ImageError, IncompleteImageError, SesmoError
from sesmo_live.ingest.placing import WatchPlan, surprise


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a reader thread found in a file: its pages, and why it cannot be read.

    `whole`: these are all its pages; otherwise they are those that will not change any more. `companions`: the other
    files that it says belong to its set.
    """

    file: SeenFile
    pages: list[PageInfo]
    whole: bool
    companions: list[Path] = field(default_factory=list)
    error: SesmoError | OSError | None = None


def look_into(plan: WatchPlan, seen: SeenFile, *, growing: bool, believed: bool) -> Inspected:
    """Find out, on a reader thread, what a file holds; what is wrong with a growing one is told once it rests."""
    try:
        return Inspected(seen, _released(plan, seen), False) if growing else _inspect(plan, seen, believed=believed)
    except (SesmoError, OSError) as error:
        return Inspected(seen, [], False, error=None if growing else error)
    except Exception as error:  # noqa: BLE001 — a worker's top: one file's surprise must not end the night
        return Inspected(seen, [], False, error=ImageError(surprise(seen.path, error)))


def _inspect(plan: WatchPlan, file: SeenFile, *, believed: bool) -> Inspected:
    """Return the pages of a file and the other files of its set; raise ImageError where it never can be good.

    Zeros at its end are taken for pixels when they are `believed`, when a manifest vouches for the file, and where
    files arrive by a rename.
    """
    path = file.path
    if is_ndtiff(path):
        return Inspected(file, plan.read(ndtiff_pages, path), True)
    try:
        vouched = check_manifest(plan.root, path) or plan.options.arrival == "rename"
        plan.read(check_complete, path)
        if not (vouched or believed):
            plan.read(check_zero_tail, path)
        pages: list[PageInfo] = plan.read(read_pages, path)
        companions = [path.with_name(name) for name in plan.read(companions_of, path) if name != path.name]
    except IncompleteImageError as error:
        return Inspected(file, _released(plan, file), False, error=error)
    return Inspected(file, pages, True, companions)


def _released(plan: WatchPlan, file: SeenFile) -> list[PageInfo]:
    """Return the pages of a file that is not all there that will not change any more, none if it is no stack."""
    pages: list[PageInfo] = [] if is_ndtiff(file.path) else plan.read(read_pages, file.path, growing=True)
    return pages
