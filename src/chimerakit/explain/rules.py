"""From evidence to a recipe: which few statements say of every unit what its bytes allow."""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from chimerakit.explain.actions import Facts, Model, Resolve
from chimerakit.explain.evidence import Evidence
from chimerakit.explain.fold import Selector, Taken, fold
from chimerakit.formats.gguf import stack_of
from chimerakit.records import COMPONENTS, Component, Recipe, Role, Rule, Span

Measure = Callable[[str, str, Collection[str]], Mapping[str, float]]
"""(base, parent, units) -> how far each unit of the parent is from the base's."""

_DELTA_DIGITS = 18
"""Decimals of a delta at most."""
_RULE_LENGTH = 4
"""How many names are as much to read as another rule."""


def find_recipe(
    evidence: Sequence[Evidence], model: Model, base: str, resolve: Resolve, measure: Measure | None
) -> Recipe | None:
    """The recipe with the fewest rules for this base; None if there is none. measure: None for no deltas."""
    facts = Facts(evidence, model, base, resolve)
    actions = facts.actions()
    fits = [facts.fit(action) for action in actions]
    found = list(_foldings(evidence, actions, fits))
    if measure is not None and all(folding.is_involved for folding in found):
        # Units in no order of components and layers may have been chosen by how far the parents lie apart.
        found += _foldings(evidence, *_with_deltas(evidence, actions, fits, base, measure))
    shortest = min(found, key=lambda folding: folding.length, default=None)
    return None if shortest is None else replace(facts.stub, rules=tuple(shortest.rules))


class _Folding(NamedTuple):
    """Rules that give every unit."""

    rules: list[Rule]
    is_involved: bool
    """Whether they name units, or are more than there are things done."""

    @property
    def length(self) -> int:
        """How much there is to read: a rule, and each name in it."""
        return sum(_RULE_LENGTH + len(rule.tensors or ()) for rule in self.rules)


def _foldings(
    evidence: Sequence[Evidence], actions: Sequence[Rule], fits: Sequence[Sequence[bool]]
) -> Iterator[_Folding]:
    """The fewest rules for these actions: by component, by kind of tensor, and by name, until nothing can be gained."""
    roles = [found.role for found in evidence]
    names = [_exactly(found.unit) for found in evidence]
    patterns = [_pattern(found.unit, found.role) for found in evidence]
    for kinds in ([role.component for role in roles], patterns):
        rules = fold(roles, kinds, fits, 0)
        if rules is not None:
            is_involved = kinds is patterns or len(rules) > len({rule.action for rule in rules})
            yield _Folding([_rule(actions[r.action], r.selector, roles, kinds) for r in rules], is_involved)
            if not is_involved:
                return
    chosen = _choose_actions(fits)
    if chosen is not None:
        named = {action: tuple(n for n, does in zip(names, chosen, strict=True) if does == action) for action in chosen}
        rules = [Taken(action, Selector(kinds)) for action, kinds in named.items() if action]
        yield _Folding([_rule(actions[rule.action], rule.selector, roles, names) for rule in rules], is_involved=True)


def _choose_actions(fits: Sequence[Sequence[bool]]) -> list[int] | None:
    """For each unit an action that fits it, the base's if it does; few different ones. None if nothing fits a unit."""
    fitting = [tuple(action for action, is_fit in enumerate(each) if is_fit) for each in zip(*fits, strict=True)]
    if not all(fitting):
        return None
    needy, chosen = Counter(each for each in fitting if 0 not in each), {0}
    while needy:
        most = Counter[int]()
        for each, count in needy.items():
            most.update(dict.fromkeys(each, count))
        best = max(most, key=lambda action: (most[action], -action))
        chosen.add(best)
        needy = Counter({each: count for each, count in needy.items() if best not in each})
    return [next(action for action in each if action in chosen) for each in fitting]


