"""Recipes found again: random ones, over pairs and threes of parents in all storages; and children that were tampered with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from chimerakit.compare import compare_checkpoints
from chimerakit.deltas import measure_distances
from chimerakit.errors import PlanError
from chimerakit.explain import Explanation, explain_child
from chimerakit.formats import open_checkpoint
from chimerakit.merge import merge_parents
from chimerakit.plan import make_plan
from chimerakit.recipe import parse_recipe, recipe_to_yaml, say_rule
from chimerakit.records import Plan
from tests import synthetic
from tests.effort import examples
from tests.merging import MIX, R1T, contents, merge, plan_of, stored

pytestmark = pytest.mark.usefixtures("impatient")

Family = dict[str, Path]
STORAGES = ("fp8", "e8m0", "bf16")
COMPONENTS = ("embedding", "head", "norm", "attention", "dense_mlp", "router", "routed_experts", "shared_experts")
TINY = Path(__file__).parent.parent.parent / "examples" / "tiny-family"


@pytest.fixture(scope="module", params=STORAGES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Three parents stored alike."""
    root = tmp_path_factory.mktemp("family")
    return {name: synthetic.make(root / name, seed, request.param) for seed, name in enumerate(("v3", "r1", "q"), 1)}


def explain(child: Path, parents: Family) -> Explanation:
    """What a child is made of."""
    return explain_child(child, {name: open_checkpoint(path) for name, path in parents.items()})


def plan_again(found: Explanation, parents: Family) -> Plan:
    """The plan of the recipe that was found, by way of its text."""
    assert found.recipe is not None
    recipe = parse_recipe(recipe_to_yaml(found.recipe))
    return make_plan(recipe, {name: open_checkpoint(path) for name, path in parents.items()})


def rules_of(found: Explanation) -> list[str]:
    """The recipe's rules, each in one line."""
    assert found.recipe is not None
    return [say_rule(rule) for rule in found.recipe.rules]


# ----------------------------------------------------------------------------------------- found again


def random_rules(random: Random, names: list[str]) -> str:
    """One to four rules: takes, mixes of some parents, gradients, over random selectors."""

    def share() -> float:
        return round(random.random(), random.choice([1, 2, 2, 3, 4]))

    rules = []
    for _ in range(random.randint(1, 4)):
        selectors = []
        if random.random() < 0.75:
            selectors.append(f"components: [{', '.join(random.sample(COMPONENTS, random.randint(1, 3)))}]")
        if random.random() < 0.3:
            selectors.append(f"layers: {sorted(random.sample(range(3), random.randint(1, 2)))}")
        if random.random() < 0.2:
            selectors.append(f"experts: {sorted(random.sample(range(4), random.randint(1, 3)))}")
        kind, is_layered = random.random(), any("layers" in s or "experts" in s for s in selectors)
        if kind < 0.35:
            action = f"take: {random.choice(names)}"
        elif kind < 0.8 or not is_layered:
            first = share()
            second = f", q: {round((1 - first) * random.random(), 2)}" if "q" in names and random.random() < 0.5 else ""
            action = f"mix: {{r1: {first}{second}}}"
        else:
            action = f"mix: {{r1: {{from: {share()}, to: {share()}}}}}"
        rules.append(f"- {{{action}, {', '.join(selectors or ['components: all'])}}}")
    return "\n".join(rules)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", range(examples(quick=2, ci=7, prove=70)))
def test_the_recipe_of_a_random_child_is_found(family: Family, count: int, seed: int, tmp_path: Path) -> None:
    """The recipe that is found has no more rules than the one that made the child, and makes the same bytes."""
    parents = dict(list(family.items())[:count])
    random = Random(1000 * count + seed)
    while True:  # rules that match nothing, or nothing that is left, can't be planned
        rules = random_rules(random, list(parents))
        try:
            made = plan_of(parents, rules)
            break
        except PlanError:
            continue
    merge_parents(made, tmp_path / "child")
    found = explain(tmp_path / "child", parents)
    assert found.is_explained
    assert not found.unlike
    assert found.recipe is not None
    assert len(found.recipe.rules) <= len(made.recipe.rules), (rules, recipe_to_yaml(found.recipe))
    merge_parents(plan_again(found, parents), tmp_path / "again")
    assert stored(tmp_path / "again") == stored(tmp_path / "child")


