"""Deltas: units are mixed where parents differ enough; from maps, measured again, and against the naive merge."""

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from chimerakit.compare import compare_checkpoints, save_map
from chimerakit.deltas import measure_distances, read_distances
from chimerakit.errors import MapError, OutputError, PlanError
from chimerakit.events import Advanced, Event, Started
from chimerakit.formats import open_checkpoint
from chimerakit.merge import merge_parents
from chimerakit.plan import make_plan
from chimerakit.recipe import parse_recipe
from chimerakit.records import Checkpoint, Findings, Plan, Recipe
from chimerakit.runners.local import Threads
from chimerakit.verify import verify_child
from tests import naive, synthetic
from tests.cli.test_app import flags, parse, run, run_on_terminal
from tests.effort import examples
from tests.merging import contents, interrupt
from tests.synthetic import SMALL

pytestmark = pytest.mark.usefixtures("impatient", "one_thread")
NAMES = ("v3", "r1", "x")
EXPERTS = "- {mix: {r1: 0.75}, delta: DELTA, components: routed_experts}"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and two fine-tunes with the same headers, in FP8, of which one is twice as far."""
    root = tmp_path_factory.mktemp("family")
    spreads = {"v3": 0.0, "r1": 0.25, "x": 0.5}
    return {
        name: synthetic.write_checkpoint(
            root / name,
            synthetic.tensors_of(seed, "fp8", config=SMALL, spread=spread),
            synthetic.config_of("fp8", SMALL),
        )
        for seed, (name, spread) in enumerate(spreads.items())
    }


@pytest.fixture(scope="module")
def maps(family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The maps of the base and each other parent, the second made the other way round."""
    root, parents = tmp_path_factory.mktemp("maps"), opened(family)
    save_map(compare_checkpoints(parents["v3"], parents["r1"]), root / "v3-r1.npz")
    save_map(compare_checkpoints(parents["x"], parents["v3"]), root / "x-v3.npz")
    return {"r1": root / "v3-r1.npz", "x": root / "x-v3.npz"}


def opened(parents: Mapping[str, Path]) -> dict[str, Checkpoint]:
    return {name: open_checkpoint(path) for name, path in parents.items()}


def recipe_of(rules: str, parents: Mapping[str, Any]) -> Recipe:
    return parse_recipe(f"parents: {{{', '.join(f'{n}: ' for n in parents)}}}\nbase: v3\nrules:\n{rules}\n")


def plan_of(family: Mapping[str, Path], delta: float) -> Plan:
    """Routed experts mixed with r1 where they are farther than delta, as measured."""
    parents = opened({name: family[name] for name in ("v3", "r1")})
    recipe = recipe_of(EXPERTS.replace("DELTA", repr(delta)), parents)
    return make_plan(recipe, parents, measure_distances(recipe, parents))


# ----------------------------------------------------------------------------------------- naive merge


@cache
def tensors(seed: int, storage: str) -> dict[str, Any]:
    return synthetic.tensors_of(seed, storage, config=SMALL, spread=0.1 * seed)


MIXES: list[dict[str, float]] = [{"r1": 0.5}, {"r1": 1}, {"x": 0.25, "r1": 0.5}, {"x": 0.7}, {"r1": 0.4, "x": 0}]


