"""Vendors' layouts: from a path below the watched folder to plate, well, field, time point, channel and focal plane."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path, PurePath, PurePosixPath

from acquisition.layouts import cytation, imagexpress, incucyte, micromanager, others, phenix, yokogawa
from acquisition.layouts.named import FileName, Named, Preset, take_apart
from acquisition.layouts.pattern import pattern_preset
from sesmo_live.errors import ConfigError, ImageError, UsageError
from sesmo_live.records import Site
from sesmo_live.wells import parse_well

__all__ = ["LAYOUTS", "Named", "image_name", "open_layout", "recognise"]

_PRESETS: tuple[Preset, ...] = (
    *phenix.PRESETS,
    *yokogawa.PRESETS,
    others.SCANR,
    others.SESMO,
    others.VITRA,
    others.NIKON,
    *micromanager.PRESETS,
    others.KEYENCE,
    *incucyte.PRESETS,
    *cytation.PRESETS,
    *imagexpress.PRESETS,
)
"""From the most to the least telling form of name: with `auto` the first that knows a name has it."""

LAYOUTS: tuple[str, ...] = tuple(preset.name for preset in _PRESETS)
"""The names of all presets; `auto` and `regex` are accepted besides."""

_ALIASES = {
    "biotek": "cytation",
    "cellvoyager": "yokogawa",
    "cv7000": "yokogawa",
    "cv8000": "yokogawa",
    "cq1": "yokogawa",
    "cq3k": "yokogawa",
    "lionheart": "cytation",
    "metaxpress": "imagexpress",
    "micromanager": "micro-manager",
    "opera": "phenix",
    "opera-phenix": "phenix",
    "operetta": "phenix",
}
_FORBIDDEN = re.compile(r'[\x00-\x1f<>:"|?*\\]')
_LARGEST = 10**15
"""No field, time point or plane is numbered higher; databases hold it."""
_COMPARED = ("plate", "well", "field", "timepoint", "channel", "z", "run")

Layout = Callable[[Path, Path], Named | None]
"""From (watched folder, path in it) to what is known of the file; None when the layout does not know the name."""


def _preset(name: str) -> Preset:
    wanted = re.sub(r"[ _]+", "-", name.strip().lower())
    wanted = _ALIASES.get(wanted, wanted)
    for preset in _PRESETS:
        if preset.name == wanted:
            return preset
    known = (*LAYOUTS, "auto", "regex")
    near = difflib.get_close_matches(wanted, known, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}"
    raise ConfigError(f"unknown layout {name!r}; {hint}")


def _chosen(name: str, pattern: str | None) -> tuple[Preset, ...]:
    if name == "regex":
        return (pattern_preset(pattern or ""),)
    if pattern:
        raise ConfigError(f'layout {name!r} takes no pattern; write layout = "regex" or leave the pattern out')
    return _PRESETS if name == "auto" else (_preset(name),)


def _label_wells(wells: Mapping[str, str] | None) -> dict[str, str]:
    try:
        return {label: parse_well(well) for label, well in (wells or {}).items()}
    except UsageError as error:
        raise ConfigError(f"the wells map names no well: {error}") from None


def _read(presets: tuple[Preset, ...], wells: Mapping[str, str], root: Path, path: Path) -> Named | None:
    if not path.is_relative_to(root):
        raise ImageError(f"{path} does not lie in {root}; watch the folder that holds it")
    name = take_apart(path.relative_to(root))
    if name is None:
        return None
    for preset in presets:
        named = preset.parse(name)
        if named is None:
            continue
        if max(abs(named.field), abs(named.timepoint), abs(named.z)) > _LARGEST:
            raise ImageError(f"{path.name} carries a number above {_LARGEST}; rename it")
        if named.position:
            # a grid of tiles is labelled 1-Pos000_001: its first part may stand for all of them
            origin = named.position.partition("-")[0]
            named = replace(named, well=wells.get(named.position) or wells.get(origin) or named.well)
        if preset.details:
            named = preset.details(root, path, named)
        return replace(named, skip=named.skip or name.skip)
    return None


def open_layout(name: str, *, pattern: str | None = None, wells: Mapping[str, str] | None = None) -> Layout:
    """Return the function that reads names of the layout `name`: a preset, `auto`, or `regex` with a `pattern`.

    The function takes (watched folder, path in it) and returns what is known of the file, or None when the layout
    does not know the name; it raises ImageError when the name gives a well that no plate has. `pattern` is searched in
    the POSIX path relative to the watched folder; its groups are well (or row and column), field, timepoint, channel,
    z, plate, run, position. `wells` maps a position label to a well. Raises ConfigError for an unknown layout, a bad
    pattern, or a `wells` map that names no well. `auto` tries all presets on each file and keeps nothing in mind.
    """
    presets, labels = _chosen(name, pattern), _label_wells(wells)

    def read(root: Path, path: Path) -> Named | None:
        try:
            return _read(presets, labels, root, path)
        except UsageError as error:
            raise ImageError(f"{path.name} has no place on a plate: {error}") from None

    return read


def _knows(preset: Preset, name: FileName) -> bool:
    try:
        return preset.parse(name) is not None
    except UsageError:
        return False


def recognise(names: Iterable[PurePath]) -> str | None:
    """Return the preset that knows most of `names` (paths relative to the watched folder), None if none knows any."""
    parts = [part for part in map(take_apart, names) if part]
    counts = {preset.name: sum(_knows(preset, part) for part in parts) for preset in reversed(_PRESETS)}
    best = max(reversed(counts), key=counts.__getitem__, default="")
    return best if counts.get(best) else None


def image_name(layout: str, site: Site, acquired_at: datetime | None = None) -> PurePosixPath:
    """Return the path, relative to the watched folder, that an instrument of `layout` would give the image of `site`.

    Reading the path back gives the same site; a layout that cannot carry it raises UsageError and says what is lost.
    Only `sesmo` writes `acquired_at` (to the second, in UTC when aware).
    """
    preset = _preset(layout)
    if preset.write is None:
        raise UsageError(f"names of layout {preset.name!r} carry no well and are not written; write 'sesmo'")
    for text in (site.plate, site.run, site.channel):
        if _FORBIDDEN.search(text) or any(part.strip(" .") != part for part in text.split("/")):
            raise UsageError(f"{text!r} cannot stand in a file name; use letters, digits, spaces, - and _")
    parse_well(site.well)
    path = PurePosixPath(preset.write(site, acquired_at))
    name = take_apart(path)
    named = preset.parse(name) if name and not path.is_absolute() else None
    for noun in _COMPARED:
        if named is None or getattr(named, noun) != getattr(site, noun):
            raise UsageError(
                f"layout {preset.name!r} cannot carry {noun} {getattr(site, noun)!r}; change it or write 'sesmo'"
            )
    return path
