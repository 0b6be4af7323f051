"""Which shares of its parents give a child's stored numbers: what rounding left of lambda.

Every stored number stands for a cell of values that would have been stored so. A child's number therefore says that
sum(share_i * x_i) lies in a cell: two linear inequalities in the shares. One says next to nothing; all of a matrix leave
an interval of about 1e-5. Least squares between decoded values, the other way to lambda, is biased where cells are as
wide as the parents' difference: the largest number of an FP8 block is never rounded, so the rest is not rounded evenly.

The inequalities are a little too wide, by what float32 loses on the way to a sum, so they never exclude the shares that
were used; making the unit again with a candidate decides. For children of other encoders they are wider still, by what
such an encoder may lose (`Rounding`): then they leave an interval, and nothing can be made again.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, product
from operator import mul
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from chimerakit.dtypes import BLOCK, FP8_BLOCK, FP8_BLOCKS
from chimerakit.numerics.fp8 import F32
from chimerakit.numerics.kernels import require
from chimerakit.numerics.mix import Term, decode_scales

F64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DIGITS = 7
"""Decimals of a share at most; a float32 has no more."""
_FLOAT32 = 8 * 2.0**-24
"""What float32 may lose in a sum, relative to the sum of its values' sizes: every step half of 2^-23."""
_BFLOAT16 = 4 * 2.0**-9
"""What BF16 may lose: in a parent's value, in its share, in their product, and in the sum of these."""
_INVERSE = 1 + 2.0**-22
"""How far the factor that numbers of an FP8 block are multiplied with may be from 1 / scale: each is rounded."""
_STEPS = 60
_ROUNDS = 4
_PARTS = (1.001, 1.0, 0.5, 0.25, 2.0**-4, 2.0**-8)
"""How much of a step is tried: first a little more, as rounding would leave the last cell missed for ever."""


class Interval(NamedTuple):
    """Shares from `low` to `high`, both included."""

    low: float
    high: float

    @property
    def is_empty(self) -> bool:
        """Whether no share is in it."""
        return self.low > self.high


class Rounding(NamedTuple):
    """How an encoder gets from its parents' values to stored numbers, as far as numbers can tell."""

    name: str
    """Empty for chimerakit's own."""
    loss: float = _FLOAT32
    """Of a sum before it is stored, relative to the sum of the parents' sizes."""
    is_nearest: bool = True
    """Whether the nearest number is stored; otherwise one of the two beside the sum."""
    is_apart: bool = False
    """Whether FP8 codes and their scales are averaged each for themselves, as if they were weights."""


OWN = Rounding("")
OTHERS = (
    Rounding("other float32 arithmetic", 4 * _FLOAT32),
    Rounding("codes and scales averaged apart", 4 * _FLOAT32, is_apart=True),
    Rounding("sums rounded to BF16", _BFLOAT16),
    Rounding("codes and scales averaged apart, rounded to BF16", _BFLOAT16, is_apart=True),
    Rounding("another rounding", _BFLOAT16, is_nearest=False),
)
"""Other encoders, the tightest first: torch's and mergekit's float32, mergekit's on FP8 under its raw names, scripts that
dequantise to BF16 or that take codes for BF16, and those that don't round to nearest. (A BF16 child that is not rounded to
nearest looks as if its sums were rounded before.)"""


class Bound(NamedTuple):
    """What one number of the child says: low <= sum(share_i * value_i) <= high."""

    low: float
    high: float
    values: tuple[float, ...]

    def allows(self, shares: Sequence[float]) -> bool:
        """Whether these shares give the number."""
        return bool(self.low <= sum(map(mul, self.values, shares)) <= self.high)


