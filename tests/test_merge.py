"""Whole merges, against the parents' bytes and against the naive merge."""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from chimerakit.errors import PlanError
from chimerakit.formats import open_checkpoint
from chimerakit.merge import merge_parents
from chimerakit.plan import make_plan
from chimerakit.recipe import parse_recipe
from chimerakit.records import Manifest
from chimerakit.runners.local import Threads
from tests import naive, synthetic
from tests.effort import examples
from tests.merging import MIX, MIX_ALL, R1T, contents, merge, plan_of, run_python, sha256_of, stored, values

Pair = dict[str, Path]
FP8 = ("fp8", "ue8m0", "e8m0")
FLOATS = ("bf16", "f16", "f32")
OWN = ("README.md", "chimerakit.json")


pytestmark = pytest.mark.usefixtures("impatient", "one_thread")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Two parents of unlike shard layouts, with scales in other shards than their weights."""

    @cache
    def make(storage: str) -> Pair:
        root = tmp_path_factory.mktemp(storage)
        v3 = synthetic.make(root / "v3", 1, storage, shards=3, shuffle=11)
        return {"v3": v3, "r1": synthetic.make(root / "r1", 2, storage, shards=5, shuffle=7)}

    return make


def is_routed(name: str) -> bool:
    return ".mlp.experts." in name


def units(manifest: Manifest) -> dict[str, Any]:
    return {unit.unit: unit for unit in manifest.units}


def assert_equal_to(child: Path, expected: dict[str, torch.Tensor]) -> None:
    """The same tensors, in the same dtypes and shapes, with the same bytes."""
    found = {name: t for file in child.glob("*.safetensors") for name, t in load_file(file).items()}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.shape == expected[name].shape, name
        assert naive.bytes_of(tensor) == naive.bytes_of(expected[name]), name


# ---------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("storage", [*FP8, *FLOATS])
def test_the_r1t_recipe_copies_every_tensor_from_its_source(
    pair: Callable[[str], Pair], storage: str, tmp_path: Path
) -> None:
    """Routed experts, MTP's too, have R1's sha256 and all other tensors V3's, scales included."""
    parents = pair(storage)
    merged = merge(parents, R1T, tmp_path / "child")
    v3, r1, child = (sha256_of(p) for p in (parents["v3"], parents["r1"], tmp_path / "child"))
    assert child == {name: (r1 if is_routed(name) else v3)[name] for name in v3}
    routed = [name for name in v3 if is_routed(name) and name.endswith("weight")]
    assert all(v3[name] != r1[name] for name in routed)
    assert any(".layers.3." in name for name in routed)
    assert {unit.outcome for unit in merged.manifest.units} == {"copied"}


@pytest.mark.parametrize("shuffle", [None, 11])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_recipe_without_rules_gives_the_base(tmp_path: Path, shards: int, shuffle: int | None) -> None:
    """Every file equals the base's byte for byte, headers, index and config included; only the card is ours."""
    base = synthetic.make(tmp_path / "v3", 1, "fp8", shards=shards, shuffle=shuffle)
    merge({"v3": base}, "", tmp_path / "child")
    expected, found = contents(base), contents(tmp_path / "child")
    assert set(found) == {*expected, "chimerakit.json"}
    assert {n: d for n, d in found.items() if n not in OWN} == {n: d for n, d in expected.items() if n not in OWN}
    assert found["README.md"] != expected["README.md"]


def test_copied_units_may_hold_anything(tmp_path: Path) -> None:
    """NaN, infinity and types that can't be mixed are moved as bytes and not looked at."""
    tensors = synthetic.tensors_of(1)
    tensors["model.norm.weight"][3] = np.nan
    tensors["lm_head.weight"][0, 0] = np.inf
    tensors["model.counts"] = np.arange(5)
    tensors["model.nothing"] = np.zeros((0, 3), ml_dtypes.float8_e4m3fn)
    base = synthetic.write_checkpoint(tmp_path / "v3", tensors, synthetic.config_of("bf16"))
    parents = {"v3": base, "r1": synthetic.make(tmp_path / "r1", 2)}
    merged = merge(parents, MIX, tmp_path / "child")
    child, own = stored(tmp_path / "child"), stored(base)
    for name in ("model.norm.weight", "lm_head.weight", "model.counts", "model.nothing"):
        assert child[name] == own[name]
    assert not any(unit.nonfinite for unit in merged.manifest.units)


# ----------------------------------------------------------------------------------------------- mixes

