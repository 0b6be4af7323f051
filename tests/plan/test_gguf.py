"""Children of GGUF parents, picked byte for byte: every tensor held against its source as gguf-py reads both."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFValueType

from chimerakit.errors import PlanError
from chimerakit.explain import explain_child
from chimerakit.formats import open_checkpoint
from chimerakit.merge import merge_parents
from chimerakit.plan import make_plan
from chimerakit.recipe import parse_recipe, say_rule
from chimerakit.records import ImatrixFile, Plan
from chimerakit.verify import verify_child
from tests import gguf_files

pytestmark = pytest.mark.usefixtures("impatient")

Family = dict[str, Path]
R1T = "- {take: r1, components: routed_experts}"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Two models of several types; the second has some tensors in other ones, as dynamic quants do."""
    root = tmp_path_factory.mktemp("pair")
    types = {"v3": {"exps": "Q4_K", "ffn_down": "Q6_K"}, "r1": {"ffn_down_exps": "Q6_K", "exps": "IQ2_XXS"}}
    more = {
        "v3": {},
        "r1": {"general.name": "another", "general.license": "mit", "tokenizer.chat_template": "{{ think }}"},
    }
    return {
        name: gguf_files.make(root / f"{name}.gguf", seed, types=types[name], more=more[name])
        for seed, name in enumerate(("v3", "r1"), 1)
    }


def plan_of(
    parents: Mapping[str, Path],
    rules: str = "",
    output: str = "",
    base: str = "v3",
    imatrix: ImatrixFile | None = None,
) -> Plan:
    """The plan of some rules in YAML."""
    names = ", ".join(f"{name}: null" for name in parents)
    text = f"parents: {{{names}}}\nbase: {base}\n" + (f"rules:\n{rules}\n" if rules else "")
    text += f"output: {{{output}}}\n" if output else ""
    return make_plan(parse_recipe(text), {n: open_checkpoint(path) for n, path in parents.items()}, imatrix=imatrix)


def problems_of(*arguments: Any, **options: Any) -> tuple[str, ...]:
    """What is wrong with a plan."""
    with pytest.raises(PlanError) as caught:
        plan_of(*arguments, **options)
    return caught.value.problems


