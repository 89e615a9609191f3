"""Where the wells stand: useq's plate types, a calibration from three reference wells, positions and their travel."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import useq
from numpy.typing import NDArray

from acquisition.micromanager.plan import Plan
from sesmo_live.errors import ConfigError
from sesmo_live.wells import fits_plate, parse_well, well_name, well_position

PITCH_TOLERANCE = 0.03
"""Share by which a maker's distance between wells may differ from the plate type's (24 wells: 19.0 to 19.3 mm)."""

MISFIT_UM = 250.0
"""µm by which a reference well may lie beside its place on the fitted plate: farther off, it is another well."""

FRAME_OVERHEAD_S = 0.06
"""Seconds that a frame takes beside its exposure and its travel, for the estimates (measured with a demo camera)."""

MOVE_OVERHEAD_S = 0.03
"""Seconds that each move takes beside its travel, for the estimates."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Position:
    """One field of one well, and the stage position (µm) of the middle of its image."""

    well: str
    field: int
    x_um: float
    y_um: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """From the plate (µm right and up of the middle of A01) to the stage: turned, perhaps mirrored, and moved.

    `scale` is the distance between this plate's wells over its type's.
    """

    scale: float
    turn: tuple[tuple[float, float], tuple[float, float]]
    a1_um: tuple[float, float]

    @property
    def rotation_deg(self) -> float:
        """Return by how many degrees the plate's columns are turned against the stage's x, anticlockwise."""
        return math.degrees(math.atan2(self.turn[1][0], self.turn[0][0]))

    @property
    def mirrored(self) -> bool:
        """Say whether rows go along growing y of the stage (useq's plates have them along falling y)."""
        (a, b), (c, d) = self.turn
        return a * d - b * c < 0

    def to_stage(self, points: Floats) -> Floats:
        """Return the stage positions (N×2, µm) of `points` on the plate (N×2, µm)."""
        return np.asarray(self.scale * points @ np.array(self.turn).T + np.array(self.a1_um), np.float64)

    def to_plate(self, points: Floats) -> Floats:
        """Return the places on the plate (N×2, µm) of stage positions (N×2, µm)."""
        return np.asarray((points - np.array(self.a1_um)) @ np.array(self.turn) / self.scale, np.float64)


def plate_type(wells: int) -> useq.WellPlate:
    """Return useq's plate of so many wells."""
    return useq.WellPlate.from_str(f"{wells}-well")


def calibrate(wells: int, reference: Mapping[str, tuple[float, float]]) -> Calibration:
    """Return where a plate lies from the stage positions (µm) of the middles of three or more of its wells.

    Rotation, mirroring, offset and the distance between wells are fitted by least squares (Umeyama 1991). Raises
    ConfigError for fewer than three wells, for wells on one line, and where the distances do not fit the plate type.
    """
    if len(reference) < 3:
        raise ConfigError(
            f"plate.reference names {len(reference)} wells; give the stage position of the middle of three wells, "
            "such as A01, A12 and H01"
        )
    names = [parse_well(name) for name in reference]
    plate, stage = _centres(wells, names), np.array(list(reference.values()), np.float64)
    p, s = plate - plate.mean(axis=0), stage - stage.mean(axis=0)
    if np.linalg.svd(p, compute_uv=False)[1] < 1:
        raise ConfigError(
            f"the reference wells {', '.join(names)} lie on one line; take one from another row or column"
        )
    u, spread, vt = np.linalg.svd(s.T @ p)
    turn, scale = u @ vt, float(spread.sum() / (p**2).sum())
    off = np.hypot(*(s - scale * p @ turn.T).T)
    if off.max() > MISFIT_UM or abs(scale - 1) > PITCH_TOLERANCE:
        worst = int(off.argmax())
        raise ConfigError(
            f"the reference wells do not fit a plate of {wells} wells: its wells would be {scale:.1%} as far apart as "
            f"they should, and {names[worst]} {off[worst]:.0f} µm beside its place (limits ±{PITCH_TOLERANCE:.0%}, "
            f"{MISFIT_UM:.0f} µm); measure their middles again, or correct plate.wells"
        )
    a1 = stage.mean(axis=0) - scale * turn @ plate.mean(axis=0)
    (a, b), (c, d) = turn.tolist()
    x, y = (round(float(value), 6) + 0.0 for value in a1)  # no −0
    return Calibration(scale, ((a, b), (c, d)), (x, y))


def _centres(wells: int, names: Sequence[str]) -> Floats:
    """Return the middles of wells on the plate, N×2 in µm right and up of A01."""
    pitch_x, pitch_y = plate_type(wells).well_spacing
    places = [well_position(name) for name in names]
    return np.array([((column - 1) * pitch_x * 1000, -(row - 1) * pitch_y * 1000) for row, column in places])


