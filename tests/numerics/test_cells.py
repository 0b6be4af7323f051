"""Which shares give stored numbers: cells against encoders, and shares found again from what was made with them."""

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.dtypes import FP8_BLOCK, FP8_BLOCK_UE8M0
from chimerakit.numerics.cells import Clues, cells, first_of_blocks, unlike_places
from chimerakit.numerics.mix import Term, encode, mix

F32 = npt.NDArray[np.float32]
STORAGES = ("BF16", "F16", "F32", FP8_BLOCK, FP8_BLOCK_UE8M0)
SHAPE = (130, 200)
EVERYWHERE = np.arange(SHAPE[0] * SHAPE[1])


def stored(values: F32, storage: str) -> Term:
    """Rows of values as a parent or a child stores them."""
    scale_dtype = {FP8_BLOCK: "F32", FP8_BLOCK_UE8M0: "F8_E8M0"}.get(storage)
    parts = [encode(values[row : row + 128], storage, scale_dtype, np.zeros(2)) for row in range(0, len(values), 128)]
    scales = None
    if scale_dtype is not None:
        scales = np.stack([part.scales for part in parts if part.scales is not None])
    return Term(storage, np.float32(1), np.concatenate([part.data for part in parts]), scales, scale_dtype)


def family(storage: str, apart: float, count: int) -> list[Term]:
    """Parents that differ from the first by so much, relative to their size."""
    rng = np.random.default_rng(5)
    first = rng.normal(size=SHAPE) * 0.02
    others = [first + rng.normal(size=SHAPE) * 0.02 * apart for _ in range(count - 1)]
    return [stored(values.astype(np.float32), storage) for values in (first, *others)]


def child_of(parents: list[Term], shares: list[float], storage: str) -> Term:
    """The sum of parents, stored."""
    terms = [p._replace(share=np.float32(share)) for p, share in zip(parents, shares, strict=True)]
    return stored(mix(terms, SHAPE), storage)


def clues_of(child: Term, parents: list[Term], where: npt.NDArray[np.int64] = EVERYWHERE) -> Clues:
    """What some numbers of a child say."""
    clues = Clues(len(parents))
    clues.add(child, [mix([parent], SHAPE) for parent in parents], where)
    return clues


@pytest.mark.parametrize("storage", ["BF16", "F16"])
def test_a_cell_is_what_is_stored_as_its_number(storage: str) -> None:
    """For every finite 16-bit number: the middle of its cell is stored as it, and what lies just outside is not."""
    dtype = np.dtype(np.float16 if storage == "F16" else ml_dtypes.bfloat16)
    numbers = np.arange(1 << 16, dtype=np.uint16)
    infinity = 0x7C00 if storage == "F16" else 0x7F80
    finite = np.flatnonzero(((numbers & 0x7FFF) < infinity) & ((numbers & 0x7FFF) != 0))
    low, high = cells(Term(storage, np.float32(1), numbers.view(np.uint8)[None]), finite)
    width = high - low
    for values, is_inside in (
        ((low + high) / 2, True),
        (low + width / 64, True),
        (high - width / 64, True),
        (low - width / 64, False),
        (high + width / 64, False),
    ):
        with np.errstate(over="ignore", under="ignore"):
            again = values.astype(np.float32).astype(dtype).view(np.uint16)
        # The smallest numbers' edges are no float32 with so many digits.
        told = np.abs(values) > 2.0**-120 if storage == "BF16" else np.ones(len(values), bool)
        assert ((again == numbers[finite]) == is_inside)[told].all()


@pytest.mark.parametrize("storage", STORAGES)
def test_values_lie_in_the_cells_that_they_are_stored_in(storage: str) -> None:
    """Whatever is encoded lies in the cell of its code, up to what float32 loses."""
    values = (np.random.default_rng(1).normal(size=SHAPE) * 3).astype(np.float32)
    low, high = cells(stored(values, storage), EVERYWHERE)
    slack = np.abs(values.ravel()) * 2.0**-21
    assert (low - slack <= values.ravel()).all()
    assert (values.ravel() <= high + slack).all()
    assert (low < high).all()


def test_numbers_that_are_not_finite_say_nothing() -> None:
    """NaN and infinity have no cell."""
    values = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32)
    low, high = cells(stored(values, "BF16"), np.arange(4))
    assert (np.isinf(low[:3]) & np.isinf(high[:3])).all()
    assert 0.99 < low[3] < 1 < high[3] < 1.01
    clues = Clues(1)
    clues.add(stored(values, "BF16"), [values], np.arange(4))
    assert len(clues) == 1


