"""A model and problems -> Measurement."""

from collections.abc import Sequence

from msgspec import Struct

from chimerakit.evaluate.backends import Backend
from chimerakit.evaluate.problems import Problem
from chimerakit.evaluate.score import Answer, score
from chimerakit.events import Advanced, Finished, Listener, Started


class Measurement(Struct, frozen=True):
    """How a model did on a set of problems."""

    model: str
    answers: tuple[Answer, ...]
    accuracy: float
    """Share of right answers."""
    output_tokens: float
    """Mean per problem."""
    trace_share: float
    """Share of answers with a reasoning trace."""


def measure(name: str, backend: Backend, problems: Sequence[Problem], *, batch: int, listener: Listener) -> Measurement:
    """Let a model answer every problem."""
    listener(Started(f"{name} answers", len(problems), "problems"))
    answers: list[Answer] = []
    for first in range(0, len(problems), batch):
        asked = problems[first : first + batch]
        generated = backend([problem.question for problem in asked])
        answers += [score(problem, said) for problem, said in zip(asked, generated, strict=True)]
        listener(Advanced(len(asked)))
    listener(Finished(f"{name} answers"))
    count = max(1, len(answers))
    return Measurement(
        model=name,
        answers=tuple(answers),
        accuracy=sum(a.is_correct for a in answers) / count,
        output_tokens=sum(a.output_tokens for a in answers) / count,
        trace_share=sum(a.has_trace for a in answers) / count,
    )
