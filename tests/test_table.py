"""The table: what a child is made of, read from weights alone, checked against the loop that people wrote by hand."""

from itertools import combinations
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from chimerakit.errors import PlanError
from chimerakit.formats import open_checkpoint
from chimerakit.table import Table, TableRow, say_verdict, summarize, verify_table
from tests import naive, synthetic
from tests.merging import merge

EXPERT = "model.layers.1.mlp.experts.2.down_proj.weight"


def make_parents(tmp_path: Path, storage: str) -> dict[str, Path]:
    return {
        "v3": synthetic.make(tmp_path / "v3", 1, storage, shards=2),
        "r1": synthetic.make(tmp_path / "r1", 2, storage, shards=3, shuffle=5),
    }


def table_of(child: Path, parents: dict[str, Path], *, codes: bool = False) -> Table:
    return verify_table(child, {name: open_checkpoint(path) for name, path in parents.items()}, codes=codes)


def by_unit(table: Table) -> dict[str, TableRow]:
    return {row.unit: row for row in table.rows}


@pytest.mark.parametrize("storage", ["bf16", "fp8", "e8m0", "f32", "f16"])
def test_the_published_recipe_reads_back_per_component(tmp_path: Path, storage: str) -> None:
    """Of an R1T child the table says: routed experts r1's, everything else v3's, nothing equal in both."""
    parents = make_parents(tmp_path, storage)
    merge(parents, "- {take: r1, components: routed_experts}", tmp_path / "child")
    table = table_of(tmp_path / "child", parents)
    assert table.is_explained
    for summary in summarize(table):
        expected = "= r1" if summary.component == "routed_experts" else "= v3"
        assert summary.verdicts == {expected: summary.units}
        assert summary.close["v3/r1"] == 0


@pytest.mark.parametrize("codes", [False, True])
def test_close_pairs_are_those_of_an_allclose_loop(tmp_path: Path, codes: bool) -> None:
    """For every unit and pair the table agrees with torch.allclose on dequantised values, or on codes when asked."""
    parents = make_parents(tmp_path, "fp8")
    rules = "- {take: r1, components: routed_experts, experts: 0-1}\n- {mix: {r1: 0.5}, components: shared_experts}"
    merge(parents, rules, tmp_path / "child")
    loaded = {n: naive.load(p)[0] for n, p in (parents | {"child": tmp_path / "child"}).items()}

    def decoded(side: str, unit: str) -> torch.Tensor:
        weight, *scales = loaded[side][unit]
        return weight.float() if codes else naive.term(1.0, weight, *scales)

    for unit, row in by_unit(table_of(tmp_path / "child", parents, codes=codes)).items():
        for a, b in combinations(("v3", "r1", "child"), 2):
            close = torch.allclose(decoded(a, unit), decoded(b, unit), rtol=1e-5, atol=1e-5)
            found = {frozenset(pair) for pair in row.close_values}
            assert (frozenset((a, b)) in found) == close, (unit, a, b)


