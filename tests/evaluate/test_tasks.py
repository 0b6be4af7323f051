"""Tasks: any file of problems, by the names of its fields; every mistake with its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from chimerakit.errors import TaskError
from chimerakit.evaluate.records import Problem, Scorer
from chimerakit.evaluate.tasks import load_task


def write(folder: Path, lines: list[Any], mapping: str | None = None) -> Path:
    """A file of problems, and one that maps its fields."""
    (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if mapping is None:
        return folder / "p.jsonl"
    (folder / "t.yaml").write_text("file: p.jsonl\n" + mapping)
    return folder / "t.yaml"


def test_plain_lines_need_no_mapping(tmp_path: Path) -> None:
    """id, question, answer; the first ones if so many are asked for."""
    file = write(tmp_path, [{"id": f"a{n}", "question": f"{n}?", "answer": str(n)} for n in range(5)])
    task = load_task(file)
    assert (task.name, task.scorer) == ("p", Scorer("exact"))
    assert task.problems[4] == Problem("a4", "4?", "4")
    assert [p.id for p in load_task(file, count=3).problems] == ["a0", "a1", "a2"]
    assert load_task(file, scorer="numeric").scorer == Scorer("numeric")
    assert load_task(file, scorer="regex:x(.)").scorer == Scorer("regex", "x(.)")


def test_fields_have_any_names(tmp_path: Path) -> None:
    """Also paths; a question may be put together; lines without an id are numbered."""
    lines = [{"doc": {"text": "What is {it}?", "hint": "two"}, "solution": "so 4\n#### 4"}]
    mapping = """question: "{doc.text} ({doc.hint})"
