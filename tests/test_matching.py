"""Matching of centres with the truth: one centre a cell, whatever is nearer; figures with intervals by field."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.matching import Match, match_in_masks, match_to_points, summarize
from sesmo_live.errors import UsageError


def two_cells() -> np.ndarray:
    labels = np.zeros((20, 30), np.uint8)
    labels[2:8, 2:8] = 1
    labels[10:18, 12:28] = 7
    return labels


@pytest.mark.parametrize(
    ("centres", "expected"),
    [
        ([], Match(0, 0, 2)),
        ([(5, 5), (20, 14)], Match(2, 0, 0)),
        ([(5, 5), (4, 4)], Match(1, 1, 1)),
        ([(20, 2), (5, 5)], Match(1, 1, 1)),
        ([(-1, 5), (30, 14), (20, 20)], Match(0, 3, 2)),
        ([(7.4, 7.4), (7.6, 3)], Match(1, 1, 1)),
        ([(5, 2)], Match(1, 0, 1)),
    ],
)
def test_a_cell_is_found_once_and_only_inside_its_mask(centres: list[tuple[float, float]], expected: Match) -> None:
    assert match_in_masks(np.array(centres, np.float64).reshape(-1, 2), two_cells()) == expected


def test_masks_must_be_whole_numbers() -> None:
    with pytest.raises(UsageError, match="label image"):
        match_in_masks(np.empty((0, 2)), np.zeros((4, 4), np.float32))


def test_points_are_paired_so_that_most_find_a_partner() -> None:
    # Greedily, the centre at 4 would take the cell at 5 and leave the one at 8 without its only cell.
    truth = np.array([[0.0, 0], [5, 0]])
    found = np.array([[4.0, 0], [8, 0]])
    assert match_to_points(found, truth, 4.0) == Match(2, 0, 0)
    assert match_to_points(found, truth, 0.9) == Match(0, 2, 2)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_counts_always_add_up(n_found: int, n_true: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    match = match_to_points(rng.uniform(0, 10, (n_found, 2)), rng.uniform(0, 10, (n_true, 2)), 2.0)
    assert (match.n_found, match.n_true) == (n_found, n_true)
    assert 0 <= match.hits <= min(n_found, n_true)


def test_figures_are_over_all_cells_and_the_count_error_over_fields() -> None:
    result = summarize([Match(8, 2, 0), Match(30, 0, 10)])
    assert result.precision.value == pytest.approx(38 / 40)
    assert result.recall.value == pytest.approx(38 / 48)
    assert result.f1.value == pytest.approx(2 * 38 / (40 + 48))
    assert result.count_error.value == pytest.approx((2 / 8 + 10 / 40) / 2)
    assert (result.n_fields, result.n_cells) == (2, 48)
    assert result.f1.low == pytest.approx(2 * 30 / (30 + 40))
    assert result.f1.high == pytest.approx(2 * 8 / (8 + 10))


def test_frames_of_one_film_give_no_interval_and_are_drawn_together() -> None:
    matches = [Match(9, 1, 1), Match(5, 5, 5), Match(9, 1, 1), Match(5, 5, 5)]
    assert summarize(matches, ["film"] * 4).f1.low is None
    paired = summarize(matches, ["a", "a", "b", "b"]).f1
    assert paired.low == paired.high == pytest.approx(paired.value)
    apart = summarize(matches).f1
    assert apart.low is not None
    assert apart.high is not None
    assert apart.low < apart.value < apart.high


def test_nothing_to_compare_with_is_refused() -> None:
    for matches in ([], [Match(0, 3, 0)]):
        with pytest.raises(UsageError, match="no labelled cell"):
            summarize(matches)