def tensors_of(*paths: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every tensor, as gguf-py reads them."""
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for path in paths for t in GGUFReader(path).tensors}


def keys_of(path: Path) -> dict[str, Any]:
    """Every key, as gguf-py reads them."""
    return {f.name: f.contents() for f in GGUFReader(path).fields.values() if not f.name.startswith("GGUF.")}


def files_of(child: Path) -> list[Path]:
    """A child's weight files."""
    return sorted(child.glob("*.gguf"))


def check_child(child: Path, parents: Mapping[str, Path]) -> None:
    """It is proven against its parents, and its recipe is read out of it again."""
    opened = {name: open_checkpoint(path) for name, path in parents.items()}
    findings = verify_child(child, opened)
    assert findings.ok, findings.failed
    assert explain_child(child, opened).is_explained


# ------------------------------------------------------------------------------------------------ picked


def test_a_recipe_without_rules_copies_the_file(pair: Family, tmp_path: Path) -> None:
    """Byte for byte, header and all."""
    merge_parents(plan_of(pair), tmp_path / "child")
    assert (tmp_path / "child" / "model.gguf").read_bytes() == pair["v3"].read_bytes()
    check_child(tmp_path / "child", pair)


def test_every_tensor_is_byte_equal_to_its_source(pair: Family, tmp_path: Path) -> None:
    """And keeps its type, whichever parent it is from: so does the whole R1T recipe."""
    merge_parents(plan_of(pair, R1T), tmp_path / "child")
    sources = {name: tensors_of(path) for name, path in pair.items()}
    found = tensors_of(*files_of(tmp_path / "child"))
    assert list(found) == list(sources["v3"])
    for name, tensor in found.items():
        assert tensor == sources["r1" if "_exps" in name else "v3"][name]
    check_child(tmp_path / "child", pair)


def test_the_recipe_is_read_out_of_the_child(pair: Family, tmp_path: Path) -> None:
    """From weights alone, with as many rules."""
    rules = "- {take: r1, components: [routed_experts, shared_experts], layers: 1}\n- {take: r1, components: head}"
    merge_parents(plan_of(pair, rules), tmp_path / "child")
    found = explain_child(tmp_path / "child", {name: open_checkpoint(path) for name, path in pair.items()})
    assert found.is_explained
    assert not found.unlike
    assert found.recipe is not None
    assert len(found.recipe.rules) == 2, [say_rule(rule) for rule in found.recipe.rules]


def test_single_experts_are_picked_out_of_stacks(tmp_path: Path) -> None:
    """A per-expert rule is the same rule as in safetensors; so is a glob over the tensor that holds all of them."""
    pair = {name: gguf_files.make(tmp_path / f"{name}.gguf", seed) for seed, name in enumerate(("v3", "r1"), 1)}
    rules = (
        "- {take: r1, components: routed_experts, experts: [1, 3], layers: 1}\n"
        '- {take: r1, tensors: "blk.2.ffn_up_exps.weight"}'
    )
    merge_parents(plan_of(pair, rules), tmp_path / "child")
    found = {t.name: t.data for t in GGUFReader(tmp_path / "child" / "model.gguf").tensors}
    v3, r1 = ({t.name: t.data for t in GGUFReader(path).tensors} for path in pair.values())
    for name, data in found.items():
        if "_exps" in name:
            whose = [r1, v3][name != "blk.2.ffn_up_exps.weight"]
            for expert in range(gguf_files.EXPERTS):
                source = r1 if name.startswith("blk.1.") and expert in (1, 3) else whose
                assert data[expert].tobytes() == source[name][expert].tobytes()
        else:
            assert data.tobytes() == v3[name].tobytes()
    check_child(tmp_path / "child", pair)


def test_experts_of_several_types_can_not_lie_in_one_tensor(pair: Family) -> None:
    """A tensor has one type; nothing is requantised unasked."""
    problems = problems_of(pair, "- {take: r1, components: routed_experts, experts: 1, layers: 1}")
    assert len(problems) == 3
    assert problems[0] == (
        "blk.1.ffn_gate_exps.weight: its experts lie in one tensor and would be of several types: "
        "blk.1.ffn_gate_exps.weight[0] Q4_K, blk.1.ffn_gate_exps.weight[1] IQ2_XXS; take all of them from one parent, or say output: dtype"
    )


# -------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("dtype", "narrow"),
    [("q4_k", "Q5_0"), ("q5_k", "Q5_1"), ("q6_k", "Q8_0"), ("q3_k", "Q4_0"), ("iq4_xs", "IQ4_NL"), ("q8_0", "Q8_0")],
)
def test_rows_that_are_no_whole_blocks_are_stored_as_llama_cpp_does(pair: Family, dtype: str, narrow: str) -> None:
    """attn_k_b has rows of 128 weights (tensor_type_fallback in llama-quant.cpp)."""
    storages = {row.unit: row.storage for row in plan_of(pair, output=f"dtype: {dtype}").rows}
    assert storages["blk.1.attn_k_b.weight"] == narrow
    assert storages["blk.1.attn_v_b.weight"] == dtype.upper()


def test_keys_tell_the_truth(pair: Family, tmp_path: Path) -> None:
    """A child is named as what it is; what is the model's structure is the base's."""
    merge_parents(plan_of(pair, R1T), tmp_path / "child")
    before, found = keys_of(pair["v3"]), keys_of(tmp_path / "child" / "model.gguf")
    assert {key: found[key] for key in found if found[key] != before.get(key)} == {
        "general.name": "Chimera of a small model and another",
        "general.base_model.count": 2,
        "general.base_model.0.name": "a small model",
        "general.base_model.1.name": "another",
    }
    assert before.keys() <= found.keys()


