"""Detector folders: `passport.json` beside `weights.safetensors`, read only if hash and keys are right."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from models.heatmap import HEATMAP_NETWORKS, RunHeatmap, compile_heatmap
from sesmo_live.errors import ModelError

FORMAT_VERSION = 1
PASSPORT, WEIGHTS = "passport.json", "weights.safetensors"

DEFAULT_DETECTOR = "centres"
"""The shipped detector, used where none is named."""


@dataclass(frozen=True, slots=True)
class DetectorPassport:
    """What a detector folder says of itself; the weights lie beside it.

    `cell_px` is the diameter of a typical cell, in px, where the network sees it, `threshold` the chance from which a
    peak is a cell, `training` what it learned from and `metrics` how it did on fields it had not seen.
    """

    name: str
    version: str
    network: str
    cell_px: float
    threshold: float
    weights_sha256: str
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Detector:
    """A detector ready to run; several threads may share it."""

    name: str
    cell_px: float
    threshold: float
    run: RunHeatmap


_CHECK = TypeAdapter(DetectorPassport)
_KEYS = {part.name for part in dataclasses.fields(DetectorPassport)}
_REQUIRED = _KEYS - {"training", "metrics"}


def write_detector(folder: Path, passport: DetectorPassport, weights: Mapping[str, NDArray[Any]]) -> DetectorPassport:
    """Write a detector folder, weights as float16, and return its passport with the hash of the weights filled in.

    Raises ModelError for weights that are not finite and for a folder that holds a model already.
    """
    if (folder / PASSPORT).exists():
        raise ModelError(f"{folder} holds a model already; choose another folder or delete this one first")
    half = {name: np.ascontiguousarray(array, np.float16) for name, array in weights.items()}
    if odd := [name for name, array in half.items() if not np.isfinite(array).all()]:
        raise ModelError(f"{odd[0]} of {passport.name} is not of finite numbers; train the detector anew")
    blob = safetensors.numpy.save(half)
    passport = dataclasses.replace(passport, weights_sha256=hashlib.sha256(blob).hexdigest())
    content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(passport)}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in ((WEIGHTS, blob), (PASSPORT, text.encode())):  # the passport last: a folder with one is whole
        part = folder / f"{name}.part"
        part.write_bytes(data)
        part.replace(folder / name)
    return passport


def read_detector_passport(folder: Path) -> DetectorPassport:
    """Read and check the passport of a detector folder; raise ModelError, in one sentence, for anything amiss in it."""
    where = folder / PASSPORT
    try:
        content = json.loads(where.read_bytes())
    except OSError as error:
        raise ModelError(f"{folder} is no detector folder: {PASSPORT} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ModelError(f"{where} is not JSON ({error}); install the detector anew") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is not int or version < 1:
        raise ModelError(f"{where} does not say its format_version; install the detector anew")
    if version > FORMAT_VERSION:
        raise ModelError(f"{where} has format version {version}, newer than {FORMAT_VERSION}; update sesmo-live")
    values = {key: value for key, value in content.items() if key != "format_version"}
    if odd := sorted((values.keys() - _KEYS) | (_REQUIRED - values.keys())):
        fault = "lacks the key" if odd[0] in _REQUIRED else "is no detector's: it has the key"
        raise ModelError(f"{where} {fault} {odd[0]!r}; give a folder made by train-detector, or install it anew")
    try:
        passport = _CHECK.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(f"{where}: {first['loc'][0]} is wrong ({first['msg']}); install the detector anew") from error
    _check_values(passport, where)
    return passport


def read_detector_weights(folder: Path, passport: DetectorPassport) -> dict[str, NDArray[np.float32]]:
    """Return a detector's weights as float32; raise ModelError where their SHA-256 is not the passport's."""
    path = folder / WEIGHTS
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); install the detector anew") from error
    if hashlib.sha256(blob).hexdigest() != passport.weights_sha256:
        raise ModelError(f"{path} does not have the hash in its passport; install the detector anew")
    try:
        weights = safetensors.numpy.load(blob)
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file ({error}); install the detector anew") from error
    return {name: array.astype(np.float32) for name, array in weights.items()}


def find_detector(name_or_folder: str | Path | None = None) -> Path:
    """Return the folder of a detector: a path, or the name of a shipped or user detector; None is the shipped one.

    User detectors lie in the user's data folder of sesmo-live, under `detectors`. Raises ModelError that lists them.
    """
    wanted = DEFAULT_DETECTOR if name_or_folder is None else name_or_folder
    if name_or_folder is not None and (Path(wanted) / PASSPORT).is_file():
        return Path(wanted)
    roots = (
        Path(__file__).parent / "weights" / "detectors",
        platformdirs.user_data_path("sesmo-live", appauthor=False) / "detectors",
    )
    folders = {path.parent.name: path.parent for root in reversed(roots) for path in sorted(root.glob(f"*/{PASSPORT}"))}
    if str(wanted) in folders:
        return folders[str(wanted)]
    known = ", ".join(sorted(folders)) or "none"
    raise ModelError(f"detector {str(wanted)!r} is not there; give a detector folder or one of: {known}")


def load_detector(name_or_folder: str | Path | None = None) -> Detector:
    """Return a detector ready to run, loaded once for each folder and hash; the first call starts Keras (seconds).

    Threads that ask at the same time wait for the one that loads it.
    """
    folder = find_detector(name_or_folder)
    passport = read_detector_passport(folder)
    with _LOADING:
        return _loaded(folder.resolve(), passport.weights_sha256)


def detector_of(
    name: str, weights: Mapping[str, NDArray[Any]], cell_px: float, threshold: float, network: str = "centre-unet"
) -> Detector:
    """Return a detector that runs with `weights`; raise ModelError where they do not fit the network."""
    return Detector(name, cell_px, threshold, compile_heatmap(network, weights))


_LOADING = threading.Lock()


@lru_cache(maxsize=4)
def _loaded(folder: Path, sha256: str) -> Detector:
    passport = read_detector_passport(folder)
    weights = read_detector_weights(folder, dataclasses.replace(passport, weights_sha256=sha256))
    name = f"{passport.name}-{passport.version}-{sha256[:8]}"
    return detector_of(name, weights, passport.cell_px, passport.threshold, passport.network)


def _check_values(passport: DetectorPassport, where: Path) -> None:
    if passport.network not in HEATMAP_NETWORKS:
        raise ModelError(
            f"{where} names the network {passport.network!r}, this version knows {', '.join(HEATMAP_NETWORKS)}; "
            "update it"
        )
    for key, value, low, high in (("cell_px", passport.cell_px, 4, 200), ("threshold", passport.threshold, 0, 1)):
        if not low <= value <= high:
            raise ModelError(f"{where}: {key} {value!r} is out of range; install the detector anew")
