"""Index paths: an index that says a tensor lies in `../other`, in /etc/passwd or in a file with a backslash.

Tries to read files outside the checkpoint and, since a child has the names of its base's files, to write outside the
child. Stopped by taking nothing but plain file names that end in .safetensors.
"""

import json
from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker
from tests.attacks.files import ENTRY, ESCAPES, write_header

_NAMES = ("../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\..\\b.safetensors", "..", "", "/etc/passwd",
          ".chimerakit/x.safetensors", "x.safetensors\0.txt", "x.safetensors/..", ".x.safetensors")  # fmt: skip


@pytest.mark.parametrize(
    "name", [*_NAMES, *(f"{text}.safetensors" for text in ESCAPES if not text.isprintable() and text < " ")]
)
def test_a_file_that_is_no_plain_name_is_refused(tmp_path: Path, attempt: Attacker, name: str) -> None:
    """An index with such a name is refused before any shard is opened."""
    (tmp_path / "v3").mkdir()
    write_header(tmp_path / "x.safetensors", f'{{"w":{ENTRY}}}', b"1234")
    (tmp_path / "v3" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    attempt("plan", "--parent", f"v3={tmp_path / 'v3'}").check_refused("'w' is not in a plain file name")


def test_a_file_for_each_tensor_is_cheap(tmp_path: Path, attempt: Attacker) -> None:
    """An index that names 50,000 files is refused at the first one that is missing."""
    names = {f"w{i}": f"{i}.safetensors" for i in range(50_000)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    attempt("plan", "--parent", f"v3={tmp_path}").check_refused("0.safetensors: can't be opened")
