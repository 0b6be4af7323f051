"""Mixing a panel in one go, against the float32 rule of docs/numerics.md in plain numpy."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.dtypes import FP8_BLOCK, FP8_BLOCK_UE8M0
from chimerakit.numerics import mix as mixing
from chimerakit.numerics.fp8 import encode_fp8
from chimerakit.numerics.mix import SCRATCH, Term, decode_scales, encode, mix, mix_into, relative_rms

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
CHILDREN = [("F32", None), ("F16", None), ("BF16", None), (FP8_BLOCK, "F32"), (FP8_BLOCK_UE8M0, "F8_E8M0")]
STORAGES = ("BF16", "F16", "F32", FP8_BLOCK, FP8_BLOCK_UE8M0)
# Below, at and beyond what kernels take at a time: 16 lanes, blocks of 128, 1024 columns.
SHAPES = [(1, 1), (1, 1000), (7, 129), (128, 128), (3, 1024), (100, 1153), (128, 2176), (1, 5000)]


def random_term(storage: str, shape: tuple[int, int], seed: int, size: float = 0.02) -> Term:
    rng = np.random.default_rng([*shape, seed])
    values = (rng.normal(0, size, shape) * np.exp2(rng.uniform(-3, 3, shape))).astype(np.float32)
    share = np.float32(rng.uniform(-1, 1))
    if storage in DTYPES:
        return Term(storage, share, values.astype(DTYPES[storage]).view(np.uint8))
    dtype = "F32" if storage == FP8_BLOCK else "F8_E8M0"
    encoded = encode(values, storage, dtype, np.zeros(2))
    return Term(storage, share, encoded.data, encoded.scales, dtype)


def summed(terms: list[Term]) -> F32:
    """fl(share * x), or fl(fl(share * scale) * code), added from left to right."""
    parts = []
    for term in terms:
        if term.scales is None:
            parts.append(term.share * term.data.view(DTYPES[term.storage]).astype(np.float32))
        else:
            factors = (term.share * decode_scales(term.scales, term.scale_dtype)).repeat(128)[: term.data.shape[1]]
            parts.append(factors * term.data.view(ml_dtypes.float8_e4m3fn).astype(np.float32))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert total.dtype == np.float32
    return np.asarray(total)


def stored(values: F32, storage: str) -> tuple[U8, F32 | None]:
    """Bytes and scales of finite values by the rule."""
    if storage in DTYPES:
        return values.astype(DTYPES[storage]).view(np.uint8), None
    starts = range(0, values.shape[1], 128)
    amaxes = np.array([np.abs(values[:, k : k + 128]).max() for k in starts], np.float32)
    scales = amaxes / np.float32(448)
    with np.errstate(divide="ignore", over="ignore"):
        inverses = np.float32(448) / amaxes
    if storage == FP8_BLOCK_UE8M0:
        mantissas, exponents = np.frexp(scales)
        scales = np.ldexp(np.float32(1), exponents - (mantissas == 0.5))
        with np.errstate(over="ignore"):
            inverses = 1 / scales
    is_small = (amaxes / np.float32(448) < 2.0**-126) & (amaxes > 0)
    scales[is_small], inverses[is_small] = 2.0**-126, 2.0**126
    scales[amaxes == 0] = inverses[amaxes == 0] = 1
    scaled = values * inverses.repeat(128)[: values.shape[1]]
    assert scaled.dtype == np.float32
    return scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8), scales


def mixed(terms: list[Term], storage: str, dtype: str | None) -> tuple[U8, U8 | None, int, npt.NDArray[np.float64]]:
    shape = summed(terms).shape
    out = np.empty((shape[0], shape[1] * {"F32": 4, "F16": 2, "BF16": 2}.get(storage, 1)), np.uint8)
    sums = np.zeros(2)
    scales, nonfinite = mix_into(terms, (shape[0], shape[1]), storage, dtype, out, sums, np.empty(SCRATCH, np.uint8))
    return out, scales, nonfinite, sums


def check_against_rule(terms: list[Term], storage: str, dtype: str | None) -> None:
    values = summed(terms)
    data, scales, nonfinite, sums = mixed(terms, storage, dtype)
    expected, expected_scales = stored(values, storage)
    assert np.array_equal(data, expected)
    assert nonfinite == 0
    exact = values.astype(np.float64)
    if scales is not None and expected_scales is not None:
        found = decode_scales(scales, dtype)
        assert found.tolist() == expected_scales.tolist()
        back = data.view(ml_dtypes.float8_e4m3fn) * found.astype(np.float64).repeat(128)[: values.shape[1]]
    else:
        back = data.view(DTYPES[storage]).astype(np.float64)
    power = math.fsum(np.square(exact).ravel())
    assert sums[1] == pytest.approx(power, rel=1e-5)
    if values.size > 1:  # the error of a single value is that of its block's scale, which float32 hides
        assert sums[0] == pytest.approx(math.fsum(np.square(back - exact).ravel()), rel=1e-3, abs=1e-12 * power)


@pytest.mark.parametrize(("storage", "dtype"), CHILDREN)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_parents_stored_alike_are_mixed_by_the_rule(
    count: int, shape: tuple[int, int], storage: str, dtype: str | None
) -> None:
    """Bytes and scales are those of plain numpy, for any number of parents and ragged edges."""
    check_against_rule([random_term(storage, shape, seed) for seed in range(count)], storage, dtype)


@given(st.lists(st.sampled_from(STORAGES), min_size=1, max_size=4), st.sampled_from(CHILDREN), st.sampled_from(SHAPES))
def test_parents_stored_in_any_ways_are_mixed_by_the_rule(
    storages: list[str], child: tuple[str, str | None], shape: tuple[int, int]
) -> None:
    """Each term is decoded its own way; the child's is another one still."""
    check_against_rule([random_term(storage, shape, seed) for seed, storage in enumerate(storages)], *child)


