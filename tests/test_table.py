"""The table: what a child is made of, read from weights alone, checked against the loop that people wrote by hand."""

from itertools import combinations
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from chimerakit.errors import PlanError
from chimerakit.events import Advanced, Event, Started
from chimerakit.formats import open_checkpoint
from chimerakit.table import Table, TableRow, say_verdict, summarize, verify_table
from tests import naive, synthetic
from tests.merging import merge

pytestmark = pytest.mark.usefixtures("one_thread")

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


def test_a_float32_child_is_equal_by_values(tmp_path: Path) -> None:
    """A float32 child of FP8 parents has other bytes and the same values."""
    parents = make_parents(tmp_path, "fp8")
    merge(parents, "- {take: r1, components: routed_experts}", tmp_path / "child", output="dtype: f32")
    row = by_unit(table_of(tmp_path / "child", parents))[EXPERT]
    assert row.parents == ("r1",)
    assert say_verdict(row) == "= r1 (by values)"


@pytest.mark.parametrize("names", [("v3",), ("v3", "r1")])
@pytest.mark.parametrize(
    ("storage", "dtype"),
    [("fp8", "bf16"), ("fp8", "f16"), ("f32", "bf16"), ("bf16", "fp8-block"), ("f16", "bf16")],
)
def test_a_converted_parent_is_not_taken_for_a_mix(
    tmp_path: Path, storage: str, dtype: str, names: tuple[str, ...]
) -> None:
    """What is stored otherwise than in the base is the base converted, with one suspected parent or with several."""
    parents = make_parents(tmp_path, storage)
    merge({"v3": parents["v3"]}, "", tmp_path / "child", output=f"dtype: {dtype}")
    table = table_of(tmp_path / "child", {name: parents[name] for name in names})
    assert table.is_explained
    assert say_verdict(by_unit(table)[EXPERT]) == "= v3 (converted)"
    assert {say_verdict(row) for row in table.rows} <= {"= v3", "= v3 (by values)", "= v3 (converted)"}


def test_one_changed_number_is_no_conversion(tmp_path: Path) -> None:
    """With one parent, a converted unit whose last stored number was changed is unexplained."""
    parent = synthetic.tensors_of(1, "f32")[EXPERT]
    child = parent.astype(ml_dtypes.bfloat16)
    child.view("uint16")[-1, -1] += 1
    row = compare_units(tmp_path, child=child, v3=parent)
    off = np.linalg.norm(child.astype(float) - parent) / np.linalg.norm(child.astype(float))
    assert row.verdict == "unexplained"
    assert row.why == f"it is off by {off:.2%} of its RMS from 'v3', the only one to compare"


def test_nan_is_named_with_one_parent_too(tmp_path: Path) -> None:
    """Where nothing can be mixed, NaN is a better reason than a distance."""
    parent, child, _ = experts("bf16")
    child[0, 0] = np.nan
    assert compare_units(tmp_path, child=child, v3=parent).why == "NaN or infinity in 'child'"


def test_equal_by_bytes_to_one_and_converted_of_another_names_both(tmp_path: Path) -> None:
    """A parent's bfloat16 release is that release by bytes, and the parent converted."""
    r1 = synthetic.tensors_of(1, "f32")[EXPERT]
    v3 = r1.astype(ml_dtypes.bfloat16)
    assert say_verdict(compare_units(tmp_path, child=v3, v3=v3, r1=r1)) == "= v3 = r1 (converted)"


def compare_units(tmp_path: Path, *, codes: bool = False, **sides: Any) -> TableRow:
    """The row of one expert. sides: child and parents, each a weight or a weight with its scales."""
    for side, tensors in sides.items():
        stored = tensors if isinstance(tensors, tuple) else (tensors,)
        together = dict(zip((EXPERT, EXPERT + "_scale_inv"), stored, strict=False))
        synthetic.write_checkpoint(tmp_path / side, together, synthetic.config_of("fp8"), shards=1)
    (row,) = table_of(tmp_path / "child", {s: tmp_path / s for s in sides if s != "child"}, codes=codes).rows
    return row


