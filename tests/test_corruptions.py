"""The corruption suite: strongly spoilt fields are refused, good ones are not; virtual cells and real ones."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta

from acquisition.pictures import read_picture
from acquisition.simulator import demo_plate, render_field, training_fields
from acquisition.simulator.plate import VirtualPlate, draws
from models.convert import to_uint8
from models.corruptions import CORRUPTIONS, full_scale
from models.cropper import crop_dark_or_bright_cells
from models.quality import measure_field
from models.refusal import reference_of, unfit
from sesmo_live.records import Pixels
from tests.figures import figure

Fold = tuple[Sequence[Pixels], Sequence[Pixels]]
"""Training fields, and fields of other groups."""


def crops_of(pixels: Pixels) -> NDArray[np.uint8]:
    return crop_dark_or_bright_cells(to_uint8(pixels, "percentile-0.35-99.65"))[0]


def is_refused(pixels: Pixels, reference: dict[str, Any]) -> bool:
    return bool(unfit(measure_field(pixels, crops_of(pixels)), reference))


def interval(hits: int, n: int) -> str:
    """Return hits of n with the exact (Clopper–Pearson) 95 % interval."""
    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(0.975, hits + 1, n - hits))
    return f"{hits}/{n} ({low:.1%} to {high:.1%})"


def measure_suite(name: str, folds: Iterable[Fold], step: int = 1) -> tuple[float, float]:
    """Print the table of a set of fields; return the shares refused of good and of strongly spoilt fields."""
    good: list[bool] = []
    strong: dict[str, list[bool]] = {corruption: [] for corruption in CORRUPTIONS}
    mild: dict[str, list[bool]] = {corruption: [] for corruption in CORRUPTIONS}
    for seen, unseen in folds:
        reference = reference_of((field, crops_of(field)) for field in seen)
        good += [is_refused(field, reference) for field in unseen]
        for number, field in enumerate(unseen[::step]):
            for corruption, (apply, gentle, much, _) in CORRUPTIONS.items():
                rng = np.random.default_rng(number)
                strong[corruption].append(is_refused(apply(field, much, rng), reference))
                if gentle is not None:
                    mild[corruption].append(is_refused(apply(field, gentle, rng), reference))
    everything = [hit for hits in strong.values() for hit in hits]
    lines = [f"{name}: good {interval(sum(good), len(good))}, spoilt {interval(sum(everything), len(everything))}"]
    for corruption, hits in strong.items():
        gentle_hits = f", mildly {sum(mild[corruption])}/{len(mild[corruption])}" if mild[corruption] else ""
        lines.append(f"  {corruption}: {interval(sum(hits), len(hits))}{gentle_hits}")
    figure("" + "\n".join(lines))
    return float(np.mean(good)), float(np.mean(everything))


def virtual(n: int, seed: int) -> list[Pixels]:
    return [field.pixels for field in training_fields(n, seed)]


def t98g(shared: Path) -> list[Pixels]:
    """Return the eight phase-contrast fields, halved so that a cell fits a crop of 50 px."""
    paths = sorted((shared / "data/phase_instances/usiigaci_t98g").glob("*/raw.tif"))
    return [
        np.asarray(cv2.resize(read_picture(path), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint16)
        for path in paths
    ]


def phase_frames(shared: Path) -> list[Pixels]:
    folder = shared / "data/timelapse_treated/cellphe_mdamb231_docetaxel/images"
    return [read_picture(path) for path in sorted(folder.glob("*.tif"))]


def lost_focus(plate: VirtualPlate, well: str, field: int, timepoint: int) -> bool:
    """Say whether the virtual stage lost the focus of a field, drawing as the simulator does."""
    rng = draws(plate, well, field, timepoint, "stage")
    rng.standard_normal(2)
    rng.choice([-1, 1])
    rng.uniform(0.7, 1.3)
    rng.standard_normal()
    return bool(rng.random() < plate.focus_loss)


def test_virtual_fields() -> None:
    good, strong = measure_suite("virtual", [(virtual(50, 20_261_122), virtual(16, 77))], step=4)
    assert good <= 1 / 16
    assert strong >= 0.95


@pytest.mark.slow
def test_many_virtual_fields() -> None:
    good, strong = measure_suite("virtual", [(virtual(240, 20_261_122), virtual(150, 77))], step=3)
    assert good <= 0.02
    assert strong >= 0.95


@pytest.mark.realdata
@pytest.mark.parametrize("folds", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_real_phase_contrast(folds: int, shared: Path) -> None:
    """Eight fields of T98G cells, the others of which make the reference each time."""
    fields = t98g(shared)
    n = len(fields) // folds
    parted = [(fields[:k] + fields[k + n :], fields[k : k + n]) for k in range(0, len(fields), n)]
    good, strong = measure_suite("T98G", parted, step=2 if folds == 2 else 1)
    assert good == 0
    assert strong >= 0.95


@pytest.mark.realdata
@pytest.mark.parametrize("step", [10, pytest.param(2, marks=pytest.mark.slow)])
def test_real_quantitative_phase(step: int, shared: Path) -> None:
    frames = phase_frames(shared)
    folds = [(frames[:40], frames[41:]), (frames[41:], frames[:40])]
    good, strong = measure_suite("quantitative phase", folds[: 2 if step == 2 else 1], step)
    assert good <= 0.02
    assert strong >= 0.95


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_lost_focus_on_the_plate_of_the_demo(seed: int) -> None:
    """The shipped model's own reference refuses the fields whose focus was lost, and no other."""
    from models.passport import find_model, read_passport

    reference = dict(read_passport(find_model(None)).reference) or reference_of(
        (field, crops_of(field)) for field in virtual(60, 20_261_122)
    )
    plate = demo_plate(seed)
    sites = [site for site in plate.sites if lost_focus(plate, site.well, site.field, site.timepoint)]
    lost = len(sites)
    assert lost > 0
    sites += [site for site in plate.sites if site not in sites][:: 1 if seed > 1 else 6]
    refused = [is_refused(render_field(plate, s.well, s.field, s.timepoint), reference) for s in sites]
    false = sum(refused[lost:])
    figure(f"DEMO {seed}: refused {sum(refused[:lost])} of {lost} out of focus, {false} of {len(sites) - lost} good")
    assert all(refused[:lost])
    assert not any(refused[lost:])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_spoils_and_keeps_the_kind_of_image(name: str, dtype: type[np.generic]) -> None:
    field = next(training_fields(1, 1)).pixels
    image: Pixels = to_uint8(field) if dtype is np.uint8 else to_uint8(field).astype(np.uint16) * np.uint16(16)
    before = image.copy()
    spoilt = CORRUPTIONS[name].apply(image, CORRUPTIONS[name].strong, np.random.default_rng(0))
    assert np.array_equal(image, before)
    assert spoilt.ndim == 2
    assert spoilt.dtype in (np.uint8, np.uint16)
    assert spoilt.shape != image.shape or not np.array_equal(spoilt, image)


def test_amounts_are_what_their_units_say() -> None:
    field = virtual(2, 5)[1]
    rng = np.random.default_rng(0)
    bright = CORRUPTIONS["gain, too bright"].apply(field, 0.2, rng)
    assert float((bright == full_scale(field)).mean()) == pytest.approx(0.2, abs=0.01)
    dark = CORRUPTIONS["gain, too dark"].apply(field, 24, rng)
    assert float(np.percentile(dark, 99.9)) == pytest.approx(24, abs=1)
    assert len(np.unique(CORRUPTIONS["bit depth, few"].apply(field, 4, rng))) <= 16
    assert np.array_equal(
        CORRUPTIONS["inverted contrast"].apply(CORRUPTIONS["inverted contrast"].apply(field, 0, rng), 0, rng), field
    )
    assert CORRUPTIONS["magnification, reduced"].apply(field, 0.5, rng).shape == (256, 256)
    assert CORRUPTIONS["magnification, enlarged"].apply(field, 2.0, rng).shape == (512, 512)
