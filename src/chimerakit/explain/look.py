"""What one unit's bytes say of where it is from: whose bytes they are, or which shares of the parents give them.

A unit that is no parent's is looked at in a few thousand numbers first; what they allow (`numerics.cells`) is tried on
the whole unit by making it again. Numbers that come out otherwise narrow what is allowed, until a candidate gives every
byte, or none is left.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, permutations, product
from typing import TYPE_CHECKING

from msgspec.structs import replace

from chimerakit.dtypes import FP8_BLOCKS, MIXABLE, QUANTS, numel_of
from chimerakit.events import Report
from chimerakit.execute import Inputs
from chimerakit.explain.again import CHILD, Unlike, made_of_shares, make_again
from chimerakit.explain.evidence import Evidence, Mixture
from chimerakit.explain.sample import Span, cut_unit
from chimerakit.numerics.cells import OTHERS, OWN, Bound, Clues, Interval, Rounding, apart
from chimerakit.numerics.mix import decode
from chimerakit.plan.panels import Panel
from chimerakit.scan import Pair, ScanUnit, Values, equal_pairs

if TYPE_CHECKING:
    from chimerakit.numerics.cells import F64, Ints

_LOOKED_AT = 1 << 12
"""Numbers of a unit that candidates are found with. The interval that they leave is about as narrow as they are many."""
_GLANCED_AT = 1 << 9
"""Numbers of a unit that is known to be a parent's, to see that it is no mix."""
_ESTIMATED_FROM = 1 << 14
"""Numbers of each corner of a unit that another encoder's shares are estimated from."""
_ADDED = 1 << 12
"""Numbers that a failed candidate adds at most."""
_TRIED = 12
"""Candidates that are tried on the whole unit."""
_TRIED_ON = 5
"""Candidates that are tried after one that is as near as float32 can tell."""
_CORNERS = 16
"""Panels, spread over a unit, that the shares of another encoder are estimated from."""
_RARE = 1e-3
"""The share of odd numbers up to which float32 may have been added up otherwise."""
_REACH = ((1, 1), (2, 3), (3, 10), (4, 30))
"""Decimals of shares that are tried for a quant, and how many steps of the last of them from the fit."""
_FEW_OF = 20
"""Of so many blocks one may have been changed by hand; encoders that round otherwise do so all over."""


def look_at(unit: ScanUnit, problems: Mapping[str, str], inputs: Inputs, report: Report) -> Evidence:
    """The question of a scan. problems: of each side, why its values can't be had, if so."""
    same = equal_pairs(unit, inputs, report)
    parents = [side for side in unit.sides if side != CHILD]
    usable = [parent for parent in parents if not problems[parent]]
    found = Evidence(
        unit=unit.name,
        role=unit.role,
        nbytes=sum(tensor.nbytes for tensor in unit.sides[CHILD].tensors),
        equal=tuple(p for p in parents if (CHILD, p) in same or (p, CHILD) in same),
        alike=tuple(sorted(pair for pair in same if CHILD not in pair)),
        usable=tuple(usable),
        is_readable=not problems[CHILD] or _holds_codes(unit, usable),
    )
    if found.equal:
        return found
    objections = "; ".join(f"{side}: {problems[side]}" for side in unit.sides if problems[side])
    if not found.readable:
        return replace(found, why=objections or "no parent has it")
    found = _Unmixing(unit, list(found.readable), inputs, report).solve(found)
    return replace(found, why="; ".join(filter(None, (found.why, objections)))) if found.why else found


def _holds_codes(unit: ScanUnit, parents: Sequence[str]) -> bool:
    """Whether a child has FP8 codes and their scales as weights of another type: what mergekit makes of them."""
    child = unit.sides[CHILD]
    are_codes = child.storage not in MIXABLE and len(child.tensors) == 2 and child.tensors[0].dtype in MIXABLE
    return are_codes and all(unit.sides[parent].storage in FP8_BLOCKS for parent in parents)


