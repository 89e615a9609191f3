"""From a network's output to a probability that can be believed, and the threshold between healthy and senescent."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.metrics import expected_calibration_error, group_numbers, log_loss
from models.splits import grouped_folds
from sesmo_live.errors import ModelError, UsageError

Floats = NDArray[np.floating]
Calibration = dict[str, Any]
"""`method` and its numbers, as a passport carries them: `temperature`, `bias`, or `x` and `y` of a rising line."""

FOLDS = 5
GAIN = 0.01
"""A calibration with more freedom must lower the log loss of groups it has not seen by this share to be chosen."""

_ISOTONIC_CELLS = 500
"""Isotonic regression is tried with at least so many cells a class; with fewer it follows their noise."""
_WIDEST = 3.0
"""Logarithm of the highest temperature, and its negative of the lowest."""
_DRAWS = 200


def fit_calibration(labels: NDArray[np.int_], raw: Floats, groups: Sequence[str], seed: int = 0) -> Calibration:
    """Return the calibration of raw P(senescent) that serves groups it has not seen best, the plainest that does.

    Tried are a temperature (Guo et al., ICML 2017), a temperature with a bias (Platt, 1999) and, with cells enough,
    isotonic regression (Zadrozny and Elkan, KDD 2002). Raises UsageError where a class is missing.
    """
    if set(np.unique(labels).tolist()) != {0, 1}:
        raise UsageError("calibration needs healthy and senescent cells; give both controls")
    methods = dict(_METHODS)
    if np.bincount(labels, minlength=2).min() < _ISOTONIC_CELLS:
        del methods["isotonic"]
    chosen = next(iter(methods))
    if min(len(set(group_numbers(groups)[labels == label])) for label in (0, 1)) >= 2:
        losses = {
            name: log_loss(labels, cross_fit(labels, raw, groups, seed=seed, fit=fit)) for name, fit in methods.items()
        }
        for name, loss in losses.items():
            if loss < losses[chosen] * (1 - GAIN):
                chosen = name
    calibration = methods[chosen](labels, raw)
    after = calibrate(raw, calibration)
    return {
        **calibration,
        "n_cells": len(labels),
        "ece_before": round(expected_calibration_error(labels, raw), 4),
        "ece_after": round(expected_calibration_error(labels, after), 4),
    }


def cross_fit(
    labels: NDArray[np.int_],
    raw: Floats,
    groups: Sequence[str],
    *,
    seed: int = 0,
    fit: Callable[[NDArray[np.int_], Floats], Calibration] | None = None,
) -> NDArray[np.float64]:
    """Return each cell's calibrated probability, from a calibration fitted to other groups than its own."""
    fold = grouped_folds(labels, groups, FOLDS, seed)
    names = np.asarray(groups, str)
    calibrated = np.empty(len(labels))
    for number in range(int(fold.max()) + 1):
        out = fold == number
        if fit is None:
            calibration = fit_calibration(labels[~out], raw[~out], names[~out].tolist(), seed)
        else:
            calibration = fit(labels[~out], raw[~out])
        calibrated[out] = calibrate(raw[out], calibration)
    return calibrated


def calibrate(raw: Floats, calibration: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return calibrated probabilities (float64 N) of raw ones; without a calibration they stay what they are.

    Raises ModelError for a calibration that cannot be read.
    """
    check_calibration(calibration)
    values = np.asarray(raw, np.float64)
    if "temperature" in calibration:
        values = _sigmoid(_logit(values) / calibration["temperature"] + calibration.get("bias", 0.0))
    return _isotonic(values, calibration)


def calibrate_rest(scores: NDArray[np.float32], calibration: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return scores to which temperature and bias were applied already, calibrated wholly; untouched by default."""
    return _isotonic(scores, calibration).astype(np.float32) if "x" in calibration else scores


def check_calibration(calibration: Mapping[str, Any], where: Path = Path("passport.json")) -> None:
    """Raise ModelError, which names the passport `where` it stands and the key, unless a calibration can be applied."""
    temperature, bias = calibration.get("temperature", 1.0), calibration.get("bias", 0.0)
    x, y = calibration.get("x"), calibration.get("y")
    for key, value, valid in (
        ("temperature", temperature, _is_number(temperature) and temperature > 0),
        ("bias", bias, _is_number(bias)),
        ("x", x, x is None or _rises(x, strictly=True)),
        ("y", y, (x is None) == (y is None) and (x is None or y is None or (_rises(y) and len(y) == len(x)))),
    ):
        if not valid:
            shown = "of its line" if isinstance(value, list | tuple) else repr(value)
            raise ModelError(f"{where}: {key} {shown} of the calibration is out of range; install the model anew")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9


def _rises(values: Any, *, strictly: bool = False) -> bool:
    """Say whether `values` are two or more numbers in [0, 1], none below (or, `strictly`, equal to) the one before."""
    if not isinstance(values, list | tuple) or len(values) < 2 or not all(map(_is_number, values)):
        return False
    steps = np.diff(values)
    inside = bool(values[0] >= 0 and values[-1] <= 1)
    return inside and bool((steps > 0 if strictly else steps >= 0).all())


def choose_threshold(labels: NDArray[np.int_], scores: Floats, groups: Sequence[str], seed: int = 0) -> float:
    """Return the score from which a cell is called senescent: where the balanced accuracy is highest.

    It is the median over draws of whole groups, so that no single group decides.
    """
    group = group_numbers(groups)
    values, place = np.unique(scores, return_inverse=True)
    limits = np.concatenate([[values[0]], (values[1:] + values[:-1]) / 2])
    n_groups = int(group.max()) + 1
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=_DRAWS)
    best = [
        limit
        for count in (np.ones(n_groups), *counts)
        if (limit := _best_limit(labels, place, limits, count[group])) is not None
    ]
    return round(float(np.clip(np.median(best), 0, 1)), 6)


