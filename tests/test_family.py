"""The tiny trained family: real parents, merged, proven, loaded by transformers, answering problems."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from chimerakit.demo import Demo, find_family, run_demo
from chimerakit.errors import CheckpointError
from chimerakit.events import ignore
from chimerakit.formats import open_checkpoint
from chimerakit.runners.local import Threads
from chimerakit.table import summarize, verify_table
from chimerakit.verify import verify_child
from tests import naive
from tests.effort import examples
from tests.merging import merge, sha256_of

FAMILY = Path(__file__).parent.parent / "examples" / "tiny-family"
R1T = "- {take: r1, components: routed_experts}"
MIX = "- {mix: {r1: 0.75}, components: routed_experts}"

# transformers and torch warn of themselves when they load a model.
pytestmark = pytest.mark.filterwarnings("ignore")


def parents(form: str) -> dict[str, Path]:
    return {"v3": FAMILY / f"v3-like{form}", "r1": FAMILY / f"r1-like{form}"}


def is_expert(name: str) -> bool:
    return ".mlp.experts." in name


@pytest.mark.parametrize("form", ["", "-fp8"])
def test_the_published_recipe_copies_every_tensor_from_its_source(tmp_path: Path, form: str) -> None:
    """sha256 of each tensor of the R1T child is that of R1-like's routed experts and of V3-like's rest."""
    merge(parents(form), R1T, tmp_path / "child")
    v3, r1 = (sha256_of(path) for path in parents(form).values())
    assert sha256_of(tmp_path / "child") == {name: (r1 if is_expert(name) else v3)[name] for name in v3}


@pytest.mark.parametrize("form", ["", "-fp8"])
def test_the_table_reads_the_recipe_back(tmp_path: Path, form: str) -> None:
    """Routed experts are R1-like's and not V3-like's; router, shared experts and the rest are V3-like's."""
    merge(parents(form), R1T, tmp_path / "child")
    opened = {name: open_checkpoint(path) for name, path in parents(form).items()}
    for summary in summarize(verify_table(tmp_path / "child", opened)):
        wanted = "r1" if summary.component == "routed_experts" else "v3"
        assert all(wanted in verdict for verdict in summary.verdicts), summary


@pytest.mark.parametrize("name", ["v3-like", "r1-like"])
def test_the_shipped_fp8_form_is_proven_against_the_bf16_form(name: str) -> None:
    """The FP8 parents in the repository are, byte for byte, what chimerakit makes of the BF16 ones."""
    assert verify_child(FAMILY / f"{name}-fp8", {"model": open_checkpoint(FAMILY / name)}).failed == ()


@pytest.mark.parametrize("rules", [MIX, R1T][: examples(quick=1, ci=2, prove=2)])
def test_transformers_computes_what_the_naive_merge_computes(tmp_path: Path, rules: str) -> None:
    """The child loads in transformers, and its logits are those of a model filled with the naively merged tensors."""
    from transformers import AutoModelForCausalLM

    child = tmp_path / "child"
    merge(parents(""), rules, child)
    share = {"r1": 1.0} if rules == R1T else {"v3": 0.25, "r1": 0.75}
    tensors = naive.merge(parents(""), "v3", lambda name: share if is_expert(name) else {"v3": 1.0})
    model = AutoModelForCausalLM.from_pretrained(parents("")["v3"], dtype=torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(child, dtype=torch.float32)
    tokens = torch.arange(7, 39).reshape(2, 16)
    with torch.inference_mode():
        found, original = loaded(tokens).logits, model(tokens).logits
        state = model.state_dict()
        for name, values in _fused(tensors, model.config.n_routed_experts).items():
            state[name].copy_(values)
        assert torch.equal(found, model(tokens).logits)
        assert not torch.equal(found, original)


def _fused(tensors: dict[str, torch.Tensor], num_experts: int) -> dict[str, torch.Tensor]:
    """Published names and shapes -> those that transformers has in memory, where experts are stacked."""
    found = {name: t for name, t in tensors.items() if not is_expert(name)}
    for prefix in {name.split("experts.")[0] + "experts." for name in tensors if is_expert(name)}:
        stacks = {
            kind: torch.stack([tensors[f"{prefix}{e}.{kind}.weight"] for e in range(num_experts)])
            for kind in ("gate_proj", "up_proj", "down_proj")
        }
        found[prefix + "gate_up_proj"] = torch.cat([stacks["gate_proj"], stacks["up_proj"]], 1)
        found[prefix + "down_proj"] = stacks["down_proj"]
    return found


@pytest.mark.parametrize("rules", [MIX, R1T][: examples(quick=1, ci=2, prove=2)])
def test_transformers_loads_the_fp8_child_as_the_naive_merge(tmp_path: Path, rules: str) -> None:
    """transformers' own dequantisation of the FP8 child gives the naively merged and dequantised weights."""
    from transformers import AutoModelForCausalLM

    merge(parents("-fp8"), rules, tmp_path / "child")
    share = {"r1": 1.0} if rules == R1T else {"v3": 0.25, "r1": 0.75}
    tensors = naive.merge(parents("-fp8"), "v3", lambda name: share if is_expert(name) else {"v3": 1.0})
    values: dict[str, torch.Tensor] = {}
    for name, weight in tensors.items():
        if not name.endswith("_scale_inv"):
            scales = [tensors[name + "_scale_inv"]] if name + "_scale_inv" in tensors else []
            values[name] = naive.term(1.0, weight, *scales).to(torch.bfloat16) if scales else weight
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "child")
    state = loaded.state_dict()
    for name, expected in _fused(values, loaded.config.n_routed_experts).items():
        assert torch.equal(state[name].float(), expected.float()), name


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The demo's own code on 30 problems: the parents and two children."""
    output = tmp_path_factory.mktemp("demo")
    only = ("v3-like", "r1-like", "r1t", "three-quarters-fp8")
    return run_demo(FAMILY, output, num_problems=30, runner=Threads(2), listener=ignore, only=only)


@pytest.mark.slow
def test_the_parents_behave_as_documented(shown: Demo) -> None:
    """On 30 held-out problems R1-like reasons in traces and is right; V3-like does neither as often, in fewer tokens."""
    by_name: dict[str, Any] = {row.name: row.measurement for row in shown.rows}
    v3, r1 = by_name["v3-like"], by_name["r1-like"]
    documented = json.loads((FAMILY / "intervals.json").read_text())
    for name, m in (("v3-like", v3), ("r1-like", r1)):
        for what, value in (("accuracy", m.accuracy), ("trace_share", m.trace_rate)):
            low, high = documented[name][what]
            assert low <= value.value <= high, (name, what, value)
    assert v3.output_tokens.value <= 0.5 * r1.output_tokens.value
    assert v3.accuracy.value < r1.accuracy.value


@pytest.mark.slow
def test_every_child_of_the_demo_is_proven(shown: Demo) -> None:
    """Each child is verified against its parents, and the conclusions say so."""
    children = [row for row in shown.rows if row.proof is not None]
    assert [row.name for row in children] == ["r1t", "three-quarters-fp8"]
    assert shown.ok
    assert shown.says[0].startswith("2 of 2 children are proven")


def test_a_family_that_is_not_there_says_where_to_get_it(tmp_path: Path) -> None:
    """An installed package has no family; the error says what to do."""
    with pytest.raises(CheckpointError, match=r"not part of an installed package: clone the repository"):
        find_family(tmp_path)
