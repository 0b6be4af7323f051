"""Numbers as terminal and page say them."""

import pytest

from chimerakit.words import say_count, say_many, say_nbytes, say_shares, say_spans


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (688_586_727_753, "688.6 GB"), (5 * 10**15, "5,000.0 TB")],
)
def test_bytes_are_decimal(number: int, said: str) -> None:
    """As disks and the hub count."""
    assert say_nbytes(number) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0"), (999, "999"), (1000, "1.0k"), (671_026_419_200, "671.0B"), (5 * 10**15, "5,000.0T")],
)
def test_counts_as_people_say_them(number: int, said: str) -> None:
    """Thousands, millions, billions, trillions."""
    assert say_count(number) == said


def test_counts_may_be_unknown_or_keep_a_distance() -> None:
    """What headers and config do not say is not guessed; a page sets the letter apart."""
    assert (say_count(None), say_count(671_026_419_200, " "), say_count(7, " ")) == ("unknown", "671.0 B", "7")


def test_one_thing_has_no_plural() -> None:
    """And thousands have commas."""
    assert [say_many(number, "unit") for number in (0, 1, 2000)] == ["0 units", "1 unit", "2,000 units"]


def test_shares_are_said_without_the_rounding_of_binary_numbers() -> None:
    """1 - 0.9 is 0.1 to a reader."""
    assert say_shares({"v3": 1 - 0.9, "r1": 0.9}) == "0.1 v3 + 0.9 r1"


def test_a_span_of_one_share_is_that_share() -> None:
    """And a whole parent is only named."""
    assert say_spans({"v3": (1.0, 1.0)}) == "v3"
    assert say_spans({"v3": (0.25, 0.25), "r1": (0.5, 0.75)}) == "0.25 v3, 0.5 to 0.75 r1"
