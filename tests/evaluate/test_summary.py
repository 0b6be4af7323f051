"""Measurements: means over answers, by the naive way; differences, paired."""

import statistics

import pytest

from chimerakit.evaluate.records import Answer, Ask, Generated, Model, Problem, Scorer, Settings, Task
from chimerakit.evaluate.score import score
from chimerakit.evaluate.summary import by_problem, differ, measure, pick_examples

MODEL = Model("m", "w", "t", "transformers")
TASK = Task("t", tuple(Problem(str(n), f"{n}?", str(n)) for n in range(10)), Scorer("numeric"))


def answer(
    problem: int, text: str, tokens: int = 5, *, sample: int = 0, is_ended: bool = True, trace: int = 0
) -> Answer:
    """An answer as it would be scored."""
    ask = Ask(str(problem), sample, 0, "", "?")
    said = Generated(text, tokens, is_ended, seconds=2.0, reasoning_tokens=trace)
    return score(ask, TASK.problems[problem], said, TASK.scorer, Settings())


def test_a_measurement_is_the_mean_of_the_answers() -> None:
    """Of accuracy, tokens, traces; and what is wrong is counted."""
    answers = [
        answer(n, f"<think></think>{n}" if n % 2 else "0", 40 if n % 2 else 2, trace=30 * (n % 2)) for n in range(10)
    ]
    found = measure(MODEL, TASK, Settings(), by_problem(answers))
    assert found.accuracy.value == 0.6  # the five odd ones, and 0
    assert found.output_tokens.value == 21
    assert found.trace_rate.value == 0.5
    assert found.reasoning_tokens is not None
    assert found.reasoning_tokens.value == 30  # of answers with a trace
    assert found.tokens_per_correct is not None
    assert found.tokens_per_correct.value == pytest.approx(210 / 6)
    assert (found.empty, found.truncated, found.workable.value, found.is_workable) == (0.5, 0, 1, True)
    assert (found.seconds, found.tokens_per_second) == (2.0, statistics.median([1.0] * 5 + [20.0] * 5))
    assert (found.majority, found.spread, found.samples) == (None, None, 1)


def test_a_model_is_workable_on_95_percent() -> None:
    """One of twenty may fail, two may not; of samples none may."""
    task = Task("t", tuple(Problem(str(n), "?", "1") for n in range(20)), Scorer("numeric"))
    for failing, is_workable in ((1, True), (2, False)):
        answers = {
            str(n): [
                score(
                    Ask(str(n), 0, 0, "", "?"),
                    task.problems[n],
                    Generated("1", 1, n >= failing),
                    task.scorer,
                    Settings(),
                )
            ]
            for n in range(20)
        }
        assert measure(MODEL, task, Settings(), answers).is_workable is is_workable


def test_samples_have_a_majority_and_a_spread() -> None:
    """The answer that most have; the first of equally frequent ones; the spread is that of correctness."""
    said = {0: ["0", "0", "5"], 1: ["5", "5", "1"], 2: ["2", "2", "2"], 3: ["3", "5", "6"]}
    answers = [answer(n, text, sample=k) for n, each in said.items() for k, text in enumerate(each)]
    found = measure(MODEL, TASK, Settings(temperature=1.0), by_problem(answers))
    assert found.samples == 3
    assert found.accuracy.value == pytest.approx((2 / 3 + 1 / 3 + 1 + 1 / 3) / 4)
    assert found.majority is not None
    assert found.majority.value == 0.75
    variances = [statistics.variance([float(text == str(n)) for text in each]) for n, each in said.items()]
    assert found.spread == pytest.approx(statistics.fmean(variances) ** 0.5)


def test_without_right_answers_nothing_is_said_per_right_answer() -> None:
    """Nor tokens of traces that nobody could count."""
    answers = [answer(n, "<think>x</think>no") for n in range(10)]
    found = measure(MODEL, TASK, Settings(), by_problem(answers))
    assert (found.tokens_per_correct, found.accuracy.value, found.workable.value) == (None, 0, 0)


def test_a_difference_is_paired_by_problem() -> None:
    """Over what both have answered, whatever the order."""
    mine = by_problem([answer(n, str(n), 10 + n) for n in (5, 1, 2, 7)])
    theirs = by_problem([answer(n, "99" if n == 2 else str(n), 20 + n) for n in (1, 2, 5, 8)])
    found = differ("a", "b", "t", mine, theirs)
    assert found is not None
    assert found.problems == 3
    assert found.accuracy.value == pytest.approx(1 / 3)
    assert found.output_tokens.value == -10
    assert (found.output_tokens.low, found.output_tokens.high) == (-10, -10)  # the same for each pair
    assert found.token_ratio.value == pytest.approx((15 + 11 + 12) / (25 + 21 + 22))
    assert found.kept is not None
    assert found.kept.value == pytest.approx(3 / 2)
    assert differ("a", "b", "t", mine, by_problem([answer(9, "9")])) is None


def test_examples_are_where_models_differ() -> None:
    """In the order of the task."""
    one = by_problem([answer(n, str(n)) for n in range(10)])
    two = by_problem([answer(n, "<think>1</think>0" if n in (3, 7) else str(n)) for n in range(10)])
    found = pick_examples(TASK, {"one": one, "two": two}, 2)
    assert [example.problem for example in found] == ["3", "7"]
    assert found[0].answers["two"].reasoning == "1"
