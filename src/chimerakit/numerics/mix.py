"""The weighted sum of parents' values, and its encoding: the whole arithmetic of a merge.

    v = fl(lambda_1 * x_1) + fl(lambda_2 * x_2) + ...       float32, left to right, rounded after each step

Base first, then the parents as the rule names them. FP8 terms are fl(fl(lambda * scale) * code). A unit that is only
converted is the same sum with one term and a share of 1, so its values are the parent's own.

Work goes panel by panel; a panel is a (rows, cols) piece of the weight matrix as bytes, with its blocks' scales. The
kernels of fused.py take panels of numbers; one with NaN, infinity or a result too large is made by the slower code
at the end of this file and in fp8.py, which takes anything.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from chimerakit.dtypes import BLOCK, FP8_BLOCK_UE8M0, FP8_BLOCKS, QUANTS, run_nbytes
from chimerakit.numerics import fused
from chimerakit.numerics.fp8 import F32, U8, decode_e8m0, encode_e8m0, encode_fp8
from chimerakit.numerics.ggml import decode_rows, encode_rows
from chimerakit.numerics.kernels import encode_bf16, kernel, magnitude_bits, require

F64 = npt.NDArray[np.float64]

KINDS = {"F32": fused.F32, "F16": fused.F16, "BF16": fused.BF16} | dict.fromkeys(FP8_BLOCKS, fused.E4M3)
SCRATCH = fused.SCRATCH
"""Bytes that kernels need beside their arguments."""
_LEAST_SQUARE = 2.0**-60
"""A mean of squares to which those that vanish in float32, below 2^-126, add nothing that six digits would show."""
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
    """The scales of its blocks as stored, for FP8, one row of blocks after the other."""
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
    _check(terms, shape)
    terms = _in_numbers(terms)
    if shape[0] > BLOCK and _has_blocks(terms):
        return np.concatenate([mix(rows, (len(rows[0].data), shape[1])) for rows in _block_rows(terms, shape[0])])
    factors = _factors(terms, shape)
    total = np.empty(shape, np.float32)
    scratch = np.empty(SCRATCH, np.uint8)
    if all(fused.mix_values(*piece, scratch) for piece in _pieces(terms, factors, shape, total.view(np.uint8))):
        return total
    return _mix_anything(terms, factors, shape)


def decode(term: Term) -> F32:
    """The values of one panel, code x scale: (rows, cols). The term's share is 1."""
    if term.storage in QUANTS:
        return decode_rows(term.data, term.storage)
    return mix([term], (len(term.data), term.data.shape[1] // nbytes_of_weight(term.storage)))


def encode(values: F32, storage: str, scale_dtype: str | None, sums: F64) -> Encoded:
    """Store a panel of values.

    sums: (2,) float64, added to: squared rounding errors and squared values, of finite values.
    """
    rows, cols = values.shape
    term = Term("F32", np.float32(1), np.ascontiguousarray(values).view(np.uint8))
    data = np.empty((rows, nbytes_of_row(storage, cols)), np.uint8)
    return Encoded(data, *mix_into([term], (rows, cols), storage, scale_dtype, data, sums, np.empty(SCRATCH, np.uint8)))


def mix_into(
    terms: list[Term],
    shape: tuple[int, int],
    storage: str,
    scale_dtype: str | None,
    out: U8,
    sums: F64,
    scratch: U8,
    importance: F32 | None = None,
) -> tuple[U8 | None, int]:
    """`mix` and `encode` in one, with no float32 panel between them; the child's bytes go to `out`.

    A panel of blocks may have any number of rows, and begins with a row of blocks. out: (rows, bytes of a row),
    contiguous, written. sums: (2,) float64, added to as `encode` does. scratch: SCRATCH bytes, for one thread at a time.
    importance: of quants, (rows, cols), how much each column matters; rows that follow each other may share one.
    Returns the bytes of the blocks' scales, for FP8, and how many values are NaN or infinite, before or after rounding.
    """
    _check(terms, shape)
    require(out.shape == (shape[0], nbytes_of_row(storage, shape[1])), f"{out.shape} bytes for {shape} weights")
    require(out.flags.c_contiguous, "compiled loops go by addresses")
    if storage in QUANTS:
        return None, _encode_quants(mix(terms, shape), storage, out, sums, importance)
    terms = _in_numbers(terms)
    if shape[0] > BLOCK and _has_blocks(terms, storage):
        return _mix_block_rows(terms, shape, storage, scale_dtype, out, sums, scratch)
    factors = _factors(terms, shape)
    if storage not in FP8_BLOCKS:
        if _mix_plain(terms, factors, shape, storage, out, sums, scratch):
            return None, 0
        return None, _encode_plain(_mix_anything(terms, factors, shape), storage, out, sums)
    scales = np.empty(-(-shape[1] // BLOCK), np.float32)
    is_ue8m0, nonfinite = storage == FP8_BLOCK_UE8M0, 0
    if not _mix_blocks(terms, factors[None], shape, out, scales[None], sums, scratch, is_ue8m0=is_ue8m0):
        nonfinite = encode_fp8(_mix_anything(terms, factors, shape), out, scales, sums, is_ue8m0=is_ue8m0)
    return _encode_scales(scales, scale_dtype), nonfinite


def _check(terms: list[Term], shape: tuple[int, int]) -> None:
    """Refuse terms that do not cover a panel: compiled loops go by addresses and check no bounds."""
    rows, cols = shape
    require(bool(terms), "a sum of nothing")
    for term in terms:
        require(
            term.data.shape == (rows, nbytes_of_row(term.storage, cols)),
            f"{term.data.shape} bytes for {shape} weights",
        )
        require(term.data.flags.c_contiguous, "compiled loops go by addresses")
        require((term.storage in FP8_BLOCKS) == (term.scales is not None), "scales for FP8, and for nothing else")


def _has_blocks(terms: list[Term], *storages: str) -> bool:
    return any(storage in FP8_BLOCKS for storage in (*storages, *(term.storage for term in terms)))


def _block_rows(terms: list[Term], rows: int) -> Iterator[list[Term]]:
    """The terms of each row of blocks of a panel."""
    count = -(-rows // BLOCK)
    scales = [None if term.scales is None else term.scales.reshape(count, -1) for term in terms]
    for number in range(count):
        here = slice(number * BLOCK, min(rows, (number + 1) * BLOCK))
        yield [
            term._replace(data=term.data[here], scales=None if scale is None else scale[number])
            for term, scale in zip(terms, scales, strict=True)
        ]


def _mix_block_rows(
    terms: list[Term], shape: tuple[int, int], storage: str, scale_dtype: str | None, out: U8, sums: F64, scratch: U8
) -> tuple[U8 | None, int]:
    """`mix_into` for several rows of blocks: at once where all is finite and goes from blocks to blocks."""
    parts = list(_block_rows(terms, shape[0]))
    shapes = [(len(part[0].data), shape[1]) for part in parts]
    if storage in FP8_BLOCKS:
        scales = np.empty((len(parts), -(-shape[1] // BLOCK)), np.float32)
        factors = np.stack([_factors(*row) for row in zip(parts, shapes, strict=True)])
        if _mix_blocks(terms, factors, shape, out, scales, sums, scratch, is_ue8m0=storage == FP8_BLOCK_UE8M0):
            return _encode_scales(scales.reshape(-1), scale_dtype), 0
    found, nonfinite = list[U8](), 0
    for number, row in enumerate(zip(parts, shapes, strict=True)):
        here = out[number * BLOCK : number * BLOCK + row[1][0]]
        blocks, count = mix_into(*row, storage, scale_dtype, here, sums, scratch)
        nonfinite += count
        if blocks is not None:
            found.append(blocks)
    return np.concatenate(found) if found else None, nonfinite


def _encode_scales(scales: F32, dtype: str | None) -> U8:
    return encode_e8m0(scales) if dtype == "F8_E8M0" else scales.view(np.uint8)


def decode_scales(data: U8, dtype: str | None) -> F32:
    """The scales of one row of blocks, stored as float32 (F32) or as exponents (F8_E8M0)."""
    require(dtype in ("F32", "F8_E8M0"), f"{dtype} scales")
    return decode_e8m0(data) if dtype == "F8_E8M0" else data.view(np.float32)


def relative_rms(sums: npt.NDArray[np.float64]) -> float:
    """The RMS rounding error relative to the values' RMS, to six digits."""
    return float(f"{np.sqrt(sums[0] / sums[1]):.6g}") if sums[1] > 0 else 0.0


def nbytes_of_row(storage: str, cols: int) -> int:
    """Bytes of a row of weights."""
    return run_nbytes(storage, cols) if storage in QUANTS else cols * nbytes_of_weight(storage)


def nbytes_of_weight(storage: str) -> int:
    """Bytes of one weight that is stored by itself."""
    return fused.NBYTES[KINDS[storage]]


def _in_numbers(terms: list[Term]) -> list[Term]:
    """The terms, with float32 in the place of quants: kernels know no blocks of a row."""
    return [
        term._replace(storage="F32", data=decode_rows(term.data, term.storage).view(np.uint8))
        if term.storage in QUANTS
        else term
        for term in terms
    ]


def _encode_quants(values: F32, storage: str, out: U8, sums: F64, importance: F32 | None) -> int:
    """Store values in blocks of a row; how many are NaN or infinite, before or after rounding."""
    if importance is None:
        encode_rows(values, storage, out)
    else:
        require(importance.shape == values.shape, f"{importance.shape} for {values.shape}")
        changes = np.flatnonzero((importance[1:] != importance[:-1]).any(axis=1)) + 1
        for first, last in pairwise([0, *changes.tolist(), len(values)]):
            encode_rows(values[first:last], storage, out[first:last], importance[first])
    return int(_rounding(values, decode_rows(out, storage), sums))


def _factors(terms: list[Term], shape: tuple[int, int]) -> F32:
    """What stored numbers are multiplied with, term by term: one factor for each 128 columns. (terms, blocks)"""
    cols = shape[1]
    factors = np.empty((len(terms), -(-cols // BLOCK)), np.float32)
    for term, factor in zip(terms, factors, strict=True):
        factor[:] = term.share
        if term.scales is not None:
            scales = decode_scales(term.scales.reshape(-1), term.scale_dtype)
            require(scales.shape == factor.shape, f"{scales.shape} scales for {cols} columns")
            with np.errstate(all="ignore"):
                factor *= scales
    return factors


# ------------------------------------------------------------------------------------ panels of numbers


class _Piece(NamedTuple):
    """Whole blocks of columns, as the kernels take them."""

    kinds: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]
    """Addresses."""
    factors: F32
    """(terms, blocks), or (rows of blocks, terms, blocks)."""
    rows: int
    cols: int
    pitch: int
    """Weights from one row to the next."""
    out: int
    """An address."""


def _pieces(terms: list[Term], factors: F32, shape: tuple[int, int], out: U8) -> Iterator[_Piece]:
    """The whole blocks of a panel where they are, then the ragged ones at the edge, padded with zeros."""
    rows, cols = shape
    kinds = np.array([KINDS[term.storage] for term in terms])
    whole = cols - cols % BLOCK
    if whole:
        sources = np.array([term.data.ctypes.data for term in terms])
        yield _Piece(kinds, sources, factors, rows, whole, cols, out.ctypes.data)
    if whole < cols:
        padded = [_padded(term.data, whole, cols) for term in terms]
        target = _padded(out, whole, cols)
        sources = np.array([data.ctypes.data for data in padded])
        yield _Piece(kinds, sources, factors[..., -1:].copy(), rows, BLOCK, BLOCK, target.ctypes.data)
        width = out.shape[1] // cols
        out[:, whole * width :] = target[:, : (cols - whole) * width]


def _padded(data: U8, whole: int, cols: int) -> U8:
    """The columns from `whole` on in a block of their own."""
    width = data.shape[1] // cols
    found = np.zeros((len(data), BLOCK * width), np.uint8)
    found[:, : (cols - whole) * width] = data[:, whole * width :]
    return found


def _mix_blocks(
    terms: list[Term],
    factors: F32,
    shape: tuple[int, int],
    out: U8,
    scales: F32,
    sums: F64,
    scratch: U8,
    *,
    is_ue8m0: bool,
) -> bool:
    """False, with sums as they were, if something is not finite.

    factors: (rows of blocks, terms, blocks). scales: (rows of blocks, blocks), written.
    """
    added, start = sums.copy(), 0
    for piece in _pieces(terms, factors, shape, out):
        if not fused.mix_blocks(*piece, scratch, scales[:, start:], added, is_ue8m0):
            return False
        start = piece.cols // BLOCK
    sums[:] = added
    return True


def _mix_plain(
    terms: list[Term], factors: F32, shape: tuple[int, int], storage: str, out: U8, sums: F64, scratch: U8
) -> bool:
    """False, with sums as they were, if something is not finite, or squares are too small to be summed in float32."""
    added = np.zeros(2)
    for piece in _pieces(terms, factors, shape, out):
        if not fused.mix_plain(*piece, scratch, KINDS[storage], added):
            return False
    if not (math.isfinite(added.sum()) and added[1] > _LEAST_SQUARE * shape[0] * shape[1]):
        return False
    sums += added
    return True


# --------------------------------------------------------------------------------------------- anything


def _mix_anything(terms: list[Term], factors: F32, shape: tuple[int, int]) -> F32:
    """The sum as its rule says it, in numpy."""
    total = np.empty(shape, np.float32)
    with np.errstate(all="ignore"):
        for number, (term, factor) in enumerate(zip(terms, factors, strict=True)):
            values = term.data.view(_numpy_dtype(term.storage)).astype(np.float32) * factor.repeat(BLOCK)[: shape[1]]
            total = values if number == 0 else total + values
    return total


def _encode_plain(values: F32, storage: str, out: U8, sums: F64) -> int:
    stored = out.view(_numpy_dtype(storage))
    if storage == "BF16":
        _fill_bf16(values, out.view(np.uint16))
    else:
        with np.errstate(over="ignore"):
            stored[:] = values
    return int(_rounding(values, stored.astype(np.float32), sums))


def _numpy_dtype(storage: str) -> Any:
    from ml_dtypes import bfloat16, float8_e4m3fn

    return {"F32": np.float32, "F16": np.float16, "BF16": bfloat16}.get(storage, float8_e4m3fn)


@kernel
def _fill_bf16(values: Any, halves: Any) -> None:
    """Not by ml_dtypes, which keeps of a NaN nothing but its sign."""
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            halves[i, j] = encode_bf16(values[i, j])


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
