"""Header length bomb: eight bytes that promise a header of exabytes, or one of 100 MB that a hole in the file holds.

Tries to make a reader allocate what the length field says. Stopped by comparing it with the file's size and with the
reference reader's limit of 100 MB before anything is read; and a header that does not begin with a brace is not parsed.
"""

from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**63 - 1, 2**32, 100_000_001])
def test_a_length_beyond_the_file_is_refused(file: Path, attempt: Attacker, length: int) -> None:
    """A length that the file does not have is refused without reading."""
    file.write_bytes(length.to_bytes(8, "little") + b"{}")
    attempt("plan", "--parent", f"v3={file}").check_refused("the header's length can't be right", f"found:    {length}")


def test_a_length_beyond_the_limit_is_refused_even_if_the_file_has_it(file: Path, attempt: Attacker) -> None:
    """A sparse file of 1 TB costs its author nothing, and us neither."""
    with file.open("wb") as f:
        f.write((1 << 40).to_bytes(8, "little"))
        f.truncate((1 << 40) + 8)
    attempt("plan", "--parent", f"v3={file}").check_refused("the header's length can't be right", "at most 100000000")


def test_a_hole_of_the_largest_header_is_refused(file: Path, attempt: Attacker) -> None:
    """100 MB of zeros are read, since the reference would, and refused at their first byte."""
    with file.open("wb") as f:
        f.write((100_000_000).to_bytes(8, "little"))
        f.truncate(100_000_008)
    attempt("plan", "--parent", f"v3={file}").check_refused("does not begin with '{'", flat=4 * 100_000_000)
