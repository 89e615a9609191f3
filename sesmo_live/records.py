"""The nouns of the service, in the order in which an image meets them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
"""A two-dimensional grey image, height by width."""

Role = Literal["negative", "positive", "treatment", "blank"]
"""What a well is for; `negative` and `positive` are the controls."""

ImageState = Literal["pending", "scored", "refused", "failed", "skipped", "superseded"]
"""Where an image stands in the ledger; all but `scored` carry a reason in words."""


Precision = Literal["fp32", "bf16"]
"""In which numbers a network computes; bfloat16 is faster, and its scores are only nearly those of float32."""


@dataclass(frozen=True, slots=True)
class Site:
    """The place and moment of one image: which plate, well, field, time point, channel and focal plane.

    `well` is zero-padded (`B03`). `field`, `timepoint` and `z` are the vendor's own numbers. `run` tells apart
    two imagings of one plate: the layout's own measurement label, or the date of the first image.
    """

    plate: str
    well: str
    field: int
    timepoint: int
    channel: str = ""
    z: int = 0
    run: str = ""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One page of one file in a watched folder; `acquired_at` is in UTC, `pixel_um` µm per pixel (None if unknown).

    `growing`: more pages are still being written behind this one.
    """

    path: Path
    page: int
    site: Site
    size: int
    mtime_ns: int
    acquired_at: datetime | None = None
    pixel_um: float | None = None
    growing: bool = False


@dataclass(frozen=True, slots=True)
class FieldImage:
    """The pixels of one field of view."""

    file: ImageFile
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class CellCrops:
    """The cells of one field: `pixels` uint8 N×H×W, `centres` float64 N×2 (x, y in image px)."""

    file: ImageFile
    pixels: NDArray[np.uint8]
    centres: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CellScores:
    """The scores of one field: `values` float32 N in [0, 1] (P(senescent)), `centres` float64 N×2 (x, y in px)."""

    file: ImageFile
    values: NDArray[np.float32]
    centres: NDArray[np.float64]
    model_id: str


@dataclass(frozen=True, slots=True)
class Treatment:
    """What was put into one well. `dose_um` is None where the unit has no molar meaning (µg/ml)."""

    well: str
    compound: str
    role: Role = "treatment"
    dose: float | None = None
    dose_unit: str = ""
    dose_um: float | None = None
    treated_at: datetime | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WellScore:
    """The score of one well at one time point of one plate under one model.

    `score` is the mean P(senescent) over cells; `ci_low`, `ci_high` its 95 % interval over fields (over cells when
    there is one field; None when there are too few of either); `hours` counts from treatment, else from the
    plate's first image.
    """

    plate: str
    well: str
    timepoint: int
    acquired_at: datetime | None
    hours: float | None
    n_images: int
    n_cells: int
    score: float | None
    ci_low: float | None
    ci_high: float | None
    fraction_senescent: float | None
    model: str


@dataclass(frozen=True, slots=True)
class ModelPassport:
    """What a model folder says of itself (`passport.json`); the weights lie beside it as `weights.safetensors`.

    `conversion` names the 16-to-8-bit conversion, `cropper` the cropper, `cropper_settings` its settings;
    `weights_sha256` is checked before the weights are parsed. `pixel_um` is the µm per pixel of the cells it was
    trained on; images of another known scale are resampled to it. `demonstration` is a plain-words warning, empty
    for a model fit for use. `precision` is no matter of the folder: whoever scores sets it.
    """

    name: str
    version: str
    network: str
    input_px: int
    pixel_um: float | None
    conversion: str
    cropper: str
    cropper_settings: Mapping[str, Any]
    threshold: float
    weights_sha256: str
    demonstration: str = ""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "fp32"

    def is_of(self, model_id: str) -> bool:
        """Say whether scores of that id are this model's, in whatever precision they were made."""
        return any(replace(self, precision=each).model_id == model_id for each in get_args(Precision))

    @property
    def model_id(self) -> str:
        """Return the name by which score rows point here: name, version, and a hash of all that makes a score.

        Other weights, cropper settings, conversion, calibration, threshold or precision make another id, so scores
        that do not belong together never share one.
        """
        settings = [self.weights_sha256, self.network, self.input_px, self.pixel_um, self.conversion, self.cropper]
        settings += [dict(self.cropper_settings), dict(self.calibration), self.threshold]
        reduced = [] if self.precision == "fp32" else [self.precision]  # ids of fp32 are as old as the first scores
        digest = hashlib.sha256(json.dumps(settings + reduced, sort_keys=True).encode()).hexdigest()
        return "-".join([self.name, self.version, digest[:8], *reduced])
