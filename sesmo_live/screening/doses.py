"""Dose and response: the four-parameter log-logistic curve with profile-likelihood intervals."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sesmo_live.errors import StatisticsError
from sesmo_live.screening.checks import Numbers, numbers, same_length

FEWEST_DOSES = 4
"""Different doses (zero is one) that a curve needs."""

FLAT_LEVEL = 0.05
"""A curve that is not better than a constant at this level is flat."""

STEEPNESS = (0.1, 20.0)
"""Range of the slope's size: flatter curves are lines, steeper ones steps, over any doses that are used."""

OUTSIDE = 100.0
"""An EC50 is looked for down to the lowest dose over this and up to the highest times this."""

E_STEPS = 97
B_STEPS = 25
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class DoseResponse:
    """A fitted curve f(x) = bottom + (top − bottom) / (1 + (x / ec50)^slope).

    `slope` is positive for a curve that falls with the dose (the convention of R's drc). EC50 and slope are None for a
    flat curve; where the data leave a side of its interval open, the limit there is 0 or infinity. `note` says what a
    reader must know.
    """

    ec50_um: float | None
    ec50_low_um: float | None
    ec50_high_um: float | None
    slope: float | None
    bottom: float
    top: float
    is_flat: bool
    p_flat: float
    """p-value of the F test against a constant."""
    residual_sd: float
    n_points: int
    note: str = ""

    def at(self, dose_um: ArrayLike) -> Numbers:
        """Return the curve's response at doses in µM, zero being the untreated level."""
        doses = np.asarray(dose_um, dtype=np.float64)
        if self.ec50_um is None or self.slope is None:
            return np.full(doses.shape, self.top)
        share = _share(_log_doses(doses.ravel()), np.array(self.slope), np.array(np.log(self.ec50_um)))
        return np.asarray(self.bottom + (self.top - self.bottom) * share.reshape(doses.shape), dtype=np.float64)


def fit_dose_response(
    dose_um: ArrayLike,
    response: ArrayLike,
    *,
    bottom: float | None = None,
    top: float | None = None,
    level: float = 0.95,
) -> DoseResponse:
    """Fit the four-parameter log-logistic curve to doses in µM (one a well, zero the untreated level) and responses.

    f(x) = c + (d − c) / (1 + exp(b (ln x − ln e))), drc's LL.4 (Ritz et al., PLoS ONE 10:e0146021, 2015), by least
    squares with lmfit; `bottom` and `top` hold an asymptote fixed. The interval of the EC50 is that of the profile
    likelihood: all e whose best sum of squares is at most (1 + F(level; 1, ν) / ν) times the smallest (Bates and
    Watts, Nonlinear Regression, 1988, 6.1). The curve is flat when an F test against a constant (as drc's
    `noEffect`) does not reject at 5 %. Raises StatisticsError for NaN, negative doses, fewer than four different
    doses, as many wells as parameters, and responses that are all the same.
    """
    doses, values = _checked(dose_um, response, bottom, top)
    log_doses = _log_doses(doses)
    free = 4 - (bottom is not None) - (top is not None)
    start = _Surface(log_doses, values, bottom, top).best(_log_range(doses))
    c, d, b, log_e, squares = _least_squares(log_doses, values, start, (bottom, top), _log_range(doses))
    freedom = len(values) - free
    p_flat = _flat_p(values, squares, freedom, free - 1)
    if p_flat > FLAT_LEVEL:
        mean = float(values.mean())
        deviation = float(values.std(ddof=1))
        return DoseResponse(None, None, None, None, mean, mean, True, p_flat, deviation, len(values), "flat")
    low, high = _profile(log_doses, values, bottom, top, (b, log_e, squares), freedom, level, _log_range(doses))
    if c > d and bottom is None and top is None:
        c, d, b = d, c, -b
    ec50 = float(np.exp(log_e))
    deviation = float(np.sqrt(squares / freedom))
    note = _note(ec50, doses, b)
    return DoseResponse(ec50, low, high, b, c, d, False, p_flat, deviation, len(values), note)


