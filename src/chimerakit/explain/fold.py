"""Rules out of facts: the shortest list of rules that says of every unit what its bytes allow.

A rule selects a *box*: units of some kinds, in some layers or wherever, or some experts. The first rule that matches
takes a unit, so a list is found from its front: a box may come first if one action fits everything in it; what it takes
is out of the way, which can only make the rest easier. So only boxes that can't be made larger are tried, and fewer
rules before more. A recipe of boxes is therefore never folded into more rules than it had, unless the search is cut
short.

Sets of units are whole numbers with a bit for each: a model of fifty thousand units has some tens of bytes of them once
those that no box can tell apart count as one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from chimerakit.records import Role

Bits = int
K = TypeVar("K", bound=str | int)

_MOST_LISTS = 600
"""Beginnings of lists that are looked at, of each length."""
_MOST_SETS = 64
"""Sets of kinds or of experts that are considered for one action."""


class Selector(NamedTuple):
    """Which units a rule names; None for any."""

    kinds: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    """Main layers: no rule names those of MTP."""
    experts: tuple[int, ...] | None = None
    mtp: bool | None = None


class Taken(NamedTuple):
    """One rule: the number of an action, and what it is done to."""

    action: int
    selector: Selector


class _Box(NamedTuple):
    selector: Selector
    inside: Bits


class _Grid:
    """The units; those that no box can tell apart count as one cell."""

    def __init__(self, roles: Sequence[Role], kinds: Sequence[str]):
        keys = [(kind, role.layer, role.expert, role.mtp) for kind, role in zip(kinds, roles, strict=True)]
        cells = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self.cell_of = [cells[key] for key in keys]
        """For each unit its cell."""
        self.size = len(cells)
        self.everything: Bits = (1 << self.size) - 1
        self.kinds: dict[str, Bits] = {}
        self.layers: dict[int, Bits] = {}
        self.experts: dict[int, Bits] = {}
        self.mtp: Bits = 0
        for (kind, layer, expert, mtp), number in cells.items():
            bit = 1 << number
            self.kinds[kind] = self.kinds.get(kind, 0) | bit
            if layer is not None and not mtp:
                self.layers[layer] = self.layers.get(layer, 0) | bit
            if expert is not None:
                self.experts[expert] = self.experts.get(expert, 0) | bit
            self.mtp |= bit * mtp
        self.layers = dict(sorted(self.layers.items()))
        self.experts = dict(sorted(self.experts.items()))

    def inside(self, selector: Selector) -> Bits:
        """The cells that a selector names."""
        found = self.everything
        if selector.kinds is not None:
            found &= _union(self.kinds, selector.kinds)
        if selector.layers is not None:
            found &= _union(self.layers, selector.layers)
        if selector.experts is not None:
            found &= _union(self.experts, selector.experts)
        if selector.mtp is not None:
            found &= self._of_mtp(selector.mtp)
        return found

    def _of_mtp(self, mtp: bool | None) -> Bits:
        return self.everything if mtp is None else self.mtp if mtp else self.everything & ~self.mtp

    def largest(self, bad: Bits) -> Iterator[_Box]:
        """All boxes without a bad cell that can't be made larger, and some that can."""
        for kinds, layers, mtp in self._largest(self.kinds, bad):
            yield self._box(Selector(kinds, layers, None, mtp))
        for experts, layers, mtp in self._largest(self.experts, bad):
            yield self._box(Selector(None, layers, experts, mtp))

    def _box(self, selector: Selector) -> _Box:
        return _Box(selector, self.inside(selector))

    def _largest(
        self, sets: Mapping[K, Bits], bad: Bits
    ) -> Iterator[tuple[tuple[K, ...], tuple[int, ...] | None, bool | None]]:
        """(kinds or experts, layers, mark) of boxes without a bad cell."""
        for mtp in (None, False, True) if self.mtp else (None,):
            here = bad & self._of_mtp(mtp)
            if fine := tuple(key for key, cells in sets.items() if not cells & here):
                yield fine, None, mtp
        allowed = {n: frozenset(k for k, c in sets.items() if not c & bad & here) for n, here in self.layers.items()}
        for common in _intersections(allowed.values()):
            layers = tuple(layer for layer, fine in allowed.items() if common <= fine)
            yield tuple(key for key in sets if key in common), layers, None


def _union(sets: Mapping[K, Bits], keys: Iterable[K]) -> Bits:
    return _any_of(sets.get(key, 0) for key in keys)


def _any_of(sets: Iterable[Bits]) -> Bits:
    found = 0
    for each in sets:
        found |= each
    return found


def _intersections(sets: Iterable[frozenset[K]]) -> list[frozenset[K]]:
    """What some of the sets have in common, for every choice of them, but for nothing."""
    found = dict[frozenset[K], None]()
    for each in dict.fromkeys(sets):
        found |= dict.fromkeys(common for common in (each, *(each & other for other in found)) if common)
        if len(found) > _MOST_SETS:
            break
    return list(found)


