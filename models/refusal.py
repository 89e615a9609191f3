"""The limits that a model's training images set to new ones, and the sentences by which an image is refused."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.passport import PASSPORT, read_passport
from models.quality import TEXTURES, Floats, measure_parts, textures_of
from sesmo_live.errors import ModelError, UsageError
from sesmo_live.records import Pixels

VERSION = 1
"""The layout of references that this version writes and reads."""

MIN_BITS = 6.0
"""Fewest bits of grey between black and the brightest part of an image."""
MAX_CLIPPED = 0.02
"""Largest share of pixels at either end of the grey scale; more only where a model's own training images had it."""
MAX_BLACK = 0.5
"""Largest share at the black end for a model that does not know its training images: fluorescence is mostly black."""
MIN_SHADING = 2.0
"""Least unevenness of the light, in units of what noise alone gives, of an image without any structure."""
MAX_NOISE_TILES = 0.02
"""Share of structured tiles below which an image has no structure."""
MISSED = 0.5
"""Share of the training fields' least density below which a well-filled image shows something else than cells."""
MARGIN = 1.5
"""How far a field's textures may lie beyond those of the training fields, in spreads of the training cells."""
MIN_DISTANCE = 3.2
"""Least limit of a field's distance from the training cells, in their standard deviations."""
DISTANCE_MARGIN = 1.15
"""The limit of the distance over that of all but one in a hundred training fields."""
LOOSE_DISTANCE = 4.0
"""The limit where the crops' fields are not known."""
EMPTY_RELIEF = 0.25
"""Share of the training fields' relief below which an image has nothing in it that could be judged."""
SPARSE = 0.8
"""Share of the training fields' coverage below which too little is in an image for its tiles to be judged."""
POLARITY_MARGIN = 0.25
"""How far below the training fields' least polarity, and below 0, a field may lie; their negatives have about −1."""
_ODD = [5, 6, 7, 9]
"""The textures that change their sign with the contrast, whichever way cells were found."""
_WORST_POLARITY = -0.75
"""Where the limit would have to be lower than this, polarity tells nothing."""
MIN_CELLS = 5
"""Cells that make a training field count, and below which the tiles of a well-filled image are judged too."""
_WHAT = {"cell": "cells'", "tile": "image's"}
_SHOWN = 2
"""Textures named at most in the reasons: one cause disturbs many."""
_LOWER = {"relief": "relief", "coverage": "least_coverage", "cells_per_megapixel": "least_cells_per_megapixel"}
"""Measures of which a reference keeps the least (5 %) of its training fields, and under which name."""
_GROWTH = {"cells_per_megapixel": 1.0}
"""Least margin as a share of the highest value in training: cells divide once while they are watched."""
_SHRINK = 0.03
"""Share by which variances are raised, so that no direction of textures counts as known for certain."""
_TILES_JUDGED = 40
"""Lively tiles of a field of usual size."""
_MEDIAN_VARIANCE = np.pi / 2
"""Variance of a median over that of a mean, for normal values."""

_UPPER = {
    "clipped_dark": ("too dark or clipped", "share of black pixels", 0.05),
    "clipped_bright": ("overexposed or clipped", "share of white pixels", 0.01),
    "peak": ("overexposed or clipped", "share of the bright parts that is white", 0.5),
    "noise_level": ("noisy", "noise over the brightest light", 0.01),
    "coverage": ("too dense", "share of the image with cells", 0.25),
    "cells_per_megapixel": ("too dense", "cells per million pixels", 20.0),
}
"""Measures with an upper limit: what is wrong above it, how it is called, its least margin over the training fields."""


