"""Manifest bombs: a manifest of gigabytes, of a million digits, or whose recipe is a list of millions of nothings.

Tries to fill the memory of whoever checks a child that they got from somebody. Stopped by a bound on its size and one on
its recipe, the only part that may have any shape; everything else is decoded as what it must be, or refused.
"""

from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker


def test_a_manifest_of_a_gigabyte_is_not_read(tmp_path: Path, attempt: Attacker) -> None:
    """A manifest larger than any model's is refused by its size."""
    with (tmp_path / "chimerakit.json").open("wb") as file:
        file.truncate(1 << 30)
    attempt("verify", tmp_path).check_refused("the manifest is too large", "found:    1073741824")


def test_a_recipe_of_nothings_is_not_made(tmp_path: Path, attempt: Attacker) -> None:
    """Three bytes of text make no hundred bytes of lists."""
    (tmp_path / "chimerakit.json").write_text('{"recipe":{"a":[' + "[]," * 5_000_000 + "[]]}}")
    attempt("verify", tmp_path).check_refused("its recipe is too long", flat=80 << 20)


@pytest.mark.parametrize(
    "text",
    [
        '{"format":' + "9" * 1_000_000 + "}",
        '{"recipe":{"a":' + "9" * 200_000 + "}}",
        '{"recipe":{"a":1e' + "9" * 200_000 + "}}",
    ],
)
def test_numbers_without_end_are_refused(tmp_path: Path, attempt: Attacker, text: str) -> None:
    """A number of a million digits is no number here."""
    (tmp_path / "chimerakit.json").write_text(text)
    attempt("verify", tmp_path).check_refused("the manifest can't be read")


def test_units_of_nothing_are_refused_by_what_they_lack(tmp_path: Path, attempt: Attacker) -> None:
    """A million empty units end at the first one."""
    (tmp_path / "chimerakit.json").write_text('{"recipe":{},"units":[' + "{}," * 1_000_000 + "{}]}")
    attempt("verify", tmp_path).check_refused("missing required field `unit` - at `$.units[0]`")


def test_shares_that_are_no_numbers_are_refused(tmp_path: Path, attempt: Attacker) -> None:
    """NaN and infinity are not JSON."""
    for number in ("NaN", "Infinity", "-Infinity", "1e400"):
        (tmp_path / "chimerakit.json").write_text(
            f'{{"recipe":{{}},"units":[{{"unit":"w","rule":null,"parents":{{"v3":{number}}}}}]}}'
        )
        attempt("verify", tmp_path).check_refused("the manifest can't be read")
