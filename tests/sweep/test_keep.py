"""Whose weights stay."""

from msgspec.structs import replace

from chimerakit.evaluate.records import Estimate, Measurement, Settings
from chimerakit.evaluate.summary import by_problem, measure
from chimerakit.sweep.keep import Keep, to_drop
from tests.evaluate.test_summary import MODEL, TASK, answer

ONE = measure(MODEL, TASK, Settings(), by_problem([answer(n, str(n)) for n in range(10)]))


def measured(accuracy: float, tokens: float) -> Measurement:
    """A child that did so well, in so many tokens."""
    return replace(ONE, accuracy=Estimate(accuracy, 0, 1), output_tokens=Estimate(tokens, 0, 99))


def test_of_equally_accurate_children_those_with_fewer_tokens_stay() -> None:
    """Accuracy comes first; what is alike in both goes by name, so that every call drops the same."""
    found = {
        "long": measured(0.9, 60),
        "terse": measured(0.8, 10),
        "b": measured(0.9, 30),
        "a": measured(0.9, 30),
        "best": measured(0.95, 90),
    }
    assert to_drop(Keep(3), found) == ["long", "terse"]
    assert to_drop(Keep(2), found) == ["b", "long", "terse"]
    assert to_drop(Keep(0), found) == ["best", "a", "b", "long", "terse"]
    assert to_drop(Keep(9), found) == to_drop(Keep(), found) == []
