"""How a weight matrix is cut into panels, so that memory does not depend on a tensor's size.

Numbers in blocks go by 128 rows, or some times that, as wide as the matrix unless that is very wide; quants by whole rows, as
some are encoded by what is in all of a row; any others by a run of weights in storage order. The cuts are fixed, so that sums over a tensor do not depend on threads or memory.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from chimerakit.dtypes import BLOCK, FP8_BLOCK, FP8_BLOCKS, QUANTS, numel_of

BLOCKED_COLS = 1 << 15
"""Columns of a panel of blocks at most."""
BLOCKED_WEIGHTS = 1 << 21
"""Weights of a panel of blocks, if it has more than one row of them."""
FLAT_WEIGHTS = 1 << 20
"""Weights of a panel that knows no blocks."""


def largest_panel(units: Iterable[tuple[tuple[int, ...], Iterable[str]]]) -> int:
    """Weights of the largest panel of any unit. units: of each the shape, and the storages of its sides, of which a matrix may
    be in blocks."""
    return max((cut(shape, of).most for shape, storages in units for of in _storages(shape, storages)), default=0)


def _storages(shape: tuple[int, ...], storages: Iterable[str]) -> Iterator[Iterable[str]]:
    yield (FP8_BLOCK,) if len(shape) == 2 else ()
    if not QUANTS.isdisjoint(storages):
        yield storages


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
    high: int
    """Rows of a panel at most."""
    wide: int
    """Columns of a panel at most."""

    @property
    def most(self) -> int:
        """Weights of the largest panel."""
        return min(self.high, self.rows) * min(self.wide, self.cols)

    def panels(self) -> Iterator[Panel]:
        """All panels, row by row."""
        for row in range(0, self.rows, self.high):
            for col in range(0, self.cols, self.wide):
                yield Panel(row, min(self.high, self.rows - row), col, min(self.wide, self.cols - col))

    def pieces(self, panel: Panel) -> Iterator[Piece]:
        """Where the weights of a panel lie: together if it is as wide as the matrix, else row by row."""
        if panel.cols == self.cols or panel.rows == 1:
            yield Piece(0, panel.row * self.cols + panel.col, panel.rows * panel.cols)
            return
        for i in range(panel.rows):
            yield Piece(i * panel.cols, (panel.row + i) * self.cols + panel.col, panel.cols)


def cut(shape: tuple[int, ...], storages: Iterable[str]) -> Cut:
    """How a tensor is cut that is stored so by its sides; of plain numbers its shape does not matter, and it is one row."""
    of = set(storages)
    if not of.isdisjoint(FP8_BLOCKS):
        rows, cols = shape
        wide = max(1, min(cols, BLOCKED_COLS))
        padded = -(-wide // BLOCK) * BLOCK  # kernels fill ragged blocks up
        return Cut(rows, cols, BLOCK * max(1, BLOCKED_WEIGHTS // (BLOCK * padded)) if wide >= cols else BLOCK, wide)
    if not of.isdisjoint(QUANTS):
        cols = max(1, shape[-1] if shape else 1)
        return Cut(numel_of(shape) // cols, cols, max(1, FLAT_WEIGHTS // cols), cols)
    return Cut(1, numel_of(shape), 1, FLAT_WEIGHTS)
