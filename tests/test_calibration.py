"""Calibration: scores become shares, on groups that were not seen; the threshold is found, not assumed."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.calibration import calibrate, check_calibration, choose_threshold, cross_fit, fit_calibration
from models.metrics import area_under_roc, expected_calibration_error
from models.network import build_network, get_weights
from models.passport import read_passport, write_model
from models.scorer import Scorer
from sesmo_live.errors import ModelError, UsageError
from tests.figures import figure
from tests.stub import write_stub_model


def overconfident(
    n: int = 1200, temperature: float = 3.0, bias: float = 0.0, seed: int = 0
) -> tuple[NDArray[np.int_], NDArray[np.float64], list[str]]:
    """Return labels, raw scores whose log odds are too large and shifted, and 24 groups."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, n)
    labels = (rng.uniform(size=n) < 1 / (1 + np.exp(-logits))).astype(int)
    return labels, 1 / (1 + np.exp(-(logits + bias) * temperature)), [f"w{number}" for number in rng.integers(0, 24, n)]


def test_a_temperature_is_recovered_and_lowers_the_error() -> None:
    labels, raw, groups = overconfident(4000)
    calibration = fit_calibration(labels, raw, groups)
    assert calibration["method"] == "temperature"
    assert calibration["temperature"] == pytest.approx(3, rel=0.15)
    before, after = (expected_calibration_error(labels, scores) for scores in (raw, calibrate(raw, calibration)))
    assert before > 0.1
    assert after < 0.035
    assert calibration["ece_before"] == pytest.approx(before, abs=1e-4)
    assert calibration["ece_after"] == pytest.approx(after, abs=1e-4)


def test_a_shift_takes_a_bias() -> None:
    labels, raw, groups = overconfident(bias=1.5)
    calibration = fit_calibration(labels, raw, groups)
    assert calibration["method"] == "temperature with bias"
    assert calibration["bias"] == pytest.approx(-1.5, abs=0.25)
    assert expected_calibration_error(labels, calibrate(raw, calibration)) < 0.04


def test_a_bent_scale_takes_isotonic_regression_and_keeps_the_order() -> None:
    rng = np.random.default_rng(1)
    raw = rng.uniform(0.01, 0.99, 6000)
    share = np.where(raw < 0.3, 0.05, np.where(raw < 0.8, 0.6, 0.65))
    labels = (rng.uniform(size=6000) < share).astype(int)
    groups = [f"w{number % 30}" for number in range(6000)]
    calibration = fit_calibration(labels, raw, groups)
    assert calibration["method"] == "isotonic"
    after = calibrate(raw, calibration)
    assert expected_calibration_error(labels, after) < 0.03
    assert area_under_roc(labels, after) == pytest.approx(area_under_roc(labels, raw), abs=0.02)
    rising = calibrate(np.linspace(0, 1, 1001), calibration)
    assert (np.diff(rising) >= 0).all()
    assert (rising[0], rising[-1]) == (0, 1)
    check_calibration(calibration)


def test_cross_fitting_never_shows_a_group_its_own_calibration() -> None:
    labels, raw, groups = overconfident()
    seen: list[set[str]] = []

    def spy(_labels: NDArray[np.int_], part_raw: Any) -> dict[str, Any]:
        inside = {group for group, value in zip(groups, raw, strict=True) if value in set(part_raw.tolist())}
        seen.append(inside)
        return {"temperature": 1.0 + len(seen)}

    calibrated = cross_fit(labels, raw, groups, fit=spy)
    for number, inside in enumerate(seen):
        expected = calibrate(raw, {"temperature": 2.0 + number})
        for group in set(groups) - inside:
            own = np.array(groups) == group
            np.testing.assert_allclose(calibrated[own], expected[own])
    assert all(any(group not in inside for inside in seen) for group in set(groups))


def test_groups_that_were_not_seen_are_well_calibrated() -> None:
    labels, raw, groups = overconfident(bias=0.8)
    error = expected_calibration_error(labels, cross_fit(labels, raw, groups))
    figure(f"held-out calibration error {error:.3f}")
    assert error < 0.05