def doubt(found: Evidence, unit: ScanUnit, inputs: Inputs, report: Report) -> Evidence:
    """The evidence of a unit whose bytes shares give, with what other encoders may have done if that may be chance."""
    unmixing = _Unmixing(unit, list(found.readable), inputs, report)
    return replace(found, others=unmixing.others()) if unmixing.is_small else found


def outline(unit: ScanUnit, equal: str, parents: Sequence[str], inputs: Inputs, report: Report) -> tuple[Bound, ...]:
    """What a few numbers of a unit that is a parent's allow besides: shares of all these parents, in their order."""
    if unit.sides[CHILD].storage in QUANTS:
        return ()
    return _Unmixing(unit, list(parents), inputs, report).outline({equal: 1.0})


class _Unmixing:
    """The search for the shares of one unit."""

    def __init__(self, unit: ScanUnit, parents: list[str], inputs: Inputs, report: Report):
        self._holds_codes = _holds_codes(unit, parents)
        if self._holds_codes:
            weight = unit.sides[CHILD].tensors[0]
            codes = replace(unit.sides[CHILD], storage=weight.dtype, tensors=(weight,))
            unit = replace(unit, sides=unit.sides | {CHILD: codes})
        self._unit = unit
        self._parents = parents
        self._inputs = inputs
        self._report = report
        self._values = Values(unit, [CHILD, *parents], inputs, report)
        self._panels = list(self._values.panels())

    def solve(self, found: Evidence) -> Evidence:
        """The evidence, with the shares if there are any, and what speaks against their giving all bytes."""
        if self._holds_codes:
            why = f"FP8 codes and their scales are stored as {self._unit.sides[CHILD].storage}"
            return replace(found, others=self.others(), why=why)
        if self._storage in QUANTS:
            return self._solve_quants(found)
        clues = self._clues(OWN, self._panels[:1], _LOOKED_AT)
        tried: list[list[tuple[str, float]]] = []
        almost: tuple[Mixture, ...] = ()
        most = _TRIED
        while len(tried) < most:
            shares = next((s for s in self._candidates(clues) if list(s.items()) not in tried), None)
            if shares is None:
                break
            tried.append(list(shares.items()))
            made = self._try(clues, shares)
            if not made.count:
                mixture = self._mixture(clues, shares)
                first = next(iter(shares)) if list(shares.values()) == [1.0] else None
                converted = () if first is None else tuple(self._all_converted(clues, first, found.alike))
                return replace(found, mixture=mixture, converted=converted, others=almost, nonfinite=made.nonfinite)
            if not almost and not clues.unmet(self._at(shares)):
                almost = (replace(self._mixture(clues, shares), encoder=OTHERS[0].name),)
                most = min(_TRIED, len(tried) + _TRIED_ON)
        unlike, why = self._nearest(clues)
        scales = sum(numel_of(tensor.shape) for tensor in self._unit.sides[CHILD].tensors[1:])
        others = (almost if unlike <= _RARE * self._size else ()) or self.others()
        return replace(found, others=others, is_touched=unlike <= 1 + scales // _FEW_OF, why=why)

    @property
    def _storage(self) -> str:
        return self._unit.sides[CHILD].storage

    def _solve_quants(self, found: Evidence) -> Evidence:
        """Of a quant no number alone says what it was rounded from, as its block's scale depends on all of them: shares of few
        decimals near the best fit are tried, on a row first."""
        row = cut_unit(self._unit, Span(0, 1)) if len(self._unit.sides[CHILD].tensors[0].shape) > 1 else self._unit

        def given_by(candidates: Iterable[dict[str, float]]) -> Iterator[tuple[dict[str, float], Unlike]]:
            for shares in candidates:
                if not self._made_of(shares, is_enough=1, of=row).count:
                    made = self._made_of(shares, is_enough=1)
                    if not made.count:
                        yield shares, made

        wholes = list(given_by({parent: 1.0} for parent in self._parents))
        first = wholes[0] if wholes else next(given_by(self._near_fit()), None)
        if first is None:
            return replace(found, why=f"no shares of few decimals give it, of those that are near in {self._storage}")
        shares, made = first
        rooms = {parent: Interval(share, share) for parent, share in shares.items()}
        return replace(
            found,
            mixture=Mixture(shares, rooms, (), math.inf),
            converted=tuple(next(iter(whole)) for whole, _ in wholes),
            nonfinite=made.nonfinite,
        )

    def _near_fit(self) -> Iterator[dict[str, float]]:
        """Mixes of two parents, or of all, near the one whose values come nearest to the child's; short decimals first."""
        import numpy as np

        from chimerakit.numerics.compare import add_products, fit_shares

        if len(self._parents) < 2:
            return
        corner = self._panels[0]
        for among in dict.fromkeys((*combinations(self._parents, 2), tuple(self._parents))):
            products = np.zeros((len(among) + 1, len(among) + 1))
            add_products(products, self._values.of(CHILD, corner), [self._values.of(p, corner) for p in among])
            fit, _ = fit_shares(products)
            if not all(map(math.isfinite, fit)):
                continue
            for digits, reach in _REACH:
                for steps in sorted(
                    product(range(-reach, reach + 1), repeat=len(among) - 1), key=lambda s: sum(map(abs, s))
                ):
                    others = [
                        round(round(x, digits) + n * 10.0**-digits, digits) for x, n in zip(fit[1:], steps, strict=True)
                    ]
                    shares = [round(1 - math.fsum(others), 12), *others]
                    yield {parent: share for parent, share in zip(among, shares, strict=True) if share}

    def _all_converted(self, clues: Clues, first: str, alike: Collection[Pair]) -> Iterator[str]:
        """All parents whose values are a unit's bytes if stored as it is, as those of the first are."""
        for parent in self._parents:
            is_first = parent == first or (first, parent) in alike or (parent, first) in alike
            alone = {parent: 1.0}
            if is_first or not (clues.unmet(self._at(alone)) or self._try(clues, alone).count):
                yield parent

    @property
    def is_small(self) -> bool:
        """Whether all numbers of the unit are few enough that shares may give them by chance."""
        return self._size <= _ESTIMATED_FROM

    @property
    def _size(self) -> int:
        return sum(panel.rows * panel.cols for panel in self._panels)

    def outline(self, shares: Mapping[str, float]) -> tuple[Bound, ...]:
        """What a few numbers allow around shares that give all of them."""
        return self._mixture(self._clues(OWN, self._panels[:1], _GLANCED_AT), shares).bounds

    def others(self) -> tuple[Mixture, ...]:
        """Shares that other encoders may have used; of quants nothing is known of others."""
        if self._storage in QUANTS:
            return ()
        found = []
        for rounding in OTHERS:
            if self._may_be_apart() if rounding.is_apart else not self._holds_codes:
                corners = self._panels[:: max(1, -(-len(self._panels) // _CORNERS))]
                clues = self._clues(rounding, corners, _ESTIMATED_FROM)
                shares = next(self._candidates(clues), None)
                if shares is not None:
                    found.append(self._mixture(clues, shares))
        return tuple(found)

    def _may_be_apart(self) -> bool:
        """Whether there are codes and scales that could be averaged apart; where scales agree, that is no other thing."""
        if not (self._holds_codes or self._values.are_fp8):
            return False
        scales = [(parent, self._unit.sides[parent].tensors[1]) for parent in self._parents]
        return len({bytes(self._inputs.reader(p, s.file).read(s.start, s.nbytes)) for p, s in scales}) > 1

    def _mixture(self, clues: Clues, shares: Mapping[str, float]) -> Mixture:
        at = self._at(shares)
        bounds, width = clues.outline(at)
        rooms = zip(self._parents, clues.ranges(at), strict=True)
        ranges = {parent: room for parent, room in rooms if parent in shares or room.low < room.high}
        return Mixture(dict(shares), ranges, tuple(bounds), width, clues.rounding.name)

    def _clues(self, rounding: Rounding, panels: Sequence[Panel], numbers: int) -> Clues:
        """What the first numbers of some panels say."""
        import numpy as np

        clues = Clues(len(self._parents), rounding)
        for panel in panels:
            rows = min(panel.rows, max(1, numbers // panel.cols))  # whole rows lie together
            corner = panel._replace(rows=rows, cols=panel.cols if panel.rows > 1 else min(panel.cols, numbers))
            self._learn(clues, corner, np.arange(corner.rows * corner.cols))
        return clues

    def _learn(self, clues: Clues, panel: Panel, where: "Ints") -> None:
        """Look at some numbers of a panel; where codes and scales were averaged apart, at all of its scales as well."""
        import numpy as np

        terms = [self._values.term(side, panel) for side in (CHILD, *self._parents)]
        if clues.rounding.is_apart:
            codes, scales = zip(*(apart(term) for term in terms if term.scales is not None), strict=True)
            if self._holds_codes:
                codes = terms[0], *codes
            else:
                clues.add(scales[0], [decode(scale) for scale in scales[1:]], np.arange(scales[0].data.size // 4))
            terms = list(codes)
        clues.add(terms[0], [decode(term) for term in terms[1:]], where)

    def _try(self, clues: Clues, shares: Mapping[str, float]) -> Unlike:
        """Whether shares give the unit; numbers that they don't are added to the clues."""
        made = self._made_of(shares, is_enough=1)
        if made.first is not None:
            panel, where = self._values.place(made.first[:: max(1, len(made.first) // _ADDED)])
            self._learn(clues, panel, where)
        return made

    def _made_of(self, shares: Mapping[str, float], *, is_enough: int | None, of: ScanUnit | None = None) -> Unlike:
        unit = of or self._unit
        return make_again(made_of_shares(unit, shares), unit, self._inputs, self._report, is_enough=is_enough)

    def _candidates(self, clues: Clues) -> Iterator[dict[str, float]]:
        """Shares that the clues allow: one parent alone, then such as sum to 1, then any; short decimals first."""
        import numpy as np

        for alone in np.eye(len(self._parents)):
            if not clues.unmet(alone):
                yield self._named(alone)
        numbers = range(len(self._parents))
        for is_whole in (True,) if clues.rounding.name else (True, False):
            for count in range(1 + is_whole, len(numbers) + 1):  # as few parents as will do
                for among in combinations(numbers, count):
                    for shares in clues.decimals(among, is_whole=is_whole):
                        yield from self._orders(self._named(shares))

    def _orders(self, shares: Mapping[str, float]) -> Iterator[dict[str, float]]:
        """The same shares in every order that can make a difference: of the first two it makes none."""
        for order in permutations(shares.items()):
            if len(order) < 2 or order[0][0] < order[1][0]:
                yield dict(order)

    def _at(self, shares: Mapping[str, float]) -> "F64":
        import numpy as np

        return np.array([shares.get(parent, 0.0) for parent in self._parents])

    def _named(self, shares: "F64") -> dict[str, float]:
        return {p: float(share) for p, share in zip(self._parents, shares, strict=True) if share != 0}

    def _nearest(self, clues: Clues) -> tuple[int, str]:
        """How many numbers the nearest shares do not give, and that in words."""
        import numpy as np

        whole = np.eye(len(self._parents))
        if len(self._parents) == 1:
            at = whole[0]
        elif len(self._parents) == 2:
            step, _ = clues.most_met(whole[0], whole[1] - whole[0])
            at = whole[0] + step * (whole[1] - whole[0])
        else:
            at = clues.solve(whole[0], np.delete(whole - whole[0], 0, axis=0))
        shares = self._named(np.round(at, 4))
        unlike = self._made_of(shares, is_enough=None).count if shares else 0
        said = " + ".join(f"{share:g} {parent}" for parent, share in shares.items()) or "nothing"
        return unlike, f"the nearest mix, {said}, gives all but {unlike} of its {self._size} numbers"
