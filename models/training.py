"""Train a network on labelled crops: the original study's recipe and our quicker one, resumable epoch by epoch."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from models.augment import AUGMENTATIONS, augment
from models.backend import start_keras
from models.metrics import area_under_roc, log_loss
from models.network import NETWORKS, build_network, get_weights, set_weights
from models.passport import find_model, read_passport, read_weights
from sesmo_live.errors import UsageError

CLIP_NORM = 1.0
"""Largest norm of all gradients together, as Keras 2 understood `clipnorm`; Keras 3 calls it `global_clipnorm`."""

WARM_UP = 0.05
"""Share of the steps in which a cosine schedule rises to its learning rate."""

_CHUNK = 256

Progress = Callable[[int, Mapping[str, float]], None]
"""Called after each epoch, counted from 1, with its loss and accuracy, trained and held out."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained. `patience`: stop after so many epochs without a lower held-out loss, None for never.

    An epoch passes over the crops as often as `least_steps` needs: few crops would make too few steps.

    With `keep_best` the weights of the epoch with the lowest held-out loss are kept, else those of the last. With
    `cosine` the learning rate falls to zero along a cosine (Loshchilov and Hutter, ICLR 2017). `start` is a model whose
    weights, all but the last layer's, training begins with; "" begins with random ones.
    """

    network: str = "compact"
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 0.002
    weight_decay: float = 0.02
    cosine: bool = True
    batch: int = 64
    epochs: int = 60
    patience: int | None = 20
    keep_best: bool = True
    least_steps: int = 20
    augmentation: str = "transfer"
    start: str = ""


RECIPES = {
    "compact": Recipe(),
    "deep-sesmo": Recipe("deep-sesmo", "sgd", 0.032, 0.0, False, 128, 100, None, False, 1),
}
"""The recipe of each network; that of `deep-sesmo` is of Kusumoto et al., Nat Commun 12:257 (2021)."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What training gives: the weights kept, one history entry per epoch, and the epoch (from 1) they are of."""

    weights: dict[str, NDArray[np.float32]]
    history: list[dict[str, float]]
    best_epoch: int


