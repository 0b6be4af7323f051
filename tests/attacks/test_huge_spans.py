"""Huge spans: a rule for layers 0 to 10^18, and models that say they have a million layers.

Tries to make a list of every number in between. Stopped by six digits for a number in a recipe, by a bound on what a
config may say, and by comparing a span with the model before anything is counted.
"""

import json
from pathlib import Path

import pytest

from tests.attacks.attempt import Attacker, Attempt
from tests.attacks.files import ENTRY, write_header


def _plan(tmp_path: Path, attempt: Attacker, rule: str, **config: object) -> Attempt:
    write_header(tmp_path / "model.safetensors", f'{{"model.norm.weight":{ENTRY}}}', b"1234")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek_v3", **config}))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"parents: {{v3: .}}\nbase: v3\nrules:\n- {{take: v3, {rule}}}\n")
    return attempt("plan", recipe)


@pytest.mark.parametrize(
    "span", ["0-1000000000000000000", "1000000", "last 1000000", "0-" + "9" * 4000, "9" * 90, "-1", "last 0"]
)
@pytest.mark.parametrize("what", ["layers", "experts"])
def test_a_span_beyond_every_model_is_refused(tmp_path: Path, attempt: Attacker, what: str, span: str) -> None:
    """Numbers of more than six digits are no layers."""
    _plan(tmp_path, attempt, f"{what}: {span}").check_refused(f"rule 1: {what}: is no range of numbers")


def test_a_span_beyond_the_model_is_refused(tmp_path: Path, attempt: Attacker) -> None:
    """A span that the model does not have is refused without counting it."""
    _plan(tmp_path, attempt, "layers: 0-999999", num_hidden_layers=61).check_refused("0-999999 is beyond the model")


def test_many_spans_are_cheap(tmp_path: Path, attempt: Attacker) -> None:
    """Many spans of a million layers, in a model that says it has them, cost no more than one."""
    spans = ", ".join(["0-999999"] * 20)
    _plan(tmp_path, attempt, f"layers: [{spans}]", num_hidden_layers=(1 << 20) - 1).check_cheap()


@pytest.mark.parametrize("count", [1 << 20, -1, 1.5, "61", True, [61], 10**400, None])
def test_a_count_that_is_none_is_refused(tmp_path: Path, attempt: Attacker, count: object) -> None:
    """A config that says it has a billion layers, or half of one, is refused; one that says nothing has none."""
    done = _plan(tmp_path, attempt, "layers: 0-1", num_hidden_layers=count)
    done.check_refused("matches nothing" if count is None else "num_hidden_layers must be a whole number")
