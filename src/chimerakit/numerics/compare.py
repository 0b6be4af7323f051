"""How far values lie apart: allclose as published scripts use it, sums over differences, and least squares."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from chimerakit.dtypes import BLOCK, FP8_BLOCK, FP8_BLOCK_UE8M0, FP8_BLOCKS
from chimerakit.numerics import fused
from chimerakit.numerics.fp8 import F32, U8
from chimerakit.numerics.kernels import kernel, magnitude_bits, require
from chimerakit.numerics.lanes import LANES, add_pair, add_pairs
from chimerakit.numerics.mix import KINDS, Term, decode_scales, encode, mix, nbytes_of_row

RTOL = ATOL = 1e-5
"""numpy's and torch's allclose as in the checks that people published for merges."""
_RTOL, _ATOL, _INFINITY = np.float32(RTOL), np.float32(ATOL), np.float32(np.inf)
_RUN = 1 << 14
"""Values that are compared before looking whether all were close."""

_CACHE_LINE = 64
DECODING = fused.SCRATCH + 2 * 4 * fused.WIDTH + _CACHE_LINE
"""Bytes of scratch that `Differences.add_stored` wants."""

_E4M3 = 1.001 * 2**-4
ROUNDING = {FP8_BLOCK: _E4M3, FP8_BLOCK_UE8M0: _E4M3, "BF16": 1.001 * 2**-8, "F16": 1.001 * 2**-11, "F32": 1e-6}
"""What storing values may cost at most: RMS of the error, relative to the RMS of what is stored.

