"""A file of problems, and the names of its fields -> Task.

TASK.jsonl    lines of {"id": ..., "question": ..., "answer": ...}
TASK.yaml     file: gsm8k-test.jsonl        where they lie, from this file's folder
              question: "{question}"        a field, or a text with fields in braces
              answer: answer                a field ...
              answer_pattern: "#### (.*)"   ... or what of it is the answer
              id: id                        a field; without one, the number of the line
              choices: choices              a field with a list of choices, or {label: [...], text: [...]}
              answer_is: index              with choices: index (from 0), label or text, where a number could be several
              scorer: numeric               exact, numeric, choice, boxed, or {regex: "..."}
              system: You are ...
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct

from chimerakit.errors import ChimerakitError, TaskError
from chimerakit.evaluate.records import Problem, Scorer, Task
from chimerakit.evaluate.scorers import value_of
from chimerakit.recipe import MAX_TEXT
from chimerakit.recipe.text import load_yaml
from chimerakit.stores.local import read_file

_MAX_FILE = 256 << 20
_PLACE = re.compile(r"\{([\w.]+)\}")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_Reading = Literal["index", "label", "text"]
_KINDS = tuple(kind for kind in get_args(Scorer.__annotations__["kind"]) if kind != "regex")


class Mapped(Struct, frozen=True, forbid_unknown_fields=True):
    """What a task's YAML says."""

    file: str
    question: str = "question"
    answer: str = "answer"
    answer_pattern: str | None = None
    id: str | None = "id"
    choices: str | None = None
    answer_is: _Reading | None = None
    scorer: str | dict[str, str] = "exact"
    system: str = ""
    name: str | None = None


def load_task(path: Path, *, scorer: str | None = None, count: int | None = None) -> Task:
    """A task of a .jsonl or .yaml file. scorer: in place of the file's. count: the first problems only.

    Raises TaskError, naming the line.
    """
    mapped = Mapped(file=path.name) if path.suffix == ".jsonl" else _mapped(path)
    found = _scorer(mapped.scorer if scorer is None else scorer, path)
    if mapped.answer_pattern is not None:
        _check_pattern(mapped.answer_pattern, "answer_pattern", path)
    if mapped.answer_is is not None and mapped.choices is None:
        raise TaskError("answer_is: says how one of choices is named", where=path, expected="choices: FIELD")
    problems = _problems(path.parent / mapped.file, mapped, found, count)
    if found.kind == "numeric" and (wrong := next((p for p in problems if value_of(p.answer) is None), None)):
        raise TaskError(
            "the right answer is no number, so nothing could be right by `numeric`",
            where=f"{path}, problem {wrong.id}",
            found=repr(wrong.answer)[:200],
            do="say what of it is the answer: answer_pattern",
        )
    return Task(check_name(mapped.name or path.stem, "task"), problems, found, mapped.system)


def check_name(name: str, what: str) -> str:
    """A name by which files are called. Raises TaskError for one that leads elsewhere."""
    if not name or name.startswith(".") or not all(c.isalnum() or c in "-_.+" for c in name):
        raise TaskError(f"a {what}'s name is a word, as files are called by it", where=name, do="give it another one")
    return name


def _mapped(path: Path) -> Mapped:
    try:
        data = load_yaml(read_file(path, MAX_TEXT).decode("utf-8"), path)
        return msgspec.convert(data, Mapped)
    except UnicodeDecodeError as e:
        raise TaskError(f"is not UTF-8 text (byte {e.start})", where=path) from e
    except msgspec.ValidationError as e:
        raise TaskError(f"is no task: {e}", where=path, expected="file:, question:, answer:, scorer:, ...") from e
    except ChimerakitError as e:
        raise TaskError(str(e)) from e


def _scorer(said: str | Mapping[str, str], where: Path) -> Scorer:
    if isinstance(said, str) and said in _KINDS:
        return Scorer(said)  # type: ignore[arg-type]
    pattern = said.removeprefix("regex:") if isinstance(said, str) else said.get("regex")
    if not pattern or pattern == said or (not isinstance(said, str) and len(said) != 1):
        expected = f"{', '.join(_KINDS)}, or a regex"
        raise TaskError("unknown scorer", where=where, expected=expected, found=repr(said))
    _check_pattern(pattern, "the scorer's pattern", where)
    return Scorer("regex", pattern)


def _check_pattern(pattern: str, what: str, where: Path) -> None:
    try:
        re.compile(pattern)
    except re.error as e:
        raise TaskError(f"{what} is none: {e}", where=where, found=repr(pattern)) from e


def _problems(file: Path, mapped: Mapped, scorer: Scorer, count: int | None) -> tuple[Problem, ...]:
    if scorer.kind == "choice" and mapped.choices is None:
        raise TaskError("choices: says which field has them", where=file, expected="choices: FIELD")
    try:
        lines = read_file(file, _MAX_FILE).splitlines()
    except ChimerakitError as e:
        raise TaskError(str(e)) from e
    found: dict[str, Problem] = {}
    for number, line in enumerate(lines, 1):
        if count is not None and len(found) == count:
            break
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            data = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise TaskError(f"is no problem: {e}", where=where) from e
        problem = _problem(data, number, mapped, where)
        if problem.id in found:
            raise TaskError(f"has the id of an earlier one: {problem.id!r}", where=where)
        found[problem.id] = problem
    if not found:
        raise TaskError("holds no problems", where=file)
    return tuple(found.values())


