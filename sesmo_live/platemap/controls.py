"""Controls: from the entries of a plate map to one role per well and to treatments."""

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from sesmo_live.errors import PlateMapError, UsageError
from sesmo_live.platemap.entries import Entry
from sesmo_live.platemap.roles import bare_name, is_vehicle, role_of_name
from sesmo_live.records import Role, Treatment
from sesmo_live.wells import parse_well, well_position

Control = Literal["negative", "positive"]


def _entry_role(entry: Entry) -> Role:
    """Return the role of one entry by itself: the word of its role column, else its compound's, else its solvent's."""
    if entry.role and entry.role != "control":
        return entry.role
    if not entry.compound:
        return "negative" if entry.solvent or entry.role else "blank"
    return role_of_name(entry.compound)


def _deciding(entries: list[Entry]) -> list[Entry]:
    """Return the entries that decide a well's role: a vehicle beside a compound does not."""
    return [entry for entry in entries if entry.compound and not is_vehicle(entry.compound)] or entries


def by_well(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Return the entries of each well; raise PlateMapError where one stands for the same compound twice."""
    wells: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        others = wells.setdefault(entry.well, {})
        name = entry.compound.casefold()
        other = others.get(name) or others.get("") or (None if name else next(iter(others.values()), None))
        if other is not None:
            what = f"with {entry.compound}" if entry.compound and other.compound else "once without a compound"
            raise PlateMapError(
                f"the well {entry.well} stands twice {what}: on {other.place} and {entry.place}; delete one of them"
            )
        others[name] = entry
    return {well: list(others.values()) for well, others in wells.items()}


def _named_roles(
    wells: Mapping[str, list[Entry]], lists: Mapping[Control, Collection[str]]
) -> tuple[dict[str, Role], list[str]]:
    """Return the roles that the user's lists of wells and compounds give, and the listed wells that the map leaves out.

    A compound makes a control of the wells that hold nothing else but vehicle.
    """
    roles: dict[str, Role] = {}
    absent = []
    for role, listed in lists.items():
        for item in listed:
            chosen = _chosen(item, wells)
            absent += [well for well in chosen if well not in wells]
            for well in chosen:
                if roles.setdefault(well, role) != role:
                    raise PlateMapError(f"the well {well} is listed as negative and as positive; list it once")
    return roles, absent


def _chosen(item: str, wells: Mapping[str, list[Entry]]) -> list[str]:
    try:
        return [parse_well(item)]
    except UsageError:
        name = item.strip().casefold()
    chosen = [well for well, entries in wells.items() if all(name in _all_names(entry) for entry in _deciding(entries))]
    if not chosen:
        known = sorted({entry.compound for entries in wells.values() for entry in entries if entry.compound})
        near = difflib.get_close_matches(item, known, n=1, cutoff=0)
        raise PlateMapError(
            f"the control {item!r} is neither a well nor a compound that stands alone in a well"
            + (f"; the nearest compound is {near[0]!r}" if near else "")
        )
    return chosen


def _all_names(entry: Entry) -> set[str]:
    return {name.casefold() for name in (entry.compound or entry.solvent, *_aliases(entry)) if name}


def _aliases(entry: Entry) -> tuple[str, ...]:
    """Return the aliases of an entry; a vehicle with its strength in its name is also known without it."""
    bare = bare_name(entry.compound) if is_vehicle(entry.compound) else entry.compound
    return entry.aliases if bare.casefold() == entry.compound.casefold() else (*entry.aliases, bare)


def _well_role(entries: list[Entry]) -> Role:
    roles = {_entry_role(entry) for entry in _deciding(entries)}
    return roles.pop() if len(roles) == 1 else "treatment"


def treatments(
    wells: Mapping[str, list[Entry]], negative: Collection[str], positive: Collection[str]
) -> tuple[list[Treatment], list[str]]:
    """Return the treatments in the order of their wells, all of a well with one role, and what to say aloud.

    A well that only `negative` or `positive` lists is added without a compound. Raise PlateMapError for a role or a
    listed control that is not understood.
    """
    named, absent = _named_roles(wells, {"negative": negative, "positive": positive})
    filled = dict(wells) | {well: [Entry("", well, "")] for well in absent}
    roles = {well: named.get(well) or _well_role(entries) for well, entries in filled.items()}
    ordered = [entry for well in sorted(filled, key=well_position) for entry in filled[well]]
    return [_treatment(entry, roles[entry.well]) for entry in ordered], _notes(ordered, roles, named, absent)


def _treatment(entry: Entry, role: Role) -> Treatment:
    vehicle = "" if role == "blank" else entry.solvent
    return Treatment(
        entry.well, entry.compound or vehicle, role, *entry.dose, treated_at=entry.treated_at, aliases=_aliases(entry)
    )


def _notes(
    entries: list[Entry], roles: Mapping[str, Role], named: Mapping[str, Role], absent: Collection[str]
) -> list[str]:
    """Return in words what the roles of wells rest on wherever the map does not state them."""
    counts = Counter(entry.well for entry in entries)
    unnamed = [entry for entry in entries if entry.well not in named]
    silent = [entry for entry in unnamed if not entry.compound and not entry.role]
    said = {
        f"with only the solvent {solvent}: negative controls": [e.well for e in silent if e.solvent == solvent]
        for solvent in dict.fromkeys(entry.solvent for entry in silent if entry.solvent)
    }
    said["with neither compound nor solvent: blank"] = [e.well for e in silent if not e.solvent]
    said["with several compounds"] = [well for well, count in counts.items() if count > 1]
    guessed = [e for e in unnamed if e.compound and not e.role and roles[e.well] != "treatment"]
    for compound in dict.fromkeys(e.compound for e in guessed):
        wells = [e.well for e in guessed if e.compound == compound]
        said[f"with {compound}: {roles[wells[0]]} controls, by the name"] = wells
    treated = [e for e in unnamed if roles[e.well] == "treatment"]
    said["called control, but not which one: treatments"] = [
        e.well for e in treated if e.compound and e.role == "control"
    ]
    said["called treatment, but without a compound"] = [e.well for e in treated if not (e.compound or e.solvent)]
    said["listed as controls, but not in the map: added"] = list(absent)
    return [f"{_some(wells)} {what}" for what, wells in said.items() if wells]


def _some(wells: Collection[str]) -> str:
    """Return `3 wells (A01, A02, A03)`, naming at most four."""
    unique = list(dict.fromkeys(wells))
    names = ", ".join(unique[:4]) + (", …" if len(unique) > 4 else "")
    return f"{len(unique)} well{'s' if len(unique) > 1 else ''} ({names})"