@pytest.mark.parametrize(("storage", "dtype"), CHILDREN[3:])
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1e30, 3e36])
def test_blocks_of_any_size_are_mixed_by_the_rule(size: float, storage: str, dtype: str) -> None:
    """Scales at the smallest normal number, and values near the largest; a block of zeros among them."""
    values = np.random.default_rng(1).uniform(-size, size, (128, 384)).astype(np.float32)
    values[:, 128:256] = 0
    terms = [Term("F32", np.float32(share), values.view(np.uint8)) for share in (0.75, 0.25)]
    data, scales, nonfinite, _ = mixed(terms, storage, dtype)
    expected, expected_scales = stored(summed(terms), storage)
    assert scales is not None
    assert expected_scales is not None
    assert np.array_equal(data, expected)
    assert decode_scales(scales, dtype).tolist() == expected_scales.tolist()
    assert nonfinite == 0


@pytest.mark.parametrize("scale", [2.0**-149, 1e-40, 2.0**110, 2.0**118, 2.0**119])
def test_scales_of_any_size_decode_by_the_rule(scale: float) -> None:
    """Subnormal ones, and those at which the kernel's own factor would overflow."""
    codes = np.arange(256, dtype=np.uint8)
    codes = codes[(codes & 0x7F) != 0x7F][None, :128]
    term = Term(FP8_BLOCK, np.float32(0.7), codes.copy(), np.array([scale], np.float32).view(np.uint8), "F32")
    assert np.array_equal(mix([term], (1, 128)).view(np.uint32), summed([term]).view(np.uint32))


@pytest.mark.parametrize(("storage", "dtype"), CHILDREN)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (99, 1152)])
def test_values_that_are_not_finite_cost_only_themselves(
    place: tuple[int, int], bad: float, storage: str, dtype: str | None
) -> None:
    """Each is counted, and the other bytes are as if a zero stood there, in the ragged edge too."""
    values = random_term("F32", (100, 1153), 0).data.view(np.float32).copy()
    values[place] = 0
    good = [Term("F32", np.float32(0.5), values.view(np.uint8))] * 2
    expected, scales, _, sums = mixed(good, storage, dtype)
    values = values.copy()
    values[place] = bad
    worse = [Term("F32", np.float32(0.5), values.view(np.uint8)), good[1]]
    found, found_scales, nonfinite, found_sums = mixed(worse, storage, dtype)
    assert nonfinite == 1
    assert (found_scales is None and scales is None) or np.array_equal(found_scales, scales)  # type: ignore[arg-type]
    assert found_sums == pytest.approx(sums)
    width = found.shape[1] // 1153
    at = np.arange(width) + place[1] * width
    assert not np.array_equal(found[place[0], at], expected[place[0], at])
    found[place[0], at] = expected[place[0], at]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("storage", ["BF16", FP8_BLOCK])
