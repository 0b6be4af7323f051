"""What one unit's bytes say of where it is from: whose bytes they are, or which shares of the parents give them.

A unit that is no parent's is looked at in a few thousand numbers first; what they allow (`numerics.cells`) is tried on
the whole unit by making it again. Numbers that come out otherwise narrow what is allowed, until a candidate gives every
byte, or none is left.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from chimerakit.events import Report
from chimerakit.execute import Inputs
from chimerakit.numerics.cells import Bound
from chimerakit.plan.panels import Panel
from chimerakit.records import Role
from chimerakit.scan import Pair, ScanUnit, Values, equal_pairs

if TYPE_CHECKING:
    from chimerakit.numerics.cells import F64, Clues, Ints

CHILD = "child"
_LOOKED_AT = 1 << 14
"""Numbers of a unit that candidates are found with. The interval that they leave is about as narrow as they are many."""
_ADDED = 1 << 12
"""Numbers that a failed candidate adds at most."""
_TRIED = 12
"""Candidates that are tried on the whole unit."""


class Mixture(Struct, frozen=True):
    """Shares that give all of a unit's bytes."""

    shares: dict[str, float]
    """The shortest decimals that do; parents with a share of 0 left out."""
    bounds: tuple[Bound, ...]
    """What the numbers looked at allow besides: shares of all readable parents, in their order."""
    width: float
    """How much room that leaves, in units of a share."""


class Evidence(Struct, frozen=True):
    """What was found out about one unit of the child."""

    unit: str
    role: Role
    nbytes: int
    equal: tuple[str, ...]
    """Parents whose bytes these are."""
    alike: tuple[Pair, ...]
    """Parents that have the same bytes as each other."""
    readable: tuple[str, ...] = ()
    """Parents whose values can be had, as the child's can."""
    mixture: Mixture | None = None
    """With one parent: its values, stored otherwise."""
    why: str = ""
    """What is the matter, if nothing explains the unit."""


def look_at(unit: ScanUnit, problems: Mapping[str, str], inputs: Inputs, report: Report) -> Evidence:
    """The question of a scan. problems: of each side, why its values can't be had, if so."""
    same = equal_pairs(unit, inputs, report)
    parents = [side for side in unit.sides if side != CHILD]
    readable = [] if problems[CHILD] else [parent for parent in parents if not problems[parent]]
    found = Evidence(
        unit=unit.name,
        role=unit.role,
        nbytes=sum(tensor.nbytes for tensor in unit.sides[CHILD].tensors),
        equal=tuple(p for p in parents if (CHILD, p) in same or (p, CHILD) in same),
        alike=tuple(sorted(pair for pair in same if CHILD not in pair)),
        readable=tuple(readable),
    )
    if found.equal:
        return found
    objections = "; ".join(f"{side}: {problems[side]}" for side in unit.sides if problems[side])
    if not readable:
        return replace(found, why=objections or "no parent has it")
    mixture = _Unmixing(unit, readable, inputs, report).solve()
    if isinstance(mixture, Mixture):
        return replace(found, mixture=mixture)
    return replace(found, why="; ".join(filter(None, (mixture, objections))))


def gives(unit: ScanUnit, shares: Mapping[str, float], inputs: Inputs, report: Report) -> bool:
    """Whether these shares of its parents give all bytes of a unit. The order of the parents is that of the sum."""
    remade = _Remade(unit, [CHILD, *shares], inputs, report)
    return all(not remade.unlike(panel, shares).size for panel in remade.values.panels())


