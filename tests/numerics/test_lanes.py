"""Sixteen numbers at a time, against the casts of torch and ml_dtypes over everything that can go wrong."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numba
import numpy as np
import numpy.typing as npt
import pytest
import torch

from chimerakit.numerics import lanes
from tests.numerics.test_kernels import CODES, HALVES, around, f32, random_floats

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


def storer(store: Callable[..., Any], nbytes: int) -> Callable[..., None]:
    @numba.njit  # type: ignore[untyped-decorator]
    def run(values: Any, data: Any, lost: Any) -> None:
        for i in range(0, values.size, lanes.LANES):
            off = store(data.ctypes.data + nbytes * i, lanes.load(values.ctypes.data + 4 * i))
            lanes.store(lost.ctypes.data + 4 * i, off)

    return run  # type: ignore[no-any-return]


STORE = {
    "e4m3": storer(lanes.store_e4m3, 1),
    "F16": storer(lanes.store_f16, 2),
    "BF16": storer(lanes.store_bf16, 2),
}
DTYPES: dict[str, tuple[Any, torch.dtype]] = {
    "e4m3": (ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn),
    "F16": (np.float16, torch.float16),
    "BF16": (ml_dtypes.bfloat16, torch.bfloat16),
}
LARGEST = {"e4m3": 448.0, "F16": 65504.0, "BF16": 3.3895313892515355e38}


def stored(storage: str, values: F32) -> tuple[U8, F32]:
    """The bytes, and what the kernel says was lost."""
    padded = np.zeros(-(-values.size // 16) * 16, np.float32)
    padded[: values.size] = values
    nbytes = 1 if storage == "e4m3" else 2
    data, lost = np.zeros(padded.size * nbytes, np.uint8), np.zeros_like(padded)
    STORE[storage](padded, data, lost)
    return data[: values.size * nbytes], lost[: values.size]


def torch_cast(storage: str, values: F32) -> U8:
    return np.asarray(torch.from_numpy(values).to(DTYPES[storage][1]).view(torch.uint8).numpy())


def representable(storage: str) -> npt.NDArray[np.float64]:
    codes = CODES if storage == "e4m3" else HALVES
    with np.errstate(invalid="ignore"):
        values: npt.NDArray[np.float64] = codes.view(DTYPES[storage][0]).astype(np.float64)
    return values[np.isfinite(values)]


@pytest.mark.parametrize("storage", STORE)
def test_every_number_midpoint_and_neighbour_is_stored_as_torch_casts_it(storage: str) -> None:
    """Numbers of a storage, the middles between them and the float32 values beside both get torch's bytes."""
    values = around(representable(storage))
    values = values[np.abs(values) <= LARGEST[storage]]
    assert np.array_equal(stored(storage, values)[0], torch_cast(storage, values))


@pytest.mark.parametrize("storage", STORE)
@pytest.mark.parametrize("quarter", range(4))
def test_random_numbers_of_all_sizes_are_stored_as_torch_casts_them(storage: str, quarter: int) -> None:
    """From float32's subnormals up to the largest number of the storage."""
    low, high = np.linspace(-149, np.log2(LARGEST[storage]), 5)[quarter : quarter + 2]
    values = random_floats(quarter, low, high)
    values = values[np.abs(values) <= LARGEST[storage]]
    assert np.array_equal(stored(storage, values)[0], torch_cast(storage, values))


@pytest.mark.parametrize("storage", STORE)
def test_what_is_lost_is_exact(storage: str) -> None:
    """The difference between a number and what was stored of it, to the last bit; its sign does not matter."""
    values = np.concatenate([around(representable(storage))[::7], random_floats(3, -30, 8)])
    values = values[np.abs(values) <= LARGEST[storage]]
    data, lost = stored(storage, values)
    exact = values.astype(np.float64) - data.view(DTYPES[storage][0]).astype(np.float64)
    assert np.array_equal(np.abs(lost).astype(np.float64), np.abs(exact))
    assert np.count_nonzero(lost) > values.size / 4


