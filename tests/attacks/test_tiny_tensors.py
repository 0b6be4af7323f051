"""Tiny tensors: a header that is full of tensors without bytes, so that a small download names more than any model has.

Tries to make records cost far more than the bytes that they were made from. Stopped by the limit on headers; and each
tensor takes memory in proportion to its text, which is 45 bytes at least.
"""

from pathlib import Path

import pytest

from tests.attacks.attempt import FLAT, Attacker
from tests.attacks.files import write_header


def _header(count: int) -> str:
    return "{" + ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(count)) + "}"


def test_tiny_tensors_take_memory_as_their_header_does(file: Path, attempt: Attacker) -> None:
    """Twenty thousand tensors of no bytes, all at the same place, are opened and planned in memory like their text."""
    header = _header(20_000)
    write_header(file, header)
    done = attempt("plan", "--parent", f"v3={file}")
    assert done.code == 0
    assert done.peak < FLAT + 60 * len(header)


@pytest.mark.parametrize("header", [_header(1_500_000), '{"a":[' + "[]," * 9_000_000, '{"a":[' + "0," * 40_000_000])
def test_millions_of_anything_are_not_made(file: Path, attempt: Attacker, header: str) -> None:
    """A header as large as one may be, full of tensors, lists or numbers, is refused before any is made of them."""
    write_header(file, header)
    attempt("plan", "--parent", f"v3={file}").check_refused("the header holds too much", flat=400 << 20)