def test_whose_quants_an_imatrix_made_is_not_said_of_others(tmp_path: Path) -> None:
    """The base's imatrix did not make what another parent gives."""
    said = [
        {"quantize.imatrix.file": "a.dat", "general.file_type": 7, "general.version": "1"},
        {"general.file_type": 15},
    ]
    pair = {
        name: gguf_files.make(tmp_path / f"{name}.gguf", seed, types={"ffn": "Q4_K"}, more=more)
        for seed, (name, more) in enumerate(zip(("v3", "r1"), said, strict=True), 1)
    }
    merge_parents(plan_of(pair, R1T), tmp_path / "child")
    found = keys_of(tmp_path / "child" / "model.gguf")
    assert "quantize.imatrix.file" not in found
    assert "general.version" not in found
    assert found["general.base_model.0.version"] == "1"
    assert found["general.file_type"] == 15  # as most weights are stored
    merge_parents(plan_of(pair), tmp_path / "copy")
    assert keys_of(tmp_path / "copy" / "model.gguf") == keys_of(pair["v3"])


def test_another_parents_tokenizer_or_template_is_taken(pair: Family, tmp_path: Path) -> None:
    """As the recipe says; the weights are copied, so no name changes."""
    keys = {name: keys_of(path) for name, path in pair.items()}
    merge_parents(plan_of(pair, output="chat_template: r1"), tmp_path / "template")
    found = keys_of(tmp_path / "template" / "model.gguf")
    assert found == keys["v3"] | {"tokenizer.chat_template": "{{ think }}"}
    merge_parents(plan_of(pair, output="tokenizer: r1, chat_template: v3"), tmp_path / "tokenizer")
    found = keys_of(tmp_path / "tokenizer" / "model.gguf")
    assert found == keys["v3"] | {k: v for k, v in keys["r1"].items() if k.startswith("tokenizer.ggml.")}
    check_child(tmp_path / "template", pair)
    check_child(tmp_path / "tokenizer", pair)


def test_keys_that_parents_do_not_share_are_listed(tmp_path: Path) -> None:
    """Rope scaling, how experts are weighted, tokenizer and template: they decide how a child behaves."""
    more = {
        "deepseek2.expert_gating_func": 2,
        "deepseek2.rope.scaling.type": "yarn",
        "tokenizer.ggml.tokens": ["other"] * gguf_files.VOCABULARY,
        "general.name": "another",
    }
    pair = {
        "v3": gguf_files.make(tmp_path / "v3.gguf", 1),
        "r1": gguf_files.make(tmp_path / "r1.gguf", 2, more=more),
    }
    assert plan_of(pair, R1T).notes == (
        "'r1' differs from the base in 3 keys: tokenizer.ggml.tokens (another list of 96, not another list of 96); "
        "deepseek2.expert_gating_func (2, not absent); deepseek2.rope.scaling.type ('yarn', not absent)",
    )


def test_a_base_that_gives_nothing_says_nothing_of_the_weights(tmp_path: Path) -> None:
    """How they are stored, and by whose imatrix, is what the parent says that gives them."""
    more = [
        {"quantize.imatrix.file": f"{name}.dat", "general.file_type": number} for name, number in (("a", 15), ("b", 7))
    ]
    pair = {
        name: gguf_files.make(tmp_path / f"{name}.gguf", seed, more=each)
        for seed, (name, each) in enumerate(zip(("v3", "r1"), more, strict=True), 1)
    }
    merge_parents(plan_of(pair, "- {take: r1, components: all}"), tmp_path / "child")
    found = keys_of(tmp_path / "child" / "model.gguf")
    assert (found["quantize.imatrix.file"], found["general.file_type"]) == ("b.dat", 7)


