"""Compare `crop_cells` with the original study's way of cropping on one 2048² image.

Run `python -m tests.benchmarks.bench_crop`. Both run in turns in one process on the same tiled phase-contrast fields;
only the ratio is to be trusted.
"""

import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.convert import to_uint8
from models.cropper import crop_cells

FIELDS = Path(__file__).parents[2].parent / "shared/data/phase_instances/usiigaci_t98g"


def crop_as_the_original(
    rgb: NDArray[np.uint8], percentile: float = 5, min_area_px: float = 50, fluorescence: bool = False
) -> tuple[NDArray[np.float64], list[tuple[float, float]]]:
    """Crop cells the original's way: contour by contour, growing a float64 N×50×50×3 array with `np.append`.

    The reference for speed and equality, our own rendering of the published method: the array that grows is of
    float64 and the points of a contour are summed one by one, as there. Returns crops and centres.
    """

    def contours_of(grey: NDArray[np.uint8]) -> list[NDArray[np.int32]]:
        blurred = cv2.GaussianBlur(grey, (5, 5), 0)
        limit = np.percentile(blurred, percentile)
        mask = (blurred > limit if fluorescence else blurred < limit).astype(np.uint8) * 255
        return list(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0])

    height, width, _ = rgb.shape
    crops: NDArray[np.float64] = np.empty((0, 50, 50, 3))
    centres = []
    for contour in contours_of(rgb[:, :, 0]):
        if cv2.contourArea(contour) < min_area_px:
            continue
        x = sum(point[0][0] for point in contour) / len(contour)
        y = sum(point[0][1] for point in contour) / len(contour)
        if y < 25 or y > height - 25 or x < 25 or x > width - 25:
            continue
        crop = rgb[int(y) - 25 : int(y) + 25, int(x) - 25 : int(x) + 25]
        if sum(map(cv2.contourArea, contours_of(crop[:, :, 0]))) < min_area_px:
            continue
        crops = np.append(crops, crop[None].astype(np.float64), axis=0)
        centres.append((float(x), float(y)))
    return crops, centres


def tiled_field(size_px: int = 2048) -> NDArray[np.uint8]:
    """Return a square phase-contrast image of `size_px` made of four mirrored T98G fields."""
    import tifffile

    fields = [to_uint8(tifffile.imread(FIELDS / name / "raw.tif")) for name in ("set2", "set5", "set9", "set12")]
    tiled = np.block([[fields[0], fields[1][:, ::-1]], [fields[2][::-1], fields[3][::-1, ::-1]]])
    return np.pad(tiled, ((0, max(0, size_px - tiled.shape[0])), (0, 0)), mode="reflect")[:size_px, :size_px]


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def main(rounds: int = 9) -> None:
    """Print the times of both ways, taken in turns, and the median of the rounds' ratios."""
    image = tiled_field()
    rgb = np.repeat(image[:, :, None], 3, axis=2)
    crops, centres = crop_cells(image)
    reference, reference_centres = crop_as_the_original(rgb)
    if not (np.array_equal(crops, reference[..., 0]) and np.array_equal(centres, reference_centres)):
        raise SystemExit("crop_cells and the reference differ: the times mean nothing")
    times = np.array([(_seconds(crop_as_the_original, rgb), _seconds(crop_cells, image)) for _ in range(rounds)])
    slow, fast = np.median(times, axis=0) * 1e3
    ratio = np.median(times[:, 0] / times[:, 1])
    print(f"{len(crops)} cells, equal in both; medians of {rounds} rounds")  # noqa: T201 - a script's output
    print(f"reference {slow:.0f} ms, crop_cells {fast:.1f} ms, crop_ratio_2048 {ratio:.1f}")  # noqa: T201


if __name__ == "__main__":
    main()
