"""Number bombs: integers of a million digits, in every notation that a file may use.

Tries to keep the conversion busy, which takes time with the square of the digits, or to make a number that can be made
but not shown. Stopped by Python's limit of 4300 digits, and by one of our own where hexadecimal goes around it.
"""

from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker
from tests.attacks.files import write_header

_DIGITS = (
    "9" * 1_000_000,
    "9" * 5000,
    "-" + "9" * 1_000_000,
    "1" + "0" * 100_000 + ".5",
    "1e" + "9" * 100_000,
    "0." + "0" * 1_000_000 + "1",
)


@pytest.mark.parametrize("digits", _DIGITS)
def test_a_header_with_digits_without_end_is_refused(file: Path, attempt: Attacker, digits: str) -> None:
    """A shape or an offset of a million digits is one clear error."""
    for entry in ('"shape":[%s],"data_offsets":[0,4]', '"shape":[4],"data_offsets":[0,%s]'):
        write_header(file, '{"w":{"dtype":"U8",' + entry % digits + "}}", b"1234")
        attempt("plan", "--parent", f"v3={file}").check_refused(str(file))


@pytest.mark.parametrize(
    "digits", ["9" * 60_000, "0x" + "f" * 60_000, "0o" + "7" * 60_000, "1e" + "9" * 60_000, "-" + "9" * 5000]
)
@pytest.mark.parametrize(
    "place", ["rules: [{mix: {r1: %s}, mtp: true}]", "rules: [{take: r1, layers: %s}]", "rules: %s", "? %s\n: 1"]
)
def test_a_recipe_with_digits_without_end_is_refused(
    tmp_path: Path, attempt: Attacker, place: str, digits: str
) -> None:
    """Nor are they a share, a layer, a list or a key."""
    (tmp_path / "recipe.yaml").write_text("parents: {v3: , r1: }\nbase: v3\n" + place % digits)
    attempt("plan", tmp_path / "recipe.yaml").check_refused("recipe.yaml")
