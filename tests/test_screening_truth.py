"""Planted truth: intervals cover it, limits hold over whole runs, onset and EC50 are found."""

import numpy as np
import pytest

from acquisition.simulator.plate import demo_plate, senescent_fraction
from sesmo_live.screening import (
    control_band,
    density_adjusted,
    effect_against,
    false_discovery,
    fit_dose_response,
    fraction_interval,
    mean_interval,
    onset,
)
from sesmo_live.screening.courses import CONTROLS, LIMITS, LOOKS, WELLS, band_limit, false_alarm_limit
from tests.figures import figure
from tests.planted import Numbers, image_wells, score_of, true_fraction

PLATES = 200


@pytest.mark.parametrize("n_fields", [2, 4, 9])
@pytest.mark.parametrize(("cells", "unequal"), [(60, 0.4), (20, 0.7)])
def test_intervals_of_200_plates_cover_the_planted_score(n_fields: int, cells: float, unequal: float) -> None:
    """95 % intervals cover 93 to 97 % of the wells of 200 plates, also where fields differ twofold in cells."""
    rng = np.random.default_rng(n_fields)
    planted = np.repeat([0.05, 0.1, 0.3, 0.6], PLATES * 6)
    wells = image_wells(rng, planted[:, None], n_fields, cells, unequal)
    truth = np.array([score_of(true_fraction(fraction)) for fraction in planted])
    limits = np.array([mean_interval(sums)[1:] for sums in wells.sums()], dtype=float)
    covered = ((limits[:, 0] <= truth) & (truth <= limits[:, 1])).reshape(4, -1).mean(axis=1)
    figure(f"{n_fields} fields of {cells:.0f} cells: {covered.mean():.1%} covered, {np.round(covered, 3)} by score")
    assert (covered > 0.93).all()
    assert covered.mean() <= 0.97


@pytest.mark.parametrize("n_fields", [2, 4, 9])
def test_intervals_of_the_fraction_senescent_cover_it(n_fields: int) -> None:
    """Those of rare cells are too wide rather than too narrow: none of 60 cells says little of a fraction of 1 %."""
    rng = np.random.default_rng(10 + n_fields)
    planted = np.repeat([0.01, 0.1, 0.5], 1500)
    wells = image_wells(rng, planted[:, None], n_fields)
    truth = np.array([true_fraction(fraction) for fraction in planted])
    found = np.array([fraction_interval(sums) for sums in wells.sums(senescent=True)], dtype=float)
    assert (found[:, 1] <= found[:, 0]).all()
    assert (found[:, 0] <= found[:, 2]).all()
    assert (found[:, 2] > found[:, 1]).all()
    covered = ((found[:, 1] <= truth) & (truth <= found[:, 2])).reshape(3, -1).mean(axis=1)
    figure(f"{n_fields} fields: fractions 1, 10, 50 % covered {np.round(covered, 3)}")
    assert (covered > 0.935).all()


def alarms(rng: np.random.Generator, plates: int, looks: int, controls: int, drift: float) -> tuple[int, int]:
    """Count plates without any effect on which any of 80 wells has an onset, and those where one is once outside."""
    found = once = 0
    course = 0.08 + drift * np.linspace(0, 1, looks)
    for _ in range(plates):
        wells = image_wells(rng, np.tile(course, (80 + controls, 1)), well_noise=0.15).means()
        band = control_band(wells[:controls], wells=80, looks=looks)
        found += any(onset(well, band) for well in wells[controls:])
        once += bool((np.abs(wells[controls:] - band.mean) > band.half_width).any())
    return found, once


@pytest.mark.parametrize(("controls", "drift"), [(8, 0.0), (16, 0.0), (16, 0.2)])
def test_false_alarms_over_a_whole_null_run(controls: int, drift: float) -> None:
    """Of 200 plates without effect, 80 wells × 100 looks each, at most 5 % have an onset anywhere."""
    found, once = alarms(np.random.default_rng(controls), PLATES, 100, controls, drift)
    figure(
        f"{controls} controls, drift {drift}: onset on {found} of {PLATES} plates; {once} have a single look outside"
    )
    assert found <= 0.05 * PLATES


def test_the_band_that_was_simulated_is_found_again() -> None:
    """One cell of the table, simulated anew with another seed; the slow twin does six."""
    found = false_alarm_limit(12, 24, 10, (0.6,), 600, seed=5)
    assert band_limit(12, 24, 10) == LIMITS[0][0][CONTROLS.index(12)]
    assert found == pytest.approx(band_limit(12, 24, 10), rel=0.06)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("controls", "wells", "looks"), [(8, 96, 10), (16, 96, 100), (10, 96, 40), (24, 384, 10)])
def test_the_whole_table_is_found_again(controls: int, wells: int, looks: int) -> None:
    found = false_alarm_limit(controls, wells, looks, (0, 0.3, 0.6, 0.8, 0.95), 800, seed=6)
    limit = band_limit(controls, wells, looks)
    figure(f"{controls} controls, {wells} wells, {looks} looks: {found:.2f} against {limit:.2f}")
    assert found == pytest.approx(limit, rel=0.08)


def test_more_wells_and_looks_widen_the_band_and_more_controls_narrow_it() -> None:
    assert [band_limit(n, 96, 100) for n in CONTROLS] == sorted(
        (band_limit(n, 96, 100) for n in CONTROLS), reverse=True
    )
    assert band_limit(16, 24, 100) < band_limit(16, 96, 100) < band_limit(16, 384, 100) < band_limit(16, 1536, 100)
    assert band_limit(16, 96, 10) < band_limit(16, 96, 100) < band_limit(16, 96, 500)
    assert band_limit(16, 6, 10) == band_limit(16, WELLS[0], LOOKS[0])


