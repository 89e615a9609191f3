"""Doses: a number and a unit, however they were written."""

import re
import unicodedata
from decimal import Decimal

from sesmo_live.errors import PlateMapError

# A table and not pint: pint knows neither `%`, `U/ml` nor `MOI` as doses, reads `um` as a length, and takes long to
# import; one power of ten per molar unit is all the arithmetic there is.
MOLAR_EXPONENTS = {"M": 6, "mM": 3, "µM": 0, "nM": -3, "pM": -6, "fM": -9}
"""Powers of ten from a molar unit to µM."""

_MASSES = tuple(f"{mass}/{volume}" for mass in ("g", "mg", "µg", "ng", "pg") for volume in ("ml", "l", "µl"))
_OTHERS = ("%", "% v/v", "% w/v", "U/ml", "U/l", "IU/ml", "Gy", "mGy", "J/m2", "kJ/m2", "mJ/cm2", "J/cm2", "MOI", "x")
_PER_WELL = ("µg/well", "ng/well", "cells/well", "cells/ml", "pfu/cell")

KNOWN_UNITS = (*MOLAR_EXPONENTS, *_MASSES, *_OTHERS, *_PER_WELL)
"""Every unit a dose may have, in the spelling in which it is kept."""

Dose = tuple[float | None, str, float | None]
"""(dose, unit in the kept spelling, dose in µM): None for what is not given or, in µM, has no molar meaning."""

NO_DOSE: Dose = (None, "", None)
"""What a well without a dose has; a dose of zero is something else."""

_MISSING = frozenset({"", "na", "n/a", "n.a.", "nan", "none", "null", "-", "--", "–", ".", "#n/a", "<na>"})
_PREFIX_WORDS = {"milli": "m", "micro": "u", "nano": "n", "pico": "p", "femto": "f"}
_LARGEST, _SMALLEST = Decimal("1e30"), Decimal("1e-30")
# ASCII digits only: a superscript must never turn 10² into 102.
_DOSE = re.compile(r"([+\-−]?)\s*((?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)(?:[eE][+\-−]?[0-9]{1,3})?)\s*(.*)", re.DOTALL)
_LONGEST_NAME = 300
_NAME_AND_DOSE = re.compile(r"(.*\S)[\s,@]+((?:[0-9]+(?:[.,][0-9]+)?|\.[0-9]+)(?:[eE][+\-][0-9]+)?\s*[^\s0-9].*)")


def shown(text: str) -> str:
    """Return a text in quotes for a message, cut where a whole page stands in one cell."""
    return repr(text if len(text) <= 60 else text[:60] + "…")


def is_missing(text: str) -> bool:
    """Say whether a cell says nothing: empty, `NA`, `nan`, `-` and their like."""
    return text.strip().casefold() in _MISSING


def _unit_key(unit: str) -> str:
    """Return the form in which spellings of one unit meet: no case, no spaces, `u` for both micro signs."""
    key = re.sub(r"[\s_·()\[\]]", "", unicodedata.normalize("NFKC", unit).casefold()).replace("−", "-")
    key = re.sub(r"(?<=[a-z])per(?=[a-z])", "/", key)
    key = re.sub(r"^μ(?=[a-z])|(?<=/)μ(?=[a-z])", "u", key)
    key = re.sub(r"(?<=[a-z])(ml|ul|l)\^?-1$", r"/\1", key)
    key = re.sub(r"(?<=/)(m|u|)lit(?:er|re)s?$", r"\1l", key)
    key = re.sub(r"^(milli|micro|nano|pico|femto)(?=mol)", lambda match: _PREFIX_WORDS[match[1]], key)
    key = re.sub(r"^([munpf]?)(?:mol(?:e|es|s)?/(?:l|dm3)|molar)$", r"\1m", key)
    return re.sub(r"^units?/", "u/", re.sub(r"^mcg/", "ug/", key))


_BY_KEY = {_unit_key(unit): unit for unit in KNOWN_UNITS}


def known_unit(text: str) -> str | None:
    """Return `text` as the unit in the kept spelling (`umol/L` is `µM`), or None if it is no known unit."""
    return _BY_KEY.get(_unit_key(text))


def _normalise_unit(text: str) -> str:
    if is_missing(text):
        return ""
    unit = known_unit(text)
    if unit is None:
        raise PlateMapError(f"unknown unit {shown(text.strip())}; write one of {', '.join(KNOWN_UNITS)}")
    return unit


def _decimal(sign: str, number: str, text: str) -> Decimal:
    """Return the number of a dose, refusing what can be read in two ways or cannot be a dose."""
    if re.fullmatch(r"[1-9][0-9]{0,2},[0-9]{3}", number):
        plain = number.replace(",", "")
        decimal = number.replace(",", ".")
        raise PlateMapError(
            f"the dose {shown(text)} can be read as {plain} or as {decimal}; write it in one of these ways"
        )
    value = Decimal(number.replace(",", ".").replace("−", "-"))
    if sign in {"-", "−"} and value:
        raise PlateMapError(f"the dose {shown(text)} is negative; write an amount of zero or more")
    if value and not _SMALLEST <= value <= _LARGEST:
        raise PlateMapError(f"the dose {shown(text)} is beyond any dose; check its exponent")
    return value


def parse_dose(text: str | float, unit: str = "") -> Dose:
    """Read a dose: return (dose, unit in the kept spelling, dose in µM or None where the unit is not molar).

    `text` is a number or a text such as `10µg/ml`, `3 uM`, `0,5 µM`, `1e-3 M`; `unit` holds where `text` names none.
    An empty, `NA` or NaN dose is (None, "", None); zero is a dose. The number is scaled as a decimal, so that µM
    is the float nearest to what was written. Raise PlateMapError for an unknown unit, for two different units, and
    for a dose that is negative, not finite or not a number.
    """
    text = str(text).strip()
    if is_missing(text):
        return NO_DOSE
    match = _DOSE.fullmatch(text)
    if match is None or re.match(r"[0-9.,+−-]", match[3]):
        raise PlateMapError(f"the dose {shown(text)} is no number with a unit; write it like 10 µM or 0.5 µg/ml")
    value = _decimal(match[1], match[2], text)
    own, given = _normalise_unit(match[3]), _normalise_unit(unit)
    if own and given and own != given:
        raise PlateMapError(f"the dose {shown(text)} stands under the unit {given}; write one unit only")
    kept = own or given
    exponent = MOLAR_EXPONENTS.get(kept)
    return float(value), kept, None if exponent is None else float(value.scaleb(exponent))


def split_name_and_dose(text: str) -> tuple[str, str]:
    """Split `Doxorubicin 1 µM` into name and dose text; without a number and a known unit at the end, ("text", "")."""
    text = text.strip()
    if len(text) > _LONGEST_NAME:
        return text, ""
    bracketed = re.fullmatch(r"(.*\S)\s*\(\s*([0-9.,][^()]*)\)", text)
    match = bracketed or _NAME_AND_DOSE.fullmatch(text)
    dose = _DOSE.fullmatch(match[2].strip()) if match else None
    if match is None or dose is None or known_unit(dose[3]) is None:
        return text, ""
    return match[1], match[2].strip()
