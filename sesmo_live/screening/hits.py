"""Which compounds differ from the plate's own negative controls."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sesmo_live.errors import StatisticsError
from sesmo_live.screening.checks import Numbers, numbers, spread_sd

FEWEST_NEGATIVES = 3
"""Negative control wells below which their standard deviation is too loose for a test."""


@dataclass(frozen=True, slots=True)
class Effect:
    """A compound (at a dose) against the negative control wells of its plate.

    `effect` is the difference of the means; `effect_sd` the same in standard deviations of the negative wells;
    `low` and `high` its interval; `p` the two-sided p-value that these are wells like the negative ones.
    """

    n_wells: int
    effect: float
    effect_sd: float
    low: float
    high: float
    p: float


def effect_against(values: ArrayLike, negative: ArrayLike, level: float = 0.95) -> Effect:
    """Compare a compound's wells with the negative control wells of the same plate by Student's t.

    t = (x̄ − x̄₋) / (s₋ √(1/r + 1/n)) on n − 1 degrees of freedom, with the spread of the n negative wells alone, since
    under the null hypothesis the r wells are more of them, and one well a compound is enough (Malo et al., Nat
    Biotechnol 24:167 (2006), discuss it). Raises StatisticsError for no well, fewer than three negative ones, numbers
    that are not finite, and negative wells without spread.
    """
    from scipy.special import stdtr, stdtrit

    wells = numbers(values, "wells of the compound")
    low = numbers(negative, "negative control wells", FEWEST_NEGATIVES)
    spread = spread_sd(low)
    if spread == 0:
        raise StatisticsError("the negative control wells all have the same score, so nothing can be tested on them")
    difference = float(wells.mean() - low.mean())
    error = spread * np.sqrt(1 / len(wells) + 1 / len(low))
    half = float(stdtrit(len(low) - 1, 0.5 + level / 2)) * error
    p = float(2 * stdtr(len(low) - 1, -abs(difference) / error))
    return Effect(len(wells), difference, difference / spread, difference - half, difference + half, p)


def false_discovery(p_values: ArrayLike) -> Numbers:
    """Return the q-values of Benjamini and Hochberg: the false-discovery rate when all down to this one are called.

    J R Stat Soc B 57:289 (1995), as adjusted p-values q₍ᵢ₎ = min over j ≥ i of m p₍ⱼ₎ / j. Raises StatisticsError for
    values outside 0 to 1.
    """
    p = numbers(p_values, "p-values", 0)
    if ((p < 0) | (p > 1)).any():
        raise StatisticsError("p-values lie between 0 and 1; give those of a test")
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum(1, np.minimum.accumulate(scaled[::-1])[::-1])
    return q


def over_plates(effects: Sequence[Effect]) -> tuple[float, float]:
    """Return (mean effect in standard deviations, two-sided p) of one compound over plates.

    Each plate counts by the square root of its wells (Stouffer's method with Lipták's weights: Magyar Tud. Akad.
    Mat. Kutató Int. Közl. 3:171 (1958)). Raises StatisticsError without a plate.
    """
    from scipy.special import ndtr, ndtri

    if not effects:
        raise StatisticsError("the compound is on no plate with negative controls, so there is no effect to combine")
    weights = np.sqrt([effect.n_wells for effect in effects])
    p = np.clip([effect.p for effect in effects], 1e-300, 1)
    z = -ndtri(p / 2) * np.sign([effect.effect for effect in effects])
    together = float((weights * z).sum() / np.sqrt((weights**2).sum()))
    mean = float(np.average([effect.effect_sd for effect in effects], weights=weights**2))
    return mean, float(2 * ndtr(-abs(together)))