def cells(child: Term, where: Ints, *, is_nearest: bool = True) -> tuple[F64, F64]:
    """The lowest and the highest value that is stored as each of some numbers of a panel.

    where: places in the panel, row by row. Numbers that are not finite have no cell and give (-inf, inf). is_nearest: as in
    `Rounding`.
    """
    data = child.data.reshape(-1)
    if child.storage == "F32":
        values = data.view(np.float32)[where]
        with np.errstate(invalid="ignore"):
            step = np.spacing(np.abs(values)).astype(np.float64) / (2 if is_nearest else 1)
            low, high = values - step, values + step
    elif child.storage in FP8_BLOCKS:
        scales = _scales(child, where)
        low, high = (bounds[data[where]] * scales for bounds in _bounds(child.storage, is_nearest))
    else:
        low, high = (bounds[data.view(np.uint16)[where]] for bounds in _bounds(child.storage, is_nearest))
    is_finite = np.isfinite(low) & np.isfinite(high)
    return np.where(is_finite, low, -np.inf), np.where(is_finite, high, np.inf)


@cache
def _bounds(storage: str, is_nearest: bool) -> tuple[F64, F64]:
    """The lowest and the highest value for each code of a storage with few of them, in units of the scale."""
    from ml_dtypes import bfloat16, float8_e4m3fn

    if storage in FP8_BLOCKS:
        sizes = np.arange(0x7F, dtype=np.uint8).view(float8_e4m3fn).astype(np.float64)
        largest, loss = 448.0, _INVERSE  # a fresh scale makes the largest number of its block 448
    else:
        dtype, infinity = (np.dtype(np.float16), 0x7C00) if storage == "F16" else (np.dtype(bfloat16), 0x7F80)
        sizes = np.arange(infinity, dtype=np.uint16).view(dtype).astype(np.float64)
        largest, loss = sizes[-1] + (sizes[-1] - sizes[-2]) / 2, 1.0
    half = 1 << (7 if storage in FP8_BLOCKS else 15)
    if is_nearest:
        middles = (sizes[1:] + sizes[:-1]) / 2
        below, above = np.append(0, middles), np.append(middles, largest)
    else:
        below, above = np.append(0, sizes[:-1]), np.append(sizes[1:], largest)
    low, high = np.full(2 * half, np.nan), np.full(2 * half, np.nan)
    low[: sizes.size], high[: sizes.size] = below / loss, above * loss
    low[0] = -high[0]
    low[half:], high[half:] = -high[:half], -low[:half]
    return low, high


