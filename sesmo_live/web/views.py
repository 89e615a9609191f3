"""What the plate's page shows, laid out from the answers of `sesmo_live.overview`: no number is computed twice."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from sqlalchemy import Engine, RowMapping

from db import queries, shown
from sesmo_live.overview import CellView, Counts, FieldCells, PlateMap, TimePoint, WellOnMap, WellView
from sesmo_live.overview.plates import counts_of
from sesmo_live.reasons import Reason, group_reasons, without_paths
from sesmo_live.records import WellScore
from sesmo_live.results import Row, find_plate
from sesmo_live.rhythm import span
from sesmo_live.web.colours import round_up
from sesmo_live.web.platesvg import Scale, WellMark
from sesmo_live.wells import well_position


@dataclass(frozen=True, slots=True)
class Show:
    """One way to colour the map."""

    key: str
    title: str
    value: Callable[[WellOnMap], float | None]


SHOWS = {
    show.key: show
    for show in (
        Show("score", "Score", lambda well: well.score),
        Show("cells", "Cells", lambda well: well.n_cells if well.n_images else None),
        Show("percent", "% of control", lambda well: well.percent_of_control),
        Show("z", "Robust z", lambda well: well.robust_z),
        Show("focus", "Focus", lambda well: well.focus),
        Show("age", "Age of last image", lambda well: well.age_s),
    )
}
"""What the map can be coloured by, in the order of the switch."""


def link(*parts: str) -> str:
    """Return the address of a page: its parts, each safe whatever a name holds."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def dose_text(dose: float | str | None, unit: str) -> str:
    """Return a dose as `3 µM`, "" for none."""
    if dose is None or dose == "":
        return ""
    return f"{dose:g} {unit}".strip() if isinstance(dose, float | int) else f"{dose} {unit}".strip()


def scale_of(show: Show, wells: Iterable[WellOnMap]) -> tuple[Scale, float]:
    """Return the scale for what is shown, and what its values are divided by (seconds to minutes, hours or days).

    Scores always reach from 0 to 1, so that the same colour means the same on every plate at every time.
    """
    values = [value for value in map(show.value, wells) if value is not None]
    most = max(values, default=0.0)
    if show.key == "score":
        return Scale("mean P(senescent)", "0 to 1", 0.0, 1.0, 2), 1
    if show.key == "cells":
        return Scale("cells in a well", "cells", 0.0, max(4.0, round_up(most)), 0), 1
    if show.key == "focus":
        low, high = math.floor(min(values, default=0.0)), math.ceil(most)
        return Scale("sharpness, higher is sharper", "log2", low, max(high, low + 1), 1), 1
    if show.key == "age":
        unit, seconds, _ = next(item for item in _UNITS if most < item[2])
        return Scale("since the last image", unit, 0.0, round_up(max(most / seconds, 1.0)), 1), seconds
    if show.key == "z":
        end = max(4.0, round_up(max((abs(value) for value in values), default=0.0)))
        return Scale("robust z", "spreads from − controls", -end, end, 1), 1
    return Scale("% of control", "− is 0, + is 100", 0.0, max(100.0, round_up(most)), 0), 1


_UNITS = (("min", 60, 3 * 3600.0), ("h", 3600, 3 * 86400.0), ("days", 86400, math.inf))
"""Units of age, the seconds in each, and up to which age each is read easily."""


def was_imaged(well: WellOnMap) -> bool:
    """Say whether any image of a well came to an end; the other wells are known from the plate map alone."""
    return bool(well.n_images or well.refused or well.failed or well.excluded)


UNTOLD = {"percent": "no percent of control", "z": "no robust z"}
"""How the notes begin that say why no well has a value."""


def rest_text(wells: Iterable[WellOnMap], show: Show, notes: Iterable[str]) -> str:
    """Return what stands below the map while no well is pointed at: why it is empty, if it is."""
    found = list(wells)
    number = sum(map(was_imaged, found))
    why = next((note for note in notes if show.key in UNTOLD and note.startswith(UNTOLD[show.key])), "")
    if why and all(show.value(well) is None for well in found):
        return sentence(why)
    if not number:
        return "No image of this plate is scored yet; wells fill as their images land."
    return (
        f"{number} well{'s' if number != 1 else ''} imaged. Point at one, or walk with the arrow keys; Enter opens it."
    )


def kinds_of(marks: Iterable[WellMark]) -> list[str]:
    """Return the signs that occur on the map, in the order in which they are explained."""
    found = {kind for mark in marks for kind in (mark.role, *mark.flags, "none" if mark.value is None else "")}
    return [
        kind
        for kind in ("negative", "positive", "blank", "refused", "failed", "stalled", "alarm", "none")
        if kind in found
    ]


