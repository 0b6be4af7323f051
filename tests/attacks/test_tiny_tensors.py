"""Tiny tensors: a header that is full of tensors without bytes, so that a small download names more than any model has.

Tries to make records cost far more than the bytes that they were made from. Stopped by the limit on headers; and each
tensor takes memory in proportion to its text, which is 45 bytes at least.
"""

from pathlib import Path

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
