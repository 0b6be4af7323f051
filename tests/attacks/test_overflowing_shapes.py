"""Overflowing shapes: sides of 2^63, of -1, or whose product is 2^64 + 4, with a 0 to hide behind, or ten million sides.

Tries to make sizes wrap around in 64 bits, so that a huge tensor passes as a small one and is read beyond its bytes.
Stopped by bounding every number before it is used, and by multiplying only up to the limit.
"""

from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker
from tests.attacks.files import write_header, write_tensor


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ([2**63], [0, 2**63]),
        ([-1, -4], [0, 4]),
        ([2**64 + 4], [0, 4]),
        ([2**32, 2**32 + 1], [0, 4]),
        ([2**62, 4, 1], [0, 4]),
        ([2**63, 2, 0], [0, 0]),
        ([0, 2**64 - 1], [0, 0]),
        ([10**400], [0, 4]),
        ([4], [2**64 - 4, 2**64]),
        ([4], [-4, 0]),
        ([4], [4, 0]),
        ([4], [0, 10**400]),
        ([2**31] * 64, [0, 4]),
    ],
)
def test_an_overflow_is_refused(file: Path, attempt: Attacker, shape: list[int], offsets: list[int]) -> None:
    """Sizes that no file can have are refused by name, whatever they would come to in 64 bits."""
    write_tensor(file, "U8", shape, offsets, b"1234")
    attempt("plan", "--parent", f"v3={file}").check_refused("'w'")


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"), [("F4", [3], 2), ("F4", [3], 1), ("F6_E2M3", [5], 4), ("F6_E3M2", [1], 0)]
)
def test_half_a_byte_is_refused(file: Path, attempt: Attacker, dtype: str, shape: list[int], nbytes: int) -> None:
    """Elements of less than a byte that fill no whole number of bytes are neither rounded up nor down."""
    write_tensor(file, dtype, shape, [0, nbytes], bytes(nbytes))
    attempt("plan", "--parent", f"v3={file}").check_refused("'w': shape and dtype do not agree with its bytes")


@pytest.mark.parametrize("dtype", ["F33", "f32", "", "O", "V8", "F32\0", "object"])
def test_an_unknown_dtype_is_refused(file: Path, attempt: Attacker, dtype: str) -> None:
    """A dtype beyond the format's table is refused, not guessed."""
    write_tensor(file, dtype, [4], [0, 4], b"1234")
    attempt("plan", "--parent", f"v3={file}").check_refused("'w'", "dtype")


@pytest.mark.parametrize("side", ["1", "0"])
def test_a_million_sides_are_refused_or_cheap(file: Path, attempt: Attacker, side: str) -> None:
    """A shape of a million sides costs time and memory as its text does."""
    shape = ",".join([side] * 1_000_000)
    header = f'{{"w":{{"dtype":"U8","data_offsets":[0,{side}],"shape":[{shape}]}}}}'
    write_header(file, header, b"1"[: int(side)])
    attempt("plan", "--parent", f"v3={file}").check_cheap(40 * len(header))