@settings(max_examples=examples(quick=6, ci=60, prove=600))
@given(
    storages=st.lists(st.sampled_from(["bf16", "fp8", "e8m0"]), min_size=2, max_size=3),
    mix=st.sampled_from(MIXES),
    part=st.sampled_from([0, 0.25, 0.5, 0.75, 1]),
    word=st.sampled_from(["all", "routed_experts", "[attention, norm]"]),
)
def test_a_merge_with_a_delta_is_the_naive_one(
    tmp_path_factory: pytest.TempPathFactory, storages: list[str], mix: dict[str, float], part: float, word: str
) -> None:
    """Two and three parents in BF16 and FP8, deltas below, between and above all distances: every byte, and it is proven."""
    root = tmp_path_factory.mktemp("random")
    paths = {
        name: synthetic.write_checkpoint(root / name, tensors(seed, storage), synthetic.config_of(storage, SMALL))
        for seed, (name, storage) in enumerate(zip(NAMES, storages, strict=False))
    }
    mix = {name: share for name, share in mix.items() if name in paths} or {"r1": 0.5}
    apart = {name: naive.distances(paths["v3"], paths[name]) for name, share in mix.items() if share}
    farthest = {unit: max(of[unit] for of in apart.values()) for unit in apart[next(iter(apart))]}
    sorted_ = sorted(farthest.values())
    between = [(low + high) / 2 for low, high in zip([0, *sorted_], [*sorted_, 2 * sorted_[-1]], strict=True)]
    delta = between[round(part * (len(between) - 1))]
    rules = f"- {{mix: {json.dumps(mix)}, delta: {delta!r}, components: {word}}}"
    parents = opened(paths)
    recipe = recipe_of(rules, parents)
    plan = make_plan(recipe, parents, measure_distances(recipe, parents))
    is_claimed = {row.unit: row.rule == 0 for row in plan.rows}

    def shares_of(unit: str) -> dict[str, float]:
        if not is_claimed[unit] or farthest[unit] <= delta:
            return {"v3": 1.0}
        shares = {"v3": round(1 - sum(mix.values()), 12)} | mix
        return {name: share for name, share in shares.items() if share}

    merge_parents(plan, root / "child", runner=Threads(2))
    expected = naive.merge(paths, "v3", shares_of)
    found = {name: t for file in (root / "child").glob("*.safetensors") for name, t in load_file(file).items()}
    assert {n: naive.bytes_of(t) for n, t in found.items()} == {n: naive.bytes_of(t) for n, t in expected.items()}
    assert verify_child(root / "child", parents).ok
    shutil.rmtree(root)


def test_a_unit_that_is_exactly_delta_away_is_the_base_s(family: dict[str, Path]) -> None:
    """Mixed is what is farther than delta; what a map says can be written into a recipe as it is."""
    parents = opened(family)
    apart = measure_distances(recipe_of(EXPERTS.replace("DELTA", "0"), parents), parents)["r1"]
    for number, delta in enumerate(sorted(apart.values())):
        (summary, _) = plan_of(family, delta).summaries
        assert summary.delta is not None
        assert (summary.delta.left.units, summary.delta.mixed.units) == (number + 1, len(apart) - number - 1)


# ------------------------------------------------------------------------------------------------ maps


def test_maps_are_matched_to_the_parents_that_they_are_of(family: dict[str, Path], maps: dict[str, Path]) -> None:
    """In any order, either side first, though all headers are alike; and they say what measuring does."""
    parents = opened(family)
    recipe = recipe_of("- {mix: {r1: 0.5, x: 0.25}, delta: 0, components: all}", parents)
    measured = measure_distances(recipe, parents)
    for given_maps in ([maps["r1"], maps["x"]], [maps["x"], maps["r1"]]):
        assert read_distances(recipe, parents, given_maps) == measured
    for name, found in measured.items():
        assert found == pytest.approx(naive.distances(family["v3"], family[name]), rel=1e-12)


def test_a_map_of_others_or_a_second_one_is_refused(
    tmp_path: Path, family: dict[str, Path], maps: dict[str, Path]
) -> None:
    """By its file, with what it should be of."""
    parents = opened({name: family[name] for name in ("v3", "r1")})
    recipe = recipe_of(EXPERTS.replace("DELTA", "0"), parents)
    with pytest.raises(MapError) as e:
        read_distances(recipe, parents, [maps["r1"], maps["x"]])
    assert str(e.value).splitlines() == [
        f"{maps['x']}: is of other checkpoints",
        "  expected: the base 'v3' and one of r1",
        f"  to do:    chimerakit compare {family['v3']} PARENT -o MAP.npz",
    ]
    second = Path(shutil.copy(maps["r1"], tmp_path / "again.npz"))
    with pytest.raises(MapError) as e:
        read_distances(recipe, parents, [maps["r1"], second])
    assert str(e.value) == f"{second}: is a second map of 'v3' and 'r1'\n  found:    {maps['r1']}"
    save_map(compare_checkpoints(parents["r1"], open_checkpoint(family["x"])), tmp_path / "r1-x.npz")
    with pytest.raises(MapError, match=r"r1-x\.npz: is of other checkpoints"):
        read_distances(recipe, opened(family), [tmp_path / "r1-x.npz"])


