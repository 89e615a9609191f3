"""Model folders: `passport.json` beside `weights.safetensors`, trusted only as far as the hash goes."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from models.calibration import check_calibration
from models.convert import CONVERSIONS
from models.cropper import CROPPERS
from models.network import NETWORKS
from sesmo_live.errors import ModelError, SesmoError
from sesmo_live.records import ModelPassport

FORMAT_VERSION = 1
"""The layout of model folders that this version writes, and the newest that it reads."""

PASSPORT, WEIGHTS = "passport.json", "weights.safetensors"

DEMO_MODEL = "demo-compact"
"""The shipped model used where none is named; for demonstration only."""

_KEYS = {field.name for field in dataclasses.fields(ModelPassport)} - {"precision"}
"""What a folder's passport may hold: in which precision a model scores is the run's to say."""
_REQUIRED = {field.name for field in dataclasses.fields(ModelPassport) if field.default is dataclasses.MISSING} - {
    field.name for field in dataclasses.fields(ModelPassport) if field.default_factory is not dataclasses.MISSING
}
_CHECK = TypeAdapter(ModelPassport)


def write_model(folder: Path, passport: ModelPassport, weights: Mapping[str, NDArray[Any]]) -> ModelPassport:
    """Write a model folder and return its passport with the hash of the weights filled in.

    `weights` are float32, or float16 to halve the file (they are read as float32). The passport is written last, so
    that a folder with one is whole. Raises ModelError for weights that are not finite, for a passport that could not
    be read back, and for a folder that holds a model already: scores point to models, so a model never changes.
    """
    if (folder / PASSPORT).exists():
        raise ModelError(f"{folder} holds a model already; choose another folder or delete this one first")
    _check_numbers(weights, folder)
    blob = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in weights.items()})
    passport = dataclasses.replace(passport, weights_sha256=hashlib.sha256(blob).hexdigest())
    said = {key: value for key, value in dataclasses.asdict(passport).items() if key in _KEYS}
    content = {"format_version": FORMAT_VERSION, **said}
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ModelError(f"the passport of {passport.name} holds what JSON cannot ({error})") from error
    passport = _parse(json.loads(text), folder)
    folder.mkdir(parents=True, exist_ok=True)
    _put(folder / WEIGHTS, blob)
    _put(folder / PASSPORT, text.encode())
    return passport


def read_passport(folder: Path) -> ModelPassport:
    """Read and check the passport of a model folder; raise ModelError, in one sentence, for anything amiss in it."""
    try:
        content = json.loads((folder / PASSPORT).read_bytes())
    except OSError as error:
        raise ModelError(f"{folder} is no model folder: {PASSPORT} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ModelError(f"{folder / PASSPORT} is not JSON ({error}); install the model anew") from error
    return _parse(content, folder)


def read_weights(folder: Path, passport: ModelPassport) -> dict[str, NDArray[np.float32]]:
    """Return the weights of a model folder as float32, by `layer/variable`.

    Their SHA-256 is compared with the passport's before a byte is parsed. Raises ModelError where they differ, or
    where the weights are no finite numbers.
    """
    try:
        blob = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be read ({error.strerror}); install the model anew") from error
    if hashlib.sha256(blob).hexdigest() != passport.weights_sha256:
        raise ModelError(f"{folder / WEIGHTS} does not have the hash in its passport; install the model anew")
    try:
        weights = safetensors.numpy.load(blob)
    except safetensors.SafetensorError as error:
        raise ModelError(f"{folder / WEIGHTS} is not a safetensors file ({error}); install the model anew") from error
    _check_numbers(weights, folder)
    return {name: array.astype(np.float32) for name, array in weights.items()}


def find_model(name_or_folder: str | Path | None) -> Path:
    """Return the folder of a model: a path, the name of a shipped or user model, or None for the demonstration model.

    User models lie in the user's data folder of sesmo-live, under `models`. Raises ModelError that lists what exists.
    """
    wanted = DEMO_MODEL if name_or_folder is None else name_or_folder
    folders = {folder.name: folder for folder in reversed(_model_folders())}
    if name_or_folder is not None and (Path(wanted) / PASSPORT).is_file():
        return Path(wanted)
    if str(wanted) in folders:
        return folders[str(wanted)]
    if Path(wanted).is_dir():
        raise ModelError(f"{wanted} is no model folder: it has no {PASSPORT}")
    known = ", ".join(sorted(folders)) or "none"
    raise ModelError(f"model {str(wanted)!r} is not there; give a model folder or one of: {known}")


def list_models() -> list[tuple[Path, ModelPassport]]:
    """Return all shipped and user models, the shipped first; raise ModelError if one of them is damaged."""
    return [(folder, read_passport(folder)) for folder in _model_folders()]


def _model_folders() -> list[Path]:
    shipped = Path(__file__).parent / "weights"
    own = platformdirs.user_data_path("sesmo-live", appauthor=False) / "models"
    return [passport.parent for root in (shipped, own) for passport in sorted(root.glob(f"*/{PASSPORT}"))]


def _check_numbers(weights: Mapping[str, NDArray[Any]], folder: Path) -> None:
    for name, array in weights.items():
        if array.dtype not in (np.float32, np.float16) or not np.isfinite(array).all():
            raise ModelError(f"{name} of {folder.name} is not of finite float32 numbers; train the model anew")


def _put(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def _parse(content: Any, folder: Path) -> ModelPassport:
    """Check the content of a passport key by key and return it; raise ModelError."""
    where = folder / PASSPORT
    if not isinstance(content, dict):
        raise ModelError(f"{where} is not a passport; install the model anew")
    version = content.get("format_version")
    if type(version) is not int or version < 1:
        raise ModelError(f"{where} does not say its format_version; install the model anew")
    if version > FORMAT_VERSION:
        raise ModelError(f"{where} has format version {version}, newer than {FORMAT_VERSION}; update sesmo-live")
    values = {key: value for key, value in content.items() if key != "format_version"}
    for key in values.keys() - _KEYS:
        near = difflib.get_close_matches(key, _KEYS, n=1)
        raise ModelError(f"{where} has an unknown key {key!r}{f', did you mean {near[0]!r}?' if near else ''}")
    if missing := sorted(_REQUIRED - values.keys()):
        raise ModelError(f"{where} lacks the key {missing[0]!r}; install the model anew")
    try:
        passport = _CHECK.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(f"{where}: {first['loc'][0]} is wrong ({first['msg']}); install the model anew") from error
    _check_values(passport, where)
    return passport


def _check_values(passport: ModelPassport, where: Path) -> None:
    for kind, name, known in (
        ("network", passport.network, NETWORKS),
        ("conversion", passport.conversion, CONVERSIONS),
        ("cropper", passport.cropper, CROPPERS),
    ):
        if name not in known:
            raise ModelError(f"{where} names the {kind} {name!r}, this version knows {', '.join(known)}; update it")
    for key, value, valid in (
        ("input_px", passport.input_px, 1 <= passport.input_px <= 1024),
        ("threshold", passport.threshold, 0 <= passport.threshold <= 1),
        ("pixel_um", passport.pixel_um, passport.pixel_um is None or 0 < passport.pixel_um < 1000),
    ):
        if not valid:
            raise ModelError(f"{where}: {key} {value!r} is out of range; install the model anew")
    check_calibration(passport.calibration, where)
    try:
        crops, _ = CROPPERS[passport.cropper](np.zeros((1, 1), np.uint8), **passport.cropper_settings)
    except (TypeError, SesmoError) as error:
        raise ModelError(f"{where}: cropper {passport.cropper} refuses its settings ({error})") from error
    if crops.shape[1:] != (passport.input_px, passport.input_px):
        raise ModelError(f"{where}: crops of {crops.shape[1]} px do not fit input_px {passport.input_px}")
