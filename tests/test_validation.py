"""From cells to a model and from a model to figures: what is written, warned of, and refused."""

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.calibration import calibrate
from models.datasets import LabelledCells
from models.fit import Fitted, fit_model, recalibrate
from models.metrics import area_under_roc
from models.passport import read_passport, read_weights
from models.report import write_report
from models.scorer import Scorer
from models.training import RECIPES
from models.validation import evaluate, seen_in_training, validate_model
from sesmo_live.cli import learning
from sesmo_live.cli.app import app
from sesmo_live.cli.care import model_app
from sesmo_live.errors import ModelError
from sesmo_live.labelled import draft_passport
from tests.cli import Sesmo, runner, sentence

RECIPE = dataclasses.replace(RECIPES["compact"], epochs=2, batch=32, least_steps=1)
DRAFT = draft_passport("mine", 0.65, "deep-sesmo-either")


def discs(n: int, seed: int, groups: int = 8) -> LabelledCells:
    """Return crops with small (healthy) and large (senescent) dark discs, from groups of either label on two plates."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    y, x = np.mgrid[:50, :50] - 24.5
    radii = np.where(labels, 14, 6) + rng.normal(0, 1.5, n)
    crops = 170 - 90.0 * ((x**2 + y**2) < radii[:, None, None] ** 2) + rng.normal(0, 6, (n, 50, 50))
    group = [f"{'hs'[label]}{(number // 2) % groups}" for number, label in enumerate(labels)]
    names = [f"{seed}-{number}" for number in range(n)]
    plates = [f"P{(number // 2) % 2}" for number in range(n)]
    stressors = [("" if not label else ("dox", "rad")[(number // 4) % 2]) for number, label in enumerate(labels)]
    images = crops.clip(0, 255).astype(np.uint8)
    return LabelledCells(images, labels, group, names, names, plates, stressors, "by well")


def scored(n: int = 400, seed: int = 0) -> tuple[LabelledCells, NDArray[np.float64]]:
    cells = discs(n, seed)
    rng = np.random.default_rng(seed)
    return cells, np.clip(rng.normal(0.3 + 0.4 * cells.labels, 0.2), 0, 1)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fitted]:
    out = tmp_path_factory.mktemp("fit") / "mine"
    return out, fit_model(discs(240, 1), RECIPE, DRAFT, out, seed=3)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_model_folder_says_how_it_was_made(fitted: tuple[Path, Fitted]) -> None:
    out, made = fitted
    passport = read_passport(out)
    assert passport == made.passport
    assert (passport.name, passport.network, passport.input_px, passport.pixel_um) == ("mine", "compact", 50, 0.65)
    assert 0 < passport.threshold < 1
    assert passport.calibration["method"] in ("temperature", "temperature with bias", "isotonic")
    training = passport.training
    assert training["split"] == "by well; groups are never parted"
    assert training["n_trained"] + training["n_held_out"] + training["n_tested"] == 240
    assert training["groups_tested"] == 4
    assert training["recipe"]["optimizer"] == "adamw"
    assert {"auc", "auc_low", "auc_high", "f1", "ece", "confusion", "measured_on"} <= set(passport.metrics)
    assert passport.metrics["n"] == training["n_tested"]
    assert not list(out.glob("checkpoint*"))
    for name in ("history.csv", "curves.png", "metrics.csv", "confusion.csv", "roc.csv", "roc.png", "report.html"):
        assert (out / name).stat().st_size > 0, name
    assert len(table(out / "history.csv")) == 2


def test_its_figures_are_those_of_its_own_scores_on_cells_it_did_not_see(fitted: tuple[Path, Fitted]) -> None:
    out, made = fitted
    cells = made.result.cells
    scores = Scorer(out).score(cells.crops)
    np.testing.assert_allclose(scores, made.result.scores, atol=1e-5)
    assert made.passport.metrics["auc"] == pytest.approx(area_under_roc(cells.labels, scores), abs=1e-3)
    again = validate_model(out, cells)
    assert again.row()["auc"] == made.passport.metrics["auc"]
    assert "were in the training" in again.notes[0]


def test_new_cells_are_not_warned_of_and_old_ones_are(fitted: tuple[Path, Fitted], tmp_path: Path) -> None:
    out, made = fitted
    assert seen_in_training(out, made.passport, discs(20, 2).digests) == []
    mixed = [*discs(20, 2).digests, *discs(240, 1).digests[:5]]
    assert seen_in_training(out, made.passport, mixed)[0].startswith("5 of 25 pictures were in the training")
    assert "does not say which pictures" in seen_in_training(tmp_path, made.passport, mixed)[0]


def test_a_model_is_never_overwritten(fitted: tuple[Path, Fitted]) -> None:
    out, _ = fitted
    with pytest.raises(ModelError, match="holds a model already"):
        fit_model(discs(240, 1), RECIPE, DRAFT, out)
    with pytest.raises(ModelError, match="holds a model already"):
        recalibrate(out, discs(40, 2), out)


def test_recalibration_keeps_weights_and_order_and_names_another_model(
    fitted: tuple[Path, Fitted], tmp_path: Path
) -> None:
    out, made = fitted
    cells = discs(200, 5)
    other = recalibrate(out, cells, tmp_path / "own")
    assert other.passport.weights_sha256 == made.passport.weights_sha256
    assert other.passport.model_id != made.passport.model_id
    before, after = (read_weights(folder, read_passport(folder)) for folder in (out, tmp_path / "own"))
    assert all((before[name] == after[name]).all() for name in before)
    raw = Scorer(tmp_path / "own").score(cells.crops)
    assert other.passport.metrics["calibrated_on"]["was"] == dict(made.passport.calibration)
    assert other.passport.metrics["auc"] == made.passport.metrics["auc"]
    order = np.argsort(Scorer(out).score(cells.crops), kind="stable")
    assert (np.diff(raw[order]) >= -1e-5).all()


def test_half_precision_is_measured_as_it_is_stored(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1)
    made = fit_model(discs(60, 4, groups=3), recipe, DRAFT, tmp_path / "m", half=True)
    assert any("too few groups" in note for note in made.result.notes)
    raw = Scorer(tmp_path / "m").score(made.result.cells.crops)
    assert area_under_roc(made.result.cells.labels, raw) == pytest.approx(made.result.row()["auc"], abs=0.2)
    exact = recalibrate(tmp_path / "m", discs(60, 6), tmp_path / "again")
    assert exact.passport.weights_sha256 == made.passport.weights_sha256  # float16 stays float16


def test_parts_are_of_each_plate_and_of_each_stressor_against_all_healthy_cells() -> None:
    cells, scores = scored()
    result = evaluate(cells, scores, 0.5)
    parts = {(part["part"], part["name"]): part for part in result.parts}
    assert set(parts) == {("plate", "P0"), ("plate", "P1"), ("stressor", "dox"), ("stressor", "rad")}
    chosen = np.array([stressor in ("", "dox") for stressor in cells.stressors])
    assert parts["stressor", "dox"]["auc"] == round(area_under_roc(cells.labels[chosen], scores[chosen]), 4)
    assert parts["stressor", "dox"]["n"] == chosen.sum()
    on_plate = np.array([plate == "P1" for plate in cells.plates])
    assert parts["plate", "P1"]["auc"] == round(area_under_roc(cells.labels[on_plate], scores[on_plate]), 4)


def test_a_report_holds_every_table_and_stands_alone(tmp_path: Path) -> None:
    cells, scores = scored()
    result = evaluate(cells, scores, 0.5, notes=["mind the <gap>"])
    files = write_report(tmp_path, result, title="A & B")
    assert {"roc.csv", "pr.csv", "calibration.csv", "confusion.csv", "cells.csv", "parts.csv", "pr.png"} <= set(files)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "mind the &lt;gap&gt;" in page
    assert "A &amp; B" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == 5
    metrics = {row["figure"]: row for row in table(tmp_path / "metrics.csv")}
    assert float(metrics["auc"]["value"]) == result.row()["auc"]
    assert float(metrics["auc"]["low"]) < float(metrics["auc"]["value"]) < float(metrics["auc"]["high"])
    rows = table(tmp_path / "cells.csv")
    assert len(rows) == 400
    counts = table(tmp_path / "confusion.csv")
    assert int(counts[1]["called_senescent"]) == result.confusion["tp"]
    assert sum(row["called"] == row["true"] == "senescent" for row in rows) == result.confusion["tp"]


@pytest.fixture
def sesmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sesmo:
    named = {command.callback.__name__ for command in app.registered_commands if command.callback}
    if "train" not in named:
        app.command()(learning.train)
        app.command()(learning.validate)
        model_app.command("calibrate")(learning.model_calibrate)
    return runner(capsys, monkeypatch)


def write_crops(folder: Path, cells: LabelledCells) -> dict[str, Any]:
    folder.mkdir(parents=True)
    lines = ["file,cell,group"]
    for label, name in enumerate(("control", "senescent")):
        chosen = cells.labels == label
        np.save(folder / f"{name}.npy", cells.crops[chosen])
        groups = [group for group, taken in zip(cells.groups, chosen, strict=True) if taken]
        lines += [f"{name}.npy,{number},{group}" for number, group in enumerate(groups)]
    (folder / "groups.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"control": folder / "control.npy", "senescent": folder / "senescent.npy", "groups": folder / "groups.csv"}


def test_no_name_becomes_a_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    cells, scores = scored(40)
    names = ["=1+1", "+a", "-b", "@c", "\td", "plain"] * 7
    named = dataclasses.replace(cells, pictures=names[:40], groups=[f"={name}" for name in cells.groups])
    write_report(tmp_path, evaluate(named, scores, 0.5), title="t")
    rows = table(tmp_path / "cells.csv")
    assert [row["picture"] for row in rows[:6]] == ["'=1+1", "'+a", "'-b", "'@c", "'\td", "plain"]
    assert all(row["group"].startswith("'=") for row in rows)
    assert float(rows[0]["score"]) == round(scores[0], 6)


def words(files: dict[str, Any]) -> list[Any]:
    return [word for name, value in files.items() for word in (f"--{name}", value)]


def test_train_validate_and_calibrate_from_the_command_line(sesmo: Sesmo, tmp_path: Path) -> None:
    train, new = (write_crops(tmp_path / name, discs(n, seed)) for name, n, seed in (("a", 160, 1), ("b", 120, 2)))
    model, report = tmp_path / "model", tmp_path / "report"
    done = sesmo("train", *words(train), "--out", model, "--epochs", 2, "--seed", 1, "--format", "json")
    assert json.loads(done.out)["model"] == read_passport(model).model_id
    assert "80 healthy cells and 80 senescent cells of 16 groups, split by declared group" in done.err
    assert "epoch 2 of 2" in done.err
    done = sesmo("validate", "--model", model, *words(new), "--out", report, "--format", "json")
    figures = json.loads(done.out)
    for name in ("auc", "f1", "accuracy", "precision", "recall", "ece"):
        assert f"{name}_low" in figures
        assert f"{name}_high" in figures
    assert (figures["n"], figures["groups"], sum(figures["confusion"].values())) == (120, 16, 120)
    assert (report / "report.html").is_file()
    assert figures["warnings"] == []
    done = sesmo("validate", "--model", model, *words(train), "--out", report, "--format", "csv")
    assert "160 of 160 pictures were in the training" in done.err
    assert done.out.startswith("figure,value,low,high\nauc,")
    done = sesmo("model", "calibrate", "--model", model, *words(new), "--out", tmp_path / "own", "--format", "json")
    own = read_passport(tmp_path / "own")
    assert json.loads(done.out)["calibration"]["method"] == own.calibration["method"]
    raw = calibrate(np.array([0.2, 0.5, 0.8]), own.calibration)
    assert (np.diff(raw) > 0).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give --control and --senescent, or --plate"),
        (["--control", "c"], "give --control and --senescent"),
        (["--plate", "P"], "--plate goes with --from-controls"),
        (["--from-hours", "3"], "go with --plate"),
        (["--control", "none", "--senescent", "nowhere"], "there is no folder none"),
        (["--control", "c", "--senescent", "c"], "both as healthy and as senescent"),
        (["--control", "c", "--senescent", "s", "--images", "cats"], "--images 'cats' is unknown"),
        (["--control", "c", "--senescent", "s", "--groups", "none.csv"], "none.csv cannot be read"),
        (["--control", "c", "--senescent", "s", "--pixel-um", "-1"], "impossible"),
        (["--control", "c", "--senescent", "s"], "no pictures"),
    ],
)
def test_bad_input_is_one_sentence(
    sesmo: Sesmo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "s").mkdir()
    assert said in sentence(sesmo("train", *options, "--out", "m", code=2))
    if "--pixel-um" not in options:
        assert said in sentence(sesmo("validate", *options, code=2))
    assert not (tmp_path / "m").exists()


def test_a_wrong_network_epochs_or_out_is_one_sentence(sesmo: Sesmo, tmp_path: Path, stub_model: Path) -> None:
    given = ["--control", tmp_path, "--senescent", tmp_path]
    assert "network 'deep' is unknown" in sentence(sesmo("train", *given, "--out", "m", "--network", "deep", code=2))
    assert "--epochs 0" in sentence(sesmo("train", *given, "--out", "m", "--epochs", 0, code=2))
    assert "holds a model already" in sentence(sesmo("train", *given, "--out", stub_model, code=2))
    file = tmp_path / "file"
    file.write_text("not a folder")
    for command in (["train"], ["validate"], ["model", "calibrate"]):
        for out in (file, file / "m"):
            assert f"{file} is a file" in sentence(sesmo(*command, *given, "--out", out, code=2))
    for seed in (-1, 2**32):
        assert "Invalid value for '--seed'" in sesmo("train", *given, "--out", "m", "--seed", seed, code=2).err
