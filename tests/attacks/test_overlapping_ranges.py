"""Overlapping ranges: two tensors that share bytes, so that a small file unfolds to a huge model or one tensor is two.

Tries a decompression bomb without compression, and weights that change under a reader that writes. Stopped by asking
that each tensor's bytes begin where those of the one before end.
"""

from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker
from tests.attacks.files import write_header


def _entry(begin: int, end: int) -> str:
    return f'{{"dtype":"U8","shape":[{end - begin}],"data_offsets":[{begin},{end}]}}'


@pytest.mark.parametrize("second", [(0, 4), (2, 6), (1, 3), (3, 7)])
def test_two_tensors_of_the_same_bytes_are_refused(file: Path, attempt: Attacker, second: tuple[int, int]) -> None:
    """An overlap of any kind is refused by name."""
    write_header(file, f'{{"v":{_entry(0, 4)},"w":{_entry(*second)}}}', bytes(max(4, second[1])))
    attempt("plan", "--parent", f"v3={file}").check_refused("do not follow those of the tensor before it")


def test_a_bomb_of_overlaps_is_refused(file: Path, attempt: Attacker) -> None:
    """Ten thousand names for the same megabyte are no ten gigabytes."""
    entry = _entry(0, 1 << 20)
    write_header(file, "{" + ",".join(f'"{i}":{entry}' for i in range(10_000)) + "}", bytes(1 << 20))
    attempt("plan", "--parent", f"v3={file}").check_refused("do not follow those of the tensor before it")