def _checked(
    dose_um: ArrayLike, response: ArrayLike, bottom: float | None, top: float | None
) -> tuple[Numbers, Numbers]:
    doses, values = numbers(dose_um, "doses", 0), numbers(response, "responses", 0)
    same_length(doses, values, "doses and responses")
    if (doses < 0).any():
        raise StatisticsError(f"a dose of {doses.min():g} is below zero; mend the plate map and import it again")
    different = len(np.unique(doses))
    if different < FEWEST_DOSES:
        raise StatisticsError(
            f"there are {different} different doses and at least {FEWEST_DOSES} are needed for a dose-response curve"
        )
    if len(values) < 5:
        raise StatisticsError(f"there are {len(values)} wells and at least 5 are needed for a dose-response curve")
    if np.ptp(values) == 0:
        raise StatisticsError("all responses are the same, so there is neither a curve nor an error to judge it by")
    if bottom is not None and top is not None and bottom >= top:
        raise StatisticsError(f"the fixed bottom {bottom:g} is not below the fixed top {top:g}; give others")
    return doses, values


def _log_doses(doses: Numbers) -> Numbers:
    with np.errstate(divide="ignore"):
        return np.log(doses)


def _log_range(doses: Numbers) -> tuple[float, float]:
    given = doses[doses > 0]
    return float(np.log(given.min() / OUTSIDE)), float(np.log(given.max() * OUTSIDE))


def _share(log_doses: Numbers, b: Numbers, log_e: Numbers) -> Numbers:
    """Return 1 / (1 + (x/e)^b) with the doses on the last axis; at dose zero 1 for b > 0, else 0."""
    from scipy.special import expit

    with np.errstate(invalid="ignore"):
        return np.asarray(expit(-b[..., None] * (log_doses - log_e[..., None])), dtype=np.float64)


class _Surface:
    """The sum of squares over slope and log EC50, bottom and top being the best ones (they enter linearly)."""

    def __init__(self, log_doses: Numbers, values: Numbers, bottom: float | None, top: float | None) -> None:
        self.log_doses, self.values, self.bottom, self.top = log_doses, values, bottom, top

    def squares(self, b: Numbers, log_e: Numbers) -> Numbers:
        """Return the least sum of squares for each pair; `b` and `log_e` broadcast."""
        b, log_e = np.broadcast_arrays(b, log_e)
        share = _share(self.log_doses, b, log_e)
        if self.bottom is not None and self.top is not None:
            rest = self.values - self.bottom - (self.top - self.bottom) * share
            return np.asarray((rest**2).sum(-1), dtype=np.float64)
        if self.bottom is None and self.top is None:
            x, y = share - share.mean(-1, keepdims=True), self.values - self.values.mean()
        elif self.bottom is not None:
            x, y = share, self.values - self.bottom
        else:
            x, y = 1 - share, self.values - (self.top or 0.0)
        across, along = (x * y).sum(-1), (x * x).sum(-1)
        gain = np.divide(across**2, along, out=np.zeros_like(along), where=along > 1e-12)
        return np.asarray((y**2).sum() - gain, dtype=np.float64)

    def best(self, log_range: tuple[float, float]) -> tuple[float, float]:
        """Return the best (b, log EC50) of a grid, the EC50 within the doses given and a factor of ten."""
        margin = np.log(OUTSIDE / 10)
        log_e = np.linspace(log_range[0] + margin, log_range[1] - margin, E_STEPS)
        sizes = np.geomspace(*STEEPNESS, B_STEPS)
        b = np.concatenate([-sizes[::-1], sizes])
        place = np.unravel_index(np.argmin(self.squares(b[:, None], log_e)), (len(b), len(log_e)))
        return float(b[place[0]]), float(log_e[place[1]])

    def profile(self, log_e: Numbers, sign: float) -> Numbers:
        """Return the sum of squares at each log EC50 with the best slope of this sign."""
        sizes = np.log(np.geomspace(*STEEPNESS, B_STEPS))
        grid = self.squares(sign * np.exp(sizes)[:, None], log_e)
        place = np.argmin(grid, axis=0)
        low, high = sizes[np.maximum(place - 1, 0)], sizes[np.minimum(place + 1, B_STEPS - 1)]
        best: Numbers = np.minimum(grid.min(axis=0), self._golden(sign, log_e, low, high))
        return best

    def _golden(self, sign: float, log_e: Numbers, low: Numbers, high: Numbers) -> Numbers:
        """Narrow the slope down by golden sections, for all log EC50 at once."""
        low, high = low.copy(), high.copy()
        inner, outer = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        for _ in range(14):
            left = np.less(*self.squares(sign * np.exp(np.stack([inner, outer])), log_e))
            low, high = np.where(left, low, inner), np.where(left, outer, high)
            inner, outer = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        last: Numbers = self.squares(sign * np.exp((low + high) / 2), log_e)
        return last