def fold(roles: Sequence[Role], kinds: Sequence[str], fits: Sequence[Sequence[bool]], base: int) -> list[Taken] | None:
    """The fewest rules that do to every unit what fits it; None if there are none, or none are found in time.

    roles, kinds: of each unit. fits: for each action, whether it fits each unit. base: the action of whatever no rule
    takes.
    """
    grid = _Grid(roles, kinds)
    actions = []
    for fitting in fits:
        unfit = {cell for cell, fit in zip(grid.cell_of, fitting, strict=True) if not fit}
        actions.append(grid.everything & ~sum(1 << cell for cell in unfit))
    if _any_of(actions) != grid.everything:
        return None
    for length in range(grid.size + 1):
        search = _Search(grid, actions, base)
        found = search.lists(grid.everything, length)
        if found is not None:
            return _simplified(grid, actions, base, found)
        if search.looked_at >= _MOST_LISTS:
            return None
    return None


class _Search:
    """Looks for lists of one length. actions: the cells that each fits."""

    def __init__(self, grid: _Grid, actions: Sequence[Bits], base: int):
        self.looked_at = 0
        self._grid = grid
        self._actions = actions
        self._base = base

    def lists(self, left: Bits, length: int) -> list[Taken] | None:
        """A list of at most so many rules for the cells that are left."""
        needy = left & ~self._actions[self._base]
        if not needy:
            return []
        if _least(self._actions, needy) > length or self.looked_at >= _MOST_LISTS:
            return None
        self.looked_at += 1
        for rule, taken in self._first_rules(left, needy, is_last=length == 1):
            rest = self.lists(left & ~taken, length - 1)
            if rest is not None:
                return [rule, *rest]
        return None

    def _first_rules(self, left: Bits, needy: Bits, *, is_last: bool) -> list[tuple[Taken, Bits]]:
        """What may come first, with what it takes; that which takes the most from those in need before the others."""
        found: list[tuple[int, Taken, Bits]] = []
        for action, fitting in enumerate(self._actions):
            if is_last and needy & ~fitting:
                continue
            boxes: list[tuple[Selector, Bits]] = []
            for selector, inside in self._grid.largest(left & ~fitting):
                taken = left & inside
                # A rule for the base is there to keep things from the rules behind it.
                useful = taken if action == self._base else taken & needy
                if useful and not any(taken | other == other for _, other in boxes):
                    boxes = [(s, other) for s, other in boxes if taken | other != taken]
                    boxes.append((selector, taken))
            found += [((taken & needy).bit_count(), Taken(action, s), taken) for s, taken in boxes]
        return [(rule, taken) for _, rule, taken in sorted(found, key=lambda each: -each[0])]


def _least(actions: Sequence[Bits], needy: Bits) -> int:
    """How many rules it takes at least: cells of which no two have an action in common need one each."""
    number = 0
    while needy:
        first = needy & -needy
        needy &= ~_any_of(fitting for fitting in actions if fitting & first)
        number += 1
    return number


# ------------------------------------------------------------------------------------------ plain words


def _simplified(grid: _Grid, actions: Sequence[Bits], base: int, rules: Sequence[Taken]) -> list[Taken]:
    """The same rules, each in the fewest words that leave every unit with something that fits it."""
    rules = list(rules)
    for number in reversed(range(len(rules))):
        needed = _unfit(grid, actions, base, [*rules[:number], *rules[number + 1 :]])
        if not needed:
            del rules[number]
            continue
        for selector in _wordings(grid, needed):
            shorter = [*rules[:number], Taken(rules[number].action, selector), *rules[number + 1 :]]
            if not _unfit(grid, actions, base, shorter):
                rules = shorter
                break
    return rules


def _unfit(grid: _Grid, actions: Sequence[Bits], base: int, rules: Sequence[Taken]) -> Bits:
    """The cells to which these rules do what does not fit them."""
    left, found = grid.everything, 0
    for rule in rules:
        taken = left & grid.inside(rule.selector)
        found |= taken & ~actions[rule.action]
        left &= ~taken
    return found | left & ~actions[base]


def _wordings(grid: _Grid, needed: Bits) -> Iterator[Selector]:
    """Selectors of at least these cells, plain ones first."""
    kinds = tuple(kind for kind, cells in grid.kinds.items() if cells & needed)
    mtp = None if needed & grid.mtp and needed & ~grid.mtp else bool(needed & grid.mtp)
    layers = list(_filled(grid.layers, needed))
    yield Selector(kinds)
    yield Selector(kinds, mtp=mtp)
    for wide in layers:
        yield Selector(kinds, wide)
    for experts in _filled(grid.experts, needed):
        yield Selector(kinds, None, experts)
        yield Selector(kinds, None, experts, mtp)
        for wide in layers:
            yield Selector(kinds, wide, experts)


def _filled(sets: Mapping[int, Bits], needed: Bits) -> Iterator[tuple[int, ...]]:
    """The numbers from the first to the last that is needed, then only those that are needed; none if they are not all."""
    exact = tuple(number for number, cells in sets.items() if cells & needed)
    if exact and not needed & ~_union(sets, exact):
        yield tuple(number for number in sets if exact[0] <= number <= exact[-1])
        yield exact
