"""The scalar building blocks, against torch and ml_dtypes over everything that can go wrong."""

import hashlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numba
import numpy as np
import numpy.typing as npt
import pytest
import torch

from chimerakit.numerics import kernels
from chimerakit.numerics.fused import mix_blocks

F32 = npt.NDArray[np.float32]
CODES = np.arange(256, dtype=np.uint8)
HALVES = np.arange(1 << 16, dtype=np.uint16)


def f32(values: npt.ArrayLike) -> F32:
    return np.array(values, np.float32)


@numba.njit  # type: ignore[untyped-decorator]
def _encode_e4m3(values: Any, codes: Any) -> None:
    for i in range(values.size):
        codes[i] = kernels.encode_e4m3(values[i])


@numba.njit  # type: ignore[untyped-decorator]
def _decode_e4m3(codes: Any, values: Any) -> None:
    for i in range(values.size):
        values[i] = kernels.decode_e4m3(codes[i])


@numba.njit  # type: ignore[untyped-decorator]
def _encode_bf16(values: Any, halves: Any) -> None:
    for i in range(values.size):
        halves[i] = kernels.encode_bf16(values[i])


@numba.njit  # type: ignore[untyped-decorator]
def _decode_bf16(halves: Any, values: Any) -> None:
    for i in range(values.size):
        values[i] = kernels.decode_bf16(halves[i])


@numba.njit  # type: ignore[untyped-decorator]
def _magnitudes(values: Any, bits: Any) -> None:
    for i in range(values.size):
        bits[i] = kernels.magnitude_bits(values[i])


@numba.njit  # type: ignore[untyped-decorator]
def _round_trip(values: Any, out: Any) -> None:
    for i in range(values.size):
        out[i] = kernels.float_of_bits(kernels.bits_of_float(values[i]))


def encode_e4m3(values: F32) -> npt.NDArray[np.uint8]:
    codes = np.empty(values.size, np.uint8)
    _encode_e4m3(values, codes)
    return codes


def torch_e4m3(values: F32) -> npt.NDArray[np.uint8]:
    return np.asarray(torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy())


def around(points: npt.NDArray[np.float64]) -> F32:
    """Points, the middles between neighbours, the float32 neighbours of both, and all their negatives."""
    points = np.unique(points)
    exact = np.concatenate([points, (points[1:] + points[:-1]) / 2]).astype(np.float32)
    up, down = np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))
    found = np.concatenate([exact, up, down])
    return np.concatenate([found, -found])


def random_floats(seed: int, low: float, high: float, count: int = 200_000) -> F32:
    """Random signs, mantissas and exponents; the magnitude's log2 is uniform."""
    rng = np.random.default_rng(seed)
    return f32(np.exp2(rng.uniform(low, high, count)) * rng.choice([-1, 1], count))


def test_decode_e4m3_gives_the_value_of_every_code() -> None:
    """All 256 codes decode to what ml_dtypes says, sign of zero and of NaN included."""
    found = np.empty(256, np.float32)
    _decode_e4m3(CODES, found)
    expected = CODES.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found), CODES >= 128)
    assert np.array_equal(np.isnan(found), (CODES & 0x7F) == 0x7F)


def test_encode_e4m3_rounds_every_midpoint_and_its_neighbours_as_torch_does() -> None:
    """Every representable value, every midpoint and the float32 values beside both get torch's code."""
    finite = CODES.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    values = around(finite[np.isfinite(finite)])
    values = values[np.abs(values) <= 448]
    assert np.array_equal(encode_e4m3(values), torch_e4m3(values))


@pytest.mark.parametrize(("low", "high"), [(-149, -20), (-20, -5), (-5, 2), (2, 8.8)])
def test_encode_e4m3_equals_torch_for_random_values(low: float, high: float) -> None:
    """Values of many magnitudes up to 448, float32 subnormals too, get torch's code."""
    values = random_floats(1, low, high)
    values = values[np.abs(values) <= 448]
    assert np.array_equal(encode_e4m3(values), torch_e4m3(values))


