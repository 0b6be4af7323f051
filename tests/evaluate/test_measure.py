"""Measurements: means over answers, every problem asked once."""

from pathlib import Path

import pytest

from chimerakit.errors import RecipeError
from chimerakit.evaluate.measure import measure
from chimerakit.evaluate.problems import Problem, load_problems
from chimerakit.evaluate.score import Generated
from chimerakit.events import Advanced, Event, Started

PROBLEMS = [Problem(str(i), f"{i}+0", str(i)) for i in range(10)]


def test_a_measurement_is_the_mean_of_the_answers() -> None:
    """Accuracy, tokens and traces are means; batches do not matter; progress counts problems."""
    asked: list[str] = []

    def backend(questions: "list[str]") -> list[Generated]:
        asked.extend(questions)
        return [
            Generated(f"<think></think>{q[0]}" if int(q[0]) % 2 else "0", 4 if int(q[0]) % 2 else 2, is_ended=True)
            for q in questions
        ]

    events: list[Event] = []
    found = measure("m", backend, PROBLEMS, batch=3, listener=events.append)  # type: ignore[arg-type]
    assert asked == [p.question for p in PROBLEMS]
    assert found.accuracy == 0.6  # the five odd ones, and 0
    assert found.output_tokens == 3
    assert found.trace_share == 0.5
    assert [a.problem for a in found.answers] == [p.id for p in PROBLEMS]
    assert [e for e in events if isinstance(e, Started)] == [Started("m answers", 10, "problems")]
    assert sum(e.amount for e in events if isinstance(e, Advanced)) == 10


def test_problems_are_read_in_order_up_to_a_count(tmp_path: Path) -> None:
    """A file of JSON lines gives its first problems."""
    file = tmp_path / "problems.jsonl"
    file.write_text("\n".join(f'{{"id": "{i}", "question": "{i}", "answer": "1"}}' for i in range(5)))
    assert [p.id for p in load_problems(file, 3)] == ["0", "1", "2"]
    assert len(load_problems(file)) == 5


def test_a_line_that_is_no_problem_is_named(tmp_path: Path) -> None:
    """The error says which line."""
    file = tmp_path / "problems.jsonl"
    file.write_text('{"id": "0", "question": "1", "answer": "1"}\n{"id": "1"}\n')
    with pytest.raises(RecipeError, match=r"problems\.jsonl, line 2: is no problem"):
        load_problems(file)