def _problem(data: Any, number: int, mapped: Mapped, where: str) -> Problem:
    if not isinstance(data, dict):
        raise TaskError("is no problem", where=where, expected="an object", found=type(data).__name__)
    choices = [] if mapped.choices is None else _choices(_field(data, mapped.choices, where), where)
    if _PLACE.search(mapped.question):  # what stands in a field is no place for another one
        question = _PLACE.sub(lambda place: _text(data, place[1], where), mapped.question)
    else:
        question = _text(data, mapped.question, where)
    if choices:
        question += "\n" + "\n".join(f"{letter}) {text}" for letter, (_, text) in zip(_LETTERS, choices, strict=False))
    has_id = mapped.id is not None and (mapped.id != "id" or "id" in data)
    return Problem(
        id=str(_field(data, mapped.id or "", where)) if has_id else str(number),
        question=question,
        answer=_answer(_field(data, mapped.answer, where), mapped, choices, where),
        choices=_LETTERS[: len(choices)],
    )


def _field(data: Mapping[str, Any], name: str, where: str) -> Any:
    """A field by its name, or by a path with dots."""
    found: Any = data
    for part in [name] if name in data else name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise TaskError(f"has no field {name!r}", where=where, found=", ".join(map(str, data))[:200])
        found = found[part]
    return found


def _text(data: Mapping[str, Any], name: str, where: str) -> str:
    found = _field(data, name, where)
    if not isinstance(found, str | int | float) or isinstance(found, bool):
        raise TaskError(f"the field {name!r} is neither text nor a number", where=where, found=repr(found)[:200])
    return str(found)


def _choices(said: Any, where: str) -> list[tuple[str, str]]:
    """(label, text) of each choice."""
    if isinstance(said, dict) and isinstance(said.get("text"), list):
        texts, labels = said["text"], said.get("label", list(_LETTERS[: len(said["text"])]))
    else:
        texts, labels = said, list(_LETTERS)[: len(said) if isinstance(said, list) else 0]
    is_list = isinstance(texts, list) and isinstance(labels, list)
    if not is_list or not 2 <= len(texts) <= len(_LETTERS) or len(labels) != len(texts):
        raise TaskError("choices must be a list of 2 to 26", where=where, found=repr(said)[:200])
    return [(str(label), str(text)) for label, text in zip(labels, texts, strict=True)]


def _answer(said: Any, mapped: Mapped, choices: list[tuple[str, str]], where: str) -> str:
    """The right answer as a scorer will find it: of choices the letter."""
    if isinstance(said, bool) or not isinstance(said, str | int | float):
        raise TaskError("the answer is neither text nor a number", where=where, found=repr(said)[:200])
    if choices:
        return _right_choice(said, mapped.answer_is, choices, where)
    text = str(said)
    if mapped.answer_pattern is not None:
        matches = list(re.finditer(mapped.answer_pattern, text))
        found = None if not matches else matches[-1][1 if matches[-1].re.groups else 0]
        if found is None:
            raise TaskError("answer_pattern does not fit the answer", where=where, found=repr(text)[:200])
        text = found
    return text.strip()


def _right_choice(said: str | float, reading: _Reading | None, choices: list[tuple[str, str]], where: str) -> str:
    """The letter of the right choice. Text is a label, else a text; a number that could be two choices is refused."""
    found = _readings(said, choices)
    if reading is not None:
        found = {reading: found[reading]}
    elif isinstance(said, str):
        found = {"label": found["label"]} if found["label"] else {"text": found["text"]}
    letters = {letter for each in found.values() for letter in each}
    if not letters:
        raise TaskError(
            f"the answer is {'none' if reading is None else f'the {reading} of none'} of the choices",
            where=where,
            found=repr(said)[:200],
            do="text is never an index unless the mapping says answer_is: index" if reading is None else "",
        )
    if len(letters) > 1:
        ways = [f"{' and '.join(each)} as {_AS[name]}" for name, each in found.items() if each]
        raise TaskError(
            "the answer could be several of the choices",
            where=where,
            found=f"{repr(said)[:100]}: {', '.join(ways)}",
            do="write what it is in the mapping, answer_is: index|label|text" if len(ways) > 1 else "name it otherwise",
        )
    return letters.pop()


_AS: dict[_Reading, str] = {"index": "an index from 0", "label": "a label", "text": "a text"}


def _readings(said: str | float, choices: list[tuple[str, str]]) -> dict[_Reading, list[str]]:
    """The letters that an answer names, in each way in which one can be named."""
    name = str(said).strip()
    return {
        "index": [letter for number, letter in enumerate(_LETTERS[: len(choices)]) if str(number) == name],
        "label": [letter for letter, (label, _) in zip(_LETTERS, choices, strict=False) if label.strip() == name],
        "text": [letter for letter, (_, text) in zip(_LETTERS, choices, strict=False) if text.strip() == name],
    }