Shares = Callable[[str], dict[str, float]]


def gradient(name: str) -> dict[str, float]:
    share = [0.2, 0.5, 0.8, 0.8][int(name.split(".")[2])] if ".layers." in name else 0.0
    return {"v3": 1 - share, "r1": share} if share else {"v3": 1.0}


RECIPES: dict[str, tuple[str, Shares]] = {
    "routed experts": (MIX, lambda name: {"v3": 0.25, "r1": 0.75} if is_routed(name) else {"v3": 1.0}),
    "everything": (MIX_ALL, lambda name: {"v3": 0.25, "r1": 0.75}),
    "first rule wins": (
        '- {take: r1, tensors: "*.up_proj.weight"}\n- {mix: {r1: 0.1}, components: [routed_experts, shared_experts]}',
        lambda name: (
            {"r1": 1.0}
            if name.endswith(".up_proj.weight")
            else {"v3": 0.9, "r1": 0.1}
            if is_routed(name) or "shared_experts" in name
            else {"v3": 1.0}
        ),
    ),
    "a gradient": ('- {mix: {r1: {from: 0.2, to: 0.8}}, tensors: "model.layers.*"}', gradient),
    "normalized": (
        "- {mix: {r1: 3, v3: 1}, normalize: true, components: all}",
        lambda name: {"v3": 0.25, "r1": 0.75},
    ),
    "as written": (
        "- {mix: {v3: 1, r1: -0.5}, normalize: false, components: all}",
        lambda name: {"v3": 1.0, "r1": -0.5},
    ),
    "beyond the parents": ("- {mix: {v3: -0.5, r1: 1.5}, components: all}", lambda name: {"v3": -0.5, "r1": 1.5}),
}


@pytest.mark.parametrize(
    ("storage", "recipe"),
    [(s, r) for s in [*FLOATS, *FP8] for r in RECIPES if s in ("bf16", "fp8") or r in ("routed experts", "as written")],
)
def test_mixes_equal_the_naive_merge_byte_for_byte(
    pair: Callable[[str], Pair], storage: str, recipe: str, tmp_path: Path
) -> None:
    """Every tensor of every storage, FP8 codes and scales too, has the bytes of the naive merge."""
    parents = pair(storage)
    rules, shares_of = RECIPES[recipe]
    merge(parents, rules, tmp_path / "child")
    assert_equal_to(tmp_path / "child", naive.merge(parents, "v3", shares_of))


@pytest.mark.parametrize("storage", ["bf16", "fp8"])
def test_three_parents_are_added_base_first(pair: Callable[[str], Pair], storage: str, tmp_path: Path) -> None:
    """The sum goes from the base through the mix as written; another order would round otherwise."""
    third = synthetic.make(tmp_path / "x", 3, storage, shards=1)
    parents = {"x": third, **pair(storage)}
    plan = plan_of(parents, "- {mix: {r1: 0.37, x: 0.21}, components: all}")
    merge_parents(plan, tmp_path / "child")
    expected = naive.merge(parents, "v3", lambda _: {"v3": 0.42, "r1": 0.37, "x": 0.21})
    assert_equal_to(tmp_path / "child", expected)
    other = naive.merge(parents, "v3", lambda _: {"x": 0.21, "r1": 0.37, "v3": 0.42})
    assert any(naive.bytes_of(other[name]) != naive.bytes_of(expected[name]) for name in expected)


@pytest.mark.parametrize(("base", "other"), [("fp8", "bf16"), ("bf16", "fp8"), ("ue8m0", "fp8"), ("e8m0", "f32")])
@pytest.mark.parametrize("rules", [R1T, MIX])
def test_parents_stored_unlike_each_other_are_decoded_and_stored_as_the_base(
    pair: Callable[[str], Pair], base: str, other: str, rules: str, tmp_path: Path
) -> None:
    """A unit from a parent of another storage is converted; mixes of unlike storages are those of the naive merge."""
    parents = {"v3": pair(base)["v3"], "r1": pair(other)["r1"]}
    merged = merge(parents, rules, tmp_path / "child")
    part = {"r1": 1.0} if rules == R1T else {"v3": 0.25, "r1": 0.75}
    assert_equal_to(
        tmp_path / "child", naive.merge(parents, "v3", lambda name: part if is_routed(name) else {"v3": 1.0})
    )
    outcomes = {u.outcome for u in merged.manifest.units if is_routed(u.unit)}
    assert outcomes == {"converted" if rules == R1T else "mixed"}


