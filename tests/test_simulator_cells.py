"""Who lives in the dish: the same cells wherever and whenever one looks."""

from dataclasses import replace

import numpy as np
import pytest

from acquisition.simulator.cells import REACH_UM, Cells, Culture, Floats, Window, debris, live_cells
from acquisition.simulator.painting import paint

DISH = Culture(seed=5, key="B03", senescent=0.3, occupancy=0.4)
WINDOW = Window(0, 0, 600, 600)


def radius_um(cells: Cells) -> Floats:
    """Return the radius of the disc of the same area."""
    return np.asarray(np.sqrt(np.mean(cells.outline.astype(float) ** 2, axis=1)))


def auc(positive: Floats, negative: Floats) -> float:
    """Return the probability that a positive ranks above a negative one."""
    return float((positive[:, None] > negative[None, :]).mean())


def test_two_windows_show_the_same_cells() -> None:
    wide = live_cells(DISH, WINDOW)
    narrow = live_cells(DISH, Window(310, 220, 420, 330))
    at = {int(i): k for k, i in enumerate(wide.ident)}
    assert len(narrow) > 5
    for k, ident in enumerate(narrow.ident):
        j = at[int(ident)]
        assert (narrow.x_um[k], narrow.y_um[k], narrow.level[k]) == (wide.x_um[j], wide.y_um[j], wide.level[j])
        assert (narrow.outline[k] == wide.outline[j]).all()


def test_seed_and_dish_decide_who_lives_there() -> None:
    levels = [live_cells(dish, WINDOW).level for dish in (DISH, replace(DISH, seed=6), replace(DISH, key="B04"))]
    assert (levels[0] == live_cells(DISH, WINDOW).level).all()
    assert not np.array_equal(levels[0], levels[1])
    assert not np.array_equal(levels[0], levels[2])


def test_cells_stay_who_and_where_they_are() -> None:
    before = live_cells(replace(DISH, hours=0), WINDOW)
    after = live_cells(replace(DISH, hours=48, senescent=0.6, occupancy=0.5), WINDOW)
    common, i, j = np.intersect1d(before.ident, after.ident, return_indices=True)
    assert len(common) > 0.9 * len(before)
    moved = np.hypot(before.x_um[i] - after.x_um[j], before.y_um[i] - after.y_um[j])
    assert 1 < np.median(moved) < 12
    assert moved.max() < 20
    assert (after.level[j] > before.level[i]).all()
    shapes = [np.corrcoef(before.outline[a], after.outline[b])[0, 1] for a, b in zip(i, j, strict=True)]
    assert np.median(shapes) > 0.85


def test_cells_creep_less_than_a_micrometre_in_an_hour() -> None:
    before, after = (live_cells(replace(DISH, hours=hours), Window(0, 0, 400, 400)) for hours in (30.0, 31.0))
    _, i, j = np.intersect1d(before.ident, after.ident, return_indices=True)
    moved = np.hypot(before.x_um[i] - after.x_um[j], before.y_um[i] - after.y_um[j])
    assert 0.05 < np.median(moved) < 1.0


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.7, 0.95])
def test_the_asked_fraction_of_cells_is_senescent(fraction: float) -> None:
    cells = live_cells(replace(DISH, senescent=fraction), Window(0, 0, 3000, 3000))
    spread = np.sqrt(fraction * (1 - fraction) / len(cells))
    assert (cells.level > 0.5).mean() == pytest.approx(fraction, abs=4 * spread)
    assert ((cells.level >= 0) & (cells.level <= 1)).all()


def test_senescent_cells_are_larger_flatter_and_more_granular_but_populations_overlap() -> None:
    cells = live_cells(replace(DISH, senescent=0.5), Window(0, 0, 2000, 2000))
    old = cells.level > 0.5
    for trait in (radius_um(cells), -cells.height_um, cells.texture, (cells.granules[:, :, 2] != 0).sum(axis=1) * 1.0):
        assert 0.75 < auc(trait[old], trait[~old]) < 0.97
    assert np.median(radius_um(cells)[old]) > 1.4 * np.median(radius_um(cells)[~old])


def test_a_poisoned_dish_loses_cells_and_keeps_the_others() -> None:
    healthy = live_cells(DISH, WINDOW)
    poisoned = live_cells(replace(DISH, occupancy=0.2, dying=0.2), WINDOW)
    alive = poisoned.ident[poisoned.alive]
    assert 0.3 * len(healthy) < len(alive) < 0.7 * len(healthy)
    assert set(alive) <= set(healthy.ident)
    assert 0 < (~poisoned.alive).sum() < len(healthy) - len(alive)


def test_nothing_grows_on_the_wall() -> None:
    cells = live_cells(replace(DISH, radius_um=300), Window(-600, -600, 600, 600))
    assert len(cells) > 20
    assert np.hypot(cells.x_um, cells.y_um).max() < 300


def test_no_cell_reaches_further_than_promised() -> None:
    cells = live_cells(replace(DISH, senescent=0.97), Window(0, 0, 2000, 2000))
    assert cells.outline.max() < REACH_UM


def test_cells_touch_but_do_not_pile_up() -> None:
    """In a crowded dish the thickness never is that of two cells on each other."""
    crowd = live_cells(replace(DISH, occupancy=0.9, senescent=0.5), WINDOW)
    bare = replace(crowd, granules=np.zeros_like(crowd.granules), texture=np.zeros(len(crowd)))
    together = paint(bare, 0, 0, (300, 300), 2.0)
    alone = [paint(_only(bare, k), 0, 0, (300, 300), 2.0) for k in range(len(bare))]
    nucleoli = 2 * 1.4  # two per cell, which may lie on each other
    assert (together <= np.max(alone, axis=0) + nucleoli).all()
    assert (np.sum(alone, axis=0) > together + 1).mean() > 0.01  # they would have piled up


def test_granules_lie_where_they_were_put() -> None:
    """A painted speck has its centre of mass at its place, between pixels too."""
    cells = _only(live_cells(DISH, Window(0, 0, 200, 200)), 0)
    at = (20.3, 17.6)
    granules = np.zeros_like(cells.granules)
    with_one = granules.copy()
    with_one[0, 0] = (*at, 1)
    frame = (cells.x_um[0] - 60, cells.y_um[0] - 60, (100, 100), 1.2)
    speck = paint(replace(cells, granules=with_one), *frame) - paint(replace(cells, granules=granules), *frame)
    y, x = np.indices(speck.shape)
    centre = (speck * x).sum() / speck.sum() * 1.2 - 60, (speck * y).sum() / speck.sum() * 1.2 - 60
    assert centre == pytest.approx(at, abs=0.02)


def _only(cells: Cells, k: int) -> Cells:
    return replace(cells, **{name: getattr(cells, name)[k : k + 1] for name in Cells.__slots__})


def test_painting_does_not_depend_on_the_window() -> None:
    """A cell looks the same in two frames that show it at different places (whole pixels apart)."""
    cells = live_cells(DISH, WINDOW)
    wide, part = paint(cells, 0, 0, (300, 300), 2.0), paint(cells, 80, 40, (150, 150), 2.0)
    np.testing.assert_allclose(part[10:-10, 10:-10], wide[20:170, 40:190][10:-10, 10:-10], atol=1e-3)


def test_debris_stays_where_it_is() -> None:
    wide, part = (debris(5, "B03", window) for window in (Window(0, 0, 2000, 2000), Window(500, 500, 700, 700)))
    assert len(wide) > len(part) > 0
    assert {tuple(speck) for speck in part} <= {tuple(speck) for speck in wide}
