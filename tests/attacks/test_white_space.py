"""White space: megabytes of spaces where JSON allows them, in headers and other files.

Tries to keep parsers busy with nothing. Stopped by the bounds on sizes: white space is passed over faster than it is read
from a disk.
"""

from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker
from tests.attacks.files import ENTRY, write_header


@pytest.mark.parametrize("gap", [" ", "\n", "\t\r\n "])
def test_white_space_is_passed_over(file: Path, attempt: Attacker, gap: str) -> None:
    """A header of 10 MB that says nothing but one tensor is read soon, in a few times its size."""
    white = gap * (10_000_000 // 3 // len(gap))
    write_header(file, f'{{{white}"w":{white}{ENTRY}}}{white}', b"1234")
    done = attempt("plan", "--parent", f"v3={file}")
    assert done.code == 0
    done.check_cheap(80 << 20)
