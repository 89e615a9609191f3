"""The layout `regex`: the user's own pattern with named groups."""

import difflib
import re

from acquisition.layouts.named import FileName, Named, Preset
from sesmo_live.errors import ConfigError, UsageError
from sesmo_live.wells import parse_well, well_name

GROUPS = ("well", "row", "column", "field", "timepoint", "channel", "z", "plate", "run", "position")
"""The groups that a pattern may name."""


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"the layout pattern {pattern!r} is no regular expression: {error}") from None
    for group in compiled.groupindex:
        if group not in GROUPS:
            near = difflib.get_close_matches(group, GROUPS, 1, 0)[0]
            raise ConfigError(f"the layout pattern names an unknown group {group!r}; did you mean {near!r}?")
    named = set(compiled.groupindex)
    if not (named & {"well", "position"} or named >= {"row", "column"}):
        raise ConfigError("the layout pattern finds no well; name a group well, row and column, or position")
    return compiled


def _whole(noun: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"the layout pattern reads {text!r} as {noun}; make the group match digits only") from None


def _well(parts: dict[str, str]) -> str | None:
    if "well" in parts:
        return parse_well(parts["well"])
    if "row" not in parts or "column" not in parts:
        return None
    row, column = parts["row"], parts["column"]
    return parse_well(well_name(int(row), _whole("column", column)) if row.isdecimal() else row + column)


def pattern_preset(pattern: str) -> Preset:
    """Return the preset that searches `pattern` in the relative POSIX path; raise ConfigError for a bad pattern."""
    compiled = _compiled(pattern)

    def parse(name: FileName) -> Named | None:
        match = compiled.search(name.relative)
        if match is None:
            return None
        parts = {group: text for group, text in match.groupdict().items() if text}
        return Named(
            _well(parts),
            field=_whole("field", parts.get("field", "1")),
            timepoint=_whole("timepoint", parts.get("timepoint", "1")),
            channel=parts.get("channel", ""),
            z=_whole("z", parts.get("z", "0")),
            plate=parts.get("plate", ""),
            run=parts.get("run", ""),
            position=parts.get("position", ""),
        )

    return Preset("regex", parse)
