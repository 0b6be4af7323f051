"""Parents in other layouts: the same numbers at other places, held against numpy; and refused where they would change."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFReader

from chimerakit.formats import open_checkpoint
from chimerakit.merge import merge_parents
from chimerakit.verify import verify_child
from tests import gguf_files
from tests.plan.test_gguf import plan_of, problems_of

pytestmark = pytest.mark.usefixtures("impatient")

ATTENTION = "- {take: r1, components: attention}"
HEADS, KEYS, VALUES, RANK = 2, 128, 128, 256


def make(path: Path, seed: int, dtype: str, *, old_mla: bool) -> Path:
    """A model whose kv_b_proj is stored as a type, whole or cut."""
    types = dict.fromkeys(("attn_kv_b", "attn_k_b", "attn_v_b"), dtype)
    return gguf_files.make(path, seed, types=types, old_mla=old_mla, values=dtype in ("F32", "F16", "BF16"))


def tensors_of(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Every tensor as numbers of its width, or as bytes."""
    found = {}
    for tensor in GGUFReader(path).tensors:
        width = {"F32": 4, "F16": 2, "BF16": 2}.get(tensor.tensor_type.name, 1)
        found[tensor.name] = np.ascontiguousarray(tensor.data).view(np.uint8).view(f"u{width}")
    return found


def cut_keys_and_values(whole: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """What llama.cpp's converter makes of kv_b_proj."""
    k_b, v_b = np.split(whole.reshape(HEADS, KEYS + VALUES, -1), [KEYS], axis=1)
    return k_b.transpose(0, 2, 1), v_b


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("is_base_old", [False, True])
def test_attention_of_another_layout_is_taken_number_by_number(dtype: str, is_base_old: bool, tmp_path: Path) -> None:
    """Whole into keys and values, or the other way round; and proven by making it again."""
    parents = {
        "v3": make(tmp_path / "v3.gguf", 1, "Q8_0" if is_base_old else "F16", old_mla=is_base_old),
        "r1": make(tmp_path / "r1.gguf", 2, dtype, old_mla=not is_base_old),
    }
    plan = plan_of(parents, ATTENTION)
    assert not any("lacks" in note for note in plan.notes)
    merge_parents(plan, tmp_path / "child")
    found, r1 = tensors_of(tmp_path / "child" / "model.gguf"), tensors_of(parents["r1"])
    for layer in range(gguf_files.LAYERS):
        names = [f"blk.{layer}.attn_{name}.weight" for name in ("kv_b", "k_b", "v_b")]
        mine, theirs = (found, r1) if is_base_old else (r1, found)
        k_b, v_b = cut_keys_and_values(mine[names[0]])
        assert (k_b == theirs[names[1]]).all()
        assert (v_b == theirs[names[2]]).all()
    assert verify_child(tmp_path / "child", {name: open_checkpoint(path) for name, path in parents.items()}).ok


def test_values_are_rows_whatever_their_type(tmp_path: Path) -> None:
    """v_b is a slice of kv_b: whole rows, so quants as well."""
    parents = {
        "v3": make(tmp_path / "v3.gguf", 1, "F16", old_mla=False),
        "r1": make(tmp_path / "r1.gguf", 2, "Q8_0", old_mla=True),
    }
    merge_parents(plan_of(parents, '- {take: r1, tensors: "*.attn_v_b.weight"}'), tmp_path / "child")
    found, r1 = tensors_of(tmp_path / "child" / "model.gguf"), tensors_of(parents["r1"])
    for layer in range(gguf_files.LAYERS):
        _, v_b = np.split(r1[f"blk.{layer}.attn_kv_b.weight"].reshape(HEADS, KEYS + VALUES, -1), [KEYS], axis=1)
        assert (found[f"blk.{layer}.attn_v_b.weight"] == v_b).all()


def test_quants_can_not_be_turned(tmp_path: Path) -> None:
    """Blocks lie along rows; a transpose would round anew, and that is said."""
    parents = {
        "v3": make(tmp_path / "v3.gguf", 1, "F16", old_mla=False),
        "r1": make(tmp_path / "r1.gguf", 2, "Q8_0", old_mla=True),
    }
    problems = problems_of(parents, ATTENTION)
    assert len(problems) == gguf_files.LAYERS
    assert problems[0].startswith(
        "blk.0.attn_k_b.weight is a transpose of what 'r1' has in blk.0.attn_kv_b.weight, stored as Q8_0: blocks of a row"
    )


def test_two_layouts_are_not_mixed(tmp_path: Path) -> None:
    """Taken whole, they can be; shares of both are refused."""
    parents = {
        "v3": make(tmp_path / "v3.gguf", 1, "F16", old_mla=False),
        "r1": make(tmp_path / "r1.gguf", 2, "F16", old_mla=True),
    }
    problems = problems_of(parents, "- {mix: {r1: 0.5}, components: attention, layers: 1}")
    assert problems[0] == (
        "blk.1.attn_k_b.weight lies in blk.1.attn_kv_b.weight in 'r1': from another layout it can be taken whole, "
        "not mixed or converted"
    )


def test_another_layout_is_moved_and_never_stored_otherwise(tmp_path: Path) -> None:
    """Asked for BF16, what is in BF16 is moved as ever; asked for F32, it is refused."""
    parents = {
        "v3": make(tmp_path / "v3.gguf", 1, "BF16", old_mla=False),
        "r1": make(tmp_path / "r1.gguf", 2, "BF16", old_mla=True),
    }
    taken = '- {take: r1, tensors: ["*.attn_k_b.weight", "*.attn_v_b.weight"]}'
    kept = {row.unit: row for row in plan_of(parents, taken, output="dtype: keep").rows}
    for row in plan_of(parents, taken, output="dtype: bf16").rows:
        if "attn_k_b" in row.unit or "attn_v_b" in row.unit:
            assert (row.kind, row.storage, row.inputs) == (kept[row.unit].kind, "BF16", kept[row.unit].inputs)
    problems = problems_of(parents, taken, output="dtype: f32")
    assert problems
    assert all("not mixed or converted" in problem for problem in problems)


@pytest.mark.parametrize("is_base_fused", [False, True])
def test_gate_and_up_are_fused_or_cut(is_base_fused: bool, tmp_path: Path) -> None:
    """Of each expert, in any type."""
    whole = gguf_files.layout({"exps": "Q4_K"})
    fused: dict[str, gguf_files.Stored] = {}
    for name, (dtype, shape) in whole.items():
        if "gate_exps" in name:
            fused[name.replace("gate", "gate_up")] = dtype, (shape[0], 2 * shape[1], shape[2])
        elif "up_exps" not in name:
            fused[name] = dtype, shape
    parents = {
        "v3": gguf_files.write(tmp_path / "v3.gguf", fused if is_base_fused else whole, seed=1),
        "r1": gguf_files.write(tmp_path / "r1.gguf", whole if is_base_fused else fused, seed=2),
    }
    merge_parents(plan_of(parents, "- {take: r1, components: routed_experts}"), tmp_path / "child")
    found, r1 = tensors_of(tmp_path / "child" / "model.gguf"), tensors_of(parents["r1"])
    for layer in range(1, gguf_files.LAYERS):
        mine, theirs = (found, r1) if is_base_fused else (r1, found)
        gate, up = np.split(mine[f"blk.{layer}.ffn_gate_up_exps.weight"], 2, axis=1)
        assert (gate == theirs[f"blk.{layer}.ffn_gate_exps.weight"]).all()
        assert (up == theirs[f"blk.{layer}.ffn_up_exps.weight"]).all()