def test_a_type_that_has_no_number_is_not_said(tmp_path: Path) -> None:
    """Better no file type than a wrong one."""
    pair = {
        name: gguf_files.make(tmp_path / f"{name}.gguf", seed, types={"ffn": "Q8_K"}, more={"general.file_type": seed})
        for seed, name in enumerate(("v3", "r1"), 1)
    }
    merge_parents(plan_of(pair, R1T), tmp_path / "child")
    assert "general.file_type" not in keys_of(tmp_path / "child" / "model.gguf")


def test_a_tokenizer_of_another_size_is_refused(pair: Family, tmp_path: Path) -> None:
    """The embedding has a row for each token; no engine would load the child."""
    more = {"tokenizer.ggml.tokens": ["a"] * (gguf_files.VOCABULARY + 1)}
    parents = {"v3": pair["v3"], "r1": gguf_files.make(tmp_path / "r1.gguf", 2, more=more)}
    (problem,) = problems_of(parents, output="tokenizer: r1")
    assert problem == "output: tokenizer: 'r1' has 97 tokens, and the base's embedding 96"


def test_templates_with_names_go_with_the_template(tmp_path: Path) -> None:
    """Not with the tokenizer."""
    parents = {"v3": gguf_files.make(tmp_path / "v3.gguf", 1)}
    more = {"tokenizer.chat_template.tool_use": "{{ tools }}", "tokenizer.chat_template": "{{ x }}"}
    parents["r1"] = gguf_files.make(tmp_path / "r1.gguf", 2, more=more)
    for output, has_tools in (("tokenizer: r1, chat_template: v3", False), ("chat_template: r1", True)):
        folder = tmp_path / str(has_tools)
        merge_parents(plan_of(parents, output=output), folder)
        assert ("tokenizer.chat_template.tool_use" in keys_of(folder / "model.gguf")) == has_tools


# ------------------------------------------------------------------------------------------------- files


def test_a_split_base_gives_as_many_files(pair: Family, tmp_path: Path) -> None:
    """With the same tensors in each; a file of which nothing changes keeps its bytes."""
    (tmp_path / "v3").mkdir()
    options: dict[str, Any] = {"types": {"exps": "Q4_K", "ffn_down": "Q6_K"}}
    gguf_files.make(tmp_path / "v3" / "m.gguf", 1, split_max_tensors=15, **options)
    parents = {"v3": tmp_path / "v3", "r1": pair["r1"]}
    merge_parents(plan_of(parents, "- {take: r1, components: head}"), tmp_path / "child")
    mine, theirs = files_of(tmp_path / "child"), files_of(tmp_path / "v3")
    assert [file.name for file in mine] == [
        f"model-{n:05d}-of-{len(theirs):05d}.gguf" for n in range(1, len(theirs) + 1)
    ]
    is_kept = [a.read_bytes() == b.read_bytes() for a, b in zip(mine, theirs, strict=True)]
    assert is_kept == [False, *[True] * (len(mine) - 2), False]
    assert [list(tensors_of(file)) for file in mine] == [list(tensors_of(file)) for file in theirs]
    merge_parents(plan_of({"v3": pair["v3"], "r1": pair["r1"]}, "- {take: r1, components: head}"), tmp_path / "whole")
    assert tensors_of(*mine) == tensors_of(tmp_path / "whole" / "model.gguf")
    check_child(tmp_path / "child", parents)