def experts(storage: str) -> list[Any]:
    """The expert of two parents, and that of half of each."""
    v3, r1 = (synthetic.tensors_of(seed, storage)[EXPERT] for seed in (1, 2))
    return [v3, r1, ((v3.astype(np.float32) + r1.astype(np.float32)) / 2).astype(v3.dtype)]


@pytest.mark.parametrize("first", ["v3", "r1"])
def test_equal_by_bytes_to_one_and_by_values_to_another_names_both(tmp_path: Path, first: str) -> None:
    """The parent with the same bytes comes first, the one with the same values is not dropped, whatever their order."""
    weight = experts("bf16")[0]
    parents = {"v3": weight, "r1": weight.astype(np.float32)}
    row = compare_units(tmp_path, child=weight, **dict(sorted(parents.items(), reverse=first == "v3")))
    assert say_verdict(row) == "= v3 = r1 (values)"
    assert row.how == {"v3": "bytes", "r1": "values"}


def test_equal_codes_are_called_codes(tmp_path: Path) -> None:
    """With `codes` a unit whose scales differ is equal by codes, which says nothing about its values."""
    (codes, scales), (other, _) = (synthetic.quantize(synthetic.values(EXPERT, (200, 72), seed)) for seed in (1, 2))
    sides = {"child": (codes, scales * 2), "v3": (codes, scales), "r1": (other, scales)}
    assert say_verdict(compare_units(tmp_path, codes=True, **sides)) == "= v3 (by codes)"
    assert say_verdict(compare_units(tmp_path, codes=False, **sides)) == "unexplained"