def test_a_nan_code_of_a_parent_is_a_nan_of_the_child(storage: str) -> None:
    """Codes 0x7f and 0xff are no numbers, wherever they stand."""
    term = random_term(FP8_BLOCK, (128, 300), 0)
    for place, code in (((0, 0), 0x7F), ((127, 299), 0xFF)):
        data = term.data.copy()
        data[place] = code
        found, _, nonfinite, _ = mixed(
            [term._replace(data=data), term], storage, "F32" if storage == FP8_BLOCK else None
        )
        dtype = DTYPES.get(storage, ml_dtypes.float8_e4m3fn)
        assert nonfinite == 1
        assert np.argwhere(np.isnan(found.view(dtype).astype(np.float32))).tolist() == [list(place)]


@pytest.mark.parametrize("is_ue8m0", [False, True])
@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_numbers_take_the_same_bits_as_anything(shape: tuple[int, int], is_ue8m0: bool) -> None:
    """The kernel for numbers and the one for anything agree on codes, scales and sums, to the last bit of the sums."""
    values = summed([random_term("F32", shape, 0)])
    codes, scales, sums = np.empty(shape, np.uint8), np.empty(-(-shape[1] // 128), np.float32), np.zeros(2)
    encode_fp8(values, codes, scales, sums, is_ue8m0=is_ue8m0)
    found_sums = np.zeros(2)
    found = encode(values, FP8_BLOCK_UE8M0 if is_ue8m0 else FP8_BLOCK, "F32", found_sums)
    assert found.scales is not None
    assert np.array_equal(found.data, codes)
    assert np.array_equal(found.scales.view(np.float32), scales)
    assert found_sums.tolist() == sums.tolist()


@pytest.mark.parametrize("width", [128, 512, 1024, 1536, 2048])
def test_narrower_panels_of_blocks_sum_to_the_same_digits(width: int) -> None:
    """Panels side by side add to the sums in the order in which a wide one does."""
    whole = [random_term(FP8_BLOCK, (128, 2300), seed) for seed in range(2)]
    expected = mixed(whole, FP8_BLOCK, "F32")[3]
    sums = np.zeros(2)
    for col in range(0, 2300, width):
        terms = []
        for term in whole:
            assert term.scales is not None
            data = np.ascontiguousarray(term.data[:, col : col + width])
            terms.append(term._replace(data=data, scales=term.scales[col // 32 : -(-(col + data.shape[1]) // 128) * 4]))
        out = np.empty_like(terms[0].data)
        mix_into(terms, (128, out.shape[1]), FP8_BLOCK, "F32", out, sums, np.empty(SCRATCH, np.uint8))
    assert sums.tolist() == expected.tolist()


@pytest.mark.parametrize("storage", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("size", [1e-22, 1e-9, 0.02, 1e4])
def test_the_rounding_error_has_six_digits_at_any_size(size: float, storage: str) -> None:
    """Also of values whose squares are no float32, or too small a one."""
    values = np.random.default_rng(2).normal(0, size, (1, 4000)).astype(np.float32)
    sums = np.zeros(2)
    data = encode(values, storage, None, sums).data
    exact = values.astype(np.float64)
    off = data.view(DTYPES[storage]).astype(np.float64) - exact
    expected = math.sqrt(math.fsum(np.square(off[0])) / math.fsum(np.square(exact[0])))
    assert relative_rms(sums) == pytest.approx(expected, rel=2e-6)


def test_panels_that_are_not_in_one_piece_are_refused() -> None:
    """Kernels go by addresses; rows that lie apart would be read as if they did not."""
    apart = np.zeros((4, 512), np.uint8)[:, :256]
    whole = np.zeros((4, 256), np.uint8)
    with pytest.raises(ValueError, match="go by addresses"):
        mix([Term("BF16", np.float32(1), apart)], (4, 128))
    with pytest.raises(ValueError, match="go by addresses"):
        mix_into(
            [Term("BF16", np.float32(1), whole)],
            (4, 128),
            "BF16",
            None,
            apart,
            np.zeros(2),
            np.empty(SCRATCH, np.uint8),
        )
    with pytest.raises(ValueError, match=r"\(4, 256\) bytes for \(4, 127\) weights"):
        mix_into(
            [Term("BF16", np.float32(1), whole)],
            (4, 127),
            "BF16",
            None,
            whole,
            np.zeros(2),
            np.empty(SCRATCH, np.uint8),
        )


def test_numbers_never_take_the_way_for_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow code is for what is not finite only, so it must not be what the tests above have tested."""

    def refuse(*_: object) -> F32:
        raise AssertionError("the slow way was taken")

    monkeypatch.setattr(mixing, "_mix_anything", refuse)
    for storage, dtype in CHILDREN:
        mixed([random_term(storage, (7, 129), seed) for seed in range(2)], storage, dtype)
