"""Training of the detector: what it is shown, that it learns, goes on from weights, and what its folder promises."""

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from models.centres import find_centres
from models.detector_passport import (
    DetectorPassport,
    detector_of,
    find_detector,
    load_detector,
    read_detector_passport,
    read_detector_weights,
    write_detector,
)
from models.detector_samples import (
    CELL_PX,
    MILD_SHARE,
    PATCH_PX,
    LabelledImage,
    disturb,
    draw_batch,
    draw_sample,
    from_masks,
    from_points,
)
from models.detector_training import heatmap_loss, train_detector
from models.heatmap import STRIDE, build_heatmap_network, normalise
from models.matching import match_in_masks, summarize
from models.network import get_weights
from sesmo_live.cli.detection import declared_diameter, labelled_fields, read_points, train_and_write, write_positions
from sesmo_live.detector_weights import instance_ids, virtual_fields
from sesmo_live.errors import ImageError, ModelError, UsageError
from tests.figures import figure


def drawn_field(seed: int, side: int = 256, cell_px: float = 30) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return an image of dark ellipses with bright rims on a noisy ground, and their instance ids."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side), 128, np.float32)
    labels = np.zeros((side, side), np.int32)
    for ident, (x, y) in enumerate(rng.uniform(20, side - 20, (14, 2)), 1):
        axes = (round(cell_px * rng.uniform(0.5, 0.8)), round(cell_px * rng.uniform(0.3, 0.45)))
        angle = float(rng.uniform(0, 180))
        if labels[round(y), round(x)]:
            continue
        cv2.ellipse(image, (round(x), round(y)), (axes[0] + 3, axes[1] + 3), angle, 0, 360, 190.0, -1)
        cv2.ellipse(image, (round(x), round(y)), axes, angle, 0, 360, 80.0, -1)
        cv2.ellipse(labels, (round(x), round(y)), axes, angle, 0, 360, ident, -1)
    image += rng.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def drawn() -> list[LabelledImage]:
    return [from_masks(*drawn_field(seed), f"field {seed}") for seed in range(6)]


def test_masks_become_points_inside_their_cells_and_depths() -> None:
    labels = np.zeros((80, 90), np.uint16)
    cv2.ellipse(labels, (40, 40), (25, 25), 0, 30, 330, 300, 7)  # a C: its middle lies outside
    field = from_masks(np.zeros((80, 90), np.uint8), labels, "c")
    scale = field.image.shape[0] / 80
    x, y = np.rint((field.centres[0] + 0.5) / scale - 0.5).astype(int)
    assert labels[y, x] == 300
    assert field.diameters[0] / scale == pytest.approx(2 * np.sqrt((labels > 0).sum() / np.pi), rel=0.01)
    assert 0.6 < field.depth.max() <= 1
    assert field.depth[(cv2.resize((labels > 0).astype(np.uint8), field.depth.shape[::-1]) == 0)].max() < 0.3


def test_masks_that_cannot_be_right_are_refused() -> None:
    with pytest.raises(ImageError, match="give masks of its size"):
        from_masks(np.zeros((8, 8), np.uint8), np.ones((8, 9), np.uint8), "f")
    with pytest.raises(ImageError, match="hold no cell"):
        from_masks(np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8), "f")
    with pytest.raises(UsageError, match="cell diameter of 0"):
        from_points(np.zeros((8, 8), np.uint8), np.ones((1, 2)), 0, "f")


def test_every_target_centre_lies_on_its_cell_in_the_turned_picture(drawn: list[LabelledImage]) -> None:
    """The cells are darker than their ground, so a picture that is not disturbed must be dark at its targets."""
    rng = np.random.default_rng(0)
    dark = []
    for _ in range(60):
        picture, target = draw_sample(drawn[int(rng.integers(6))], rng)
        rows, columns = np.nonzero(target[..., 0] == 1)
        around = np.asarray(cv2.GaussianBlur(picture, (0, 0), 1.5))
        dark += [np.sign(around[STRIDE * r, STRIDE * c]) for r, c in zip(rows, columns, strict=True)]
    assert len(dark) > 200
    share = np.mean(np.array(dark) < 0)
    figure(f"{share:.2f} of {len(dark)} targets are dark; a quarter of the disturbed pictures is inverted")
    assert share == pytest.approx(1 - (1 - MILD_SHARE) / 4, abs=0.1)


def test_places_that_nobody_labelled_count_for_nothing() -> None:
    image, labels = drawn_field(3)
    known = np.zeros(labels.shape, np.bool_)
    known[:, :128] = True
    field = from_masks(image, labels, "half", known=known)
    rng = np.random.default_rng(1)
    weights = np.concatenate([draw_sample(field, rng)[1][..., 1].ravel() for _ in range(40)])
    assert 0.2 < (weights == 0).mean() < 0.6
    for _ in range(40):
        target = draw_sample(field, rng)[1]
        assert target[..., 0][target[..., 1] == 0].max(initial=0) < 1


