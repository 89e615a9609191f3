"""The benchmark's command."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sesmo_live.cli.options import FormatOption
from sesmo_live.cli.output import Format, say, show, show_json

_WORDS = {
    "crop_ratio_2048": "cropping 2048²: times as fast as the original's way",
    "path_ratio_2048": "whole way 2048², deep-sesmo: times as fast as the original's way",
    "path_ratio_2048_compact": "whole way 2048², compact: times as fast as the original's way",
    "original_ms_2048": "whole way 2048², the original's: ms an image",
    "path_ms_2048": "whole way 2048², deep-sesmo: ms an image",
    "path_ms_2048_compact": "whole way 2048², compact: ms an image",
    "path_ms_2048_compact_centres": "whole way 2048², compact with centres: ms an image",
    "cells_per_s": "scoring, deep-sesmo: cells a second",
    "cells_per_s_compact": "scoring, compact: cells a second",
    "share_of_peak": "scoring, deep-sesmo: share of this computer's fp32 peak",
    "latency_p50_ms": "rename to commit, deep-sesmo: ms, median",
    "latency_p95_ms": "rename to commit, deep-sesmo: ms, 95 of 100 are faster",
    "latency_p50_ms_compact": "rename to commit, compact: ms, median",
    "latency_p95_ms_compact": "rename to commit, compact: ms, 95 of 100 are faster",
    "peak_memory_mb": "memory of score, deep-sesmo: MiB at most",
    "peak_memory_mb_compact": "memory of score, compact: MiB at most",
}
"""The figures that the table shows; JSON has all."""


def bench(
    image: Annotated[
        Path | None, typer.Option("--image", help="an image of your own, instead of a virtual field")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="how often each stage is timed")] = 9,
    images: Annotated[int, typer.Option("--images", min=8, help="images in each back-fill")] = 40,
    live: Annotated[int, typer.Option("--live", min=4, help="images that land while the service watches")] = 40,
    output: FormatOption = Format.table,
) -> None:
    """Measure how fast this computer reads, crops and scores, beside the original study's way; takes minutes."""
    from sesmo_live.bench import run_bench

    found = run_bench(image, rounds=rounds, images=images, live=live, say=lambda text: say([text]))
    if output is Format.json:
        show_json(found)
        return
    show([_short(row) for row in found["stages"]], output)
    if output is Format.table:
        show([{"figure": words, "value": _rounded(found[name])} for name, words in _WORDS.items()], output)


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"ms": _rounded(row["ms"])}


def _rounded(value: float) -> float:
    return float(f"{value:.3g}") if abs(value) < 1000 else round(value)
