"""The search for a transition: few looks, a true bracket."""

from hypothesis import given
from hypothesis import strategies as st

from chimerakit.sweep.bisect import crossing, middle


@given(st.floats(0.01, 0.99), st.floats(0.001, 0.5), st.booleans())
def test_the_bracket_holds_the_step_and_is_as_narrow_as_asked(step: float, within: float, is_falling: bool) -> None:
    """With one look more for each halving."""

    def figure(place: float) -> float:
        return float((place >= step) != is_falling)

    known = {0.0: figure(0.0), 1.0: figure(1.0)}
    while (pair := crossing(known, 0.5)) is not None and (place := middle(pair, within)) is not None:
        known[place] = figure(place)
    assert pair is not None
    assert pair[0] < step <= pair[1] or (pair[0] <= step <= pair[1])
    assert pair[1] - pair[0] <= within + 1e-6
    assert len(known) <= 2 + 11


@given(st.dictionaries(st.floats(0, 1), st.floats(0, 0.49), min_size=1))
def test_what_never_crosses_has_no_transition(known: dict[float, float]) -> None:
    """Nothing is made up."""
    assert crossing(known, 0.5) is None


def test_of_several_crossings_the_narrowest_is_followed() -> None:
    """So that a search that has begun goes on where it was."""
    assert crossing({0: 0, 0.5: 1, 0.6: 0, 1: 1}, 0.5) == (0.5, 0.6)
