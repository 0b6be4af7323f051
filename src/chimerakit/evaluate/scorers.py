"""Text -> the answer in it -> right or wrong. Pure functions; every rule is a line of the table in docs/evaluate.md.

exact     the whole text, white space aside
numeric   the last number, by its value: 1,000 = 1e3 = 1000.0, 1/2 = 0.5
choice    the letter that is named last: \\boxed{B}, "the answer is B", (B), B alone
boxed     what the last \\boxed{} holds, by value where it is a number, else as written but for LaTeX's manners
regex     the last match of a pattern
"""

import re
from fractions import Fraction

from chimerakit.evaluate.records import Problem, Scorer

_NUMBER = re.compile(
    r"(?<![\w.)\]}])[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3}(?![0-9]))?"
    r"(?:/[0-9]+(?![0-9]|\.[0-9]))?"
    r"|(?<![\w.)\]}])[-+]?\.[0-9]+"
    r"|[0-9]+(?:\.[0-9]+)?"
)
"""With a sign where none of an operation can be meant; behind a letter, a digit or a bracket without one. A full stop
ends a fraction; decimals below the line make it none."""
_MOST_DIGITS = 400


def read_answer(text: str, problem: Problem, scorer: Scorer) -> str | None:
    """The answer in what follows a trace; None if there is none."""
    match scorer.kind:
        case "exact":
            return " ".join(text.split()) or None
        case "numeric":
            found = numbers_in(text)
            return found[-1] if found else None
        case "choice":
            return _letter(text, problem.choices)
        case "boxed":
            return last_boxed(text)
        case "regex":
            matches = list(re.finditer(scorer.pattern, text))
            return (matches[-1][1] if matches[-1].re.groups else matches[-1][0]) if matches else None


def is_right(said: str | None, problem: Problem, scorer: Scorer) -> bool:
    """Whether an answer is the problem's."""
    if said is None:
        return False
    if scorer.kind in ("numeric", "boxed"):
        mine, right = value_of(said), value_of(problem.answer)
        if mine is not None and right is not None:
            return mine == right
        return scorer.kind == "boxed" and plain_math(said) == plain_math(problem.answer)
    return " ".join(said.split()) == " ".join(problem.answer.split())


# ---------------------------------------------------------------------------------------------- numbers


def numbers_in(text: str) -> list[str]:
    """Every number in a text, as written."""
    return _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))


def value_of(text: str) -> Fraction | None:
    """The value of a text that is one number, exactly; None if it is none."""
    text = plain_math(text).removesuffix("%")
    if len(text) > _MOST_DIGITS or not re.fullmatch(r"[-+]?[0-9.,]*[0-9](?:[eE][-+]?[0-9]{1,3})?(?:/[0-9]+)?", text):
        return None
    if "," in text and not re.fullmatch(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?:[eE].*)?(?:/.*)?", text):
        return None
    above, _, below = text.replace(",", "").partition("/")
    try:
        return Fraction(above) / Fraction(below or 1)
    except (ValueError, ZeroDivisionError):
        return None


# ---------------------------------------------------------------------------------------------- letters


def _letter(text: str, choices: str) -> str | None:
    """The choice that is named last, by the surest way in which one is."""
    letters = f"[{re.escape(choices)}]" if choices else "[A-Z]"
    boxed = last_boxed(text)
    if boxed is not None and (found := re.match(rf"\W*({letters})(?![A-Za-z0-9])", _without_fonts(boxed))):
        return found[1]
    for pattern in (
        rf"(?i:answer|choice|option)(?i:\s+is)?\s*:?\s*[(*\[]*({letters})\b(?!['\u2019])",
        rf"\(({letters})\)",
        rf"^\W*({letters})(?:[).:]|\W*$)",
    ):
        if matches := re.findall(pattern, text, re.MULTILINE):
            return str(matches[-1])
    return None


# ------------------------------------------------------------------------------------------------ boxes


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{...} that is closed holds, braces balanced; None without one."""
    last: str | None = None
    last_start = -1
    open_braces: list[int] = []
    starts = {m.end() for m in re.finditer(r"\\boxed\s*(?=[{0-9A-Za-z])", text)}
    for at, character in enumerate(text):
        if at in starts and character != "{":
            last, last_start = character, at
        if character not in "{}" or (at and text[at - 1] == "\\"):
            continue
        if character == "{":
            open_braces.append(at)
        elif open_braces and (start := open_braces.pop()) in starts and start > last_start:
            last, last_start = text[start + 1 : at].strip() or None, start
    return last


def plain_math(text: str) -> str:
    """An expression without what LaTeX only needs to look well."""
    text = _without_fonts(text.replace("\N{MINUS SIGN}", "-").strip().strip("$").removesuffix("."))
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[!,;: ]|\^\{?\\circ\}?", "", text)
    text = text.replace("{,}", ",").replace("\\%", "%").replace("\\$", "")
    text = re.sub(r"(?<=[0-9])\s+([0-9]+)/([0-9]+)", r"\\frac{\1}{\2}", text)  # 2 1/2 is not 21/2
    text = re.sub(r"^[A-Za-z]=", "", re.sub(r"\s+", "", text))
    return _FRACTION.sub(_as_written, text)


_FRACTION = re.compile(
    rf"(?P<whole>(?<![\w.,)\]}}^/])[0-9]{{1,{_MOST_DIGITS}}})?"
    rf"\\frac(?:\{{(-?[0-9]{{1,{_MOST_DIGITS}}})\}}|([0-9]))(?:\{{([0-9]{{1,{_MOST_DIGITS}}})\}}|([0-9]))"
)
"""A fraction in LaTeX, with the whole number that it is mixed with."""


def _as_written(found: re.Match[str]) -> str:
    """A fraction on one line: a mixed one as one fraction; beside other digits in brackets, lest they run together."""
    above, below = found[2] or found[3], found[4] or found[5]
    whole, line = found["whole"] or "", f"{above}/{below}"
    text, (start, end) = found.string, found.span()
    if whole and not text[end : end + 1].isdigit() and 0 <= int(above) < int(below):
        return f"{int(whole) * int(below) + int(above)}/{below}"
    if whole or re.match(r"[0-9.,]", text[start - 1 : start]) or text[end : end + 1].isdigit():
        return f"{whole}({line})"
    return line


def _without_fonts(text: str) -> str:
    return re.sub(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}", r"\1", text)
