"""How far values lie apart, against numpy's allclose, float64 least squares, exact sums, and casts of ml_dtypes."""

import math
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from chimerakit.dtypes import FP8_BLOCK, FP8_BLOCK_UE8M0
from chimerakit.numerics.compare import (
    DECODING,
    ROUNDING,
    Differences,
    add_products,
    are_close,
    are_stored_as,
    codes,
    fit_shares,
    is_finite,
    unlike_bytes,
)
from chimerakit.numerics.mix import Encoded, Term, encode, mix

F32 = npt.NDArray[np.float32]
SPECIAL: list[float] = [0.0, -0.0, 1.0, 1 + 1e-5, 1 + 3e-5, 1e-5, 2.1e-5, 3e38, -3e38, np.inf, -np.inf, np.nan]
STORAGES = [("BF16", None), ("F16", None), ("F32", None), (FP8_BLOCK, "F32"), (FP8_BLOCK_UE8M0, "F8_E8M0")]


def f32(values: npt.ArrayLike) -> F32:
    return np.array(values, np.float32)


def as_term(encoded: Encoded, storage: str, scale_dtype: str | None) -> Term:
    return Term(storage, np.float32(1), encoded.data, encoded.scales, scale_dtype)


def products_of(child: F32, parents: list[F32], *, panels: int = 1) -> npt.NDArray[np.float64]:
    products = np.zeros((len(parents) + 1, len(parents) + 1))
    for panel in np.array_split(np.arange(len(child)), panels):
        add_products(products, child[panel], [parent[panel] for parent in parents])
    return products


