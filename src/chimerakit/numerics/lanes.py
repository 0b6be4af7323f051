"""Sixteen float32 side by side, as one value inside a compiled kernel.

LLVM vectorizes loops only as wide as it thinks is worth it (half of an AVX-512 register), and not at all where types
change width on the way. A value of many lanes says it outright; a CPU with narrower registers gets several
instructions for one, and the same bits. Places in memory are plain addresses in bytes: numba would check and widen
indices. Whoever calls has to see to bounds.
"""

# ruff: noqa: ARG001 - numba fixes the signatures of intrinsics

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from chimerakit.numerics.kernels import intrinsic

LANES = 16

_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_F16, _F32, _F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
_QUIET = 0x7FFFFFFF
_INFINITY = 0x7F800000


class _Lanes(types.Type):  # type: ignore[misc]
    """The numba type of sixteen float32."""


lanes = _Lanes("lanes")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any):
        super().__init__(manager, kind, _wide(_F32))


def _wide(element: Any, count: int = LANES) -> Any:
    return ir.VectorType(element, count)


def _all(element: Any, value: float, count: int = LANES) -> Any:
    return ir.Constant(_wide(element, count), [value] * count)


def _at(b: Any, address: Any, kind: Any) -> Any:
    return b.inttoptr(address, kind.as_pointer())


def _bits(b: Any, x: Any) -> Any:
    return b.bitcast(x, _wide(_I32))


def _floats(b: Any, x: Any) -> Any:
    return b.bitcast(x, _wide(_F32))


def _load(b: Any, address: Any, kind: Any) -> Any:
    return b.load(_at(b, address, kind), align=1)


def _store(b: Any, value: Any, address: Any) -> None:
    b.store(value, _at(b, address, value.type), align=1)


def _max(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.icmp_signed(">", x, y), x, y)


# ----------------------------------------------------------------------------------------- arithmetic


@intrinsic
def spread(_: Any, x: Any) -> Any:
    """The same number in every lane."""

    def build(_c: Any, b: Any, _s: Any, a: Any) -> Any:
        nothing = ir.Constant(_wide(_F32), ir.Undefined)
        one = b.insert_element(nothing, a[0], ir.Constant(_I32, 0))
        return b.shuffle_vector(one, nothing, _all(_I32, 0))

    return lanes(types.float32), build


def _operation(name: str) -> Callable[..., Any]:
    @intrinsic
    def operation(_: Any, x: Any, y: Any) -> Any:
        return lanes(lanes, lanes), lambda _c, b, _s, a: getattr(b, name)(a[0], a[1])

    return operation


add, mul = _operation("fadd"), _operation("fmul")


@intrinsic
def larger(_: Any, most: Any, x: Any) -> Any:
    """The larger of `most` (not negative) and |x|, where NaN counts as larger than infinity."""

    def build(_c: Any, b: Any, _s: Any, a: Any) -> Any:
        size = b.and_(_bits(b, a[1]), _all(_I32, _QUIET))
        return _floats(b, _max(b, size, _bits(b, a[0])))

    return lanes(lanes, lanes), build


@intrinsic
def largest(_: Any, x: Any) -> Any:
    """The bits of the largest lane, of lanes that are not negative."""

    def build(_c: Any, b: Any, _s: Any, a: Any) -> Any:
        bits = _bits(b, a[0])
        found = b.extract_element(bits, ir.Constant(_I32, 0))
        for lane in range(1, LANES):
            found = _max(b, found, b.extract_element(bits, ir.Constant(_I32, lane)))
        return found

    return types.int32(lanes), build


# ----------------------------------------------------------------------------------------- memory


@intrinsic
def load(_: Any, address: Any) -> Any:
    """Sixteen float32."""
    return lanes(types.intp), lambda _c, b, _s, a: _load(b, a[0], _wide(_F32))


@intrinsic
def load_one(_: Any, address: Any) -> Any:
    """One float32."""
    return types.float32(types.intp), lambda _c, b, _s, a: _load(b, a[0], _F32)


@intrinsic
def load_double(_: Any, address: Any) -> Any:
    """One float64."""
    return types.float64(types.intp), lambda _c, b, _s, a: _load(b, a[0], _F64)


@intrinsic
def load_bf16(_: Any, address: Any) -> Any:
    """Sixteen bfloat16, exact."""

    def build(_c: Any, b: Any, _s: Any, a: Any) -> Any:
        halves = _load(b, a[0], _wide(_I16))
        return _floats(b, b.shl(b.zext(halves, _wide(_I32)), _all(_I32, 16)))

    return lanes(types.intp), build


@intrinsic
def load_f16(_: Any, address: Any) -> Any:
    """Sixteen float16, exact."""

    def build(c: Any, b: Any, _s: Any, a: Any) -> Any:
        halves = _load(b, a[0], _wide(_I16))
        return _decode_f16_by_hardware(b, halves) if _has_f16(c) else _decode_f16(b, halves)

    return lanes(types.intp), build