def test_encode_e4m3_undoes_decode() -> None:
    """Every code but NaN's is the code of its value."""
    values = np.empty(256, np.float32)
    _decode_e4m3(CODES, values)
    assert np.array_equal(encode_e4m3(values), CODES)


def test_encode_e4m3_saturates_above_448() -> None:
    """Anything larger than 448, infinity included, becomes 448 of its sign."""
    above = f32([448.00003, 463.9, 464, 465, 479.9, 480, 512, 1e10, 3.4e38, np.inf])
    assert set(encode_e4m3(above)) == {0x7E}
    assert set(encode_e4m3(-above)) == {0xFE}


def test_encode_e4m3_makes_nan_only_of_nan() -> None:
    """A NaN of any payload and sign becomes the NaN code of its sign."""
    nans = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFC00000], np.uint32).view(np.float32)
    assert encode_e4m3(nans).tolist() == [0x7F, 0x7F, 0x7F, 0xFF, 0xFF]


def test_encode_e4m3_keeps_the_sign_of_zero() -> None:
    """-0.0, and negative values that round to zero, become code 0x80."""
    assert encode_e4m3(f32([0.0, -0.0, 1e-30, -1e-30])).tolist() == [0, 0x80, 0, 0x80]


def test_decode_bf16_equals_torch_for_every_half() -> None:
    """All 65536 bit patterns decode to torch's bits."""
    found = np.empty(HALVES.size, np.float32)
    _decode_bf16(HALVES, found)
    expected = torch.from_numpy(HALVES.view(np.int16)).view(torch.bfloat16).float().numpy()
    is_nan = np.isnan(expected)
    assert np.array_equal(np.isnan(found), is_nan)
    assert np.array_equal(found[~is_nan].view(np.uint32), expected[~is_nan].view(np.uint32))


def test_encode_bf16_equals_torch_everywhere() -> None:
    """Every value, every midpoint, their float32 neighbours, overflow and infinity get torch's bits."""
    halves = HALVES[(HALVES & 0x7F80) != 0x7F80]
    values = around(halves.view(ml_dtypes.bfloat16).astype(np.float64))
    ends = f32([3.3895313e38, 3.3961776e38, 3.396178e38, 3.4028235e38, np.inf])  # the last is beyond bfloat16
    values = np.concatenate([values, ends, -ends, random_floats(2, -149, 127)])
    found = np.empty(values.size, np.uint16)
    _encode_bf16(values, found)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(found, expected)


def test_encode_bf16_keeps_nan_nan() -> None:
    """A NaN whose upper half would read as infinity stays NaN, with its sign."""
    nans = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001], np.uint32).view(np.float32)
    found = np.empty(nans.size, np.uint16)
    _encode_bf16(nans, found)
    assert found.tolist() == [0x7FC0, 0x7FC0, 0x7FFF, 0xFFC0]


def test_magnitude_bits_order_like_magnitudes() -> None:
    """Bits of |x| are numpy's, and only infinity and NaN reach 0x7f800000."""
    values = np.concatenate([random_floats(3, -149, 127, 1000), f32([0, -0.0, np.inf, -np.inf, np.nan])])
    found = np.empty(values.size, np.int32)
    _magnitudes(values, found)
    assert np.array_equal(found, np.abs(values).view(np.int32))
    assert np.array_equal(found >= 0x7F800000, ~np.isfinite(values))


def test_bits_of_float_and_float_of_bits_are_inverse() -> None:
    """A float32 keeps its bits on the way through an integer."""
    values = np.concatenate([random_floats(4, -149, 127, 1000), f32([0, -0.0, np.inf, -np.inf])])
    found = np.empty_like(values)
    _round_trip(values, found)
    assert np.array_equal(found.view(np.uint32), values.view(np.uint32))


def test_machine_code_is_kept_under_the_digest_of_all_sources() -> None:
    """A change in any source of numerics is another place for compiled kernels, so that no old code can run."""
    folder = Path(kernels.__file__).parent
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    assert hashlib.sha256(text).hexdigest()[:16] in Path(mix_blocks.stats.cache_path).parts  # type: ignore[attr-defined]
