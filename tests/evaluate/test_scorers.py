"""Scorers, by tables of what models really write."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.evaluate.records import Problem, Scorer
from chimerakit.evaluate.scorers import is_right, last_boxed, numbers_in, read_answer, value_of


def right(kind: str, text: str, answer: str, choices: str = "", pattern: str = "") -> bool:
    """Whether a text has the right answer."""
    scorer = Scorer(kind, pattern)  # type: ignore[arg-type]
    problem = Problem("p", "?", answer, choices)
    return is_right(read_answer(text, problem, scorer), problem, scorer)


@pytest.mark.parametrize(
    ("text", "answer", "is_correct"),
    [
        ("9", "9", True),
        ("The answer is 9.", "9", True),
        ("3+4=7;7*2=4;4-5=9", "9", True),
        ("4-5=-1", "-1", True),
        ("4-5", "5", True),  # an operation, no sign
        ("x = -5", "-5", True),
        ("(-5)", "-5", True),
        ("\N{MINUS SIGN}5", "-5", True),
        ("19", "9", False),
        ("1,234", "1234", True),
        ("1,234,567.50 dollars", "1234567.5", True),
        ("1e3", "1000", True),
        ("1.5e-3", "0.0015", True),
        ("$1,000", "1000", True),
        ("50%", "50", True),
        ("3/4", "0.75", True),
        ("1/3", "0.333", False),
        ("0.1", "0.10", True),
        (".5", "0.5", True),
        ("5.", "5", True),
        ("007", "7", True),
        ("12, 13", "13", True),
        ("12,13", "13", True),
        ("**42**", "42", True),
        ("42\n\nThat is all.", "42", True),
        ("9 apples, not 8", "9", False),
        ("nine", "9", False),
        ("", "9", False),
        ("1e999999999", "9", False),
        ("9" * 500, "9", False),
        ("5/0", "5", False),
        ("The answer is 3/4.", "0.75", True),
        ("The answer is 3/4.\n", "3/4", True),
        ("The answer is 4/5.", "5", False),
        ("(3/4).", "3/4", True),
        ("Is it 3/4... yes", "3/4", True),
        ("version 1/2.5", "2.5", True),  # decimals below the line make it no fraction
        ("version 1/25.5", "25.5", True),
        ("on 3/4/2020.", "2020", True),
        ("1/25.", "0.04", True),
    ],
)
def test_the_last_number_counts_by_its_value(text: str, answer: str, is_correct: bool) -> None:
    """However it is written."""
    assert right("numeric", text, answer) is is_correct


@pytest.mark.parametrize(
    ("text", "answer", "is_correct"),
    [
        ("Paris", "Paris", True),
        ("  Paris\n", "Paris", True),
        ("New\n York", "New York", True),
        ("paris", "Paris", False),
        ("Paris.", "Paris", False),
        ("", "Paris", False),
    ],
)
def test_exact_is_exact_but_for_white_space(text: str, answer: str, is_correct: bool) -> None:
    """Nothing else is forgiven."""
    assert right("exact", text, answer) is is_correct


@pytest.mark.parametrize(
    ("text", "answer", "is_correct"),
    [
        ("B", "B", True),
        ("B.", "B", True),
        ("**B**", "B", True),
        ("(B)", "B", True),
        ("B) because A is wrong", "B", True),
        ("The answer is B.", "B", True),
        ("The answer is (B).", "B", True),
        ("The answer is **(B)**", "B", True),
        ("Answer: B", "B", True),
        ("answer: b", "B", False),
        ("I think A at first, but the correct answer is C", "C", True),
        ("The answer is A. Wait, the answer is D.", "D", True),
        ("\\boxed{C}", "C", True),
        ("\\boxed{\\text{C}}", "C", True),
        ("$\\boxed{(C)}$", "C", True),
        ("\\boxed{C) Paris}", "C", True),
        ("\\boxed{Beijing}", "B", False),
        ("\\boxed{\\text{Apple}}", "A", False),
        ("\\boxed{Both}", "B", False),
        ("(A) is wrong, so (D)", "D", True),
        ("A dog is an animal", "A", False),
        ("I don't know", "A", False),
        ("E", "B", False),
        ("", "A", False),
        ("Let me think.\nC", "C", True),
    ],
)
def test_the_letter_that_is_named_last_counts(text: str, answer: str, is_correct: bool) -> None:
    """In the surest way in which one is named; an article is no choice."""
    assert right("choice", text, answer, choices="ABCD") is is_correct


@pytest.mark.parametrize(
    ("text", "answer", "is_correct"),
    [
        ("\\boxed{9}", "9", True),
        ("\\boxed 9", "9", True),
        ("\\boxed{8} no, \\boxed{9}", "9", True),
        ("\\boxed{\\frac{1}{2}}", "0.5", True),
        ("\\boxed{\\dfrac{1}{2}}", "\\frac12", True),
        ("\\boxed{\\frac{-3}{4}}", "-0.75", True),
        ("\\boxed{\\sqrt{2}}", "\\sqrt{2}", True),
        ("\\boxed{ \\left( 1, 2 \\right) }", "(1,2)", True),
        ("\\boxed{1{,}000}", "1000", True),
        ("\\boxed{50\\%}", "50", True),
        ("\\boxed{90^\\circ}", "90", True),
        ("\\boxed{x = 5}", "5", True),
        ("\\boxed{5\\text{ cm}}", "5", False),
        ("\\boxed{\\text{yes}}", "yes", True),
        ("\\fbox{9}", "9", False),
        ("\\boxed{9", "9", False),
        ("\\boxed{}", "9", False),
        ("9", "9", False),
        ("\\boxed{2^{10}}", "2^{10}", True),
        ("\\boxed{2\\frac{1}{2}}", "\\frac{5}{2}", True),
        ("\\boxed{2\\frac{1}{2}}", "\\frac{21}{2}", False),
        ("\\boxed{\\frac{21}{2}}", "2\\frac{1}{2}", False),
        ("\\boxed{2 \\frac{1}{2}}", "2.5", True),
        ("\\boxed{2\\,\\dfrac12}", "2.5", True),
        ("\\boxed{2 1/2}", "2.5", True),
        ("\\boxed{21/2}", "10.5", True),
        ("\\boxed{-1\\frac45}", "-1.8", True),
        ("\\boxed{-1\\frac45}", "\\frac{-9}{5}", True),
        ("\\boxed{x = 1\\frac{2}{3}}", "5/3", True),
        ("\\boxed{2\\frac{21}{2}}", "\\frac{221}{2}", False),  # a product, if anything
        ("\\boxed{1.5\\frac12}", "\\frac{1.51}{2}", False),
        ("\\boxed{\\frac{1}{2}3}", "\\frac{1}{23}", False),
        ("\\boxed{x\\frac{ 1 }{2}}", "x\\frac12", True),
    ],
)
def test_the_last_box_counts(text: str, answer: str, is_correct: bool) -> None:
    """By value where it is a number; else as written, without what only looks well."""
    assert right("boxed", text, answer) is is_correct


@pytest.mark.parametrize(
    ("pattern", "text", "answer", "is_correct"),
    [
        (r"#### (\S+)", "so #### 5\n#### 6", "6", True),
        (r"#### (\S+)", "6", "6", False),
        (r"[a-z]+$", "The cat", "cat", True),
    ],
)
def test_a_pattern_says_what_counts(pattern: str, text: str, answer: str, is_correct: bool) -> None:
    """Its last match, the first group of it if it has one."""
    assert right("regex", text, answer, pattern=pattern) is is_correct


@given(st.integers(-(10**12), 10**12))
def test_a_number_is_found_however_it_is_written(number: int) -> None:
    """With thousands separated, with decimals, behind words."""
    for text in (str(number), f"{number:,}", f"{number}.0", f"the answer is {number:,}.", f"={number}"):
        assert value_of(numbers_in(text)[-1]) == number


@given(
    st.integers(0, 500),
    st.integers(0, 98),
    st.integers(99, 200),
    st.sampled_from(["", "-"]),
    st.sampled_from(["", " "]),
)
def test_a_mixed_number_is_a_sum(whole: int, above: int, below: int, sign: str, gap: str) -> None:
    """Of the whole and the fraction, both with the sign."""
    value = (whole + Fraction(above, below)) * (-1 if sign else 1)
    assert value_of(f"{sign}{whole}{gap}\\frac{{{above}}}{{{below}}}") == value
    assert value_of(f"{sign}{whole} {above}/{below}") == value
    assert value_of(f"\\frac{{{sign}{above}}}{{{below}}}") == Fraction(int(f"{sign}{above}"), below)


@given(st.text(alphabet="\\boxed{} 12", max_size=60))
def test_any_text_is_read_without_harm(text: str) -> None:
    """Braces that don't fit are no answer."""
    found = last_boxed(text)
    assert found is None or found.count("\\boxed") <= text.count("\\boxed")
    for kind in ("exact", "numeric", "choice", "boxed"):
        read_answer(text, Problem("p", "?", "1", "AB"), Scorer(kind))
