"""Roles: what a well is for, from the word in a role column, else from the compound's name."""

import re
from typing import Literal

from sesmo_live.errors import PlateMapError
from sesmo_live.platemap.doses import shown, split_name_and_dose
from sesmo_live.records import Role

RoleWord = Role | Literal["control"]
"""What a role column can say: a role, or `control` without saying which."""

_WORDS: dict[RoleWord, str] = {
    "negative": "negative negativecontrol negativectrl neg negcon negctrl negcontrol nc vehicle vehiclecontrol "
    "untreated dmso dmsocontrol solvent solventcontrol mock",
    "positive": "positive positivecontrol positivectrl pos poscon posctrl poscontrol pc",
    "treatment": "treatment treated trt sample test compound drug s",
    "blank": "blank empty background b",
    "control": "control ctrl ctl c",
}
_ROLE_OF_WORD = {word: role for role, words in _WORDS.items() for word in words.split()}

_VEHICLE_WORDS = (
    "dmso vehicle solvent untreated pbs dpbs medium media control ctrl ctr ctl water h2o saline mock negcon neg "
    "negative notreatment nottreated nontreated"
)
_VEHICLES = frozenset(_VEHICLE_WORDS.split())
_FILLER_WORDS = "only alone well wells culture growth complete full fresh in with and v w vol"
_FILLERS = frozenset(_FILLER_WORDS.split())
_LONGEST_VEHICLE = 100
_STRENGTH = re.compile(r"[0-9]+(?:[.,][0-9]+)?\s*%")


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.casefold())


def role_of_word(text: str) -> RoleWord:
    """Return the role that a word in a role column means; `control` where it does not say which control.

    Raise PlateMapError for a word that is none.
    """
    word = _letters(text)
    stem = next((stem for stem in ("negcon", "poscon") if word.startswith(stem)), word)
    try:
        return _ROLE_OF_WORD[stem]
    except KeyError as error:
        raise PlateMapError(
            f"{shown(text.strip())} is no role; write negative, positive, treatment or blank, "
            "or ignore the column with --column role="
        ) from error


def bare_name(compound: str) -> str:
    """Return a name without the strength beside it: `DMSO 0.1%` and `0.1% DMSO` are `DMSO`."""
    name = split_name_and_dose(compound)[0]
    strength = _STRENGTH.match(name)
    return name[strength.end() :].strip() if strength else name


def is_vehicle(compound: str) -> bool:
    """Say whether a name means a vehicle or no treatment: `DMSO 0.1%`, `Media only`, `Vehicle (0.1% DMSO)`."""
    name = bare_name(compound)[:_LONGEST_VEHICLE].casefold()
    words = set(re.findall("[a-z0-9]+", _STRENGTH.sub("", name)))
    return _letters(name) in _VEHICLES or (bool(words & _VEHICLES) and words <= _VEHICLES | _FILLERS)


def is_blank_name(compound: str) -> bool:
    """Say whether a compound's name means that the well is empty."""
    return _letters(compound) in {"blank", "empty", "nocells"}


def role_of_name(compound: str) -> Role:
    """Return the role that a compound's name gives away: vehicles are negative, `poscon` is positive."""
    if is_vehicle(compound):
        return "negative"
    return "positive" if _letters(compound).startswith(("positivec", "poscon", "posctrl")) else "treatment"