@pytest.mark.parametrize("a", SPECIAL)
@pytest.mark.parametrize("b", SPECIAL)
def test_close_is_numpys_allclose(a: float, b: float) -> None:
    """Single values of every kind, NaN and infinity too, are close where numpy says so, and no comparison warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = are_close(f32([a]), f32([b]))
    with np.errstate(all="ignore"):
        assert found == np.allclose(f32([a]), f32([b]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", [0, 1, 16_383, 16_384, 49_999])
def test_one_value_that_is_far_is_found_wherever_it_stands(place: int) -> None:
    """Among many that are close."""
    a = np.random.default_rng(3).normal(size=(2, 25_000)).astype(np.float32)
    b = a * np.float32(1 + 1e-6)
    assert are_close(a, b)
    b.reshape(-1)[place] += 1e-3
    assert not are_close(a, b)


def test_only_like_shapes_are_compared() -> None:
    """Nothing is broadcast, and nothing is read beyond an end."""
    with pytest.raises(ValueError, match=r"\(2, 3\) against \(3, 2\)"):
        are_close(np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"\(6,\) against \(5,\)"):
        Differences().add(np.zeros(6, np.float32), np.zeros(5, np.float32))


def differences(a: F32, b: F32, cuts: list[int]) -> Differences:
    found = Differences()
    for x, y in zip(np.split(a, cuts), np.split(b, cuts), strict=True):
        found.add(x, y)
    return found


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 1000, 4099])
def test_differences_are_those_of_exact_sums(count: int, size: float) -> None:
    """Sums of float64 agree with math.fsum to 1e-12 of what is added up; the largest and the counts are exact."""
    rng = np.random.default_rng(count)
    a, b = (rng.normal(0, size, count).astype(np.float32) for _ in range(2))
    b[::3] = a[::3]
    found = differences(a, b, [])
    x, y = a.astype(float), b.astype(float)
    assert found.squared_difference == pytest.approx(math.fsum((x - y) ** 2), rel=1e-12)
    assert found.inner_product == pytest.approx(math.fsum(x * y), abs=1e-12 * math.fsum(abs(x * y)))
    assert found.squared_norms == pytest.approx((math.fsum(x * x), math.fsum(y * y)), rel=1e-12)
    assert found.largest == abs(x - y).max(initial=0)
    assert (found.num_values, found.num_unlike) == (count, int(np.count_nonzero(a != b)))
    assert found.num_nonfinite == 0


@pytest.mark.parametrize("cuts", [[1], [16, 17], [100, 101, 117, 900], list(range(1, 1000, 7))])
def test_differences_do_not_depend_on_how_values_are_cut(cuts: list[int]) -> None:
    """Not in the last digit: each value goes to the sum of its place."""
    rng = np.random.default_rng(4)
    a, b = (rng.normal(size=1000).astype(np.float32) for _ in range(2))
    b[5] = np.nan
    whole, parts = differences(a, b, []), differences(a, b, cuts)
    for name in ("squared_difference", "inner_product", "squared_norms", "largest", "num_unlike", "num_nonfinite"):
        assert getattr(whole, name) == getattr(parts, name), name


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_pairs_that_are_not_finite_are_counted_and_left_out(side: int, bad: float) -> None:
    """On either side, wherever they stand; zeros of either sign are alike."""
    pair = [np.arange(40, dtype=np.float32), np.arange(40, dtype=np.float32) + 2]
    pair[1][0], pair[0][0] = 0.0, -0.0
    pair[side][[3, 37]] = bad
    found = differences(pair[0], pair[1], [])
    assert (found.num_values, found.num_nonfinite, found.num_unlike) == (40, 2, 37)
    assert (found.squared_difference, found.largest) == (4 * 37, 2)


FIGURES = (
    "squared_difference",
    "inner_product",
    "squared_norms",
    "largest",
    "num_values",
    "num_unlike",
    "num_nonfinite",
)


def stored_terms(seed: int, storage: str, scale_dtype: str | None, shape: tuple[int, int]) -> Term:
    """A panel as it is stored; every fourth number is the same for all seeds."""
    values = np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)
    values[:, ::4] = np.random.default_rng(9).normal(0, 0.02, shape).astype(np.float32)[:, ::4]
    if scale_dtype is None:
        return as_term(encode(values, storage, None, np.zeros(2)), storage, None)
    rows = [encode(values[row : row + 128], storage, scale_dtype, np.zeros(2)) for row in range(0, shape[0], 128)]
    scales = np.concatenate([row.scales for row in rows if row.scales is not None])
    return Term(storage, np.float32(1), np.concatenate([row.data for row in rows]), scales, scale_dtype)


def check_as_decoded(a: Term, b: Term, shape: tuple[int, int]) -> None:
    """Sums over a stored panel, added in two halves by rows of blocks, are those over decoded values."""
    stored, plain = Differences(), Differences()
    for _ in range(2):
        stored.add_stored(a, b, shape, np.empty(DECODING, np.uint8))
        plain.add(mix([a], shape), mix([b], shape))
    assert [getattr(stored, name) for name in FIGURES] == [getattr(plain, name) for name in FIGURES]


@pytest.mark.parametrize("shape", [(1, 128), (300, 1280), (128, 2176), (130, 200), (1, 1000), (3, 5)])
@pytest.mark.parametrize("second", STORAGES)
@pytest.mark.parametrize("first", STORAGES)
def test_stored_panels_differ_as_their_values_do(
    first: tuple[str, str | None], second: tuple[str, str | None], shape: tuple[int, int]
) -> None:
    """To the last bit, in any two storages, with whole and ragged blocks, above and below what is decoded at a time."""
    check_as_decoded(stored_terms(1, *first, shape), stored_terms(2, *second, shape), shape)


def test_stored_panels_go_on_where_the_last_one_ended() -> None:
    """Behind a panel that ends in the middle of a row of sums, too."""
    stored, plain = Differences(), Differences()
    for shape in ((3, 5), (2, 256), (1, 1)):
        a, b = (stored_terms(seed, "BF16", None, shape) for seed in (1, 2))
        stored.add_stored(a, b, shape, np.empty(DECODING, np.uint8))
        plain.add(mix([a], shape), mix([b], shape))
    assert [getattr(stored, name) for name in FIGURES] == [getattr(plain, name) for name in FIGURES]
    assert (stored._sums == plain._sums).all()


@pytest.mark.parametrize(("storage", "scale_dtype"), STORAGES)
def test_a_panel_against_itself_is_decoded_once(storage: str, scale_dtype: str | None) -> None:
    """With the sums of two equal ones: norms, and no difference."""
    term = stored_terms(1, storage, scale_dtype, (256, 1024))
    check_as_decoded(term, term, (256, 1024))
    found, twin = Differences(), Differences()
    found.add_stored(term, term, (256, 1024), np.empty(DECODING, np.uint8))
    twin.add_stored(term, term._replace(data=term.data.copy()), (256, 1024), np.empty(DECODING, np.uint8))
    assert [getattr(found, name) for name in FIGURES] == [getattr(twin, name) for name in FIGURES]
    assert (found.squared_difference, found.num_unlike) == (0, 0)


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_stored_nans_are_pairs_that_are_not_finite(code: int) -> None:
    """NaN codes of FP8, also behind thousands of numbers that were added already: nothing counts twice."""
    shape = (256, 1024)
    a, b = (stored_terms(seed, FP8_BLOCK, "F32", shape) for seed in (1, 2))
    a.data[200, 77] = code
    check_as_decoded(a, b, shape)
    found = Differences()
    found.add_stored(a, b, shape, np.empty(DECODING, np.uint8))
    assert (found.num_values, found.num_nonfinite) == (256 * 1024, 1)


def test_shares_do_not_change_what_is_stored() -> None:
    """A term's share is for mixing."""
    shape = (4, 256)
    a, b = (stored_terms(seed, "BF16", None, shape) for seed in (1, 2))
    found, halved = Differences(), Differences()
    found.add_stored(a, b, shape, np.empty(DECODING, np.uint8))
    halved.add_stored(a, b._replace(share=np.float32(0.5)), shape, np.empty(DECODING, np.uint8))
    assert halved.squared_difference == found.squared_difference