def marks_of(answer: PlateMap, show: Show, scale: Scale, divisor: float, query: str) -> dict[str, WellMark]:
    """Return what is drawn of each well, in the order of the plate."""
    marks = {}
    for well in sorted(answer.wells, key=lambda well: well_position(well.well)):
        value = show.value(well)
        value = None if value is None else value / divisor
        marks[well.well] = WellMark(
            well=well.well,
            value=value,
            label=label_of(well, scale, value),
            href=link("plates", answer.name, "wells", well.well) + query,
            role=well.role,
            flags=well.flags,
            caption=tuple(filter(None, (well.compound, dose_text(well.dose, well.dose_unit)))),
        )
    return marks


def label_of(well: WellOnMap, scale: Scale, value: float | None) -> str:
    """Say in one line all that is known of a well."""
    control = {"negative": "negative control", "positive": "positive control", "blank": "blank"}.get(well.role, "")
    what = " ".join(filter(None, (well.compound, dose_text(well.dose, well.dose_unit))))
    parts = [well.well, f"{what} ({control})" if what and control else what or control]
    if well.score is None:
        parts.append("no score")
    else:
        parts.append(f"score {well.score:.2f}{interval_text(well.ci_low, well.ci_high)}")
        parts.append(f"{well.n_cells} cells")
    if well.percent_of_control is not None and scale.title != "% of control":
        parts.append(f"{well.percent_of_control:.0f} % of control")
    if not scale.title.startswith(("mean P", "cells")):
        told = (
            f"{scale.write(value)} {scale.unit}" if scale.unit in ("log2", "min", "h", "days") else scale.write(value)
        )
        parts.append(f"{told} % of control" if scale.title == "% of control" else f"{scale.title} {told}")
    if well.hours is not None:
        parts.append(f"at {well.hours:.1f} h")
    parts += [flag_text(flag, well) for flag in well.flags]
    return ", ".join(filter(None, parts))


def interval_text(low: float | None, high: float | None) -> str:
    """Return the 95 % interval in brackets, "" where there is none."""
    return "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"


def flag_text(flag: str, well: WellOnMap) -> str:
    """Say a flag in words."""
    reason = f": {well.reasons[0]}" if well.reasons and flag in ("refused", "failed") else ""
    counted = {"refused": well.refused, "failed": well.failed}
    if flag in counted:
        number = counted[flag]
        return f"{number} image{'s' if number != 1 else ''} {flag}{reason}"
    return {"stalled": "no new image though it is due", "alarm": "alarm"}.get(flag, flag)


def time_label(point: TimePoint) -> str:
    """Return a stop of the slider in words."""
    return f"time point {point.timepoint}" if point.hours is None else f"{point.hours:.1f} h"


def stop_label(score: WellScore) -> str:
    """Return a time point of a well in words."""
    return (
        f"time point {score.timepoint}"
        if score.hours is None
        else f"{score.hours:.1f} h (time point {score.timepoint})"
    )


def highest(wells: Iterable[WellOnMap], most: int = 5) -> list[WellOnMap]:
    """Return the treated wells of the highest scores, the highest first."""
    found = [well for well in wells if well.score is not None and well.role not in ("negative", "positive", "blank")]
    return sorted(found, key=lambda well: -(well.score or 0.0))[:most]


def sentence(words: str) -> str:
    """Return words as a sentence: with a capital letter and a stop."""
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def verdict(z_prime: float | None) -> str:
    """Say what Z′ means, with the limits of Zhang et al. (1999)."""
    if z_prime is None:
        return ""
    return "good" if z_prime >= 0.5 else "weak" if z_prime > 0 else "controls overlap"


def since_text(row: Row) -> str:
    """Return when a well left the control band, in few words."""
    hours: float | None = row["onset_hours"]
    if hours is None:
        return f"time point {row['onset_timepoint']}"
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"


def band_text(view: WellView) -> str:
    """Say where a well that has not left the control band stands at its last look, or why that cannot be said."""
    if view.role == "negative":
        return "a negative control: it makes the band"
    last = view.scores[-1]
    band = next((band for band in view.controls if band.timepoint == last.timepoint), None)
    if band is None or band.half_width is None or last.score is None:
        return next((note for note in view.notes if note.startswith("no onset")), "no control band at its last look")
    if abs(last.score - band.mean) <= band.half_width:
        return "within the control band"
    return "outside the control band at the last look; the next look tells whether it has left"


