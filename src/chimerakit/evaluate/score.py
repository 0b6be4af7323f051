"""One answer -> what it shows. Pure functions of text."""

import re

from msgspec import Struct

from chimerakit.evaluate.problems import Problem

OPEN, CLOSE = "<think>", "</think>"


class Generated(Struct, frozen=True):
    """What a model wrote."""

    text: str
    """Special tokens written out, the end token left off."""
    num_tokens: int
    """Output tokens, the end token counted."""
    is_ended: bool
    """Whether the model ended by itself."""


class Answer(Struct, frozen=True):
    """One problem as a model answered it."""

    problem: str
    is_correct: bool
    output_tokens: int
    has_trace: bool
    """Whether a reasoning trace was opened."""
    is_closed: bool
    """Whether it was closed again; true without a trace."""
    is_ended: bool
    text: str


def score(problem: Problem, generated: Generated) -> Answer:
    """Right if the model ended by itself and the last whole number outside of its traces is the problem's answer."""
    has_trace = OPEN in generated.text
    is_closed = generated.text.count(CLOSE) >= generated.text.count(OPEN)
    numbers = re.findall(r"-?\d+", generated.text.rpartition(CLOSE)[2])
    return Answer(
        problem=problem.id,
        is_correct=generated.is_ended and is_closed and numbers[-1:] == [problem.answer],
        output_tokens=generated.num_tokens,
        has_trace=has_trace,
        is_closed=is_closed,
        is_ended=generated.is_ended,
        text=generated.text,
    )