def test_stored_panels_that_do_not_fit_are_refused() -> None:
    """Compiled loops check no bounds."""
    a, scratch = stored_terms(1, FP8_BLOCK, "F32", (128, 256)), np.empty(DECODING, np.uint8)
    with pytest.raises(ValueError, match=r"\(128, 256\) bytes for \(128, 384\) weights"):
        Differences().add_stored(a, a, (128, 384), scratch)
    wrong = a._replace(scales=np.ones(4, np.float32).view(np.uint8))
    with pytest.raises(ValueError, match="4 scales for"):
        Differences().add_stored(wrong, a, (128, 256), scratch)
    with pytest.raises(ValueError, match="scales for FP8, and for nothing else"):
        Differences().add_stored(a._replace(scales=None), a, (128, 256), scratch)
    with pytest.raises(ValueError, match="scratch"):
        Differences().add_stored(a, a, (128, 256), scratch[:1000])


@pytest.mark.parametrize("count", [0, 1, 100, 16_385])
def test_unlike_bytes_are_counted(count: int) -> None:
    """In numbers and scales, as numpy counts them."""
    rng = np.random.default_rng(count)
    x, y = (rng.integers(0, 3, (1, count), np.uint8) for _ in range(2))
    scales = [rng.integers(0, 3, 8, np.uint8) for _ in range(2)]
    a, b = (Term(FP8_BLOCK, np.float32(1), d, s, "F32") for d, s in zip((x, y), scales, strict=True))
    assert unlike_bytes(a, b) == np.count_nonzero(x != y) + np.count_nonzero(scales[0] != scales[1])


def test_bytes_of_other_storages_have_nothing_in_common() -> None:
    """Not even where there are as many of them; other kinds of FP8 scales with the same dtype are the same storage."""
    data, one = np.zeros((1, 4), np.uint8), np.float32(1)
    assert unlike_bytes(Term("BF16", one, data), Term("F16", one, data)) is None
    wide, narrow = Term(FP8_BLOCK, one, data, data[0], "F32"), Term(FP8_BLOCK_UE8M0, one, data, data[0][:1], "F8_E8M0")
    assert unlike_bytes(wide, narrow) is None
    assert unlike_bytes(wide, wide._replace(storage=FP8_BLOCK_UE8M0)) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_not_finite(bad: float) -> None:
    """One such value among others is enough."""
    assert is_finite(f32([1, -3e38, 0, 2]))
    assert not is_finite(f32([1, bad, 0, 2]))


def test_codes_are_the_stored_numbers() -> None:
    """Bytes read as their dtype, here by literal bytes."""
    assert codes(np.array([[0x38, 0xB8, 0x7E]], np.uint8), "F8_E4M3").tolist() == [[1, -1, 448]]
    assert codes(np.array([[0x80, 0x3F, 0x00, 0xC0]], np.uint8), "BF16").tolist() == [[1, -2]]


