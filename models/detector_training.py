"""Train a cell detector on fields with masks or points, and measure it on fields it has not seen."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.backend import start_keras
from models.detector_samples import TARGETS, LabelledImage, draw_batch
from models.heatmap import Map, build_heatmap_network, fold_batch_norm
from models.network import Weights, get_weights, set_weights
from sesmo_live.errors import UsageError

LEARNING_RATE = 4e-3
BATCH = 8
STEPS = 2000
DEPTH_WEIGHT = 4.0
"""How much it counts how deep in its cell each pixel lies: this teaches outlines, which centres alone do not."""
SIZE_WEIGHT = 0.2
"""How much the error of a cell's size (in octaves) counts beside that of its centre."""

Progress = Callable[[int, float], None]
"""Called every hundred steps with the number of steps done and the mean loss since the last call."""

_REPORT_EVERY = 100
_AHEAD = 4


def train_detector(
    fields: Sequence[LabelledImage],
    *,
    shares: Sequence[float] | None = None,
    steps: int = STEPS,
    batch: int = BATCH,
    seed: int = 0,
    start: Weights | None = None,
    folded: bool = True,
    network: str = "centre-unet",
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Train the heatmap network on labelled fields and return its weights.

    `shares` says how often each field is drawn (default: equally). `start` continues from weights such as the shipped
    ones, which a few fields of one's own then suffice for. With `folded` False the weights keep their batch
    normalisation, to go on from them at full rate. The same seed gives the same draws; it is set for the whole
    process. Raises UsageError where there is no cell to learn from.
    """
    if not any(len(field.centres) for field in fields):
        raise UsageError("no field has a labelled cell; give images with masks or points")
    if steps < 1 or batch < 1:
        raise UsageError(f"steps {steps} and batch {batch} must be at least 1")
    weights = np.ones(len(fields)) if shares is None else np.asarray(shares, np.float64)
    keras = start_keras()
    keras.utils.set_random_seed(seed)
    normalised = start is None or any(name.endswith("/gamma") for name in start)
    model = build_heatmap_network(network, batch_norm=normalised)
    if start is not None:
        set_weights(model, start)
    peak = LEARNING_RATE * (1.0 if start is None else 0.5 if normalised else 0.1)
    rate = keras.optimizers.schedules.CosineDecay(peak / 20, steps, warmup_target=peak, warmup_steps=steps // 20)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=1e-3, global_clipnorm=1.0)
    model.compile(optimizer, heatmap_loss, jit_compile=False)
    _run_steps(model, fields, weights, steps, batch, seed, progress)
    trained = get_weights(model)
    return fold_batch_norm(trained) if normalised and folded else trained


def heatmap_loss(target: Any, output: Any) -> Any:
    """Return the focal loss of centres, soft near each, plus the error of sizes, per cell of the batch.

    Source: Zhou, Wang and Krähenbühl, Objects as Points, arXiv 1904.07850 (2019), eq. 1.
    """
    ops = start_keras().ops
    centre, weight, size, sized, depth, deep = (target[..., k] for k in range(len(TARGETS)))
    logit = output[..., 0]
    chance = ops.sigmoid(logit)
    hit = -ops.square(1 - chance) * ops.log_sigmoid(logit) * ops.cast(centre >= 0.999, "float32")
    false = -ops.power(1 - centre, 4) * ops.square(chance) * ops.log_sigmoid(-logit)
    cells = ops.maximum(ops.sum(ops.cast(centre >= 0.999, "float32") * weight), 1.0)
    size_error = ops.sum(ops.abs(output[..., 1] - size) * sized * weight) / ops.maximum(ops.sum(sized * weight), 1.0)
    deepness = output[..., 2]
    unsure = -depth * ops.log_sigmoid(deepness) - (1 - depth) * ops.log_sigmoid(-deepness)
    depth_error = ops.sum(unsure * deep) / ops.maximum(ops.sum(deep), 1.0)
    return ops.sum((hit + false) * weight) / cells + SIZE_WEIGHT * size_error + DEPTH_WEIGHT * depth_error


def _run_steps(
    model: Any,
    fields: Sequence[LabelledImage],
    shares: NDArray[np.float64],
    steps: int,
    batch: int,
    seed: int,
    progress: Progress | None,
) -> None:
    losses: list[float] = []
    for step, (pictures, targets) in enumerate(_batches(fields, shares, steps, batch, seed), 1):
        model.reset_metrics()  # Keras reports the mean since then
        losses.append(float(model.train_on_batch(pictures, targets)))
        if progress is not None and (step % _REPORT_EVERY == 0 or step == steps):
            progress(step, float(np.mean(losses)))
            losses.clear()


def _batches(
    fields: Sequence[LabelledImage], shares: NDArray[np.float64], steps: int, batch: int, seed: int
) -> Iterator[tuple[Map, Map]]:
    """Yield batches that a second thread draws ahead, always in the same order."""
    rng = np.random.default_rng(seed)
    with ThreadPoolExecutor(max_workers=1) as artist:
        ahead = deque(artist.submit(draw_batch, fields, shares, batch, rng) for _ in range(min(_AHEAD, steps)))
        for step in range(steps):
            drawn = ahead.popleft().result()
            if step + _AHEAD < steps:
                ahead.append(artist.submit(draw_batch, fields, shares, batch, rng))
            yield drawn
