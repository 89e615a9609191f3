"""Virtual plates: dose and time, geometry, and images that follow from the seed alone."""

import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from zlib import crc32

import cv2
import numpy as np
import pytest

from acquisition.simulator import (
    Camera,
    Response,
    VirtualPlate,
    demo_plate,
    level_at,
    platemap_rows,
    render_at,
    render_field,
    training_fields,
    visible_cells,
    well_truth,
)
from acquisition.simulator.plate import (
    GEOMETRY_UM,
    acquired_at,
    culture,
    senescent_fraction,
    stage_position_um,
    well_at,
    well_center_um,
)
from sesmo_live.errors import UsageError
from sesmo_live.records import Treatment
from sesmo_live.wells import PLATE_SHAPES, well_name

DOSES = (0.0, 0.03, 0.3, 3.0)
SMALL = VirtualPlate(
    "SMALL",
    96,
    seed=11,
    treatments=tuple(Treatment(f"C{k + 3:02d}", "poison", "treatment", d, "µM", d) for k, d in enumerate(DOSES)),
    responses={"poison": Response(ec50_um=0.2, onset_hours=12, toxic_um=6.0)},
    hours=(0.0, 24.0, 72.0),
    fields=2,
    shape=(160, 200),
    density_spread=0.0,
    focus_loss=0.0,
)


def sharpness(image: np.ndarray) -> float:
    return float(cv2.Laplacian(cv2.GaussianBlur(image.astype(np.float32), (5, 5), 0), cv2.CV_32F).var())


def test_images_do_not_depend_on_order() -> None:
    first = render_field(SMALL, "C05", 2, 3)
    render_field(replace(SMALL, pixel_um=0.65), "C03", 1, 1)
    assert (first == render_field(SMALL, "C05", 2, 3)).all()
    assert first.shape == (160, 200)
    assert (first != render_field(replace(SMALL, seed=12), "C05", 2, 3)).any()


def test_another_process_sees_the_same_image() -> None:
    code = (
        "import zlib; from acquisition.simulator import demo_plate, render_field;"
        "print(zlib.crc32(render_field(demo_plate(4), 'B03', 1, 2).tobytes()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(found.stdout) == crc32(render_field(demo_plate(4), "B03", 1, 2).tobytes())


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (12, np.uint16), (16, np.uint16)])
def test_bit_depths(bits: int, dtype: type[np.unsignedinteger]) -> None:
    image = render_field(replace(SMALL, camera=Camera(bits=bits)), "C03", 1, 1)
    assert image.dtype == dtype
    assert 0.3 < np.median(image) / 2**bits < 0.5
    assert image.max() < 2**bits


def test_defocus_blurs() -> None:
    x, y = well_center_um(SMALL, "C04")
    sharp = [sharpness(render_at(SMALL, x, y, 24.0, z_um=z)) for z in (0.0, 25.0, 60.0)]
    assert sharp[0] > 1.5 * sharp[1] > 1.5 * sharp[2]


def test_focus_loss_hits_the_given_share_of_images() -> None:
    always, never = (replace(SMALL, focus_loss=p) for p in (1.0, 0.0))
    assert sharpness(render_field(always, "C03", 1, 1)) < 0.7 * sharpness(render_field(never, "C03", 1, 1))


def test_a_higher_dose_and_a_later_hour_plant_more_senescence() -> None:
    table = np.array([[well_truth(SMALL, t.well, k).expected_fraction for k in (1, 2, 3)] for t in SMALL.treatments])
    assert (np.diff(table, axis=0)[:, 1:] > 0).all()
    assert (np.diff(table, axis=1)[1:] > 0).all()
    assert (table[0] == table[0, 0]).all()
    assert table[-1, -1] > 0.8
    half = senescent_fraction(replace(SMALL, base_fraction=0.0), "C04", 1e9)
    assert half == pytest.approx(0.92 / (1 + (0.2 / 0.03) ** 1.4))


