"""Polyglot: a file that is a safetensors file for one reader and a zip, a pickle or a PDF for another.

Tries to pass a scanner as one format and to be run as another. Stopped by asking for the brace right after the length:
nothing of anybody's choice stands before it but eight bytes that must be the header's length; and by refusing whatever
follows the tensors.
"""

from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker
from tests.attacks.files import ENTRY, write_header


@pytest.mark.parametrize(
    "prefix", [b"PK\3\4", b"\x80\2c", b"%PDF-1.7\n", b"#!/bin/sh\n", b" ", b"\n", b"\xef\xbb\xbf", b"\0"]
)
def test_something_before_the_brace_is_refused(file: Path, attempt: Attacker, prefix: bytes) -> None:
    """A header that begins with anything but its brace is refused, white space and byte order marks included."""
    write_header(file, prefix + f'{{"w":{ENTRY}}}'.encode(), b"1234")
    attempt("plan", "--parent", f"v3={file}").check_refused("the header does not begin with '{'")


def test_a_zip_at_the_end_is_refused(file: Path, attempt: Attacker) -> None:
    """A zip is found from its end, so nothing may follow the last tensor."""
    write_header(file, f'{{"w":{ENTRY}}}', b"1234" + b"PK\5\6" + bytes(18))
    attempt("plan", "--parent", f"v3={file}").check_refused("bytes follow the last tensor")
