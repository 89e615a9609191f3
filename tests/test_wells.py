"""One spelling for wells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sesmo_live.errors import UsageError
from sesmo_live.wells import PLATE_SHAPES, fits_plate, parse_well, smallest_plate, well_name, well_position


@pytest.mark.parametrize(
    ("text", "well"),
    [
        ("A1", "A01"),
        ("a01", "A01"),
        (" B3 ", "B03"),
        ("H-12", "H12"),
        ("P_24", "P24"),
        ("af48", "AF48"),
        ("A001", "A01"),
    ],
)
def test_every_spelling_becomes_one(text: str, well: str) -> None:
    assert parse_well(text) == well


@pytest.mark.parametrize("text", ["", "A", "1", "A0", "A49", "AG1", "BA1", "B03x", "well", "A1B"])
def test_what_is_no_well_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="is not a well"):
        parse_well(text)


@given(st.sampled_from(sorted(PLATE_SHAPES)), st.data())
def test_positions_and_names_are_inverse(wells: int, data: st.DataObject) -> None:
    rows, columns = PLATE_SHAPES[wells]
    row, column = data.draw(st.integers(1, rows)), data.draw(st.integers(1, columns))
    name = well_name(row, column)
    assert parse_well(name) == name
    assert well_position(name) == (row, column)
    assert fits_plate(name, wells)


def test_smallest_plate() -> None:
    assert smallest_plate(["A01", "H12"]) == 96
    assert smallest_plate(["A01", "P24"]) == 384
    assert not fits_plate("I01", 96)
