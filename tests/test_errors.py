"""What refusals look like."""

import inspect
import pickle
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit import errors
from chimerakit.errors import ChangedError, CheckpointError, ChimerakitError, MissingExtraError, PlanError, printable


def drawn_tree(text: str) -> dict[str, str]:
    """Parent of each class in a drawing with ├── and └──, the root's is Exception."""
    found, above = dict[str, str](), dict[int, str]()
    for line in text.splitlines():
        match = re.match(r"^ {4}([│ ├└─]*)([A-Z]\w+Error)\b", line)
        if match:
            depth = len(match[1]) // 4
            above[depth] = match[2]
            found[match[2]] = above[depth - 1] if depth else "Exception"
    return found


def test_the_tree_is_as_drawn() -> None:
    """The classes of errors.py, each under its base, are those that its docstring draws."""
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert {c.__name__: c.__base__.__name__ for c in classes if c.__base__} == drawn_tree(errors.__doc__ or "")
    assert len(classes) > 5


def test_a_message_has_a_line_for_each_part() -> None:
    """What and where come first, then expected, found and what to do, each on its line."""
    error = CheckpointError("is odd", where="a/b", expected=8, found="7 bytes", do="add one")
    assert str(error) == "a/b: is odd\n  expected: 8\n  found:    7 bytes\n  to do:    add one"


def test_a_message_needs_no_parts() -> None:
    """Without a place or evidence a message is one line; a found 0 is evidence."""
    assert str(ChimerakitError("no")) == "no"
    assert str(ChimerakitError("no", found=0)) == "no\n  found:    0"


def test_a_problem_is_one_and_several_are_counted() -> None:
    """A plan's problems are counted, numbered from 1, and each is kept for who wants them by themselves."""
    assert str(PlanError(["a is b"])) == "this can't be merged: 1 problem\n  1. a is b"
    error = PlanError(["a is b", "c is d"])
    assert str(error) == "this can't be merged: 2 problems\n  1. a is b\n  2. c is d"
    assert error.problems == ("a is b", "c is d")


def test_a_missing_package_names_its_extra() -> None:
    """Who lacks a package is told which extra brings it."""
    assert str(MissingExtraError("torch", "eval")) == (
        "the package 'torch' is needed for this\n  to do:    pip install 'chimerakit[eval]'"
    )


def test_a_changed_file_is_a_wrong_checkpoint() -> None:
    """Who handles wrong checkpoints handles changed ones, and who handles every refusal handles both."""
    assert issubclass(ChangedError, CheckpointError)
    assert issubclass(CheckpointError, ChimerakitError)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain Ünïcode 😀", "plain Ünïcode 😀"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("\x9b1m\x7f", "\\x9b1m\\x7f"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u2028b\xa0c\u200bd", "a\\u2028b\\xa0c\\u200bd"),
        ("\ud800 \udcff", "\\ud800 \\udcff"),
        (b"\x1b", "b'\\x1b'"),
        (7, "7"),
    ],
)
def test_text_is_shown_without_its_powers(text: object, shown: str) -> None:
    """Controls, line ends, direction marks, odd spaces and lone surrogates are escaped; letters of all scripts are not."""
    assert printable(text) == shown


hostile = st.text(st.sampled_from("ab\x00\x07\x1b\n\r\x85\x9b\u2028\u202e\ud800\udfff\U000e0001"), min_size=1)


@given(hostile, hostile, hostile, hostile)
def test_no_control_character_reaches_a_message(what: str, where: str, expected: str, found: str) -> None:
    """Whatever a file wrote into a message, it can be printed and encoded, and adds no line to it."""
    error = ChimerakitError(what, where=where, expected=expected, found=found, do="do")
    assert str(error).count("\n") == 3
    assert str(error).replace("\n", "").isprintable()
    assert str(error).encode().decode() == str(error)


@given(st.lists(hostile, min_size=1, max_size=4))
def test_no_control_character_reaches_a_list_of_problems(problems: list[str]) -> None:
    """A name with line ends can't forge a further problem."""
    error = PlanError(problems)
    assert len(str(error).splitlines()) == 1 + len(problems)
    assert all(p.isprintable() for p in (*error.problems, *str(error).split("\n")))


def test_what_to_do_may_be_several_lines() -> None:
    """Advice may show a whole recipe; its lines stay lines, other characters are escaped there as well."""
    error: Any = ChimerakitError("no", do="write:\n    a: \x1b")
    assert str(error) == "no\n  to do:    write:\n    a: \\x1b"


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("is cut", where="a file", expected=5, found=4, do="download it again"),
        PlanError(["one", "two"]),
        MissingExtraError("torch", "eval"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_between_processes(error: ChimerakitError) -> None:
    """A worker's error arrives as it was: class, message, and what it holds."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.__dict__) == (type(error), str(error), error.__dict__)
