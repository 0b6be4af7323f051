"""Numbers and names as a page says them."""

import math

import pytest

from chimerakit.report.words import say_count, say_lines, say_nbytes, say_number, say_share, say_text


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (688_586_727_753, "688.6 GB"), (5 * 10**15, "5,000.0 TB")],
)
def test_bytes_are_decimal(number: int, said: str) -> None:
    """As disks and the hub count."""
    assert say_nbytes(number) == said


def test_counts_may_be_unknown() -> None:
    """What headers and config do not say is not guessed."""
    assert (say_count(671_026_419_200), say_count(7), say_count(None)) == ("671.0 B", "7", "unknown")


def test_figures_have_three_digits() -> None:
    """A dash where there is none."""
    assert (say_number(0.00123456), say_share(0.5), say_number(math.nan)) == ("0.00123", "50 %", "–")  # noqa: RUF001


def test_texts_and_lists_end_where_nobody_reads_on() -> None:
    """With how much more there is."""
    assert say_text("x" * 301) == "x" * 300 + " ..."
    lines = say_lines([str(n) for n in range(203)])
    assert (len(lines), lines[-1]) == (201, "and 3 more, which the saved result holds")