def test_a_child_is_split_by_size(pair: Family, tmp_path: Path) -> None:
    """No file has more bytes of weights than asked for, unless one tensor has; and none is cut needlessly."""
    limit = 400_000
    merge_parents(plan_of(pair, R1T, output=f"split_max_size: {limit}"), tmp_path / "child")
    merge_parents(plan_of(pair, R1T), tmp_path / "whole")
    files = files_of(tmp_path / "child")
    sizes = [[t.n_bytes for t in GGUFReader(file).tensors] for file in files]
    assert len(files) > 3
    assert all(sum(of) <= limit or len(of) == 1 for of in sizes)
    assert all(sum(of) + later[0] > limit for of, later in pairwise(sizes))
    assert tensors_of(*files) == tensors_of(tmp_path / "whole" / "model.gguf")
    assert keys_of(files[0]) == keys_of(tmp_path / "whole" / "model.gguf") | {
        "split.no": 0, "split.count": len(files), "split.tensors.count": sum(map(len, sizes)),
    }  # fmt: skip
    check_child(tmp_path / "child", pair)
    merge_parents(plan_of({"v3": tmp_path / "child"}, output="split_max_size: 1TB"), tmp_path / "joined")
    assert (tmp_path / "joined" / "model.gguf").read_bytes() == (tmp_path / "whole" / "model.gguf").read_bytes()


def test_a_first_file_without_tensors_is_written(tmp_path: Path) -> None:
    """As llama-gguf-split writes it with --no-tensor-first-split: keys only."""
    whole = gguf_files.layout()
    keys = gguf_files.keys_of()
    splits = [{"split.no": (n, GGUFValueType.UINT16), "split.count": (2, GGUFValueType.UINT16)} for n in range(2)]
    total = {"split.tensors.count": (len(whole), GGUFValueType.INT32)}
    gguf_files.write(tmp_path / "m-00001-of-00002.gguf", {}, keys | splits[0] | total)
    gguf_files.write(tmp_path / "m-00002-of-00002.gguf", whole, {"deepseek2.expert_count": 4} | splits[1] | total)
    parents = {"v3": tmp_path / "m-00001-of-00002.gguf", "r1": gguf_files.make(tmp_path / "r1.gguf", 2)}
    merge_parents(plan_of(parents, R1T), tmp_path / "child")
    assert [len(GGUFReader(file).tensors) for file in files_of(tmp_path / "child")] == [0, len(whole)]
    check_child(tmp_path / "child", parents)


def test_files_with_something_in_their_padding_are_not_linked(tmp_path: Path) -> None:
    """The child has zeros there, and so it can be proven."""
    path = gguf_files.make(tmp_path / "v3.gguf", 1, alignment=256)
    tensor = next(t for t in open_checkpoint(path).tensors.values() if (t.start + t.nbytes) % 256)
    data = bytearray(path.read_bytes())
    for is_dirty in (False, True):
        data[tensor.start + tensor.nbytes] = is_dirty
        path.write_bytes(data)
        child = tmp_path / f"child {is_dirty}"
        merge_parents(plan_of({"v3": path}), child, link=True)
        assert (child / "model.gguf").samefile(path) != is_dirty
        assert verify_child(child, {"v3": open_checkpoint(path)}).ok


def test_another_alignment_is_kept(tmp_path: Path) -> None:
    """Every tensor begins at a multiple of it."""
    pair = {
        "v3": gguf_files.make(tmp_path / "v3.gguf", 1, alignment=256),
        "r1": gguf_files.make(tmp_path / "r1.gguf", 2),
    }
    merge_parents(plan_of(pair, R1T), tmp_path / "child")
    reader = GGUFReader(tmp_path / "child" / "model.gguf")
    assert reader.alignment == 256
    assert all(tensor.data_offset % 256 == 0 for tensor in reader.tensors)
    check_child(tmp_path / "child", pair)


def test_what_hides_in_padding_is_found(tmp_path: Path) -> None:
    """No tensor's digest is of these bytes; a byte there is named."""
    parents = {"v3": gguf_files.make(tmp_path / "v3.gguf", 1, alignment=256)}
    merge_parents(plan_of(parents), tmp_path / "child")
    file = tmp_path / "child" / "model.gguf"
    found = open_checkpoint(file).tensors
    tensor = next(t for t in found.values() if (t.start + t.nbytes) % 256)
    assert verify_child(tmp_path / "child").ok
    data = bytearray(file.read_bytes())
    data[tensor.start + tensor.nbytes] = 1
    file.write_bytes(data)
    (finding,) = verify_child(tmp_path / "child").failed
    assert finding.says.startswith("there is something in the padding before ")


