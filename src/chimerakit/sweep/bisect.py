"""Where a figure crosses a value, with few children. Pure functions of what is known so far."""

from collections.abc import Mapping
from itertools import pairwise

DIGITS = 6
"""Of a place on the axis."""


def crossing(known: Mapping[float, float], value: float) -> tuple[float, float] | None:
    """The narrowest pair of neighbours between which a figure crosses a value, the lowest of several; None without any."""
    places = sorted(known)
    found = [(a, b) for a, b in pairwise(places) if (known[a] < value) != (known[b] < value)]
    return min(found, key=lambda pair: (pair[1] - pair[0], pair[0]), default=None)


def middle(pair: tuple[float, float], within: float) -> float | None:
    """The place to look at next; None where both sides are near enough."""
    low, high = pair
    found = round((low + high) / 2, DIGITS)
    return None if high - low <= within or not low < found < high else found
