"""Rules out of facts: the shortest list of rules that says of every unit what its bytes allow.

A rule selects a *box*: units of some kinds, in some layers or wherever, or some experts. The first rule that matches
takes a unit, so a list is found from its front: a box may come first if one action fits everything in it; what it takes
is out of the way, which can only make the rest easier. So only boxes that can't be made larger are tried, and fewer
rules before more. A recipe of boxes is therefore never folded into more rules than it had, unless the search is cut
short.

Sets of units are whole numbers with a bit for each. Layers, and experts, to which the same was done everywhere are alike:
the search is over one of each kind, so a model of fifty thousand units is a few dozen cells as a rule.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

from chimerakit.records import Role

Bits = int
K = TypeVar("K", bound=str | int)

_MOST_LISTS = 4000
"""Beginnings of lists that are looked at, of each length."""
_MOST_CELLS = 1 << 20
"""Cells in all of them together: where no two layers are alike, there is no rule to be found in boxes."""
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


class _Key(NamedTuple):
    """All that a selector can say of a unit."""

    kind: str
    layer: int | None
    expert: int | None
    mtp: bool


class _Grid:
    """Cells: units that no box can tell apart. cells: for each its key, and a bit for each action that fits it."""

    def __init__(self, cells: Mapping[_Key, Bits], num_actions: int):
        self.size = len(cells)
        self.everything: Bits = (1 << self.size) - 1
        kinds, layers, experts = dict[str, list[int]](), dict[int, list[int]](), dict[int, list[int]]()
        mtp = list[int]()
        for number, key in enumerate(cells):
            kinds.setdefault(key.kind, []).append(number)
            if key.layer is not None and not key.mtp:
                layers.setdefault(key.layer, []).append(number)
            if key.expert is not None:
                experts.setdefault(key.expert, []).append(number)
            if key.mtp:
                mtp.append(number)
        self.kinds = {kind: self._bits(numbers) for kind, numbers in kinds.items()}
        self.layers = {layer: self._bits(numbers) for layer, numbers in sorted(layers.items())}
        self.experts = {expert: self._bits(numbers) for expert, numbers in sorted(experts.items())}
        self.mtp = self._bits(mtp)
        self.actions = [
            self._bits([number for number, fitting in enumerate(cells.values()) if fitting >> action & 1])
            for action in range(num_actions)
        ]
        """The cells that each action fits."""

    def _bits(self, numbers: Iterable[int]) -> Bits:
        found = bytearray(self.size // 8 + 1)
        for number in numbers:
            found[number >> 3] |= 1 << (number & 7)
        return int.from_bytes(found, "little")

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
    cells: dict[_Key, Bits] = {}
    for role, kind, fitting in zip(roles, kinds, zip(*fits, strict=True), strict=True):
        key = _Key(kind, role.layer, role.expert, role.mtp)
        cells[key] = cells.get(key, -1) & sum(1 << action for action, is_fit in enumerate(fitting) if is_fit)
    if not all(cells.values()):
        return None
    layers, experts = _alike(cells, "layer"), _alike(cells, "expert")
    few = {key: fitting for key, fitting in cells.items() if _is_first(key, layers, experts)}
    grid = _Grid(few, len(fits))
    for length in range(grid.size + 1):
        search = _Search(grid, base)
        found = search.lists(grid.everything, length)
        if found is not None:
            rules = [Taken(rule.action, _of_all(rule.selector, layers, experts)) for rule in found]
            return _simplified(_Grid(cells, len(fits)), base, rules)
        if search.is_exhausted:
            return None
    return None


def _alike(cells: Mapping[_Key, Bits], what: Literal["layer", "expert"]) -> dict[int, int]:
    """For each main layer, or expert, the first one to which the same was done everywhere."""
    done: dict[int, list[tuple[_Key, Bits]]] = {}
    for key, fitting in cells.items():
        number = key.layer if what == "layer" else key.expert
        if number is not None and not (key.mtp and what == "layer"):
            rest = key._replace(layer=None) if what == "layer" else key._replace(expert=None)
            done.setdefault(number, []).append((rest, fitting))
    first: dict[frozenset[tuple[_Key, Bits]], int] = {}
    return {number: first.setdefault(frozenset(here), number) for number, here in sorted(done.items())}


def _is_first(key: _Key, layers: Mapping[int, int], experts: Mapping[int, int]) -> bool:
    """Whether a cell stands for those that are like it."""
    is_layer = key.mtp or key.layer is None or layers[key.layer] == key.layer
    return is_layer and (key.expert is None or experts[key.expert] == key.expert)


def _of_all(selector: Selector, layers: Mapping[int, int], experts: Mapping[int, int]) -> Selector:
    """A selector of the first layers and experts, and of those that are like them."""

    def widened(numbers: tuple[int, ...] | None, first: Mapping[int, int]) -> tuple[int, ...] | None:
        return None if numbers is None else tuple(number for number in first if first[number] in numbers)

    return selector._replace(layers=widened(selector.layers, layers), experts=widened(selector.experts, experts))


class _Search:
    """Looks for lists of one length."""

    def __init__(self, grid: _Grid, base: int):
        self._left = min(_MOST_LISTS, 1 + _MOST_CELLS // (1 + grid.size))
        self._grid = grid
        self._actions = grid.actions
        self._base = base

    @property
    def is_exhausted(self) -> bool:
        """Whether it gave up."""
        return self._left == 0

    def lists(self, left: Bits, length: int) -> list[Taken] | None:
        """A list of at most so many rules for the cells that are left."""
        needy = left & ~self._actions[self._base]
        if not needy:
            return []
        if _least(self._actions, needy) > length or self.is_exhausted:
            return None
        self._left -= 1
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


def _simplified(grid: _Grid, base: int, rules: Sequence[Taken]) -> list[Taken]:
    """The same rules, each in the fewest words that leave every unit with something that fits it."""
    rules = list(rules)
    for number in reversed(range(len(rules))):
        needed = _unfit(grid, base, [*rules[:number], *rules[number + 1 :]])
        if not needed:
            del rules[number]
            continue
        for selector in _wordings(grid, needed):
            shorter = [*rules[:number], Taken(rules[number].action, selector), *rules[number + 1 :]]
            if not _unfit(grid, base, shorter):
                rules = shorter
                break
    return rules


def _unfit(grid: _Grid, base: int, rules: Sequence[Taken]) -> Bits:
    """The cells to which these rules do what does not fit them."""
    left, found = grid.everything, 0
    for rule in rules:
        taken = left & grid.inside(rule.selector)
        found |= taken & ~grid.actions[rule.action]
        left &= ~taken
    return found | left & ~grid.actions[base]


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
