"""Hidden data: bytes before, between or after the tensors, which no reader shows and every copy carries along.

Tries to smuggle a payload inside a model file. Stopped by asking that the tensors fill the file without gaps, from the
header's end to the file's.
"""

from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker
from tests.attacks.files import ENTRY, write_header

_LATER = '{"dtype":"U8","shape":[4],"data_offsets":[8,12]}'


@pytest.mark.parametrize(
    ("header", "nbytes", "says"),
    [
        (f'{{"w":{_LATER}}}', 12, "do not follow"),
        (f'{{"v":{ENTRY},"w":{_LATER}}}', 12, "do not follow"),
        (f'{{"v":{ENTRY}}}', 1000, "bytes follow the last tensor"),
        ("{}", 1000, "bytes follow the last tensor"),
        ('{"__metadata__":{}}', 1, "bytes follow the last tensor"),
    ],
)
def test_bytes_of_no_tensor_are_refused(file: Path, attempt: Attacker, header: str, nbytes: int, says: str) -> None:
    """A file with bytes that belong to no tensor is refused, wherever they lie."""
    write_header(file, header, bytes(nbytes))
    attempt("plan", "--parent", f"v3={file}").check_refused(says)


@pytest.mark.parametrize("padding", [b"\0" * 8, b" " * 7 + b"\0", b"payload."])
def test_nothing_hides_in_the_padding_of_a_header(file: Path, attempt: Attacker, padding: bytes) -> None:
    """After the brace that ends a header there is white space or an error."""
    write_header(file, f'{{"v":{ENTRY}}}'.encode() + padding, b"1234")
    attempt("plan", "--parent", f"v3={file}").check_refused(f"{file} (header): is not valid JSON")
