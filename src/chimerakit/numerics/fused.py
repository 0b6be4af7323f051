"""Kernels that decode, mix and encode a panel in one go, at the speed of memory as far as arithmetic allows.

They never hold a panel of float32 in memory, only pieces that fit a cache. They are for numbers: where one meets NaN,
infinity, or a result too large, it says so, and the caller does the panel again with the kernels of mix.py and fp8.py,
which take anything. For numbers both store the same bits; in FP8 the sums have the same bits, too.

Panels are given by addresses: rows x cols weights, cols a multiple of 128, each row `pitch` weights after the one
before. `factors` (terms, cols / 128) float32 are what a term's stored numbers are multiplied with, block by block.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from chimerakit.dtypes import BLOCK
from chimerakit.numerics.fp8 import scale_of
from chimerakit.numerics.kernels import inlined, kernel
from chimerakit.numerics.lanes import (
    LANES,
    add,
    add_to_doubles,
    codes_to_f16,
    has_nan_code,
    larger,
    largest,
    load,
    load_bf16,
    load_double,
    load_f16,
    load_one,
    mul,
    prefetch,
    prefetch_to_write,
    spread,
    store,
    store_bf16,
    store_e4m3,
    store_f16,
    store_f32,
)

F32, F16, BF16, E4M3 = range(4)
"""How the numbers of a panel are stored."""
NBYTES = (4, 2, 2, 1)
"""Bytes of one number of each kind."""

WIDTH = 1024
"""Columns that are worked on at a time: 128 rows of them, as float32, fill half a megabyte of the second-level cache."""
SCRATCH = 4 * (BLOCK + 4) * WIDTH + 64
"""Bytes of scratch that a kernel wants."""
_CACHE_LINE = 64
_LARGEST_FACTOR = np.float32(2.0**119)
"""256 times as much would still be a float32."""
_ROWS_AHEAD, _BYTES_AHEAD = 4, 4096
"""How far ahead of the work memory is asked for: far enough to have come, not so far that it is gone again."""


@inlined
def _prefetch(address: Any, nbytes: Any) -> None:
    for j in range(0, nbytes, _CACHE_LINE):
        prefetch(address + j)


@inlined
def _prefetch_to_write(address: Any) -> None:
    for j in range(0, BLOCK, _CACHE_LINE):
        prefetch_to_write(address + j)


def _adder(load_lanes: Callable[..., Any], nbytes: int, unit: float = 1) -> Callable[..., None]:
    one = np.float32(unit)

    @inlined
    def add_numbers(line: Any, width: Any, source: Any, factors: Any, is_first: Any, ahead: Any) -> None:
        """line (width float32 at an address) = or += factor * unit * number."""
        for k in range(width // BLOCK):
            factor = spread(factors[k] * one)
            if ahead:
                _prefetch(source + (BLOCK * k + ahead) * nbytes, BLOCK * nbytes)
            for j in range(k * BLOCK, k * BLOCK + BLOCK, LANES):
                x = mul(load_lanes(source + nbytes * j), factor)
                if not is_first:
                    x = add(load(line + 4 * j), x)
                store(line + 4 * j, x)

    return add_numbers


_add_f32, _add_f16, _add_bf16 = _adder(load, 4), _adder(load_f16, 2), _adder(load_bf16, 2)
_add_halves = _adder(load_f16, 2, unit=256)


@inlined
def _add_codes(line: Any, width: Any, source: Any, factors: Any, is_first: Any, halves: Any, ahead: Any) -> bool:
    """The same for e4m3 codes; False if that needs more than numbers."""
    for j in range(0, width, BLOCK):
        if has_nan_code(source + j) or not abs(factors[j // BLOCK]) < _LARGEST_FACTOR:
            return False
        _prefetch(source + j + ahead, BLOCK)
        codes_to_f16(source + j, halves + 2 * j)
    _add_halves(line, width, halves, factors, is_first, 0)
    return True


@inlined
def _mix_line(
    kinds: Any, sources: Any, factors: Any, at: Any, col: Any, width: Any, line: Any, halves: Any, ahead: Any
) -> bool:
    """The weighted sum of at most 1024 weights from `at` on, to `line`; False if it takes more than numbers.

    Fetches what lies `ahead` weights further on.
    """
    for n in range(kinds.size):
        kind, is_first, factor = kinds[n], n == 0, factors[n, col // BLOCK :]
        source = sources[n] + at * NBYTES[kind]
        if kind == E4M3:
            if not _add_codes(line, width, source, factor, is_first, halves, ahead):
                return False
        elif kind == BF16:
            _add_bf16(line, width, source, factor, is_first, ahead)
        elif kind == F16:
            _add_f16(line, width, source, factor, is_first, ahead)
        else:
            _add_f32(line, width, source, factor, is_first, ahead)
    return True


@inlined
def _aligned(scratch: Any) -> Any:
    """The first address in it that starts a line of the cache: wide loads that straddle two cost double."""
    return (scratch.ctypes.data + _CACHE_LINE - 1) // _CACHE_LINE * _CACHE_LINE


@inlined
def _clear(address: Any, width: Any) -> None:
    for j in range(0, width, LANES):
        store(address + 4 * j, spread(np.float32(0)))


@kernel
def mix_values(
    kinds: Any, sources: Any, factors: Any, rows: Any, cols: Any, pitch: Any, out: Any, scratch: Any
) -> bool:
    """As float32 to `out`, of any size; infinity and NaN too, but for NaN codes."""
    halves = _aligned(scratch)
    for i in range(rows):
        for col in range(0, cols, WIDTH):
            at, width = i * pitch + col, min(WIDTH, cols - col)
            if not _mix_line(kinds, sources, factors, at, col, width, out + 4 * at, halves, WIDTH):
                return False
    return True


# ------------------------------------------------------------------------------------------ plain numbers


def _storer(store_lanes: Callable[..., Any], nbytes: int) -> Callable[..., None]:
    @inlined
    def store_numbers(line: Any, width: Any, out: Any, errors: Any, powers: Any) -> None:
        error, power = spread(np.float32(0)), spread(np.float32(0))
        for j in range(0, width, LANES):
            value = load(line + 4 * j)
            lost = store_lanes(out + nbytes * j, value)
            error, power = add(error, mul(lost, lost)), add(power, mul(value, value))
        add_to_doubles(errors, error)
        add_to_doubles(powers, power)

    return store_numbers


_store_f32, _store_f16, _store_bf16 = _storer(store_f32, 4), _storer(store_f16, 2), _storer(store_bf16, 2)


def _mixer(load_lanes: Callable[..., Any], store_lanes: Callable[..., Any], nbytes: int) -> Callable[..., None]:
    @inlined
    def mix_run(sources: Any, factors: Any, at: Any, width: Any, out: Any, errors: Any, powers: Any) -> None:
        error, power = spread(np.float32(0)), spread(np.float32(0))
        for j in range(nbytes * at, nbytes * (at + width), _CACHE_LINE):
            prefetch_to_write(out + j + _BYTES_AHEAD)
            for n in range(sources.size):
                prefetch(sources[n] + j + _BYTES_AHEAD)
            for i in range(j, j + _CACHE_LINE, nbytes * LANES):
                value = mul(load_lanes(sources[0] + i), spread(factors[0, 0]))
                for n in range(1, sources.size):
                    value = add(value, mul(load_lanes(sources[n] + i), spread(factors[n, 0])))
                lost = store_lanes(out + i, value)
                error, power = add(error, mul(lost, lost)), add(power, mul(value, value))
        add_to_doubles(errors, error)
        add_to_doubles(powers, power)

    return mix_run


@inlined
def _store_line(kind: Any, line: Any, width: Any, out: Any, at: Any, errors: Any, powers: Any) -> None:
    if kind == BF16:
        _store_bf16(line, width, out + 2 * at, errors, powers)
    elif kind == F16:
        _store_f16(line, width, out + 2 * at, errors, powers)
    else:
        _store_f32(line, width, out + 4 * at, errors, powers)


_mix_f32, _mix_f16 = _mixer(load, store_f32, 4), _mixer(load_f16, store_f16, 2)
_mix_bf16 = _mixer(load_bf16, store_bf16, 2)


@inlined
def _mix_alike(kind: Any, sources: Any, factors: Any, at: Any, width: Any, out: Any, errors: Any, powers: Any) -> None:
    """Sources that are all stored as the result: in one go, which is what keeps up with memory."""
    if kind == BF16:
        _mix_bf16(sources, factors, at, width, out, errors, powers)
    elif kind == F16:
        _mix_f16(sources, factors, at, width, out, errors, powers)
    else:
        _mix_f32(sources, factors, at, width, out, errors, powers)


@kernel
def mix_plain(
    kinds: Any,
    sources: Any,
    factors: Any,
    rows: Any,
    cols: Any,
    pitch: Any,
    out: Any,
    scratch: Any,
    kind: Any,
    sums: Any,
) -> bool:
    """Stored as `kind` to `out`; squared errors and squared values are added to sums.

    Squares are summed in float32 for 1024 weights, in float64 beyond. Sums are not finite afterwards if a value is not,
    before or after rounding, or too large for that; they lack values whose squares are no normal float32.
    """
    line = _aligned(scratch)
    halves = line + 4 * WIDTH
    errors = halves + 2 * WIDTH
    powers = errors + 8 * LANES
    _clear(errors, 4 * LANES)
    are_alike = (kinds == kind).all()
    for i in range(rows):
        for col in range(0, cols, WIDTH):
            at, width = i * pitch + col, min(WIDTH, cols - col)
            if are_alike:
                _mix_alike(kind, sources, factors, at, width, out, errors, powers)
            elif _mix_line(kinds, sources, factors, at, col, width, line, halves, WIDTH):
                _store_line(kind, line, width, out, at, errors, powers)
            else:
                return False
    for j in range(LANES):
        sums[0] += load_double(errors + 8 * j)
        sums[1] += load_double(powers + 8 * j)
    return True


# ---------------------------------------------------------------------------------------------- FP8 blocks


@inlined
def _note_largest(line: Any, most: Any) -> None:
    """Sixteen largest magnitudes of 128 columns, row by row."""
    found = load(most)
    for j in range(0, BLOCK, LANES):
        found = larger(found, load(line + 4 * j))
    store(most, found)


@inlined
def _encode_line(line: Any, inverse: Any, out: Any, errors: Any, powers: Any) -> None:
    """Codes of 128 float32, their squared errors and squared values added to a float32 for each column."""
    inverses = spread(inverse)
    for j in range(0, BLOCK, LANES):
        value = mul(load(line + 4 * j), inverses)
        lost = store_e4m3(out + j, value)
        store(errors + 4 * j, add(load(errors + 4 * j), mul(lost, lost)))
        store(powers + 4 * j, add(load(powers + 4 * j), mul(value, value)))


@inlined
def _prefetch_columns(kinds: Any, sources: Any, at: Any) -> None:
    for n in range(kinds.size):
        nbytes = NBYTES[kinds[n]]
        _prefetch(sources[n] + at * nbytes, BLOCK * nbytes)


@kernel
def mix_blocks(
    kinds: Any,
    sources: Any,
    factors: Any,
    rows: Any,
    cols: Any,
    pitch: Any,
    out: Any,
    scratch: Any,
    scales: Any,
    sums: Any,
    is_ue8m0: Any,
) -> bool:
    """Rows of FP8 blocks: codes to `out`, fresh scales, squared errors and squared values added to sums.

    factors: (rows of blocks, terms, blocks). scales: (rows of blocks, blocks).

    Two passes over 1024 columns of 128 rows at a time. Rows of a matrix lie far apart, so while one pass computes it
    fetches what the other will need: the first the lines that codes go to, the second the next columns of the sources.
    """
    lines = _aligned(scratch)
    errors = lines + 4 * BLOCK * WIDTH
    powers, most, halves = errors + 4 * WIDTH, errors + 8 * WIDTH, errors + 12 * WIDTH
    inverses = np.empty(WIDTH // BLOCK, np.float32)
    for number in range(factors.shape[0]):
        first, last = number * BLOCK, min(rows, number * BLOCK + BLOCK)
        factor = factors[number]
        for col in range(0, cols, WIDTH):
            width = min(WIDTH, cols - col)
            ahead = min(WIDTH, cols - col - width)
            _clear(errors, 3 * WIDTH)
            for i in range(first, last):
                line, at = lines + 4 * WIDTH * (i - first), i * pitch + col
                if not _mix_line(kinds, sources, factor, at, col, width, line, halves, _ROWS_AHEAD * pitch):
                    return False
                for j in range(0, width, BLOCK):
                    _prefetch_to_write(out + at + j)
                    _note_largest(line + 4 * j, most + j // 2)
            for k in range(width // BLOCK):
                bits = largest(load(most + 4 * LANES * k))
                if bits >= 0x7F800000:
                    return False
                scales[number, col // BLOCK + k], inverses[k] = scale_of(bits, is_ue8m0)
            for i in range(first, last):
                line, at = lines + 4 * WIDTH * (i - first), i * pitch + col
                for j in range(0, width, BLOCK):
                    if j < ahead:
                        _prefetch_columns(kinds, sources, at + width + j)
                    _encode_line(line + 4 * j, inverses[j // BLOCK], out + at + j, errors + 4 * j, powers + 4 * j)
            for j in range(width):
                square = np.float64(scales[number, (col + j) // BLOCK]) ** 2
                sums[0] += np.float64(load_one(errors + 4 * j)) * square
                sums[1] += np.float64(load_one(powers + 4 * j)) * square
    return True
