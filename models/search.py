"""Try recipes over a declared grid, each by cross-validation that keeps groups whole."""

import dataclasses
import difflib
import itertools
import json
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from models.datasets import LabelledCells
from models.metrics import area_under_roc, grouped_auc, log_loss
from models.network import NETWORKS
from models.scorer import compile_network, score_in_chunks
from models.splits import grouped_folds
from models.training import RECIPES, Recipe, train_network
from sesmo_live.errors import UsageError

MOST_RECIPES = 200
"""More are a slip of the pen: they would train for weeks."""

Row = dict[str, Any]


def read_grid(path: Path, network: str, changes: Mapping[str, Any] | None = None) -> list[Recipe]:
    """Return the recipes of a grid: a TOML or JSON file that gives a list of values for keys of a recipe.

    What is not named is as in `changes`, else as in the network's own recipe. Raises UsageError
    for a file that cannot be read, an unknown key, or a value of the wrong kind.
    """
    try:
        text = path.read_text(encoding="utf-8")
        grid = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a grid ({error}); write lines such as batch = [64, 128]") from error
    return recipes_of(grid, network, changes, str(path))


def recipes_of(
    grid: Any, network: str, changes: Mapping[str, Any] | None = None, where: str = "the grid"
) -> list[Recipe]:
    """Return one recipe for each combination of the grid's values; see `read_grid`."""
    names = [field.name for field in dataclasses.fields(Recipe)]
    if not isinstance(grid, Mapping) or not grid:
        raise UsageError(f"{where} declares nothing to try; write lines such as batch = [64, 128]")
    for key, values in grid.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            raise UsageError(f"{where} has an unknown key {key!r}; {f'did you mean {near[0]!r}?' if near else names}")
        if not isinstance(values, list) or not values:
            raise UsageError(f"{key} in {where} must be a list of values to try, such as {key} = [64, 128]")
    recipes = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        base = RECIPES.get(str(chosen.get("network", network)), Recipe())
        plain = {**dataclasses.asdict(base), **(changes or {}), **chosen}
        try:
            recipes.append(TypeAdapter(Recipe).validate_json(json.dumps(plain), strict=True))
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(f"{first['loc'][0]} in {where} is wrong: {first['msg']}") from error
    if len(recipes) > MOST_RECIPES:
        raise UsageError(f"{where} makes {len(recipes)} recipes, above {MOST_RECIPES}; name fewer values")
    return recipes


def search(
    cells: LabelledCells,
    recipes: Sequence[Recipe],
    *,
    folds: int = 3,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Cross-validate each recipe and return one row each, the best first: by held-out log loss of raw scores.

    `auc` is over all cells, each scored by a network that did not see its group, `auc_folds` its mean over the folds.
    No test part is kept from the search: measure the chosen recipe on new plates. `progress` is called with the folds
    done and the folds in all. Raises UsageError where a class has fewer than two groups.
    """
    rows = []
    for number, recipe in enumerate(recipes):
        started = time.monotonic()

        def report(done: int, total: int, before: int = number) -> None:
            if progress is not None:
                progress(before * total + done, len(recipes) * total)

        scores, fold = cross_validate(cells, recipe, folds=folds, seed=seed, progress=report)
        auc, low, high = grouped_auc(cells.labels, scores, cells.groups, seed)
        each = [area_under_roc(cells.labels[fold == part], scores[fold == part]) for part in np.unique(fold)]
        row: Row = {**dataclasses.asdict(recipe), "auc": auc, "auc_low": low, "auc_high": high}
        row |= {"auc_folds": float(np.mean(each)), "log_loss": log_loss(cells.labels, scores)}
        rows.append(row | {"seconds": round(time.monotonic() - started, 1)})
    return sorted(rows, key=lambda row: float(row["log_loss"]))


def cross_validate(
    cells: LabelledCells,
    recipe: Recipe,
    *,
    folds: int = 3,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return each cell's raw score by a network that did not see its group, and the fold that it was in."""
    fold = grouped_folds(cells.labels, cells.groups, folds, seed)
    scores = np.empty(len(cells))
    n_folds = int(fold.max()) + 1
    for part in range(n_folds):
        out = fold == part
        scores[out] = train_without(cells, out, recipe, seed)(cells.crops[out])
        if progress is not None:
            progress(part + 1, n_folds)
    return scores, fold


def train_without(
    cells: LabelledCells, out: NDArray[np.bool_], recipe: Recipe, seed: int
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Train without the cells in `out` and return a function that gives raw scores of crops (uint8 N×H×H).

    Cells that a network is measured on must not choose its epoch, so the last one is kept and none is stopped early.
    """
    whole = dataclasses.replace(recipe, keep_best=False, patience=None)
    trained = train_network(cells.crops, cells.labels, out, whole, seed=seed)
    score_chunk = compile_network(recipe.network, cells.crops.shape[1], trained.weights)
    return lambda crops: score_in_chunks(score_chunk, crops, NETWORKS[recipe.network].chunk)


def recipe_of(row: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a row of the search."""
    return Recipe(**{field.name: row[field.name] for field in dataclasses.fields(Recipe)})
