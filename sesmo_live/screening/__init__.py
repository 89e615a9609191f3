"""Screening statistics: pure functions on numbers and arrays; docs/statistics.md says what each answers."""

from sesmo_live.screening.controls import (
    ControlStatistics,
    control_statistics,
    controls_apart,
    percent_of_control,
    robust_z,
    robust_z_prime,
    signal_window,
    ssmd,
    z_prime,
)
from sesmo_live.screening.courses import Band, Onset, area_under_curve, control_band, onset, slope
from sesmo_live.screening.density import DensityAdjustment, density_adjusted
from sesmo_live.screening.doses import DoseResponse, fit_dose_response
from sesmo_live.screening.effects import PlateEffects, Polish, b_scores, median_polish, plate_effects
from sesmo_live.screening.hits import Effect, effect_against, false_discovery, over_plates
from sesmo_live.screening.intervals import (
    FieldSums,
    fraction_interval,
    fraction_intervals,
    mean_interval,
    mean_intervals,
)

__all__ = [
    "Band",
    "ControlStatistics",
    "DensityAdjustment",
    "DoseResponse",
    "Effect",
    "FieldSums",
    "Onset",
    "PlateEffects",
    "Polish",
    "area_under_curve",
    "b_scores",
    "control_band",
    "control_statistics",
    "controls_apart",
    "density_adjusted",
    "effect_against",
    "false_discovery",
    "fit_dose_response",
    "fraction_interval",
    "fraction_intervals",
    "mean_interval",
    "mean_intervals",
    "median_polish",
    "onset",
    "over_plates",
    "percent_of_control",
    "plate_effects",
    "robust_z",
    "robust_z_prime",
    "signal_window",
    "slope",
    "ssmd",
    "z_prime",
]