def left_text(row: Row) -> str:
    """Say when a well left the control band."""
    return f"left the control band at {since_text(row)}, {row['direction']}"


MOST_LISTED = 100
"""Images without a score that the page lists one by one, the newest first."""

MOST_GROUPED = 500
"""Images, the newest, whose reasons are told."""


@dataclass(frozen=True, slots=True)
class Unscored:
    """One image that was refused or failed, and why; `file` is its name alone."""

    well: str
    timepoint: int | None
    state: str
    reason: str
    file: str


@dataclass(frozen=True, slots=True)
class Standing:
    """What became of the images of a run of a plate, and when the last one was taken."""

    images: Counts
    last_at: datetime | None


def standing(engine: Engine, plate: str, run: str | None) -> Standing:
    """Return how a run of a plate stands."""
    with engine.connect() as connection:
        found, _ = find_plate(connection, plate, run)
        counts = shown.state_counts(connection, found.plate_id).get(found.plate_id, {})
        return Standing(counts_of(counts), shown.imaged_span(connection, found.plate_id)[1])


def unscored(engine: Engine, plate: str, run: str | None) -> tuple[list[Reason], list[Unscored]]:
    """Return why images of a run of a plate were refused or failed, the commonest first, and the newest of them."""
    with engine.connect() as connection:
        found, _ = find_plate(connection, plate, run)
        rows = shown.unfit_images(connection, found.plate_id, None, None, ())
    images = [_unscored(row) for row in reversed(rows[-MOST_GROUPED:])]
    reasons = group_reasons((item.file, f"{item.state}: {item.reason}") for item in images)
    return reasons, images[:MOST_LISTED]


def _unscored(row: RowMapping) -> Unscored:
    reason = without_paths(row["reason"], row["path"])
    return Unscored(row["well"], row["timepoint"], row["state"], reason, file_name(row["path"]))


def file_name(path: str) -> str:
    """Return the last part of a path of any system."""
    return re.split(r"[\\/]", path)[-1]


def share_text(free: int | None, total: int | None) -> str:
    """Return how much room is left on a disk."""
    if free is None or total is None:
        return "not known: the database lies on a server"
    return f"{free / 1e9:.1f} GB of {total / 1e9:.0f} GB free"


def age_text(seconds: float | None) -> str:
    """Return how long ago something was, `–` where that is not known."""
    if seconds is None:
        return "–"
    return f"{span(seconds)} ago" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days ago"


def quality_text(quality: Mapping[str, Any]) -> str:
    """Return what was measured of a field, in the few figures that a reader can judge; see docs/refusal.md."""
    sharp = quality.get("cell_sharpness", quality.get("tile_sharpness"))
    covered = quality.get("coverage")
    found = [
        None if sharp is None else f"sharpness {sharp:.2f}",
        None if covered is None else f"{covered:.0%} covered",
        "; ".join(f"unfit: {reason}" for reason in quality.get("unfit", ())),
    ]
    return ", ".join(filter(None, found))


def imaged_wells(engine: Engine, plate: str, run: str | None) -> list[str]:
    """Return the wells of a plate that were imaged, row by row."""
    with engine.connect() as connection:
        found, _ = find_plate(connection, plate, run)
        return sorted(queries.imaged_wells(connection, found.plate_id), key=well_position)


MOST_NAMES = 200
"""Names that the search box suggests at a time."""


def compound_names(engine: Engine, part: str) -> list[str]:
    """Return the first names of compounds with `part` in them."""
    with engine.connect() as connection:
        return queries.compound_names(connection, part, limit=MOST_NAMES)


def neighbours(wells: Sequence[str], well: str) -> tuple[str, str]:
    """Return the wells before and after one, "" at the ends."""
    at = wells.index(well) if well in wells else -1
    if at < 0:
        return "", ""
    return (wells[at - 1] if at else "", wells[at + 1] if at + 1 < len(wells) else "")


def spread(fields: Iterable[FieldCells], most: int = 48) -> tuple[int, list[tuple[FieldCells, CellView]]]:
    """Return how many cells there are, and at most `most` of them evenly over their scores, the lowest first."""
    cells = [(field, cell) for field in fields for cell in field.cells]
    cells.sort(key=lambda item: item[1].score)
    if len(cells) <= most:
        return len(cells), cells
    return len(cells), [cells[round(step * (len(cells) - 1) / (most - 1))] for step in range(most)]


def demonstrations(notes: Iterable[str]) -> list[str]:
    """Return the warnings of demonstration models among notes."""
    return [note for note in notes if "DEMONSTRATION" in note]
