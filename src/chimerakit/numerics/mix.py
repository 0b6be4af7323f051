"""The weighted sum of parents' values, and its encoding: the whole arithmetic of a merge.

    v = fl(lambda_1 * x_1) + fl(lambda_2 * x_2) + ...       float32, left to right, rounded after each step

Base first, then the parents as the rule names them. FP8 terms are fl(fl(lambda * scale) * code). A unit that is only
converted is the same sum with one term and a share of 1, so its values are the parent's own.

Work goes panel by panel; a panel is a (rows, cols) piece of the weight matrix as bytes, with its blocks' scales.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from chimerakit.dtypes import BLOCK, FP8_BLOCK_UE8M0, FP8_BLOCKS, STORAGE_TYPES
from chimerakit.numerics.fp8 import F32, U8, add_fp8, decode_e8m0, encode_e8m0, encode_fp8
from chimerakit.numerics.kernels import decode_bf16, encode_bf16, kernel, magnitude_bits

_LANES = 256
"""Sums side by side, each over every 256th weight: in this order a loop over them is the same, and fast, on every CPU."""


class Term(NamedTuple):
    """One parent's panel."""

    storage: str
    share: np.float32
    """lambda."""
    data: U8
    """(rows, bytes of a row): the weights as stored."""
    scales: U8 | None = None
    """The scales of its blocks as stored, for FP8."""
    scale_dtype: str | None = None
    """How they are stored: F32 or F8_E8M0."""


class Encoded(NamedTuple):
    """One panel of the child."""

    data: U8
    """(rows, bytes of a row)."""
    scales: U8 | None
    """Bytes of the blocks' scales, for FP8."""
    nonfinite: int
    """Values that are NaN or infinite, before or after rounding."""


def mix(terms: list[Term], shape: tuple[int, int]) -> F32:
    """The weighted sum of a panel. shape: (rows, cols) in weights.

    A term that does not cover the panel is the caller's mistake. It is refused, as compiled loops check no bounds.
    """
    rows, cols = shape
    assert terms, "a sum of nothing"
    total = np.empty(shape, np.float32)
    for number, term in enumerate(terms):
        is_first = number == 0
        width = 1 if term.storage in FP8_BLOCKS else STORAGE_TYPES[term.storage].bits // 8
        assert term.data.shape == (rows, cols * width), f"{term.data.shape} bytes for {shape} weights"
        if term.storage in FP8_BLOCKS:
            assert term.scales is not None, "FP8 without scales"
            scales = decode_scales(term.scales, term.scale_dtype)
            assert scales.shape == (-(-cols // BLOCK),), f"{scales.shape} scales for {cols} columns"
            add_fp8(total, term.data, scales, term.share, is_first)
        elif term.storage == "BF16":
            _add_bf16(total, term.data.view(np.uint16), term.share, is_first)
        else:
            values = term.data.view(np.float16 if term.storage == "F16" else np.float32)
            _add_float(total, values.astype(np.float32, copy=False), term.share, is_first)
    return total


def decode_scales(data: U8, dtype: str | None) -> F32:
    """The scales of one row of blocks, stored as float32 (F32) or as exponents (F8_E8M0)."""
    assert dtype in ("F32", "F8_E8M0"), f"{dtype} scales"
    return decode_e8m0(data) if dtype == "F8_E8M0" else data.view(np.float32)


def encode(values: F32, storage: str, scale_dtype: str | None, sums: npt.NDArray[np.float64]) -> Encoded:
    """Store a panel of values.

    sums: (2,) float64, added to: squared rounding errors and squared values, of finite values.
    """
    rows, cols = values.shape
    if storage in FP8_BLOCKS:
        codes = np.empty((rows, cols), np.uint8)
        scales = np.empty(-(-cols // BLOCK), np.float32)
        nonfinite = encode_fp8(values, codes, scales, sums, is_ue8m0=storage == FP8_BLOCK_UE8M0)
        return Encoded(codes, encode_e8m0(scales) if scale_dtype == "F8_E8M0" else scales.view(np.uint8), nonfinite)
    if storage == "BF16":
        halves = np.empty((rows, cols), np.uint16)
        nonfinite = int(_store_bf16(values, halves, sums))
        return Encoded(halves.view(np.uint8), None, nonfinite)
    if storage == "F16":
        with np.errstate(over="ignore"):
            short = values.astype(np.float16)
        nonfinite = int(_rounding(values, short.astype(np.float32), sums))
        return Encoded(short.view(np.uint8), None, nonfinite)
    return Encoded(values.view(np.uint8), None, int(_rounding(values, values, sums)))


def relative_rms(sums: npt.NDArray[np.float64]) -> float:
    """The RMS rounding error relative to the values' RMS, to six digits."""
    return float(f"{np.sqrt(sums[0] / sums[1]):.6g}") if sums[1] > 0 else 0.0


@kernel
def _add_bf16(total: Any, halves: Any, share: Any, is_first: Any) -> None:
    for i in range(total.shape[0]):
        line, half = total[i], halves[i]
        if is_first:
            for j in range(line.size):
                line[j] = decode_bf16(half[j]) * share
        else:
            for j in range(line.size):
                line[j] += decode_bf16(half[j]) * share


@kernel
def _add_float(total: Any, values: Any, share: Any, is_first: Any) -> None:
    for i in range(total.shape[0]):
        line, value = total[i], values[i]
        if is_first:
            for j in range(line.size):
                line[j] = value[j] * share
        else:
            for j in range(line.size):
                line[j] += value[j] * share


@kernel
def _store_bf16(values: Any, halves: Any, sums: Any) -> int:
    nonfinite = 0
    errors, powers = np.zeros(_LANES), np.zeros(_LANES)
    for i in range(values.shape[0]):
        for start in range(0, values.shape[1], _LANES):
            line, half = values[i, start : start + _LANES], halves[i, start : start + _LANES]
            for j in range(line.size):
                half[j] = encode_bf16(line[j])
            for j in range(line.size):
                stored = decode_bf16(half[j])
                is_finite = magnitude_bits(stored) < 0x7F800000
                nonfinite += not is_finite
                value = np.float64(line[j]) if is_finite else 0.0
                off = value - np.float64(stored) if is_finite else 0.0
                errors[j] += off * off
                powers[j] += value * value
    _add_lanes(errors, powers, sums)
    return nonfinite


@kernel
def _rounding(values: Any, stored: Any, sums: Any) -> int:
    nonfinite = 0
    errors, powers = np.zeros(_LANES), np.zeros(_LANES)
    for i in range(values.shape[0]):
        for start in range(0, values.shape[1], _LANES):
            line, kept = values[i, start : start + _LANES], stored[i, start : start + _LANES]
            for j in range(line.size):
                is_finite = magnitude_bits(kept[j]) < 0x7F800000
                nonfinite += not is_finite
                value = np.float64(line[j]) if is_finite else 0.0
                off = value - np.float64(kept[j]) if is_finite else 0.0
                errors[j] += off * off
                powers[j] += value * value
    _add_lanes(errors, powers, sums)
    return nonfinite


@kernel
def _add_lanes(errors: Any, powers: Any, sums: Any) -> None:
    for j in range(errors.size):
        sums[0] += errors[j]
        sums[1] += powers[j]
