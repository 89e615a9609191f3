"""Doses, units and treatment times of plate maps."""

import contextlib
import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sesmo_live.errors import PlateMapError
from sesmo_live.platemap import parse_dose
from sesmo_live.platemap.doses import KNOWN_UNITS, MOLAR_EXPONENTS, known_unit, split_name_and_dose
from sesmo_live.platemap.times import parse_treated_at, to_utc


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10µg/ml", (10.0, "µg/ml", None)),
        ("10 μg/mL", (10.0, "µg/ml", None)),
        ("10 ug ml-1", (10.0, "µg/ml", None)),
        ("10 mcg/ml", (10.0, "µg/ml", None)),
        ("3 uM", (3.0, "µM", 3.0)),
        ("3 µM", (3.0, "µM", 3.0)),
        ("3 μM", (3.0, "µM", 3.0)),
        ("3\u00a0um", (3.0, "µM", 3.0)),
        ("3 µmol/l", (3.0, "µM", 3.0)),
        ("3 umol L-1", (3.0, "µM", 3.0)),
        ("3 micromolar", (3.0, "µM", 3.0)),
        ("0.1mM", (0.1, "mM", 100.0)),
        ("500 nM", (500.0, "nM", 0.5)),
        ("3 nM", (3.0, "nM", 0.003)),
        ("1e-3 M", (0.001, "M", 1000.0)),
        ("1E+3pM", (1000.0, "pM", 0.001)),
        ("0,5 µM", (0.5, "µM", 0.5)),
        (".5 µM", (0.5, "µM", 0.5)),
        ("0,125 µM", (0.125, "µM", 0.125)),
        ("10,5 µM", (10.5, "µM", 10.5)),
        ("10 %", (10.0, "%", None)),
        ("0.1 % (v/v)", (0.1, "% v/v", None)),
        ("10 ng/mL", (10.0, "ng/ml", None)),
        ("5 U/ml", (5.0, "U/ml", None)),
        ("5 units/mL", (5.0, "U/ml", None)),
        ("10 Gy", (10.0, "Gy", None)),
        ("20 J/m²", (20.0, "J/m2", None)),
        ("0", (0.0, "", None)),
        ("0 µM", (0.0, "µM", 0.0)),
        ("-0.0 µM", (0.0, "µM", 0.0)),
        ("7", (7.0, "", None)),
        ("", (None, "", None)),
        (" NA ", (None, "", None)),
        ("nan", (None, "", None)),
        ("-", (None, "", None)),
        (math.nan, (None, "", None)),
        (0.3, (0.3, "", None)),
        (0, (0.0, "", None)),
    ],
)
def test_a_dose_is_read(text: str | float, expected: tuple[float | None, str, float | None]) -> None:
    assert parse_dose(text) == expected


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("9.99999999999999999", "mM", (10.0, "mM", 10000.0)),
        (0.1, "mmol/L", (0.1, "mM", 100.0)),
        ("3", "NA", (3.0, "", None)),
        ("3 uM", "µM", (3.0, "µM", 3.0)),
        ("", "µM", (None, "", None)),
        (math.nan, "furlong", (None, "", None)),
    ],
)
def test_a_unit_beside_the_dose_holds(text: str | float, unit: str, expected: object) -> None:
    assert parse_dose(text, unit) == expected


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        ("3 furlong", "", r"unknown unit 'furlong'; write one of M, mM, µM, .*µg/ml.*U/ml"),
        ("3", "parsec", "unknown unit 'parsec'"),
        ("3 µ/ml", "", "unknown unit"),
        ("3 uM", "nM", "'3 uM' stands under the unit nM"),
        ("-3 µM", "", "is negative"),
        ("−3 µM", "", "is negative"),
        ("1,000 nM", "", "can be read as 1000 or as 1.000"),
        ("10 000 nM", "", "is no number with a unit"),
        ("1.000,5 nM", "", "is no number with a unit"),
        ("10² nM", "", "unknown unit"),
        ("１0 nM", "", "is no number with a unit"),
        ("inf", "", "is no number"),
        (math.inf, "", "is no number"),
        ("high", "", "is no number"),
        ("<3 µM", "", "is no number"),
        ("1e200 µM", "", "beyond any dose"),
        ("1e-200 µM", "", "beyond any dose"),
    ],
)
def test_what_is_no_dose_is_refused(text: str | float, unit: str, message: str) -> None:
    with pytest.raises(PlateMapError, match=message):
        parse_dose(text, unit)


