"""What stored numbers are: NaN, infinite, zero, at FP8's largest; a panel at a time.

FP8 blocks are counted by their codes, a byte each, wherever that is what their values are: with ordinary scales a value
is NaN, or zero, just where its code is. A panel with any other scale is decoded, as every other storage is.
"""

from typing import Any, NamedTuple

import numpy as np

from chimerakit.dtypes import BLOCK
from chimerakit.numerics.fp8 import F32
from chimerakit.numerics.kernels import kernel, magnitude_bits, require
from chimerakit.numerics.mix import Term, decode_scales, mix

_LOWEST, _HIGHEST = np.float32(2.0**-117), np.float32(2.0**119)
"""Between them a scale makes normal numbers of all codes: the smallest is 2^-9, the largest below 2^9."""
_RUN = 1 << 14
"""Values that are counted in 32 bits before they are added up in 64."""
_SIZES = np.append(np.arange(8) / 512, [2.0 ** (e - 7) * (1 + m / 8) for e in range(1, 16) for m in range(8)])
_E4M3 = _SIZES.astype(np.float32)
"""The magnitude of every code; the last is that of NaN, which is never looked up."""


class Counts(NamedTuple):
    """What the numbers of one panel are."""

    nan: int
    infinite: int
    zeros: int
    """Of either sign."""
    largest: float
    """The largest finite magnitude; 0 if there is none."""
    nan_codes: int = 0
    saturated: int = 0
    """FP8 codes of +-448, the largest number that there is."""
    nonfinite_scales: int = 0
    zero_scales: int = 0
    negative_scales: int = 0


def count(term: Term, shape: tuple[int, int]) -> Counts:
    """The census of a panel; shape: (rows, cols) in weights, beginning with a row of blocks. The share does not matter."""
    if term.scales is None:
        return _count_values(_values(term, shape))
    scales = np.stack([decode_scales(np.ascontiguousarray(line), term.scale_dtype) for line in term.scales])
    require(
        scales.shape == (-(-shape[0] // BLOCK), -(-shape[1] // BLOCK)), f"{scales.shape} scales for {shape} weights"
    )
    require(term.data.shape == shape, f"{term.data.shape} bytes for {shape} weights")
    found, largest = np.zeros(3, np.int64), np.zeros(scales.shape, np.uint8)
    _count_codes(term.data, found, largest)
    zeros, nan_codes, saturated = map(int, found)
    sizes = np.abs(scales)
    if ((sizes >= _LOWEST) & (sizes <= _HIGHEST)).all():
        most = (_E4M3[largest] * sizes).max(initial=0)
        values = Counts(nan_codes, 0, zeros, float(most))
    else:
        values = _count_values(_values(term, shape))
    return values._replace(
        nan_codes=nan_codes,
        saturated=saturated,
        nonfinite_scales=int(np.count_nonzero(~np.isfinite(scales))),
        zero_scales=int(np.count_nonzero(scales == 0)),
        negative_scales=int(np.count_nonzero(scales < 0)),
    )


def _values(term: Term, shape: tuple[int, int]) -> F32:
    return mix([term._replace(share=np.float32(1))], shape)


def _count_values(values: F32) -> Counts:
    found = np.zeros(4, np.int64)
    _add_values(values.reshape(-1), found)
    nan, infinite, zeros, most = map(int, found)
    return Counts(nan, infinite, zeros, float(np.int32(most).view(np.float32)))


@kernel
def _add_values(values: Any, found: Any) -> None:
    """Add to found: NaN, infinite ones, zeros; and let its last be the bits of the largest finite magnitude."""
    for start in range(0, values.size, _RUN):
        run = values[start : start + _RUN]
        nan = infinite = zeros = most = np.int32(0)
        for j in range(run.size):
            bits = magnitude_bits(run[j])
            nan += np.int32(bits > 0x7F800000)
            infinite += np.int32(bits == 0x7F800000)
            zeros += np.int32(bits == 0)
            most = max(most, np.int32(0) if bits >= 0x7F800000 else bits)
        found[0] += nan
        found[1] += infinite
        found[2] += zeros
        found[3] = max(found[3], most)


@kernel
def _count_codes(codes: Any, found: Any, largest: Any) -> None:
    """Add to found: zeros, NaN, saturated ones; and raise `largest`, the largest code without sign, block by block.

    Bytes all the way: the 128 codes of a line can't make a byte overflow, and a register holds 64 of them.
    """
    rows, cols = codes.shape
    for i in range(rows):
        for k in range(largest.shape[1]):
            line = codes[i, k * BLOCK : min(cols, k * BLOCK + BLOCK)]
            zeros = nan = saturated = most = np.uint8(0)
            for j in range(line.size):
                size = np.uint8(line[j] & np.uint8(0x7F))
                zeros = np.uint8(zeros + np.uint8(size == 0))
                nan = np.uint8(nan + np.uint8(size == 0x7F))
                saturated = np.uint8(saturated + np.uint8(size == 0x7E))
                most = max(most, np.uint8(0) if size == 0x7F else size)
            found[0] += zeros
            found[1] += nan
            found[2] += saturated
            largest[i // BLOCK, k] = max(largest[i // BLOCK, k], most)