def train_network(
    crops: NDArray[np.uint8],
    labels: NDArray[np.int_],
    held_out: NDArray[np.bool_],
    recipe: Recipe,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Trained:
    """Train on grey crops (uint8 N×H×H) labelled 0 healthy, 1 senescent, and watch the loss of those held out.

    Held-out crops are never augmented. The same seed gives the same draws; it is set for the whole process. After
    each epoch the whole state is written to `checkpoint`, from which the same call goes on to the same result.
    Raises UsageError for data that do not match, an unknown recipe, and a checkpoint of another training.
    """
    _check(crops, labels, held_out, recipe)
    keras = start_keras()
    keras.utils.set_random_seed(seed)
    model = build_network(recipe.network, crops.shape[1])
    if recipe.start:
        _begin_with(model, recipe.start)
    seen, seen_labels, unseen, unseen_labels = crops[~held_out], labels[~held_out], crops[held_out], labels[held_out]
    batch = min(recipe.batch, len(seen))
    steps = -(-len(seen) // batch)
    passes = max(1, -(-recipe.least_steps // steps))
    optimizer = _optimizer(recipe, recipe.epochs * passes * steps)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    optimizer.build(model.trainable_variables)
    state = _State(model, recipe, checkpoint, _fingerprint(crops, labels, held_out, recipe, seed))
    while not state.done():
        rng = np.random.default_rng([seed, len(state.history)])
        figures = _train_epoch(model, _batches(seen, seen_labels, batch, passes, rng, recipe.augmentation))
        state.add({**figures, **_check_epoch(model, unseen, unseen_labels)})
        if progress is not None:
            progress(len(state.history), state.history[-1])
    return Trained(state.best, state.history, state.best_epoch)


class _State:
    """A training under way: its model, history and best weights, on disk after each epoch."""

    def __init__(self, model: Any, recipe: Recipe, path: Path | None, fingerprint: str) -> None:
        self._model, self._recipe, self._path, self._fingerprint = model, recipe, path, fingerprint
        self.history: list[dict[str, float]] = []
        self.best: dict[str, NDArray[np.float32]] = {}
        self.best_epoch = 0
        if path is not None and path.exists():
            self._load(path)

    def done(self) -> bool:
        """Say whether all epochs are over or patience is."""
        patience = self._recipe.patience
        waited = len(self.history) - self.best_epoch
        return len(self.history) >= self._recipe.epochs or (patience is not None and waited >= patience)

    def add(self, figures: dict[str, float]) -> None:
        """Take an epoch's figures, keep its weights if they are the best, and write the checkpoint."""
        losses = [entry["held_out_loss"] for entry in self.history]
        self.history.append(figures)
        if not self._recipe.keep_best or not losses or figures["held_out_loss"] < min(losses):
            self.best, self.best_epoch = get_weights(self._model), len(self.history)
        if self._path is not None:
            self._save(self._path)

    def _variables(self) -> dict[str, Any]:
        variables = [*self._model.variables, *self._model.optimizer.variables]
        return {f"v{number}": variable for number, variable in enumerate(variables)}

    def _save(self, path: Path) -> None:
        note = {"fingerprint": self._fingerprint, "history": self.history, "best_epoch": self.best_epoch}
        to_numpy = start_keras().ops.convert_to_numpy
        arrays = {name: np.asarray(to_numpy(variable)) for name, variable in self._variables().items()}
        best = {f"best {name}": array for name, array in self.best.items()}
        blob = io.BytesIO()
        np.savez(blob, note=np.frombuffer(json.dumps(note).encode(), np.uint8), **arrays, **best)  # type: ignore[arg-type]
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_bytes(blob.getvalue())
        part.replace(path)

    def _load(self, path: Path) -> None:
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            note = json.loads(arrays.pop("note").tobytes())
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise UsageError(f"{path} is no whole checkpoint ({error}); delete it to train from the start") from error
        if note.get("fingerprint") != self._fingerprint:
            raise UsageError(
                f"{path} is of a training with other cells or settings; delete it, or give another folder with --out"
            )
        for name, variable in self._variables().items():
            variable.assign(arrays[name])
        self.history, self.best_epoch = note["history"], note["best_epoch"]
        self.best = {name.removeprefix("best "): array for name, array in arrays.items() if name.startswith("best ")}


def _begin_with(model: Any, start: str) -> None:
    """Put the weights of the model `start` into all layers but the last, which answers its own question."""
    folder = find_model(start)
    passport = read_passport(folder)
    if passport.network != model.name:
        raise UsageError(
            f"training of network {model.name} cannot start from {start}, whose network is {passport.network}; start "
            "from another model or from scratch"
        )
    last = f"{model.layers[-1].name}/"
    fresh = get_weights(model)
    learned = read_weights(folder, passport)
    set_weights(model, {name: fresh[name] if name.startswith(last) else learned[name] for name in learned})


def _optimizer(recipe: Recipe, steps: int) -> Any:
    optimizers = start_keras().optimizers
    rate: Any = recipe.learning_rate
    if recipe.cosine:
        warm = max(1, round(WARM_UP * steps))
        rate = optimizers.schedules.CosineDecay(
            0.01 * recipe.learning_rate, max(1, steps - warm), warmup_target=recipe.learning_rate, warmup_steps=warm
        )
    if recipe.optimizer == "sgd":
        return optimizers.SGD(rate, weight_decay=recipe.weight_decay or None, global_clipnorm=CLIP_NORM)
    return optimizers.AdamW(rate, weight_decay=recipe.weight_decay, global_clipnorm=CLIP_NORM)


def _batches(
    crops: NDArray[np.uint8],
    labels: NDArray[np.int_],
    batch: int,
    passes: int,
    rng: np.random.Generator,
    augmentation: str,
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int_]]]:
    """Yield all crops in random order, augmented, as N×H×H×1 with their labels; the last batch is filled up."""
    for _ in range(passes):
        order = rng.permutation(len(crops))
        order = np.concatenate([order, order[: -len(order) % batch]])
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            yield augment(crops[chosen], rng, AUGMENTATIONS[augmentation])[..., None], labels[chosen]


def _train_epoch(model: Any, batches: Iterator[tuple[NDArray[np.uint8], NDArray[np.int_]]]) -> dict[str, float]:
    """Train on all batches and return the means over them; Keras itself reports each batch alone."""
    rows = [model.train_on_batch(crops, labels, return_dict=True) for crops, labels in batches]
    return {name: float(np.mean([float(row[name]) for row in rows])) for name in rows[0]}


def _check_epoch(model: Any, crops: NDArray[np.uint8], labels: NDArray[np.int_]) -> dict[str, float]:
    parts = [crops[start : start + _CHUNK] for start in range(0, len(crops), _CHUNK)]
    scores = np.concatenate([np.asarray(model.predict_on_batch(part[..., None]))[:, 1] for part in parts])
    return {
        "held_out_loss": log_loss(labels, scores),
        "held_out_accuracy": float(((scores >= 0.5) == labels).mean()),
        "held_out_auc": area_under_roc(labels, scores),
    }


def _fingerprint(
    crops: NDArray[np.uint8], labels: NDArray[np.int_], held_out: NDArray[np.bool_], recipe: Recipe, seed: int
) -> str:
    digest = hashlib.sha256(json.dumps([dataclasses.asdict(recipe), seed, crops.shape]).encode())
    for array in (crops, labels.astype(np.uint8), held_out):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _check(crops: NDArray[np.uint8], labels: NDArray[np.int_], held_out: NDArray[np.bool_], recipe: Recipe) -> None:
    if crops.dtype != np.uint8 or crops.ndim != 3 or crops.shape[1] != crops.shape[2]:
        raise UsageError(f"crops of {crops.dtype} with shape {crops.shape} cannot be trained on; give uint8 N×H×H")
    if not len(crops) == len(labels) == len(held_out):
        raise UsageError(f"{len(crops)} crops have {len(labels)} labels and {len(held_out)} places; give one each")
    if any(set(np.unique(labels[side]).tolist()) != {0, 1} for side in (held_out, ~held_out)):
        raise UsageError(
            "training needs both healthy (0) and senescent (1) cells and no other label, to train on and to hold out; "
            "check the folders"
        )
    for name, value, known in (
        ("network", recipe.network, NETWORKS),
        ("optimizer", recipe.optimizer, ("sgd", "adamw")),
        ("augmentation", recipe.augmentation, AUGMENTATIONS),
    ):
        if value not in known:
            raise UsageError(f"{name} {value!r} is unknown; use one of {', '.join(known)}")
    patience = 1 if recipe.patience is None else recipe.patience
    if min(recipe.epochs, recipe.batch, patience) < 1 or not recipe.learning_rate > 0:
        raise UsageError(
            f"epochs {recipe.epochs}, batch {recipe.batch}, learning_rate {recipe.learning_rate} and patience "
            f"{recipe.patience} must be above 0; correct the recipe"
        )
