"""How good a plate is, and where its wells stand between the controls."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sesmo_live.errors import StatisticsError
from sesmo_live.screening.checks import ROUNDING, Numbers, numbers, spread_mad, spread_sd

FEWEST_CONTROLS = 2
"""Wells of each control below which there is no standard deviation."""

FEWEST_ERRORS = 3.0
"""Standard errors between the controls' means below which nothing is told in percent of them."""

FEWEST_FOR_ROBUST = 3
"""Negative control wells below which a median absolute deviation says nothing."""


def _pair(negative: ArrayLike, positive: ArrayLike) -> tuple[Numbers, Numbers]:
    return (
        numbers(negative, "negative control wells", FEWEST_CONTROLS),
        numbers(positive, "positive control wells", FEWEST_CONTROLS),
    )


def _apart(low: float, high: float, what: str = "mean") -> float:
    if abs(high - low) <= ROUNDING * max(abs(low), abs(high)):
        raise StatisticsError(
            f"negative and positive controls have the same {what} score ({low:g}), so nothing lies between them; "
            "check which wells are controls"
        )
    return high - low


def _not_constant(spread: float) -> float:
    if spread == 0:
        raise StatisticsError(
            "the controls' scores do not vary between wells, so there is no spread to compare with; "
            "check that these wells were scored, and each by itself"
        )
    return spread


def z_prime(negative: ArrayLike, positive: ArrayLike) -> float:
    """Return Z′ = 1 − 3 (s₊ + s₋) / |x̄₊ − x̄₋| of control wells, with sample standard deviations (ddof 1).

    Zhang, Chung and Oldenburg, J Biomol Screen 4:67 (1999). 1 is perfect, above 0.5 excellent, below 0 the controls
    overlap. Raises StatisticsError for fewer than two wells of a control, scores that are not finite, equal means, and
    controls without any spread.
    """
    low, high = _pair(negative, positive)
    apart = abs(_apart(float(low.mean()), float(high.mean())))
    return 1 - 3 * _not_constant(spread_sd(low) + spread_sd(high)) / apart


def robust_z_prime(negative: ArrayLike, positive: ArrayLike) -> float:
    """Return Z′ with medians and scaled median absolute deviations in place of means and standard deviations.

    Birmingham et al., Nat Methods 6:569 (2009). One bad control well does not spoil it. Raises as `z_prime`.
    """
    low, high = _pair(negative, positive)
    apart = abs(_apart(float(np.median(low)), float(np.median(high)), "median"))
    return 1 - 3 * _not_constant(spread_mad(low) + spread_mad(high)) / apart


def ssmd(negative: ArrayLike, positive: ArrayLike) -> float:
    """Return the strictly standardised mean difference (x̄₊ − x̄₋) / √(s₊² + s₋²).

    Zhang, Genomics 89:552 (2007), for independent groups; its size is the strength of the positive control (above 3
    strong, above 5 very strong), its sign the direction. Raises as `z_prime`.
    """
    low, high = _pair(negative, positive)
    spread = _not_constant(float(np.hypot(spread_sd(low), spread_sd(high))))
    return _apart(float(low.mean()), float(high.mean())) / spread


def signal_window(negative: ArrayLike, positive: ArrayLike) -> float:
    """Return the signal window (|x̄₊ − x̄₋| − 3 (s₊ + s₋)) / s of the control with the higher mean.

    Sittampalam et al., J Biomol Screen 2:159 (1997). Above 2 is recommended. Raises as `z_prime`, and when the control
    with the higher mean has no spread.
    """
    low, high = _pair(negative, positive)
    apart = _apart(float(low.mean()), float(high.mean()))
    below, above = spread_sd(low), spread_sd(high)
    return (abs(apart) - 3 * (below + above)) / _not_constant(above if apart > 0 else below)