def test_the_threshold_is_where_the_classes_part() -> None:
    rng = np.random.default_rng(2)
    labels = (np.arange(2000) % 4 == 0).astype(int)
    scores = np.clip(rng.normal(0.15 + 0.2 * labels, 0.04), 0, 1)
    groups = [f"w{number % 20}" for number in range(2000)]
    threshold = choose_threshold(labels, scores, groups)
    assert 0.22 < threshold < 0.28
    assert ((scores >= threshold) == labels).mean() > 0.97
    assert ((scores >= 0.5) == labels).mean() < 0.76
    assert choose_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]), list("abcd")) == pytest.approx(
        0.5, abs=0.31
    )


def test_classes_that_part_perfectly_do_not_make_every_score_certain() -> None:
    labels = np.arange(40) % 2
    raw = np.where(labels, 0.97, 0.03) + np.linspace(-0.02, 0.02, 40)
    calibration = fit_calibration(labels, raw, [f"w{number // 4}" for number in range(40)])
    check_calibration(calibration)
    calibrated = calibrate(raw, calibration)
    assert 0.9 < calibrated[labels == 1].mean() < 0.99
    assert calibrate(np.array([0.5]), calibration)[0] == pytest.approx(0.5, abs=0.1)


def test_no_calibration_changes_nothing() -> None:
    raw = np.random.default_rng(0).uniform(size=50).astype(np.float32)
    np.testing.assert_array_equal(calibrate(raw, {}), raw)


def test_one_class_cannot_be_calibrated() -> None:
    with pytest.raises(UsageError, match="both controls"):
        fit_calibration(np.ones(20, int), np.linspace(0, 1, 20), ["a"] * 20)


@pytest.mark.parametrize(
    "calibration",
    [
        {"temperature": 0.0},
        {"temperature": "hot"},
        {"bias": float("nan")},
        {"x": [0, 1], "y": [0, 0.5, 1]},
        {"x": [0, 0, 1], "y": [0, 0.5, 1]},
        {"x": [0, 0.5, 1], "y": [0, 0.9, 0.2]},
        {"x": [0, 1], "y": [0, 3]},
        {"x": [0.0], "y": [0.0]},
        {"x": [0, 0.5, 1], "y": None},
        {"y": [0, 1]},
        {"x": ["0", "1"], "y": [0, 1]},
        {"x": 1, "y": 1},
        {"temperature": True},
        {"temperature": 10**400},
        {"bias": "0.1"},
        {"bias": None},
    ],
)
def test_a_calibration_that_cannot_be_applied_is_refused(calibration: dict[str, Any]) -> None:
    key = f"({'|'.join(calibration)}) .*of the calibration is out of range; install the model anew"
    with pytest.raises(ModelError, match=f"there.json: {key}"):
        check_calibration(calibration, Path("there.json"))
    with pytest.raises(ModelError, match=key):
        calibrate(np.array([0.5]), calibration)


@pytest.mark.parametrize(
    "calibration",
    [
        {},
        {"temperature": 2.5},
        {"temperature": 0.5, "bias": -1.2},
        {"x": [0.0, 0.3, 1.0], "y": [0.0, 0.7, 1.0]},
    ],
)
def test_the_scorer_applies_the_passports_calibration(tmp_path: Path, calibration: dict[str, Any]) -> None:
    draft = dataclasses.replace(read_passport(write_stub_model(tmp_path / "stub")), network="compact")
    weights = get_weights(build_network("compact", 50))
    crops = np.random.default_rng(0).integers(0, 256, (9, 50, 50)).astype(np.uint8)
    scores = []
    for number, chosen in enumerate(({}, calibration)):
        write_model(tmp_path / str(number), dataclasses.replace(draft, calibration=chosen), weights)
        scores.append(Scorer(tmp_path / str(number)).score(crops))
    assert scores[1].dtype == np.float32
    np.testing.assert_allclose(scores[1], calibrate(scores[0], calibration), atol=1e-6)
    if not calibration:
        np.testing.assert_array_equal(scores[0], scores[1])
