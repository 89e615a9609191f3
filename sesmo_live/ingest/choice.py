"""Which channel and which focal plane of a plate are scored, and why."""

import re
from collections.abc import Collection, Mapping

NOT_CHOSEN = "not scored: "
"""How the reason of an image begins that was skipped because of its channel or focal plane."""

GUESSED = "; set channel to choose"
"""How the words end that say why a channel was chosen when it may well be the wrong one."""

_PHASE = re.compile(r"phase|\bph ?\d?\b", re.IGNORECASE)
_FLUORESCENT = re.compile(
    r"dapi|hoechst|fluor|fitc|tritc|\b[ecmy]?[gryc]fp\b|mcherry|cy ?[357]|alexa|texas|\b(405|488|561|640|647)\b",
    re.IGNORECASE,
)
_BRIGHTFIELD = re.compile(r"bright ?-?_?field|transmi|\bbf\b|\btl\b", re.IGNORECASE)


def choose_channel(labels: Mapping[str, str], wanted: str) -> tuple[str | None, str]:
    """Return (channel, why) out of the channels seen so far, each with its human label.

    `wanted` is the configured channel, by number or label in any case. Without one: the only channel, else the one
    named like phase, else like brightfield, else the first. None when the wanted one was not seen (yet).
    """
    if wanted:
        for channel, label in labels.items():
            if wanted.casefold() in (channel.casefold(), label.casefold()):
                return channel, f"channel {_show(channel, label)}, as configured"
        return None, f"channel {wanted} is configured and was not seen yet"
    ordered = sorted(labels, key=_natural)
    if len(ordered) == 1:
        only = f"channel {_show(ordered[0], labels[ordered[0]])}, the only one"
        stained = _FLUORESCENT.search(f"{ordered[0]} {labels[ordered[0]]}".replace("_", " "))
        return ordered[0], f"{only}, though it is named like fluorescence{GUESSED}" if stained else only
    for pattern, kind in ((_PHASE, "phase"), (_BRIGHTFIELD, "brightfield")):
        named = [channel for channel in ordered if pattern.search(f"{channel} {labels[channel]}".replace("_", " "))]
        if named:
            return named[0], f"channel {_show(named[0], labels[named[0]])}, named like {kind}"
    first = ordered[0]
    others = ", ".join(_show(channel, labels[channel]) for channel in ordered[1:])
    return first, f"channel {_show(first, labels[first])}, the first (others: {others}){GUESSED}"


def choose_plane(planes: Collection[int], wanted: int | None) -> tuple[int | None, str]:
    """Return (focal plane, why) out of the planes seen so far; without a wanted one the first (lowest)."""
    if wanted is not None:
        return (wanted, f"focal plane {wanted}, as configured") if wanted in planes else (None, "")
    first = min(planes, default=None)
    return first, "" if len(planes) < 2 else f"focal plane {first}, the first of {len(planes)}; set z to choose"


def _show(channel: str, label: str) -> str:
    if not channel:
        return "without a name"
    return f"{channel} ({label})" if label and label != channel else channel


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part.casefold()) for part in re.split(r"(\d+)", text) if part]
