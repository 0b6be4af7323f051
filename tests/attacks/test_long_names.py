"""Long names: a tensor's name of many megabytes, or a path in place of a name.

Tries to make error messages and tables as large as the file, and paths out of names. Stopped by never making a path from
a tensor's name, and by cutting what is repeated of a file.
"""

from pathlib import Path

import pytest

from chimerakit.formats import open_checkpoint
from chimerakit.verify import verify_child
from tests.attacks.attempt import Attacker
from tests.attacks.files import ENTRY, write_header
from tests.merging import merge


@pytest.mark.parametrize("entry", [ENTRY.replace("U8", "F33"), ENTRY.replace("4]", "5]", 1), "5"])
def test_a_name_of_megabytes_is_not_repeated(file: Path, attempt: Attacker, entry: str) -> None:
    """An error about a tensor with a name of 2 MB is still a few lines."""
    write_header(file, f'{{"{"a" * 2_000_000}":{entry}}}', b"1234")
    attempt("plan", "--parent", f"v3={file}").check_refused("aaa", flat=200 << 20)


def test_names_like_paths_stay_names(tmp_path: Path, impatient: None) -> None:
    """A tensor called ../../x is merged and proven like any other, and nothing is written beside the child."""
    names = ("../../x", "/etc/passwd", "..", "", "a\\..\\b", "~", "C:\\x", "a\0b")
    offsets = [ENTRY.replace("[0,4]", f"[{4 * i},{4 * i + 4}]") for i in range(len(names))]
    parent = tmp_path / "a" / "v3"
    parent.mkdir(parents=True)
    keys = ['"' + name.replace("\\", "\\\\").replace("\0", "\\u0000") + '"' for name in names]
    header = "{" + ",".join(f"{key}:{entry}" for key, entry in zip(keys, offsets, strict=True)) + "}"
    write_header(parent / "model.safetensors", header, bytes(4 * len(names)))
    child = tmp_path / "a" / "child"
    merge({"v3": parent}, "- {take: v3, tensors: '*x'}", child, output="shards: by-rule")
    assert set(open_checkpoint(child).tensors) == set(names)
    assert verify_child(child, {"v3": open_checkpoint(parent)}).ok
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_dir()) == ["a", "child", "v3"]