def test_truth_is_what_the_images_hold() -> None:
    truth = well_truth(SMALL, "C05", 3)
    levels = np.concatenate([visible_cells(SMALL, "C05", field, 3)[0].level for field in (1, 2)])
    assert truth.n_cells == len(levels)
    assert truth.mean_level == pytest.approx(levels.mean())
    assert truth.fraction_senescent == pytest.approx((levels > 0.5).mean())


def test_toxic_doses_thin_the_culture() -> None:
    counts = [well_truth(SMALL, well, 3).n_cells for well in ("C03", "C06")]
    deadly = replace(SMALL, responses={"poison": Response(ec50_um=0.2, onset_hours=12, toxic_um=0.1)})
    assert well_truth(deadly, "C06", 3).n_cells < 0.2 * counts[0]
    assert culture(deadly, "C06", 72.0).dying > 10 * culture(deadly, "C06", 72.0).occupancy


def test_edge_wells_differ() -> None:
    plate = replace(SMALL, edge_effect=0.2, base_fraction=0.05)
    assert culture(plate, "A05", 0.0).occupancy < 0.9 * culture(plate, "C05", 0.0).occupancy
    assert senescent_fraction(plate, "A05", 0.0) > senescent_fraction(plate, "C05", 0.0)


def test_planted_centres_lie_on_dark_cells() -> None:
    cells, centres = visible_cells(SMALL, "C03", 1, 1)
    image = cv2.GaussianBlur(render_field(SMALL, "C03", 1, 1), (5, 5), 0)
    at = np.rint(centres).astype(int)
    assert len(cells) == len(centres) > 10
    assert (image[at[:, 1], at[:, 0]] < np.median(image)).mean() > 0.9


def test_cells_keep_their_places_between_frames() -> None:
    (before, there), (after, then) = (visible_cells(SMALL, "C03", 1, k) for k in (1, 3))
    _, i, j = np.intersect1d(before.ident, after.ident, return_indices=True)
    assert len(i) > 0.7 * len(before)
    moved = np.hypot(*(there[i] - then[j]).T) * SMALL.pixel_um
    assert 0 < np.median(moved) < 15


@pytest.mark.parametrize("wells", list(PLATE_SHAPES))
def test_the_stage_finds_the_wells(wells: int) -> None:
    rows, columns = PLATE_SHAPES[wells]
    plate = VirtualPlate(wells=wells, a1_center_um=(14_000.0, 11_000.0))
    for well in ("A01", well_name(rows, columns)):
        x, y = well_center_um(plate, well)
        radius = GEOMETRY_UM[wells][1]
        assert well_at(plate, x, y) == well
        assert well_at(plate, x + 0.9 * radius, y) == well
        assert well_at(plate, x + 0.8 * radius, y + 0.8 * radius) is None
    assert well_at(plate, 14_000.0 - GEOMETRY_UM[wells][0], 11_000.0) is None


def test_fields_lie_in_the_well_side_by_side() -> None:
    plate = replace(SMALL, fields=4)
    places = [stage_position_um(plate, "C03", k) for k in (1, 2, 3, 4)]
    assert {well_at(plate, *place) for place in places} == {"C03"}
    for k, first in enumerate(places):
        for second in places[k + 1 :]:
            apart = np.abs(np.subtract(first, second))
            assert apart[0] >= 200 * 1.24 or apart[1] >= 160 * 1.24


def test_the_camera_at_a_stage_position_shows_the_field_there() -> None:
    still = replace(SMALL, stage_jitter_um=0.0, focus_spread_um=0.0)
    at_stage = render_at(still, *stage_position_um(still, "C04", 2), 24.0).astype(float)
    field = render_field(still, "C04", 2, 2).astype(float)
    assert np.corrcoef(at_stage.ravel(), field.ravel())[0, 1] > 0.98
    assert (at_stage != field).any()  # the noise is another one


