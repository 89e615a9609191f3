"""What the API's answers about whole plates and compounds look like; docs/statistics.md says what each number is."""

from dataclasses import dataclass

from sesmo_live.web.shapes import HistoryRow


@dataclass(frozen=True, slots=True)
class StatisticsRow:
    """A line of `sesmo-live plate --statistics`: how good a plate is at one time point."""

    timepoint: int
    hours: float | None
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
    edge: float | None
    edge_p: float | None
    row_p: float | None
    column_p: float | None
    model: str


@dataclass(frozen=True, slots=True)
class CourseRow:
    """A line of `sesmo-live timecourse --onset`: when a well left the control band, its slope and its area."""

    well: str
    role: str
    compound: str
    dose: float | str | None
    dose_unit: str
    looks: int
    onset_timepoint: int | None
    onset_hours: float | None
    direction: str | None
    slope_per_hour: float | None
    slope_low: float | None
    slope_high: float | None
    area_over_negative: float | None
    model: str


@dataclass(frozen=True, slots=True)
class HitRow:
    """A line of `sesmo-live hits`: a compound at a dose against the negative controls of its plate."""

    rank: int
    compound: str
    dose: str
    plates: int
    wells: int
    score: float
    effect: float
    effect_low: float | None
    effect_high: float | None
    effect_sd: float
    p: float
    q: float
    hit: bool
    percent_of_control: float | None
    cells_percent: float
    toxic: bool
    model: str


@dataclass(frozen=True, slots=True)
class DoseRow:
    """A fitted dose-response curve of a compound on a plate at a time point; a flat one has no EC50."""

    compound: str
    plate: str
    run: str
    timepoint: int
    hours: float | None
    ec50: float | None
    ec50_low: float | None
    ec50_high: float | None
    unit: str
    slope: float | None
    bottom: float
    top: float
    is_flat: bool
    p_flat: float
    doses: int
    wells: int
    note: str
    model: str


@dataclass(frozen=True, slots=True)
class BridgeRow(HistoryRow):
    """A line of `sesmo-live compound --bridge`: with percent of control, and the control wells behind it."""

    percent_of_control: float | None
    mean_negative: float | None
    n_negative: int
    mean_positive: float | None
    n_positive: int


@dataclass(frozen=True, slots=True)
class CompareRow:
    """A line of `sesmo-live compare`: a well at a time point under two models."""

    plate: str
    run: str
    well: str
    timepoint: int
    score_a: float | None
    score_b: float | None
    difference: float | None
    n_cells_a: int
    n_cells_b: int