def planted_step(rng: np.random.Generator, start: int, looks: int) -> tuple[Numbers, Numbers]:
    course = np.where(np.arange(looks) < start, 0.06, 0.6)
    wells = image_wells(rng, np.vstack([np.full((16, looks), 0.06), np.tile(course, (8, 1))]), well_noise=0.15).means()
    return wells[:16], wells[16:]


def test_onset_of_a_sudden_strong_effect_is_found_to_the_round() -> None:
    rng = np.random.default_rng(3)
    errors = []
    for start in (3, 10, 25):
        for _ in range(10):
            controls, treated = planted_step(rng, start, 40)
            band = control_band(controls, wells=80)
            found = [onset(well, band) for well in treated]
            assert all(item and item.rising for item in found)
            errors += [item.look - start for item in found if item]
    figure(f"{len(errors)} wells: onset off by {min(errors)} to {max(errors)} rounds")
    assert set(errors) <= {-1, 0, 1}


def test_onset_of_the_simulators_strong_effect_is_found_within_a_round() -> None:
    """Etoposide at the highest dose; its onset is when the planted score itself leaves the band."""
    plate = demo_plate(seed=1)
    hours = np.arange(0, 73, 4.0)
    doses = {item.well: item.dose_um or 0 for item in plate.treatments if item.compound == "etoposide"}
    strongest = max(doses, key=lambda well: doses[well])
    planted = np.array([senescent_fraction(plate, strongest, hour) for hour in hours])
    rng = np.random.default_rng(4)
    errors = []
    for _ in range(PLATES):
        courses = np.vstack([np.full((16, len(hours)), plate.base_fraction), planted[None, :]])
        wells = image_wells(rng, courses, fields=4, cells=120, well_noise=0.1).means()
        band = control_band(wells[:16], wells=80)
        truth = np.array([score_of(true_fraction(fraction)) for fraction in planted])
        known = int(np.flatnonzero(truth - band.mean > band.half_width)[0])
        found = onset(wells[16], band)
        errors.append(found.look - known if found else len(hours))
    share = float(np.mean(np.abs(errors) <= 1))
    figure(f"onset within one round of 4 h in {share:.1%} of {PLATES} plates, mean error {np.mean(errors):+.2f} rounds")
    assert share >= 0.99


@pytest.mark.parametrize("slope", [1.5, -1.0])
def test_ec50_lies_within_its_interval(slope: float) -> None:
    """Eight doses and zero, in triplicate: of 100 curves each way at least 93 % have the truth within the interval."""
    rng = np.random.default_rng(5)
    doses = np.repeat([0, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30], 3)
    covered = []
    for _ in range(100):
        ec50 = float(10 ** rng.uniform(-1, 0.5))
        share = 1 / (1 + (doses / ec50) ** abs(slope))
        response = 0.15 + 0.5 * (share if slope > 0 else 1 - share) + 0.04 * rng.standard_normal(len(doses))
        fit = fit_dose_response(doses, response)
        assert fit.slope is not None
        assert fit.slope * slope > 0
        assert fit.ec50_low_um is not None
        assert fit.ec50_high_um is not None
        covered.append(fit.ec50_low_um <= ec50 <= fit.ec50_high_um)
    figure(f"slope {slope}: EC50 within its interval in {np.mean(covered):.0%}")
    assert np.mean(covered) >= 0.93


def test_curves_without_effect_are_flat() -> None:
    rng = np.random.default_rng(6)
    doses = np.repeat([0, 0.1, 0.3, 1, 3, 10], 3)
    flat = [fit_dose_response(doses, 0.2 + 0.03 * rng.standard_normal(len(doses))).is_flat for _ in range(100)]
    figure(f"{np.mean(flat):.0%} of 100 curves without effect are called flat")
    assert np.mean(flat) >= 0.85


def test_hits_hold_the_false_discovery_rate() -> None:
    """300 screens of 60 idle and 20 active compounds in one well each, 16 negative wells."""
    rng = np.random.default_rng(7)
    shares, found = [], []
    for _ in range(300):
        negative = 0.2 + 0.02 * rng.standard_normal(16)
        wells = 0.2 + 0.02 * rng.standard_normal(80) + np.where(np.arange(80) < 20, 0.12, 0)
        q = false_discovery([effect_against([well], negative).p for well in wells])
        called = q < 0.05
        shares.append(called[20:].sum() / max(1, called.sum()))
        found.append(called[:20].mean())
    figure(f"false among the called {np.mean(shares):.1%}, active found {np.mean(found):.0%}")
    assert np.mean(shares) <= 0.05
    assert np.mean(found) > 0.9


def test_a_score_that_only_follows_density_is_levelled() -> None:
    rng = np.random.default_rng(8)
    low_cells = rng.uniform(100, 400, 24)
    cells = np.array([150.0, 240.0, 350.0, 40.0])
    noise = 0.005
    low = 0.3 - 0.05 * np.log2(low_cells / 200) + noise * rng.standard_normal(24)
    plain = 0.3 - 0.05 * np.log2(cells / 200) + np.array([0, 0.2, 0, 0])
    found = density_adjusted(plain, cells, low, low_cells)
    assert found.slope == pytest.approx(-0.05, abs=0.006)
    level = 0.3 - 0.05 * np.log2(found.usual_cells / 200)
    assert found.adjusted - level == pytest.approx([0, 0.2, 0, 0], abs=0.02)
    assert found.extrapolated.tolist() == [False, False, False, True]
