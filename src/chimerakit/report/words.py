"""Texts and figures as a page says them; numbers that every room says alike are in chimerakit/words.py."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from chimerakit.dtypes import FP8_BLOCK, FP8_BLOCK_UE8M0
from chimerakit.errors import printable
from chimerakit.explain import Estimate, Explained
from chimerakit.records import COMPONENTS, Component
from chimerakit.words import say_many, say_shares

_LONGEST = 300
"""Characters of a text out of a file: more only come from one that wants to be repeated."""
_STORAGES = {FP8_BLOCK: "FP8 128×128", FP8_BLOCK_UE8M0: "FP8 128×128 ue8m0"}  # noqa: RUF001 - a sign that is meant
_MOST = 200
"""Lines of a list that anybody reads in a page; the result holds all."""

MOST_WAYS = 4
"""Ways in which units of one place are made, as far as they are told."""


def say_text(text: object) -> str:
    """A text out of a file: no control characters, and no longer than anybody reads."""
    found = str(text)
    return printable(found if len(found) <= _LONGEST else f"{found[:_LONGEST]} ...")


def say_lines(lines: Sequence[str]) -> tuple[str, ...]:
    """As many lines as anybody reads, each as `say_text` does it."""
    more = (f"and {len(lines) - _MOST:,} more, which the saved result holds",) if len(lines) > _MOST else ()
    return (*map(say_text, lines[:_MOST]), *more)


def say_number(value: float) -> str:
    """Three significant digits; a dash where a figure has no meaning."""
    return "–" if math.isnan(value) else f"{value:.3g}"  # noqa: RUF001 - a dash is what is meant


def say_share(value: float) -> str:
    """A share from 0 to 1 in percent."""
    return "–" if math.isnan(value) else f"{100 * value:.3g} %"  # noqa: RUF001


def say_storage(storage: str) -> str:
    """How weights are stored."""
    return _STORAGES.get(storage, storage)


def say_estimate(estimate: Estimate) -> str:
    """What units that another encoder made have in common."""
    ranges = [f"{low:.4g} to {high:.4g} {parent}" for parent, (low, high) in estimate.ranges.items()]
    by = "the base" if estimate.rule is None else f"rule {estimate.rule + 1}"
    return f"{say_many(estimate.units, 'unit')} of {by}: {', '.join(ranges)}"


def say_nonfinite(units: int) -> str:
    """What NaN asks of who merges the recipe."""
    return f"{say_many(units, 'unit')} with NaN or infinity: the recipe is merged with --allow-nonfinite"


def ways_of(units: Iterable[Explained]) -> dict[Component, dict[str, int]]:
    """For each component, how many units are made in which way, the most frequent first."""
    ways: dict[Component, Counter[str]] = {}
    for unit in units:
        ways.setdefault(unit.role.component, Counter())[say_way(unit)] += 1
    return {component: dict(ways[component].most_common()) for component in COMPONENTS if component in ways}


def say_ways(ways: Mapping[str, int]) -> str:
    """The most frequent ways, with how many units each makes if there are several."""
    said = [way if len(ways) == 1 else f"{way} ({count:,})" for way, count in ways.items()]
    return "; ".join(said[:MOST_WAYS]) + (f"; {len(said) - MOST_WAYS} other ways" if len(said) > MOST_WAYS else "")


def say_way(unit: Explained) -> str:
    """How a unit of a child is made: `= v3`, `0.25 v3 + 0.75 r1`, `about 0.3 v3 + 0.7 r1`, or `unexplained`."""
    if unit.verdict == "equal":
        return "= " + " = ".join(unit.shares)
    about = "about " if unit.verdict == "estimated" else ""
    return "unexplained" if unit.verdict == "unexplained" else about + say_shares(unit.shares)
