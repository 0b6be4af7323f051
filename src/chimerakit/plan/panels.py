"""How a weight matrix is cut into panels, so that memory does not depend on a tensor's size.

Numbers in blocks go by 128 rows, or some times that, as wide as the matrix unless that is very wide; any others go by a
run of weights in storage order. The cuts are fixed, so that sums over a tensor do not depend on threads or memory.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from chimerakit.dtypes import BLOCK, numel_of

BLOCKED_COLS = 1 << 15
"""Columns of a panel of blocks at most."""
BLOCKED_WEIGHTS = 1 << 21
"""Weights of a panel of blocks, if it has more than one row of them."""
FLAT_WEIGHTS = 1 << 20
"""Weights of a panel that knows no blocks."""


def largest_panel(shapes: Iterable[tuple[int, ...]]) -> int:
    """Weights of the largest panel of any tensor; a matrix may be in blocks."""
    return max((cut(shape, is_blocked=len(shape) == 2).most for shape in shapes), default=0)


class Panel(NamedTuple):
    """A piece of a matrix."""

    row: int
    rows: int
    col: int
    cols: int


class Piece(NamedTuple):
    """Weights of a panel that lie side by side in storage."""

    within: int
    """The first of them, counted in the panel."""
    start: int
    """The first of them, counted in the matrix."""
    weights: int


class Cut(NamedTuple):
    """A matrix and how it is cut."""

    rows: int
    cols: int
    is_blocked: bool

    @property
    def _sides(self) -> tuple[int, int]:
        """Rows and columns of a panel at most."""
        if not self.is_blocked:
            return 1, FLAT_WEIGHTS
        wide = max(1, min(self.cols, BLOCKED_COLS))
        padded = -(-wide // BLOCK) * BLOCK  # kernels fill ragged blocks up
        return BLOCK * max(1, BLOCKED_WEIGHTS // (BLOCK * padded)) if wide >= self.cols else BLOCK, wide

    @property
    def most(self) -> int:
        """Weights of the largest panel."""
        high, wide = self._sides
        return min(high, self.rows) * min(wide, self.cols)

    def panels(self) -> Iterator[Panel]:
        """All panels, row by row."""
        high, wide = self._sides
        for row in range(0, self.rows, high):
            for col in range(0, self.cols, wide):
                yield Panel(row, min(high, self.rows - row), col, min(wide, self.cols - col))

    def pieces(self, panel: Panel) -> Iterator[Piece]:
        """Where the weights of a panel lie: together if it is as wide as the matrix, else row by row."""
        if panel.cols == self.cols or panel.rows == 1:
            yield Piece(0, panel.row * self.cols + panel.col, panel.rows * panel.cols)
            return
        for i in range(panel.rows):
            yield Piece(i * panel.cols, (panel.row + i) * self.cols + panel.col, panel.cols)


def cut(shape: tuple[int, ...], *, is_blocked: bool) -> Cut:
    """How a tensor is cut; without blocks its shape does not matter, and it counts as one row."""
    return Cut(shape[0], shape[1], is_blocked=True) if is_blocked else Cut(1, numel_of(shape), is_blocked=False)
