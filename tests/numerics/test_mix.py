"""The weighted sum and its encoding, against the same rule written in plain numpy and torch."""

import itertools

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch

from chimerakit.dtypes import FP8_BLOCK, FP8_BLOCK_UE8M0
from chimerakit.numerics.mix import Term, decode_scales, encode, mix, relative_rms

pytestmark = pytest.mark.usefixtures("one_thread")

F32 = npt.NDArray[np.float32]
STORAGES = ("F32", "F16", "BF16", FP8_BLOCK, FP8_BLOCK_UE8M0)
PLAIN = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
SHARES = (np.float32(0.25), np.float32(0.7), np.float32(-0.3))


def f32(values: npt.ArrayLike) -> F32:
    return np.array(values, np.float32)


def term_of(storage: str, shape: tuple[int, int], share: np.float32, seed: int) -> tuple[Term, F32]:
    """A random panel as stored, and share * value by the rule."""
    rng = np.random.default_rng([*shape, seed])
    weights = rng.normal(size=shape).astype(np.float32)
    if storage in PLAIN:
        data = weights.astype(PLAIN[storage])
        return Term(storage, share, data.view(np.uint8).reshape(shape[0], -1), None), share * data.astype(np.float32)
    codes = weights.astype(ml_dtypes.float8_e4m3fn)
    scales = np.exp2(rng.integers(-12, 3, -(-shape[1] // 128))).astype(np.float32)
    stored = scales.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    if storage == FP8_BLOCK:
        scales = (scales * np.float32(1.37)).astype(np.float32)
        stored = scales.view(np.uint8)
    factors = share * scales
    by_rule = factors.repeat(128)[: shape[1]] * codes.astype(np.float32)
    assert by_rule.dtype == np.float32
    dtype = "F32" if storage == FP8_BLOCK else "F8_E8M0"
    return Term(storage, share, codes.view(np.uint8), stored, dtype), by_rule


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (5, 300), (128, 129), (1, 70_000)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_mix_is_the_sum_of_the_terms_rounded_after_each_step(count: int, shape: tuple[int, int]) -> None:
    """Every combination of storages gives the bits of fl(share * x), added from left to right without FMA."""
    for storages in itertools.islice(itertools.product(STORAGES, repeat=count), 0, None, 7 if shape[1] > 300 else 1):
        made = [term_of(s, shape, SHARES[i], seed=i) for i, s in enumerate(storages)]
        expected = made[0][1]
        for _, by_rule in made[1:]:
            expected = expected + by_rule
        found = mix([term for term, _ in made], shape)
        assert np.array_equal(found.view(np.uint32), expected.view(np.uint32)), storages


def test_a_mix_is_not_contracted() -> None:
    """a*b + c*d differs from fused multiply-add for these values, and the unfused sum is what comes out."""
    x, y = f32([[1 + 2**-12]]), f32([[-1 - 2**-11]])
    share = np.float32(1 + 2**-12)
    terms = [Term("F32", np.float32(1), y.view(np.uint8), None), Term("F32", share, x.view(np.uint8), None)]
    assert mix(terms, (1, 1))[0, 0] == 0  # fused: 2^-24


def test_a_share_of_one_leaves_values_as_they_are() -> None:
    """One term with the share 1 decodes: BF16 bits of every kind are the upper halves of the result."""
    halves = np.arange(1 << 16, dtype=np.uint16)
    halves = halves[~np.isnan(halves.view(ml_dtypes.bfloat16).astype(np.float32))].reshape(1, -1)
    found = mix([Term("BF16", np.float32(1), halves.view(np.uint8), None)], halves.shape)
    assert np.array_equal(found.view(np.uint32), halves.astype(np.uint32) << 16)


def test_scales_are_read_as_floats_or_as_exponents() -> None:
    """Their dtype says which, never their number: four bytes of exponents are four scales, not one float32."""
    scales = f32([0.5, 2])
    assert decode_scales(scales.view(np.uint8), "F32").tolist() == [0.5, 2]
    assert decode_scales(np.array([126, 128, 127, 129], np.uint8), "F8_E8M0").tolist() == [0.5, 2, 1, 4]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_scales_that_do_not_cover_the_panel_are_refused(count: int) -> None:
    """Columns without a scale would be memory that nobody wrote; two blocks need two scales."""
    codes, scales = np.zeros((2, 129), np.uint8), np.ones(count, np.float32)
    term = Term(FP8_BLOCK, np.float32(1), codes, scales.view(np.uint8), "F32")
    with pytest.raises(ValueError, match=r"scales for 129 columns"):
        mix([term], (2, 129))


@pytest.mark.parametrize("shape", [(2, 3), (1, 4), (3, 2)])
def test_data_that_does_not_cover_the_panel_is_refused(shape: tuple[int, int]) -> None:
    """Compiled loops check no bounds, so the shape of the bytes has to be that of the panel."""
    with pytest.raises(ValueError, match=r"bytes for \(2, 2\) weights"):
        mix([Term("F32", np.float32(1), np.zeros(shape, np.float32).view(np.uint8), None)], (2, 2))


@pytest.mark.parametrize(
    ("storage", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)]
)
def test_plain_storages_are_encoded_as_torch_casts(storage: str, dtype: torch.dtype) -> None:
    """BF16, F16 and F32 bytes are those of torch's cast, for values of every size."""
    rng = np.random.default_rng(7)
    values = (np.exp2(rng.uniform(-30, 15, (33, 77))) * rng.choice([-1, 1], (33, 77))).astype(np.float32)
    encoded = encode(values, storage, None, np.zeros(2))
    expected = torch.from_numpy(values).to(dtype).view(torch.uint8).numpy()
    assert np.array_equal(encoded.data, expected)
    assert (encoded.scales, encoded.nonfinite) == (None, 0)


@pytest.mark.parametrize(
    ("storage", "scale_dtype", "nbytes"),
    [(FP8_BLOCK, "F32", 12), (FP8_BLOCK_UE8M0, "F32", 12), (FP8_BLOCK_UE8M0, "F8_E8M0", 3)],
)
def test_fp8_scales_are_stored_as_the_base_stores_them(storage: str, scale_dtype: str, nbytes: int) -> None:
    """Four bytes for a float32 scale, one for an exponent, in both ways the same numbers."""
    values = np.random.default_rng(8).normal(size=(128, 300)).astype(np.float32)
    encoded = encode(values, storage, scale_dtype, np.zeros(2))
    assert encoded.scales is not None
    assert encoded.scales.nbytes == nbytes
    scales = decode_scales(encoded.scales, scale_dtype)
    amaxes = f32([np.abs(values[:, k : k + 128]).max() / np.float32(448) for k in (0, 128, 256)])
    assert scales.tolist() == (amaxes if storage == FP8_BLOCK else np.exp2(np.ceil(np.log2(amaxes)))).tolist()


@pytest.mark.parametrize("storage", ["BF16", "F16", FP8_BLOCK])
def test_the_rounding_error_is_measured(storage: str) -> None:
    """relative_rms of the sums agrees with float64 arithmetic on the stored values; F32 loses nothing."""
    values = np.random.default_rng(9).normal(size=(128, 300)).astype(np.float32)
    sums, exact = np.zeros(2), values.astype(np.float64)
    encoded = encode(values, storage, "F32" if storage == FP8_BLOCK else None, sums)
    if storage == FP8_BLOCK:
        assert encoded.scales is not None
        scales = decode_scales(encoded.scales, "F32").astype(np.float64).repeat(128)[:300]
        back = encoded.data.view(ml_dtypes.float8_e4m3fn).astype(np.float64) * scales
    else:
        back = encoded.data.view(PLAIN[storage]).astype(np.float64)
    expected = np.linalg.norm(back - exact) / np.linalg.norm(exact)
    assert expected > 1e-4
    assert relative_rms(sums) == pytest.approx(expected, rel=1e-4)


def test_f32_is_stored_without_error() -> None:
    """Nothing is rounded, so the relative RMS is 0."""
    sums = np.zeros(2)
    values = np.random.default_rng(10).normal(size=(3, 5)).astype(np.float32)
    assert encode(values, "F32", None, sums).data.tobytes() == values.tobytes()
    assert relative_rms(sums) == 0
    assert sums[1] == pytest.approx(np.square(values, dtype=np.float64).sum())


def test_the_relative_rms_of_nothing_is_zero() -> None:
    """A tensor of zeros has no error."""
    assert relative_rms(np.zeros(2)) == 0.0


@pytest.mark.parametrize("storage", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_not_measured(storage: str, bad: float) -> None:
    """NaN and infinity are stored as such, counted, and left out of the error."""
    values = np.random.default_rng(11).normal(size=(4, 9)).astype(np.float32)
    values[2, 3] = 0
    expected = np.zeros(2)
    encode(values, storage, None, expected)
    values[2, 3] = bad
    sums = np.zeros(2)
    encoded = encode(values, storage, None, sums)
    back = encoded.data.view(PLAIN[storage]).astype(np.float32)
    assert encoded.nonfinite == 1
    assert sums == pytest.approx(expected)
    assert np.array_equal(back[2, 3], np.float32(bad), equal_nan=True)


@pytest.mark.parametrize(("storage", "too_large"), [("F16", 65520.0), ("BF16", 3.4e38)])
def test_values_beyond_a_storage_count_as_not_finite(storage: str, too_large: float) -> None:
    """What rounds to infinity is counted, for the caller to refuse; what rounds to the largest number is not."""
    largest = {"F16": 65519.0, "BF16": 3.39e38}[storage]
    assert encode(f32([[too_large, -too_large, 1]]), storage, None, np.zeros(2)).nonfinite == 2
    assert encode(f32([[largest, -largest, 1]]), storage, None, np.zeros(2)).nonfinite == 0