def _with_deltas(
    evidence: Sequence[Evidence],
    actions: Sequence[Rule],
    fits: Sequence[Sequence[bool]],
    base: str,
    measure: Measure,
) -> tuple[list[Rule], list[list[bool]]]:
    """The actions, and mixes once more with deltas that tell what they were done to from what was left to the base."""
    more, fit_more = list(actions), [list(fitting) for fitting in fits]
    for action, fitting in list(zip(actions, fits, strict=True))[1:]:
        done = [n for n, is_mixed in enumerate(fitting) if is_mixed and not fits[0][n]]
        components = {evidence[n].role.component for n in done}
        left = [n for n, e in enumerate(evidence) if fits[0][n] and not fitting[n] and e.role.component in components]
        if not done or not left:
            continue
        mix = dict(action.mix) if action.mix is not None else {action.take or base: 1.0}
        units = {found.unit for found in evidence if found.role.component in components}
        apart = [measure(base, parent, units) for parent in mix if parent != base]
        far = {n: max(each.get(e.unit, math.inf) for each in apart) for n, e in enumerate(evidence) if e.unit in units}
        sides = [[(evidence[n].role.component, far[n]) for n in numbers] for numbers in (done, left)]
        for delta in _deltas(*sides):
            more.append(replace(action, take=None, mix=mix, delta=delta))
            fit_more.append([n in far and (fitting[n] if far[n] > delta else fits[0][n]) for n in range(len(evidence))])
    return more, fit_more


def _deltas(done: Sequence[tuple[Component, float]], left: Sequence[tuple[Component, float]]) -> list[float]:
    """Deltas above everything that was left and below everything that was done, in one component or in several."""
    gaps = []
    for component in sorted({component for component, _ in left}):
        low = max(distance for c, distance in left if c == component)
        high = min((distance for c, distance in done if c == component), default=math.inf)
        if low < high:
            gaps.append((low, high))
    common = (max((low for low, _ in gaps), default=1.0), min((high for _, high in gaps), default=0.0))
    return list(dict.fromkeys(_shortest(low, high) for low, high in (common, *gaps) if low < high))


def _shortest(low: float, high: float) -> float:
    """The number with the fewest decimals from `low` on, below `high`."""
    for digits in range(_DELTA_DIGITS):
        found = float(math.ceil(low * 10**digits) / 10**digits)
        if low <= found < high:
            return found
    return low


def _exactly(name: str) -> str:
    """The glob that is this name and no other."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _pattern(name: str, role: Role) -> str:
    """The glob of a unit's name without the numbers of its layer and expert; of a slice that of its stack, as rules name it."""
    name = _exactly(stack_of(name) or name)
    for number in (role.layer, role.expert):
        if number is not None:
            name = re.sub(rf"\.{number}(?=\.)", ".*", name, count=1)
    return name


# ---------------------------------------------------------------------------------------------- wording


def _rule(action: Rule, selector: Selector, roles: Sequence[Role], kinds: Sequence[str]) -> Rule:
    """An action with a selector, in the words of a recipe."""
    chosen = set(kinds if selector.kinds is None else selector.kinds)
    everywhere: dict[Component, set[str]] = {}
    for role, kind in zip(roles, kinds, strict=True):
        everywhere.setdefault(role.component, set()).add(kind)
    whole = tuple(c for c in COMPONENTS if c in everywhere and everywhere[c] <= chosen)
    is_named = chosen != {kind for component in whole for kind in everywhere[component]}
    return replace(
        action,
        components=None if is_named else (COMPONENTS if len(whole) == len(everywhere) else whole),
        layers=None if selector.layers is None else _spans(selector.layers),
        experts=None if selector.experts is None else _spans(selector.experts),
        tensors=tuple(dict.fromkeys(k for k in kinds if k in chosen)) if is_named else None,
        mtp=selector.mtp,
    )


def _spans(numbers: Sequence[int]) -> tuple[Span, ...]:
    found: list[Span] = []
    for number in sorted(numbers):
        if found and found[-1].last == number - 1:
            found[-1] = Span(found[-1].first, number)
        else:
            found.append(Span(number, number))
    return tuple(found)