# -------------------------------------------------------------------------------- what can't be decoded


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("storage", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("guilty", [["child"], ["r1"], ["child", "v3"]])
def test_nan_and_infinity_are_unexplained(tmp_path: Path, bad: float, storage: str, guilty: list[str]) -> None:
    """A unit with NaN or infinity on any side is no mix, and the reason names the sides."""
    sides = dict(zip(("v3", "r1", "child"), experts(storage), strict=True))
    assert compare_units(tmp_path, **sides).verdict == "mixed"
    for side in guilty:
        sides[side][-1, -1] = bad
    row = compare_units(tmp_path, **sides)
    assert row.verdict == "unexplained"
    assert row.why == f"NaN or infinity in {' and '.join(map(repr, guilty))}"


def test_nan_codes_are_unexplained(tmp_path: Path) -> None:
    """So is a unit with an FP8 code that is NaN."""
    v3, r1, child = (synthetic.quantize(synthetic.values(EXPERT, (200, 72), seed)) for seed in (1, 2, 3))
    child[0].view("uint8")[7, 7] = 0x7F
    assert compare_units(tmp_path, child=child, v3=v3, r1=r1).why == "NaN or infinity in 'child'"


def test_nan_in_equal_bytes_is_equal(tmp_path: Path) -> None:
    """NaN is close to nothing, but the same bytes are the same bytes."""
    v3, r1, _ = experts("bf16")
    v3[3, 3] = np.nan
    assert say_verdict(compare_units(tmp_path, child=v3, v3=v3, r1=r1)) == "= v3"


SHAPE = (200, 300)
BROKEN: dict[str, Any] = {
    "too few columns": lambda codes, scales: (codes, scales[:, :2]),
    "too few rows": lambda codes, scales: (codes, scales[:1]),
    "one for all": lambda codes, scales: (codes, scales[:1, :1].reshape(1)),
    "none in one dimension": lambda codes, scales: (codes.reshape(-1), scales.reshape(-1)),
    "without scales": lambda codes, _: (codes,),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("model_type", ["deepseek_v3", "mixtral"])
@pytest.mark.parametrize("guilty", ["child", "r1"])
def test_storage_that_cannot_be_decoded_is_compared_by_bytes_only(
    tmp_path: Path, how: str, model_type: str, guilty: str
) -> None:
    """FP8 that does not fit its scales is equal to its own bytes, else unexplained with the side that is broken."""
    config = synthetic.config_of("fp8") | {"model_type": model_type}
    for number, side in enumerate(("v3", "r1", "child")):
        tensors = synthetic.quantize(synthetic.values(EXPERT, SHAPE, number))
        stored = BROKEN[how](*tensors) if side == guilty else tensors
        together = dict(zip((EXPERT, EXPERT + "_scale_inv"), stored, strict=False))
        synthetic.write_checkpoint(tmp_path / side, together, config, shards=1)
    parents = {"v3": tmp_path / "v3", "r1": tmp_path / "r1"}
    (row,) = table_of(tmp_path / "child", parents).rows
    assert row.verdict == "unexplained"
    assert f"{guilty}: " in row.why
    assert row.close_values == ()
    (row,) = table_of(tmp_path / guilty, parents | {"same": tmp_path / guilty}).rows
    assert "same" in row.parents
    assert set(row.how.values()) == {"bytes"}


def test_a_broken_parent_leaves_the_others_to_explain(tmp_path: Path) -> None:
    """A parent that can't be decoded is left out: the rest still says whose values these are."""
    codes, scales = synthetic.quantize(synthetic.values(EXPERT, SHAPE, 1))
    wide = scales.repeat(128, 0).repeat(128, 1)[: SHAPE[0], : SHAPE[1]]
    child = codes.astype(np.float32) * wide
    row = compare_units(tmp_path, child=child, v3=(codes, scales), r1=(codes, scales[:, :2]))
    assert say_verdict(row) == "= v3 (by values)"


def test_progress_adds_up(tmp_path: Path) -> None:
    """What is heard of comes to the bytes that were announced, though values are read a second time."""
    parents = {name: open_checkpoint(path) for name, path in make_parents(tmp_path, "fp8").items()}
    events: list[Event] = []
    verify_table(tmp_path / "v3", parents, listener=events.append)
    (total,) = (event.total for event in events if isinstance(event, Started))
    assert sum(event.amount for event in events if isinstance(event, Advanced)) == total


def test_a_parent_called_child_is_refused(tmp_path: Path) -> None:
    """The name stands for what is examined; a parent of that name would be compared in its place."""
    parents = make_parents(tmp_path, "bf16")
    with pytest.raises(PlanError, match="a parent can't be called 'child' here"):
        table_of(parents["v3"], {"child": parents["r1"]})


# --------------------------------------------------------------------------------------------- rounding


def test_rounding_is_allowed_for_where_every_value_is_rounded_the_most(tmp_path: Path) -> None:
    """Parents of two values whose mean is always half a step: bfloat16 loses 2^-8, twice what spread values lose."""
    step = np.float32(2**-7)
    v3 = np.random.default_rng(0).choice(np.array([1, 1 + step], np.float32), (200, 72)).astype(np.float32)
    r1 = v3 + step
    child, first, second = (x.astype(ml_dtypes.bfloat16) for x in ((v3 + r1) / 2, v3, r1))
    row = compare_units(tmp_path, child=child, v3=first, r1=second)
    assert row.verdict == "mixed"
    assert row.shares == pytest.approx({"v3": 0.5, "r1": 0.5}, abs=0.05)


def test_noise_of_a_hundredth_is_unexplained(tmp_path: Path) -> None:
    """A bfloat16 mix with noise of 1 % of its RMS on top is no mix any more."""
    v3, r1, child = experts("bf16")
    assert compare_units(tmp_path, child=child, v3=v3, r1=r1).verdict == "mixed"
    noise = np.random.default_rng(1).normal(size=child.shape)
    noisy = child.astype(np.float32) * (1 + 0.01 * noise)
    row = compare_units(tmp_path, child=noisy.astype(ml_dtypes.bfloat16), v3=v3, r1=r1)
    assert row.verdict == "unexplained"
    assert "storing it costs at most 0.39%" in row.why


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


@pytest.mark.parametrize("storage", ["bf16", "fp8"])
def test_a_flipped_bit_in_a_copied_unit_is_unexplained(tmp_path: Path, storage: str) -> None:
    """Nearly a parent is neither a parent nor a mix."""
    parents = make_parents(tmp_path, storage)
    tensors = synthetic.tensors_of(1, storage)
    tensors[EXPERT].view(np.uint8)[0, 0] ^= 1
    child = synthetic.write_checkpoint(tmp_path / "child", tensors, synthetic.config_of(storage))
    table = table_of(child, parents)
    assert [row.unit for row in table.rows if row.verdict == "unexplained"] == [EXPERT]
    assert "nearly 'v3'" in by_unit(table)[EXPERT].why
