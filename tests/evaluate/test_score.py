"""What an answer shows: its trace, what follows, what is odd; by tables of cases."""

import pytest

from chimerakit.evaluate.records import Answer, Ask, Generated, Problem, Scorer, Settings
from chimerakit.evaluate.score import score
from chimerakit.evaluate.traces import as_opened, is_looping, seems_opened

PROBLEM = Problem("p", "3+4*2-5", "9")


def scored(text: str, *, is_ended: bool = True, reasoning: str | None = None, opened: bool | None = None) -> Answer:
    """An answer to the problem."""
    said = Generated(text, 5, is_ended, reasoning=reasoning, opened=opened)
    return score(Ask("p", 0, 0, "", PROBLEM.question), PROBLEM, said, Scorer("numeric"), Settings())


@pytest.mark.parametrize(
    ("text", "is_ended", "is_correct", "has_trace", "is_closed"),
    [
        ("9", True, True, False, True),
        ("7,4,9", True, True, False, True),
        ("9", False, False, False, True),
        ("8", True, False, False, True),
        ("-9", True, False, False, True),
        ("", True, False, False, True),
        ("<think>3+4=7;7*2=4;4-5=9</think>9", True, True, True, True),
        ("<think>3+4=7;7*2=4;4-5=9</think>", True, False, True, True),
        ("<think>9", True, False, True, False),
        ("<think>9</think>8", True, False, True, True),
        ("<think>1</think>2<think>3</think>9", True, True, True, True),
        ("<think>1</think>9<think>3", True, False, True, False),
        ("9</think>", True, False, True, True),
        ("8</think>9", True, True, True, True),
    ],
)
def test_right_is_what_follows_a_closed_trace(
    text: str, is_ended: bool, is_correct: bool, has_trace: bool, is_closed: bool
) -> None:
    """From a model that ended by itself."""
    answer = scored(text, is_ended=is_ended)
    assert (answer.is_correct, answer.has_trace, answer.is_closed) == (is_correct, has_trace, is_closed)


@pytest.mark.parametrize(
    ("text", "odd"),
    [
        ("<think>1</think>9", set()),
        ("9", set()),
        ("1</think>9", {"is_closed_only"}),
        ("<think>1<think>2</think>9", {"is_opened_twice"}),
        ("<think>1</think>2<think>3</think>9", {"is_opened_twice"}),
        ("<think></think>9", {"is_empty"}),
        ("<think>\n\n</think>9", {"is_empty"}),
        ("</think>9", {"is_closed_only", "is_empty"}),
    ],
)
def test_what_is_odd_is_told(text: str, odd: set[str]) -> None:
    """Each by itself."""
    answer = scored(text)
    found = {name for name in ("is_closed_only", "is_opened_twice", "is_empty") if getattr(answer, name)}
    assert found == odd


def test_a_template_that_opens_the_trace_is_no_fault_of_the_answer() -> None:
    """It only has to be closed; opened once more it was opened twice; never closed, all of it is trace."""
    answer = scored("1+1</think>9", opened=True)
    assert (answer.has_trace, answer.is_closed, answer.is_closed_only, answer.is_correct) == (True, True, False, True)
    assert (answer.reasoning, answer.text, answer.is_opened_by_prompt) == ("1+1", "9", True)
    assert scored("<think>1</think>9", opened=True).is_opened_twice
    endless = scored("1+1 9", opened=True)
    assert (endless.has_trace, endless.is_closed, endless.text, endless.is_correct) == (True, False, "", False)


CLOSED, PLAIN, CUT = Generated("1+1</think>9", 5, True), Generated("9", 5, True), Generated("1+1", 5, False)


@pytest.mark.parametrize(
    ("answers", "is_opened"),
    [
        ([CLOSED, CUT], True),
        ([CLOSED, CLOSED, PLAIN, CUT], True),
        ([CLOSED, PLAIN, CUT], False),
        ([CUT], False),
        ([PLAIN, CUT], False),
        ([Generated("<think>1</think>9", 5, True)], False),
        ([Generated("1</think>9", 5, True, opened=False)], False),
        ([Generated("1</think>9", 5, True, reasoning="1")], False),
        ([], False),
    ],
)
def test_a_template_that_nobody_shows_is_known_by_what_answers_close(answers: list[Generated], is_opened: bool) -> None:
    """More than half of those that ended."""
    assert seems_opened(answers, Settings()) is is_opened


def test_a_trace_that_such_a_template_opened_and_that_was_cut_off_is_one() -> None:
    """All that was written; answers that show anything of a trace, or end, are left as they are."""
    cut = as_opened(CUT, Settings())
    answer = score(Ask("p", 0, 0, "", "?"), PROBLEM, cut, Scorer("numeric"), Settings())
    assert (answer.has_trace, answer.is_closed, answer.reasoning, answer.text) == (True, False, "1+1", "")
    assert (answer.reasoning_tokens, answer.is_truncated, answer.is_correct) == (5, True, False)
    for said in (
        *(CLOSED, PLAIN, Generated("1</think>9", 5, False), Generated("<think>1", 5, False)),
        *(Generated("1", 5, False, opened=False), Generated("1", 5, False, reasoning="1")),
    ):
        assert as_opened(said, Settings()) is said


def test_a_servers_reasoning_field_is_the_trace() -> None:
    """The text is what follows; an empty field is no trace."""
    answer = scored("9", reasoning="3+4=7")
    assert (answer.has_trace, answer.reasoning, answer.text, answer.is_correct) == (True, "3+4=7", "9", True)
    assert not scored("9", reasoning="").has_trace
    again = scored("<think>8</think>9", reasoning="7")
    assert (again.has_trace, again.is_correct, again.text, again.is_opened_twice) == (True, True, "9", True)
    assert not scored("8</think>9", reasoning="7").is_closed_only
    assert not scored("", reasoning="never ends", is_ended=False).is_closed
    assert scored("<think>8", reasoning="").is_opened_twice is False


@pytest.mark.parametrize(
    ("text", "is_workable"),
    [("9", True), ("<think>1</think>9", True), ("no idea", False), ("<think>9", False), ("", False)],
)
def test_workable_is_what_ends_and_can_be_read(text: str, is_workable: bool) -> None:
    """Right or wrong."""
    assert scored(text).is_workable is is_workable
    assert not scored(text, is_ended=False).is_workable


@pytest.mark.parametrize(
    ("text", "is_loop"),
    [
        ("ab" * 30, True),
        ("a" * 60, True),
        ("a" * 59, False),
        ("so wait, let me think again. " * 3, True),
        ("so wait, let me think again. " * 2, False),
        ("begin " + "3+4=7;7*2=4;4-5=9|" * 6 + "3+4=", True),
        ("3+4=7;7*2=4;4-5=9|3+4=7;7*2=4;4-5=9", False),
        ("".join(map(str, range(100))), False),
        ("", False),
    ],
)
def test_a_loop_is_what_repeats_at_the_end(text: str, is_loop: bool) -> None:
    """Three times at least, 60 characters in all; and only of an answer that does not end."""
    assert is_looping(text) is is_loop
    assert scored(text, is_ended=False).is_looping is is_loop
    assert not scored(text).is_looping


def test_long_texts_are_looked_at_in_no_time() -> None:
    """Only their end is."""
    assert is_looping("x" + "ab" * 1_000_000)
