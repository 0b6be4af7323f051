"""Children of GGUF parents whose weights are quants: shares are found by storing again what is near the best fit."""

from pathlib import Path

import pytest

from chimerakit.explain import Explanation, explain_child
from chimerakit.formats import open_checkpoint
from chimerakit.merge import merge_parents
from chimerakit.recipe import say_rule
from tests import gguf_files
from tests.plan.test_gguf import plan_of

pytestmark = pytest.mark.usefixtures("impatient")

Family = dict[str, Path]
PLAIN = dict.fromkeys(("weight",), "BF16")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Two models of small numbers in BF16, so that they can be stored as anything."""
    root = tmp_path_factory.mktemp("pair")
    more = {"v3": {}, "r1": {"tokenizer.chat_template": "{{ '<think>' }}"}}
    return {
        name: gguf_files.make(root / f"{name}.gguf", seed, types=PLAIN, values=True, more=more[name])
        for seed, name in enumerate(("v3", "r1"), 1)
    }


def explain(child: Path, parents: Family) -> Explanation:
    """What a child is made of."""
    return explain_child(child, {name: open_checkpoint(path) for name, path in parents.items()})


def rules_of(found: Explanation) -> list[str]:
    """The recipe's rules, each in one line."""
    assert found.is_explained
    assert not found.unlike
    assert found.recipe is not None
    return [say_rule(rule) for rule in found.recipe.rules]


@pytest.mark.parametrize("dtype", ["q8_0", pytest.param("q4_k", marks=pytest.mark.slow), "q5_1"])
@pytest.mark.parametrize("share", [0.75, pytest.param(0.6137, marks=pytest.mark.slow)])
def test_the_share_of_a_mix_is_found(pair: Family, dtype: str, share: float, tmp_path: Path) -> None:
    """To its last decimal, and proven: it gives every byte of every unit."""
    rule = f"mix: {{r1: {share}}}, components: routed_experts"
    merge_parents(plan_of(pair, f"- {{{rule}}}", output=f"dtype: {dtype}"), tmp_path / "child")
    found = explain(tmp_path / "child", pair)
    assert rules_of(found) == [rule]
    assert found.recipe is not None
    assert found.recipe.output.dtype == dtype


def test_a_copy_that_is_stored_otherwise_is_found(pair: Family, tmp_path: Path) -> None:
    """Whose values they are, and how they are stored; and the template, which stands in the same file."""
    rule = "take: r1, components: routed_experts, layers: '1'"
    plan = plan_of(pair, f"- {{{rule}}}", output="dtype: q8_0, chat_template: r1")
    merge_parents(plan, tmp_path / "child")
    found = explain(tmp_path / "child", pair)
    assert rules_of(found) == [rule]
    assert found.recipe is not None
    assert (found.recipe.output.dtype, found.recipe.output.chat_template) == ("q8_0", "r1")
    assert {unit.verdict for unit in found.units} == {"equal"}
    assert found.differences["v3"][-1] == (
        "chat template: only the child's has <think>, which decides whether an answer begins with a trace"
    )


def test_what_is_no_mix_is_named(pair: Family, tmp_path: Path) -> None:
    """A byte that was changed, in one expert of a stack."""
    merge_parents(
        plan_of(pair, "- {mix: {r1: 0.5}, components: routed_experts}", output="dtype: q8_0"), tmp_path / "child"
    )
    name = "blk.1.ffn_up_exps.weight[2]"
    tensor = open_checkpoint(tmp_path / "child").tensors[name]
    data = bytearray((tmp_path / "child" / tensor.file).read_bytes())
    data[tensor.start + 40] ^= 1
    (tmp_path / "child" / tensor.file).write_bytes(data)
    found = explain(tmp_path / "child", pair)
    assert [unit.unit for unit in found.units if unit.verdict == "unexplained"] == [name]