def _least_squares(
    log_doses: Numbers,
    values: Numbers,
    start: tuple[float, float],
    fixed: tuple[float | None, float | None],
    log_range: tuple[float, float],
) -> tuple[float, float, float, float, float]:
    """Return (c, d, b, log EC50, sum of squares) by lmfit's Levenberg-Marquardt from the grid's best point."""
    import lmfit

    share = _share(log_doses, np.array(start[0]), np.array(start[1]))
    columns = np.stack([1 - share, share], axis=-1)
    c, d = (float(x) for x in np.linalg.lstsq(columns, values, rcond=None)[0])
    parameters = lmfit.Parameters()
    for name, value, held in (("c", c, fixed[0]), ("d", d, fixed[1])):
        parameters.add(name, value=value if held is None else held, vary=held is None)
    ends = sorted(float(np.copysign(size, start[0])) for size in STEEPNESS)
    parameters.add("b", value=float(np.clip(start[0], ends[0] * 1.01, ends[1] * 0.99)), min=ends[0], max=ends[1])
    parameters.add("log_e", value=start[1], min=log_range[0], max=log_range[1])

    def residuals(found: lmfit.Parameters) -> Numbers:
        c, d, b, log_e = (found[name].value for name in ("c", "d", "b", "log_e"))
        rest: Numbers = c + (d - c) * _share(log_doses, np.array(b), np.array(log_e)) - values
        return rest

    done = lmfit.minimize(residuals, parameters, method="leastsq", calc_covar=False, ftol=1e-12, xtol=1e-12)
    c, d, b, log_e = (float(done.params[name].value) for name in ("c", "d", "b", "log_e"))
    return c, d, b, log_e, float((done.residual**2).sum())


def _flat_p(values: Numbers, squares: float, freedom: int, extra: int) -> float:
    """Return the p-value of the F test of the curve against a constant."""
    from scipy.special import fdtrc

    around = float(((values - values.mean()) ** 2).sum())
    if squares <= 1e-24 * around:
        return 0.0
    return float(fdtrc(extra, freedom, max(0.0, around - squares) / extra / (squares / freedom)))


def _profile(
    log_doses: Numbers,
    values: Numbers,
    bottom: float | None,
    top: float | None,
    found: tuple[float, float, float],
    freedom: int,
    level: float,
    log_range: tuple[float, float],
) -> tuple[float, float]:
    """Return the limits of the EC50, 0 or infinity on a side where no dose within range is excluded."""
    from scipy.special import fdtri

    surface = _Surface(log_doses, values, bottom, top)
    b, log_e, squares = found
    allowed = squares * (1 + float(fdtri(1, freedom, level)) / freedom)
    limits = []
    for end, open_end in zip(log_range, (0.0, float("inf")), strict=True):
        inside, outside = log_e, end
        for _ in range(3):  # each round narrows the crossing down to a sixteenth
            steps = np.linspace(inside, outside, 17)
            beyond = np.flatnonzero(surface.profile(steps, np.sign(b))[1:] > allowed) + 1
            if not len(beyond):
                break
            # The first crossing, seen from the estimate; a dip further out says nothing of this curve.
            inside, outside = float(steps[beyond[0] - 1]), float(steps[beyond[0]])
        limits.append(float(np.exp((inside + outside) / 2)) if outside != end or len(beyond) else open_end)
    return limits[0], limits[1]


def _note(ec50: float, doses: Numbers, b: float) -> str:
    given = doses[doses > 0]
    if ec50 < given.min() or ec50 > given.max():
        return "the EC50 lies outside the doses given: extrapolated"
    if not 1.05 * STEEPNESS[0] < abs(b) < 0.95 * STEEPNESS[1]:
        return "the slope is not determined by these doses"
    return ""
