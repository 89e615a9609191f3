"""Screening statistics: published fits, direct computations, other programs, and bad input."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sesmo_live.errors import SesmoError
from sesmo_live.screening import (
    area_under_curve,
    b_scores,
    control_band,
    control_statistics,
    density_adjusted,
    effect_against,
    false_discovery,
    fit_dose_response,
    median_polish,
    onset,
    over_plates,
    percent_of_control,
    plate_effects,
    robust_z,
    robust_z_prime,
    signal_window,
    slope,
    ssmd,
    z_prime,
)
from sesmo_live.screening.checks import one_role_each
from tests.figures import figure

NEGATIVE = [0.10, 0.12, 0.14, 0.12]
POSITIVE = [0.70, 0.80, 0.75]


def test_control_statistics_equal_their_formulas() -> None:
    low, high = np.array(NEGATIVE), np.array(POSITIVE)
    s_low, s_high, apart = low.std(ddof=1), high.std(ddof=1), high.mean() - low.mean()
    assert z_prime(NEGATIVE, POSITIVE) == pytest.approx(1 - 3 * (s_low + s_high) / apart)
    assert z_prime(POSITIVE, NEGATIVE) == pytest.approx(z_prime(NEGATIVE, POSITIVE))
    assert ssmd(NEGATIVE, POSITIVE) == pytest.approx(apart / math.sqrt(s_low**2 + s_high**2))
    assert ssmd(POSITIVE, NEGATIVE) == pytest.approx(-ssmd(NEGATIVE, POSITIVE))
    assert signal_window(NEGATIVE, POSITIVE) == pytest.approx((apart - 3 * (s_low + s_high)) / s_high)
    assert signal_window(POSITIVE, NEGATIVE) == pytest.approx(signal_window(NEGATIVE, POSITIVE))
    # Medians 0.12 and 0.75, median absolute deviations 0.01 and 0.05.
    assert robust_z_prime(NEGATIVE, POSITIVE) == pytest.approx(1 - 3 * 1.4826 * 0.06 / 0.63)
    assert percent_of_control([0.12, 0.75, 0.435], NEGATIVE, POSITIVE) == pytest.approx([0, 100, 50])
    assert robust_z([0.12, 0.14826 + 0.12], NEGATIVE) == pytest.approx([0, 10])


def test_an_outlier_spoils_z_prime_and_not_its_robust_twin() -> None:
    rng = np.random.default_rng(1)
    low, high = rng.normal(0.2, 0.01, 16), rng.normal(0.7, 0.01, 16)
    spoilt = np.append(low, 0.65)
    assert z_prime(low, high) > 0.8
    assert z_prime(spoilt, high) < 0.3
    assert robust_z_prime(spoilt, high) > 0.8


def test_what_cannot_be_computed_is_said_and_the_rest_is_there() -> None:
    found = control_statistics(NEGATIVE, [0.7])
    assert found.z_prime is None
    assert found.mean_positive == 0.7
    assert found.sd_negative == pytest.approx(np.std(NEGATIVE, ddof=1))
    assert found.missing == ("there are 1 positive control wells and at least 2 are needed",)
    assert control_statistics([], []).missing == ("there are 0 negative control wells and at least 2 are needed",)


def ryegrass(shared: Path) -> tuple[list[float], list[float]]:
    with (shared / "data" / "assays" / "drc_ryegrass.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [float(row["conc"]) for row in rows], [float(row["rootl"]) for row in rows]


@pytest.mark.realdata
def test_the_fit_of_drc_to_its_ryegrass_data(shared: Path) -> None:
    fit = fit_dose_response(*ryegrass(shared))
    assert fit.slope is not None
    assert (round(fit.slope, 3), round(fit.bottom, 3), round(fit.top, 3), round(fit.ec50_um or 0, 3)) == (
        *(2.982, 0.481, 7.793, 3.058),
    )
    figure(f"ryegrass: b {fit.slope:.4f}, c {fit.bottom:.4f}, d {fit.top:.4f}, e {fit.ec50_um:.4f}")
    assert not fit.is_flat
    assert fit.at([0, 3.058]) == pytest.approx([fit.top, (fit.bottom + fit.top) / 2], rel=1e-3)


DNASE_CONC = [0.04882812, 0.1953125, 0.390625, 0.78125, 1.5625, 3.125, 6.25, 12.5]
DNASE_DENSITY = [
    *(0.017, 0.018, 0.121, 0.124, 0.206, 0.215, 0.377, 0.374),
    *(0.614, 0.609, 1.019, 1.001, 1.334, 1.364, 1.730, 1.710),
]


def test_the_published_fit_of_an_elisa_curve() -> None:
    """R's DNase, run 1, with SSlogis(log(conc)): Asym 2.34518, xmid 1.48309, scal 1.04146 (Davidian, Giltinan 1995)."""
    fit = fit_dose_response(np.repeat(DNASE_CONC, 2), DNASE_DENSITY, bottom=0)
    assert fit.slope is not None
    assert fit.ec50_um is not None
    found = (fit.top, math.log(fit.ec50_um), -1 / fit.slope)
    figure(f"DNase: {found[0]:.5f}, {found[1]:.5f}, {found[2]:.5f}")
    assert found == pytest.approx((2.34518, 1.48309, 1.04146), rel=5e-5)


