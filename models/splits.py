"""Splits that never part a group: cells of one plate, well or field are alike, and a split by cell would flatter."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sesmo_live.errors import UsageError

TEST_GROUPS = 6
"""With at least so many groups a class, a third part is kept for the final figures alone."""
TWO_HELD_OUT = 4
"""With so many groups alike two are held out, so that a calibration can be tried on a group that it has not seen."""

_KINDS = ((True, False), (False, True), (True, True))
"""What groups can hold: healthy cells, senescent cells, both."""


@dataclass(frozen=True, slots=True)
class Split:
    """Which cells are trained on, which choose epoch, calibration and threshold, and which are only measured on.

    Three masks over the cells. `test` is empty where there are too few groups.
    """

    train: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    test: NDArray[np.bool_]


def split_cells(labels: NDArray[np.int_], groups: Sequence[str], held_out: float, seed: int) -> Split:
    """Return a split into whole groups, about the share `held_out` in each of the two parts that are not trained on.

    Raises UsageError where a class would be missing in a part.
    """
    names = np.asarray(groups, str)
    fewest = min(len(np.unique(names[labels == label])) for label in (0, 1))
    test = np.zeros(len(labels), np.bool_)
    if fewest >= TEST_GROUPS:
        test = split_by_group(labels, groups, held_out, seed + 1)
    rest = np.flatnonzero(~test)
    inner = split_by_group(labels[rest], names[rest].tolist(), held_out / (1 - held_out if test.any() else 1), seed)
    chosen = np.zeros(len(labels), np.bool_)
    chosen[rest[inner]] = True
    return Split(~test & ~chosen, chosen, test)


def split_by_group(labels: NDArray[np.int_], groups: Sequence[str], held_out: float, seed: int) -> NDArray[np.bool_]:
    """Return which cells are held out: about the share `held_out` of the groups, whole, of each mixture of labels.

    Raises UsageError where a class would be missing on one side.
    """
    group, mixtures = _mixtures(labels, groups)
    rng = np.random.default_rng(seed)
    taken = np.zeros(int(group.max()) + 1, np.bool_)
    for alike in mixtures:
        if len(alike) > 1:
            fewest = 2 if len(alike) >= TWO_HELD_OUT else 1
            n_taken = min(max(fewest, round(held_out * len(alike))), len(alike) - 1)
            taken[rng.permutation(alike)[:n_taken]] = True
    has = np.stack([np.bincount(group, labels == label, minlength=len(taken)) > 0 for label in (0, 1)])
    for number in rng.permutation(len(taken)):
        moved = taken.copy()
        moved[number] = True
        helps = (has[:, moved].any(axis=1) & ~has[:, taken].any(axis=1)).any()
        if helps and has[:, ~moved].any(axis=1).all():
            taken = moved
    tested = taken[group]
    for side in (tested, ~tested):
        if len(np.unique(labels[side])) < 2:
            raise UsageError(
                "healthy and senescent cells must each come from at least two groups (plates, wells or fields), "
                "one to train on and one to hold out; add images or name finer groups"
            )
    return np.asarray(tested, np.bool_)


def grouped_folds(labels: NDArray[np.int_], groups: Sequence[str], folds: int, seed: int) -> NDArray[np.intp]:
    """Return the fold (0 to `folds` − 1) of each cell, groups whole and each mixture of labels spread evenly.

    There are fewer folds where a class has fewer groups. Raises UsageError where it has fewer than two.
    """
    group, mixtures = _mixtures(labels, groups)
    fewest = min(len(np.unique(group[labels == label])) for label in (0, 1))
    if fewest < 2:
        raise UsageError(
            "cross-validation needs healthy and senescent cells from at least two groups (plates, wells or fields) "
            "each; add images or name finer groups"
        )
    sizes = np.bincount(group)
    order = np.random.default_rng(seed).permutation(len(sizes))
    fold = np.zeros(len(sizes), np.intp)
    n_folds = min(folds, fewest)
    held = np.zeros((2, n_folds))
    load = np.zeros(n_folds)
    for alike, kind in reversed(list(zip(mixtures, _KINDS, strict=True))):  # groups of both are the hardest to place
        for number in sorted(alike, key=lambda number: (-sizes[number], order[number])):
            # The fold with the fewest groups of these classes takes the next, the one with fewer cells where they tie.
            place = np.lexsort((load, held[list(kind)].sum(axis=0)))[0]
            fold[number] = place
            held[list(kind), place] += 1
            load[place] += sizes[number]
    return fold[group]


def _mixtures(labels: NDArray[np.int_], groups: Sequence[str]) -> tuple[NDArray[np.intp], list[NDArray[np.intp]]]:
    """Return the group number of each cell, and the groups that hold healthy cells alone, senescent alone, and both."""
    names, group = np.unique(np.asarray(groups, str), return_inverse=True)
    has = np.stack([np.bincount(group, labels == label, minlength=len(names)) > 0 for label in (0, 1)])
    return group, [np.flatnonzero((has == np.array(kind)[:, None]).all(axis=0)) for kind in _KINDS]