def test_one_checkpoint_under_two_names_has_one_map(family: dict[str, Path], maps: dict[str, Path]) -> None:
    """A map is of checkpoints, whatever a recipe calls them."""
    parents = opened({"v3": family["v3"], "r1": family["r1"], "twin": family["r1"]})
    found = read_distances(recipe_of("", parents), parents, [maps["r1"]])
    assert found["r1"] == found["twin"]
    assert found.keys() == {"r1", "twin"}


# ------------------------------------------------------------------------------------------- measuring


def test_only_what_is_in_question_is_measured(family: dict[str, Path]) -> None:
    """Units that a delta decides on are read, of parents that have a share there; without a delta nothing is."""
    parents, events = opened(family), list[Event]()
    rules = "- {mix: {r1: 0.5, x: 0}, delta: 0.1, components: router}\n- {mix: {x: 0.5}, components: all}"
    found = measure_distances(recipe_of(rules, parents), parents, listener=events.append)
    assert {name: set(units) for name, units in found.items()} == {
        "r1": {name for name in parents["v3"].tensors if ".mlp.gate." in name}
    }
    nbytes = 2 * sum(parents["v3"].tensors[name].nbytes for name in found["r1"])
    assert [e.total for e in events if isinstance(e, Started)] == [nbytes]
    assert sum(e.amount for e in events if isinstance(e, Advanced)) == nbytes
    events.clear()
    assert measure_distances(recipe_of(rules.split("\n")[1], parents), parents, listener=events.append) == {}
    assert events == []


def test_a_value_that_is_not_finite_is_refused_by_name(tmp_path: Path, family: dict[str, Path]) -> None:
    """A delta can't decide on NaN; the unit is named, whether a map or a measurement found it."""
    stored = synthetic.tensors_of(1, "fp8", config=SMALL, spread=0.25)
    bias = "model.layers.0.mlp.gate.e_score_correction_bias"
    stored[bias][0] = float("nan")
    broken = synthetic.write_checkpoint(tmp_path / "r1", stored, synthetic.config_of("fp8", SMALL))
    parents = opened({"v3": family["v3"], "r1": broken})
    recipe = recipe_of("- {mix: {r1: 0.5}, delta: 0.1, components: router}", parents)
    save_map(compare_checkpoints(parents["v3"], parents["r1"]), tmp_path / "map.npz")
    for found in (measure_distances(recipe, parents), read_distances(recipe, parents, [tmp_path / "map.npz"])):
        with pytest.raises(PlanError, match=f"such as {bias}: its values are not finite"):
            make_plan(recipe, parents, found)


# ---------------------------------------------------------------------------------------- merge, verify