answer: solution
answer_pattern: "#### (.*)"
scorer: numeric
system: Be brief.
name: sums
"""
    task = load_task(write(tmp_path, lines, mapping))
    assert task.problems == (Problem("1", "What is {it}? (two)", "4"),)
    assert (task.name, task.system) == ("sums", "Be brief.")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ({"q": "?", "c": ["x", "y", "z"], "a": 1}, "B"),
        ({"q": "?", "c": ["x", "y", "z"], "a": "C"}, "C"),
        ({"q": "?", "c": ["x", "y", "z"], "a": "y"}, "B"),
        ({"q": "?", "c": {"label": ["1", "2"], "text": ["x", "y"]}, "a": "2"}, "B"),
        ({"q": "?", "c": {"text": ["x", "y"]}, "a": "A"}, "A"),
    ],
)
def test_choices_get_letters(line: dict[str, Any], answer: str, tmp_path: Path) -> None:
    """However the right one is named; the question lists them."""
    (problem,) = load_task(write(tmp_path, [line], "question: q\nanswer: a\nchoices: c\nscorer: choice\n")).problems
    assert problem.answer == answer
    assert problem.question.startswith("?\nA) x\nB) y")
    assert problem.choices == "ABC"[: len(problem.question.splitlines()) - 1]


@pytest.mark.parametrize(
    ("choices", "said", "reading", "answer"),
    [
        (["8", "2", "24", "120"], 2, "index", "C"),  # MMLU
        (["8", "2", "24", "120"], 2, "text", "B"),
        (["8", "2", "24", "120"], "2", None, "B"),
        (["8", "2", "24", "120"], "2", "index", "C"),
        (["8", "2", "24", "120"], 3, None, "D"),
        (["8", "2", "24", "120"], 24, None, "C"),
        (["0", "1", "2"], 1, None, "B"),  # as an index and as a text
        (["B", "A"], "A", None, "A"),  # a label goes before a text
        (["B", "A"], "A", "text", "B"),
        ({"label": ["1", "2"], "text": ["2", "1"]}, "1", None, "A"),  # ARC
        ({"label": ["1", "2"], "text": ["2", "1"]}, "1", "text", "B"),
        ({"label": ["1", "2"], "text": ["x", "y"]}, 2, None, "B"),
        ({"label": ["1", "2"], "text": ["x", "y"]}, 1, "label", "A"),
        ({"label": ["1", "2"], "text": ["x", "y"]}, 1, "index", "B"),
    ],
)
def test_a_number_is_an_index_or_what_the_mapping_says(
    choices: Any, said: Any, reading: str | None, answer: str, tmp_path: Path
) -> None:
    """Text is a label, else a text; an index only if that is said."""
    mapping = "choices: c\nscorer: choice\n" + (f"answer_is: {reading}\n" if reading else "")
    (problem,) = load_task(write(tmp_path, [{"question": "?", "answer": said, "c": choices}], mapping)).problems
    assert problem.answer == answer


@pytest.mark.parametrize(
    ("choices", "said", "says"),
    [
        (["8", "2", "24", "120"], 2, r"2: C as an index from 0, B as a text\n.*answer_is: index\|label\|text"),
        (["1", "2", "3", "4"], 1, "1: B as an index from 0, A as a text"),
        ({"label": ["1", "2"], "text": ["x", "y"]}, 1, "1: B as an index from 0, A as a label"),
        (["x", "y", "x"], "x", "'x': A and C as a text"),
    ],
)
def test_an_answer_that_could_be_two_choices_is_refused(choices: Any, said: Any, says: str, tmp_path: Path) -> None:
    """With every reading."""
    file = write(tmp_path, [{"question": "?", "answer": said, "c": choices}], "choices: c\nscorer: choice\n")
    with pytest.raises(TaskError, match=r"line 1: the answer could be several of the choices\n.*" + says):
        load_task(file)


@pytest.mark.parametrize(
    ("lines", "mapping", "says"),
    [
        ([], None, "holds no problems"),
        ([[1]], None, "line 1: is no problem"),
        ([{"id": "1", "question": "?"}], None, r"line 1: has no field 'answer'"),
        ([{"id": "1", "question": "?", "answer": "x"}] * 2, None, "line 2: has the id of an earlier one: '1'"),
        ([{"id": "1", "question": "?", "answer": None}], None, "the answer is neither text nor a number"),
        ([{"question": "?", "answer": "x"}], "scorer: best\n", "unknown scorer"),
        ([{"question": "?", "answer": "x"}], "scorer: {regex: '('}\n", "the scorer's pattern is none"),
        ([{"question": "?", "answer": "x"}], "scorer: choice\n", "choices: says which field has them"),
        ([{"question": "?", "answer": "x"}], "colour: red\n", "is no task: Object contains unknown field `colour`"),
        ([{"question": "?", "answer": "x"}], "answer_pattern: '#(.)'\n", "answer_pattern does not fit"),
        ([{"question": "?", "answer": "x", "c": ["a", "b"]}], "choices: c\n", "the answer is none of the choices"),
        (
            [{"question": "?", "answer": 5, "c": ["a", "b"]}],
            "choices: c\nanswer_is: index\n",
            "the answer is the index of none of the choices",
        ),
        ([{"question": "?", "answer": "x"}], "answer_is: index\n", "answer_is: says how one of choices is named"),
        ([{"question": "?", "answer": "x", "c": ["a"]}], "choices: c\nanswer_is: it\n", "Invalid enum value 'it'"),
        ([{"question": "?", "answer": "x", "c": "ab"}], "choices: c\n", "choices must be a list"),
    ],
)
def test_mistakes_are_named(lines: list[Any], mapping: str | None, says: str, tmp_path: Path) -> None:
    """With file and line."""
    with pytest.raises(TaskError, match=says):
        load_task(write(tmp_path, lines, mapping))


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    """And a file that is not there."""
    (tmp_path / "p.jsonl").write_text('{"id": "0", "question": "1", "answer": "1"}\n{"id": "1"\n')
    with pytest.raises(TaskError, match=r"p\.jsonl, line 2: is no problem"):
        load_task(tmp_path / "p.jsonl")
    with pytest.raises(TaskError, match="nothing"):
        load_task(tmp_path / "nothing.jsonl")