A stored number s lies half a step from the value at most, and a step at s is at most 2^-p |s| wide for p bits of
mantissa (3, 7, 10). So every single error is at most 2^-(p + 1) |s|, and so is their RMS whatever the values are.
Normally spread values cost less than half of that (e4m3 measures 0.0265, bfloat16 0.0017), but values that a coarser
storage had before, or few different ones, can all lie near the worst place. The thousandth is for the sum itself, in
float32, which is all that F32 loses. Numbers below the smallest normal one lose more, and count only where there is
nothing else: a fresh scale puts the largest number of an FP8 block near 448, 2^14 times the smallest normal one.
"""


def are_close(a: F32, b: F32) -> bool:
    """|a - b| <= ATOL + RTOL * |b| everywhere; infinity is close to itself, NaN to nothing. Same shapes."""
    require(a.shape == b.shape, f"{a.shape} against {b.shape}")
    return bool(_are_close(np.ascontiguousarray(a).ravel(), np.ascontiguousarray(b).ravel()))


@kernel
def _are_close(a: Any, b: Any) -> bool:
    for start in range(0, a.size, _RUN):
        x, y = a[start : start + _RUN], b[start : start + _RUN]
        num_far = np.int32(0)
        for j in range(x.size):
            apart = abs(x[j] - y[j])
            is_near = (apart <= _ATOL + _RTOL * abs(y[j])) & (apart < _INFINITY)
            num_far += np.int32(not (is_near | (x[j] == y[j])))
        if num_far:
            return False
    return True


class Differences:
    """How far two sides' values lie apart, added up panel by panel.

    Pairs in which a value is not finite are counted and left out of the rest. Sums are float64, in an order that is the
    same on every CPU and however the values are cut, as long as they come in the same order.
    """

    def __init__(self) -> None:
        self._sums = np.zeros((7, LANES))
        self._num_values = 0

    def add(self, a: F32, b: F32) -> None:
        """Add a panel of both sides, of the same shape."""
        require(a.shape == b.shape, f"{a.shape} against {b.shape}")
        a, b = np.ascontiguousarray(a).ravel(), np.ascontiguousarray(b).ravel()
        _add_differences(a, b, self._sums, self._num_values % LANES)
        self._num_values += a.size

    def add_stored(self, a: Term, b: Term, shape: tuple[int, int], scratch: U8) -> None:
        """Add a panel as both sides store it: code x scale, whatever the terms' shares.

        The sums are those of `add` to the last bit, but no float32 panel is held in memory. Where a and b are the same
        term it is decoded once. shape: (rows, cols); of blocks it may have any number of rows, and begins with a row of
        blocks. scratch: DECODING bytes, for one thread at a time.
        """
        rows, cols = shape
        require(scratch.size >= DECODING, f"{scratch.size} bytes of scratch")
        terms = [term._replace(share=np.float32(1)) for term in ((a,) if a is b else (a, b))]
        for term in terms:
            require(
                term.data.size == rows * nbytes_of_row(term.storage, cols),
                f"{term.data.shape} bytes for {shape} weights",
            )
            require(term.data.flags.c_contiguous, "compiled loops go by addresses")
        are_plain = all(term.storage in KINDS for term in terms)
        if are_plain and cols % BLOCK == 0 and self._num_values % LANES == 0:
            factors = np.stack([_factors(term, shape) for term in terms])
            kinds = np.array([KINDS[term.storage] for term in terms])
            sources = np.array([term.data.ctypes.data for term in terms])
            added = self._sums.copy()
            if _add_numbers(kinds, sources, factors, rows, cols, scratch, added):
                self._sums = added
                self._num_values += rows * cols
                return
        values = [mix([term], shape) for term in terms]
        self.add(values[0], values[-1])

    @property
    def squared_difference(self) -> float:
        """The sum of (a - b)^2."""
        return math.fsum(self._sums[0])

    @property
    def inner_product(self) -> float:
        """The sum of a * b."""
        return math.fsum(self._sums[1])

    @property
    def squared_norms(self) -> tuple[float, float]:
        """The sums of a^2 and of b^2."""
        return math.fsum(self._sums[2]), math.fsum(self._sums[3])

    @property
    def largest(self) -> float:
        """The largest |a - b|."""
        return float(self._sums[4].max())

    @property
    def num_values(self) -> int:
        """Pairs that were added, finite or not."""
        return self._num_values

    @property
    def num_unlike(self) -> int:
        """Pairs of unlike numbers; zeros of either sign are alike."""
        return int(self._sums[5].sum())

    @property
    def num_nonfinite(self) -> int:
        """Pairs in which a value is NaN or infinite."""
        return int(self._sums[6].sum())


@kernel
def _add_differences(a: Any, b: Any, sums: Any, first: Any) -> None:
    """Add pairs to sums, the first to those of lane `first`. a, b: flat; sums: (7, 16) float64."""
    x, y, found, n = a.ctypes.data, b.ctypes.data, sums.ctypes.data, a.size
    head = min(n, -first % LANES)
    tail = head + (n - head) // LANES * LANES
    for j in range(head):
        add_pair(found + 8 * (first + j), x + 4 * j, y + 4 * j)
    for j in range(head, tail, LANES):
        add_pairs(found, x + 4 * j, y + 4 * j)
    for j in range(tail, n):
        add_pair(found + 8 * (j - tail), x + 4 * j, y + 4 * j)


@kernel
def _add_numbers(kinds: Any, sources: Any, factors: Any, rows: Any, cols: Any, scratch: Any, sums: Any) -> bool:
    """Decode and add 1024 pairs at a time; False, with sums half added to, if there is more than the fast kernels take.

    kinds, sources: of one side or two. factors: (sides, rows of blocks, cols / 128). scratch: DECODING bytes.
    """
    found = sums.ctypes.data
    lines = (scratch.ctypes.data + fused.SCRATCH + _CACHE_LINE - 1) // _CACHE_LINE * _CACHE_LINE
    other = lines + 4 * fused.WIDTH * (kinds.size - 1)
    source = np.empty(1, np.int64)
    for i in range(rows):
        for col in range(0, cols, fused.WIDTH):
            width = min(fused.WIDTH, cols - col)
            for n in range(kinds.size):
                source[0] = sources[n] + (i * cols + col) * fused.NBYTES[kinds[n]]
                factor = factors[n : n + 1, i // BLOCK, col // BLOCK :]
                line = lines + 4 * fused.WIDTH * n
                if not fused.mix_values(kinds[n : n + 1], source, factor, 1, width, width, line, scratch):
                    return False
            for j in range(0, 4 * width, 4 * LANES):
                add_pairs(found, lines + j, other + j)
    return True


def _factors(term: Term, shape: tuple[int, int]) -> F32:
    """What the stored numbers are multiplied with. (rows of blocks, blocks)"""
    count = (-(-shape[0] // BLOCK), -(-shape[1] // BLOCK))
    require((term.storage in FP8_BLOCKS) == (term.scales is not None), "scales for FP8, and for nothing else")
    if term.scales is None:
        return np.ones(count, np.float32)
    scales = decode_scales(term.scales.reshape(-1), term.scale_dtype)
    require(scales.size == math.prod(count), f"{scales.size} scales for {shape} weights")
    return scales.reshape(count)


def unlike_bytes(a: Term, b: Term) -> int | None:
    """How many bytes differ in a panel, scales included; None where the sides do not store it alike."""
    if KINDS.get(a.storage, a.storage) != KINDS.get(b.storage, b.storage) or a.scale_dtype != b.scale_dtype:
        return None
    pairs = [(a.data, b.data)]
    if a.scales is not None and b.scales is not None:
        pairs.append((a.scales, b.scales))
    for x, y in pairs:
        require(x.shape == y.shape, f"{x.shape} bytes against {y.shape}")
    return sum(int(_num_unlike(x.reshape(-1), y.reshape(-1))) for x, y in pairs)


@kernel
def _num_unlike(a: Any, b: Any) -> Any:
    found = np.int64(0)
    for start in range(0, a.size, _RUN):
        x, y = a[start : start + _RUN], b[start : start + _RUN]
        num_here = np.int32(0)  # narrow, so that many are compared at a time
        for j in range(x.size):
            num_here += np.int32(x[j] != y[j])
        found += np.int64(num_here)
    return found


def are_stored_as(values: F32, child: Term) -> bool:
    """Whether storing these values the child's way gives the child's bytes, scales included."""
    encoded = encode(values, child.storage, child.scale_dtype, np.zeros(2))
    pairs = [(encoded.data, child.data)]
    if encoded.scales is not None and child.scales is not None:
        pairs.append((encoded.scales, child.scales.reshape(-1)))
    return all(np.array_equal(mine, theirs) for mine, theirs in pairs)


def codes(data: U8, dtype: str) -> F32:
    """Stored numbers without their scales, as float32."""
    import ml_dtypes

    from chimerakit.dtypes import STORAGE_TYPES

    name = (STORAGE_TYPES[dtype].numpy if dtype in STORAGE_TYPES else None) or "uint8"
    return data.view(getattr(ml_dtypes, name, None) or np.dtype(name)).astype(np.float32)


@kernel
def _largest_bits(values: Any) -> Any:
    most = np.int32(0)
    for j in range(values.size):
        most = max(most, magnitude_bits(values[j]))
    return most


def is_finite(values: F32) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(_largest_bits(np.ascontiguousarray(values).ravel()) < 0x7F800000)


def add_products(products: npt.NDArray[np.float64], child: F32, parents: list[F32]) -> None:
    """Add a panel to the inner products of [child - base, parent_2 - base, ...] and of the child with itself.

    products: (n + 1, n + 1) float64 for n parents, the base first among them; the last row holds the child's own power.
    All values are finite.
    """
    base = parents[0].astype(np.float64).ravel()
    apart = [values.astype(np.float64).ravel() - base for values in (child, *parents[1:])]
    stacked = np.stack(apart)
    products[:-1, :-1] += stacked @ stacked.T
    own = child.astype(np.float64).ravel()
    products[-1, -1] += own @ own


def fit_shares(products: npt.NDArray[np.float64]) -> tuple[list[float], float]:
    """Shares of all parents (base first) that come nearest to the child, and the RMS that is left, relative to the child's.

    A first guess at lambda: biased where rounding is as large as the parents' difference. Infinitely much is left where
    products are not finite, or where the child is all zeros and no mix is.
    """
    if not np.isfinite(products).all():
        return [math.nan] * (len(products) - 1), math.inf
    inner, right, power = products[1:-1, 1:-1], products[1:-1, 0], products[0, 0]
    shares = np.linalg.lstsq(inner, right, rcond=None)[0]
    left = max(0.0, float(power - 2 * shares @ right + shares @ inner @ shares))
    own = products[-1, -1]
    relative = math.sqrt(left / own) if own > 0 else (math.inf if left > 0 else 0.0)
    return [float(1 - shares.sum()), *map(float, shares)], relative