class _Remade:
    """A unit that is made again to be compared."""

    def __init__(self, unit: ScanUnit, sides: Sequence[str], inputs: Inputs, report: Report):
        self.values = Values(unit, sides, inputs, report)
        self._storage = unit.sides[CHILD].storage
        self._inputs = inputs

    def unlike(self, panel: Panel, shares: Mapping[str, float]) -> "Ints":
        """Places in a panel, row by row, where the child's bytes are others than these shares give."""
        import numpy as np

        from chimerakit.numerics import mix
        from chimerakit.numerics.cells import unlike_numbers

        child = self.values.term(CHILD, panel)
        terms = [self.values.term(p, panel)._replace(share=np.float32(share)) for p, share in shares.items()]
        out = self._inputs.memory("remade", child.data.size)[: child.data.size].reshape(child.data.shape)
        scratch = self._inputs.memory("scratch", mix.SCRATCH)
        scales, _ = mix.mix_into(
            terms, (panel.rows, panel.cols), self._storage, child.scale_dtype, out, np.zeros(2), scratch
        )
        return unlike_numbers(out, scales, child)


class _Unmixing:
    """The search for the shares of one unit."""

    def __init__(self, unit: ScanUnit, parents: list[str], inputs: Inputs, report: Report):
        self._parents = parents
        self._remade = _Remade(unit, [CHILD, *parents], inputs, report)
        self._panels = list(self._remade.values.panels())

    def solve(self) -> Mixture | str:
        """The shares, or how far the nearest are from giving the unit."""
        import numpy as np

        from chimerakit.numerics.cells import Clues

        clues = Clues(len(self._parents))
        first = self._panels[0]
        rows = min(first.rows, max(1, _LOOKED_AT // first.cols))  # whole rows lie together
        corner = first._replace(rows=rows, cols=first.cols if first.rows > 1 else min(first.cols, _LOOKED_AT))
        self._learn(clues, corner, np.arange(corner.rows * corner.cols))
        tried: list[list[tuple[str, float]]] = []
        while len(tried) < _TRIED:
            shares = next((s for s in self._candidates(clues) if list(s.items()) not in tried), None)
            if shares is None:
                break
            tried.append(list(shares.items()))
            if not self._contradict(clues, shares):
                bounds, width = clues.outline(np.array([shares.get(parent, 0.0) for parent in self._parents]))
                return Mixture(shares, tuple(bounds), width)
        return self._nearest(clues)

    def _learn(self, clues: "Clues", panel: Panel, where: "Ints") -> None:
        values = self._remade.values
        clues.add(values.term(CHILD, panel), [values.of(parent, panel) for parent in self._parents], where)

    def _contradict(self, clues: "Clues", shares: Mapping[str, float]) -> bool:
        """Whether shares do not give the unit; numbers that are not given are added to the clues."""
        for panel in self._panels:
            unlike = self._remade.unlike(panel, shares)
            if unlike.size:
                self._learn(clues, panel, unlike[:: max(1, unlike.size // _ADDED)])
                return True
        return False

    def _candidates(self, clues: "Clues") -> Iterator[dict[str, float]]:
        """Shares that the clues allow: one parent alone, then such as sum to 1, then any; short decimals first."""
        import numpy as np

        for alone in np.eye(len(self._parents)):
            if not clues.unmet(alone):
                yield self._named(alone)
        numbers = range(len(self._parents))
        for is_whole in (True, False):
            for count in range(1 + is_whole, len(numbers) + 1):  # as few parents as will do
                for among in combinations(numbers, count):
                    for shares in clues.decimals(among, is_whole=is_whole):
                        yield from self._orders(self._named(shares))

    def _orders(self, shares: Mapping[str, float]) -> Iterator[dict[str, float]]:
        """The same shares in every order that can make a difference: which of three or more is added last."""
        yield dict(shares)
        for order in list(permutations(shares.items()))[1:] if len(shares) > 2 else ():
            yield dict(order)

    def _named(self, shares: "F64") -> dict[str, float]:
        return {p: float(share) for p, share in zip(self._parents, shares, strict=True) if share != 0}

    def _nearest(self, clues: "Clues") -> str:
        """How far from the unit the nearest shares are."""
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
        unlike = sum(self._remade.unlike(panel, shares).size for panel in self._panels) if shares else 0
        total = sum(panel.rows * panel.cols for panel in self._panels)
        said = " + ".join(f"{share:g} {parent}" for parent, share in shares.items()) or "nothing"
        return f"the nearest mix, {said}, gives all but {unlike} of its {total} numbers"
