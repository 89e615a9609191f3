"""Are scheduler and workers fit for a run: the same program and libraries, the same folders?"""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

import acquisition
import db
import models
import sesmo_live

LIBRARIES = (
    "dask",
    "distributed",
    "imagecodecs",
    "keras",
    "ndstorage",
    "numpy",
    "opencv-python-headless",
    "scikit-image",
    "scipy",
    "tensorflow",
    "tifffile",
)
"""What pixels and scores, or messages, pass through: where one differs, so may the last digits."""

SAMPLE = 5
"""Names of a folder that a worker must see, to know that it is the same folder."""


@dataclass(frozen=True, slots=True)
class About:
    """What makes the scores of a process: this program (its version, and the hash of its source) and its libraries."""

    program: str
    code: str
    libraries: Mapping[str, str]


@lru_cache(maxsize=1)
def about() -> About:
    """Describe this process."""
    digest = hashlib.sha256()
    for package in (acquisition, db, models, sesmo_live):
        root = Path(package.__file__ or "").parent
        for file in sorted(root.rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    libraries = {"Python": python} | {name: _version(name) for name in LIBRARIES}
    return About(_version("sesmo-live"), digest.hexdigest(), libraries)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def difference(who: str, theirs: About, ours: About) -> str:
    """Return a sentence that says how a scheduler or worker differs from this computer, empty if it does not."""
    remedy = "install the same on both, then run the same command again"
    if theirs.program != ours.program:
        return f"{who} runs sesmo-live {theirs.program} and this computer {ours.program}; {remedy}"
    for name, wanted in ours.libraries.items():
        there = theirs.libraries.get(name, "none")
        if there != wanted:
            return f"{who} has {name} {there} and this computer {wanted}; {remedy}"
    if theirs.code != ours.code:
        codes = f"its source has the hash {theirs.code[:8]}, here {ours.code[:8]}"
        return f"{who} runs another state of sesmo-live {ours.program} than this computer ({codes}); {remedy}"
    return ""


def sample(folder: Path) -> list[str]:
    """Return a few names of what lies in a folder."""
    return [item.name for item in islice(folder.iterdir(), SAMPLE)]


def unseen(folders: Mapping[str, Sequence[str]]) -> str:
    """Return the first of the folders that this computer does not see with what lies in it, empty if it sees all.

    `folders`: a few names of what lies in each. An empty folder stands where a share is not mounted.
    """
    for folder, names in folders.items():
        there = [(Path(folder) / name).exists() for name in names] or [Path(folder).is_dir()]
        if not any(there):
            return folder
    return ""
