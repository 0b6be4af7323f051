"""The table of storage types, beside numpy, ml_dtypes and the reference reader."""

import math
from collections.abc import Callable

import ml_dtypes  # noqa: F401 - teaches numpy the names
import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.dtypes import (
    DECODABLE,
    FP8_BLOCKS,
    GGML_TYPES,
    MAX_NBYTES,
    MIXABLE,
    QUANTS,
    STORAGE_TYPES,
    nbytes_of,
    numel_of,
    run_nbytes,
)


def test_the_names_and_their_order_are_those_of_the_format() -> None:
    """The table holds every dtype of the reference reader, which lists them when it meets another, in its order."""
    deserialize: Callable[[bytes], object] = safetensors.deserialize
    text = b'{"w":{"dtype":"?","shape":[1],"data_offsets":[0,1]}}'
    with pytest.raises(safetensors.SafetensorError) as refused:
        deserialize(len(text).to_bytes(8, "little") + text + b"0")
    listed = str(refused.value).split("expected one of ")[1].split(" at line")[0]
    assert list(STORAGE_TYPES) == listed.replace("`", "").split(", ")


@pytest.mark.parametrize("name", [n for n, kind in STORAGE_TYPES.items() if kind.numpy is not None])
def test_numpy_sees_as_many_bits(name: str) -> None:
    """A type that numpy or ml_dtypes knows is as wide there."""
    kind = STORAGE_TYPES[name]
    assert np.dtype(kind.numpy).itemsize * 8 == kind.bits


def test_types_that_numpy_does_not_pack_have_no_numpy_name() -> None:
    """Types of less than a byte can be copied, not looked at."""
    assert {n: kind.bits for n, kind in STORAGE_TYPES.items() if kind.numpy is None} == {
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
    }


def test_what_can_be_mixed_is_stored_or_a_block() -> None:
    """Plain floats, quants whose values can be had, or one of the block storages, which no tensor has."""
    assert set(MIXABLE) == {"F32", "F16", "BF16", *FP8_BLOCKS, *DECODABLE}
    assert set(STORAGE_TYPES).isdisjoint(FP8_BLOCKS)
    assert set(DECODABLE) <= QUANTS
    assert set(GGML_TYPES) - QUANTS <= set(STORAGE_TYPES)


@given(st.sampled_from(sorted(QUANTS)), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 600))
def test_quants_are_whole_blocks_of_a_row(dtype: str, shape: list[int], cols: int) -> None:
    """As many bytes as blocks take; None where rows are no whole blocks."""
    kind = GGML_TYPES[dtype]
    expected = None if cols % kind.weights else math.prod(shape) * (cols // kind.weights) * kind.nbytes
    assert nbytes_of(dtype, (*shape, cols)) == expected
    assert run_nbytes(dtype, 5 * kind.weights) == 5 * kind.nbytes


sides = st.integers(0, 9) | st.integers(2**31 - 2, 2**31 + 2) | st.integers(2**62, MAX_NBYTES)


@given(st.sampled_from(sorted(STORAGE_TYPES)), st.lists(sides, max_size=5))
def test_bytes_are_the_exact_product(dtype: str, shape: list[int]) -> None:
    """Bytes are elements times bits over 8 in exact arithmetic, None if no whole number or too many on the way."""
    bits = STORAGE_TYPES[dtype].bits
    found = nbytes_of(dtype, tuple(shape))
    products = [bits * math.prod(shape[:n]) for n in range(len(shape) + 1)]
    if max(products) > 8 * MAX_NBYTES or products[-1] % 8:
        assert found is None
    else:
        assert found == products[-1] // 8


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"),
    [
        ("F32", (), 4),
        ("BF16", (7168, 129280), 1853358080),
        ("F4", (3, 2), 3),
        ("F4", (3,), None),
        ("F6_E2M3", (4,), 3),
        ("F6_E3M2", (2,), None),
        ("U8", (0, 5), 0),
        ("U8", (MAX_NBYTES,), MAX_NBYTES),
        ("U16", (MAX_NBYTES,), None),
        ("F64", (1 << 62, 1 << 62, 0), None),
    ],
)
def test_bytes_of_some_tensors(dtype: str, shape: tuple[int, ...], nbytes: int | None) -> None:
    """Scalars, DeepSeek-V3's embedding, parts of bytes, nothing, the largest, and too much."""
    assert nbytes_of(dtype, shape) == nbytes


def test_elements_of_a_scalar_are_one() -> None:
    """The number of elements is the product of the sides, 1 for none."""
    assert [numel_of(()), numel_of((3, 4)), numel_of((3, 0))] == [1, 12, 0]