@pytest.mark.parametrize("share", [0.6, 1])
@pytest.mark.parametrize("part", [0.5, 0.2, 0.8][: examples(quick=1, ci=3, prove=3)])
def test_a_delta_is_found(family: Family, share: float, part: float, tmp_path: Path) -> None:
    """Units that were mixed because their parents differ by more than a delta are one rule, with such a delta."""
    parents = {name: open_checkpoint(family[name]) for name in ("v3", "r1")}
    apart = sorted(unit.distance for unit in compare_checkpoints(parents["v3"], parents["r1"]).units)
    delta = round(apart[int(part * len(apart))], 6)
    rule = f"{{mix: {{r1: {share}}}, components: [attention, routed_experts], delta: {delta}}}"
    recipe = parse_recipe(f"parents: {{v3: , r1: }}\nbase: v3\nrules: [{rule}]")
    made = make_plan(recipe, parents, measure_distances(recipe, parents))
    merge_parents(made, tmp_path / "child")
    found = explain_child(tmp_path / "child", parents)
    assert found.is_explained
    assert found.recipe is not None
    assert [(r.delta is None, r.tensors) for r in found.recipe.rules] == [(False, None)]
    again = make_plan(found.recipe, parents, measure_distances(found.recipe, parents))
    assert [(row.unit, row.inputs) for row in again.rows] == [(row.unit, row.inputs) for row in made.rows]


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("rules", [R1T, MIX])
def test_a_child_that_is_stored_otherwise_is_found(family: Family, dtype: str, rules: str, tmp_path: Path) -> None:
    """The values of a parent, or of a mix, in another storage; every file of the child comes out again."""
    parents = {"v3": family["v3"], "r1": family["r1"]}
    merge(parents, rules, tmp_path / "child", output=f"dtype: {dtype}")
    found = explain(tmp_path / "child", parents)
    assert found.is_explained
    assert not found.unlike
    merge_parents(plan_again(found, parents), tmp_path / "again")
    mine, theirs = contents(tmp_path / "again"), contents(tmp_path / "child")
    assert {n: d for n, d in mine.items() if n != "chimerakit.json"}.keys() == theirs.keys() - {"chimerakit.json"}
    assert all(mine[name] == data for name, data in theirs.items() if name not in ("chimerakit.json", "README.md"))


def test_settings_are_found(tmp_path: Path) -> None:
    """Shards by rule, and another parent's tokenizer."""
    parents = {"v3": synthetic.make(tmp_path / "v3", 1), "r1": synthetic.make(tmp_path / "r1", 2)}
    for name, path in parents.items():
        (path / "tokenizer.json").write_text(f'{{"of": "{name}"}}')
    merge(parents, R1T, tmp_path / "child", output="shards: by-rule, tokenizer: r1")
    found = explain(tmp_path / "child", parents)
    assert not found.unlike
    assert found.recipe is not None
    assert found.recipe.output.shards == "by-rule"
    merge_parents(plan_again(found, parents), tmp_path / "again")
    mine, theirs = contents(tmp_path / "again"), contents(tmp_path / "child")
    assert all(mine[name] == theirs[name] for name in theirs if name not in ("chimerakit.json", "README.md"))
    assert json.loads(mine["tokenizer.json"]) == {"of": "r1"}


def test_the_base_is_the_parent_that_gives_the_fewest_rules(family: Family, tmp_path: Path) -> None:
    """R1's routed experts in V3 are one rule; V3's everything else in R1 would be one of many words."""
    parents = {"r1": family["r1"], "v3": family["v3"]}
    merge(parents, R1T, tmp_path / "child")
    found = explain(tmp_path / "child", parents)
    assert found.recipe is not None
    assert found.recipe.base == "v3"
    assert rules_of(found) == ["take: r1, components: routed_experts"]


def test_the_tiny_r1t_reads_as_published(tmp_path: Path) -> None:
    """Embedding, attention, dense, shared experts and router are V3's, routed experts R1's."""
    parents = {"v3": TINY / "v3-like", "r1": TINY / "r1-like"}
    merge(parents, R1T, tmp_path / "child")
    found = explain(tmp_path / "child", parents)
    of = {unit.role.component: set[tuple[str, ...]]() for unit in found.units}
    for unit in found.units:
        assert unit.verdict == "equal"
        of[unit.role.component].add(tuple(unit.shares))
    assert of.pop("routed_experts") == {("r1",)}
    assert all(parents == {("v3",)} for parents in of.values())


# -------------------------------------------------------------------------------------- tampered with

UP = "model.layers.{}.mlp.experts.{}.up_proj.weight"


