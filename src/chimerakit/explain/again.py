"""Making a unit of a child again, by the code that merges, and comparing it with the child's."""

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from chimerakit.dtypes import QUANTS, numel_of
from chimerakit.events import Report
from chimerakit.execute import Inputs, make_units
from chimerakit.numerics.cells import first_of_blocks, unlike_places
from chimerakit.plan.ranges import Run
from chimerakit.records import Input, Row, Tensor
from chimerakit.scan import ScanUnit
from chimerakit.stores.local import CHUNK, Buffer, Reader
from chimerakit.stores.system import same_bytes

if TYPE_CHECKING:
    from chimerakit.numerics.cells import Ints

CHILD = "child"


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


class Given(NamedTuple):
    """Whether something gives all bytes of a unit."""

    is_given: bool
    nonfinite: int
    """NaN and infinite numbers in it."""


def gives(row: Row, unit: ScanUnit, inputs: Inputs, report: Report) -> Given:
    """Whether a row gives all bytes of a unit of the child: it is made again, by the code that merges."""
    made = make_again(row, unit, inputs, report, is_enough=1)
    return Given(not made.count, made.nonfinite)


class _UnlikeError(Exception):
    """What was made differs, and that is enough; never seen outside."""


class Unlike:
    """A sink that compares a unit, as it is made again, with the child's."""

    def __init__(self, child: Input, inputs: Inputs, report: Report, *, is_enough: int | None):
        self.count = 0
        """Numbers that differ, and scales; of quants bytes."""
        self.nonfinite = 0
        """NaN and infinite numbers in what was made, if it was made to the end."""
        self.first: Ints | None = None
        """Places in the weight of the first of them; of scales, of the first numbers in their blocks."""
        self._tensors = {tensor.name: tensor for tensor in child.tensors}
        self._child = child
        self._inputs = inputs
        self._report = report
        self._is_enough = is_enough

    def write(self, tensor: Tensor, start: int, data: Buffer) -> None:
        """Compare bytes of a tensor, from `start` on within it."""
        self._report(0)
        made, mine = memoryview(data).cast("B"), self._tensors[tensor.name]
        found = self._inputs.memory("the child's", len(made))[: len(made)].data
        self._inputs.reader(CHILD, mine.file).read_into(found, mine.start + start)
        if same_bytes(made, found):
            return
        width = 1 if mine.dtype in QUANTS else mine.nbytes // numel_of(mine.shape)
        places = unlike_places(made, found, width) + start // width
        self.count += len(places)
        if self.first is None and mine.dtype not in QUANTS:
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


def make_again(row: Row, unit: ScanUnit, inputs: Inputs, report: Report, *, is_enough: int | None) -> Unlike:
    """What a row gives otherwise than the child has it; stops at so many numbers, or None for all."""
    sink = Unlike(unit.sides[CHILD], inputs, report, is_enough=is_enough)
    with suppress(_UnlikeError):
        sink.nonfinite = sum(made.nonfinite for _, made in make_units((row,), inputs, sink, allow_nonfinite=True))
    return sink