def reference_of(fields: Iterable[tuple[Pixels, NDArray[np.uint8]]], *, scale: float = 1.0) -> dict[str, Any]:
    """Return the reference of a model (JSON-able) from its training fields: pixels as read, and crops, of each.

    `scale` as in `measure_field`. Raises UsageError where the fields have fewer than `MIN_CELLS` cells in all.
    """
    parts = [measure_parts(pixels, crops, scale=scale) for pixels, crops in fields]
    figures = [part[0] for part in parts]
    reference = _reference(figures, [part[1] for part in parts])
    tiles = [part[2] for part in parts if len(part[2])]
    if tiles:
        reference["tile"] = _looks(np.concatenate(tiles), tiles)
        for name, kept in _LOWER.items():
            reference[kept] = round(float(np.percentile([figure[name] for figure in figures if name in figure], 5)), 5)
    for name, (_, _, least) in _UPPER.items():
        values = [figure[name] for figure in figures if name in figure]
        if values:
            low, high = np.percentile(values, [1, 99])
            reference[name] = round(float(high + max(least, high - low, _GROWTH.get(name, 0.0) * high)), 5)
    return reference


def reference_of_crops(crops: NDArray[np.uint8], groups: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the reference of a model that was trained on loose crops (uint8 N×h×w), for lack of their fields.

    `groups` names the image of each crop, where it is known: limits are narrower with it. Raises UsageError for fewer
    than `MIN_CELLS` crops.
    """
    textures = textures_of(crops)
    if groups is None:
        return _reference([], [textures])
    group = np.unique(np.asarray(groups), return_inverse=True)[1]
    parts = [textures[group == number] for number in range(int(group.max(initial=-1)) + 1)]
    return _reference([{} for _ in parts], parts)


def write_reference(folder: Path, reference: Mapping[str, Any]) -> None:
    """Put a reference into the passport of a model that is there already; its id and its scores stay the same.

    Raises ModelError for a folder that holds no sound model, and for a reference that cannot be used.
    """
    read_passport(folder)
    check_reference(reference, folder)
    path = folder / PASSPORT
    content = json.loads(path.read_bytes()) | {"reference": dict(reference)}
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def check_reference(reference: Mapping[str, Any], folder: Path) -> None:
    """Raise ModelError unless a reference is empty or one that `unfit` can judge by."""
    if not reference:
        return
    version = reference.get("version")
    if version != VERSION:
        raise ModelError(f"the reference of {folder} has version {version}, this sesmo-live knows {VERSION}; update it")
    n = len(TEXTURES)
    shapes = {"middle": (n,), "spread": (n,), "low": (n,), "high": (n,), "precision": (n, n), "polarity": (len(_ODD),)}
    numbers = [*_UPPER, *_LOWER.values()] if "tile" in reference else []
    found: dict[str, tuple[NDArray[np.float64], tuple[int, ...]]]
    try:
        found = {name: (np.asarray(reference[name], np.float64), ()) for name in numbers}
        for kind in ("cell", *(("tile",) if "tile" in reference else ())):
            for name, shape in {**shapes, "distance": (), "least_polarity": ()}.items():
                found[f"{kind} {name}"] = np.asarray(reference[kind][name], np.float64), shape
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the reference of {folder} cannot be used ({error!r}); install the model anew") from error
    for name, (values, shape) in found.items():
        if values.shape != shape or not np.isfinite(values).all():
            raise ModelError(f"the reference of {folder} cannot be used ({name} is wrong); install the model anew")


def _reference(figures: Sequence[Mapping[str, float]], textures: Sequence[Floats]) -> dict[str, Any]:
    cells = np.concatenate([*textures, np.empty((0, len(TEXTURES)))])
    if len(cells) < MIN_CELLS:
        raise UsageError(f"{len(cells)} crops are too few to tell fit images from unfit ones; give {MIN_CELLS} or more")
    fields = [part for part in textures if len(part) >= MIN_CELLS] if figures else []
    return {"version": VERSION, "fields": len(figures), "cells": len(cells), "cell": _looks(cells, fields)}


def _looks(pooled: Floats, fields: Sequence[Floats]) -> dict[str, Any]:
    """Return the textures of cells or tiles: their middle, spread, correlations, and a field's limits."""
    middle = np.median(pooled, axis=0)
    spread = 1.4826 * np.median(np.abs(pooled - middle), axis=0) + 1e-3
    bounded = np.clip(pooled, *np.percentile(pooled, [1, 99], axis=0))
    covariance = np.cov(bounded.T) + np.diag(_SHRINK * bounded.var(axis=0) + 1e-4)
    precision = np.linalg.inv(covariance)
    looks = {"middle": middle, "spread": spread, "precision": precision}
    if len(fields) < 2:
        low, high = np.percentile(pooled, [5, 95], axis=0)
        distance, margin = LOOSE_DISTANCE, spread
    else:
        medians = np.array([np.median(part, axis=0) for part in fields])
        low, high = np.percentile(medians, [1, 99], axis=0)
        margin = MARGIN * (1 + 1 / len(fields)) * spread
        distances = [_distance(median, len(part), looks) for median, part in zip(medians, fields, strict=True)]
        distance = max(MIN_DISTANCE, DISTANCE_MARGIN * float(np.percentile(distances, 99)))
    polarity, least = _polarity(pooled, fields)
    looks |= {"low": low - margin, "high": high + margin, "polarity": polarity}
    numbers = {"distance": round(distance, 3), "least_polarity": round(least, 3)}
    return {name: np.round(value, 4).tolist() for name, value in looks.items()} | numbers


def _polarity(pooled: Floats, fields: Sequence[Floats]) -> tuple[Floats, float]:
    """Return weights of the asymmetries whose sum is 1 for the typical field, −1 for its negative; and the sum's limit.

    Each counts by how surely it has a sign; all weights are 0 where the training fields are on both sides themselves.
    """
    odd = pooled[:, _ODD]
    middle = np.median(odd, axis=0)
    weights = middle / (odd.var(axis=0) + 1e-3)
    weights = weights / max(float(weights @ middle), 1e-6)
    sums = [float(np.median(part[:, _ODD], axis=0) @ weights) for part in fields]
    limit = min(0.0, *np.percentile(sums, [1])) - POLARITY_MARGIN if len(sums) > 1 else -np.inf
    return (weights, limit) if limit > _WORST_POLARITY else (np.zeros(len(weights)), -1.0)


def _distance(median: Floats, n: int, looks: Mapping[str, Any]) -> float:
    """Return how far a field's median lies from the training cells (Mahalanobis), less what n cells give by chance."""
    off = median - np.asarray(looks["middle"])
    squared = off @ np.asarray(looks["precision"]) @ off - _MEDIAN_VARIANCE * len(TEXTURES) / n
    return float(np.sqrt(max(squared, 0.0)))


def unfit(quality: Mapping[str, float], reference: Mapping[str, Any]) -> list[str]:
    """Return why a field cannot be scored by a model, one sentence a measure with its value and limit; [] if it can.

    `quality` comes from `measure_field`, `reference` from the model's passport; with an empty one only what no camera
    image may be is tested, and focus is not.
    """
    reasons = _no_image(quality)
    if reasons:
        return reasons
    reasons = _beyond(quality, reference)
    n = int(quality["cells"])
    if "cell_contrast" in quality and "cell" in reference:
        reasons += _unlike(quality, "cell", n, reference["cell"])
    if not reasons and _is_filled(quality, reference):
        reasons += _scarce(quality, n, reference)
    return reasons


def _scarce(quality: Mapping[str, float], n: int, reference: Mapping[str, Any]) -> list[str]:
    """Return why an image that is filled as the training fields are, and in which few cells were found, is no such."""
    density, least = quality["cells_per_megapixel"], reference["least_cells_per_megapixel"]
    reasons = _unlike(quality, "tile", _TILES_JUDGED, reference["tile"]) if n < MIN_CELLS or density < least else []
    if density < MISSED * least and quality["coverage"] >= reference["least_coverage"]:
        reasons.append(
            f"unlike the training images: {quality['coverage']:.0%} of it has structures, but {density:.0f} cells per "
            f"million pixels are below this model's limit {MISSED * least:.0f}"
        )
    return reasons


def _is_filled(quality: Mapping[str, float], reference: Mapping[str, Any]) -> bool:
    """Say whether as much is to be seen in an image as in the training fields, so that its tiles may be compared.

    An image with next to nothing in it is no bad image: the cells of a well may be few, or gone.
    """
    return (
        "tile" in reference
        and quality.get("relief", 0.0) > EMPTY_RELIEF * reference["relief"]
        and quality["coverage"] >= SPARSE * reference["least_coverage"]
    )


def untested(reference: Mapping[str, Any]) -> str:
    """Return what cannot be tested without the reference of a model, in one sentence; empty if all can."""
    if "cell" not in reference:
        return "it holds no statistics of its training images: focus, noise, magnification and contrast are not tested"
    if "tile" not in reference:
        return "it was trained on loose crops: density and fields without cells are not tested"
    return ""


def _no_image(quality: Mapping[str, float]) -> list[str]:
    """Return why this is no image at all, by physics alone."""
    if quality["span"] < 1:
        return [f"empty: all pixels are equal, at grey level {quality['brightest']:.0f}"]
    if quality["bits"] < MIN_BITS:
        return [f"too dark or of too few grey levels: {quality['bits']:.1f} bits, below the limit {MIN_BITS:.1f}"]
    shading, structure = quality.get("shading", MIN_SHADING), quality.get("structure", 1.0)
    if structure <= MAX_NOISE_TILES and shading < MIN_SHADING:
        return [f"empty: nothing but noise, with shading {shading:.2f}, below the limit {MIN_SHADING:.2f}"]
    return []


def _beyond(quality: Mapping[str, float], reference: Mapping[str, Any]) -> list[str]:
    """Return which measures of the whole image lie above their limits."""
    physical = {
        "clipped_dark": MAX_CLIPPED if "clipped_dark" in reference else MAX_BLACK,
        "clipped_bright": MAX_CLIPPED,
    }
    reasons = []
    for name, (wrong, called, _) in _UPPER.items():
        limit = max(physical.get(name, 0.0), reference.get(name, 0.0))
        if limit and quality.get(name, 0.0) > limit:
            whose = "this model's" if reference.get(name, 0.0) == limit else "the"
            reasons.append(f"{wrong}: {called} {quality[name]:.3g}, above {whose} limit {limit:.3g}")
    return reasons


def _unlike(quality: Mapping[str, float], kind: str, n: int, looks: Mapping[str, Any]) -> list[str]:
    """Return which textures of a field lie outside this model's limits, the worst first, and its distance."""
    median = np.array([quality[f"{kind}_{texture.name}"] for texture in TEXTURES])
    slack = 2 / np.sqrt(n)
    spread = np.asarray(looks["spread"])
    below, above = (np.asarray(looks["low"]) - median) / spread, (median - np.asarray(looks["high"])) / spread
    excess = np.maximum(below, above) - slack
    reasons = []
    for place in np.argsort(-excess)[:_SHOWN]:
        if excess[place] > 0:
            side = "low" if below[place] > above[place] else "high"
            reasons.append(_sentence(int(place), side, float(median[place]), float(looks[side][place])))
    polarity = float(median[_ODD] @ np.asarray(looks["polarity"]))
    if polarity < looks["least_polarity"]:
        limit = looks["least_polarity"]
        reasons.append(f"inverted contrast: polarity {polarity:.2f}, below this model's limit {limit:.2f}")
    distance = _distance(median, n, looks)
    if distance > looks["distance"]:
        most = TEXTURES[int(np.argmax(np.abs(median - np.asarray(looks["middle"])) / spread))].name.replace("_", " ")
        limit = looks["distance"]
        reasons.append(
            f"unlike the training images, most of all in {most}: {_WHAT[kind]} distance {distance:.1f}, above this "
            f"model's limit {limit:.1f}"
        )
    return reasons


def _sentence(place: int, side: str, value: float, limit: float) -> str:
    texture = TEXTURES[place]
    if texture.log2:
        value, limit = 2**value, 2**limit
    wrong, beyond = (texture.low, "below") if side == "low" else (texture.high, "above")
    return f"{wrong}: {texture.name.replace('_', ' ')} {value:.3g}, {beyond} this model's limit {limit:.3g}"
