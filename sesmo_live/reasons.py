"""Why images are not scored, or should not have been, in words that a reader can act on."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine

from db import queries
from db.queries import PlateRow


def not_counted(connection: Connection, plate: PlateRow) -> tuple[str, ...]:
    """Return which images of a plate are missing from its wells, and which are in them although they are unfit."""
    refused, failed, flagged, excluded = queries.images_apart(connection, plate.plate_id)
    told = (
        (refused, "not fit to be scored and in no well", " --state refused --summary"),
        (failed, "failed and in no well", " --state failed --summary"),
        (flagged, "scored and counted although a model finds them unfit", " --state scored --summary"),
        (excluded, "taken out of their wells by a person", ""),
    )
    return tuple(
        f"plate {plate.name}: {number} of its images {'are' if number > 1 else 'is'} {what}; see why with: "
        f"sesmo-live images {plate.name}{which}"
        for number, what, which in told
        if number
    )


@dataclass(frozen=True, slots=True)
class Reason:
    """Images that share a reason: `reason` has FILE for each one's path; `path` and `example` are of one of them."""

    reason: str
    number: int
    path: str
    example: str


_OTHER_FILE = re.compile(r"(?:/|[A-Za-z]:[\\/]).*?\.tiff?\b", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?%?")


def group_reasons(items: Iterable[tuple[str, str]]) -> list[Reason]:
    """Group (path, reason) of images by the reason but for paths and numbers, the commonest first; the first speaks."""
    groups: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for path, reason in sorted(items):
        own = reason.replace(path, "FILE").replace(re.split(r"[\\/]", path)[-1], "FILE")
        own = _OTHER_FILE.sub("another file", own)
        groups[_NUMBER.sub("#", own)].append((own, path, reason))
    found = [Reason(members[0][0], len(members), *members[0][1:]) for members in groups.values()]
    return sorted(found, key=lambda group: -group.number)


_PATH = re.compile(r"(?<![\w.:/\\])(?:[A-Za-z]:[\\/]|\\\\|/)[^\s;,'\"]*?([^\s;,'\"/\\]+)(?=[\s;,'\"]|$)")


def without_paths(text: str, *known: str) -> str:
    """Return a sentence with the last parts of paths instead of paths; `known` ones may have spaces in them."""
    for path in sorted(known, key=len, reverse=True):
        text = text.replace(path, re.split(r"[\\/]", path)[-1]) if path else text
    text = _OTHER_FILE.sub(lambda found: re.split(r"[\\/]", found[0])[-1], text)
    return _PATH.sub(r"\1", text)


def nothing_scored(engine: Engine, folder: Path) -> tuple[str, ...]:
    """Return why no image in `folder` is scored, with the channels and focal planes seen; nothing where one is."""
    with engine.connect() as connection:
        wanted = queries.images_where(None, None, folder)
        reasons = queries.image_reasons(connection, wanted)
        seen = queries.channels_seen(connection, wanted)
    if not reasons or "scored" in reasons:
        return ()
    notes = [
        f"not scored: {group.number} of the images in {folder}, {state}: {group.reason.removeprefix('not scored: ')}"
        for state, items in reasons.items()
        if state in ("skipped", "refused")
        for group in group_reasons(items)[:5]
    ]
    for plate, channels, planes in seen if notes else ():
        if not planes:  # none of its images could be read
            continue
        names = ", ".join(_channel(channel, label) for channel, label in sorted(channels.items()))
        text = f"plate {plate} has the channels {names} and the focal planes {', '.join(map(str, planes))}"
        notes.append(f"{text}; choose with --channel and --z")
    return tuple(notes)


def _channel(channel: str, label: str) -> str:
    return f"{channel} ({label})" if label and label != channel else channel or "without a name"
