"""Train a network on labelled crops: the original study's recipe, split by group and never by cell."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.backend import start_keras
from models.metrics import grouped_auc
from models.network import build_network, get_weights
from models.scorer import compile_network, score_in_chunks
from sesmo_live.errors import UsageError

LEARNING_RATE = 0.032
CLIP_NORM = 1.0
"""Largest norm of all gradients together, as Keras 2 understood `clipnorm`; Keras 3 calls it `global_clipnorm`."""

SHIFT = 0.2
"""Largest shift of an augmented crop, as a share of its side."""
GAIN = 1.25
"""Largest contrast gain of an augmented crop, and its inverse the smallest: microscopes differ."""
OFFSET = 20.0
"""Largest brightness offset of an augmented crop, in grey levels."""

Progress = Callable[[int, Mapping[str, float]], None]
"""Called after each epoch, counted from 1, with its loss and accuracy, trained and held out."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What training gives: weights, one history entry per epoch, and the cells held out with their P(senescent).

    `held_out` indexes the crops; `labels`, `probabilities` and `groups` are theirs. `auc_low` and `auc_high` are the
    95 % interval over groups, None where there are too few.
    """

    weights: dict[str, NDArray[np.float32]]
    history: list[dict[str, float]]
    held_out: NDArray[np.intp]
    labels: NDArray[np.int_]
    probabilities: NDArray[np.float32]
    groups: list[str]
    auc: float
    auc_low: float | None
    auc_high: float | None
    n_trained: int


def train_network(
    crops: NDArray[np.uint8],
    labels: NDArray[np.int_],
    groups: Sequence[str],
    *,
    network: str = "deep-sesmo",
    epochs: int = 100,
    batch: int = 128,
    seed: int = 0,
    held_out: float = 0.2,
    cosine: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Train `network` on grey crops (uint8 N×H×H) labelled 0 healthy, 1 senescent, and score the groups held out.

    `groups` names for each crop what it shares with others (plate, well or field); about `held_out` of the groups
    of each class are kept from training and scored once, unaugmented, after the last epoch. The same seed gives the
    same split and the same draws; it is set for the whole process. Raises UsageError for data that cannot be split
    or do not match. With `cosine` the learning rate falls to zero along a cosine (Loshchilov and Hutter, ICLR 2017),
    so that the last epoch is a quiet one. Recipe: Kusumoto et al., Nat Commun 12:257 (2021), with gain and offset
    jitter added.
    """
    _check(crops, labels, groups, epochs, batch)
    tested = split_by_group(labels, groups, held_out, seed)
    keras = start_keras()
    keras.utils.set_random_seed(seed)
    model = build_network(network, crops.shape[1])
    steps = epochs * -(-int((~tested).sum()) // batch)
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps) if cosine else LEARNING_RATE
    optimizer = keras.optimizers.SGD(rate, global_clipnorm=CLIP_NORM)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = []
    rng = np.random.default_rng(seed)
    seen, seen_labels, unseen, unseen_labels = crops[~tested], labels[~tested], crops[tested], labels[tested]
    for epoch in range(1, epochs + 1):
        figures = _train_epoch(model, _batches(seen, seen_labels, batch, rng))
        check = model.evaluate(unseen[..., None], unseen_labels, batch, verbose=0, return_dict=True)
        history.append({**figures, **{f"held_out_{name}": float(value) for name, value in check.items()}})
        if progress is not None:
            progress(epoch, history[-1])
    weights = get_weights(model)
    probabilities = score_in_chunks(compile_network(network, crops.shape[1], weights), unseen, 128)
    left_out = [str(group) for group, out in zip(groups, tested, strict=True) if out]
    auc, low, high = grouped_auc(unseen_labels, probabilities, left_out, seed)
    return Trained(
        weights,
        history,
        np.flatnonzero(tested),
        unseen_labels,
        probabilities,
        left_out,
        auc,
        low,
        high,
        n_trained=len(seen),
    )