def _has_f16(context: Any) -> bool:
    """Whether the CPU that is compiled for converts float16 itself; on others LLVM would call a function for each."""
    triple, _, features = context.codegen().magic_tuple()
    return "+f16c" in features.split(",") or triple.startswith(("aarch64", "arm64"))


def _decode_f16_by_hardware(b: Any, halves: Any) -> Any:
    return b.fpext(b.bitcast(halves, _wide(_F16)), _wide(_F32))


def _decode_f16(b: Any, halves: Any) -> Any:
    """Bias 15; exponent 0 is subnormal (steps of 2^-24), exponent 31 is infinity or NaN."""
    wide = b.zext(halves, _wide(_I32))
    size = b.and_(wide, _all(_I32, 0x7FFF))
    normal = b.add(b.shl(size, _all(_I32, 13)), _all(_I32, 112 << 23))
    subnormal = _bits(b, b.fmul(b.uitofp(size, _wide(_F32)), _all(_F32, 2.0**-24)))
    found = b.select(b.icmp_signed("<", size, _all(_I32, 0x400)), subnormal, normal)
    endless = b.or_(b.shl(size, _all(_I32, 13)), _all(_I32, _INFINITY))
    found = b.select(b.icmp_signed(">=", size, _all(_I32, 0x7C00)), endless, found)
    return _floats(b, b.or_(found, b.shl(b.and_(wide, _all(_I32, 0x8000)), _all(_I32, 16))))


@intrinsic
def codes_to_f16(_: Any, codes: Any, halves: Any) -> Any:
    """Write 128 e4m3fn codes as float16, each a 256th of its value, which is exact; NaN codes come out as numbers.

    The exponent of e4m3 moves into that of float16 with the mantissa behind it, subnormals and all: 256 is what the
    biases, 7 and 15, differ by.
    """

    def build(_c: Any, b: Any, _s: Any, a: Any) -> Any:
        for part in range(0, 128, 32):
            found = b.sext(_load(b, b.add(a[0], a[0].type(part)), _wide(_I8, 32)), _wide(_I16, 32))
            found = b.and_(b.shl(found, _all(_I16, 7, 32)), _all(_I16, 0xBF80, 32))
            _store(b, found, b.add(a[1], a[1].type(2 * part)))
        return _c.get_dummy_value()

    return types.void(types.intp, types.intp), build


@intrinsic
def has_nan_code(_: Any, codes: Any) -> Any:
    """Whether one of 128 e4m3fn codes is NaN."""

    def build(_c: Any, b: Any, _s: Any, a: Any) -> Any:
        size = b.and_(_load(b, a[0], _wide(_I8, 128)), _all(_I8, 0x7F, 128))
        found = b.icmp_signed("==", size, _all(_I8, 0x7F, 128))
        return b.icmp_unsigned("!=", b.bitcast(found, ir.IntType(128)), ir.Constant(ir.IntType(128), 0))

    return types.boolean(types.intp), build


@intrinsic
def store(_: Any, address: Any, x: Any) -> Any:
    """Write sixteen float32."""

    def build(c: Any, b: Any, _s: Any, a: Any) -> Any:
        _store(b, a[1], a[0])
        return c.get_dummy_value()

    return types.void(types.intp, lanes), build


@intrinsic
def add_to_doubles(_: Any, address: Any, x: Any) -> Any:
    """Add to sixteen float64 in memory."""

    def build(c: Any, b: Any, _s: Any, a: Any) -> Any:
        doubles = _wide(_F64)
        _store(b, b.fadd(_load(b, a[0], doubles), b.fpext(a[1], doubles)), a[0])
        return c.get_dummy_value()

    return types.void(types.intp, lanes), build


def _pairs_adder(count: int) -> Callable[..., Any]:
    @intrinsic
    def add_pairs(_: Any, address: Any, left: Any, right: Any) -> Any:
        """Add pairs of float32 to seven rows of sixteen float64.

        The rows: squared differences, products, squares of both; the largest difference; how many numbers are unlike,
        and how many pairs are not finite. Those count in the last row only.
        """

        def build(c: Any, b: Any, _s: Any, a: Any) -> Any:
            floats, ints, doubles = _wide(_F32, count), _wide(_I32, count), _wide(_F64, count)
            zero, one = _all(_F64, 0.0, count), _all(_F64, 1.0, count)
            x, y = _load(b, a[1], floats), _load(b, a[2], floats)
            endless = _all(_I32, _INFINITY, count)
            bad_x, bad_y = (b.icmp_signed("==", b.and_(b.bitcast(v, ints), endless), endless) for v in (x, y))
            is_bad = b.or_(bad_x, bad_y)
            x, y = (b.select(is_bad, zero, b.fpext(v, doubles)) for v in (x, y))
            off = b.fsub(x, y)
            is_unlike = b.fcmp_ordered("!=", x, y)
            size = b.select(b.fcmp_ordered("<", off, zero), b.fsub(y, x), off)
            rows = [b.fmul(off, off), b.fmul(x, y), b.fmul(x, x), b.fmul(y, y), size]
            rows += [b.select(is_true, one, zero) for is_true in (is_unlike, is_bad)]
            for number, row in enumerate(rows):
                place = b.add(a[0], a[0].type(8 * LANES * number))
                before = _load(b, place, doubles)
                larger_one = b.select(b.fcmp_ordered(">", row, before), row, before)
                _store(b, larger_one if row is size else b.fadd(before, row), place)
            return c.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp), build

    return add_pairs


