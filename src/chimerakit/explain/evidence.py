"""What one unit's bytes say of where it is from: whose bytes they are, or which shares of the parents give them.

A unit that is no parent's is looked at in a few thousand numbers first; what they allow (`numerics.cells`) is tried on
the whole unit by making it again. Numbers that come out otherwise narrow what is allowed, until a candidate gives every
byte, or none is left.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import combinations, permutations
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from chimerakit.dtypes import numel_of
from chimerakit.events import Report
from chimerakit.execute import Inputs, make_units
from chimerakit.numerics.cells import Bound
from chimerakit.plan.panels import Panel
from chimerakit.plan.ranges import Run
from chimerakit.records import Input, Role, Row, Tensor
from chimerakit.scan import Pair, ScanUnit, Values, equal_pairs
from chimerakit.stores.local import CHUNK, Buffer, Reader
from chimerakit.stores.system import same_bytes

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


def made_of_shares(unit: ScanUnit, shares: Mapping[str, float]) -> Row:
    """The row that gives a unit of the child, stored as the child stores it, these shares. Their order is that of the sum."""
    child = unit.sides[CHILD]
    return Row(
        unit=unit.name,
        role=unit.role,
        rule=None,
        kind="convert" if list(shares.values()) == [1.0] else "mix",
        inputs=tuple(replace(unit.sides[parent], share=share) for parent, share in shares.items()),
        storage=child.storage,
        outputs=child.tensors,
        if_equal=None,
    )


def gives(row: Row, unit: ScanUnit, inputs: Inputs, report: Report) -> bool:
    """Whether a row gives all bytes of a unit of the child: it is made again, by the code that merges."""
    return not _make_again(row, unit, inputs, report, is_enough=1).count


class _UnlikeError(Exception):
    """What was made differs, and that is enough; never seen outside."""


class _Unlike:
    """A sink that compares a unit, as it is made again, with the child's."""

    def __init__(self, child: Input, inputs: Inputs, report: Report, *, is_enough: int | None):
        self.count = 0
        """Numbers that differ, and scales."""
        self.first: Ints | None = None
        """Places in the weight of the first of them; of scales, of the first numbers in their blocks."""
        self._tensors = {tensor.name: tensor for tensor in child.tensors}
        self._child = child
        self._inputs = inputs
        self._report = report
        self._is_enough = is_enough

    def write(self, tensor: Tensor, start: int, data: Buffer) -> None:
        """Compare bytes of a tensor, from `start` on within it."""
        from chimerakit.numerics.cells import first_of_blocks, unlike_places

        self._report(0)
        made, mine = memoryview(data).cast("B"), self._tensors[tensor.name]
        found = self._inputs.memory("the child's", len(made))[: len(made)].data
        self._inputs.reader(CHILD, mine.file).read_into(found, mine.start + start)
        if same_bytes(made, found):
            return
        width = mine.nbytes // numel_of(mine.shape)
        places = unlike_places(made, found, width) + start // width
        self.count += len(places)
        if self.first is None:
            weight = self._child.tensors[0]
            rows, cols = weight.shape if len(weight.shape) == 2 else (1, numel_of(weight.shape))
            self.first = places if mine is weight else first_of_blocks(places, (rows, cols))
        if self._is_enough is not None and self.count >= self._is_enough:
            raise _UnlikeError

    def copy(self, run: Run, reader: Reader) -> None:
        """Compare a range of a parent's file."""
        for piece in reader.pieces(run.start, run.nbytes, memoryview(bytearray(CHUNK))):
            for tensor, within, first, last in run.slices(piece.start, piece.nbytes):
                self.write(tensor, within, bytes(last - first) if piece.data is None else piece.data[first:last])


def _make_again(row: Row, unit: ScanUnit, inputs: Inputs, report: Report, *, is_enough: int | None) -> _Unlike:
    sink = _Unlike(unit.sides[CHILD], inputs, report, is_enough=is_enough)
    with suppress(_UnlikeError):
        list(make_units((row,), inputs, sink, allow_nonfinite=True))
    return sink


class _Unmixing:
    """The search for the shares of one unit."""

    def __init__(self, unit: ScanUnit, parents: list[str], inputs: Inputs, report: Report):
        self._unit = unit
        self._parents = parents
        self._inputs = inputs
        self._report = report
        self._values = Values(unit, [CHILD, *parents], inputs, report)
        self._panels = list(self._values.panels())

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
        values = self._values
        clues.add(values.term(CHILD, panel), [values.of(parent, panel) for parent in self._parents], where)

    def _contradict(self, clues: "Clues", shares: Mapping[str, float]) -> bool:
        """Whether shares do not give the unit; numbers that are not given are added to the clues."""
        found = self._made_of(shares, is_enough=1).first
        if found is not None:
            panel, where = self._values.place(found[:: max(1, len(found) // _ADDED)])
            self._learn(clues, panel, where)
        return found is not None

    def _made_of(self, shares: Mapping[str, float], *, is_enough: int | None) -> _Unlike:
        row = made_of_shares(self._unit, shares)
        return _make_again(row, self._unit, self._inputs, self._report, is_enough=is_enough)

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
        """The same shares in every order that can make a difference: of the first two it makes none."""
        for order in permutations(shares.items()):
            if len(order) < 2 or order[0][0] < order[1][0]:
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
        unlike = self._made_of(shares, is_enough=None).count if shares else 0
        total = sum(panel.rows * panel.cols for panel in self._panels)
        said = " + ".join(f"{share:g} {parent}" for parent, share in shares.items()) or "nothing"
        return f"the nearest mix, {said}, gives all but {unlike} of its {total} numbers"
