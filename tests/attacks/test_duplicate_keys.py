"""Duplicate keys: one name with two meanings, of which one reader takes the first and another the last.

Tries to show a scanner one model and a loader another. Stopped by refusing every object that has a key twice, in any
spelling, in each file that is read as JSON or YAML; a manifest's is found when it is held against the parents.
"""

from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker
from tests.attacks.files import ENTRY, write_header


@pytest.mark.parametrize(
    "header",
    [
        f'{{"w":{ENTRY},"w":{ENTRY}}}',
        f'{{"w":{ENTRY},"\\u0077":{ENTRY}}}',
        f'{{"w":null,"w":{ENTRY}}}',
        f'{{"__metadata__":{{}},"w":{ENTRY},"__metadata__":{{}}}}',
        f'{{"__metadata__":{{"a":"1","a":"2"}},"w":{ENTRY}}}',
        '{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"dtyp\\u0065":"I8"}}',
    ],
)
def test_a_header_with_a_key_twice_is_refused(file: Path, attempt: Attacker, header: str) -> None:
    """In a header no name, no field and no key of the metadata stands twice."""
    write_header(file, header, b"1234")
    attempt("plan", "--parent", f"v3={file}").check_refused("twice")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_json_file_with_a_key_twice_is_refused(tmp_path: Path, attempt: Attacker, name: str) -> None:
    """Nor in a config or an index, however deep."""
    write_header(tmp_path / "model.safetensors", f'{{"w":{ENTRY}}}', b"1234")
    (tmp_path / name).write_text('{"a":{"b":1,"\\u0062":2},"weight_map":{"w":"model.safetensors"}}')
    attempt("plan", "--parent", f"v3={tmp_path}").check_refused(f"{tmp_path / name}: has the key 'b' twice")


def test_a_recipe_with_a_key_twice_is_refused(tmp_path: Path, attempt: Attacker) -> None:
    """Nor in a recipe, in quotes or not."""
    (tmp_path / "recipe.yaml").write_text('parents: {v3: }\nbase: v3\n"b\\x61se": v3\n')
    attempt("plan", tmp_path / "recipe.yaml").check_refused("line 3", "the key 'base' stands twice")


def test_a_hundred_thousand_keys_of_one_name_are_refused(file: Path, attempt: Attacker) -> None:
    """Finding a key that stands twice takes no time that grows with the square of their number."""
    write_header(file, "{" + ",".join([f'"w":{ENTRY}'] * 100_000) + "}", b"1234")
    attempt("plan", "--parent", f"v3={file}").check_refused("twice", flat=200 << 20)
