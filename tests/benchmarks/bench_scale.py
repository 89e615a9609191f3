"""Does a large plate cost more an image than a small one? 384 wells × 9 fields × 4 time points, back-filled.

Run `python -m tests.benchmarks.bench_scale [--images 13824]`. The files are links to one virtual field of 512²; rates
and memory are shown by the thousand.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import tifffile

from acquisition.simulator import VirtualPlate, render_field
from models.passport import find_model
from sesmo_live.bench.whole import memory_of_score
from sesmo_live.records import Treatment


def main() -> None:
    """Back-fill and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=384 * 9 * 4)
    number = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "field.tif"
        plate = VirtualPlate(treatments=(Treatment("B03", "bench"),), focus_loss=0)
        tifffile.imwrite(source, render_field(plate, "B03", 1, 1))
        memory, moments = memory_of_score(source, find_model("demo-compact"), number, fields=9)
    print(f"{len(moments)} of {number} images scored")  # noqa: T201
    seconds = np.array([(moment - moments[0]).total_seconds() for moment in moments])
    for start in range(0, len(seconds) - 999, 1000):
        print(f"image {start + 1:6d} on: {999 / (seconds[start + 999] - seconds[start]):6.1f} images/s")  # noqa: T201
    working = np.array(memory[len(memory) // 10 :])
    for name, part in zip(("first", "second", "third", "last"), np.array_split(working, 4), strict=True):
        print(f"memory, {name} quarter: {part.mean():.0f} MiB, at most {part.max():.0f}")  # noqa: T201


if __name__ == "__main__":
    main()