def _best_limit(
    labels: NDArray[np.int_], place: NDArray[np.intp], limits: Floats, weights: NDArray[np.generic]
) -> float | None:
    """Return the limit of highest balanced accuracy, the middle one of equals; None where a class is missing."""
    ones, zeros = (np.bincount(place, weights * (labels == label), minlength=len(limits)) for label in (1, 0))
    if not ones.sum() or not zeros.sum():
        return None
    below = [np.cumsum(count) - count for count in (ones, zeros)]
    gain = below[1] / zeros.sum() - below[0] / ones.sum()
    equals = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(limits[equals[len(equals) // 2]])


def _fit_temperature(labels: NDArray[np.int_], raw: Floats) -> Calibration:
    loss = _margin_loss(labels, raw)
    (logarithm,) = _least(lambda v: loss(v[0], 0.0), 1)
    return {"method": "temperature", "temperature": _in_range(logarithm)}


def _fit_platt(labels: NDArray[np.int_], raw: Floats) -> Calibration:
    loss = _margin_loss(labels, raw)
    logarithm, bias = _least(lambda v: loss(v[0], v[1]), 2)
    bias = round(float(np.clip(bias, -10, 10)), 6)
    return {"method": "temperature with bias", "temperature": _in_range(logarithm), "bias": bias}


def _fit_isotonic(labels: NDArray[np.int_], raw: Floats) -> Calibration:
    """Return a rising line through the middles of the blocks of isotonic regression, so that scores keep their order.

    Source: Oron and Flournoy, Stat Biopharm Res 9:258 (2017), centred isotonic regression.
    """
    from scipy.optimize import isotonic_regression  # scipy takes a moment to load; scoring needs none of it

    order = np.argsort(raw, kind="stable")
    fitted = isotonic_regression(labels[order].astype(np.float64))
    starts = fitted.blocks[:-1]
    sizes = np.diff(fitted.blocks)
    x = np.add.reduceat(np.asarray(raw, np.float64)[order], starts) / sizes
    # A block without a cell of one kind is not proof that there are none: add one cell of each kind to it.
    y = (np.add.reduceat(labels[order].astype(np.float64), starts) + 0.5) / (sizes + 1)
    x, first = np.unique(np.concatenate([[0.0], x.clip(1e-6, 1 - 1e-6).round(6), [1.0]]), return_index=True)
    y = np.maximum.accumulate(np.concatenate([[0.0], y, [1.0]])[first])
    return {"method": "isotonic", "x": x.tolist(), "y": y.round(6).tolist()}


_METHODS: dict[str, Callable[[NDArray[np.int_], Floats], Calibration]] = {
    "temperature": _fit_temperature,
    "temperature with bias": _fit_platt,
    "isotonic": _fit_isotonic,
}


def _margin_loss(labels: NDArray[np.int_], raw: Floats) -> Callable[[float, float], float]:
    """Return the log loss as a function of a temperature's logarithm and a bias.

    The targets are Platt's, a little off 0 and 1: classes that these cells part perfectly would else make every score
    certain.
    """
    logits = _logit(np.asarray(raw, np.float64))
    n_zeros, n_ones = np.bincount(labels, minlength=2)
    targets = np.where(labels == 1, (n_ones + 1) / (n_ones + 2), 1 / (n_zeros + 2))

    def loss(logarithm: float, bias: float) -> float:
        margin = logits / np.exp(np.clip(logarithm, -_WIDEST, _WIDEST)) + bias
        return float((np.logaddexp(0, margin) - targets * margin).mean())

    return loss


def _least(loss: Callable[[NDArray[np.float64]], float], n: int) -> list[float]:
    """Return the `n` numbers that make the loss least, looked for from zero."""
    from scipy.optimize import minimize

    return [float(value) for value in minimize(loss, np.zeros(n), method="Nelder-Mead").x]


def _in_range(logarithm: float) -> float:
    return round(float(np.exp(np.clip(logarithm, -_WIDEST, _WIDEST))), 6)


def _isotonic(values: Floats, calibration: Mapping[str, Any]) -> NDArray[np.float64]:
    if "x" not in calibration:
        return np.asarray(values, np.float64)
    return np.asarray(np.interp(values, calibration["x"], calibration["y"]), np.float64)


def _logit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    kept = values.clip(1e-7, 1 - 1e-7)
    return np.asarray(np.log(kept / (1 - kept)))


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.exp(-np.logaddexp(0, -values)))
