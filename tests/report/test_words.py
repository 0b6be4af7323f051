"""Texts and figures as a page says them."""

import math

from chimerakit.report.words import say_lines, say_number, say_share, say_text, say_way
from tests.report.results import explained


def test_figures_have_three_digits() -> None:
    """A dash where there is none."""
    assert (say_number(0.00123456), say_share(0.5), say_number(math.nan)) == ("0.00123", "50 %", "–")  # noqa: RUF001


def test_texts_and_lists_end_where_nobody_reads_on() -> None:
    """With how much more there is."""
    assert say_text("x" * 301) == "x" * 300 + " ..."
    lines = say_lines([str(n) for n in range(203)])
    assert (len(lines), lines[-1]) == (201, "and 3 more, which the saved result holds")


def test_units_are_said_by_how_they_are_made() -> None:
    """Equal to whom, mixed of whom, about what, or nothing that is known."""
    units = [
        explained("a", "norm", 0, {"v3": 1.0, "r1": 1.0}),
        explained("b", "norm", 0, {"v3": 0.25, "r1": 0.75}),
        explained("c", "norm", 0, {"v3": 0.3, "r1": 0.7}, verdict="estimated"),
        explained("d", "norm", 0, {}, verdict="unexplained"),
    ]
    assert [*map(say_way, units)] == ["= v3 = r1", "0.25 v3 + 0.75 r1", "about 0.3 v3 + 0.7 r1", "unexplained"]
