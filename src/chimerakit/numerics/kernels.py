"""Scalar building blocks for compiled kernels, and the decorator that compiles them.

numba widens uint32 arithmetic to 64 bits, so the bit work is written as LLVM instructions. No fast-math and no
contraction anywhere: every result is the same on every CPU.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic as _intrinsic

F = TypeVar("F", bound=Callable[..., Any])

_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


def _c(value: int) -> ir.Constant:
    return ir.Constant(_I32, value)


_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_STAMP = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:16]


def kernel(function: F) -> F:
    """Compile without the interpreter lock, and keep the machine code on disk where that is possible.

    numba looks for changes only in the file of a kernel itself, and would go on with the machine code of what it is built
    of as that was before. So the code is kept under a name that stands for all sources here.
    """
    kept_in = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(Path(kept_in or Path(__file__).parent / "__pycache__", _STAMP))
    try:
        return numba.njit(nogil=True, cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # nowhere to keep it: a read-only installation and no home folder
        return numba.njit(nogil=True)(function)  # type: ignore[no-any-return]
    finally:
        numba.config.CACHE_DIR = kept_in


def inlined(function: F) -> F:
    """A part of kernels, compiled into each of them."""
    return numba.njit(nogil=True, forceinline=True)(function)  # type: ignore[no-any-return]


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A piece of a kernel that is written as LLVM instructions."""
    return _intrinsic(function)  # type: ignore[no-any-return]


def require(condition: bool, what: str) -> None:
    """Refuse arrays that do not fit each other, with ValueError: compiled loops check no bounds, so this is not an assert."""
    if not condition:
        raise ValueError(what)


@intrinsic
def magnitude_bits(_: Any, x: Any) -> Any:
    """The bits of |x|: as an int32 they order like the values; at or above 0x7f800000 they are not finite."""
    return types.int32(types.float32), lambda _c_, b, _s, a: b.and_(b.bitcast(a[0], _I32), _c(0x7FFFFFFF))


@intrinsic
def float_of_bits(_: Any, x: Any) -> Any:
    """The float32 with these bits."""
    return types.float32(types.int32), lambda _c_, b, _s, a: b.bitcast(a[0], _F32)


@intrinsic
def bits_of_float(_: Any, x: Any) -> Any:
    """The bits of a float32."""
    return types.int32(types.float32), lambda _c_, b, _s, a: b.bitcast(a[0], _I32)


@intrinsic
def decode_bf16(_: Any, x: Any) -> Any:
    """bfloat16 bits -> float32; the upper half of a float32, so exact."""

    def build(_c_: Any, b: Any, _s: Any, a: Any) -> Any:
        return b.bitcast(b.shl(b.zext(a[0], _I32), _c(16)), _F32)

    return types.float32(types.uint16), build


@intrinsic
def encode_bf16(_: Any, x: Any) -> Any:
    """float32 -> bfloat16 bits, nearest even; NaN stays NaN (quiet, the sign kept)."""

    def build(_c_: Any, b: Any, _s: Any, a: Any) -> Any:
        bits = b.bitcast(a[0], _I32)
        odd = b.and_(b.lshr(bits, _c(16)), _c(1))
        rounded = b.lshr(b.add(b.add(bits, _c(0x7FFF)), odd), _c(16))
        quiet = b.or_(b.lshr(bits, _c(16)), _c(0x40))
        is_nan = b.icmp_unsigned(">", b.and_(bits, _c(0x7FFFFFFF)), _c(0x7F800000))
        return b.trunc(b.select(is_nan, quiet, rounded), _I16)

    return types.uint16(types.float32), build


@intrinsic
def decode_e4m3(_: Any, x: Any) -> Any:
    """e4m3fn code -> float32, exact. Bias 7; exponent 0 is subnormal (steps of 2^-9); 0x7f and 0xff are NaN."""

    def build(_c_: Any, b: Any, _s: Any, a: Any) -> Any:
        code = b.zext(a[0], _I32)
        sign = b.shl(b.and_(code, _c(0x80)), _c(24))
        size = b.and_(code, _c(0x7F))
        normal = b.bitcast(b.add(b.shl(size, _c(20)), _c(120 << 23)), _F32)
        subnormal = b.fmul(b.uitofp(size, _F32), ir.Constant(_F32, 2.0**-9))
        value = b.select(b.icmp_unsigned("<", size, _c(8)), subnormal, normal)
        bits = b.select(b.icmp_unsigned("==", size, _c(0x7F)), _c(0x7FC00000), b.bitcast(value, _I32))
        return b.bitcast(b.or_(bits, sign), _F32)

    return types.float32(types.uint8), build


@intrinsic
def encode_e4m3(_: Any, x: Any) -> Any:
    """float32 -> e4m3fn code: nearest even, saturating at 448 (infinity too); only NaN becomes NaN."""

    def build(_c_: Any, b: Any, _s: Any, a: Any) -> Any:
        bits = b.bitcast(a[0], _I32)
        sign = b.and_(b.lshr(bits, _c(24)), _c(0x80))
        size = b.and_(bits, _c(0x7FFFFFFF))
        odd = b.and_(b.lshr(size, _c(20)), _c(1))
        # Normal results: round the 20 mantissa bits that are dropped, then move the exponent's bias from 127 to 7.
        normal = b.lshr(b.sub(b.add(b.add(size, _c(0x7FFFF)), odd), _c(120 << 23)), _c(20))
        # Subnormal results: adding 2^14 puts the step of 2^-9 at the last place of a float32, so the FPU rounds.
        shifted = b.bitcast(b.fadd(b.bitcast(size, _F32), ir.Constant(_F32, 2.0**14)), _I32)
        subnormal = b.sub(shifted, _c(0x46800000))
        code = b.select(b.icmp_unsigned("<", size, _c(121 << 23)), subnormal, normal)
        code = b.select(b.icmp_signed(">", code, _c(0x7E)), _c(0x7E), code)
        code = b.select(b.icmp_unsigned(">", size, _c(0x7F800000)), _c(0x7F), code)
        return b.trunc(b.or_(sign, code), _I8)

    return types.uint8(types.float32), build
