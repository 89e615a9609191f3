"""Draw the README's picture of the way of one image: `uv run python docs/figures.py`."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from acquisition.simulator import demo_plate, render_field
from models.convert import to_uint8
from models.cropper import crop_cells
from models.passport import find_model
from models.scorer import Scorer
from sesmo_live.wells import row_letters

OUT = Path(__file__).parent / "img" / "way.png"
WELL, TIMEPOINT = "B05", 4
N_CROPS = 20


def main() -> None:
    """Render one field of the demo plate, crop and score it, and the wells' scores at the last time point."""
    plate, scorer = demo_plate(), Scorer(find_model(None))
    conversion = scorer.passport.conversion
    image = to_uint8(render_field(plate, WELL, 1, TIMEPOINT), conversion)
    crops, centres = crop_cells(image)
    scores = scorer.score(crops)
    wells = {}
    for treatment in plate.treatments:
        field = to_uint8(render_field(plate, treatment.well, 1, TIMEPOINT), conversion)
        wells[treatment.well] = float(scorer.score(crop_cells(field)[0]).mean())
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1.05, 1.35))
    axes[0].imshow(image, cmap="gray")
    axes[0].set_title("1  an image lands")
    axes[1].imshow(image, cmap="gray", alpha=0.55)
    axes[1].set_title(f"2  {len(crops)} cells are cropped")
    for x, y in centres:
        axes[1].add_patch(Rectangle((x - 25, y - 25), 50, 50, fill=False, color="#2255aa", linewidth=0.7))
    axes[2].imshow(_montage(crops, scores), cmap="gray", vmin=0, vmax=255)
    axes[2].set_title("3  each cell gets a score")
    order = np.argsort(scores)[np.linspace(0, len(scores) - 1, N_CROPS).astype(int)]
    for k, cell in enumerate(order):
        x, y = k % 5 * 54 + 3, k // 5 * 54 + 11
        axes[2].text(x, y, f"{scores[cell]:.2f}", color="white", fontsize=7, bbox={"color": "#000000aa", "pad": 1})
    _draw_plate(axes[3], wells)
    for ax in axes[:3]:
        ax.set_axis_off()
    figure.get_layout_engine().set(rect=(0, 0.06, 1, 0.94))
    figure.text(0.5, 0.02, "virtual microscope, demonstration weights: not for biological conclusions", ha="center")
    figure.savefig(OUT, dpi=90)


def _montage(crops: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return twenty crops in order of score, four rows of five."""
    chosen = np.argsort(scores)[np.linspace(0, len(scores) - 1, N_CROPS).astype(int)]
    sheet = np.full((4 * 54, 5 * 54), 255, np.uint8)
    for k, cell in enumerate(chosen):
        row, column = divmod(k, 5)
        sheet[row * 54 + 2 : row * 54 + 52, column * 54 + 2 : column * 54 + 52] = crops[cell]
    return sheet


def _draw_plate(ax: Axes, wells: dict[str, float]) -> None:
    """Draw the wells, coloured by score."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable

    for well, score in wells.items():
        row, column = ord(well[0]) - 64, int(well[1:])
        ax.add_patch(Circle((column, row), 0.42, color=colormaps["viridis"](score)))
        ink = "black" if score > 0.5 else "white"
        ax.text(column, row, f"{score:.2f}", ha="center", va="center", color=ink, fontsize=8)
    ax.set(xlim=(0.4, 6.6), ylim=(4.6, 0.4), aspect="equal", xticks=range(1, 7))
    ax.set_yticks(range(1, 5), [row_letters(row) for row in range(1, 5)])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_title("4  wells get theirs: mean P(senescent)")
    ax.figure.colorbar(ScalarMappable(cmap="viridis"), ax=ax, shrink=0.8)


if __name__ == "__main__":
    main()