@pytest.fixture(scope="module")
def delta(family: dict[str, Path]) -> float:
    """One that half of the routed experts are farther away than."""
    found = naive.distances(family["v3"], family["r1"])
    experts = sorted(distance for name, distance in found.items() if ".mlp.experts." in name)
    return sum(experts[len(experts) // 2 - 1 :][:2]) / 2


def proof(child: Path, family: dict[str, Path], **options: Any) -> Findings:
    return verify_child(child, opened({name: family[name] for name in ("v3", "r1")}), **options)


def test_a_proof_measures_again(tmp_path: Path, family: dict[str, Path], delta: float) -> None:
    """It needs no map: it compares what is in question, then proves; a check without parents compares nothing."""
    manifest = merge_parents(plan_of(family, delta), tmp_path / "child").manifest
    outcomes = [made.outcome for made in manifest.units if made.rule == 0]
    assert outcomes.count("copied") == outcomes.count("mixed") == len(outcomes) / 2
    assert manifest.recipe["rules"][0]["delta"] == delta
    for threads in (1, 4):
        events = list[Event]()
        assert proof(tmp_path / "child", family, runner=Threads(threads), listener=events.append).ok
        assert [e.work for e in events if isinstance(e, Started)] == ["comparing", "proving"]
    events = list[Event]()
    assert verify_child(tmp_path / "child", listener=events.append).ok
    assert "comparing" not in [e.work for e in events if isinstance(e, Started)]


def test_a_child_of_untrue_distances_is_found(tmp_path: Path, family: dict[str, Path], delta: float) -> None:
    """Whoever merges with a map of his own making gets a child that no proof holds for."""
    parents = opened({name: family[name] for name in ("v3", "r1")})
    recipe = recipe_of(EXPERTS.replace("DELTA", repr(delta)), parents)
    untrue = {"r1": dict.fromkeys(measure_distances(recipe, parents)["r1"], 2 * delta)}
    merge_parents(make_plan(recipe, parents, untrue), tmp_path / "child")
    assert verify_child(tmp_path / "child").ok
    (finding,) = proof(tmp_path / "child", family).failed
    assert finding.says == "its recipe and parents give another plan than the one that it names"


def test_a_manifest_with_another_delta_is_found(tmp_path: Path, family: dict[str, Path], delta: float) -> None:
    """Though it may decide alike: the plan's digest covers the recipe as it is written."""
    merge_parents(plan_of(family, delta), tmp_path / "child")
    path = tmp_path / "child" / "chimerakit.json"
    other = delta * (1 + 1e-9)
    assert plan_of(family, other).rows == plan_of(family, delta).rows
    path.write_text(path.read_text().replace(f'"delta": {delta!r}', f'"delta": {other!r}'))
    assert [f.says for f in proof(tmp_path / "child", family).failed] == [
        "its recipe and parents give another plan than the one that it names"
    ]


def test_merging_again_goes_on_or_is_done_with_the_same_delta_only(
    tmp_path: Path, family: dict[str, Path], delta: float
) -> None:
    """An interrupted merge ends in the same bytes, a finished one is left alone, and one of another plan is refused."""
    plan, child = plan_of(family, delta), tmp_path / "child"
    merge_parents(plan, tmp_path / "whole")
    interrupt(plan, child, after=1)
    with pytest.raises(OutputError, match="holds an unfinished child of another plan"):
        merge_parents(plan_of(family, 0.0), child)
    merge_parents(plan, child)
    assert contents(child) == contents(tmp_path / "whole")
    assert merge_parents(plan, child).jobs_run == 0
    with pytest.raises(OutputError, match="holds a finished child of another plan"):
        merge_parents(plan_of(family, 0.0), child)
    merge_parents(plan_of(family, 0.0), child, force=True)
    assert proof(child, family).ok


# -------------------------------------------------------------------------------------- command line


def test_the_whole_way_on_the_command_line(
    tmp_path: Path, family: dict[str, Path], maps: dict[str, Path], delta: float
) -> None:
    """Plan and merge take maps, say what the delta makes of the rule, and the child is proven without any map."""
    paths = {name: family[name] for name in ("v3", "r1")}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"parents: {{v3: , r1: }}\nbase: v3\nrules:\n{EXPERTS.replace('DELTA', repr(delta))}\n")
    refused = run("plan", recipe, *flags(paths))
    assert refused.returncode == 2
    assert "pass `--differences v3-r1.npz`" in refused.stderr
    given_map = f"--differences={maps['r1']}"
    said = parse(run("plan", recipe, *flags(paths), given_map))["rules"][0]
    assert said["delta"]["delta"] == delta
    assert said["delta"]["mixed"]["units"] == said["delta"]["left"]["units"] == said["units"] / 2
    assert said["delta"]["mixed"]["nbytes"] + said["delta"]["left"]["nbytes"] == said["nbytes"]
    code, shown = run_on_terminal("plan", recipe, *flags(paths), given_map)
    assert code == 0
    assert f"1. by more than {delta:g}" in shown
    assert "left to the base" in shown
    child = tmp_path / "child"
    assert run("merge", recipe, *flags(paths), given_map, "-o", child, "-q").returncode == 0
    assert run("verify", child, *flags(paths), "-q").returncode == 0