@pytest.mark.parametrize("storage", ["bf16", "fp8", "ue8m0", "f16"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_mix_is_seen_as_mixed_with_about_its_share(tmp_path: Path, storage: str, share: float) -> None:
    """A mixed unit is equal to nobody, and its least-squares share is near the true one for parents that far apart."""
    parents = make_parents(tmp_path, storage)
    merge(parents, f"- {{mix: {{r1: {share}}}, components: routed_experts}}", tmp_path / "child")
    table = table_of(tmp_path / "child", parents)
    row = by_unit(table)[EXPERT]
    assert row.verdict == "mixed"
    assert row.shares is not None
    assert row.shares["r1"] == pytest.approx(share, abs=0.02)
    assert table.is_explained


def test_three_parents_are_fitted_together(tmp_path: Path) -> None:
    """The shares of three parents come out together."""
    parents = make_parents(tmp_path, "bf16") | {"x": synthetic.make(tmp_path / "x", 3, "bf16")}
    merge(parents, "- {mix: {r1: 0.3, x: 0.5}, components: routed_experts}", tmp_path / "child")
    shares = by_unit(table_of(tmp_path / "child", parents))[EXPERT].shares
    assert shares == pytest.approx({"v3": 0.2, "r1": 0.3, "x": 0.5}, abs=0.01)


def test_noise_in_place_of_an_expert_is_unexplained(tmp_path: Path) -> None:
    """A tensor that is no parent's and no mix is named, with how far it is from one."""
    parents = make_parents(tmp_path, "bf16")
    tensors = synthetic.tensors_of(1, "bf16")
    rng = np.random.default_rng(0)
    tensors[EXPERT] = (rng.normal(size=tensors[EXPERT].shape) * 0.02).astype(ml_dtypes.bfloat16)
    child = synthetic.write_checkpoint(tmp_path / "child", tensors, synthetic.config_of("bf16"))
    table = table_of(child, parents)
    wrong = [row for row in table.rows if row.verdict == "unexplained"]
    assert [row.unit for row in wrong] == [EXPERT]
    assert "the nearest mix is off by" in wrong[0].why
    assert not table.is_explained


def test_parents_that_agree_are_both_named(tmp_path: Path) -> None:
    """A unit that is the same in both parents is equal to both, never a guess."""
    shared = "model.layers.0.input_layernorm.weight"
    first, second = synthetic.tensors_of(1), synthetic.tensors_of(2)
    second[shared] = first[shared]
    config = synthetic.config_of("bf16")
    parents = {
        "v3": synthetic.write_checkpoint(tmp_path / "v3", first, config),
        "r1": synthetic.write_checkpoint(tmp_path / "r1", second, config),
    }
    row = by_unit(table_of(parents["v3"], parents))[shared]
    assert row.parents == ("v3", "r1")
    assert say_verdict(row) == "= v3 = r1"


def test_a_converted_child_is_equal_by_values(tmp_path: Path) -> None:
    """A float32 child of FP8 parents has other bytes and the same values."""
    parents = make_parents(tmp_path, "fp8")
    merge(parents, "- {take: r1, components: routed_experts}", tmp_path / "child", output="dtype: f32")
    row = by_unit(table_of(tmp_path / "child", parents))[EXPERT]
    assert row.parents == ("r1",)
    assert say_verdict(row) == "= r1 (by values)"


def test_missing_and_extra_units_are_never_skipped(tmp_path: Path) -> None:
    """A child without MTP layer lacks units by name; one with an extra tensor has it unexplained."""
    parents = make_parents(tmp_path, "bf16")
    tensors = synthetic.tensors_of(1, "bf16", mtp=False)
    tensors["model.extra"] = np.ones(4, np.float32)
    child = synthetic.write_checkpoint(tmp_path / "child", tensors, synthetic.config_of("bf16"))
    table = table_of(child, parents)
    assert "model.layers.3.eh_proj.weight" in table.missing["v3"]
    assert by_unit(table)["model.extra"].why == "no parent has it"
    assert not table.is_explained


def test_another_shape_is_unexplained_with_both_shapes(tmp_path: Path) -> None:
    """Tensors of other shapes are not compared, and said so."""
    parents = make_parents(tmp_path, "bf16")
    tensors = synthetic.tensors_of(1, "bf16")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:100]
    child = synthetic.write_checkpoint(tmp_path / "child", tensors, synthetic.config_of("bf16"))
    assert "the shapes differ: [100], [200]" in by_unit(table_of(child, parents))["model.norm.weight"].why


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    """Names of two families say nothing about each other."""
    parents = make_parents(tmp_path, "bf16")
    other = synthetic.write_checkpoint(
        tmp_path / "other", synthetic.tensors_of(1), synthetic.config_of("bf16") | {"model_type": "mixtral"}
    )
    with pytest.raises(PlanError, match="of several architectures: deepseek_v3, generic"):
        table_of(other, parents)


def test_detail_rolls_up_per_layer_and_expert(tmp_path: Path) -> None:
    """Taking one expert of one layer shows in exactly that line."""
    parents = make_parents(tmp_path, "fp8")
    merge(parents, "- {take: r1, components: routed_experts, layers: 2, experts: 3}", tmp_path / "child")
    lines = summarize(table_of(tmp_path / "child", parents), by="expert")
    taken = [(s.component, s.layer, s.expert, s.units) for s in lines if "= r1" in s.verdicts]
    assert taken == [("routed_experts", 2, 3, 3)]
