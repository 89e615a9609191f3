"""Models by hash: a computer that has the files of that hash uses them, another one is sent them once.

The hash is that of `passport.json`, which in turn names the hash of the weights: one hash stands for all of a model.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

import models
from models.passport import PASSPORT, WEIGHTS
from sesmo_live.errors import ModelError


@dataclass(frozen=True, slots=True)
class Bundle:
    """The two files of a model's or a detector's folder, as they travel."""

    passport: bytes
    weights: bytes

    @property
    def sha256(self) -> str:
        """The hash that stands for both files."""
        return hashlib.sha256(self.passport).hexdigest()

    @property
    def is_whole(self) -> bool:
        """Say whether the weights are those that the passport names."""
        try:
            content = json.loads(self.passport)
        except ValueError:
            return False
        named = content.get("weights_sha256") if isinstance(content, dict) else None
        return named == hashlib.sha256(self.weights).hexdigest()


def read_bundle(folder: Path) -> Bundle:
    """Return the files of a model folder; raise ModelError where they do not belong together."""
    try:
        bundle = Bundle((folder / PASSPORT).read_bytes(), (folder / WEIGHTS).read_bytes())
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read ({error.strerror}); install the model anew") from error
    if not bundle.is_whole:
        raise ModelError(f"{folder / WEIGHTS} does not have the hash in its passport; install the model anew")
    return bundle


def find_bundle(sha256: str) -> Path | None:
    """Return a folder of this computer that holds the model or detector of this hash, whole; None if there is none."""
    for passport in _passports(sha256):
        try:
            if hashlib.sha256(passport.read_bytes()).hexdigest() == sha256 and read_bundle(passport.parent).is_whole:
                return passport.parent
        except (OSError, ModelError):  # damaged or gone: as good as not there
            continue
    return None


def lacking(hashes: Iterable[str]) -> list[str]:
    """Return the hashes of those models that this computer does not have."""
    return [sha256 for sha256 in hashes if find_bundle(sha256) is None]


def keep_bundle(bundle: Bundle, sha256: str) -> None:
    """Keep a model that was sent here; raise ModelError where it is not the one of this hash."""
    if bundle.sha256 != sha256 or not bundle.is_whole:
        raise ModelError(f"a model was damaged on its way (hash {sha256[:8]}); check the network, then try again")
    kept = _cache() / sha256
    part = kept.with_name(f"{sha256}.{uuid.uuid4().hex}.part")
    part.mkdir(parents=True)
    (part / WEIGHTS).write_bytes(bundle.weights)
    (part / PASSPORT).write_bytes(bundle.passport)
    if find_bundle(sha256) is None:  # else another worker of this computer was faster
        shutil.rmtree(kept, ignore_errors=True)
        try:
            part.replace(kept)
        except OSError:
            if find_bundle(sha256) is None:
                raise
    shutil.rmtree(part, ignore_errors=True)


def _cache() -> Path:
    return platformdirs.user_cache_path("sesmo-live", appauthor=False) / "cluster"


def _passports(sha256: str) -> Iterator[Path]:
    """Yield the passports of the shipped models and detectors, of the user's, and of what was sent here before."""
    shipped = Path(models.__file__).parent / "weights"
    own = platformdirs.user_data_path("sesmo-live", appauthor=False)
    for root in (shipped, shipped / "detectors", own / "models", own / "detectors"):
        yield from sorted(root.glob(f"*/{PASSPORT}"))
    yield _cache() / sha256 / PASSPORT