def _scales(term: Term, where: Ints) -> F64:
    """The scales of some numbers of a panel."""
    require(term.scales is not None, "FP8 without scales")
    cols = term.data.shape[1]
    blocks = decode_scales(np.asarray(term.scales).reshape(-1), term.scale_dtype).reshape(-1, -(-cols // BLOCK))
    return np.asarray(blocks[where // cols // BLOCK, where % cols // BLOCK], np.float64)


def apart(term: Term) -> tuple[Term, Term]:
    """A panel of FP8 blocks as if codes and scales were weights: the codes with scales of 1, and the scales as float32."""
    require(term.scales is not None, "FP8 without scales")
    stored = np.asarray(term.scales)
    scales = decode_scales(stored.reshape(-1), term.scale_dtype).reshape(len(stored), -1)
    ones = np.ones(scales.shape, np.float32)
    return (
        term._replace(storage=FP8_BLOCK, scales=ones.view(np.uint8), scale_dtype="F32"),
        Term("F32", np.float32(1), scales.view(np.uint8)),
    )


def unlike_places(made: memoryview, found: memoryview, width: int) -> Ints:
    """Places of numbers of `width` bytes that differ between two runs of as many bytes."""
    require(len(made) == len(found), f"{len(made)} bytes against {len(found)}")
    return np.flatnonzero(np.frombuffer(made, f"u{width}") != np.frombuffer(found, f"u{width}"))


def first_of_blocks(blocks: Ints, shape: tuple[int, int]) -> Ints:
    """Places in a matrix, row by row, of the first numbers of some of its blocks. shape: (rows, cols) in numbers."""
    cols = shape[1]
    row, col = np.divmod(blocks, -(-cols // BLOCK))
    return np.asarray(row * BLOCK * cols + col * BLOCK)


@cache
def _directions(num_parents: int) -> list[F64]:
    """Ways to move shares that keep their sum: from each parent to each other, and for three or more some in between."""
    whole = np.eye(num_parents)
    found = [whole[b] - whole[a] for a, b in combinations(range(num_parents), 2)]
    return found + [x + y for x, y in combinations(found, 2)] + [x - y for x, y in combinations(found, 2)]


class Clues:
    """What the numbers of a child that were looked at say of its parents' shares."""

    def __init__(self, num_parents: int, rounding: Rounding = OWN):
        self.rounding = rounding
        self._low, self._high = np.empty(0), np.empty(0)
        self._values = np.empty((0, num_parents))

    def __len__(self) -> int:
        return len(self._low)

    def add(self, child: Term, parents: Sequence[F32], where: Ints) -> None:
        """Look at some numbers of a panel of the child; where: their places, row by row. parents: (rows, cols) values."""
        low, high = cells(child, where, is_nearest=self.rounding.is_nearest)
        values = np.stack([parent.reshape(-1)[where].astype(np.float64) for parent in parents], axis=1)
        slack = self.rounding.loss * np.abs(values).sum(1)
        says = np.isfinite(low) & np.isfinite(values).all(1)
        self._low = np.concatenate([self._low, (low - slack)[says]])
        self._high = np.concatenate([self._high, (high + slack)[says]])
        self._values = np.concatenate([self._values, values[says]])

    def unmet(self, shares: F64) -> int:
        """How many of the numbers these shares do not give."""
        made = self._values @ shares
        return int(((made < self._low) | (made > self._high)).sum())

    def interval(self, shares: F64, direction: F64) -> Interval:
        """How far the shares may be moved in a direction, with all numbers still given; empty if never."""
        low, high, still = self._moved(shares, direction)
        if still.any():
            return Interval(math.inf, -math.inf)
        return Interval(float(low.max(initial=-math.inf)), float(high.min(initial=math.inf)))

    def _moved(self, shares: F64, direction: F64) -> tuple[F64, F64, npt.NDArray[np.bool_]]:
        """From where to where each number is given as shares move; and which numbers never are, as nothing moves them."""
        along, left = self._values @ direction, self._values @ shares
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b = (self._low - left) / along, (self._high - left) / along
        stays = along == 0
        is_given = (self._low <= left) & (left <= self._high)
        low, high = np.where(stays, -math.inf, np.minimum(a, b)), np.where(stays, math.inf, np.maximum(a, b))
        return low, high, stays & ~is_given

    def ranges(self, shares: F64) -> list[Interval]:
        """From where to where each share may go, around shares that give all numbers, within the plane of those that sum to
        1: of the parents that have a share; of all, if only one has."""
        found = [Interval(float(share), float(share)) for share in shares]
        is_free = (shares != 0) | (np.count_nonzero(shares) == 1)
        for direction in _directions(len(shares)):
            if (direction != 0)[~is_free].any():
                continue
            room = self.interval(shares, direction)
            for number, part in enumerate(direction):
                ends = sorted((shares[number] + part * room.low, shares[number] + part * room.high)) if part else []
                low, high = found[number]
                found[number] = Interval(float(min([low, *ends])), float(max([high, *ends])))
        return found

    def outline(self, shares: F64) -> tuple[list[Bound], float]:
        """The numbers that leave the least room around shares which give all, and how much room there is at most.

        In the plane of shares that sum to 1; looked at in a few directions, so an outline from outside.
        """
        found, width = set[int](), 0.0
        for direction in _directions(len(shares)):
            low, high, _ = self._moved(shares, direction)
            if low.size:
                found |= {int(low.argmax()), int(high.argmin())}
                width = max(width, float(high.min() - low.max()))
        return [
            Bound(float(self._low[n]), float(self._high[n]), tuple(self._values[n].tolist())) for n in sorted(found)
        ], width

    def most_met(self, shares: F64, direction: F64) -> tuple[float, int]:
        """The step in a direction at which the most numbers are given, and how many then are not: for a child of which
        a few numbers are no mix."""
        low, high, _ = self._moved(shares, direction)
        low, high = np.sort(low), np.sort(high)
        if not low.size:
            return 0.0, self.unmet(shares)
        begun = np.arange(1, low.size + 1) - np.searchsorted(high, low)
        best = int(begun.argmax())
        end = high[np.searchsorted(high, low[best])]
        ends = [float(each) for each in (low[best], end) if math.isfinite(each)]
        step = sum(ends) / len(ends) if ends else 0.0  # where parents agree, no step changes anything
        return step, self.unmet(shares + step * direction)

    def decimals(self, among: Sequence[int], *, is_whole: bool) -> Iterator[F64]:
        """Shares of few decimals that give all numbers looked at, the shortest first.

        among: the parents that may have a share. is_whole: whether shares sum to 1, the first of them giving the rest.
        """
        whole = np.eye(self._values.shape[1])
        free = list(among[1:] if is_whole else among)
        directions = whole[free] - (whole[among[0]] if is_whole else 0)
        # One direction's interval is found at once, from anywhere.
        start = whole[among[0]] if len(free) == 1 else self.solve(whole[among[0]], directions)
        if len(free) == 1 and self.interval(start, directions[0]).is_empty:
            return
        middle = self._middle(start, directions)
        for digits in range(1, DIGITS + 1):
            for steps in product((0, 1, -1), repeat=len(free)):  # what is left may be narrow and lie askew
                shares = np.zeros(len(whole))
                shares[free] = np.round(middle[free] + np.array(steps) * 10.0**-digits, digits)
                if is_whole:
                    shares[among[0]] = round(1 - math.fsum(shares[free]), 12)
                if not self.unmet(shares):
                    yield shares

    def _middle(self, shares: F64, directions: F64) -> F64:
        """From shares that give all numbers, or nearly, to the middle of those that do: one direction after the other."""
        for direction in (*directions,) * (_ROUNDS if len(directions) > 1 else 1):
            room = self.interval(shares, direction)
            if not room.is_empty and math.isfinite(room.high - room.low):
                shares = shares + (room.low + room.high) / 2 * direction
        return shares

    def solve(self, start: F64, directions: F64) -> F64:
        """The shares that come nearest to giving all numbers, from a first guess; where some give all, within 1e-6 or so.

        directions: (ways, parents), the ways in which shares may move. The squared distance to all cells is convex and its
        least value is 0 at what is looked for; Newton's steps go over the cells that are missed.
        """
        moves = self._values @ directions.T
        shares, far, cost = start, *self._missed(start)
        for _ in range(_STEPS):
            missed = far != 0
            if not missed.any():
                break
            weights = self._weights[missed]
            step = np.linalg.lstsq(moves[missed] * weights[:, None], far[missed] * weights, rcond=None)[0] @ directions
            # Cells that come to be missed on the way can make a whole step too long.
            for part in _PARTS:
                there = shares - part * step
                far_there, cost_there = self._missed(there)
                if cost_there < cost:
                    break
            else:
                break
            shares, far, cost = there, far_there, cost_there
        return shares

    def _missed(self, shares: F64) -> tuple[F64, float]:
        """How far from its cell each number is that these shares give, and the sum of squares of that in cells."""
        made = self._values @ shares
        far = np.minimum(made - self._low, 0) + np.maximum(made - self._high, 0)
        return far, float(np.square(far * self._weights).sum())

    @property
    def _weights(self) -> F64:
        return 1 / (self._high - self._low)
