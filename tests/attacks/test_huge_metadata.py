"""Huge metadata: a `__metadata__` of many megabytes, in one text or a million, or of something else than text.

Tries to fill the memory, and the terminal where metadata are shown. Stopped by the limit on headers: what is kept is a
small multiple of bytes that the file really has, and of it nothing is shown.
"""

from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker
from tests.attacks.files import ENTRY, write_header


@pytest.mark.parametrize("value", ["1", "null", "[]", "{}", "true", '["a"]', '{"a":"b"}', "1e400"])
def test_metadata_that_is_no_text_is_refused(file: Path, attempt: Attacker, value: str) -> None:
    """Metadata are text by text, as the format says."""
    write_header(file, f'{{"__metadata__":{{"a":{value}}},"w":{ENTRY}}}', b"1234")
    attempt("plan", "--parent", f"v3={file}").check_refused("__metadata__")


def test_one_long_text_is_cheap_and_not_shown(file: Path, attempt: Attacker) -> None:
    """A text of 20 MB takes a few times its size, and is not repeated to anybody."""
    write_header(file, f'{{"__metadata__":{{"a":"{"x" * 20_000_000}"}},"w":{ENTRY}}}', b"1234")
    done = attempt("plan", "--parent", f"v3={file}")
    done.check_cheap(8 * 20_000_000)
    assert done.code == 0
    assert len(done.shown) < 10_000


def test_many_texts_take_memory_as_the_file_does(file: Path, attempt: Attacker) -> None:
    """A hundred thousand texts of nothing take no more than some hundred bytes each."""
    texts = ",".join(f'"{i}":""' for i in range(100_000))
    write_header(file, f'{{"__metadata__":{{{texts}}},"w":{ENTRY}}}', b"1234")
    done = attempt("plan", "--parent", f"v3={file}")
    done.check_cheap(64 << 20)
    assert done.code == 0