def change(child: Path, name: str, edit: Callable[[bytearray, dict[str, bytes]], None]) -> None:
    """Edit a tensor's bytes where they lie; the edit gets all tensors' bytes, too."""
    checkpoint = open_checkpoint(child)
    tensor = checkpoint.tensors[name]
    everything = {n: data for n, (_, _, data) in stored(child).items()}
    data = bytearray(everything[name])
    edit(data, everything)
    with (child / tensor.file).open("r+b") as file:
        file.seek(tensor.start)
        file.write(data)


def noise(data: bytearray, _: dict[str, bytes]) -> None:
    """Other numbers, all finite."""
    data[:] = (np.frombuffer(bytes(data), np.uint8)[::-1] & 0xBF).tobytes()


def one_code(data: bytearray, _: dict[str, bytes]) -> None:
    """The lowest bit of one number."""
    data[len(data) // 2] ^= 1


def neighbour(data: bytearray, everything: dict[str, bytes]) -> None:
    """What belongs to the expert before."""
    data[:] = everything[UP.format(1, 1)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Family:
    root = tmp_path_factory.mktemp("pair")
    return {name: synthetic.make(root / name, seed, "fp8") for seed, name in enumerate(("v3", "r1"), 1)}


@pytest.mark.parametrize("rules", [R1T, MIX])
@pytest.mark.parametrize(
    ("tensor", "edit"),
    [
        (UP.format(1, 2), noise),
        (UP.format(1, 2), neighbour),
        (UP.format(1, 2), one_code),
        (UP.format(1, 2) + "_scale_inv", one_code),
        ("model.layers.2.input_layernorm.weight", one_code),
    ],
    ids=["noise", "its neighbour", "one code", "one scale by one step", "one number of a norm"],
)
def test_a_unit_that_was_tampered_with_is_named(
    pair: Family, rules: str, tensor: str, edit: Callable[[bytearray, dict[str, bytes]], None], tmp_path: Path
) -> None:
    """It is unexplained, says how far the nearest mix is, and hides the recipe of the others from nobody."""
    merge(pair, rules, tmp_path / "child")
    change(tmp_path / "child", tensor, edit)
    found = explain(tmp_path / "child", pair)
    assert [unit.unit for unit in found.units if unit.verdict == "unexplained"] == [tensor.removesuffix("_scale_inv")]
    assert not found.is_explained
    why = next(unit.why for unit in found.units if unit.why)
    assert why.startswith("the nearest mix, ")
    if edit is one_code and rules == R1T:
        assert "gives all but 1 of its" in why
    assert found.recipe is not None
    assert [rule.components for rule in found.recipe.rules] == [("routed_experts",)]


def test_one_unit_of_the_other_parent_is_a_rule_of_its_own(pair: Family, tmp_path: Path) -> None:
    """A unit swapped for its namesake in the other parent is explained, by name."""
    merge(pair, R1T, tmp_path / "child")
    name = UP.format(1, 2)
    theirs = stored(pair["v3"])
    for part in (name, name + "_scale_inv"):
        change(tmp_path / "child", part, lambda data, _, part=part: data.__setitem__(slice(None), theirs[part][2]))  # type: ignore[misc]
    found = explain(tmp_path / "child", pair)
    assert found.is_explained
    assert next(unit.shares for unit in found.units if unit.unit == name) == {"v3": 1.0}
    assert "take: v3" in rules_of(found)[0]


def test_a_child_that_a_copy_would_not_give_is_not_explained(tmp_path: Path) -> None:
    """A parent's values, encoded afresh though its own scales are not fresh: a recipe that takes the parent copies it."""
    parents = {name: synthetic.make(tmp_path / name, seed, "fp8") for seed, name in enumerate(("v3", "r1"), 1)}
    name = UP.format(1, 2)

    def stretch(data: bytearray, _: dict[str, bytes]) -> None:
        data[:] = (np.frombuffer(bytes(data), np.float32) * np.float32(1.3)).tobytes()

    def weaken(data: bytearray, _: dict[str, bytes]) -> None:
        codes = np.frombuffer(bytes(data), ml_dtypes.float8_e4m3fn).astype(np.float32)
        data[:] = (codes * np.float32(0.5)).astype(ml_dtypes.float8_e4m3fn).tobytes()

    change(parents["v3"], name, weaken)
    change(parents["v3"], name + "_scale_inv", stretch)
    wide, fresh = tmp_path / "wide", tmp_path / "fresh"
    merge(parents, "- {take: v3, components: all}", wide, output="dtype: f32")
    merge({"v3": wide}, "- {take: v3, components: all}", fresh, output="dtype: fp8-block")
    child = tmp_path / "child"
    shutil.copytree(parents["v3"], child)
    again = stored(fresh)
    for part in (name, name + "_scale_inv"):
        change(child, part, lambda data, _, part=part: data.__setitem__(slice(None), again[part][2]))  # type: ignore[misc]
    assert stored(child)[name] != stored(parents["v3"])[name]
    found = explain(child, parents)
    assert not found.is_explained
    assert {u.unit: u.why for u in found.units if u.why} == {
        name: "the recipe copies it from 'v3', whose bytes are others"
    }


def test_another_storage_of_the_same_dtypes_is_not_explained_by_chance(tmp_path: Path) -> None:
    """Bytes of a parent with float32 scales, where the base has powers of two in float32: taking it would convert it."""
    parents = {"v3": synthetic.make(tmp_path / "v3", 1, "ue8m0"), "r1": synthetic.make(tmp_path / "r1", 2, "fp8")}
    child, theirs = tmp_path / "child", stored(parents["r1"])
    shutil.copytree(parents["v3"], child)
    for number in (1, 2):
        for part in (UP.format(number, 2), UP.format(number, 2) + "_scale_inv"):
            change(child, part, lambda data, _, part=part: data.__setitem__(slice(None), theirs[part][2]))  # type: ignore[misc]
    found = explain(child, parents)
    assert found.recipe is not None
    again = plan_again(found, parents)
    merge_parents(again, tmp_path / "again")
    wrong = {name for name, data in stored(tmp_path / "again").items() if data != stored(child)[name]}
    named = {unit.unit for unit in found.units if unit.verdict == "unexplained"}
    assert {name.removesuffix("_scale_inv") for name in wrong} == named


# ------------------------------------------------------------------------------------------- bad input


def test_a_parent_given_twice_is_refused(pair: Family) -> None:
    """Under two names a parent would always agree with itself."""
    with pytest.raises(PlanError, match="a checkpoint is given twice"):
        explain(pair["v3"], {"v3": pair["r1"], "r1": pair["r1"]})


def test_without_parents_nothing_is_explained(pair: Family) -> None:
    """A child of nobody."""
    with pytest.raises(PlanError, match="no parent is given"):
        explain(pair["v3"], {})


def test_parents_that_are_all_equal_agree(pair: Family, tmp_path: Path) -> None:
    """A child of equal parents may be of either; that is said, not guessed."""
    shutil.copytree(pair["v3"], tmp_path / "copy")
    shutil.copytree(pair["v3"], tmp_path / "child")
    found = explain(tmp_path / "child", {"v3": pair["v3"], "copy": tmp_path / "copy"})
    assert found.is_explained
    assert rules_of(found) == []
    assert all(unit.shares == {"v3": 1.0, "copy": 1.0} for unit in found.units)
    assert found.undetermined[0].endswith(
        "units have the same bytes in v3 and copy: which of them gave these, nothing shows"
    )


def test_parents_that_agree_once_they_are_stored_as_the_child_is(tmp_path: Path) -> None:
    """Float32 parents that differ in no more than what BF16 drops: the child's values are those of either, and so it says."""
    first = {name: tensor.astype(np.float32) for name, tensor in synthetic.tensors_of(1).items()}
    second = {name: tensor * np.float32(1 + 2.0**-20) for name, tensor in first.items()}
    pair = {}
    for name, tensors in (("v3", first), ("r1", second)):
        config = synthetic.config_of("bf16") | {"torch_dtype": "float32"}
        pair[name] = synthetic.write_checkpoint(tmp_path / name, tensors, config)
    merge(pair, R1T, tmp_path / "child", output="dtype: bf16")
    found = explain(tmp_path / "child", pair)
    assert found.is_explained
    agreed = [unit for unit in found.units if unit.shares == {"v3": 1.0, "r1": 1.0}]
    assert len(agreed) > len(found.units) / 2
    assert {unit.verdict for unit in agreed} == {"equal"}
    nothing_shows = (
        "units of v3 and r1 have the same bytes once stored as the child's: which of them gave these, nothing shows"
    )
    assert any(says.endswith(nothing_shows) for says in found.undetermined)


def rewrite(source: Path, target: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of a checkpoint in one file, with other tensors."""
    shutil.copytree(source, target)
    files = sorted(target.glob("*.safetensors"))
    tensors = {n: a for file in files for n, a in load_file(file).items()}
    for file in (*files, *target.glob("*.index.json")):
        file.unlink()
    edit(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def test_a_unit_that_the_base_lacks_is_named(pair: Family, tmp_path: Path) -> None:
    """An extra tensor in the child is no parent's and no recipe's."""
    extra, like = "model.layers.1.extra_layernorm.weight", "model.layers.1.input_layernorm.weight"
    child = rewrite(pair["v3"], tmp_path / "child", lambda t: t.update({extra: t[like].clone()}))
    found = explain(child, pair)
    unexplained = {unit.unit: unit.why for unit in found.units if unit.verdict == "unexplained"}
    assert unexplained == {extra: "no parent has it"}
    assert not found.is_explained


def test_a_unit_that_the_child_lacks_is_named(pair: Family, tmp_path: Path) -> None:
    """A child without a tensor of its base is not explained."""
    name = "model.layers.1.input_layernorm.weight"
    child = rewrite(pair["v3"], tmp_path / "child", lambda t: t.pop(name))
    found = explain(child, pair)
    assert found.missing["v3"] == found.missing["r1"] == (name,)
    assert not found.is_explained
    assert any(name in says for says in found.unlike)


def test_a_parent_of_another_shape_is_told(pair: Family, tmp_path: Path) -> None:
    """A unit of which one parent has another shape can only be the other parent's."""
    name = "model.layers.1.input_layernorm.weight"
    odd = rewrite(pair["r1"], tmp_path / "r1", lambda t: t.update({name: t[name][:-2].clone()}))
    merge(pair, MIX, tmp_path / "child")
    found = explain(tmp_path / "child", {"v3": pair["v3"], "r1": odd})
    assert found.is_explained
    change(tmp_path / "child", name, one_code)
    found = explain(tmp_path / "child", {"v3": pair["v3"], "r1": odd})
    why = next(unit.why for unit in found.units if unit.unit == name)
    assert "r1: its shape is [198], the child's [200]" in why


@pytest.mark.parametrize("who", ["child", "r1"])
def test_nan_is_no_mix_by_chance(who: str, tmp_path: Path) -> None:
    """A unit with NaN that its parents do not give is named; one whose parents do give it is explained."""
    parents = {name: synthetic.make(tmp_path / name, seed) for seed, name in enumerate(("v3", "r1"), 1)}
    name = UP.format(1, 2)

    def spoil(data: bytearray, _: dict[str, bytes]) -> None:
        data[100:102] = b"\xc0\x7f"

    if who == "r1":
        change(parents["r1"], name, spoil)
    merge(parents, MIX, tmp_path / "child", allow_nonfinite=True)
    if who == "child":
        change(tmp_path / "child", name, spoil)
    found = explain(tmp_path / "child", parents)
    unexplained = [unit.unit for unit in found.units if unit.verdict == "unexplained"]
    assert unexplained == ([name] if who == "child" else [])
    assert found.nonfinite == (who == "r1")


def test_a_number_that_parents_agree_on_is_named_if_it_was_changed(tmp_path: Path) -> None:
    """Where no share makes a difference, too: no estimate hides it, and no figure is NaN."""
    first, second = synthetic.tensors_of(1), synthetic.tensors_of(2)
    norm = "model.norm.weight"
    second[norm] = first[norm]
    config = synthetic.config_of("bf16")
    pair = {n: synthetic.write_checkpoint(tmp_path / n, t, config) for n, t in (("v3", first), ("r1", second))}
    merge(pair, MIX, tmp_path / "child")
    change(tmp_path / "child", norm, one_code)
    found = explain(tmp_path / "child", pair)
    (unit,) = (unit for unit in found.units if not unit.is_given)
    assert (unit.unit, unit.verdict) == (norm, "unexplained")
    assert unit.why == "the nearest mix, 1 v3, gives all but 1 of its 200 numbers"


def test_an_unexplained_unit_costs_no_recipe(tmp_path: Path) -> None:
    """A gradient over the layers' norms stays one, though a norm outside of layers is noise."""
    pair = {name: synthetic.make(tmp_path / name, seed) for seed, name in enumerate(("v3", "r1"), 1)}
    merge(pair, "- {mix: {r1: {from: 0.2, to: 0.8}}, components: norm, layers: 0-2}", tmp_path / "child")
    change(tmp_path / "child", "model.norm.weight", noise)
    found = explain(tmp_path / "child", pair)
    assert [unit.unit for unit in found.units if not unit.is_given] == ["model.norm.weight"]
    assert rules_of(found) == ["mix: {r1: {from: 0.2, to: 0.8}}, components: norm, layers: 0-2"]