def split_by_group(labels: NDArray[np.int_], groups: Sequence[str], held_out: float, seed: int) -> NDArray[np.bool_]:
    """Return which cells are held out: about the share `held_out` of the groups, whole, of each mixture of labels.

    Raises UsageError where a class would be missing on one side.
    """
    names, group = np.unique(np.asarray(groups, str), return_inverse=True)
    has = np.stack([np.bincount(group, labels == label, minlength=len(names)) > 0 for label in (0, 1)])
    rng = np.random.default_rng(seed)
    taken = np.zeros(len(names), np.bool_)
    for mixture in ((True, False), (False, True), (True, True)):
        alike = np.flatnonzero((has == np.array(mixture)[:, None]).all(axis=0))
        if len(alike) > 1:
            n_taken = min(max(1, round(held_out * len(alike))), len(alike) - 1)
            taken[rng.permutation(alike)[:n_taken]] = True
    tested = taken[group]
    for side in (tested, ~tested):
        if len(np.unique(labels[side])) < 2:
            raise UsageError(
                "healthy and senescent cells must each come from at least two groups (plates, wells or fields), "
                "one to train on and one to hold out; add images or name finer groups"
            )
    return np.asarray(tested, np.bool_)


def augment(crops: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return each crop (uint8 N×H×H) turned, shifted and perhaps mirrored, edges repeated, contrast a little off."""
    n, size, _ = crops.shape
    angles, mirrors = rng.uniform(0, 2 * np.pi, n), rng.choice([-1.0, 1.0], n)
    cosines, sines = np.cos(angles), np.sin(angles)
    turns = np.stack([cosines * mirrors, -sines, sines * mirrors, cosines], axis=1).reshape(n, 2, 2)
    centre = np.full(2, (size - 1) / 2)
    shifts = centre - turns @ centre + rng.uniform(-SHIFT * size, SHIFT * size, (n, 2))
    moved = np.empty_like(crops)
    for crop, turn, shift, out in zip(crops, turns, shifts, moved, strict=True):
        cv2.warpAffine(crop, np.column_stack([turn, shift]), (size, size), out, borderMode=cv2.BORDER_REPLICATE)
    gains = np.exp(rng.uniform(-np.log(GAIN), np.log(GAIN), (n, 1, 1)))
    offsets = rng.uniform(-OFFSET, OFFSET, (n, 1, 1))
    jittered = (moved - np.float32(127.5)) * np.float32(gains) + np.float32(127.5 + offsets)
    return np.asarray(np.clip(jittered, 0, 255), np.uint8)


def _batches(
    crops: NDArray[np.uint8], labels: NDArray[np.int_], batch: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int_]]]:
    """Yield all crops once in random order, augmented, as N×H×H×1 with their labels."""
    order = rng.permutation(len(crops))
    for start in range(0, len(crops), batch):
        chosen = order[start : start + batch]
        yield augment(crops[chosen], rng)[..., None], labels[chosen]


def _train_epoch(model: Any, batches: Iterator[tuple[NDArray[np.uint8], NDArray[np.int_]]]) -> dict[str, float]:
    """Train on all batches and return the means over their cells; Keras itself reports each batch alone."""
    sums: dict[str, float] = {}
    cells = 0
    for crops, labels in batches:
        cells += len(crops)
        for name, value in model.train_on_batch(crops, labels, return_dict=True).items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(crops)
    return {name: total / cells for name, total in sums.items()}


def _check(crops: NDArray[np.uint8], labels: NDArray[np.int_], groups: Sequence[str], epochs: int, batch: int) -> None:
    if crops.dtype != np.uint8 or crops.ndim != 3 or crops.shape[1] != crops.shape[2]:
        raise UsageError(f"crops of {crops.dtype} with shape {crops.shape} cannot be trained on; give uint8 N×H×H")
    if not len(crops) == len(labels) == len(groups):
        raise UsageError(f"{len(crops)} crops have {len(labels)} labels and {len(groups)} groups; give one each")
    if set(np.unique(labels).tolist()) != {0, 1}:
        raise UsageError(
            "training needs both healthy (0) and senescent (1) cells and no other label; check the folders"
        )
    if epochs < 1 or batch < 1:
        raise UsageError(f"epochs {epochs} and batch {batch} must be at least 1")
