"""JSON of checkpoints: one meaning or none. How files that hold it are refused is shown with the checkpoints they are in."""

import json
from pathlib import Path

import pytest

from chimerakit.errors import CheckpointError
from chimerakit.formats.strict_json import parse_json, read_object


def test_whole_surrogate_pairs_are_text() -> None:
    """A character that JSON writes as two escapes is read as one; only half a pair is refused."""
    assert parse_json(b'{"a": "\\ud83d\\ude00"}', "here") == {"a": "😀"}


@pytest.mark.parametrize("indent", [None, 2, 4])
def test_the_spelling_of_an_object_does_not_matter(tmp_path: Path, indent: int | None) -> None:
    """An object is read the same as every library writes it, which is quick, and in any other spelling."""
    said = {"a": [1, 2.5, None, True], "é": {"b": "\n"}}
    (tmp_path / "config.json").write_text(json.dumps(said, indent=indent))
    assert read_object(tmp_path / "config.json", 1000) == said


def test_a_file_of_more_lists_than_any_config_has_is_refused(tmp_path: Path) -> None:
    """Empty lists take far more memory than text, so they are counted before they are made."""
    (tmp_path / "config.json").write_text("[" + "[]," * 100_000 + "[]]")
    with pytest.raises(CheckpointError, match=r"is too large\n  expected: at most 100000 lists and objects"):
        read_object(tmp_path / "config.json", 1 << 20)
