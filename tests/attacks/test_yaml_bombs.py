"""YAML bombs: nine lines of aliases that unfold to a billion laughs, merge keys, tags that run code, a gigabyte of text.

Tries to fill the memory from a small text, to make objects of any class, or to keep a slow parser busy. Stopped by
refusing anchors, aliases and tags where they begin, and texts longer than 64 KiB before they are parsed.
"""

from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker

_HEAD = "parents: {v3: , r1: }\nbase: v3\n"
_LAUGHS = "a: &a [lol,lol]\n" + "".join(
    f"{b}: &{b} [{','.join(f'*{a}' for _ in range(9))}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
_MERGES = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [*{a}, *{a}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def _refused(tmp_path: Path, attempt: Attacker, text: str, *words: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    attempt("plan", tmp_path / "recipe.yaml").check_refused("recipe.yaml", *words)


@pytest.mark.parametrize("bomb", [_LAUGHS, _MERGES, "rules: *all", "rules: &all [*all]", "rules: " + "&a " * 20_000])
def test_aliases_are_refused(tmp_path: Path, attempt: Attacker, bomb: str) -> None:
    """Nothing is unfolded: the first anchor or alias ends the reading."""
    _refused(tmp_path, attempt, _HEAD + bomb, "line 3", "anchors (&) and aliases (*) are not used in recipes")


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system [id]", "!!python/name:os.system", "!!python/module:os", "!!binary YQ==", "!!set {a}",
     "!!timestamp 2026-11-22", "!x [a]", "!<tag:yaml.org,2002:python/object/new:os.system> [id]", "!!str a"],
)  # fmt: skip
def test_tags_are_refused(tmp_path: Path, attempt: Attacker, tag: str) -> None:
    """No tag is obeyed, not even a harmless one."""
    _refused(tmp_path, attempt, f"{_HEAD}rules: {tag}\n", "line 3", "tags (!) are not used in recipes")


def test_a_merge_key_is_a_key_like_any_other(tmp_path: Path, attempt: Attacker) -> None:
    """`<<` merges nothing: it is an unknown key."""
    _refused(tmp_path, attempt, _HEAD + "<<: {base: r1}\n", "unknown key '<<'")


@pytest.mark.parametrize(
    "text",
    ["a" * 60_000, "[" + "a," * 30_000 + "]", "\n- " * 15_000, "'" + "''" * 30_000 + "'", '"' + "\\x41" * 15_000 + '"', "{" + "a: " * 20_000,
     "|\n" + " a\n" * 20_000, "\n" + "#\n" * 30_000 + "1", "[{take: v3, layers: [" + "1," * 20_000 + "1]}]", "[{take: v3, tensors: [" + "a," * 20_000 + "a]}]"],
)  # fmt: skip
def test_the_longest_text_is_over_soon(tmp_path: Path, attempt: Attacker, text: str) -> None:
    """A text that is as long as a recipe may be is refused by what it says, in a moment."""
    _refused(tmp_path, attempt, _HEAD + "rules: " + text)


def test_a_longer_text_is_not_parsed(tmp_path: Path, attempt: Attacker) -> None:
    """A recipe of a gigabyte is refused by its size."""
    with (tmp_path / "recipe.yaml").open("wb") as file:
        file.truncate(1 << 30)
    attempt("plan", tmp_path / "recipe.yaml").check_refused("is too long for a recipe", "found:    1073741824 bytes")
