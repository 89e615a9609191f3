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
MIN_SHADING = 2.0
"""Least unevenness of the light, in units of what noise alone gives, of an image without any structure."""
MAX_NOISE_TILES = 0.02
"""Share of structured tiles below which an image has no structure."""
MIN_DISTANCE = 3.2
"""Least limit of a field's distance from the training cells, in their standard deviations."""
DISTANCE_MARGIN = 1.15
"""The limit of the distance over that of all but one in a hundred training fields."""
LOOSE_DISTANCE = 4.0
"""The limit where the crops' fields are not known."""
POLARITY_MARGIN = 0.25
"""How far below the training fields' least polarity, and below 0, a field may lie; their negatives have about −1."""
_ODD = [5, 6, 7, 9]
"""The textures that change their sign with the contrast, whichever way cells were found."""
MIN_CELLS = 5
"""Cells that make a training field count, and below which a filled image shows something else than cells."""
_WHAT = {"cell": "cells'", "tile": "image's"}
_LOWER = {"coverage": "least_coverage", "cells_per_megapixel": "least_cells_per_megapixel"}
"""Measures of which a reference keeps the least (5 %) of its training fields, and under which name."""
_SHRINK = 0.03
"""Share by which variances are raised, so that no direction of textures counts as known for certain."""
_TILES_JUDGED = 40
"""Lively tiles of a field of usual size."""
_MEDIAN_VARIANCE = np.pi / 2
"""Variance of a median over that of a mean, for normal values."""

_UPPER = {
    "clipped_dark": ("too dark or clipped", "share of black pixels", 0.05),
    "clipped_bright": ("overexposed or clipped", "share of white pixels", 0.01),
    "noise_level": ("noisy", "noise over the brightest light", 0.01),
    "coverage": ("too dense", "share of the image with cells", 0.25),
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
            reference[name] = round(float(high + max(least, high - low)), 5)
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
    shapes = {"middle": (n,), "spread": (n,), "precision": (n, n), "polarity": (len(_ODD),)}
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
        distance = LOOSE_DISTANCE
    else:
        distances = [_distance(np.median(part, axis=0), len(part), looks) for part in fields]
        distance = max(MIN_DISTANCE, DISTANCE_MARGIN * float(np.percentile(distances, 99)))
    polarity, least = _polarity(pooled, fields)
    looks["polarity"] = polarity
    numbers = {"distance": round(distance, 3), "least_polarity": round(least, 3)}
    return {name: np.round(value, 4).tolist() for name, value in looks.items()} | numbers


def _polarity(pooled: Floats, fields: Sequence[Floats]) -> tuple[Floats, float]:
    """Return weights of the asymmetries whose sum is 1 for the typical field, −1 for its negative; and the sum's limit.

    Each counts by how surely it has a sign; all weights are 0 where the fields of the crops are not known.
    """
    if len(fields) < 2:
        return np.zeros(len(_ODD)), -1.0
    odd = pooled[:, _ODD]
    middle = np.median(odd, axis=0)
    weights = middle / (odd.var(axis=0) + 1e-3)
    weights = weights / max(float(weights @ middle), 1e-6)
    sums = [float(np.median(part[:, _ODD], axis=0) @ weights) for part in fields]
    return weights, min(0.0, float(np.percentile(sums, 1))) - POLARITY_MARGIN


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
    if not reasons and "tile" in reference and quality.get("coverage", 0.0) >= reference["least_coverage"]:
        reasons += _scarce(quality, n, reference)
    return reasons


def _scarce(quality: Mapping[str, float], n: int, reference: Mapping[str, Any]) -> list[str]:
    """Return why an image that is filled as the training fields are, and in which few cells were found, is no such.

    An image with next to nothing in it is no bad image: the cells of a well may be few, or gone. Large, flat, confluent
    cells (senescent ones) are few too: their number alone is no reason as long as some are found.
    """
    density, least = quality["cells_per_megapixel"], reference["least_cells_per_megapixel"]
    if n >= MIN_CELLS and density >= least:
        return []
    reasons = _unlike(quality, "tile", _TILES_JUDGED, reference["tile"])
    if n < MIN_CELLS and density < least:
        reasons.append(
            f"unlike the training images: {quality['coverage']:.0%} of it has structures, but {density:.0f} cells per "
            f"million pixels are below this model's limit {least:.0f}"
        )
    return reasons


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
    physical = {"clipped_dark": MAX_CLIPPED if reference else 0.0, "clipped_bright": MAX_CLIPPED}
    reasons = []
    for name, (wrong, called, _) in _UPPER.items():
        limit = max(physical.get(name, 0.0), reference.get(name, 0.0))
        if limit and quality.get(name, 0.0) > limit:
            whose = "this model's" if reference.get(name, 0.0) == limit else "the"
            reasons.append(f"{wrong}: {called} {quality[name]:.3g}, above {whose} limit {limit:.3g}")
    return reasons


def _unlike(quality: Mapping[str, float], kind: str, n: int, looks: Mapping[str, Any]) -> list[str]:
    """Return why the textures of a field are unlike the training cells', named by the one that is furthest off."""
    median = np.array([quality[f"{kind}_{texture.name}"] for texture in TEXTURES])
    reasons = []
    distance = _distance(median, n, looks)
    if distance > looks["distance"]:
        reasons.append(
            _sentence(median, kind, looks) + f" {distance:.1f}, above this model's limit {looks['distance']:.1f}"
        )
    polarity = float(median[_ODD] @ np.asarray(looks["polarity"]))
    if polarity < looks["least_polarity"]:
        limit = looks["least_polarity"]
        reasons.append(f"inverted contrast: polarity {polarity:.2f}, below this model's limit {limit:.2f}")
    return reasons


def _sentence(median: Floats, kind: str, looks: Mapping[str, Any]) -> str:
    """Return what is wrong with a field by its most unusual texture, and the name of the distance."""
    middle = np.asarray(looks["middle"])
    off = (median - middle) / np.asarray(looks["spread"])
    place = int(np.argmax(np.abs(off)))
    texture = TEXTURES[place]
    value, usual = (2**x if texture.log2 else x for x in (float(median[place]), float(middle[place])))
    wrong = texture.low if off[place] < 0 else texture.high
    name = texture.name.replace("_", " ")
    return f"{wrong}: {name} {value:.2f}, in training {usual:.2f}; {_WHAT[kind]} distance"