def test_moving_the_stage_moves_the_image() -> None:
    x, y = well_center_um(SMALL, "C04")
    here, right = (render_at(SMALL, x + 20 * k * SMALL.pixel_um, y).astype(float) for k in (0, 1))
    assert np.corrcoef(here[:, 20:].ravel(), right[:, :-20].ravel())[0, 1] > 0.97
    assert np.corrcoef(here.ravel(), right.ravel())[0, 1] < 0.5


def test_between_the_wells_there_is_nothing() -> None:
    x, y = well_center_um(SMALL, "C04")
    empty = render_at(SMALL, x + 4_500, y + 4_500)
    assert empty.std() < 0.25 * render_at(SMALL, x, y).std()


def test_images_are_taken_one_after_the_other() -> None:
    moments = [acquired_at(SMALL, site) for site in SMALL.sites]
    assert len(set(moments)) == len(SMALL.sites) == 4 * 3 * 2
    assert moments == sorted(moments)
    assert moments[0].tzinfo is not None
    assert (moments[8] - moments[0]).total_seconds() == 24 * 3600


def test_the_demo_plate_is_as_promised() -> None:
    plate = demo_plate(3)
    rows = platemap_rows(plate)
    assert plate.name == "DEMO"
    assert len(rows) == len({row["well"] for row in rows}) == 24
    assert len({row["dose"] for row in rows if row["compound"] == "doxorubicin"}) == 6
    assert {row["role"] for row in rows} == {"negative", "positive", "treatment"}
    assert rows[0] == {"well": "A01", "compound": "DMSO", "dose": "", "unit": "", "role": "negative"}
    assert rows[6] == {"well": "B01", "compound": "doxorubicin", "dose": "0.01", "unit": "µM", "role": "treatment"}
    assert len(plate.hours) == 4
    last = {t.well: senescent_fraction(plate, t.well, plate.hours[-1]) for t in plate.treatments}
    assert last["B01"] < last["B03"] < last["B05"]
    assert last["A02"] > 0.8
    assert last["A01"] == last["A03"] < 0.12  # both on the edge: the inert compound does nothing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wells": 25}, "no plate of 25 wells; choose one of 6, 12, 24"),
        ({"start": datetime(2026, 1, 1)}, "has no time zone"),  # noqa: DTZ001 - the fault under test
        ({"treatments": (Treatment("Z01", "x"),)}, "well Z01 is outside plate SMALL"),
        ({"treatments": (Treatment("A01", "x"), Treatment("A01", "y"))}, "well A01 is outside .* or listed twice"),
    ],
)
def test_impossible_plates_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SMALL, **change)  # type: ignore[arg-type]


def test_training_fields_carry_their_labels_and_vary() -> None:
    fields = list(training_fields(6, seed=2, shape=(200, 240)))
    again = next(training_fields(1, seed=2, shape=(200, 240)))
    assert (fields[0].pixels == again.pixels).all()
    assert all(field.pixels.shape == (200, 240) for field in fields)
    assert len({len(field.levels) for field in fields}) > 3
    assert len({field.defocus_um for field in fields}) == 6
    shares = [(field.levels > 0.5).mean() for field in fields]
    assert max(shares[0], shares[2]) < 0.3 < 0.6 < min(shares[1], shares[3])
    for field in fields:
        assert (level_at(field, field.centres) == field.levels).mean() > 0.95
        assert np.isnan(level_at(field, np.array([[-500.0, -500.0]]))).all()


@pytest.mark.parametrize("kind", [0, 1])
def test_dark_spots_are_cells_in_both_populations(kind: int) -> None:
    """What the original's cropper takes (the darkest 5 % of the blurred image) lies on cells."""
    field = list(training_fields(kind + 1, seed=8, shape=(320, 320)))[kind]
    blurred = cv2.GaussianBlur(field.pixels, (5, 5), 0)
    y, x = np.nonzero(blurred < np.percentile(blurred, 5))
    inner = (np.minimum(x, y) > 40) & (np.maximum(x, y) < 280)
    on_cell = ~np.isnan(level_at(field, np.column_stack([x, y])[inner].astype(float)))
    assert on_cell.mean() > 0.9
