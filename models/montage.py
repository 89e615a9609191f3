"""Figures of single cells: a montage with scores, cells beside what the network saw in them, and a scored field."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.convert import to_uint8
from sesmo_live.records import Pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORE_COLOURS = ("#1f6fd0", "#f2f2f2", "#ff8c1a")
"""Low scores blue, middle ones white, high ones orange: safe for colour-blind readers, and bright on grey."""

_CONTRAST = "percentile-0.35-99.65"
_LABELLED = 150
"""Cells of a field up to which their scores are written beside them."""
_INCH = 1.1


def choose_cells(n: int, most: int, seed: int) -> NDArray[np.intp]:
    """Return `most` of `n` cells, drawn at random by `seed` and in their own order; all where there are no more."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:most]).astype(np.intp)


def order_by_score(scores: NDArray[np.floating], most: int) -> NDArray[np.intp]:
    """Return `most` cells from the lowest score to the highest, evenly picked over the ranks."""
    order = np.argsort(scores, kind="stable")
    picked = np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(np.intp)
    return np.asarray(order[picked], np.intp)


def lowest_middle_highest(scores: NDArray[np.floating], each: int = 2) -> NDArray[np.intp]:
    """Return up to `each` cells of the lowest, the middle and the highest score, in the order of scores."""
    order = np.argsort(scores, kind="stable")
    middle = max((len(order) - each) // 2, 0)
    places = {*range(each), *range(middle, middle + each), *range(len(order) - each, len(order))}
    return np.asarray(order[[place for place in sorted(places) if 0 <= place < len(order)]], np.intp)


def draw_montage(
    crops: NDArray[np.uint8], scores: NDArray[np.floating] | None = None, *, title: str = "", columns: int = 10
) -> "Figure":
    """Return a figure of crops (uint8 N×h×w, N ≥ 1) in rows, each on the same grey scale, with its score beneath."""
    from matplotlib.figure import Figure

    columns = min(columns, len(crops))
    rows = -(-len(crops) // columns)
    figure = Figure((max(_INCH * columns, 4), 1.2 * _INCH * rows + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False)
    for place, axis in enumerate(axes.ravel()):
        axis.axis("off")
        if place < len(crops):
            axis.imshow(crops[place], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            if scores is not None:
                axis.text(0.5, -0.04, f"{scores[place]:.2f}", transform=axis.transAxes, ha="center", va="top", size=8)
    return figure


def draw_cells(crops: NDArray[np.uint8], maps: NDArray[np.float32], scores: Sequence[float], title: str) -> "Figure":
    """Return a figure of cells: above each as the network gets it, below what in it speaks for which class."""
    from matplotlib.figure import Figure

    figure = Figure((max(1.5 * len(crops), 4) + 1, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(2, len(crops), squeeze=False)
    reach = _reach(maps)
    drawn: Any = None
    for place, crop in enumerate(crops):
        for axis in axes[:, place]:
            axis.axis("off")
            axis.imshow(crop, cmap="gray", vmin=0, vmax=255)
        axes[0, place].set_title(f"{scores[place]:.2f}", fontsize=9)
        drawn = axes[1, place].imshow(maps[place], cmap=score_colours(), vmin=-reach, vmax=reach, alpha=0.55)
    _explain_colours(figure, drawn, list(axes[:, -1]))
    return figure


def draw_field(
    pixels: Pixels,
    centres: NDArray[np.float64],
    scores: NDArray[np.floating],
    title: str,
    *,
    cell_px: float = 50.0,
    pixel_um: float | None = None,
) -> "Figure":
    """Return a figure of a field (H×W) with a ring around each cell in the colour of its score.

    `centres` N×2 are x and y in px of `pixels`, in which a crop is `cell_px` wide. Up to 150 scores are written out.
    The scale bar is in µm where `pixel_um` is known, else in px.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Circle
    from matplotlib.patheffects import withStroke

    figure, axis = _field(pixels, title, pixel_um)
    colours = score_colours()
    for (x, y), score in zip(centres, scores, strict=True):
        for colour, width in (("black", 2.4), (colours(float(score)), 1.5)):
            axis.add_patch(Circle((x, y), cell_px / 4, fill=False, edgecolor=colour, linewidth=width))
        if len(scores) <= _LABELLED:
            written = axis.text(x, y + cell_px / 4, f"{score:.2f}", color="white", size=6, ha="center", va="top")
            written.set_path_effects([withStroke(linewidth=1.2, foreground="black")])
    figure.colorbar(ScalarMappable(Normalize(0, 1), colours), ax=axis, label="P(senescent)", shrink=0.7)
    return figure


def draw_field_map(
    pixels: Pixels, evidence: NDArray[np.float32], title: str, *, pixel_um: float | None = None
) -> "Figure":
    """Return a figure of a field under its Grad-CAM map (float32 H×W), transparent where there are no cells."""
    figure, axis = _field(pixels, title, pixel_um)
    reach = _reach(evidence)
    opacity = np.clip(np.abs(evidence) / reach, 0, 1) * 0.7
    drawn = axis.imshow(evidence, cmap=score_colours(), vmin=-reach, vmax=reach, alpha=opacity)
    _explain_colours(figure, drawn, [axis])
    return figure


def score_colours() -> Any:
    """Return the colour map of scores and of Grad-CAM."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("score", SCORE_COLOURS)


def _field(pixels: Pixels, title: str, pixel_um: float | None) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    height, width = pixels.shape
    figure = Figure((10, 1 + 8.5 * height / width), dpi=150, layout="constrained")
    axis = figure.subplots()
    axis.imshow(to_uint8(pixels, _CONTRAST), cmap="gray", vmin=0, vmax=255)
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    axis.set_title(title, fontsize=9)
    axis.axis("off")
    _add_scale_bar(axis, width, height, pixel_um)
    return figure, axis


def scale_bar(width_px: int, pixel_um: float | None) -> tuple[float, str]:
    """Return the length in px of a scale bar of at most a quarter of an image, a round number, and its label."""
    unit_px, unit = (1 / pixel_um, "µm") if pixel_um else (1.0, "px")
    longest = max(width_px / 4 / unit_px, 1e-9)
    decade = 10 ** np.floor(np.log10(longest))
    length = float(decade * max(step for step in (1, 2, 5) if step * decade <= longest))
    return length * unit_px, f"{length:g} {unit}"


def _add_scale_bar(axis: "Axes", width: int, height: int, pixel_um: float | None) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    length, label = scale_bar(width, pixel_um)
    left, top = 0.02 * width, 0.97 * height
    axis.add_patch(Rectangle((left, top), length, 0.008 * height, facecolor="white", edgecolor="black", linewidth=0.8))
    text = axis.text(left + length / 2, top - 0.008 * height, label, color="white", size=9, ha="center", va="bottom")
    text.set_path_effects([withStroke(linewidth=1.8, foreground="black")])


def _reach(maps: NDArray[np.float32]) -> float:
    """Return the value at which colours end: one glaring spot must not pale all others."""
    return max(float(np.percentile(np.abs(maps), 99.5)), 1e-6)


def _explain_colours(figure: "Figure", drawn: Any, axes: "list[Axes]") -> None:
    bar = figure.colorbar(drawn, ax=axes, shrink=0.7)
    bar.set_ticks([drawn.norm.vmin, 0, drawn.norm.vmax], labels=["healthy", "neither", "senescent"])
    bar.set_label("Grad-CAM: speaks for")
