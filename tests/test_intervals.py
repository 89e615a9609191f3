"""The interval of a well's score."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t as student

from sesmo_live.screening.intervals import FieldSums, mean_interval


def sums(fields: list[NDArray[np.float64]]) -> FieldSums:
    counts = np.array([len(f) for f in fields], float)
    totals = np.array([f.sum() for f in fields])
    return FieldSums(
        int((counts > 0).sum()),
        int(counts.sum()),
        float(totals.sum()),
        float(sum((f**2).sum() for f in fields)),
        float((totals**2).sum()),
        float((totals * counts).sum()),
        float((counts**2).sum()),
    )


def test_equal_fields_give_the_t_interval_of_field_means() -> None:
    rng = np.random.default_rng(1)
    fields = [rng.uniform(0.2, 0.6, 20) for _ in range(4)]
    mean, low, high = mean_interval(sums(fields))
    means = np.array([f.mean() for f in fields])
    half = student.ppf(0.975, 3) * means.std(ddof=1) / 2
    assert (mean, low, high) == pytest.approx((means.mean(), means.mean() - half, means.mean() + half))


def test_one_field_gives_the_t_interval_of_cells() -> None:
    cells = np.random.default_rng(2).uniform(0, 1, 30)
    half = student.ppf(0.975, 29) * cells.std(ddof=1) / np.sqrt(30)
    assert mean_interval(sums([cells])) == pytest.approx((cells.mean(), cells.mean() - half, cells.mean() + half))


def test_limits_stay_within_zero_and_one_and_silence_where_nothing_is_known() -> None:
    mean, low, high = mean_interval(sums([np.array([0.0, 1.0]), np.array([1.0, 1.0])]))
    assert (mean, low, high) == (0.75, 0.0, 1.0)
    assert mean_interval(sums([np.array([])])) == (None, None, None)
    assert mean_interval(sums([np.array([0.3])])) == (0.3, None, None)
    # An empty field beside one with cells adds nothing: the interval is that of the one field.
    cells = np.array([0.2, 0.4, 0.5])
    assert mean_interval(sums([cells, np.array([])])) == pytest.approx(mean_interval(sums([cells])))


@pytest.mark.parametrize("n_fields", [2, 4, 9])
def test_coverage_with_unequal_fields_and_field_to_field_variation(n_fields: int) -> None:
    """95 % intervals cover the truth in 92 to 98 % of simulated wells, where a field bootstrap covers 50 to 89 %."""
    rng = np.random.default_rng(n_fields)
    covered = 0
    for _ in range(2000):
        fields = []
        for _ in range(n_fields):
            level = np.clip(rng.normal(0.4, 0.06), 0.05, 0.95)
            fields.append(rng.beta(8 * level, 8 * (1 - level), rng.poisson(60) + 1))
        _, low, high = mean_interval(sums(fields))
        assert low is not None
        assert high is not None
        covered += low <= 0.4 <= high
    assert 0.92 <= covered / 2000 <= 0.98