@pytest.mark.parametrize("base", ["v3", "r1"])
def test_a_parent_without_nextn_layers_is_one_of_the_same_model(base: str, tmp_path: Path) -> None:
    """Many GGUF files lack them: the child has the base's, and a rule that would take them from where they aren't says so."""
    pair = {
        "v3": gguf_files.make(tmp_path / "v3.gguf", 1),
        "r1": gguf_files.make(tmp_path / "r1.gguf", 2, mtp=True),
    }
    other = "r1" if base == "v3" else "v3"
    rule = f"- {{take: {other}, components: routed_experts"
    if base == "r1":
        (problem,) = problems_of(pair, rule + "}", base=base)
        assert problem.startswith("rule 1 takes 12 units from 'v3' that it does not have")
        assert problem.endswith("add `mtp: false` to the rule to leave them out")
    merge_parents(plan_of(pair, rule + ", mtp: false}", base=base), tmp_path / "child")
    sources = {name: tensors_of(path) for name, path in pair.items()}
    found = tensors_of(*files_of(tmp_path / "child"))
    assert list(found) == list(sources[base])
    for name, tensor in found.items():
        assert tensor == sources[other if "_exps" in name and not name.startswith("blk.3.") else base][name]
    check_child(tmp_path / "child", pair)


# ----------------------------------------------------------------------------------------------- refused


def test_parents_of_other_shapes_are_refused(pair: Family, tmp_path: Path) -> None:
    """Another number of experts or layers, or another architecture."""
    more = {"deepseek2.expert_used_count": 3}
    odd = gguf_files.make(tmp_path / "odd.gguf", 3, more=more)
    (problem,) = problems_of({"v3": pair["v3"], "r1": odd}, R1T)
    assert problem == (
        "'r1' has config values that give tensors another meaning than the base's: deepseek2.expert_used_count: 3, not 2"
    )


def test_another_number_of_main_layers_is_refused(pair: Family, tmp_path: Path) -> None:
    """Where one parent's last layer is an MTP layer, the other's is not."""
    odd = gguf_files.make(tmp_path / "odd.gguf", 3, more={"deepseek2.nextn_predict_layers": 1})
    (problem,) = problems_of({"v3": pair["v3"], "r1": odd}, R1T)
    assert problem.endswith("another meaning than the base's: deepseek2.block_count: 2, not 3")


def test_another_vocabulary_is_refused(pair: Family, tmp_path: Path) -> None:
    """If what depends on it is taken."""
    tensors = gguf_files.layout() | {"token_embd.weight": ("Q8_0", (90, gguf_files.HIDDEN))}
    parents = {"v3": pair["v3"], "r1": gguf_files.write(tmp_path / "r1.gguf", tensors)}
    (problem,) = problems_of(parents, "- {take: r1, components: embedding}")
    assert problem == "token_embd.weight has another shape in 'r1': [90, 256], in the base [96, 256]"


def test_what_belongs_to_the_other_format_is_refused(pair: Family) -> None:
    """By name, and before any work."""
    (problem,) = problems_of(pair, R1T, output="shards: by-rule")
    assert problem == "output: shards: by-rule is for safetensors; split GGUF with split_max_size"
    (problem,) = problems_of(pair, R1T, output="dtype: fp8-block")
    assert problem == "output: dtype: fp8-block is for safetensors"


def test_two_formats_in_one_recipe_are_refused(pair: Family, tmp_path: Path) -> None:
    """With what to do about it."""
    from tests import synthetic

    parents = {"v3": synthetic.make(tmp_path / "v3", 1), "r1": pair["r1"]}
    (problem,) = problems_of(parents, R1T)
    assert problem.startswith("'r1' is gguf and the base safetensors: ")
