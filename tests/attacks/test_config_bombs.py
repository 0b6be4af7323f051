"""Config bombs: numbers of a million digits, values of the wrong kind, and JSON of empty lists in config.json.

Tries to crash or fill the planner, which reads configs of parents that anybody may have written. Stopped by Python's
limit on digits, by a bound on the size of small files, and by checking each value where it is used.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import synthetic
from tests.attacks.attempt import Attacker
from tests.attacks.files import ENTRY, write_header

_KINDS: list[Any] = [[], {}, None, "x", -1, 1e400, 10**400, True, [[[]]], {"a": None}]


def _model(root: Path) -> Path:
    return write_header(root / "model.safetensors", f'{{"w":{ENTRY}}}', b"1234").parent


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "n_routed_experts", "quantization_config", "model_type", "rope_scaling"]
)
def test_values_of_any_kind_crash_nothing(tmp_path: Path, attempt: Attacker, key: str) -> None:
    """Whatever a config holds where a number, a text or an object is meant, there is a plan or one clear error."""
    root = synthetic.make(tmp_path / "v3", 0, "fp8")
    for value in _KINDS:
        (root / "config.json").write_text(json.dumps(synthetic.config_of("fp8") | {key: value}))
        done = attempt("plan", "--parent", f"v3={root}", "--take", "v3:router", "--dtype", "bf16")
        done.check_cheap()
        if done.code:
            assert done.code == 2
            assert not done.err.startswith("crashed"), done.err


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_number_without_end_is_refused_or_not_read(tmp_path: Path, attempt: Attacker, name: str) -> None:
    """A million digits are refused where numbers are read, and soon."""
    (_model(tmp_path) / name).write_text('{"vocab_size":' + "9" * 1_000_000 + "}")
    done = attempt("plan", "--parent", f"v3={tmp_path}")
    done.check_cheap()
    if name == "config.json":
        done.check_refused("config.json: is not valid JSON: Exceeds the limit")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_file_of_a_gigabyte_is_not_read(tmp_path: Path, attempt: Attacker, name: str) -> None:
    """A small text file of a gigabyte is refused by its size."""
    with (_model(tmp_path) / name).open("wb") as file:
        file.truncate(1 << 30)
    attempt("plan", "--parent", f"v3={tmp_path}").check_refused(f"{name}: is too large", "found:    1073741824")


def test_a_config_of_nothings_is_not_made(tmp_path: Path, attempt: Attacker) -> None:
    """A config of 18 MB is no config."""
    (_model(tmp_path) / "config.json").write_text('{"a":[' + "[]," * 6_000_000 + "[]]}")
    attempt("plan", "--parent", f"v3={tmp_path}").check_refused("config.json: is too large")


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "5", "{", "\ufeff{}", '{"a":1,"a":2}', "[" * 100_000),
    ],
)
def test_a_tokenizer_config_of_any_kind_is_copied_or_refused(tmp_path: Path, attempt: Attacker, text: str) -> None:
    """Where a template is asked for from a file that is none, there is one clear error."""
    for name in ("v3", "r1"):
        (tmp_path / name).mkdir()
        (_model(tmp_path / name) / "tokenizer_config.json").write_text(text)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("parents: {v3: v3, r1: r1}\nbase: v3\noutput: {chat_template: r1}\n")
    attempt("plan", recipe).check_refused("chat_template")
