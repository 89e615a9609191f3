"""Virtual plates: wells, compounds, dose and time, geometry, and the truth that is planted in them."""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property

import numpy as np

from acquisition.simulator.cells import Culture
from acquisition.simulator.optics import Camera, Optics
from sesmo_live.errors import UsageError
from sesmo_live.records import Role, Site, Treatment
from sesmo_live.wells import PLATE_SHAPES, fits_plate, well_name, well_position

GEOMETRY_UM = {
    6: (39_120.0, 17_400.0),
    12: (26_010.0, 11_050.0),
    24: (19_300.0, 7_800.0),
    48: (13_080.0, 5_500.0),
    96: (9_000.0, 3_200.0),
    384: (4_500.0, 1_650.0),
    1536: (2_250.0, 765.0),
}
"""Distance between wells and radius of a well in µm, by number of wells (rounded from the makers' drawings)."""


@dataclass(frozen=True, slots=True)
class Response:
    """What a compound does to cells.

    The fraction of senescent cells rises from the base to `top` along a Hill curve (half at `ec50_um`, slope
    `hill`), reached half at `onset_hours` after treatment; half of the cells have died `onset_hours` after
    treatment with far more than `toxic_um` (the dose that kills half of them in the end).
    """

    ec50_um: float
    hill: float = 1.4
    top: float = 0.92
    onset_hours: float = 24.0
    toxic_um: float = math.inf


@dataclass(frozen=True, slots=True)
class WellTruth:
    """What was planted in one well at one time point.

    `expected_fraction` is the culture's fraction of senescent cells; the other figures are of the live cells whose
    centre lies in one of the images.
    """

    well: str
    timepoint: int
    hours: float
    expected_fraction: float
    n_cells: int
    mean_level: float
    fraction_senescent: float


@dataclass(frozen=True)
class VirtualPlate:
    """A plate under the virtual microscope; frozen, and every image follows from it and its `seed` alone.

    Fields and time points count from 1. Well A01 has its middle at `a1_center_um` of the stage; columns go along x,
    rows along y, both growing. `density` is the fraction of places taken at the start (0.35: about 250 cells per
    mm²). `edge_effect` is the loss of density and the gain of base senescence in the outermost wells. An image is
    out of focus by `focus_loss_um` with probability `focus_loss`, else by a spread of `focus_spread_um`.
    """

    name: str = "VIRTUAL"
    wells: int = 24
    seed: int = 1
    treatments: tuple[Treatment, ...] = ()
    responses: Mapping[str, Response] = field(default_factory=dict)
    hours: tuple[float, ...] = (0.0,)
    fields: int = 1
    shape: tuple[int, int] = (512, 512)
    pixel_um: float = 1.24
    channel: str = "Phase"
    start: datetime = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
    seconds_per_image: float = 2.0
    base_fraction: float = 0.06
    density: float = 0.35
    density_spread: float = 0.12
    edge_effect: float = 0.1
    stage_jitter_um: float = 3.0
    focus_spread_um: float = 2.5
    focus_loss: float = 0.02
    focus_loss_um: float = 60.0
    a1_center_um: tuple[float, float] = (0.0, 0.0)
    optics: Optics = field(default_factory=Optics)
    camera: Camera = field(default_factory=Camera)

    def __post_init__(self) -> None:
        if self.wells not in PLATE_SHAPES:
            raise UsageError(
                f"there is no plate of {self.wells} wells; choose one of {', '.join(map(str, PLATE_SHAPES))}"
            )
        if self.start.tzinfo is None:
            raise UsageError(f"the start {self.start} of plate {self.name} has no time zone; give one")
        names = [treatment.well for treatment in self.treatments]
        for well in names:
            if not fits_plate(well, self.wells) or names.count(well) > 1:
                raise UsageError(f"well {well} is outside plate {self.name} or listed twice; list each well once")

    @property
    def sites(self) -> list[Site]:
        """Return every image of the plate in the order of acquisition: time points, then wells, then fields."""
        return [
            Site(self.name, treatment.well, number, timepoint, self.channel)
            for timepoint in range(1, len(self.hours) + 1)
            for treatment in self.treatments
            for number in range(1, self.fields + 1)
        ]

    @cached_property
    def by_well(self) -> dict[str, Treatment]:
        """Return the treatment of each imaged well."""
        return {treatment.well: treatment for treatment in self.treatments}


def draws(plate: VirtualPlate, *words: object) -> np.random.Generator:
    """Return the random numbers that belong to `words` (a well, a field …) of `plate` and to nothing else."""
    return np.random.default_rng([plate.seed, zlib.crc32(repr(words).encode())])


def senescent_fraction(plate: VirtualPlate, well: str, hours: float) -> float:
    """Return the planted fraction of senescent cells (level > 0.5) of `well`, `hours` after the start of the plate."""
    base = plate.base_fraction + 0.3 * plate.edge_effect * _is_edge(plate, well)
    response, dose = _response(plate, well)
    reached = _hill(dose, response.ec50_um, response.hill) * _onset(hours, response.onset_hours) if response else 0.0
    return base + (max(response.top, base) - base) * reached if response else base


