"""FP8 blocks, against the rules of the module's own docstring written in plain numpy."""

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch

from chimerakit.numerics.fp8 import decode_e8m0, encode_e8m0, encode_fp8
from chimerakit.numerics.mix import relative_rms

pytestmark = pytest.mark.usefixtures("one_thread")

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
SHAPES = [(1, 1), (1, 300), (128, 128), (128, 256), (64, 130), (37, 127), (128, 1), (3, 129)]


def f32(values: npt.ArrayLike) -> F32:
    return np.array(values, np.float32)


def random_values(shape: tuple[int, int], size: float = 0.02, seed: int = 0) -> F32:
    """Values of very unlike sizes: a factor of a thousand from block to block and within a block."""
    rng = np.random.default_rng([*shape, seed])
    spread = np.exp2(rng.uniform(-5, 5, (1, shape[1]))) * np.exp2(rng.uniform(-5, 5, shape))
    return f32(rng.normal(size=shape) * spread * size)


def encode(values: F32, *, ue8m0: bool = False) -> tuple[U8, F32, npt.NDArray[np.float64], int]:
    """Codes, scales, sums and the count of values that are not finite."""
    codes, scales = np.empty(values.shape, np.uint8), np.empty(-(-values.shape[1] // 128), np.float32)
    sums = np.zeros(2)
    nonfinite = encode_fp8(values, codes, scales, sums, is_ue8m0=ue8m0)
    return codes, scales, sums, nonfinite


def decoded(codes: U8, scales: F32) -> npt.NDArray[np.float64]:
    exact = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return np.asarray(exact * scales.astype(np.float64).repeat(128)[: codes.shape[1]])


def blocks_of(values: F32) -> list[F32]:
    return [values[:, k : k + 128] for k in range(0, values.shape[1], 128)]


def next_power_of_two(x: np.float32) -> np.float32:
    mantissa, exponent = np.frexp(np.float64(x))
    return np.float32(2.0 ** (int(exponent) - (mantissa == 0.5)))


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_scales_are_the_largest_magnitude_over_448(shape: tuple[int, int]) -> None:
    """Each block's scale is fl(amax / 448), ragged last block and few rows included."""
    values = random_values(shape)
    _, scales, _, nonfinite = encode(values)
    assert scales.tolist() == [np.float32(np.abs(b).max()) / np.float32(448) for b in blocks_of(values)]
    assert nonfinite == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_ue8m0_scales_are_the_next_power_of_two(shape: tuple[int, int]) -> None:
    """Each block's scale is the least power of two that is not below fl(amax / 448)."""
    values = random_values(shape)
    _, scales, _, _ = encode(values, ue8m0=True)
    assert scales.tolist() == [next_power_of_two(np.abs(b).max() / np.float32(448)) for b in blocks_of(values)]


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_are_those_of_torch_after_scaling(shape: tuple[int, int], ue8m0: bool) -> None:
    """code = cast(fl(v * fl(448 / amax))), and for powers of two cast(v / s), bit for bit."""
    values = random_values(shape)
    codes, scales, _, _ = encode(values, ue8m0=ue8m0)
    amaxes = f32([np.abs(b).max() for b in blocks_of(values)])
    inverses = 1 / scales if ue8m0 else np.float32(448) / amaxes
    scaled = values * inverses.repeat(128)[: shape[1]]
    assert scaled.dtype == np.float32
    expected = torch.from_numpy(scaled).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(codes, expected)


@pytest.mark.parametrize(
    ("largest", "scale"),
    [
        pytest.param(448.0, 2.0**0, id="an exact power stays"),
        pytest.param(np.nextafter(np.float32(448), np.float32(449)), 2.0**1, id="just above goes up"),
        pytest.param(447.0, 2.0**0, id="below goes up to it"),
        pytest.param(448 * 2.0**-126, 2.0**-126, id="the smallest normal"),
        pytest.param(448 * 2.0**-125, 2.0**-125, id="the next one"),
        pytest.param(3.4028235e38, 2.0**120, id="the largest float32"),
    ],
)
def test_ue8m0_scales_at_their_edges(largest: float, scale: float) -> None:
    """Powers of two are found by bit work, so the edges are exact."""
    _, scales, _, _ = encode(f32([[0, -largest]]), ue8m0=True)
    assert scales.tolist() == [scale]


@pytest.mark.parametrize("ue8m0", [False, True])
def test_a_block_of_zeros_has_scale_one(ue8m0: bool) -> None:
    """Zeros become zeros with the scale 1, and their neighbours are not touched by that."""
    values = random_values((128, 384))
    values[:, 128:256] = 0
    codes, scales, _, _ = encode(values, ue8m0=ue8m0)
    assert scales[1] == 1
    assert not codes[:, 128:256].any()
    assert codes[:, :128].any()
    assert codes[:, 256:].any()


def test_a_block_of_negative_zeros_keeps_their_signs() -> None:
    """-0.0 is stored as -0.0."""
    codes, scales, _, _ = encode(f32([[-0.0, 0.0]]))
    assert (codes.tolist(), scales.tolist()) == ([[0x80, 0]], [1])


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("largest", [5e-36, 4.9e-36, 1e-37, 2.0**-126, 1e-40, 2.0**-149])
def test_blocks_too_small_for_a_normal_scale_use_the_smallest_one(largest: float, ue8m0: bool) -> None:
    """Where amax / 448 is no normal float32 the scale is 2^-126, codes are v / s rounded, and nothing is NaN."""
    values = f32([[largest, -largest, largest / 3, 0]])
    codes, scales, _, nonfinite = encode(values, ue8m0=ue8m0)
    assert scales.tolist() == [2.0**-126]
    scaled = values.astype(np.float64) * 2.0**126
    assert codes.tolist() == scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8).tolist()
    assert nonfinite == 0


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("value", [1.0, -3.7, 1e-20, 1e30, 3.4028235e38, -(2.0**-100)])
def test_a_block_of_one_element_is_stored_closely(value: float, ue8m0: bool) -> None:
    """One value is 448 times its scale, up to a rounding; with powers of two it is within half a step."""
    codes, scales, _, _ = encode(f32([[value]]), ue8m0=ue8m0)
    assert decoded(codes, scales)[0, 0] == pytest.approx(np.float32(value), rel=2**-4 if ue8m0 else 2**-22)
    if not ue8m0:
        assert codes[0, 0] == (0xFE if value < 0 else 0x7E)


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-30, 0.02, 1e30])
def test_the_rounding_sums_give_the_relative_rms(shape: tuple[int, int], size: float, ue8m0: bool) -> None:
    """What is measured while encoding agrees with float64 arithmetic on what was stored."""
    values = random_values(shape, size)
    codes, scales, sums, _ = encode(values, ue8m0=ue8m0)
    exact = values.astype(np.float64)
    off = np.linalg.norm(decoded(codes, scales) - exact) / np.linalg.norm(exact)
    if shape != (1, 1):  # one value is stored to a rounding of the scale
        assert relative_rms(sums) == pytest.approx(off, rel=1e-4)
    assert relative_rms(sums) < 0.05