@pytest.mark.parametrize("panels", [1, 7])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_shares_are_those_of_least_squares(count: int, panels: int) -> None:
    """Shares and what is left agree with numpy's least squares on all values at once, however they are cut."""
    rng = np.random.default_rng(count)
    parents = [rng.normal(size=1000).astype(np.float32) for _ in range(count)]
    child = (rng.normal(size=1000) + np.sum(parents, 0)).astype(np.float32)
    shares, left = fit_shares(products_of(child, parents, panels=panels))
    columns = np.stack([parent.astype(float) - parents[0] for parent in parents[1:]], 1)
    expected, (power,), _, _ = np.linalg.lstsq(columns, child.astype(float) - parents[0], rcond=None)
    assert shares == pytest.approx([1 - expected.sum(), *expected])
    assert left == pytest.approx(np.sqrt(power / np.square(child.astype(float)).sum()))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [(0, 0), (0, 1), (2, 2)])
def test_products_that_are_not_finite_leave_infinitely_much(bad: float, where: tuple[int, int]) -> None:
    """NaN never looks like a perfect fit."""
    products = products_of(f32([1, 2]), [f32([1, 0]), f32([0, 1])])
    products[where] = bad
    shares, left = fit_shares(products)
    assert np.isnan(shares).all()
    assert len(shares) == 2
    assert left == np.inf


def test_one_parent_leaves_how_far_it_is() -> None:
    """There is nothing to fit: the share is 1, and what is left is the distance."""
    shares, left = fit_shares(products_of(f32([3, 4]), [f32([3, 1])]))
    assert (shares, left) == ([1.0], 3 / 5)


def test_a_child_of_zeros_is_no_mix_of_others() -> None:
    """There is nothing to compare with, so anything left is infinitely much; a mix of zeros leaves nothing."""
    nothing = f32([0, 0, 0])
    assert fit_shares(products_of(nothing, [f32([1, 2, 3]), f32([3, 1, 1])]))[1] == np.inf
    assert fit_shares(products_of(nothing, [nothing, nothing]))[1] == 0


WORST: dict[str, Any] = {
    "spread": lambda rng, _: rng.normal(size=(128, 256)),
    "just above powers of two": lambda rng, bits: np.exp2(rng.integers(-4, 1, (128, 256))) * (1 + 2.0 ** -(bits + 1)),
    "half a step": lambda rng, bits: 1 + (2 * rng.integers(0, 2, (128, 256)) + 1) * 2.0 ** -(bits + 1),
    "of all sizes": lambda rng, _: np.exp2(rng.uniform(-10, 0, (128, 256))),
}


@pytest.mark.parametrize("kind", WORST)
@pytest.mark.parametrize(("storage", "scale_dtype"), STORAGES)
def test_rounding_never_costs_more_than_is_allowed(storage: str, scale_dtype: str | None, kind: str) -> None:
    """The RMS error of storing values, relative to what is stored, is within ROUNDING, also at the worst places."""
    bits = {"BF16": 7, "F16": 10, "F32": 23}.get(storage, 3)
    values = WORST[kind](np.random.default_rng(5), bits).astype(np.float32)
    values[:, ::128] = 448 / 256  # the same scale for every block, a power of two: worst places stay where they are
    encoded = encode(values, storage, scale_dtype, np.zeros(2))
    stored = mix([as_term(encoded, storage, scale_dtype)], values.shape).astype(float)
    cost = np.sqrt(np.square(stored - values).sum() / np.square(stored).sum())
    assert cost <= ROUNDING[storage]
    if kind == "half a step" and storage != "F32":
        assert cost > ROUNDING[storage] / 2, "this place is not bad enough to test anything"


@pytest.mark.parametrize(("storage", "scale_dtype"), STORAGES)
def test_stored_as_is_about_every_byte(storage: str, scale_dtype: str | None) -> None:
    """Values are stored as their own encoding, and not as one with another number or another scale."""
    values = np.random.default_rng(6).normal(size=(128, 300)).astype(np.float32)
    encoded = encode(values, storage, scale_dtype, np.zeros(2))
    assert are_stored_as(values, as_term(encoded, storage, scale_dtype))
    for number, array in enumerate((encoded.data, encoded.scales)):
        if array is not None:
            changed = array.copy()
            changed.reshape(-1)[-1] ^= 1
            other = encoded._replace(scales=changed) if number else encoded._replace(data=changed)
            assert not are_stored_as(values, as_term(other, storage, scale_dtype))


def test_stored_as_agrees_with_casts() -> None:
    """bfloat16 bytes are those that ml_dtypes casts to."""
    values = np.random.default_rng(7).normal(size=(5, 77)).astype(np.float32)
    data = values.astype(ml_dtypes.bfloat16).view(np.uint8)
    assert are_stored_as(values, Term("BF16", np.float32(1), data, None))