@pytest.mark.parametrize("storage", STORAGES)
@given(share=st.integers(1, 9999).map(lambda n: n / 10_000), apart=st.sampled_from([0.01, 0.05, 0.3]))
def test_the_share_is_found_again(storage: str, share: float, apart: float) -> None:
    """Of two parents, the first decimals that all numbers allow are those that the child was made with."""
    parents = family(storage, apart, 2)
    clues = clues_of(child_of(parents, [round(1 - share, 12), share], storage), parents)
    found = next(clues.decimals((0, 1), is_whole=True))
    room = clues.interval(np.array([round(1 - share, 12), share]), np.array([-1.0, 1.0]))
    assert room.low <= 0 <= room.high
    assert found[1] == share or (
        len(f"{found[1]:.7g}") <= len(f"{share:.7g}") and abs(found[1] - share) < room.high - room.low
    )


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("is_whole", [True, False])
def test_shares_of_three_parents_are_found_again(storage: str, is_whole: bool) -> None:
    """Also where they do not sum to 1."""
    parents = family(storage, 0.3, 3)
    shares = [0.245, 0.63, 0.125] if is_whole else [0.5, 0.63, 0.125]
    clues = clues_of(child_of(parents, shares, storage), parents)
    assert next(clues.decimals((0, 1, 2), is_whole=is_whole)).tolist() == shares


def test_least_squares_would_be_wrong_where_cells_are_wide() -> None:
    """In FP8, with parents 5 % apart, a fit of the decoded values is off by a tenth; the clues are not."""
    parents = family(FP8_BLOCK, 0.05, 2)
    child = child_of(parents, [0.25, 0.75], FP8_BLOCK)
    a, b, c = (mix([term], SHAPE).astype(np.float64).ravel() for term in (*parents, child))
    assert abs((b - a) @ (c - a) / ((b - a) @ (b - a)) - 0.75) > 0.05
    assert next(clues_of(child, parents).decimals((0, 1), is_whole=True)).tolist() == [0.25, 0.75]


def test_the_share_of_a_child_with_a_wrong_number_is_found_by_the_most() -> None:
    """One number that is no mix leaves no share that gives all; the share that gives the most is the child's."""
    parents = family("BF16", 0.3, 2)
    child = child_of(parents, [0.25, 0.75], "BF16")
    child.data.view(np.uint16)[3, 5] ^= 0x4000
    clues = clues_of(child, parents)
    assert clues.interval(np.array([1.0, 0.0]), np.array([-1.0, 1.0])).is_empty
    assert not list(clues.decimals((0, 1), is_whole=True))
    step, unmet = clues.most_met(np.array([1.0, 0.0]), np.array([-1.0, 1.0]))
    assert abs(step - 0.75) < 1e-4
    assert unmet == 1


@pytest.mark.parametrize("count", [2, 3])
def test_an_outline_allows_what_the_numbers_allow(count: int) -> None:
    """The few bounds that are kept of a small unit allow the shares it was made with, and none that lie outside."""
    parents = family("BF16", 0.3, count)
    shares = [0.25, 0.75, 0.0][:count]
    clues = clues_of(child_of(parents, shares, "BF16"), parents, np.arange(40))
    bounds, width = clues.outline(np.array(shares))
    assert all(bound.allows(shares) for bound in bounds)
    assert len(bounds) <= 2 * 9
    assert 0 < width < 0.1
    for step in (-2 * width, 2 * width):
        moved = [shares[0] - step, shares[1] + step, *shares[2:]]
        assert not all(bound.allows(moved) for bound in bounds)
        assert clues.unmet(np.array(moved))


@pytest.mark.parametrize("storage", STORAGES)
def test_unlike_numbers_are_counted_by_place(storage: str) -> None:
    """A changed number is found where it is; a changed scale at the first number of its block."""
    term = family(storage, 0.3, 1)[0]
    data = term.data.copy()
    data[7, 8] ^= 1
    width = term.data.shape[1] // SHAPE[1]
    assert places(term.data, data, width).tolist() == [7 * SHAPE[1] + 8 // width]
    assert not places(data, data, width).size
    if term.scales is not None:
        scales = term.scales.copy()
        scales[1, -1] ^= 1
        blocks = places(term.scales, scales, scales.nbytes // 4)  # two by two blocks
        assert first_of_blocks(blocks, SHAPE).tolist() == [128 * SHAPE[1] + 128]


def places(old: npt.NDArray[np.generic], new: npt.NDArray[np.generic], width: int) -> npt.NDArray[np.int64]:
    """Where two arrays of numbers of so many bytes differ."""
    return unlike_places(memoryview(old.tobytes()), memoryview(new.tobytes()), width)
