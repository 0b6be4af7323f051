"""Which rule takes which unit of the base, at which shares. The first matching rule wins; the base takes the rest."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import NamedTuple

from chimerakit.anatomy import Anatomy
from chimerakit.formats.gguf import stack_of
from chimerakit.recipe import shares_at
from chimerakit.records import Recipe, Role, Rule, Span, Unit

Lacks = dict[tuple[int | None, str], dict[str, Unit]]
"""By rule and parent: units, by name, for which the parent lacks something."""


class Claims(NamedTuple):
    """Which rule takes which unit of the base; None: no rule does, so the base."""

    of_rule: dict[int | None, list[Unit]]
    in_order: list[tuple[int | None, Unit]]
    """In the base's order."""
    num_matches: list[int]
    """For each rule the units that it matches, also those that an earlier one takes."""


def claim_units(recipe: Recipe, base: Anatomy) -> Claims:
    """The first rule that matches takes a unit; every rule counts what it matches."""
    matchers = [_matcher(rule, base) for rule in recipe.rules]
    claims = Claims({None: []} | {i: [] for i in range(len(matchers))}, [], [0] * len(matchers))
    for name, unit in base.units().items():
        matching = [i for i, matches in enumerate(matchers) if matches(name, unit.role)]
        for i in matching:
            claims.num_matches[i] += 1
        rule = matching[0] if matching else None
        claims.of_rule[rule].append(unit)
        claims.in_order.append((rule, unit))
    return claims


def parts_of(recipe: Recipe, num_layers: int) -> Callable[[int | None, int | None], dict[str, float]]:
    """(rule, layer) -> the shares of a unit, the base's first; there are as many as rules and layers."""

    @cache
    def parts(rule: int | None, layer: int | None) -> dict[str, float]:
        return {recipe.base: 1.0} if rule is None else shares_at(recipe.rules[rule], recipe, layer, num_layers)

    return parts


def _matcher(rule: Rule, anatomy: Anatomy) -> Callable[[str, Role], bool]:
    """One rule's selectors, compiled for one model: whether they match a unit, by name and role."""
    is_layer = _within(rule.layers, anatomy.num_layers)
    is_expert = _within(rule.experts, anatomy.num_experts)

    def matches(name: str, role: Role) -> bool:
        return (
            (rule.components is None or role.component in rule.components)
            and (rule.layers is None or (is_layer(role.layer) and not role.mtp))
            and (rule.experts is None or is_expert(role.expert))
            and (rule.mtp is None or role.mtp == rule.mtp)
            and (rule.tensors is None or any(fnmatchcase(n, glob) for glob in rule.tensors for n in names_of(name)))
        )

    return matches


def names_of(unit: str) -> tuple[str, ...]:
    """What a glob may name a unit by: its name, and that of the stack that it is a slice of."""
    stack = stack_of(unit)
    return (unit,) if stack is None else (unit, stack)


def _within(spans: Sequence[Span] | None, count: int) -> Callable[[int | None], bool]:
    """Whether a number is meant. Spans are never counted out: a recipe may hold long ones, and a config large counts."""
    ranges = [span.within(count) for span in spans or ()]
    return cache(lambda number: any(number in each for each in ranges))
