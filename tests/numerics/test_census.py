"""The census against plain numpy and ml_dtypes in float64, where no sum and no product rounds."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.dtypes import FP8_BLOCK, FP8_BLOCK_UE8M0
from chimerakit.numerics.census import Counts, count
from chimerakit.numerics.mix import Term

F64 = npt.NDArray[np.float64]
ODD = np.array(
    [0.0, -0.0, -1.0, np.nan, np.inf, -np.inf, 2.0**-149, 2.0**-126, 2.0**-118, 2.0**119, 2.0**120, 3e38], np.float32
)
HALVES = np.arange(1 << 16, dtype=np.uint16)


def naive(values: F64) -> tuple[int, int, int, float]:
    """NaN, infinite, zeros, largest: as anyone would count them."""
    finite = np.abs(values[np.isfinite(values)])
    return int(np.isnan(values).sum()), int(np.isinf(values).sum()), int((values == 0).sum()), finite.max(initial=0)


def naive_blocks(codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.float32]) -> F64:
    """code x scale, rounded to float32 once."""
    wide = scales.astype(float).repeat(128, 0).repeat(128, 1)[: codes.shape[0], : codes.shape[1]]
    with np.errstate(all="ignore"):
        found: F64 = (codes.view(ml_dtypes.float8_e4m3fn).astype(float) * wide).astype(np.float32).astype(float)
    return found


def term(codes: npt.NDArray[np.uint8], scales: npt.NDArray[Any], dtype: str = "F32") -> Term:
    storage = FP8_BLOCK if dtype == "F32" else FP8_BLOCK_UE8M0
    return Term(storage, np.float32(1), codes, scales.view(np.uint8), dtype)


STORED: dict[str, npt.NDArray[Any]] = {
    "F16": HALVES.view(np.float16),
    "BF16": HALVES.view(ml_dtypes.bfloat16),
    "F32": np.append(np.random.default_rng(1).integers(0, 1 << 32, 50_001, np.uint32).view(np.float32), ODD),
}
"""Every half there is; and float32 of all sizes, so many that counting goes through several runs."""


@pytest.mark.parametrize("storage", STORED)
def test_values_are_counted_as_numpy_counts_them(storage: str) -> None:
    """NaN and infinity of any bits, zeros of either sign, and the largest of the rest."""
    stored = STORED[storage]
    found = count(Term(storage, np.float32(1), stored.view(np.uint8).reshape(1, -1)), (1, stored.size))
    with np.errstate(invalid="ignore"):
        assert found[:4] == naive(stored.astype(float))
    assert min(found[:4]) > 0
    assert found[4:] == (0,) * 5


def test_every_code_is_counted_once() -> None:
    """Of the 256 codes two are zero, two NaN and two +-448."""
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    assert count(term(codes, np.array([[0.5]], np.float32)), (2, 128)) == Counts(2, 0, 2, 224, nan_codes=2, saturated=2)


@pytest.mark.parametrize("odd", ODD)
def test_one_odd_scale_counts_as_its_decoded_values(odd: np.float32) -> None:
    """Zero, negative, NaN, infinite, too small or too large: values are those of code x scale, and the scale is named."""
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 256, (200, 300), np.uint8)
    scales = rng.uniform(1e-4, 1e-2, (2, 3)).astype(np.float32)
    scales[1, 1] = odd
    found = count(term(codes, scales), codes.shape)
    assert found[:4] == naive(naive_blocks(codes, scales))
    assert (found.nan_codes, found.saturated) == tuple(int(((codes & 127) == size).sum()) for size in (127, 126))
    assert found[6:] == (int(not np.isfinite(odd)), int(odd == 0), int(odd < 0))


@given(rows=st.integers(1, 300), cols=st.integers(1, 400), seed=st.integers(0, 99))
def test_ragged_blocks_are_counted_whole(rows: int, cols: int, seed: int) -> None:
    """Panels of any shape: every code counts, with the scale of its own block."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (rows, cols), np.uint8)
    scales = np.exp2(rng.integers(-20, 20, (-(-rows // 128), -(-cols // 128)))).astype(np.float32)
    found = count(term(codes, scales), codes.shape)
    assert found[:4] == naive(naive_blocks(codes, scales))
    assert found.saturated == np.count_nonzero((codes & 127) == 126)


def test_lines_of_one_code_do_not_overflow() -> None:
    """A block of nothing but zeros, NaN or 448, for two full rows of blocks."""
    for code, place in ((0x80, 2), (0xFF, 0)):
        assert (
            count(term(np.full((256, 256), code, np.uint8), np.ones((2, 2), np.float32)), (256, 256))[place] == 1 << 16
        )
    found = count(term(np.full((256, 256), 0x7E, np.uint8), np.ones((2, 2), np.float32)), (256, 256))
    assert (found.saturated, found.largest) == (1 << 16, 448)


def test_scales_may_be_exponents() -> None:
    """F8_E8M0: 2^(code - 127); 255 is NaN."""
    codes = np.full((128, 256), 0x38, np.uint8)  # 1.0
    assert count(term(codes, np.array([[127, 130]], np.uint8), "F8_E8M0"), codes.shape) == Counts(0, 0, 0, 8)
    found = count(term(codes, np.array([[127, 255]], np.uint8), "F8_E8M0"), codes.shape)
    assert found == Counts(128 * 128, 0, 0, 1, nonfinite_scales=1)


def test_a_share_does_not_matter() -> None:
    """A census is of what is stored."""
    stored = np.array([[1, -3]], np.float32).view(np.uint8)
    assert count(Term("F32", np.float32(0.25), stored), (1, 2)).largest == 3


def test_only_panels_that_fit_are_counted() -> None:
    """Compiled loops check no bounds, so shapes are refused before."""
    codes = np.zeros((128, 256), np.uint8)
    with pytest.raises(ValueError, match=r"\(1, 1\) scales for \(128, 256\) weights"):
        count(term(codes, np.ones((1, 1), np.float32)), (128, 256))
    with pytest.raises(ValueError, match=r"\(128, 256\) bytes for \(128, 250\) weights"):
        count(term(codes, np.ones((1, 2), np.float32)), (128, 250))