def useq_plan(plan: Plan, calibration: Calibration | None = None) -> useq.WellPlatePlan:
    """Return the plan's wells and fields as useq's, at the calibrated place (without one: A01 at 0, 0, not turned).

    Raises ConfigError for a mirrored plate, which useq's plans cannot say.
    """
    if calibration is not None and calibration.mirrored:
        raise ConfigError(f"plate {plan.plate.name} is mirrored on this stage, which a useq plan cannot say")
    imaging, places = plan.imaging, [well_position(well) for well in plan.wells]
    width, height = (n * imaging.pixel_um for n in imaging.frame_px)
    points: useq.GridRowsColumns | useq.RandomPoints
    if imaging.pattern == "grid":
        rows = next(n for n in range(math.isqrt(imaging.fields), 0, -1) if imaging.fields % n == 0)
        points = useq.GridRowsColumns(
            rows=rows,
            columns=imaging.fields // rows,
            overlap=-imaging.gap_percent,
            fov_width=width,
            fov_height=height,
        )
    else:
        points = useq.RandomPoints(
            num_points=imaging.fields, random_seed=imaging.seed, allow_overlap=False, **_inner(plan, width, height)
        )
    plate = plate_type(plan.plate.wells)
    if calibration:
        spacing = tuple(calibration.scale * pitch for pitch in plate.well_spacing)
        plate = plate.model_copy(update={"well_spacing": spacing})
    return useq.WellPlatePlan(
        plate=plate,
        a1_center_xy=calibration.a1_um if calibration else (0.0, 0.0),
        rotation=calibration.rotation_deg if calibration else None,
        selected_wells=(tuple(row - 1 for row, _ in places), tuple(column - 1 for _, column in places)),
        well_points_plan=points,
    )


def _inner(plan: Plan, width: float, height: float) -> dict[str, float]:
    """Return the room for the middles of random fields: whole frames stay within the well."""
    plate = plate_type(plan.plate.wells)
    size_x, size_y = (1000 * size for size in plate.well_size)
    room = min(size_x, size_y) - math.hypot(width, height) if plate.circular_wells else 0.0
    wide, high = (room, room) if plate.circular_wells else (size_x - width, size_y - height)
    if min(wide, high) <= 0:
        raise ConfigError(f"a frame of {width:.0f} × {height:.0f} µm is larger than a well; correct imaging.pixel_um")
    return {"max_width": wide, "max_height": high, "fov_width": width, "fov_height": height}


def positions(plan: Plan, calibration: Calibration) -> list[Position]:
    """Return every field of a round in the order of imaging, with its stage position.

    On a turned plate the fields of a well lie along the stage's axes, as its camera does, and as useq has them.
    Raises ConfigError where a field would reach out of its well.
    """
    offsets = _offsets(plan)
    centres = _centres(plan.plate.wells, plan.wells)
    stage = (calibration.to_stage(centres)[:, None, :] + offsets[None, :, :]).reshape(-1, 2)
    places = [(well, field) for well in plan.wells for field in range(1, len(offsets) + 1)]
    return [Position(*place, float(x), float(y)) for place, (x, y) in zip(places, stage, strict=True)]


def _offsets(plan: Plan) -> Floats:
    """Return the fields' middles from their well's (N×2, µm along the stage's x and y)."""
    one = plan.model_copy(update={"imaging": plan.imaging.model_copy(update={"wells": ["A01"]})})
    offsets = np.array([(p.x or 0.0, p.y or 0.0) for p in useq_plan(one)], np.float64)
    plate = plate_type(plan.plate.wells)
    half = np.array(plan.imaging.frame_px) * plan.imaging.pixel_um / 2
    reach = np.abs(offsets) + half
    radius = np.array(plate.well_size) * 500
    out = np.hypot(*reach.T) > radius[0] if plate.circular_wells else (reach > radius).any(axis=1)
    if len(offsets) < plan.imaging.fields or out.any():
        inside = int((~out).sum())
        raise ConfigError(
            f"{inside} of {plan.imaging.fields} fields lie wholly in a well of {plan.plate.wells}; "
            "plan fewer fields, or less room between them"
        )
    return offsets


def well_under(wells: int, calibration: Calibration, x_um: float, y_um: float) -> str | None:
    """Return the well in which a stage position lies; None between the wells and off the plate."""
    plate = plate_type(wells)
    (x, y), (pitch_x, pitch_y) = calibration.to_plate(np.array([[x_um, y_um]]))[0] / 1000, plate.well_spacing
    column, row = round(x / pitch_x), round(-y / pitch_y)
    off = abs(x - column * pitch_x) / plate.well_size[0], abs(-y - row * pitch_y) / plate.well_size[1]
    inside = math.hypot(*off) <= 0.5 if plate.circular_wells else max(off) <= 0.5
    if row < 0 or column < 0 or not inside:
        return None
    name = well_name(row + 1, column + 1) if row < 52 else ""
    return name if name and fits_plate(name, wells) else None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a round takes: travel of the stage in µm, its time, and the bytes of its frames (uncompressed)."""

    frames: int
    travel_um: float
    time: timedelta
    bytes: int


def estimate(plan: Plan, places: Sequence[Position]) -> Estimate:
    """Return what a round over `places` takes."""
    xy = np.array([(place.x_um, place.y_um) for place in places])
    travel = float(np.hypot(*np.diff(xy, axis=0).T).sum()) if len(xy) > 1 else 0.0
    wells = len({place.well for place in places})
    focused = -(-wells // plan.focus.every) if plan.focus.device else 0
    moves = len(places) + (2 * wells if plan.focus.safe_z_um is not None else 0)
    seconds = travel / plan.microscope.speed_um_s + moves * MOVE_OVERHEAD_S + focused * plan.focus.seconds
    seconds += len(places) * (plan.imaging.exposure_ms / 1000 + FRAME_OVERHEAD_S)
    width, height = plan.imaging.frame_px
    return Estimate(len(places), travel, timedelta(seconds=seconds), len(places) * (2 * width * height + 4096))
