"""Numbers of a map's cells, small enough for a page: three significant digits, or a mark, in two bytes each.

    0          nothing is there
    1 to 15    marks
    16 and up  16 + 900 (e + 50) + (d - 100): the number d x 10^(e - 2), of the digits d and the exponent e

page.js reads them.
"""

import base64
import math
import sys
from array import array
from collections.abc import Iterable
from enum import IntEnum


class Mark(IntEnum):
    """What stands in a cell that no colour of the scale may be given to."""

    ZERO = 1
    INFINITE = 2
    UNDEFINED = 3
    """The figure has no meaning there."""
    AGREE = 4
    """Parents agree, so nothing shows which of them it is."""
    WRONG = 5
    """Look here."""


Cell = float | Mark | None

_FIRST = 16
_LOWEST, _HIGHEST = -50, 20
"""Exponents of ten; what is smaller counts as zero, what is larger as infinite."""


def pack_cells(cells: Iterable[Cell]) -> str:
    """Cells as base64 of little-endian 16-bit codes. Numbers are none below 0."""
    return pack_codes(_code(cell) for cell in cells)


def pack_codes(codes: Iterable[int]) -> str:
    """Numbers from 0 to 65535 as base64 of two bytes each, the lower one first."""
    found = array("H", codes)
    if sys.byteorder == "big":
        found.byteswap()
    return base64.b64encode(found.tobytes()).decode()


def _code(cell: Cell) -> int:
    if cell is None or isinstance(cell, Mark):
        return cell or 0
    if math.isnan(cell):
        return Mark.UNDEFINED
    if math.isinf(cell):
        return Mark.INFINITE
    digits, _, exponent = f"{cell:.2e}".partition("e")
    if cell <= 0 or int(exponent) < _LOWEST:
        return Mark.ZERO
    if int(exponent) > _HIGHEST:
        return Mark.INFINITE
    return _FIRST + 900 * (int(exponent) - _LOWEST) + int(digits.replace(".", "")) - 100