def controls_apart(negative: ArrayLike, positive: ArrayLike) -> float:
    """Return how many standard errors the controls' means lie apart; raise StatisticsError below three.

    |x̄₊ − x̄₋| / √(s₊²/n₊ + s₋²/n₋), Welch's t (Biometrika 34:28, 1947). Percent of control is a fraction whose
    denominator is this difference: while the positive control has not acted yet it would be noise over noise.
    """
    low, high = _pair(negative, positive)
    error = float(np.sqrt(spread_sd(low) ** 2 / len(low) + spread_sd(high) ** 2 / len(high)))
    found = abs(_apart(float(low.mean()), float(high.mean()))) / _not_constant(error)
    if found < FEWEST_ERRORS:
        raise StatisticsError(
            f"negative and positive controls differ by only {found:.1f} standard errors, so percent of control would "
            "be noise; wait until the positive control acts, or check which wells are controls"
        )
    return found


def percent_of_control(values: ArrayLike, negative: ArrayLike, positive: ArrayLike) -> Numbers:
    """Return 100 (x − x̄₋) / (x̄₊ − x̄₋) of each value: 0 % is the negative, 100 % the positive control.

    Malo et al., Nat Biotechnol 24:167 (2006), "normalised percent inhibition" with the controls so named. Raises
    StatisticsError for fewer than two wells of a control, numbers that are not finite, and equal means.
    """
    low, high = _pair(negative, positive)
    wanted = numbers(values, "scores", 0)
    apart = _apart(float(low.mean()), float(high.mean()))
    percent: Numbers = 100 * (wanted - low.mean()) / apart
    return percent


def robust_z(values: ArrayLike, negative: ArrayLike) -> Numbers:
    """Return (x − median₋) / (1.4826 MAD₋) of each value, the negative control wells being the reference.

    Malo et al. (2006), eq. for the robust Z score. Raises StatisticsError for fewer than three negative control wells,
    numbers that are not finite, and negative controls whose MAD is zero.
    """
    low = numbers(negative, "negative control wells", FEWEST_FOR_ROBUST)
    wanted = numbers(values, "scores", 0)
    scores: Numbers = (wanted - float(np.median(low))) / _not_constant(spread_mad(low))
    return scores


@dataclass(frozen=True, slots=True)
class ControlStatistics:
    """What the controls say of a plate at one time point; None where `missing` says why."""

    n_negative: int
    n_positive: int
    mean_negative: float | None
    mean_positive: float | None
    sd_negative: float | None
    sd_positive: float | None
    z_prime: float | None
    robust_z_prime: float | None
    ssmd: float | None
    signal_window: float | None
    missing: tuple[str, ...]
    """Why a number is None, one sentence each."""


def control_statistics(negative: ArrayLike, positive: ArrayLike) -> ControlStatistics:
    """Return every control statistic that can be computed, and for the others the sentence that says why not."""
    low = numbers(negative, "negative control wells", 0)
    high = numbers(positive, "positive control wells", 0)
    missing: list[str] = []

    def attempt(statistic: Callable[[ArrayLike, ArrayLike], float]) -> float | None:
        try:
            return statistic(low, high)
        except StatisticsError as error:
            missing.append(str(error))
            return None

    found = [attempt(statistic) for statistic in (z_prime, robust_z_prime, ssmd, signal_window)]
    return ControlStatistics(
        n_negative=len(low),
        n_positive=len(high),
        mean_negative=_mean(low),
        mean_positive=_mean(high),
        sd_negative=_deviation(low),
        sd_positive=_deviation(high),
        z_prime=found[0],
        robust_z_prime=found[1],
        ssmd=found[2],
        signal_window=found[3],
        missing=tuple(dict.fromkeys(missing)),
    )


def _mean(values: Numbers) -> float | None:
    return float(values.mean()) if len(values) else None


def _deviation(values: Numbers) -> float | None:
    return spread_sd(values) if len(values) >= FEWEST_CONTROLS else None
