"""Scores: what one answer shows, by a table of cases."""

import pytest

from chimerakit.evaluate.problems import Problem
from chimerakit.evaluate.score import Generated, score

PROBLEM = Problem("p", "3+4*2-5", "9")


@pytest.mark.parametrize(
    ("text", "is_ended", "is_correct", "has_trace", "is_closed"),
    [
        ("9", True, True, False, True),
        ("7,4,9", True, True, False, True),
        ("9", False, False, False, True),
        ("8", True, False, False, True),
        ("19", True, False, False, True),
        ("-9", True, False, False, True),
        ("", True, False, False, True),
        ("<think>3+4=7;7*2=4;4-5=9</think>9", True, True, True, True),
        ("<think>3+4=7;7*2=4;4-5=9</think>", True, False, True, True),
        ("<think>9", True, False, True, False),
        ("<think>9</think>8", True, False, True, True),
        ("<think>1</think>2<think>3</think>9", True, True, True, True),
        ("9</think>", True, False, False, True),
        ("answer: 9.", True, True, False, True),
    ],
)
def test_an_answer_is_read(text: str, is_ended: bool, is_correct: bool, has_trace: bool, is_closed: bool) -> None:
    """Right is the last number outside of traces, from a model that ended by itself."""
    answer = score(PROBLEM, Generated(text, 5, is_ended))
    assert (answer.is_correct, answer.has_trace, answer.is_closed) == (is_correct, has_trace, is_closed)
