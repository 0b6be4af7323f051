"""Answers -> Measurement; two models' answers to the same problems -> Difference. Pure functions."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median

from chimerakit.evaluate.reading import Surprise
from chimerakit.evaluate.records import Answer, Difference, Estimate, Example, Measurement, Model, Settings, Task
from chimerakit.evaluate.scorers import value_of
from chimerakit.evaluate.statistics import Bootstrap

Answers = Mapping[str, Sequence[Answer]]
"""By problem, in the order of the samples."""


def by_problem(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Answers of one model to one task, by problem, in the order of the samples."""
    found: dict[str, list[Answer]] = defaultdict(list)
    for answer in sorted(answers, key=lambda answer: answer.sample):
        found[answer.problem].append(answer)
    return dict(found)


def measure(model: Model, task: Task, settings: Settings, answers: Answers) -> Measurement:
    """What a model's answers show. Every problem has as many samples."""
    everything = [answer for each in answers.values() for answer in each]
    draws = Bootstrap(len(answers))
    samples = len(next(iter(answers.values())))
    traced = [answer for answer in everything if answer.has_trace]
    # A trace's tokens are asked of answers with a trace only: a mean over these, whose number is drawn as well.
    is_counted = bool(traced) and all(answer.reasoning_tokens is not None for answer in traced)
    reasoning = draws.ratio(
        _means(answers, lambda a: float(a.reasoning_tokens or 0) if a.has_trace else 0.0),
        _means(answers, lambda a: float(a.has_trace)),
    )

    def share(of: Callable[[Answer], object]) -> float:
        return fmean(bool(of(answer)) for answer in everything)

    return Measurement(
        model=model,
        task=task.name,
        settings=settings,
        problems=len(answers),
        samples=samples,
        accuracy=draws.mean(_means(answers, lambda a: a.is_correct)),
        majority=draws.mean([_is_majority_right(each) for each in answers.values()]) if samples > 1 else None,
        spread=_spread(answers) if samples > 1 else None,
        output_tokens=draws.mean(_means(answers, lambda a: a.output_tokens)),
        trace_rate=draws.mean(_means(answers, lambda a: a.has_trace)),
        reasoning_tokens=reasoning if is_counted else None,
        tokens_per_correct=draws.ratio(
            _means(answers, lambda a: a.output_tokens), _means(answers, lambda a: a.is_correct)
        ),
        workable=draws.mean([all(answer.is_workable for answer in each) for each in answers.values()]),
        closed=fmean(answer.is_closed for answer in traced) if traced else 1.0,
        closed_only=share(lambda a: a.is_closed_only),
        opened_twice=share(lambda a: a.is_opened_twice),
        empty=share(lambda a: a.is_empty),
        opened_by_prompt=share(lambda a: a.is_opened_by_prompt),
        truncated=share(lambda a: a.is_truncated),
        looping=share(lambda a: a.is_looping),
        seconds=median(answer.seconds for answer in everything),
        tokens_per_second=median(a.output_tokens / a.seconds if a.seconds else 0.0 for a in everything),
    )


def differ(model: str, against: str, task: str, mine: Answers, theirs: Answers) -> Difference | None:
    """How two models differ on the problems that both have answered; None if there are none."""
    both = [problem for problem in mine if problem in theirs]
    if not both:
        return None
    draws = Bootstrap(len(both))
    sides = [{problem: side[problem] for problem in both} for side in (mine, theirs)]
    right, their_right = (_means(side, lambda a: a.is_correct) for side in sides)
    tokens, their_tokens = (_means(side, lambda a: a.output_tokens) for side in sides)
    ratio = draws.ratio(tokens, their_tokens)
    assert ratio is not None  # every answer has its end
    return Difference(
        model=model,
        against=against,
        task=task,
        problems=len(both),
        accuracy=draws.mean([a - b for a, b in zip(right, their_right, strict=True)]),
        output_tokens=draws.mean([a - b for a, b in zip(tokens, their_tokens, strict=True)]),
        token_ratio=ratio,
        kept=draws.ratio(right, their_right),
    )


def perplexity(surprises: Sequence[Surprise]) -> Estimate:
    """exp of the mean -log probability of a token, over texts; the interval is over texts."""
    found = Bootstrap(len(surprises)).ratio([s.nats for s in surprises], [float(s.tokens) for s in surprises])
    assert found is not None  # every answer has a token
    return Estimate(math.exp(found.value), math.exp(found.low), math.exp(found.high))


def pick_examples(task: Task, answers: Mapping[str, Answers], count: int) -> list[Example]:
    """Problems on which models differ most, as each of them answered."""
    shared = [p for p in task.problems if all(p.id in each for each in answers.values())]

    def variety(number: int) -> tuple[int, int]:
        first = [each[shared[number].id][0] for each in answers.values()]
        return len({(a.is_correct, a.has_trace) for a in first}), len({a.output_tokens for a in first})

    most = sorted(range(len(shared)), key=lambda number: (*(-n for n in variety(number)), number))[:count]
    return [
        Example(task.name, p.id, p.question, p.answer, {name: each[p.id][0] for name, each in answers.items()})
        for p in (shared[number] for number in sorted(most))
    ]


def _means(answers: Answers, of: Callable[[Answer], float]) -> list[float]:
    """A number for each problem: the mean of its samples."""
    return [fmean(of(answer) for answer in each) for each in answers.values()]


def _is_majority_right(each: Sequence[Answer]) -> float:
    """Whether the answer that most samples have is right; among equally frequent ones the first counts.

    Right answers are one, however they are written; wrong ones are one if they are written alike, or are one number.
    """
    said = [_meaning(answer) for answer in each if answer.said is not None and not answer.is_truncated]
    return float(bool(said) and Counter(said).most_common(1)[0][0] == _RIGHT)


_RIGHT = "(right)"


def _meaning(answer: Answer) -> str:
    if answer.is_correct:
        return _RIGHT
    value = value_of(answer.said or "")
    return str(answer.said) if value is None else str(value)


def _spread(answers: Answers) -> float:
    """The root of the mean variance of correctness between samples of one problem."""
    shares = _means(answers, lambda a: a.is_correct)
    counts = [len(each) for each in answers.values()]
    return math.sqrt(fmean(p * (1 - p) * n / (n - 1) for p, n in zip(shares, counts, strict=True)))
