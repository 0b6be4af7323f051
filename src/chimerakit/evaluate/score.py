"""What an engine gave back -> what it shows. A pure function, so answers can be scored anew without asking again."""

from chimerakit.evaluate.records import Answer, Ask, Generated, Problem, Scorer, Settings
from chimerakit.evaluate.scorers import is_right, read_answer
from chimerakit.evaluate.traces import cut_trace, is_looping


def score(ask: Ask, problem: Problem, said: Generated, scorer: Scorer, settings: Settings) -> Answer:
    """Right is an answer that ended by itself, with its trace closed, and whose text says what is right."""
    trace = cut_trace(said, settings)
    found = read_answer(trace.text, problem, scorer)
    return Answer(
        problem=problem.id,
        sample=ask.sample,
        said=found,
        is_correct=said.is_ended and trace.is_closed and is_right(found, problem, scorer),
        output_tokens=said.output_tokens,
        reasoning_tokens=said.reasoning_tokens,
        has_trace=trace.has_trace,
        is_closed=trace.is_closed,
        is_closed_only=trace.is_closed_only,
        is_opened_twice=trace.is_opened_twice,
        is_empty=trace.has_trace and not trace.reasoning.strip(),
        is_opened_by_prompt=said.opened,
        is_truncated=not said.is_ended,
        is_looping=not said.is_ended and is_looping((said.reasoning or "") + said.text),
        seconds=said.seconds,
        reasoning=trace.reasoning,
        text=trace.text,
    )
