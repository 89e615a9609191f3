"""Take images: of a field of a plate, of any stage position, and of labelled cultures to train on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import fft

from acquisition.simulator.cells import OUTLINE_POINTS, Cells, Culture, Floats, Window, live_cells
from acquisition.simulator.optics import Camera, Map, Optics, expose, form_image, uneven_light
from acquisition.simulator.painting import litter, paint
from acquisition.simulator.plate import (
    VirtualPlate,
    WellTruth,
    culture,
    draws,
    senescent_fraction,
    stage_position_um,
    well_at,
    well_center_um,
)
from sesmo_live.records import Pixels

MARGIN_UM = 26.0
"""What lies this far outside the frame still casts its halo into it."""


@dataclass(frozen=True, slots=True)
class View:
    """Where and how one image is taken: its corner in µm from the middle of the dish, size in px, focus, light."""

    left_um: float
    top_um: float
    shape: tuple[int, int]
    pixel_um: float
    defocus_um: float
    optics: Optics
    camera: Camera
    light_seed: int


@dataclass(frozen=True, slots=True)
class LabelledField:
    """An image with the cells planted in it.

    `pixels` is uint8 or uint16 H×W; `cells` are those whose centre lies inside, `centres` their places (x, y in px,
    float64 N×2) and `levels` their senescence (float64 N in [0, 1]; above 0.5 is senescent).
    """

    pixels: Pixels
    pixel_um: float
    defocus_um: float
    cells: Cells
    centres: Floats
    levels: Floats


def look(dish: Culture | None, view: View, rng: np.random.Generator) -> Pixels:
    """Return the image of `dish` (None: no dish there) through `view`; `rng` is the noise of the camera."""
    margin = round(MARGIN_UM / view.pixel_um)
    height, width = (fft.next_fast_len(n + 2 * margin, real=True) for n in view.shape)
    left, top = view.left_um - margin * view.pixel_um, view.top_um - margin * view.pixel_um
    thickness: Map = np.zeros((height, width), np.float32)
    if dish is not None:
        window = Window(left, top, left + width * view.pixel_um, top + height * view.pixel_um)
        thickness = paint(live_cells(dish, window), left, top, (height, width), view.pixel_um)
        thickness += litter(dish.seed, dish.key, left, top, (height, width), view.pixel_um)
    light = form_image(thickness, view.pixel_um, view.optics, view.defocus_um, view.camera.blur_px)
    inside = light[margin : margin + view.shape[0], margin : margin + view.shape[1]]
    return expose(inside, view.camera, uneven_light(*view.shape, view.light_seed), rng)


def render_field(plate: VirtualPlate, well: str, field: int, timepoint: int) -> Pixels:
    """Return the image of `field` of `well` at `timepoint` (both from 1): uint8 at 8 bits, else uint16, H×W.

    It depends on the plate alone, not on what was rendered before or where.
    """
    view = _view(plate, well, field, timepoint)
    dish = culture(plate, well, plate.hours[timepoint - 1])
    return look(dish, view, draws(plate, well, field, timepoint, "noise"))


def render_at(
    plate: VirtualPlate, x_um: float, y_um: float, hours: float = 0.0, *, z_um: float = 0.0, frame: int = 0
) -> Pixels:
    """Return what the camera shows with the stage at (`x_um`, `y_um`), the middle of the image, `z_um` off the focus.

    The cells are those of the well that lies there; between the wells the image is empty. `frame` tells apart the
    noise of two images of one place.
    """
    well = well_at(plate, x_um, y_um)
    middle = well_center_um(plate, well) if well else (x_um, y_um)
    view = _centred(plate, x_um - middle[0], y_um - middle[1], z_um)
    dish = culture(plate, well, hours) if well else None
    return look(dish, view, draws(plate, round(x_um, 3), round(y_um, 3), round(z_um, 3), hours, frame))


def visible_cells(plate: VirtualPlate, well: str, field: int, timepoint: int) -> tuple[Cells, Floats]:
    """Return the live cells with their centre in the image, and these centres (x, y in px, float64 N×2)."""
    return _inside(culture(plate, well, plate.hours[timepoint - 1]), _view(plate, well, field, timepoint))


def well_truth(plate: VirtualPlate, well: str, timepoint: int) -> WellTruth:
    """Return what was planted in `well` at `timepoint`, over all its fields; the means are NaN without any cell."""
    cells = [visible_cells(plate, well, field, timepoint)[0] for field in range(1, plate.fields + 1)]
    levels = np.concatenate([part.level for part in cells])
    hours = plate.hours[timepoint - 1]
    mean, senescent = (levels.mean(), (levels > 0.5).mean()) if len(levels) else (np.nan, np.nan)
    fraction = senescent_fraction(plate, well, hours)
    return WellTruth(well, timepoint, hours, fraction, len(levels), float(mean), float(senescent))


def training_fields(
    n: int, seed: int, *, shape: tuple[int, int] = (512, 512), pixel_um: float = 1.24
) -> Iterator[LabelledField]:
    """Yield `n` labelled images of cultures that differ in density, focus, light, gain, noise and bit depth.

    They alternate between mostly healthy and mostly senescent, as control and treated dishes do; every fifth is mixed.
    """
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        low, high = (0.2, 0.8) if k % 5 == 4 else ((0.02, 0.1), (0.75, 0.97))[k % 2]
        dying = float(rng.choice([0.0, 0.0, rng.uniform(0, 0.25)]))
        dish = Culture(seed, f"training {k}", rng.uniform(low, high), rng.uniform(0.12, 0.7), dying, rng.uniform(0, 72))
        background = rng.uniform(0.25, 0.6)
        camera = Camera(
            int(rng.choice([8, 12, 16])), rng.uniform(3000, 15000), 4.0, rng.uniform(0.4, 0.9), background, 0.02
        )
        optics = Optics(ring_width=rng.uniform(0.032, 0.048), refraction=rng.uniform(0.007, 0.009))
        scale = pixel_um * float(rng.choice([0.95, 0.975, 1.0, 1.025, 1.05]))
        view = View(0.0, 0.0, shape, scale, rng.normal(0, 6), optics, camera, int(rng.integers(2**31)))
        cells, centres = _inside(dish, view)
        yield LabelledField(look(dish, view, rng), scale, view.defocus_um, cells, centres, cells.level)


def level_at(field: LabelledField, points: Floats) -> Floats:
    """Return the level of the cell under each of `points` (x, y in px, M×2): float64 M, NaN where there is none.

    A point belongs to the cell it is nearest to in units of that cell's outline, as in the image.
    """
    if not len(field.cells):
        return np.full(len(points), np.nan)
    off = (np.asarray(points)[:, None, :] - field.centres[None, :, :]) * field.pixel_um
    step = ((np.arctan2(off[..., 1], off[..., 0]) + np.pi) * (OUTLINE_POINTS / (2 * np.pi))).astype(np.int64)
    rim = field.cells.outline[np.arange(len(field.cells))[None, :], step % OUTLINE_POINTS]
    rho = np.hypot(off[..., 0], off[..., 1]) / rim
    nearest = rho.argmin(axis=1)
    return np.where(rho.min(axis=1) < 1, field.levels[nearest], np.nan)


def _centred(plate: VirtualPlate, x_um: float, y_um: float, defocus_um: float) -> View:
    height, width = plate.shape
    corner = x_um - width * plate.pixel_um / 2, y_um - height * plate.pixel_um / 2
    return View(*corner, plate.shape, plate.pixel_um, defocus_um, plate.optics, plate.camera, plate.seed)


def _view(plate: VirtualPlate, well: str, field: int, timepoint: int) -> View:
    """Return the view of a field: the stage comes back to its place within a few µm, the focus may be lost."""
    rng = draws(plate, well, field, timepoint, "stage")
    (x, y), (x0, y0) = stage_position_um(plate, well, field), well_center_um(plate, well)
    jitter = plate.stage_jitter_um * rng.standard_normal(2)
    lost = plate.focus_loss_um * rng.choice([-1, 1]) * rng.uniform(0.7, 1.3)
    focus = plate.focus_spread_um * rng.standard_normal()
    return _centred(plate, x - x0 + jitter[0], y - y0 + jitter[1], lost if rng.random() < plate.focus_loss else focus)


def _inside(dish: Culture, view: View) -> tuple[Cells, Floats]:
    height, width = view.shape
    right, bottom = view.left_um + width * view.pixel_um, view.top_um + height * view.pixel_um
    cells = live_cells(dish, Window(view.left_um, view.top_um, right, bottom))
    centres = np.stack([cells.x_um - view.left_um, cells.y_um - view.top_um], axis=1) / view.pixel_um
    ok = cells.alive & (centres >= 0).all(axis=1) & (centres <= np.array([width - 1, height - 1])).all(axis=1)
    return replace(cells, **{name: getattr(cells, name)[ok] for name in Cells.__slots__}), centres[ok]
