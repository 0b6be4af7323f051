"""Deep nesting: millions of opening brackets, in every JSON file that is read, and in a recipe.

Tries to overflow the stack of a parser that calls itself, or of whatever walks the result. Stopped by the parsers' own
limits on depth, which end in a refusal; what is deep and allowed is never walked by code with a lower limit.
"""

from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker
from tests.attacks.files import ENTRY, write_header
from tests.merging import merge

_LISTS, _OBJECTS = "[" * 1_000_000, '{"a":' * 1_000_000
_DEEP = '{"a":' * 900 + "1" + "}" * 900


@pytest.mark.parametrize("nest", [_LISTS, _OBJECTS])
def test_a_nested_header_is_refused(file: Path, attempt: Attacker, nest: str) -> None:
    """A header of nothing but brackets is one clear error."""
    write_header(file, '{"w":' + nest)
    attempt("plan", "--parent", f"v3={file}").check_refused(f"{file}", "header")


@pytest.mark.parametrize("nest", [_LISTS, _OBJECTS])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_nested_json_file_is_refused(tmp_path: Path, attempt: Attacker, name: str, nest: str) -> None:
    """A config or an index of nothing but brackets is one clear error."""
    write_header(tmp_path / "model.safetensors", f'{{"w":{ENTRY}}}', b"1234")
    for text, says in ((nest, "is too large"), (nest[:50_000], "is not valid JSON")):
        (tmp_path / name).write_text(text)
        attempt("plan", "--parent", f"v3={tmp_path}").check_refused(f"{tmp_path / name}: {says}")


@pytest.mark.parametrize("nest", [_LISTS, _OBJECTS])
def test_a_nested_manifest_is_refused(tmp_path: Path, attempt: Attacker, nest: str) -> None:
    """A manifest of nothing but brackets, where anything may stand, is one clear error."""
    (tmp_path / "chimerakit.json").write_text('{"recipe":' + nest)
    attempt("verify", tmp_path).check_refused("the manifest can't be read", "recursion")


@pytest.mark.parametrize("nest", ["[" * 50_000, "{a: " * 15_000, "- " * 30_000, "? " * 30_000])
def test_a_nested_recipe_is_refused(tmp_path: Path, attempt: Attacker, nest: str) -> None:
    """A recipe that is nested in any style is one clear error."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("parents: {v3: }\nbase: v3\nrules:\n " + nest)
    attempt("plan", recipe).check_refused("is not a valid recipe text")


def test_a_config_as_deep_as_json_allows_is_merged(tmp_path: Path, impatient: None) -> None:
    """A config that the parser still takes breaks nothing later, when the work is done: its record is written."""
    root = tmp_path / "v3"
    root.mkdir()
    write_header(root / "model.safetensors", f'{{"w":{ENTRY}}}', b"1234")
    (root / "config.json").write_text(_DEEP)
    merged = merge({"v3": root}, "- {take: v3, components: all}", tmp_path / "child")
    assert merged.manifest.parents["v3"].config
