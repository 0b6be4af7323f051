"""A seeded sample of units, and of rows of blocks in them: what a look at a hundredth of a child shows.

Every component of every layer is in it. Which units and rows depends on the seed and on names alone.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from chimerakit.dtypes import BLOCK, FP8_BLOCKS, MIXABLE
from chimerakit.records import Input, Row, Tensor
from chimerakit.scan import ScanUnit
from chimerakit.stores.digest import digest_of

_CONFIDENCE = 0.95


class Span(Struct, frozen=True):
    """Rows of a unit: from `first` on, `count` of them."""

    first: int
    count: int


class Sampled(Struct, frozen=True):
    """What was looked at."""

    share: float
    """What was asked for, of all bytes of the child's weights."""
    seed: int
    units: int
    all_units: int
    nbytes: int
    all_nbytes: int

    @property
    def at_most(self) -> float:
        """If all units in the sample are explained: no larger share of all units is otherwise in such blocks as were looked
        at, with 95 % confidence, were the sample drawn at random."""
        return 1 - (1 - _CONFIDENCE) ** (1 / self.units) if self.units else 1.0


def draw(units: Sequence[ScanUnit], side: str, share: float, seed: int) -> dict[str, Span | None]:
    """The rows to look at in some units, by name; None for all rows. share: of the bytes on one side, at least."""
    order = sorted(units, key=lambda unit: _number(seed, unit.name))
    spans = {unit.name: _span(unit, share, seed) for unit in units}
    first = {(unit.role.component, unit.role.layer): unit for unit in reversed(order)}.values()
    left = share * nbytes_on(side, units)
    found: dict[str, Span | None] = {}
    for number, unit in enumerate((*first, *order)):
        if number >= len(first) and left <= 0:
            break
        if unit.name not in found:
            found[unit.name] = spans[unit.name]
            left -= nbytes_on(side, [cut_unit(unit, spans[unit.name])])
    return found


def nbytes_on(side: str, units: Iterable[ScanUnit]) -> int:
    """Bytes of units on one side."""
    return sum(tensor.nbytes for unit in units for tensor in unit.sides[side].tensors)


def cut_unit(unit: ScanUnit, span: Span | None) -> ScanUnit:
    """The rows of a unit on all sides."""
    return replace(unit, sides={name: _side(side, span) for name, side in unit.sides.items()})


def cut_row(row: Row, span: Span | None) -> Row:
    """A row of a plan that makes these rows only."""
    return replace(row, inputs=tuple(_side(i, span) for i in row.inputs), outputs=_cut(row.storage, row.outputs, span))


def _side(side: Input, span: Span | None) -> Input:
    return replace(side, tensors=_cut(side.storage, side.tensors, span))


def _cut(storage: str, tensors: tuple[Tensor, ...], span: Span | None) -> tuple[Tensor, ...]:
    if span is None:
        return tensors
    rows = _rows(tensors[0], span.first, span.first + span.count)
    if storage not in FP8_BLOCKS:
        return (rows,)
    return rows, _rows(tensors[1], span.first // BLOCK, -(-(span.first + span.count) // BLOCK))


def _rows(tensor: Tensor, first: int, last: int) -> Tensor:
    width = tensor.nbytes // tensor.shape[0]
    shape = last - first, *tensor.shape[1:]
    return replace(tensor, shape=shape, start=tensor.start + first * width, nbytes=(last - first) * width)


def _span(unit: ScanUnit, share: float, seed: int) -> Span | None:
    """Rows of a unit: whole rows of blocks, as scales depend on all of a block. All rows of what has one shape here and
    another there, or is no matrix of numbers."""
    sides = list(unit.sides.values())
    shape = sides[0].tensors[0].shape
    if len(shape) < 2 or not all(_can_be_cut(side, shape) for side in sides):
        return None
    step = BLOCK if len(shape) == 2 else 1
    blocks = -(-shape[0] // step)
    count = max(1, round(share * blocks))
    first = _number(seed, unit.name) % (blocks - count + 1) if count < blocks else 0
    return Span(first * step, min(shape[0], (first + count) * step) - first * step)


def _can_be_cut(side: Input, shape: Sequence[int]) -> bool:
    weight, *scales = side.tensors
    if weight.shape != shape or side.storage not in MIXABLE or not weight.nbytes:
        return False
    return not scales or scales[0].shape[0] == -(-shape[0] // BLOCK)


def _number(seed: int, name: str) -> int:
    return int(digest_of(f"{seed} {name}".encode()), 16)