def culture(plate: VirtualPlate, well: str, hours: float) -> Culture:
    """Return the state of `well` at `hours`: growth slows with senescence, toxic doses take cells away.

    A well without a treatment is there too, and untreated.
    """
    fraction = senescent_fraction(plate, well, hours)
    seeded = plate.density * math.exp(plate.density_spread * draws(plate, well, "density").standard_normal())
    seeded *= 1 - plate.edge_effect * _is_edge(plate, well)
    grown = min(seeded * 2 ** (hours / 72 * (1 - fraction)), 0.9)
    response, dose = _response(plate, well)
    killed = _hill(dose, response.toxic_um, 2.0) * _onset(hours, response.onset_hours) if response else 0.0
    radius = GEOMETRY_UM[plate.wells][1]
    return Culture(plate.seed, well, fraction, grown * (1 - killed), grown * killed, hours, radius)


def _response(plate: VirtualPlate, well: str) -> tuple[Response | None, float]:
    treatment = plate.by_well.get(well)
    if treatment is None or treatment.dose_um is None:
        return None, 0.0
    return plate.responses.get(treatment.compound), treatment.dose_um


def _hill(dose_um: float, half_um: float, slope: float) -> float:
    return 0.0 if dose_um <= 0 else 1 / (1 + (half_um / dose_um) ** slope)


def _onset(hours: float, half_hours: float) -> float:
    """Return the part of the effect reached after `hours`: nothing at first, half at `half_hours`, all in the end."""
    return 0.0 if hours <= 0 else 1 / (1 + (half_hours / hours) ** 3)


def _is_edge(plate: VirtualPlate, well: str) -> bool:
    (row, column), (rows, columns) = well_position(well), PLATE_SHAPES[plate.wells]
    return plate.wells > 6 and (row in (1, rows) or column in (1, columns))


def well_center_um(plate: VirtualPlate, well: str) -> tuple[float, float]:
    """Return the stage position (x, y in µm) of the middle of `well`."""
    (row, column), pitch = well_position(well), GEOMETRY_UM[plate.wells][0]
    return plate.a1_center_um[0] + (column - 1) * pitch, plate.a1_center_um[1] + (row - 1) * pitch


def well_at(plate: VirtualPlate, x_um: float, y_um: float) -> str | None:
    """Return the well under the stage position (x, y in µm); None between the wells and off the plate."""
    (rows, columns), (pitch, radius) = PLATE_SHAPES[plate.wells], GEOMETRY_UM[plate.wells]
    x, y = x_um - plate.a1_center_um[0], y_um - plate.a1_center_um[1]
    column, row = round(x / pitch), round(y / pitch)
    if not (0 <= row < rows and 0 <= column < columns) or math.hypot(x - column * pitch, y - row * pitch) > radius:
        return None
    return well_name(row + 1, column + 1)


def stage_position_um(plate: VirtualPlate, well: str, field: int) -> tuple[float, float]:
    """Return the intended stage position (x, y in µm) of field 1, 2 … of `well`: a square of adjoining fields."""
    side = math.isqrt(plate.fields - 1) + 1
    row, column = divmod(field - 1, side)
    x, y = well_center_um(plate, well)
    height, width = plate.shape
    step_x, step_y = 1.1 * width * plate.pixel_um, 1.1 * height * plate.pixel_um
    return x + (column - (side - 1) / 2) * step_x, y + (row - (side - 1) / 2) * step_y


def acquired_at(plate: VirtualPlate, site: Site) -> datetime:
    """Return when the image of `site` was taken, with zone: wells are imaged one after the other."""
    order = [treatment.well for treatment in plate.treatments].index(site.well) * plate.fields + site.field - 1
    return plate.start + timedelta(hours=plate.hours[site.timepoint - 1], seconds=order * plate.seconds_per_image)


def platemap_rows(plate: VirtualPlate) -> list[dict[str, str]]:
    """Return the plate map, one row a treated well: well, compound, dose, unit, role, as written to a CSV."""
    return [
        {
            "well": treatment.well,
            "compound": treatment.compound,
            "dose": "" if treatment.dose is None else f"{treatment.dose:g}",
            "unit": treatment.dose_unit,
            "role": treatment.role,
        }
        for treatment in plate.treatments
    ]


def demo_plate(seed: int = 1) -> VirtualPlate:
    """Return plate DEMO: 24 wells, doxorubicin in six doses, twice; an inert compound; both controls; 0 to 72 h."""
    dmso, etoposide = Treatment("", "DMSO", "negative"), _micromolar("etoposide", 10, "positive")
    low, high = _micromolar("metformin", 1), _micromolar("metformin", 10)
    doses = [_micromolar("doxorubicin", dose) for dose in (0.01, 0.03, 0.1, 0.3, 1, 3)]
    rows = (
        [dmso, etoposide, low, dmso, etoposide, high],
        doses,
        doses[::-1],
        [etoposide, high, dmso, etoposide, low, dmso],
    )
    treatments = tuple(
        replace(what, well=well_name(row, column))
        for row, line in enumerate(rows, 1)
        for column, what in enumerate(line, 1)
    )
    responses = {
        "doxorubicin": Response(ec50_um=0.12, top=0.9, onset_hours=26, toxic_um=4.0),
        "etoposide": Response(ec50_um=1.0, hill=2, top=0.93, onset_hours=18),
    }
    return VirtualPlate("DEMO", 24, seed, treatments, responses, hours=(0.0, 24.0, 48.0, 72.0), fields=2)


def _micromolar(compound: str, dose_um: float, role: Role = "treatment") -> Treatment:
    return Treatment("", compound, role, dose_um, "µM", dose_um)
