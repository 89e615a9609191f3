"""What every statistic asks of its numbers first."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sesmo_live.errors import StatisticsError

Numbers = NDArray[np.float64]
"""Numbers in double precision."""

NORMAL_MAD = 1.4826
"""The standard deviation of normal numbers over their median absolute deviation (1 / Φ⁻¹(3/4))."""


def numbers(values: ArrayLike, what: str, at_least: int = 1) -> Numbers:
    """Return values as a `settled` float64 vector; raise StatisticsError for too few, text, NaN and infinity.

    `what` names them in the message, in the plural: `negative control wells`.
    """
    try:
        found = np.asarray(values, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise StatisticsError(f"the {what} are not all numbers; leave out those without a score") from error
    bad = int(np.count_nonzero(~np.isfinite(found)))
    if bad:
        raise StatisticsError(
            f"{bad} of the {len(found)} {what} are no finite numbers; leave out those without a score"
        )
    if len(found) < at_least:
        raise StatisticsError(f"there are {len(found)} {what} and at least {at_least} are needed")
    return settled(found)


def or_none(values: Numbers) -> list[float | None]:
    """Return numbers as they are told, None in place of NaN."""
    return [None if value != value else value for value in values.tolist()]


ROUNDING = 1e-12
"""Share of the size of numbers below which they differ by the rounding of sums alone."""


def settled(values: Numbers) -> Numbers:
    """Return numbers that differ only by the rounding of sums as one and the same number, others as they are.

    A model that gives every cell 0.3 gives wells of 0.3 and 0.29999999999999993, between which there is no spread.
    """
    known = values[np.isfinite(values)]
    if len(known) and np.ptp(known) <= ROUNDING * float(np.abs(known).max()):
        return np.where(np.isfinite(values), float(np.median(known)), values)
    return values


def same_length(first: Numbers, second: Numbers, names: str) -> None:
    """Raise StatisticsError unless both have as many numbers; `names` says what they are: `doses and responses`."""
    if len(first) != len(second):
        raise StatisticsError(f"there are {len(first)} and {len(second)} {names}; give one of each for each well")


def spread_sd(values: Numbers) -> float:
    """Return the sample standard deviation; 0 for equal numbers, whose mean may be off by rounding."""
    return float(values.std(ddof=1)) if np.ptp(values) > 0 else 0.0


def spread_mad(values: Numbers) -> float:
    """Return the median absolute deviation, scaled to the standard deviation of normal numbers."""
    return float(NORMAL_MAD * np.median(np.abs(values - np.median(values))))


def one_role_each(wells: Iterable[str], roles: Sequence[Iterable[str]]) -> dict[str, str]:
    """Return the one role of each well; raise StatisticsError for a well that is both kinds of control.

    A well with several compounds of which one is a control counts as a treatment: it is no pure control.
    """
    found: dict[str, str] = {}
    for well, several in zip(wells, roles, strict=True):
        kinds = set(several)
        if {"negative", "positive"} <= kinds:
            raise StatisticsError(
                f"well {well} is a negative and a positive control at once; mend the plate map and import it again"
            )
        found[well] = kinds.pop() if len(kinds) == 1 else "treatment"
    return found