@given(value=st.floats(1e-15, 1e15), unit=st.sampled_from(KNOWN_UNITS), gap=st.sampled_from(["", " ", "\u202f"]))
def test_a_written_dose_comes_back(value: float, unit: str, gap: str) -> None:
    dose, kept, dose_um = parse_dose(f"{value!r}{gap}{unit}")
    assert (dose, kept) == (value, unit)
    assert (dose, kept, dose_um) == parse_dose(value, unit)
    if unit in MOLAR_EXPONENTS:
        assert dose_um == pytest.approx(value * 10.0 ** MOLAR_EXPONENTS[unit], rel=1e-12)
    else:
        assert dose_um is None


@given(value=st.floats(0, 1e6).map(lambda value: round(value, 2)), unit=st.sampled_from(KNOWN_UNITS))
def test_a_decimal_comma_is_a_decimal_point(value: float, unit: str) -> None:
    assert parse_dose(f"{value:.2f} {unit}".replace(".", ",", 1)) == parse_dose(value, unit)


@given(st.text(max_size=30))
def test_any_text_is_a_dose_or_an_error_in_words(text: str) -> None:
    with contextlib.suppress(PlateMapError):
        dose, unit, dose_um = parse_dose(text)
        assert dose is None or (dose >= 0 and math.isfinite(dose))
        assert dose_um is None or unit in MOLAR_EXPONENTS


@pytest.mark.parametrize("unit", KNOWN_UNITS)
def test_every_unit_is_its_own_spelling_in_any_case(unit: str) -> None:
    assert known_unit(unit) == known_unit(unit.upper()) == known_unit(unit.replace("µ", "μ")) == unit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Doxorubicin 1 µM", ("Doxorubicin", "1 µM")),
        ("Doxorubicin (250nM)", ("Doxorubicin", "250nM")),
        ("DMSO 0.1%", ("DMSO", "0.1%")),
        ("Nutlin-3a", ("Nutlin-3a", "")),
        ("LY 294002", ("LY 294002", "")),
        ("Compound 7 rev", ("Compound 7 rev", "")),
        ("x" * 400 + " 1 µM", ("x" * 400 + " 1 µM", "")),
    ],
)
def test_a_dose_is_split_from_a_name(text: str, expected: tuple[str, str]) -> None:
    assert split_name_and_dose(text) == expected


@pytest.mark.parametrize(
    ("text", "timezone", "expected"),
    [
        ("2026-03-01T14:30", "Europe/Berlin", (13, 30)),
        ("2026-07-01 14:30:00", "Europe/Berlin", (12, 30)),
        ("2026-07-01T14:30+05:30", "Europe/Berlin", (9, 0)),
        ("2026-07-01T14:30Z", None, (14, 30)),
        ("2026-03-29T02:30+01:00", "Europe/Berlin", (1, 30)),
    ],
)
def test_treatment_times_become_utc(text: str, timezone: str | None, expected: tuple[int, int]) -> None:
    when = parse_treated_at(text, timezone)
    assert when.tzinfo is UTC
    assert (when.hour, when.minute) == expected


@pytest.mark.parametrize(
    ("text", "timezone", "message"),
    [
        ("2026-03-01T14:30", None, "has no time zone; write it with its offset"),
        ("2026-03-01T14:30", "Europe/Atlantis", "time zone 'Europe/Atlantis' is unknown"),
        ("2026-03-01T14:30", "../etc", "is unknown"),
        ("2026-03-29T02:30", "Europe/Berlin", r"does not exist in Europe/Berlin.*02:30:00\+01:00"),
        ("2026-10-25T02:30", "Europe/Berlin", r"comes twice in Europe/Berlin.*\+02:00 or .*\+01:00"),
        ("2026-03-01", "Europe/Berlin", "has no time of day"),
        ("30/01/2014 17:00", "Europe/Berlin", "is not ISO 8601"),
        ("0001-01-01T00:00+14:00", None, "beyond the calendar"),
    ],
)
def test_treatment_times_that_leave_a_choice_are_refused(text: str, timezone: str | None, message: str) -> None:
    with pytest.raises(PlateMapError, match=message):
        parse_treated_at(text, timezone)


@given(when=st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1)))  # noqa: DTZ001 - local times are the subject
def test_local_times_come_back_or_are_refused(when: datetime) -> None:
    from zoneinfo import ZoneInfo

    try:
        utc = to_utc(when, "America/New_York")
    except PlateMapError:
        assert when.month in {3, 4, 10, 11}
        assert when.hour in {1, 2}
    else:
        assert utc.astimezone(ZoneInfo("America/New_York")).replace(tzinfo=None) == when
