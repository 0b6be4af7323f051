"""How far values lie apart, against numpy's allclose, float64 least squares, and casts of ml_dtypes."""

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from chimerakit.dtypes import FP8_BLOCK, FP8_BLOCK_UE8M0
from chimerakit.numerics.compare import ROUNDING, add_products, are_close, are_stored_as, codes, fit_shares, is_finite
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