def test_the_rounding_sums_are_added_to() -> None:
    """Panels of one tensor are measured together: sums grow, they do not start over."""
    first, second = random_values((128, 256), seed=1), random_values((9, 256), 3.0, seed=2)
    sums = np.zeros(2)
    for values in (first, second):
        encode_fp8(values, np.empty(values.shape, np.uint8), np.empty(2, np.float32), sums, is_ue8m0=False)
    assert sums == pytest.approx(encode(first)[2] + encode(second)[2])


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_counted_and_leaves_the_others_right(bad: float, ue8m0: bool) -> None:
    """NaN becomes a NaN code and infinity saturates; every other code and every scale is as if a zero stood there."""
    values = random_values((128, 300))
    values[5, 7] = values[100, 299] = 0
    expected, scales, sums, _ = encode(values, ue8m0=ue8m0)
    values[5, 7] = values[100, 299] = bad
    found, found_scales, found_sums, nonfinite = encode(values, ue8m0=ue8m0)
    assert nonfinite == 2
    assert found_scales.tolist() == scales.tolist()
    assert found_sums == pytest.approx(sums)
    code = 0x7F if np.isnan(bad) else 0x7E if bad > 0 else 0xFE
    assert {found[5, 7] & (0x7F if np.isnan(bad) else 0xFF), found[100, 299] & (0x7F if np.isnan(bad) else 0xFF)} == {
        code
    }
    found[5, 7] = found[100, 299] = expected[5, 7] = expected[100, 299] = 0
    assert np.array_equal(found, expected)


def test_a_block_of_nothing_finite_has_scale_one() -> None:
    """Without a finite value there is nothing to scale by."""
    codes, scales, sums, nonfinite = encode(f32([[np.inf, np.nan]]))
    assert (scales.tolist(), nonfinite, sums.tolist()) == ([1], 2, [0, 0])
    assert codes[0, 0] == 0x7E
    assert codes[0, 1] & 0x7F == 0x7F


def test_decode_e8m0_equals_ml_dtypes() -> None:
    """All 256 exponents are powers of two, 0 the smallest and 255 NaN."""
    found = decode_e8m0(np.arange(256, dtype=np.uint8))
    assert found.dtype == np.float32
    assert found[:255].tolist() == [2.0 ** (code - 127) for code in range(255)]
    assert np.isnan(found[255])


def test_encode_e8m0_equals_ml_dtypes() -> None:
    """Every power of two from 2^-126 on has ml_dtypes' code, and comes back from it."""
    scales = np.exp2(np.arange(-126, 128)).astype(np.float32).reshape(2, -1)
    found = encode_e8m0(scales)
    assert found.tolist() == scales.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8).tolist()
    assert np.array_equal(decode_e8m0(found), scales)