CHICK_DAYS = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 21]
CHICK_GRAMS = [42, 51, 59, 64, 76, 93, 106, 125, 149, 171, 199, 205]


def test_the_published_four_parameter_fit_of_a_growth_curve() -> None:
    """R's SSfpl on Chick.1 (stats-Ex.Rout.save): A 27.453, B 348.971, xmid 19.391, scal 6.673; dose is e^(day / 5)."""
    fit = fit_dose_response(np.exp(np.array(CHICK_DAYS) / 5), CHICK_GRAMS)
    assert fit.slope is not None
    assert fit.ec50_um is not None
    found = (fit.bottom, fit.top, 5 * math.log(fit.ec50_um), -5 / fit.slope)
    figure(f"Chick.1: {found[0]:.3f}, {found[1]:.3f}, {found[2]:.3f}, {found[3]:.3f}")
    assert found == pytest.approx((27.453, 348.971, 19.391, 6.673), rel=1e-4)
    assert fit.residual_sd == pytest.approx(2.351, abs=5e-4)


def test_the_certified_fit_of_nist() -> None:
    """NIST StRD Rat42, y = b1 / (1 + exp(b2 − b3 x)): certified to eleven digits; dose is e^(x / 10), bottom 0."""
    x = np.array([9.0, 14, 21, 28, 42, 57, 63, 70, 79])
    y = [8.930, 10.800, 18.590, 22.330, 39.350, 56.110, 61.730, 64.620, 67.080]
    fit = fit_dose_response(np.exp(x / 10), y, bottom=0)
    assert fit.slope is not None
    assert fit.ec50_um is not None
    found = (fit.top, -fit.slope * math.log(fit.ec50_um), -fit.slope / 10)
    figure(f"Rat42: {found[0]:.6f}, {found[1]:.7f}, {found[2]:.8f}")
    assert found == pytest.approx((72.462237576, 2.6180768402, 0.067359200066), rel=1e-5)
    assert fit.residual_sd == pytest.approx(1.1587725499, rel=1e-6)


@pytest.mark.realdata
def test_fit_and_interval_agree_with_scipy(shared: Path) -> None:
    """The same sums of squares by scipy's own optimiser, and the profile by refitting with the EC50 held."""
    from scipy.optimize import curve_fit, least_squares
    from scipy.stats import f as fisher

    doses, values = (np.array(item) for item in ryegrass(shared))

    def curve(x: Any, c: float, d: float, b: float, e: float) -> Any:
        return np.asarray(c + (d - c) / (1 + (x / e) ** b))

    direct, _ = curve_fit(curve, doses, values, p0=[0.5, 8, 2, 3])
    fit = fit_dose_response(doses, values)
    assert (fit.bottom, fit.top, fit.slope, fit.ec50_um) == pytest.approx(tuple(direct), rel=1e-4)
    squares = float(((curve(doses, *direct) - values) ** 2).sum())
    allowed = squares * (1 + fisher.ppf(0.95, 1, 20) / 20)
    for limit in (fit.ec50_low_um, fit.ec50_high_um):
        assert limit is not None
        held = least_squares(
            lambda p, e=limit: curve(doses, p[0], p[1], p[2], e) - values, direct[:3], xtol=1e-12, ftol=1e-12
        )
        assert 2 * held.cost == pytest.approx(allowed, rel=2e-3)


def test_a_dose_of_zero_stays_and_the_slope_has_the_sign_of_drc() -> None:
    doses = np.array([0, 0, 0.1, 0.1, 1, 1, 10, 10, 100, 100.0])
    rising = 0.1 + 0.6 * doses / (doses + 2)
    noise = np.tile([0.003, -0.003], 5)
    up, down = fit_dose_response(doses, rising + noise), fit_dose_response(doses, 0.8 - rising + noise)
    assert up.slope is not None
    assert down.slope is not None
    assert up.slope < 0 < down.slope
    assert up.bottom == pytest.approx(0.1, abs=0.01)
    assert down.top == pytest.approx(0.7, abs=0.01)
    assert up.bottom < up.top
    assert down.bottom < down.top
    assert (up.ec50_um, down.ec50_um) == pytest.approx((2, 2), rel=0.1)
    raised = fit_dose_response(doses, np.where(doses == 0, 0.2, rising) + noise)
    assert raised.bottom > up.bottom + 0.01


