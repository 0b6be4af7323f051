"""DeepSeek's FP8 blocks: e4m3fn codes, one scale for each 128x128 block, edges ragged.

    value = code * scale               ("weight_scale_inv" multiplies, in spite of its name)

Decoding is exact but for one rounding of the product. Encoding takes a fresh scale for every block:

    s    = fl(amax / 448)              not below the smallest normal float32; 1 for a block of zeros
    code = RNE(fl(v * fl(448 / amax))) saturating, never NaN for a finite v

For power-of-two scales (`scale_fmt: ue8m0`, DeepSeek-V3.1) s is rounded up to the next power of two by bit work, and
code = RNE(v / s), where the division is exact. Blocks too small for 448 / amax to be a float32 use 1 / s likewise.
NaN codes come only from NaN values; infinite ones saturate. Both are counted, and leave the block's scale alone.

Every kernel works on a panel: up to 128 rows of a matrix and any number of columns, starting at a block's edge.
Source of the format: DeepSeek-V3, inference/kernel.py and fp8_cast_bf16.py.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from chimerakit.dtypes import BLOCK
from chimerakit.numerics.kernels import (
    bits_of_float,
    decode_e4m3,
    encode_e4m3,
    float_of_bits,
    kernel,
    magnitude_bits,
)

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_SMALLEST_NORMAL = np.float32(2.0**-126)
_MAX = np.float32(448)


@kernel
def scale_of(most: Any, is_ue8m0: Any) -> Any:
    """The scale of a block, and what its values are multiplied with; most: int32, the bits of its largest magnitude."""
    amax = float_of_bits(most)
    if most == 0:
        return np.float32(1), np.float32(1)
    scale = amax / _MAX
    if scale < _SMALLEST_NORMAL:
        return _SMALLEST_NORMAL, np.float32(1) / _SMALLEST_NORMAL
    if not is_ue8m0:
        return scale, _MAX / amax
    bits = bits_of_float(scale)
    if bits & 0x7FFFFF:
        bits = (bits & ~0x7FFFFF) + 0x800000
    scale = float_of_bits(np.int32(bits))
    return scale, np.float32(1) / scale


@kernel
def _block_scales(values: Any, is_ue8m0: Any, scales: Any, inverses: Any) -> int:
    """Fill scales and what values are multiplied with; returns how many values are not finite."""
    rows, cols = values.shape
    nonfinite = 0
    for k in range(scales.size):
        most = np.int32(0)
        for i in range(rows):
            line = values[i, k * BLOCK : min(cols, k * BLOCK + BLOCK)]
            inner = np.int32(0)
            for j in range(line.size):
                inner = max(inner, magnitude_bits(line[j]))
            if inner >= 0x7F800000:  # rare: count them, and take the largest finite one
                inner = np.int32(0)
                for j in range(line.size):
                    bits = magnitude_bits(line[j])
                    if bits >= 0x7F800000:
                        nonfinite += 1
                    else:
                        inner = max(inner, bits)
            most = max(most, inner)
        scales[k], inverses[k] = scale_of(most, is_ue8m0)
    return nonfinite


@kernel
def _encode_codes(values: Any, scales: Any, inverses: Any, codes: Any, sums: Any) -> None:
    """Fill codes; add to sums[0] the squared rounding errors, to sums[1] the squared values (both finite ones only).

    Sums go down each column first: that leaves the loop over a row free of order, so that it is fast on every CPU and
    the same on every CPU. In units of the scale, squares of float32 neither vanish nor overflow.
    """
    rows, cols = values.shape
    errors = np.zeros(cols, np.float32)
    powers = np.zeros(cols, np.float32)
    for i in range(rows):
        for k in range(scales.size):
            line = values[i, k * BLOCK : min(cols, k * BLOCK + BLOCK)]
            code = codes[i, k * BLOCK : min(cols, k * BLOCK + BLOCK)]
            error = errors[k * BLOCK : min(cols, k * BLOCK + BLOCK)]
            power = powers[k * BLOCK : min(cols, k * BLOCK + BLOCK)]
            inverse = inverses[k]
            for j in range(line.size):
                code[j] = encode_e4m3(line[j] * inverse)
            for j in range(line.size):
                value = line[j] * inverse
                off = value - decode_e4m3(code[j])
                is_finite = magnitude_bits(line[j]) < 0x7F800000
                error[j] += off * off if is_finite else np.float32(0)
                power[j] += value * value if is_finite else np.float32(0)
    for j in range(cols):
        square = np.float64(scales[j // BLOCK]) * np.float64(scales[j // BLOCK])
        sums[0] += np.float64(errors[j]) * square
        sums[1] += np.float64(powers[j]) * square


def encode_fp8(values: F32, codes: U8, scales: F32, sums: npt.NDArray[np.float64], *, is_ue8m0: bool) -> int:
    """Encode a panel of values into codes and fresh scales; returns how many values are not finite.

    values: (rows, cols), rows <= 128. codes: (rows, cols), written. scales: (ceil(cols / 128),), written.
    sums: (2,), added to: squared rounding errors and squared values.
    """
    inverses = np.empty_like(scales)
    nonfinite = _block_scales(values, is_ue8m0, scales, inverses)
    _encode_codes(values, scales, inverses, codes, sums)
    return int(nonfinite)


def decode_e8m0(codes: U8) -> F32:
    """Scales stored as exponents: 2^(code - 127), 255 is NaN. Shape kept."""
    import ml_dtypes

    return np.asarray(codes.view(ml_dtypes.float8_e8m0fnu), np.float32)


def encode_e8m0(scales: F32) -> U8:
    """Powers of two, not below 2^-126, as exponents. Shape kept."""
    return (scales.view(np.uint32) >> 23).astype(np.uint8)
