"""Plates of planted truth, made by numpy in a moment: cells, summed scores and senescent cells of each field."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sesmo_live.screening import FieldSums

Numbers = NDArray[np.float64]

SENESCENT, HEALTHY = 0.8, 0.16
"""Mean score of a senescent and of a healthy cell."""

SPREAD = 0.13
"""Standard deviation of the score among cells of one kind."""

FIELD_NOISE = 0.3
"""Standard deviation of the log odds of senescence between the fields of a well."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Wells × looks × fields: cells, summed scores, senescent cells."""

    cells: Numbers
    scores: Numbers
    senescent: Numbers

    def means(self) -> Numbers:
        """Return the score of each well and look, wells × looks."""
        mean: Numbers = self.scores.sum(-1) / self.cells.sum(-1)
        return mean

    def sums(self, *, senescent: bool = False) -> list[FieldSums]:
        """Return the sums of each well and look, in the order of the flattened wells × looks."""
        s, n = (self.senescent if senescent else self.scores), self.cells
        parts = [(n > 0).sum(-1), n.sum(-1), s.sum(-1), s.sum(-1), (s * s).sum(-1), (s * n).sum(-1), (n * n).sum(-1)]
        return [
            FieldSums(int(k), int(cells), *map(float, rest))
            for k, cells, *rest in zip(*(part.ravel() for part in parts), strict=True)
        ]


def image_wells(
    rng: np.random.Generator,
    fraction: Numbers,
    fields: int = 4,
    cells: float = 60,
    unequal: float = 0.4,
    well_noise: float = 0.0,
) -> Fields:
    """Image wells whose fraction of senescent cells is planted (wells × looks).

    `unequal` is the standard deviation of the log of the cells between fields; `well_noise` that of the log odds
    between wells, which stay with a well for all its looks.
    """
    odds = np.log(fraction / (1 - fraction)) + well_noise * rng.standard_normal((len(fraction), 1))
    shape = (*fraction.shape, fields)
    q = 1 / (1 + np.exp(-(odds[..., None] + FIELD_NOISE * rng.standard_normal(shape))))
    number = rng.poisson(cells * rng.lognormal(-(unequal**2) / 2, unequal, shape)) + 1
    senescent = rng.binomial(number, q)
    scores = senescent * SENESCENT + (number - senescent) * HEALTHY
    scores = scores + SPREAD * np.sqrt(number) * rng.standard_normal(shape)
    return Fields(number.astype(float), np.clip(scores, 0, number), senescent.astype(float))


@lru_cache
def true_fraction(fraction: float) -> float:
    """Return the mean fraction over fields of a well whose planted fraction is that of its median field."""
    x, weight = np.polynomial.hermite_e.hermegauss(41)
    q = 1 / (1 + np.exp(-(np.log(fraction / (1 - fraction)) + FIELD_NOISE * x)))
    return float((weight * q).sum() / weight.sum())


def score_of(fraction: float) -> float:
    """Return the mean score of cells of which this fraction is senescent."""
    return fraction * SENESCENT + (1 - fraction) * HEALTHY