add_pair, add_pairs = _pairs_adder(1), _pairs_adder(LANES)


def _prefetch(is_write: int) -> Callable[..., Any]:
    @intrinsic
    def prefetch(_: Any, address: Any) -> Any:
        def build(c: Any, b: Any, _s: Any, a: Any) -> Any:
            place = b.inttoptr(a[0], _I8.as_pointer())
            kind = ir.FunctionType(ir.VoidType(), [place.type, _I32, _I32, _I32])
            function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
            b.call(function, [place, *(ir.Constant(_I32, value) for value in (is_write, _L2, 1))])
            return c.get_dummy_value()

        return types.void(types.intp), build

    return prefetch


_L2 = 2
"""The locality of llvm.prefetch that stands for the second level."""
prefetch, prefetch_to_write = _prefetch(0), _prefetch(1)


# ----------------------------------------------------------------------------------------- encoding


def _round(b: Any, x: Any, *, mantissa: int, lowest: int) -> tuple[Any, Any]:
    """Round |x| to nearest even with that many bits of mantissa; returns (bits that end in the code, what was lost).

    Adding 2^(23 - mantissa) times the number's own power of two puts the last place that is kept at the last place of
    a float32, so the FPU rounds, and subtracting it again gives what it made. `lowest` is the exponent of the smallest
    normal number: below it the places are those of that number. In the last bits of the addend stands what makes of
    the mantissa a code; it is even, so it does not touch ties. Finite numbers up to the largest that can be stored.
    """
    bits = _bits(b, x)
    size = _floats(b, b.and_(bits, _all(_I32, _QUIET)))
    power = _max(b, b.and_(bits, _all(_I32, _INFINITY)), _all(_I32, (127 + lowest) << 23))
    exponent = b.lshr(power, _all(_I32, 23 - mantissa))
    shift = b.add(b.add(power, exponent), _all(_I32, ((23 - mantissa) << 23) - ((127 + lowest) << mantissa)))
    addend = _floats(b, shift)
    found = b.fadd(size, addend)
    return _bits(b, found), b.fsub(size, b.fsub(found, addend))


@intrinsic
def store_e4m3(_: Any, address: Any, x: Any) -> Any:
    """Write sixteen e4m3fn codes of values that round to 448 at most; returns |x| less what was stored."""

    def build(_c: Any, b: Any, _s: Any, a: Any) -> Any:
        code, lost = _round(b, a[1], mantissa=3, lowest=-6)
        sign = b.and_(b.lshr(_bits(b, a[1]), _all(_I32, 24)), _all(_I32, 0x80))
        _store(b, b.trunc(b.or_(code, sign), _wide(_I8)), a[0])
        return lost

    return lanes(types.intp, lanes), build


@intrinsic
def store_f16(_: Any, address: Any, x: Any) -> Any:
    """Write sixteen float16; returns |x| less what was stored, infinite where x is too large."""

    def build(_c: Any, b: Any, _s: Any, a: Any) -> Any:
        code, lost = _round(b, a[1], mantissa=10, lowest=-14)
        bits = _bits(b, a[1])
        sign = b.and_(b.lshr(bits, _all(_I32, 16)), _all(_I32, 0x8000))
        _store(b, b.trunc(b.or_(code, sign), _wide(_I16)), a[0])
        size = _floats(b, b.and_(bits, _all(_I32, _QUIET)))
        return b.select(b.fcmp_ordered("<", size, _all(_F32, 65520.0)), lost, _all(_F32, float("inf")))

    return lanes(types.intp, lanes), build


@intrinsic
def store_f32(_: Any, address: Any, x: Any) -> Any:
    """Write sixteen float32; returns x less what was stored: 0, or NaN where x is not finite."""

    def build(_c: Any, b: Any, _s: Any, a: Any) -> Any:
        _store(b, a[1], a[0])
        return b.fsub(a[1], a[1])

    return lanes(types.intp, lanes), build


@intrinsic
def store_bf16(_: Any, address: Any, x: Any) -> Any:
    """Write sixteen bfloat16 of numbers that are not NaN; returns x less what was stored."""

    def build(_c: Any, b: Any, _s: Any, a: Any) -> Any:
        bits = _bits(b, a[1])
        odd = b.and_(b.lshr(bits, _all(_I32, 16)), _all(_I32, 1))
        rounded = b.add(b.add(bits, _all(_I32, 0x7FFF)), odd)
        _store(b, b.trunc(b.lshr(rounded, _all(_I32, 16)), _wide(_I16)), a[0])
        return b.fsub(a[1], _floats(b, b.and_(rounded, _all(_I32, 0xFFFF0000))))

    return lanes(types.intp, lanes), build
