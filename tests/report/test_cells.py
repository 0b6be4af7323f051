"""Numbers of a map's cells: packed here, read as page.js reads them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.report.cells import Cell, Mark, pack_cells, pack_codes
from tests.report.results import unpack

NUMBERS = st.floats(min_value=1e-48, max_value=9e18)


@given(st.lists(NUMBERS | st.none() | st.sampled_from(Mark)))
def test_cells_come_back_with_three_digits(cells: list[Cell]) -> None:
    """A number is what rounding its text to three digits gives; marks and empty cells are what they were."""
    expected = [
        f"mark {int(cell)}" if isinstance(cell, Mark) else None if cell is None else float(f"{cell:.2e}")
        for cell in cells
    ]
    assert unpack(pack_cells(cells)) == expected


@pytest.mark.parametrize(
    ("cell", "mark"),
    [
        (0.0, Mark.ZERO),
        (-0.0, Mark.ZERO),
        (-1e-17, Mark.ZERO),
        (1e-60, Mark.ZERO),
        (5e-324, Mark.ZERO),
        (math.inf, Mark.INFINITE),
        (1e21, Mark.INFINITE),
        (math.nan, Mark.UNDEFINED),
    ],
)
def test_what_is_no_number_of_the_scale_is_a_mark(cell: float, mark: Mark) -> None:
    """Zero, what is too small or too large, infinity, NaN."""
    assert unpack(pack_cells([cell])) == [f"mark {int(mark)}"]


def test_a_cell_takes_two_bytes() -> None:
    """So a map of 61 x 256 takes 42 kB of text, whatever stands in it."""
    assert len(pack_cells([1 / 3] * 61 * 256)) == 4 * math.ceil(2 * 61 * 256 / 3)


def test_bytes_are_little_endian() -> None:
    """The lower byte first, on any machine."""
    assert pack_codes([1, 256, 65535]) == "AQAAAf//"
