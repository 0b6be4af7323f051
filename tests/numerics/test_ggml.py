"""Quants, held against another build of llama.cpp: bytes where it encodes, values where it decodes."""

import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chimerakit.dtypes import DECODABLE, GGML_TYPES, NEED_IMATRIX, QUANTS
from chimerakit.errors import MissingExtraError
from chimerakit.numerics import ggml
from chimerakit.numerics.mix import Term, decode, encode, mix, mix_into
from tests import llama_cpp
from tests.effort import examples

F32 = npt.NDArray[np.float32]
NO_TIES = [dtype for dtype in DECODABLE if not dtype.startswith("IQ1")]
ENCODED = [dtype for dtype in NO_TIES if dtype not in NEED_IMATRIX]


def values_of(seed: int, rows: int = 3, blocks: int = 2, dtype: str = "Q4_K") -> F32:
    """Weights as a model has them, with a large one here and there, and a row of zeros."""
    random = np.random.default_rng(seed)
    found = np.asarray(random.standard_normal((rows, blocks * GGML_TYPES[dtype].weights)) * 0.02, np.float32)
    found[random.random(found.shape) < 0.01] *= 20
    if rows > 2:
        found[-1] = 0
    return found


def stored(values: F32, dtype: str, importance: F32 | None = None) -> npt.NDArray[np.uint8]:
    """Rows as chimerakit stores them."""
    kind = GGML_TYPES[dtype]
    out = np.zeros((len(values), values.shape[1] // kind.weights * kind.nbytes), np.uint8)
    ggml.encode_rows(values, dtype, out, importance)
    return out


@pytest.mark.parametrize("dtype", ENCODED)
@settings(max_examples=examples(quick=5, ci=20, prove=400), deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 4), blocks=st.integers(1, 3))
def test_rows_are_stored_as_llama_cpp_stores_them(dtype: str, seed: int, rows: int, blocks: int) -> None:
    """To the byte."""
    values = values_of(seed, rows, blocks, dtype)
    assert stored(values, dtype).tobytes() == llama_cpp.encode(values, dtype).tobytes()


@pytest.mark.parametrize("dtype", NO_TIES)
@settings(max_examples=examples(quick=3, ci=10, prove=200), deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_rows_are_stored_by_an_imatrix_as_llama_cpp_stores_them(dtype: str, seed: int) -> None:
    """To the byte, with some columns that matter much more than others."""
    values = values_of(seed, 3, 2, dtype)
    importance = np.asarray(np.random.default_rng(seed).lognormal(0, 2, values.shape[1]), np.float32)
    assert stored(values, dtype, importance).tobytes() == llama_cpp.encode(values, dtype, importance).tobytes()


@pytest.mark.parametrize("dtype", ["IQ1_S", "IQ1_M"])
def test_the_smallest_quants_are_as_near_as_llama_cpp_stores_them(dtype: str) -> None:
    """Their encoders compare sums that nearly tie, and compilers add up in their own ways: a block in hundreds differs."""
    values = values_of(1, 64, 4, dtype)
    importance = np.asarray(np.random.default_rng(1).lognormal(0, 2, values.shape[1]), np.float32)
    mine, theirs = stored(values, dtype, importance), llama_cpp.encode(values, dtype, importance)
    blocks = (mine != theirs).reshape(-1, GGML_TYPES[dtype].nbytes).any(axis=1)
    assert blocks.mean() < 0.1
    errors = [np.square(llama_cpp.decode(data, dtype) - values) @ importance for data in (mine, theirs)]
    np.testing.assert_allclose(errors[0].sum(), errors[1].sum(), rtol=1e-3)


@pytest.mark.parametrize("dtype", DECODABLE)
@settings(max_examples=examples(quick=5, ci=20, prove=400), deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_bytes_are_read_as_llama_cpp_reads_them(dtype: str, seed: int) -> None:
    """To the last bit, but for sums that a compiler may have fused; NaN where it has NaN."""
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (2, 3 * GGML_TYPES[dtype].nbytes), np.uint8)
    mine, theirs = ggml.decode_rows(data, dtype), llama_cpp.decode(data, dtype)
    assert (np.isnan(mine) == np.isnan(theirs)).all()
    assert (np.isfinite(mine) == np.isfinite(theirs)).all()
    there = np.isfinite(mine)
    scale = float(np.abs(mine[there]).max(initial=0))
    np.testing.assert_allclose(mine[there], theirs[there], rtol=1e-6, atol=1e-6 * scale)


def test_which_types_need_an_imatrix_is_what_llama_cpp_says() -> None:
    """Of all that are encoded."""
    assert [dtype for dtype in DECODABLE if llama_cpp.needs_importance(dtype)] == list(NEED_IMATRIX)


# --------------------------------------------------------------------------------------------------- mixes


@pytest.mark.parametrize(("first", "second"), [("Q4_K", "Q6_K"), ("Q8_0", "Q8_0"), ("BF16", "Q5_0"), ("F32", "IQ4_NL")])
@pytest.mark.parametrize("target", ["Q8_0", "Q4_K", "BF16", "F32"])
def test_a_mix_of_quants_is_the_sum_of_their_values(first: str, second: str, target: str) -> None:
    """fl(lambda x) of what each stores, added up in float32, then stored as llama.cpp does."""
    shape, shares = (4, 512), (np.float32(0.25), np.float32(0.75))
    terms = []
    for seed, (dtype, share) in enumerate(zip((first, second), shares, strict=True)):
        values = values_of(seed, 4, 512 // GGML_TYPES[dtype].weights, dtype)
        terms.append(Term(dtype, share, encode(values, dtype, None, np.zeros(2)).data))
    whole = [decode(term._replace(share=np.float32(1))) for term in terms]
    expected = shares[0] * whole[0] + shares[1] * whole[1]
    assert (mix(terms, shape) == expected).all()
    sums = np.zeros(2)
    kind = GGML_TYPES[target]
    out = np.zeros((4, 512 // kind.weights * kind.nbytes), np.uint8)
    assert mix_into(terms, shape, target, None, out, sums, np.empty(1 << 20, np.uint8)) == (None, 0)
    if target in QUANTS:
        assert out.tobytes() == llama_cpp.encode(expected, target).tobytes()
        kept = llama_cpp.decode(out, target)
        off = expected.astype(np.float64) - kept
        np.testing.assert_allclose(
            sums, [np.square(off).sum(), np.square(expected.astype(np.float64)).sum()], rtol=1e-6
        )


def test_nan_is_counted() -> None:
    """In what is to be stored; what a quant makes of it is anything."""
    values = values_of(1, 2, 1, "Q8_0")
    values[0, 3] = np.nan
    assert encode(values, "Q8_0", None, np.zeros(2)).nonfinite > 0


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, k-quants can be read but not written."""
    monkeypatch.setitem(sys.modules, "libgguf", None)
    monkeypatch.setattr(ggml, "find_spec", lambda _: None)
    values = values_of(1)
    with pytest.raises(MissingExtraError, match="gguf-quant"):
        stored(values, "Q4_K")
    assert stored(values, "Q8_0").size