@pytest.mark.parametrize("storage", FP8)
def test_an_fp8_mix_is_as_close_as_quantizing_the_exact_one(
    pair: Callable[[str], Pair], storage: str, tmp_path: Path
) -> None:
    """Against the float64 mix, every tensor's relative RMS error is that of the best encoding to 1 %, and is recorded."""
    parents = pair(storage)
    merged = merge(parents, MIX_ALL, tmp_path / "child")
    v3, r1, child = (stored(p) for p in (parents["v3"], parents["r1"], tmp_path / "child"))
    checked = 0
    for name in [n for n in v3 if n + "_scale_inv" in v3 and np.prod(v3[n][1]) >= 4096]:
        exact = 0.25 * values(v3, name) + 0.75 * values(r1, name)
        found = np.linalg.norm(values(child, name) - exact) / np.linalg.norm(exact)
        best = np.linalg.norm(_quantized(exact, powers=storage != "fp8") - exact) / np.linalg.norm(exact)
        assert found == pytest.approx(best, rel=0.01), name
        assert units(merged.manifest)[name].rms_error == pytest.approx(found, rel=0.01), name
        checked += 1
    assert checked > 50


def _quantized(exact: Any, *, powers: bool) -> Any:
    """A float64 matrix rounded to FP8 with scales of unlimited precision."""
    out = np.empty_like(exact)
    for i in range(0, exact.shape[0], 128):
        for j in range(0, exact.shape[1], 128):
            block = exact[i : i + 128, j : j + 128]
            scale = np.abs(block).max() / 448
            scale = np.exp2(np.ceil(np.log2(scale))) if powers else scale
            out[i : i + 128, j : j + 128] = (block / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale
    return out


@pytest.mark.parametrize("storage", ["bf16", "f16"])
def test_the_rounding_error_of_other_storages_is_recorded(
    pair: Callable[[str], Pair], storage: str, tmp_path: Path
) -> None:
    """rms_error of a mixed unit is its distance from the float64 mix; copied units have none."""
    parents = pair(storage)
    merged = merge(parents, MIX, tmp_path / "child")
    v3, r1, child = (stored(p) for p in (parents["v3"], parents["r1"], tmp_path / "child"))
    for name, unit in units(merged.manifest).items():
        if not is_routed(name):
            assert unit.rms_error is None
            continue
        exact = 0.25 * values(v3, name) + 0.75 * values(r1, name)
        found = np.linalg.norm(values(child, name) - exact) / np.linalg.norm(exact)
        assert unit.rms_error == pytest.approx(found, rel=0.01)


# ------------------------------------------------------------------------------------ output.dtype, equal


@pytest.mark.parametrize("storage", FP8)
def test_dtype_bf16_decodes_fp8_as_torch_does(pair: Callable[[str], Pair], storage: str, tmp_path: Path) -> None:
    """Values are (code * scale).bfloat16(), scales are gone, and config.json says so; the F32 bias stays."""
    base = pair(storage)["v3"]
    merged = merge({"v3": base}, "", tmp_path / "child", output="dtype: bf16")
    own, _ = naive.load(base)
    expected = {}
    for name, (weight, *scale) in own.items():
        is_fp8 = weight.dtype == torch.float8_e4m3fn
        expected[name] = (weight.float() * naive.spread(scale[0].float(), weight)).bfloat16() if is_fp8 else weight
    assert_equal_to(tmp_path / "child", expected)
    config = json.loads((tmp_path / "child/config.json").read_text())
    assert "quantization_config" not in config
    index = json.loads((tmp_path / "child/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(expected)
    outcomes = {u.unit: u.outcome for u in merged.manifest.units}
    assert outcomes["model.layers.1.mlp.experts.0.up_proj.weight"] == "converted"
    assert outcomes["model.layers.1.mlp.gate.e_score_correction_bias"] == "copied"


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32", "fp8-block"])
@pytest.mark.parametrize("storage", ["bf16", "fp8"])
def test_every_output_dtype_equals_the_naive_merge(
    pair: Callable[[str], Pair], storage: str, dtype: str, tmp_path: Path
) -> None:
    """Mixed and copied units alike are stored in the wanted dtype, where the family lets them."""
    parents = pair(storage)
    merge(parents, MIX, tmp_path / "child", output=f"dtype: {dtype}")
    shares = lambda name: {"v3": 0.25, "r1": 0.75} if is_routed(name) else {"v3": 1.0}  # noqa: E731
    assert_equal_to(tmp_path / "child", naive.merge(parents, "v3", shares, dtype))


@pytest.fixture
def twins(tmp_path: Path) -> Callable[[str], Pair]:
    """Two parents with the same tensors, but for one expert, in unlike files."""

    def make(storage: str) -> Pair:
        tensors, config = synthetic.tensors_of(1, storage), synthetic.config_of(storage)
        v3 = synthetic.write_checkpoint(tmp_path / "v3", tensors, config)
        unlike = synthetic.tensors_of(2, storage)
        changed = {n: t for n, t in unlike.items() if ".layers.2.mlp.experts.3." in n}
        return {"v3": v3, "r1": synthetic.write_checkpoint(tmp_path / "r1", tensors | changed, config, shuffle=3)}

    return make


@pytest.mark.parametrize("storage", ["bf16", "fp8", "e8m0"])
def test_units_with_equal_parents_are_copied(twins: Callable[[str], Pair], storage: str, tmp_path: Path) -> None:
    """Nothing is requantized for nothing: equal units of a mix keep their bytes, and the receipt says "equal"."""
    parents = twins(storage)
    merged = merge(parents, MIX, tmp_path / "child")
    v3, child = sha256_of(parents["v3"]), sha256_of(tmp_path / "child")
    is_unlike = {n: ".layers.2.mlp.experts.3." in n for n in v3}
    assert {n for n in v3 if child[n] != v3[n]} <= {n for n in v3 if is_unlike[n]}
    for name, unit in units(merged.manifest).items():
        assert unit.outcome == ("copied" if not is_routed(name) else "mixed" if is_unlike[name] else "equal")
        assert (unit.rms_error is None) == (unit.outcome != "mixed")


def test_units_with_equal_parents_are_converted_once(twins: Callable[[str], Pair], tmp_path: Path) -> None:
    """Equal units whose dtype changes are decoded with a share of 1, so 0.25 x + 0.75 x rounds nothing."""
    parents = twins("fp8")
    merged = merge(parents, MIX, tmp_path / "child", output="dtype: bf16")
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    weight, scale = naive.load(parents["v3"])[0][name]
    found = naive.load(tmp_path / "child")[0][name][0]
    assert naive.bytes_of(found) == naive.bytes_of((weight.float() * naive.spread(scale, weight)).bfloat16())
    assert units(merged.manifest)[name].outcome == "equal"


def test_equal_parents_are_mixed_when_the_shares_do_not_sum_to_one(
    twins: Callable[[str], Pair], tmp_path: Path
) -> None:
    """1 x - 0.5 x is half of x, not x."""
    parents = twins("bf16")
    rules = "- {mix: {v3: 1, r1: -0.5}, normalize: false, components: routed_experts}"
    merged = merge(parents, rules, tmp_path / "child")
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    assert units(merged.manifest)[name].outcome == "mixed"
    assert np.array_equal(values(stored(tmp_path / "child"), name), values(stored(parents["v3"]), name) / 2)


# ------------------------------------------------------------------------------------------ same bytes


@pytest.mark.parametrize("storage", ["bf16", "fp8"])
def test_the_child_does_not_depend_on_threads_or_layout_of_work(
    pair: Callable[[str], Pair], storage: str, tmp_path: Path
) -> None:
    """1, 2 and 4 threads, with many small jobs or few large ones, give equal files, manifest included."""
    for number, (threads, segment) in enumerate([(1, 20_000), (2, 20_000), (4, 20_000), (2, 1 << 30)]):
        plan = plan_of(pair(storage), MIX_ALL, segment_nbytes=segment)
        assert (len(plan.segments) > 20) == (segment == 20_000)
        merge_parents(plan, tmp_path / str(number), runner=Threads(threads))
    first = contents(tmp_path / "0")
    assert all(contents(tmp_path / str(number)) == first for number in (1, 2, 3))


def test_the_child_does_not_depend_on_where_the_parents_lie(pair: Callable[[str], Pair], tmp_path: Path) -> None:
    """Parents reached through symlinks give equal files: the manifest holds no paths."""
    parents = pair("fp8")
    links = {}
    for name, path in parents.items():
        links[name] = tmp_path / f"link-{name}"
        links[name].mkdir()
        for file in path.iterdir():
            (links[name] / file.name).symlink_to(file)
    merge(parents, MIX, tmp_path / "a")
    merge(links, MIX, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["bf16", "f16", "fp8", "ue8m0"])
def test_the_child_does_not_depend_on_the_cpu(pair: Callable[[str], Pair], storage: str, tmp_path: Path) -> None:
    """Kernels compiled for this CPU and for a generic one of its kind write the same files, error sums included."""
    code = """
import sys
from pathlib import Path
from tests.merging import MIX_ALL, merge
merge({"v3": Path(sys.argv[1]), "r1": Path(sys.argv[2])}, MIX_ALL, Path(sys.argv[3]))
"""
    parents = pair(storage)
    for cpu in ("generic", "native"):
        name = {} if cpu == "native" else {"NUMBA_CPU_NAME": cpu}
        done = run_python(code, *parents.values(), tmp_path / cpu, NUMBA_CACHE_DIR=str(tmp_path / "cache"), **name)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "generic") == contents(tmp_path / "native")


# --------------------------------------------------------------------------------------------- digests


def test_sha256_is_recorded_on_request(pair: Callable[[str], Pair], tmp_path: Path) -> None:
    """With sha256=True every tensor and every file has the sha256 that hashlib gives it; without, none has one."""
    with_sha = merge(pair("fp8"), MIX, tmp_path / "a", sha256=True).manifest
    files = contents(tmp_path / "a")
    assert {n: w.sha256 for n, w in with_sha.weights.items()} == {
        n: hashlib.sha256(d).hexdigest() for n, d in files.items() if n.endswith(".safetensors")
    }
    assert {n: f.sha256 for n, f in with_sha.files.items()} == {
        n: hashlib.sha256(d).hexdigest()
        for n, d in files.items()
        if not n.endswith(".safetensors") and n != "chimerakit.json"
    }
    recorded = {name: sha for unit in with_sha.units for name, sha in (unit.sha256 or {}).items()}
    assert recorded == sha256_of(tmp_path / "a")
    without = merge(pair("fp8"), MIX, tmp_path / "b").manifest
    assert not any(file.sha256 for file in without.weights.values())
    assert not any(file.sha256 for file in without.files.values())
    assert not any(unit.sha256 for unit in without.units)


# ------------------------------------------------------------------------------------- random recipes

SMALL = synthetic.CONFIG | {
    "hidden_size": 130,
    "num_hidden_layers": 2,
    "n_routed_experts": 2,
    "moe_intermediate_size": 6,
    "intermediate_size": 5,
    "q_lora_rank": 4,
    "kv_lora_rank": 3,
    "qk_nope_head_dim": 2,
    "qk_rope_head_dim": 129,
    "v_head_dim": 2,
    "vocab_size": 7,
}
COMPONENTS = {
    "embedding": "embed_tokens",
    "head": "lm_head|shared_head.head",
    "routed_experts": ".mlp.experts.",
    "shared_experts": "shared_experts",
    "router": ".mlp.gate.",
    "dense_mlp": ".mlp.",
    "attention": ".self_attn.",
    "other": ".eh_proj.|model.extra",
    "norm": "norm",
}
GLOBS = {"*.weight": ".weight", "*.up_proj.*": ".up_proj.", "model.layers.1.*": "model.layers.1."}


def component(name: str) -> str:
    """What the table of the family says, told by the first part of a name that fits."""
    return next(c for c, parts in COMPONENTS.items() if any(p in name for p in parts.split("|")))


@st.composite
def rules(draw: st.DrawFn, parents: list[str]) -> dict[str, Any]:
    """A rule that is valid by itself; it may match nothing."""
    rule: dict[str, Any] = {}
    others = [p for p in parents if p != "v3"]
    if not others or draw(st.booleans()):
        rule["take"] = draw(st.sampled_from(parents))
    else:
        shares = st.sampled_from([0, 0.1, 1 / 3, 0.25, 0.5])
        rule["mix"] = {p: draw(shares) for p in draw(st.permutations(others))}
        if len(others) == 1 and draw(st.booleans()):
            rule["mix"] = {others[0]: draw(st.sampled_from([0.75, 1, 0]))}
    selectors = {
        "components": st.lists(st.sampled_from(sorted(COMPONENTS)), min_size=1, max_size=4, unique=True),
        "layers": st.lists(st.sampled_from([0, 1]), min_size=1, max_size=2, unique=True),
        "experts": st.just([1]),
        "mtp": st.booleans(),
        "tensors": st.lists(st.sampled_from(sorted(GLOBS)), min_size=1, max_size=2, unique=True),
    }
    for selector in draw(st.lists(st.sampled_from(sorted(selectors)), min_size=1, max_size=2, unique=True)):
        rule[selector] = draw(selectors[selector])
    return rule


def claims(rule: dict[str, Any], name: str) -> bool:
    """Whether a rule selects a weight, read off its name."""
    words = name.split(".")
    layer = int(words[2]) if words[1] == "layers" else None
    expert = int(words[5]) if ".mlp.experts." in name else None
    return (
        ("components" not in rule or component(name) in rule["components"])
        and ("layers" not in rule or layer in rule["layers"])
        and ("experts" not in rule or expert in rule["experts"])
        and ("mtp" not in rule or (layer == 2) == rule["mtp"])
        and (
            "tensors" not in rule
            or any(
                {"*.weight": name.endswith(".weight"), "*.up_proj.*": ".up_proj." in name}.get(
                    g, name.startswith("model.layers.1.")
                )
                for g in rule["tensors"]
            )
        )
    )


def shares_by(rule: dict[str, Any]) -> dict[str, float]:
    if "take" in rule:
        return {rule["take"]: 1.0}
    shares = {"v3": round(1 - sum(rule["mix"].values()), 12)} | rule["mix"]
    return {name: share for name, share in shares.items() if share}


@cache
def small(seed: int, storage: str) -> dict[str, Any]:
    """A small checkpoint's tensors, two of them without elements or without sides."""
    tensors = synthetic.tensors_of(seed, storage, config=SMALL)
    plain = tensors["model.norm.weight"].dtype
    extra = {"model.extra.bias": np.array(seed + 0.3, plain), "model.extra.empty_bias": np.zeros((0, 3), plain)}
    return tensors | extra


def check_against_naive(data: st.DataObject, root: Path) -> None:
    """A random recipe over random checkpoints gives the naive merge, or is refused for a rule that takes nothing."""
    names = ["v3", "r1", "x"][: data.draw(st.integers(1, 3), label="parents")]
    parents = {}
    for seed, name in enumerate(names):
        storage = data.draw(st.sampled_from([*FP8, *FLOATS]), label=f"storage of {name}")
        shards, shuffle = data.draw(st.tuples(st.integers(1, 4), st.none() | st.integers(0, 9)), label="layout")
        config = synthetic.config_of(storage, SMALL)
        parents[name] = synthetic.write_checkpoint(
            root / name, small(seed, storage), config, shards=shards, shuffle=shuffle
        )
    wanted = data.draw(st.lists(rules(names), max_size=3), label="rules")
    dtype = data.draw(st.sampled_from(["keep", "keep", "bf16", "f16", "f32", "fp8-block"]), label="dtype")
    shards_by = data.draw(st.sampled_from(["base", "by-rule"]), label="shards")
    segment = data.draw(st.sampled_from([1, 5000, 1 << 30]), label="segment")
    recipe = parse_recipe(
        json.dumps(
            {
                "parents": dict.fromkeys(names),
                "base": "v3",
                "rules": wanted,
                "output": {"dtype": dtype, "shards": shards_by},
            }
        )
    )
    weights = [n for n in stored(parents["v3"]) if not n.endswith("_scale_inv")]
    first = {n: next((i for i, rule in enumerate(wanted) if claims(rule, n)), None) for n in weights}
    opened = {name: open_checkpoint(path) for name, path in parents.items()}
    if any(i not in first.values() for i in range(len(wanted))):
        with pytest.raises(PlanError, match=r"matches nothing|takes nothing"):
            make_plan(recipe, opened)
        return

    def shares_of(name: str) -> dict[str, float]:
        rule = first[name]
        return {"v3": 1.0} if rule is None else shares_by(wanted[rule])

    merge_parents(make_plan(recipe, opened, segment_nbytes=segment), root / "child", runner=Threads(2))
    assert_equal_to(root / "child", naive.merge(parents, "v3", shares_of, dtype))


def _fresh(factory: pytest.TempPathFactory) -> Path:
    return factory.mktemp("random")


@settings(max_examples=40)
@given(data=st.data())
def test_random_recipes_equal_the_naive_merge(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """All storages, layouts, selectors and dtypes: every byte is the naive merge's."""
    check_against_naive(data, _fresh(tmp_path_factory))


@pytest.mark.slow
@settings(max_examples=examples(quick=400, ci=400, prove=4000))
@given(data=st.data())
def test_more_random_recipes_equal_the_naive_merge(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The same with more examples; with `make prove` new ones each time."""
    check_against_naive(data, _fresh(tmp_path_factory))