def test_points_teach_no_sizes_and_no_outlines() -> None:
    image, labels = drawn_field(4)
    points = np.array([[60.0, 60], [150, 100]])
    rng = np.random.default_rng(2)
    targets = [draw_sample(from_points(image, points, 30, "p"), rng)[1] for _ in range(30)]
    with_cells = [target for target in targets if target[..., 0].max() == 1]
    assert len(with_cells) > 10
    assert all(target[..., 3].max() == 0 for target in targets)
    assert any(target[..., 5].min() == 0 for target in with_cells)
    assert labels.any()


def test_the_same_seed_draws_the_same_pictures(drawn: list[LabelledImage]) -> None:
    first, second, other = (draw_batch(drawn, np.ones(6), 8, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first[0].shape == (8, PATCH_PX, PATCH_PX, 1)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert not np.array_equal(first[0], other[0])


def test_disturbing_keeps_pictures_finite_and_different(drawn: list[LabelledImage]) -> None:
    rng = np.random.default_rng(7)
    picture = drawn[0].image[:PATCH_PX, :PATCH_PX]
    for _ in range(50):
        assert np.isfinite(normalise(disturb(picture, rng), CELL_PX)).all()


def test_the_loss_is_least_at_the_truth(drawn: list[LabelledImage]) -> None:
    _, target = draw_batch(drawn, np.ones(6), 4, np.random.default_rng(8))
    truth = np.stack([np.where(target[..., 0] == 1, 9.0, -9.0), target[..., 2], 12 * target[..., 4] - 6], axis=-1)
    truth = truth.astype(np.float32)
    losses = [float(heatmap_loss(target, maps)) for maps in (truth, -truth, np.zeros_like(truth))]
    assert losses[0] < 0.5 * losses[2] < losses[1]


def test_a_detector_learns_to_find_drawn_cells(drawn: list[LabelledImage]) -> None:
    losses: list[float] = []
    weights = train_detector(drawn, steps=120, batch=6, seed=1, progress=lambda _, loss: losses.append(loss))
    assert set(weights) == set(get_weights(build_heatmap_network()))
    assert len(losses) == 2
    model = detector_of("drawn", weights, CELL_PX, 0.3)
    unseen = [drawn_field(seed) for seed in range(50, 56)]
    found = summarize(
        [match_in_masks(find_centres(image, cell_diameter_px=32, model=model).xy, labels) for image, labels in unseen]
    )
    figure(f"F1 {found.f1.value:.2f} after 120 steps, on drawn cells not seen")
    assert found.f1.value > 0.8


def test_there_must_be_a_cell_to_learn_from() -> None:
    empty = from_points(np.zeros((64, 64), np.uint8), np.empty((0, 2)), 20, "empty")
    with pytest.raises(UsageError, match="no field has a labelled cell"):
        train_detector([empty])


def test_virtual_cells_are_labelled_where_they_lie() -> None:
    from acquisition.simulator import training_fields

    field = next(iter(training_fields(1, 3, shape=(200, 220))))
    ids = instance_ids(field)
    at = np.rint(field.centres).astype(int)
    inside = ids[at[:, 1], at[:, 0]]
    assert (inside == np.arange(1, len(at) + 1)).mean() > 0.95
    fields = list(virtual_fields(3, 4))
    assert [f.modality for f in fields] == ["virtual"] * 3
    assert 1.4 < fields[2].cell_px / fields[0].cell_px < 2.2


def test_a_detector_folder_comes_back_as_written_and_no_byte_may_change(tmp_path: Path) -> None:
    weights = get_weights(build_heatmap_network())
    passport = DetectorPassport("mine", "1", "centre-unet", 20.0, 0.3, "", {"fields": ["a"]})
    written = write_detector(tmp_path / "mine", passport, weights)
    assert read_detector_passport(tmp_path / "mine") == written
    for name, value in read_detector_weights(tmp_path / "mine", written).items():
        np.testing.assert_allclose(value, weights[name], rtol=1e-3, atol=1e-4)
    assert load_detector(tmp_path / "mine") is load_detector(str(tmp_path / "mine"))
    with pytest.raises(ModelError, match="holds a model already"):
        write_detector(tmp_path / "mine", passport, weights)
    blob = bytearray((tmp_path / "mine" / "weights.safetensors").read_bytes())
    blob[-1] ^= 1
    (tmp_path / "mine" / "weights.safetensors").write_bytes(blob)
    with pytest.raises(ModelError, match="does not have the hash"):
        read_detector_weights(tmp_path / "mine", written)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"format_version": 2}, "newer than 1"),
        ({"format_version": "1"}, "does not say its format_version"),
        ({"network": "other"}, "names the network 'other'"),
        ({"threshold": 1.5}, "threshold 1.5 is out of range"),
        ({"cell_px": "20"}, "cell_px is wrong"),
        ({"cropper": "deep-sesmo"}, "it has the key 'cropper'"),
        ({"threshold": None}, "threshold"),
    ],
)
def test_a_passport_that_is_amiss_is_refused_in_one_sentence(
    tmp_path: Path, change: dict[str, object], fault: str
) -> None:
    content = json.loads((find_detector() / "passport.json").read_text("utf-8"))
    content.update(change)
    (tmp_path / "passport.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(ModelError, match=fault) as caught:
        read_detector_passport(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_detector_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(ModelError, match=r"'nowhere' is not there; give a detector folder or one of: .*centres"):
        find_detector("nowhere")


def labelled_folder(folder: Path, n: int) -> tuple[Path, Path]:
    images, masks = folder / "images", folder / "masks"
    images.mkdir()
    masks.mkdir()
    for seed in range(n):
        image, labels = drawn_field(seed)
        tifffile.imwrite(images / f"f{seed}.tif", image)
        tifffile.imwrite(masks / f"f{seed}.tif", labels)
    return images, masks


def test_a_site_trains_its_own_detector_from_masks(tmp_path: Path) -> None:
    images, masks = labelled_folder(tmp_path, 5)
    fields = labelled_fields(images, masks, None, None)
    assert [field.group for field in fields] == [f"f{k}" for k in range(5)]
    found = train_and_write(fields, tmp_path / "mine", find_detector(), steps=20, seed=0)
    assert found is not None
    figure(f"F1 {found.f1.value:.2f} on the field held out, after 20 steps from the shipped weights")
    assert found.f1.value > 0.7
    passport = read_detector_passport(tmp_path / "mine")
    assert str(passport.training["started_from"]).startswith("centres ")
    assert len(passport.training["held_out"]) == 1
    assert passport.metrics["f1"]["value"] == pytest.approx(found.f1.value)
    assert load_detector(tmp_path / "mine").threshold == passport.threshold


def test_a_site_labels_by_points(tmp_path: Path) -> None:
    images, _ = labelled_folder(tmp_path, 2)
    with (tmp_path / "points.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "x", "y"), ("f0.tif", 10, 12.5), ("images/f0.tif", 90, 80)])
    fields = labelled_fields(images, None, tmp_path / "points.csv", 30)
    assert [(field.group, len(field.centres)) for field in fields] == [("f0", 2)]


def test_masks_of_one_name_in_two_folders_go_with_their_own_pictures(tmp_path: Path) -> None:
    for folder, place in (("a", 40), ("b", 150)):
        mask = np.zeros((256, 256), np.uint8)
        mask[place : place + 40, place : place + 40] = 1
        for kind, pixels in (("img", np.full((256, 256), 90, np.uint8)), ("masks", mask)):
            (tmp_path / kind / folder).mkdir(parents=True)
            tifffile.imwrite(tmp_path / kind / folder / "f1.tif", pixels)
    fields = labelled_fields(tmp_path / "img", tmp_path / "masks", None, None)
    assert [field.group for field in fields] == ["a/f1", "b/f1"]
    first, second = (field.centres for field in fields)
    assert first.max() < second.min()


def test_labels_that_are_missing_or_doubtful_are_refused(tmp_path: Path) -> None:
    images, masks = labelled_folder(tmp_path, 1)
    points = tmp_path / "points.csv"
    points.write_text("image,x,y\nf0.tif,1,2\n")
    with pytest.raises(UsageError, match="one of them"):
        labelled_fields(images, masks, points, None)
    with pytest.raises(UsageError, match="one of them"):
        labelled_fields(images, None, None, None)
    with pytest.raises(UsageError, match="points do not tell how large"):
        labelled_fields(images, None, points, None)
    points.write_text("image,x\nf0.tif,1\n")
    with pytest.raises(UsageError, match="no column 'y'"):
        read_points(points)
    points.write_text("image,x,y\nf0.tif,1,two\n")
    with pytest.raises(UsageError, match="no number"):
        read_points(points)
    shutil.copy(masks / "f0.tif", masks / "f0.png")
    with pytest.raises(UsageError, match="differ in their ending only"):
        labelled_fields(images, masks, None, None)
    (masks / "f0.png").unlink()
    (masks / "f0.tif").rename(masks / "other.tif")
    with pytest.raises(UsageError, match="none of the 1 picture in"):
        labelled_fields(images, masks, None, None)
    tifffile.imwrite(masks / "f0.tif", np.zeros((256, 256), np.float32))
    with pytest.raises(ImageError, match="whole instance ids"):
        labelled_fields(images, masks, None, None)


@pytest.mark.parametrize(
    ("given", "expected"), [((None, None, None), None), ((40.0, None, 1.2), 40.0), ((None, 30.0, 1.5), 20.0)]
)
def test_a_diameter_is_declared_in_px_or_um(given: tuple[float | None, ...], expected: float | None) -> None:
    assert declared_diameter(*given) == expected


def test_half_a_declaration_is_refused() -> None:
    for given, fault in (((40.0, 30.0, 1.2), "exclude"), ((None, 30.0, None), "needs"), ((None, 30.0, 0.0), "scale")):
        with pytest.raises(UsageError, match=fault):
            declared_diameter(*given)


def test_positions_are_written_with_their_scores(tmp_path: Path) -> None:
    found = find_centres(drawn_field(1)[0], cell_diameter_px=32)
    write_positions(tmp_path / "out.csv", found)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["x", "y", "score", "diameter_px"]
    assert len(rows) == len(found) > 5
    assert float(rows[0]["x"]) == pytest.approx(found.xy[0, 0], abs=0.01)
    assert rows[0]["diameter_px"] == ""