def test_an_ec50_beyond_the_doses_is_said_to_be_extrapolated() -> None:
    doses = np.repeat([0, 0.1, 0.3, 1, 3], 3)
    noise = np.tile([0.01, -0.01, 0.0], 5)
    fit = fit_dose_response(doses, 0.1 + 0.8 * doses**1.5 / (doses**1.5 + 20**1.5) + noise)
    assert fit.ec50_high_um == math.inf
    assert "extrapolated" in fit.note


def test_effect_and_false_discovery_equal_scipy() -> None:
    from scipy.stats import false_discovery_control, t

    low = np.array([0.2, 0.22, 0.19, 0.21, 0.2])
    found = effect_against([0.3, 0.32], low)
    error = low.std(ddof=1) * math.sqrt(1 / 2 + 1 / 5)
    assert found.p == pytest.approx(2 * t.sf((0.31 - low.mean()) / error, 4))
    assert (found.low, found.high) == pytest.approx(tuple(t.interval(0.95, 4, 0.31 - low.mean(), error)))
    p = np.random.default_rng(2).uniform(0, 1, 50) ** 3
    assert false_discovery(p) == pytest.approx(false_discovery_control(p))
    assert len(false_discovery([])) == 0
    mean, together = over_plates([found, effect_against([0.31], low)])
    assert together < found.p
    assert 4 < mean / 2 < 10


def test_rows_columns_and_rim_are_found_and_taken_out() -> None:
    rng = np.random.default_rng(3)
    noise = 0.01 * rng.standard_normal((8, 12))
    rows, columns = np.linspace(-0.1, 0.1, 8)[:, None], np.where(np.arange(12) == 4, 0.2, 0)
    polish = median_polish(0.3 + rows + columns + noise)
    assert polish.rows - polish.rows.mean() == pytest.approx(rows.ravel(), abs=0.02)
    assert polish.columns[4] - polish.columns[0] == pytest.approx(0.2, abs=0.02)
    rebuilt = polish.overall + polish.rows[:, None] + polish.columns + polish.residuals
    assert rebuilt == pytest.approx(0.3 + rows + columns + noise)
    found = plate_effects(0.3 + rows + noise)
    assert found.row_p is not None
    assert found.column_p is not None
    assert found.row_p < 1e-6 < 0.05 < found.column_p
    hit = 0.3 + rows + columns + noise
    hit[2, 7] += 0.3
    hit[0, 0] = np.nan
    scores = b_scores(hit)
    assert np.isnan(scores[0, 0])
    assert tuple(map(int, np.unravel_index(np.nanargmax(scores), scores.shape))) == (2, 7)
    rim = np.ones((8, 12), bool)
    rim[1:-1, 1:-1] = False
    found = plate_effects(0.3 + 0.1 * rim + noise)
    assert found.edge == pytest.approx(0.1, abs=0.01)
    assert found.edge_p is not None
    assert found.edge_p < 1e-10


def test_slope_and_area() -> None:
    from scipy.stats import linregress

    hours, scores = np.array([0.0, 4, 8, 16]), np.array([0.1, 0.2, 0.25, 0.5])
    found = slope(hours, scores)
    direct = linregress(hours, scores)
    assert found[0] == pytest.approx(direct.slope)
    assert found[2] - found[0] == pytest.approx(4.302653 * direct.stderr)
    assert area_under_curve(hours, scores, scores) == 0
    assert area_under_curve([0, 2, 3], [0, 2, 2], 1.0) == pytest.approx(2 + 2 - 3)


def test_looks_without_score_or_controls_are_passed_over() -> None:
    rng = np.random.default_rng(4)
    controls = 0.2 + 0.01 * rng.standard_normal((8, 12))
    controls[:, 5] = np.nan
    band = control_band(controls, wells=80)
    assert np.flatnonzero(np.isnan(band.mean)).tolist() == [5]
    well = np.where(np.arange(12) < 4, 0.2, 0.6)
    well[4] = np.nan
    found = onset(well, band)
    assert found is not None
    assert (found.look, found.rising) == (6, True)
    assert onset(np.full(12, 0.2), band) is None
    once = np.full(12, 0.2)
    once[7] = 0.6  # one bad image
    assert onset(once, band) is None


