"""Globs: patterns of a thousand stars, which naive matchers try in more ways than there are atoms; or very many of them.

Tries to keep the planner busy for years. Stopped by Python's translation of globs, which never goes back over a star, and
by bounds on the length and the number of patterns.
"""

from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker, Attempt
from tests.attacks.files import ENTRY, write_header


def _plan(tmp_path: Path, attempt: Attacker, tensor: str, patterns: str) -> Attempt:
    write_header(tmp_path / "model.safetensors", f'{{"{tensor}":{ENTRY}}}', b"1234")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"parents: {{v3: .}}\nbase: v3\nrules: [{{take: v3, tensors: {patterns}}}]\n")
    return attempt("plan", recipe)


@pytest.mark.parametrize(
    "pattern", ["*a" * 400 + "b", "*" * 1000, "?*" * 500, "*[ab]" * 150 + "c", "[!a]" * 200, "[" * 1000]
)
def test_stars_are_matched_soon(tmp_path: Path, attempt: Attacker, pattern: str) -> None:
    """A pattern of hundreds of stars against a name of 50,000 letters is decided in a moment."""
    _plan(tmp_path, attempt, "a" * 50_000, f"'{pattern}'").check_cheap()


def test_a_longer_pattern_is_refused(tmp_path: Path, attempt: Attacker) -> None:
    """A pattern longer than any name is refused by its length."""
    _plan(tmp_path, attempt, "w", f"'{'*a' * 501}'").check_refused(
        "rule 1: tensors: has too many characters in a pattern", "found:    1002"
    )


def test_more_patterns_are_refused(tmp_path: Path, attempt: Attacker) -> None:
    """A thousand patterns is more than any recipe has; each is held against each tensor."""
    _plan(tmp_path, attempt, "w", f"[{','.join(['a'] * 1001)}]").check_refused(
        "has too many patterns in all rules", "found:    1001"
    )


def test_more_rules_are_refused(tmp_path: Path, attempt: Attacker) -> None:
    """So are more than 256 rules."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("parents: {v3: .}\nbase: v3\nrules:\n" + "- {take: v3, mtp: true}\n" * 257)
    attempt("plan", recipe).check_refused("has too many rules", "found:    257")
