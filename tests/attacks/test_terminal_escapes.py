"""Terminal escapes: names that clear the screen, set its title, run backwards, or add a line that looks like ours.

Tries to make a terminal show, or do, what the file's author wants, through the name of a tensor or a file, through
metadata, a config or a recipe. Stopped by escaping whatever is not printable on the way out, in tables, JSON and errors.
"""

import json
from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker, Attempt
from tests.attacks.files import ENTRY, ESCAPES, write_header

_FILES = [text.replace("/", "") for text in ESCAPES]


def _model(root: Path, data: bytes, *, extra: str = "") -> Path:
    """A model that hides something in every text that it has."""
    root.mkdir()
    names = [f"{text}.w" for text in (*ESCAPES, *([extra] if extra else []))]
    entries = {n: json.loads(ENTRY) | {"data_offsets": [4 * i, 4 * i + 4]} for i, n in enumerate(names)}
    metadata = {f"{text}": text for text in ESCAPES}
    header = json.dumps({"__metadata__": metadata, **entries}, ensure_ascii=False)
    write_header(root / "model.safetensors", header.replace("\x7f", "\\u007f"), data * len(names))
    (root / "config.json").write_text(json.dumps({"model_type": ESCAPES[0], ESCAPES[2]: ESCAPES[1]}))
    for text in _FILES:
        (root / f"{text}.txt").write_text(text)
        (root / f"{text}.gguf").write_text(text)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, attempt: Attacker) -> Path:
    """Two such models, and their child with one byte changed."""
    root = tmp_path_factory.mktemp("escapes")
    _model(root / "v3", b"1234", extra="\x1b]52;c;x\x07")
    _model(root / "r1", b"5678")
    assert attempt("merge", "-o", root / "child", f"--parent=v3={root / 'v3'}", "--base=v3", "-q").code == 0
    shard = root / "child" / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    (root / "child" / f"{_FILES[0]}.txt").write_text("changed")
    (root / "child" / f"{_FILES[0]}.new").write_text("new")
    return root


def _check(done: Attempt, *codes: int) -> None:
    assert done.code in codes, done
    assert done.shown
    assert [line for line in done.shown.split("\n") if not line.isprintable()] == []
    assert not any(line.startswith("error: trust me") for line in done.shown.split("\n"))


_REQUESTS = (
    "verify {root}/child",
    "verify {root}/child --parent=v3={root}/v3",
    "verify {root}/child --table --parent=v3={root}/v3 --parent=r1={root}/r1",
    "merge -o {root}/child --parent=v3={root}/v3 --parent=r1={root}/r1 --base=v3",
    "plan --parent=v3={root}/v3 --parent=r1={root}/r1 --base=v3 --take=r1:other",
)
_NAMING = (
    "verify {root}/child --table --detail --parent=r1={root}/r1",
    "plan --parent=v3={root}/v3 --parent=r1={root}/r1 --base=v3",
)
"""Requests whose answer holds the model's names."""


@pytest.mark.parametrize(
    ("arguments", "terminal"),
    [
        *((arguments, terminal) for terminal in (True, False) for arguments in _REQUESTS),
        *((arguments, True) for arguments in _NAMING),
        *((arguments, False) for arguments in (*_NAMING, "plan --full --parent=v3={root}/v3")),
    ],
)
def test_nothing_unprintable_is_shown(models: Path, attempt: Attacker, arguments: str, terminal: bool) -> None:
    """Whatever the verb, the answer is lines of printable characters."""
    _check(attempt(*arguments.format(root=models).split(), terminal=terminal), 0, 1, 2)


@pytest.mark.parametrize("text", ESCAPES)
def test_errors_about_recipes_show_nothing_unprintable(tmp_path: Path, attempt: Attacker, text: str) -> None:
    """A recipe's own words are repeated with their controls escaped, wherever they stood."""
    said = json.dumps(text)
    write_header(tmp_path / "model.safetensors", f'{{"w":{ENTRY}}}', b"1234")
    for line in (f"{said}: 1", f"rules: {said}", f"rules: [{{take: {said}, mtp: true}}]", f"rules: [{{take: v3, tensors: {said}}}]",
                 f"rules: [{{take: v3, components: {said}}}]", f"output: {{dtype: {said}}}", f"rules: [{{{said}: 1}}]"):  # fmt: skip
        (tmp_path / "recipe.yaml").write_text(f"parents: {{v3: .}}\nbase: v3\n{line}\n")
        done = attempt("plan", tmp_path / "recipe.yaml")
        _check(done, 2)


@pytest.mark.parametrize("text", _FILES)
def test_errors_about_paths_show_nothing_unprintable(tmp_path: Path, attempt: Attacker, text: str) -> None:
    """So are paths, given or found."""
    folder = tmp_path / text
    folder.mkdir()
    (folder / f"{text}.safetensors").write_bytes(b"")
    for arguments in (["plan", f"--parent=v3={folder}"], ["plan", f"--parent=v3={folder}/none"], ["verify", folder], ["plan", folder / text],
                      ["plan", f"--parent={text}={folder}"]):  # fmt: skip
        _check(attempt(*arguments), 2)
