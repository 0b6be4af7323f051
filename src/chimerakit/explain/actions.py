"""What rules may do to units: the actions that evidence speaks for, and which units each fits.

Big units leave shares hardly any room, small ones allow much: a norm of a few numbers may be given by any share from 0.7
to 0.8. So actions are made of what the narrow ones say, and the others are asked whether they may be the same, by making
them again. A unit that nothing explains may be anything and is in no rule's way.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, permutations
from typing import NamedTuple

from msgspec.structs import replace

from chimerakit.explain.evidence import Evidence, Mixture
from chimerakit.numerics.cells import Interval
from chimerakit.recipe import SUM_TOLERANCE, shares_at
from chimerakit.records import Component, Gradient, Recipe, Rule

Shares = Mapping[str, float]
Question = tuple[str, tuple[tuple[str, float], ...]]
"""(unit, shares in the order of the sum): do they give its bytes?"""
Resolve = Callable[[Sequence[Question]], Mapping[Question, bool]]
"""Answers by making units again; what was answered before is known."""

_NARROW = 1e-3
"""Ranges of shares no wider than this say something by themselves."""
_VAGUE = 0.05
"""Estimates no wider than this do."""
_EXACT = 1e-9
"""How far from 1 a sum of decimals may be that is 1: what the base gets then is its share, to the last decimal."""
_DIGITS = 6
_ENDS = 12
"""Units that gradients are guessed from, at each end of the model."""
_MANY = 1000
"""Units of which so many wait for something that fits them are a large model."""
_FEW = 16
"""Actions that are worth trying in every combination."""


class Model(NamedTuple):
    """What rules may speak of."""

    parents: tuple[str, ...]
    num_layers: int


class Facts:
    """What is possible for each unit, as far as it is known; the rest is asked."""

    def __init__(self, evidence: Sequence[Evidence], model: Model, base: str, resolve: Resolve):
        self.stub = Recipe(dict.fromkeys(model.parents), base)
        self._evidence = evidence
        self._model = model
        self._resolve = resolve
        self._fits: dict[str, list[bool]] = {}

    # ------------------------------------------------------------------------------------------ actions

    def actions(self) -> list[Rule]:
        """What rules may do, the base's own action first."""
        others = [parent for parent in self._model.parents if parent != self.stub.base]
        found = [Rule(take=parent) for parent in (self.stub.base, *others)]
        while True:
            fits = zip(*(self.fit(action) for action in found), strict=True)
            waiting = [e for e, is_fit in zip(self._evidence, fits, strict=True) if not any(is_fit)]
            new = [rule for rule in self._new_actions(waiting) if rule not in found]
            if not new:
                return found
            found += new if len(waiting) <= _MANY else [self._most_common(new, waiting)]

    def _most_common(self, rules: Sequence[Rule], waiting: Sequence[Evidence]) -> Rule:
        """What most of many units allow: tried alone, it leaves few that anything else must be asked of."""
        some = waiting[:: -(-len(waiting) // _MANY)]
        return max(rules, key=lambda rule: sum(self._may(rule, found) for found in some))

    def _new_actions(self, waiting: Sequence[Evidence]) -> list[Rule]:
        """What may be done to units that no action fits yet: what the narrow ones say, else the narrowest."""
        narrow = [found for found in waiting if _width(found) <= _NARROW and not _encoder(found)]
        vague = [found for found in waiting if _width(found) <= _VAGUE and _encoder(found)]
        if vague and not narrow:
            return [*self._common(vague), *self._gradients(vague)]
        if not narrow:
            return [rule for found in sorted(waiting, key=_width)[:1] for rule in self._mixes_of(found)]
        gradients = self._gradients(narrow)
        said = _unique(rule for found in narrow for rule in self._mixes_of(found))
        if len(said) > _FEW:  # a gradient over many layers, and no rule for each of them
            alone = [found for found in narrow if not any(self._may(action, found) for action in gradients)]
            said = _unique(rule for found in alone for rule in self._mixes_of(found))
        return [*gradients, *said]

    def _mixes_of(self, found: Evidence) -> list[Rule]:
        """The mix that gives a unit, in the order of a sum that does: float32 sums depend on it."""
        if found.mixture is None:
            return []
        mix = self._mix(found.mixture.shares)
        orders = permutations((mix.mix or {}).items()) if len(found.mixture.shares) > 2 else [(mix.mix or {}).items()]
        for order in orders:
            rule = replace(mix, mix=dict(order))
            said = self._say(rule, self._shares(rule, found.role.layer), found)
            if said is True or (not isinstance(said, bool) and self._resolve([said])[said]):
                return [rule]
        return []

    def _mix(self, shares: Shares) -> Rule:
        """A mix in the words of a recipe: the base is left out where it gets the rest."""
        if abs(math.fsum(shares.values()) - 1) <= _EXACT and _is_plain(shares):
            return Rule(mix={parent: share for parent, share in shares.items() if parent != self.stub.base})
        return Rule(mix=dict(shares), normalize=False)

    def _common(self, vague: Sequence[Evidence]) -> list[Rule]:
        """The fewest mixes that estimates agree on: each group of them has shares in common."""
        among: dict[tuple[str, ...], list[Mixture]] = {}
        for found in vague:
            if found.mixture is not None:
                among.setdefault(tuple(found.mixture.shares), []).append(found.mixture)
        rules = []
        for parents, mixtures in among.items():
            if len(parents) == 2:
                first, second = parents
                groups = _groups([mixture.ranges[second] for mixture in mixtures])
                rules += [self._mix({first: round(1 - share, 12), second: share}) for share in map(_middle, groups)]
            else:
                rules.append(self._mix(min(mixtures, key=lambda mixture: mixture.width).shares))
        return rules

    def _gradients(self, narrow: Sequence[Evidence]) -> list[Rule]:
        """Mixes whose shares change linearly over the layers, those that explain the most first."""
        points: dict[tuple[Component, int, tuple[float, ...]], Evidence] = {}
        for found in sorted(narrow, key=_width):
            if found.role.layer is not None and not found.role.mtp and found.mixture is not None:
                shares = tuple(round(found.mixture.shares.get(p, 0.0), 4) for p in self._model.parents)
                points.setdefault((found.role.component, found.role.layer, shares), found)
        ends = sorted(points.values(), key=lambda found: found.role.layer or 0)
        support: dict[str, tuple[int, Rule]] = {}
        for first, last in combinations(ends if len(ends) <= 2 * _ENDS else [*ends[:_ENDS], *ends[-_ENDS:]], 2):
            rule = self._gradient(first, last) if first.role.component == last.role.component else None
            if rule is not None and repr(rule) not in support:
                support[repr(rule)] = sum(self._may(rule, found) for found in ends), rule
        return [rule for _, rule in sorted(support.values(), key=lambda found: -found[0])[:_FEW]]

    def _gradient(self, first: Evidence, last: Evidence) -> Rule | None:
        """The gradient with the shortest decimals that two units allow; None if their shares are the same."""
        assert first.mixture is not None
        assert last.mixture is not None
        if first.mixture.shares == last.mixture.shares or first.role.layer == last.role.layer:
            return None
        a, b, end = first.role.layer or 0, last.role.layer or 0, self._model.num_layers - 1
        others = [parent for parent in self._model.parents if parent != self.stub.base]
        for digits in range(1, _DIGITS + 1):
            shares: dict[str, float | Gradient] = {}
            for parent in others:
                x, y = (e.mixture.shares.get(parent, 0.0) for e in (first, last) if e.mixture is not None)
                slope = (y - x) / (b - a)
                start, stop = round(x - slope * a, digits), round(x + slope * (end - a), digits)
                if start != stop:
                    shares[parent] = Gradient(start, stop)
                elif start != 0:
                    shares[parent] = start
            rule = Rule(mix=shares)
            if shares and _is_plain(shares) and self._may(rule, first) and self._may(rule, last):
                return rule
        return None

    # --------------------------------------------------------------------------------------------- fits

    def fit(self, action: Rule) -> list[bool]:
        """For each unit, whether the action gives its bytes."""
        if (name := repr(action)) not in self._fits:
            shares = {layer: self._shares(action, layer) for layer in {found.role.layer for found in self._evidence}}
            said = [self._say(action, shares[found.role.layer], found) for found in self._evidence]
            answers = self._resolve([question for question in said if not isinstance(question, bool)])
            self._fits[name] = [known if isinstance(known, bool) else answers[known] for known in said]
        return self._fits[name]

    def _shares(self, action: Rule, layer: int | None) -> dict[str, float]:
        return shares_at(action, self.stub, layer, self._model.num_layers)

    def _may(self, action: Rule, found: Evidence) -> bool:
        """Whether the numbers that were looked at allow an action."""
        return self._allows(self._shares(action, found.role.layer), found)

    def _allows(self, shares: Shares, found: Evidence) -> bool:
        mixture = found.mixture
        if mixture is None:
            return False
        is_whole = abs(sum(mixture.shares.values()) - 1) <= SUM_TOLERANCE
        if is_whole != (abs(sum(shares.values()) - 1) <= SUM_TOLERANCE):
            return False
        if not set(shares) <= set(found.readable):
            return False
        at = [shares.get(parent, 0.0) for parent in found.readable]
        return all(bound.allows(at) for bound in mixture.bounds)

    def _say(self, action: Rule, shares: Shares, found: Evidence) -> bool | Question:
        """Whether an action gives a unit's bytes with these shares, or what must be asked for that."""
        if _has_layers(action) and found.role.layer is None:
            return False
        if not found.equal and found.mixture is None:  # anything that can be planned
            return tuple(shares) == (self.stub.base,) or set(shares) <= set(found.usable)
        if found.equal:
            are_equal = all(parent in found.equal for parent in shares)
            if len(shares) == 1 or (are_equal and abs(sum(shares.values()) - 1) <= SUM_TOLERANCE):
                return are_equal and abs(sum(shares.values()) - 1) <= SUM_TOLERANCE
            if not set(shares) <= set(found.readable):
                return False
        elif found.mixture is not None:
            if found.mixture.shares == shares and len(shares) < 3:
                return True
            if found.mixture.encoder or not self._allows(shares, found):
                return self._allows(shares, found)
        return found.unit, tuple(shares.items())


def _is_plain(shares: Mapping[str, float | Gradient]) -> bool:
    """Whether a recipe takes shares as they are, the base getting the rest: none below 0, and no more than 1 in all."""
    starts = [share.start if isinstance(share, Gradient) else share for share in shares.values()]
    stops = [share.stop if isinstance(share, Gradient) else share for share in shares.values()]
    return all(min(ends) >= 0 and math.fsum(ends) <= 1 + SUM_TOLERANCE for ends in (starts, stops) if ends)


def _has_layers(action: Rule) -> bool:
    return any(isinstance(share, Gradient) for share in (action.mix or {}).values())


def _groups(ranges: Iterable[Interval]) -> list[Interval]:
    """The fewest intervals of which each range holds one."""
    found: list[Interval] = []
    for low, high in sorted(ranges, key=lambda room: room.high):
        if found and low <= found[-1].high:
            found[-1] = Interval(max(low, found[-1].low), found[-1].high)
        else:
            found.append(Interval(low, high))
    return found


def _middle(room: Interval) -> float:
    """The number with the fewest decimals in an interval that is near its middle."""
    middle = (room.low + room.high) / 2
    return next((n for n in (round(middle, digits) for digits in range(_DIGITS)) if room.low <= n <= room.high), middle)


def _encoder(found: Evidence) -> str:
    return "" if found.mixture is None else found.mixture.encoder


def _width(found: Evidence) -> float:
    return math.inf if found.mixture is None else found.mixture.width


def _unique(rules: Iterable[Rule]) -> list[Rule]:
    """Different rules, those that are said most often first."""
    said: dict[str, list[Rule]] = {}
    for rule in rules:
        said.setdefault(repr(rule), []).append(rule)
    return [same[0] for same in sorted(said.values(), key=len, reverse=True)]