def test_f16_bytes_are_those_of_numpys_cast() -> None:
    """Subnormals, zeros of either sign and all else that is finite."""
    values = around(representable("F16"))
    values = values[np.abs(values) < 65520]
    assert np.array_equal(stored("F16", values)[0], values.astype(np.float16).view(np.uint8))


@pytest.mark.parametrize(
    ("storage", "too_large"), [("F16", [65520.0, 65536.0, 1e9, 3.4e38]), ("BF16", [3.39618e38, 3.4028235e38])]
)
def test_what_is_too_large_for_a_storage_is_lost_without_end(storage: str, too_large: list[float]) -> None:
    """So that sums of squares show it, and the caller stores the panel another way."""
    values = f32([*too_large, *(-x for x in too_large)])
    assert np.isinf(stored(storage, values)[1]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("storage", ["F16", "BF16"])
def test_what_is_not_finite_shows_in_what_is_lost_or_in_itself(storage: str, bad: float) -> None:
    """Of every value that is not finite, the square or that of what is lost is not finite."""
    lost = stored(storage, f32([bad]))[1]
    assert not np.isfinite(lost * lost + f32([bad]) * f32([bad])).any()


@numba.njit  # type: ignore[untyped-decorator]
def _largest(values: Any) -> Any:
    found = lanes.spread(np.float32(0))
    for i in range(0, values.size, lanes.LANES):
        found = lanes.larger(found, lanes.load(values.ctypes.data + 4 * i))
    return lanes.largest(found)


@pytest.mark.parametrize("place", [0, 5, 15, 16, 47])
@pytest.mark.parametrize("value", [-3.0, 1e-45, np.inf, -np.nan])
def test_the_largest_of_many_lanes_is_found_wherever_it_stands(place: int, value: float) -> None:
    """Its bits, without the sign; NaN is larger than infinity."""
    values = np.zeros(48, np.float32)
    values[place] = value
    assert _largest(values) == int(np.abs(values[place : place + 1]).view(np.int32)[0])


@numba.njit  # type: ignore[untyped-decorator]
def _has_nan_code(codes: Any) -> Any:
    return lanes.has_nan_code(codes.ctypes.data)


def test_a_nan_code_is_noticed_wherever_it_stands() -> None:
    """One of 128 is enough, of either sign; no other code is taken for one."""
    for code in range(256):
        codes = np.zeros(128, np.uint8)
        codes[code % 128] = code
        assert _has_nan_code(codes) == (code & 0x7F == 0x7F), code


def decoders() -> tuple[Callable[..., None], Callable[..., None]]:
    @numba.njit  # type: ignore[untyped-decorator]
    def halves(data: Any, values: Any) -> None:
        for i in range(0, values.size, lanes.LANES):
            lanes.store(values.ctypes.data + 4 * i, lanes.load_f16(data.ctypes.data + 2 * i))

    @numba.njit  # type: ignore[untyped-decorator]
    def codes(data: Any, scratch: Any, values: Any) -> None:
        for i in range(0, values.size, 128):
            lanes.codes_to_f16(data.ctypes.data + i, scratch.ctypes.data)
            for j in range(0, 128, lanes.LANES):
                lanes.store(values.ctypes.data + 4 * (i + j), lanes.load_f16(scratch.ctypes.data + 2 * j))

    return halves, codes


@pytest.mark.parametrize("by_hardware", [True, False])
def test_every_float16_and_e4m3_code_is_decoded_exactly(by_hardware: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 65536 halves and all codes but NaN, by the CPU's conversion where it has one and by arithmetic elsewhere."""
    if not by_hardware:
        monkeypatch.setattr(lanes, "_has_f16", lambda context: False)
    decode_halves, decode_codes = decoders()
    found = np.zeros(HALVES.size, np.float32)
    decode_halves(HALVES, found)
    expected = HALVES.view(np.float16).astype(np.float32)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found), np.signbit(expected))
    found = np.zeros(256, np.float32)
    decode_codes(CODES, np.zeros(128, np.uint16), found)
    exact = CODES.view(ml_dtypes.float8_e4m3fn).astype(np.float32) / 256
    is_number = ~np.isnan(exact)
    assert np.array_equal(found[is_number].view(np.uint32), exact[is_number].view(np.uint32))
