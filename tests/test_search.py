"""The search: a declared grid becomes recipes, each judged on groups that its networks did not see."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.datasets import LabelledCells
from models.metrics import area_under_roc
from models.search import cross_validate, read_grid, recipe_of, recipes_of, search
from models.training import RECIPES, Recipe
from sesmo_live.errors import UsageError

QUICK = Recipe(batch=16, epochs=2, least_steps=4, learning_rate=0.005)


def memory(n: int = 120) -> LabelledCells:
    """Return crops whose label shows only in a mark that each group has of its own: nothing to learn for others."""
    rng = np.random.default_rng(0)
    group = np.arange(n) % 12
    labels = group % 2
    crops = rng.integers(90, 110, (n, 20, 20)).astype(np.uint8)
    for number, place in enumerate(group):
        crops[number, place : place + 6, (5 * place) % 14 : (5 * place) % 14 + 6] = 200
    names = [str(number) for number in range(n)]
    return LabelledCells(crops, labels, [f"g{g}" for g in group], names, names, [""] * n, [""] * n, "by well")


def grown(n: int = 144) -> LabelledCells:
    cells = memory(n)
    sides = np.where(cells.labels, 12, 4)
    crops = np.full((n, 20, 20), 100, np.uint8)
    for crop, side in zip(crops, sides, strict=True):
        crop[10 - side // 2 : 10 + side // 2, 10 - side // 2 : 10 + side // 2] = 220
    return dataclasses.replace(cells, crops=crops)


def test_a_grid_makes_every_combination_on_top_of_the_networks_own_recipe(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text('batch = [32, 64]\naugmentation = ["original", "transfer"]\n', encoding="utf-8")
    recipes = read_grid(path, "compact", {"epochs": 7})
    assert [(recipe.batch, recipe.augmentation) for recipe in recipes] == [
        (32, "original"), (32, "transfer"), (64, "original"), (64, "transfer"),
    ]  # fmt: skip
    assert {recipe.epochs for recipe in recipes} == {7}
    path = tmp_path / "grid.json"
    path.write_text('{"network": ["deep-sesmo", "compact"]}', encoding="utf-8")
    assert read_grid(path, "compact") == [RECIPES["deep-sesmo"], RECIPES["compact"]]


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({}, "declares nothing"),
        ([1], "declares nothing"),
        ({"bacth": [1]}, "unknown key 'bacth'; did you mean 'batch'"),
        ({"batch": 64}, "batch in the grid must be a list"),
        ({"batch": []}, "batch in the grid must be a list"),
        ({"batch": ["many"]}, "batch in the grid is wrong"),
        ({"optimizer": ["lion"]}, "optimizer in the grid is wrong"),
        ({"batch": list(range(1, 40)), "epochs": list(range(1, 40))}, "makes 1521 recipes"),
    ],
)
def test_a_grid_that_cannot_be_tried_is_named(grid: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipes_of(grid, "compact")


def test_an_unreadable_grid_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text("batch = [", encoding="utf-8")
    for name in ("g.toml", "none.toml"):
        with pytest.raises(UsageError, match=f"{name} cannot be read as a grid"):
            read_grid(tmp_path / name, "compact")


def test_the_table_ranks_recipes_and_gives_them_back() -> None:
    better = dataclasses.replace(QUICK, epochs=5, augmentation="none")
    worse = dataclasses.replace(QUICK, learning_rate=1e-7, augmentation="none")
    seen: list[tuple[int, int]] = []
    rows = search(grown(), [worse, better], folds=2, progress=lambda done, total: seen.append((done, total)))
    assert [recipe_of(row) for row in rows] == [better, worse]
    assert rows[0]["log_loss"] < rows[1]["log_loss"]
    assert rows[0]["auc"] > 0.9
    assert rows[0]["auc_low"] <= rows[0]["auc"] <= rows[0]["auc_high"]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_what_only_a_group_knows_earns_nothing() -> None:
    cells = memory()
    recipe = dataclasses.replace(QUICK, epochs=6, augmentation="none")
    scores, fold = cross_validate(cells, recipe, folds=3)
    for group in set(cells.groups):
        assert len({int(part) for part, name in zip(fold, cells.groups, strict=True) if name == group}) == 1
    assert area_under_roc(cells.labels, scores) < 0.85