DOSES = [0, 0.1, 1, 10, 100, 1000]
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "one control well": (lambda: z_prime([0.1], POSITIVE), "1 negative control wells and at least 2"),
    "no control well": (lambda: percent_of_control([0.2], NEGATIVE, []), "0 positive control wells and at least 2"),
    "constant controls": (lambda: z_prime([0.1, 0.1], [0.7, 0.7]), "do not vary"),
    "three constant controls": (lambda: z_prime([0.1] * 3, [0.7] * 3), "do not vary"),  # their mean is not 0.1
    "rounded controls": (lambda: z_prime([0.3, 0.3 - 6e-17] * 4, [0.7, 0.7 + 1e-16] * 4), "do not vary"),
    "rounded means": (lambda: percent_of_control([0.3], [0.3] * 3, [0.3 - 6e-17] * 3), "same mean score"),
    "rounded band": (lambda: control_band(0.3 + 6e-17 * np.eye(8), 80), "their band has no width"),
    "rounded plate": (lambda: plate_effects(0.3 + 6e-17 * np.eye(8)), "all wells have the same score"),
    "rounded hits": (lambda: effect_against([0.5], [0.1, 0.1, 0.1]), "all have the same score"),
    "rounded times": (lambda: slope([0.1] * 3, [1, 2, 3]), "all looks are at one time"),
    "equal controls": (lambda: percent_of_control([0.2], NEGATIVE, NEGATIVE), "same mean score"),
    "equal constant": (lambda: ssmd([0.1, 0.1], [0.1, 0.1]), "do not vary"),
    "NaN control": (lambda: z_prime([0.1, math.nan], POSITIVE), "1 of the 2 negative control wells"),
    "NaN score": (lambda: percent_of_control([math.nan], NEGATIVE, POSITIVE), "1 of the 1 scores"),
    "text": (lambda: robust_z(["a"], NEGATIVE), "not all numbers"),
    "MAD of zero": (lambda: robust_z([0.2], [0.1, 0.1, 0.1, 0.4]), "do not vary"),
    "negative dose": (lambda: fit_dose_response([-1, *DOSES], [1] * 6 + [2]), "dose of -1 is below zero"),
    "NaN dose": (lambda: fit_dose_response([math.nan, *DOSES], [1] * 6 + [2]), "1 of the 7 doses"),
    "three doses": (lambda: fit_dose_response([0, 1, 1, 10, 10], [1, 2, 2, 3, 4]), "3 different doses"),
    "four wells": (lambda: fit_dose_response([0, 1, 10, 100], [1, 2, 3, 4]), "4 wells and at least 5"),
    "constant responses": (lambda: fit_dose_response(DOSES, [1] * 6), "all responses are the same"),
    "lengths": (lambda: fit_dose_response(DOSES, [1, 2]), "6 and 2 doses and responses"),
    "bottom above top": (lambda: fit_dose_response(DOSES, range(6), bottom=3, top=1), "not below the fixed top"),
    "two roles": (lambda: one_role_each(["B02"], [["negative", "positive"]]), "well B02 is a negative and a positive"),
    "few controls for a band": (lambda: control_band(np.ones((3, 9)), 80), "3 negative control wells and at least 4"),
    "constant band": (lambda: control_band(np.ones((8, 9)), 80), "their band has no width"),
    "no looks": (lambda: control_band(np.ones((8, 0)), 80), "0 negative control wells"),
    "one time": (lambda: slope([1, 1, 1], [1, 2, 3]), "all looks are at one time"),
    "times fall": (lambda: area_under_curve([2, 1], [0, 1]), "do not rise"),
    "zero cells": (lambda: density_adjusted([0.1], [0], NEGATIVE * 2, [100, 200] * 4), "without cells"),
    "same cells": (lambda: density_adjusted([0.1], [50], NEGATIVE * 2, [100] * 8), "the same number of cells"),
    "constant negatives": (lambda: effect_against([0.3], [0.2] * 5), "all have the same score"),
    "p of 2": (lambda: false_discovery([0.1, 2]), "between 0 and 1"),
    "no plate": (lambda: over_plates([]), "no plate with negative controls"),
    "one row": (lambda: median_polish(np.ones((1, 12))), "at least two rows"),
    "few wells": (lambda: b_scores([[1, 2, np.nan], [np.nan, 3, 4]]), "4 wells have a score and 6"),
    "constant plate": (lambda: b_scores(np.ones((8, 12))), "do not vary"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_one_sentence_and_never_a_number(name: str) -> None:
    call, said = BAD[name]
    with pytest.raises(SesmoError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not str(caught.value).endswith(".")


def test_a_well_with_a_control_and_a_compound_is_a_treatment() -> None:
    roles = one_role_each(["A01", "A02", "A03"], [["negative"], ["negative", "treatment"], ["positive", "positive"]])
    assert roles == {"A01": "negative", "A02": "treatment", "A03": "positive"}
