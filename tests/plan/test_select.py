"""Which rule takes which unit, from whom, and everything that is refused."""

import math
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from chimerakit.errors import PlanError
from chimerakit.plan import make_plan
from chimerakit.records import COMPONENTS, Amount, Checkpoint, DeltaSummary, Input, Plan
from tests.plan.models import checkpoint, entries_of, model, plan_of, recipe_of, rows_by_name
from tests.synthetic import CONFIG, config_of, layout

LAYERS, EXPERTS = CONFIG["num_hidden_layers"], CONFIG["n_routed_experts"]
BF16, BF16_OTHER = model(), model(shards=2, shuffle=1)
FP8, FP8_OTHER = model("fp8"), model("fp8", shards=2, shuffle=2)
NAMES = [name for name, _, _ in layout()]
GATE = "model.layers.1.mlp.experts.2.gate_proj.weight"
NORM = "model.norm.weight"
TAKE_ALL = {"take": "r1", "components": "all"}


def problems(*rules: Mapping[str, Any], base: Checkpoint = BF16, **parents: Any) -> list[str]:
    """What is wrong with these rules."""
    others = {"r1": BF16_OTHER} | parents
    with pytest.raises(PlanError) as e:
        plan_of(*rules, base=base, **others)
    return list(e.value.problems)


# ------------------------------------------------------------------------------------ a naive selection


def naive_component(name: str) -> str:
    """What a person would say about a name."""
    for part, component in (
        ("embed_tokens", "embedding"),
        ("lm_head", "head"),
        ("shared_head.head", "head"),
        ("self_attn", "attention"),
        ("mlp.gate.", "router"),
        ("mlp.experts.", "routed_experts"),
        ("mlp.shared_experts.", "shared_experts"),
        (".mlp.", "dense_mlp"),
        ("norm", "norm"),
    ):
        if part in name:
            return component
    return "other"


def number_after(word: str, name: str) -> int | None:
    found = re.search(rf"\.{word}\.(\d+)\.", name)
    return int(found[1]) if found else None


def naive_match(rule: Mapping[str, Any], name: str) -> bool:
    """Whether a rule, with its numbers as plain lists, selects a unit."""
    layer, expert = number_after("layers", name), number_after("experts", name)
    is_mtp = layer is not None and layer >= LAYERS
    wanted = rule.get("components")
    return (
        (wanted in (None, "all") or naive_component(name) in wanted)
        and ("layers" not in rule or (layer in rule["layers"] and not is_mtp))
        and ("experts" not in rule or expert in rule["experts"])
        and ("mtp" not in rule or rule["mtp"] == is_mtp)
        and ("tensors" not in rule or fnmatchcase(name, rule["tensors"]))
    )


def naive_shares(rule: Mapping[str, Any], name: str) -> dict[str, float]:
    """Who gives how much of a unit; the base has the rest."""
    if "take" in rule:
        return {rule["take"]: 1.0}
    layer = number_after("layers", name) or 0
    shares = {
        p: s["from"] + (s["to"] - s["from"]) * min(layer, LAYERS - 1) / (LAYERS - 1) if isinstance(s, dict) else s
        for p, s in rule["mix"].items()
    }
    rest = 1 - sum(shares.values())
    return {p: s for p, s in {"v3": rest, **shares}.items() if abs(s) > 1e-9}


SHARE = st.sampled_from([0, 0.25, 0.5])
SOME_SHARE = SHARE | st.builds(lambda a, b: {"from": a, "to": b}, SHARE, SHARE)


def merged(rule: dict[str, Any]) -> dict[str, Any]:
    """A rule of one mapping, out of what it does and what it selects."""
    selectors = {key: value for key, value in rule.items() if key != "what"}
    return {**rule["what"], **(selectors or {"components": "all"})}


RULES = (
    st.fixed_dictionaries(
        {
            "what": st.sampled_from([{"take": "r1"}, {"take": "x"}, {"take": "v3"}])
            | st.dictionaries(st.sampled_from(["r1", "x"]), SOME_SHARE, min_size=1).map(lambda m: {"mix": m})
        },
        optional={
            "components": st.just("all") | st.lists(st.sampled_from(COMPONENTS), min_size=1, unique=True),
            "layers": st.lists(st.integers(0, LAYERS - 1), min_size=1, unique=True),
            "experts": st.lists(st.integers(0, EXPERTS - 1), min_size=1, unique=True),
            "tensors": st.sampled_from(
                ["*", "*.weight", "*mlp*", "model.layers.[12].*", "*_proj.weight", "*.experts.?.up*"]
            ),
            "mtp": st.booleans(),
        },
    )
    .map(merged)
    .filter(lambda rule: len(rule) > 1)
)


@given(st.lists(RULES, max_size=4))
def test_random_recipes(rules: list[dict[str, Any]]) -> None:
    """Every unit of the base has one row; its rule, parents and shares are those of a naive selection, or the recipe is refused."""
    claimed = {name: next((i for i, r in enumerate(rules) if naive_match(r, name)), None) for name in NAMES}
    is_empty = any(i not in claimed.values() for i in range(len(rules)))
    is_gradient = [any(isinstance(s, dict) for s in r.get("mix", {}).values()) for r in rules]
    has_layerless = any(
        i is not None and is_gradient[i] and number_after("layers", name) is None for name, i in claimed.items()
    )
    recipe, parents = recipe_of(*rules, parents="v3 r1 x"), {"v3": BF16, "r1": BF16_OTHER, "x": BF16}
    if is_empty or has_layerless:
        with pytest.raises(PlanError, match=r"matches nothing|takes nothing|is a gradient over layers"):
            make_plan(recipe, parents)
        return
    plan = make_plan(recipe, parents)
    assert sorted(row.unit for row in plan.rows) == sorted(NAMES)
    assert sorted(t.name for row in plan.rows for t in row.outputs) == sorted(BF16.tensors)
    for row in plan.rows:
        rule = claimed[row.unit]
        assert row.rule == rule
        expected = {"v3": 1.0} if rule is None else naive_shares(rules[rule], row.unit)
        assert [i.parent for i in row.inputs] == list(expected)
        assert {i.parent: i.share for i in row.inputs} == pytest.approx(expected)
        assert row.kind == ("copy" if list(expected.values()) == [1.0] else "mix")


def test_roles() -> None:
    """Every unit's role is what a person would say about its name."""
    for row in plan_of(base=BF16).rows:
        layer = number_after("layers", row.unit)
        assert (row.role.component, row.role.layer, row.role.expert, row.role.mtp) == (
            naive_component(row.unit),
            layer,
            number_after("experts", row.unit),
            layer == LAYERS,
        )


# ----------------------------------------------------------------------------------- takes and mixtures


def test_first_match_wins() -> None:
    """A unit that two rules match is the first one's; what none matches is the base's."""
    rows = rows_by_name(
        plan_of(
            {"take": "r1", "components": "routed_experts", "layers": 1},
            {"mix": {"r1": 0.5}, "components": ["routed_experts", "router"]},
            base=BF16,
            r1=BF16_OTHER,
        )
    )
    assert (rows[GATE].rule, rows[GATE].kind, [i.parent for i in rows[GATE].inputs]) == (0, "copy", ["r1"])
    later = rows["model.layers.2.mlp.experts.2.gate_proj.weight"]
    assert (later.rule, later.kind, [i.parent for i in later.inputs]) == (1, "mix", ["v3", "r1"])
    assert (rows[NORM].rule, rows[NORM].kind, [i.parent for i in rows[NORM].inputs]) == (None, "copy", ["v3"])


def test_scales_move_with_their_weights() -> None:
    """A unit that is taken brings its scale along, from whatever shard it lies in."""
    rows = rows_by_name(plan_of({"take": "r1", "tensors": "*.experts.2.gate_proj.weight"}, base=FP8, r1=FP8_OTHER))
    row = rows[GATE]
    assert row.inputs == (
        Input("r1", 1.0, "FP8_BLOCK", (FP8_OTHER.tensors[GATE], FP8_OTHER.tensors[GATE + "_scale_inv"])),
    )
    assert row.outputs == (FP8.tensors[GATE], FP8.tensors[GATE + "_scale_inv"])
    assert GATE + "_scale_inv" not in rows


@pytest.mark.parametrize(
    ("mix", "parents"),
    [
        ({"r1": 1}, ["r1"]),
        ({"r1": 0}, ["v3"]),
        ({"v3": 0, "r1": 1.0}, ["r1"]),
        ({"r1": 0.0, "x": 1}, ["x"]),
    ],
)
def test_share_of_one_is_a_whole_take(mix: dict[str, float], parents: list[str]) -> None:
    """A share of 1 with the others 0 copies bytes."""
    plan = plan_of({"mix": mix, "components": "all"}, base=FP8, r1=FP8_OTHER, x=FP8_OTHER)
    assert {row.kind for row in plan.rows} == {"copy"}
    assert {tuple(i.parent for i in row.inputs) for row in plan.rows} == {tuple(parents)}
    assert {i.share for row in plan.rows for i in row.inputs} == {1.0}


def test_gradient() -> None:
    """A gradient's ends are whole takes, layers between them are mixed, and the MTP layer has the last value."""
    rows = rows_by_name(
        plan_of({"mix": {"r1": {"from": 0, "to": 1}}, "tensors": "*.self_attn.*"}, base=FP8, r1=FP8_OTHER)
    )
    name = "model.layers.{}.self_attn.o_proj.weight"
    found = [(rows[name.format(i)].kind, {p.parent: p.share for p in rows[name.format(i)].inputs}) for i in range(4)]
    assert found == [
        ("copy", {"v3": 1.0}),
        ("mix", {"v3": 0.5, "r1": 0.5}),
        ("copy", {"r1": 1.0}),
        ("copy", {"r1": 1.0}),
    ]


def test_three_and_four_parents() -> None:
    """Any number of parents mix, the base first, then in the order of the mix; a zero share has no part."""
    rule = {"mix": {"z": 0.25, "x": 0.125, "y": 0.0, "r1": 0.5}, "components": "router"}
    parents: dict[str, Any] = {"r1": BF16_OTHER, "x": BF16, "y": BF16, "z": BF16_OTHER}
    row = rows_by_name(plan_of(rule, base=BF16, **parents))["model.layers.1.mlp.gate.weight"]
    assert [(i.parent, i.share) for i in row.inputs] == [("v3", 0.125), ("z", 0.25), ("x", 0.125), ("r1", 0.5)]


def test_equal_parents_are_not_mixed() -> None:
    """A mix says what it is if its parents turn out equal: a copy, unless the shares do not sum to 1 or they are stored unlike."""
    half = {"mix": {"r1": 0.5}, "components": "all"}
    name = "model.layers.1.self_attn.o_proj.weight"

    def if_equal(rule: Mapping[str, Any], base: Checkpoint, r1: Checkpoint, **output: str) -> str | None:
        return rows_by_name(plan_of(rule, base=base, r1=r1, output=output))[name].if_equal

    assert if_equal(half, FP8, FP8_OTHER) == "copy"
    assert if_equal(half, FP8, FP8_OTHER, dtype="bf16") == "convert"
    assert if_equal(half, FP8, BF16) is None
    assert if_equal({**half, "normalize": False}, FP8, FP8_OTHER) is None
    assert if_equal({"take": "r1", "components": "all"}, FP8, FP8_OTHER) is None


# --------------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize(
    ("base", "other", "kind"),
    [
        ("bf16", "bf16", "copy"),
        ("fp8", "fp8", "copy"),
        ("ue8m0", "ue8m0", "copy"),
        ("e8m0", "e8m0", "copy"),
        ("fp8", "ue8m0", "copy"),  # powers of two are float32 scales like any other
        ("ue8m0", "fp8", "convert"),
        ("e8m0", "ue8m0", "convert"),
        ("ue8m0", "e8m0", "convert"),
        ("fp8", "bf16", "convert"),
        ("bf16", "fp8", "convert"),
        ("f32", "bf16", "convert"),
        ("f16", "f32", "convert"),
    ],
)
def test_copy_or_convert(base: str, other: str, kind: str) -> None:
    """Taken whole, a unit is copied if the base stores it alike, else converted to the base's storage."""
    parent = model(base)
    row = rows_by_name(plan_of({"take": "r1", "components": "all"}, base=parent, r1=model(other)))[GATE]
    assert row.kind == kind
    assert [(t.name, t.dtype, t.shape) for t in row.outputs] == [
        (t.name, t.dtype, t.shape) for n, t in parent.tensors.items() if n.startswith(GATE)
    ]


@pytest.mark.parametrize(
    ("storage", "dtype", "weights", "routers", "biases"),
    [
        ("fp8", "bf16", "BF16", "BF16", "F32"),
        ("fp8", "f32", "F32", "F32", "F32"),
        ("bf16", "f16", "F16", "F16", "F32"),
        ("bf16", "fp8-block", "FP8_BLOCK", "BF16", "F32"),
        ("f32", "fp8-block", "FP8_BLOCK", "F32", "F32"),
        ("ue8m0", "fp8-block", "FP8_BLOCK_UE8M0", "BF16", "F32"),
        ("ue8m0", "keep", "FP8_BLOCK_UE8M0", "BF16", "F32"),
    ],
)
def test_output_dtype(storage: str, dtype: str, weights: str, routers: str, biases: str) -> None:
    """output.dtype converts what the family marks: a correction bias stays float32, FP8 is for what DeepSeek stores so."""
    rows = rows_by_name(plan_of(base=model(storage), output={"dtype": dtype}))
    router = "model.layers.1.mlp.gate."
    assert [rows[n].storage for n in (GATE, router + "weight", router + "e_score_correction_bias")] == [
        weights,
        routers,
        biases,
    ]
    assert rows[router + "e_score_correction_bias"].kind == "copy"
    assert rows[GATE].kind == ("copy" if weights.startswith("FP8_BLOCK") and storage == "ue8m0" else "convert")


def test_integers_are_copied_not_mixed() -> None:
    """A storage that can't be decoded is copied, whatever output.dtype says, and refused where it would be mixed or converted."""
    extra = {"model.steps": ("I32", (4,))}
    base, other = model(change=extra), model(change=extra)
    rows = rows_by_name(plan_of(TAKE_ALL, base=base, r1=other, output={"dtype": "f32"}))
    assert (rows["model.steps"].kind, rows["model.steps"].storage) == ("copy", "I32")
    assert problems({"mix": {"r1": 0.5}, "components": "all"}, base=base, r1=other) == [
        "model.steps in 'v3' is stored as I32; that can be copied, not mixed or converted"
    ]
    floats = model(change={"model.steps": ("F32", (4,))})
    assert problems(TAKE_ALL, base=floats, r1=base) == [
        "model.steps in 'r1' is stored as I32; that can be copied, not mixed or converted"
    ]
    assert problems(TAKE_ALL, base=base, r1=floats) == [
        "model.steps in 'v3' is stored as I32; that can be copied, not mixed or converted"
    ]


# ---------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            {"take": "r1", "components": "router", "layers": 0},
            "rule 1 matches nothing in the base 'v3': router is in layers 1-2",
        ),
        (
            {"take": "r1", "components": ["dense_mlp", "router"], "experts": 1},
            "rule 1 matches nothing in the base 'v3': dense_mlp, router is in layers 0-2",
        ),
        (
            {"take": "r1", "components": "other", "layers": 1},
            "rule 1 matches nothing in the base 'v3': other is in no main layer",
        ),
        ({"take": "r1", "tensors": "*.wieght"}, "rule 1 matches nothing in the base 'v3'"),
        (
            {"take": "r1", "tensors": "*_scale_inv"},
            "rule 1 matches nothing in the base 'v3': its pattern names only scales (*_scale_inv); select the weight, "
            "its scale moves with it",
        ),
        (
            {"take": "r1", "layers": 3},
            "rule 1: layers: 3 is beyond the model: layers are 0-2; MTP layers are selected with mtp: true",
        ),
        (
            {"take": "r1", "layers": "1-3"},
            "rule 1: layers: 1-3 is beyond the model: layers are 0-2; MTP layers are selected with mtp: true",
        ),
        (
            {"take": "r1", "layers": "last 4"},
            "rule 1: layers: last 4 is beyond the model: layers are 0-2; MTP layers are selected with mtp: true",
        ),
        ({"take": "r1", "experts": [0, "3-4"]}, "rule 1: experts: 3-4 is beyond the model: experts are 0-3"),
    ],
)
def test_rule_that_matches_nothing(rule: dict[str, Any], said: str) -> None:
    """A rule that takes nothing is refused with where its components are, or what its numbers may be."""
    assert problems(rule, base=FP8, r1=FP8_OTHER) == [said]


def test_component_that_the_base_lacks() -> None:
    """A component that is nowhere in the base is said to be nowhere."""
    base = model(drop=lambda name: "shared_experts" in name)
    assert problems({"take": "r1", "components": "shared_experts"}, base=base, r1=BF16) == [
        "rule 1 matches nothing in the base 'v3': shared_experts is in no main layer, nor anywhere else"
    ]


def test_shadowed_rule() -> None:
    """A rule whose units all belong to earlier rules is refused with their number."""
    assert problems({"take": "r1", "layers": 1}, {"take": "v3", "components": "router", "layers": 1}) == [
        "rule 2 takes nothing: earlier rules take all 2 units that it matches"
    ]


def test_gradient_without_layers() -> None:
    """A gradient over units that have no layer is refused with their names and a way out."""
    gradient = {"mix": {"r1": {"from": 0, "to": 1}}}
    assert problems({**gradient, "components": ["embedding", "head", "norm"]}) == [
        "rule 1 is a gradient over layers, but takes 3 units that have no layer: model.embed_tokens.weight, "
        "model.norm.weight, lm_head.weight; add a selector that leaves them out, such as layers"
    ]
    plan_of({**gradient, "components": ["embedding", "head", "norm"], "layers": "0-2"}, base=BF16, r1=BF16_OTHER)


def test_all_shares_zero() -> None:
    """A mix of nothing is refused."""
    assert problems({"mix": {"r1": 0}, "normalize": False, "tensors": NORM}) == [f"{NORM}: all shares are 0"]


def test_shapes_that_disagree() -> None:
    """A unit of another shape is named with both shapes, if it is taken; if not, it does no harm."""
    odd = model(change={GATE: ("BF16", (72, 208))})
    assert problems(TAKE_ALL, r1=odd) == [f"{GATE} has another shape in 'r1': [72, 208], in the base [72, 200]"]
    assert plan_of({"take": "r1", "components": "attention"}, base=BF16, r1=odd).rows


def test_fp8_without_scale() -> None:
    """An FP8 weight without its scale is refused, in a parent and in the base, even where it would only be copied."""
    bare = model("fp8", drop=lambda name: name == GATE + "_scale_inv")
    said = f"{GATE} is FP8 without its scale: there is no {GATE}_scale_inv"
    assert problems(TAKE_ALL, base=FP8, r1=bare) == [f"'r1': {said}"]
    assert problems(base=bare, r1=FP8) == [f"'v3': {said}"]


def test_scale_of_a_wrong_shape() -> None:
    """A scale whose shape does not fit its weight is named with both shapes."""
    wrong = model("fp8", change={GATE + "_scale_inv": ("F32", (2, 1))})
    said = f"{GATE}_scale_inv has the wrong shape: expected [1, 2], found [2, 1]"
    assert problems({"mix": {"r1": 0.5}, "tensors": GATE}, base=FP8, r1=wrong) == [f"'r1': {said}"]
    assert problems(base=wrong, r1=FP8) == [f"'v3': {said}"]


def test_scales_of_unlike_shapes_without_a_table() -> None:
    """In a model that no table describes, parents whose scales differ in shape are refused: a copy would overrun its place."""
    config = {"model_type": "llama"}
    blocks = [("a", "F8_E4M3", (256, 256)), ("a_scale_inv", "F32", (2, 2)), ("b", "F32", (4,))]
    per_tensor = [("a", "F8_E4M3", (256, 256)), ("a_scale_inv", "F32", (1,)), ("b", "F32", (4,))]
    base, other = checkpoint(blocks, config, shards=1), checkpoint(per_tensor, config, shards=1)
    for rule in (TAKE_ALL, {"mix": {"r1": 0.5}, "components": "all"}):
        assert problems(rule, base=base, r1=other) == ["a_scale_inv has another shape in 'r1': [1], in the base [2, 2]"]
    assert plan_of(TAKE_ALL, base=other, r1=other).rows
    assert problems({"mix": {"r1": 0.5}, "components": "all"}, base=other, r1=other) == [
        "a in 'v3' is stored as FP8_BLOCK; that can be copied, not mixed or converted"
    ]


def test_output_dtype_without_a_table() -> None:
    """Where no table says what may be converted, an output dtype is refused: config.json would claim what is not so."""
    base = checkpoint([("a", "F32", (4,))], {"model_type": "llama"}, shards=1)
    assert problems(base=base, output={"dtype": "bf16"}, r1=base) == [
        "output: dtype: bf16 converts what the model family's table names, and there is none for model_type llama; leave it out"
    ]


def test_many_of_a_kind_are_counted() -> None:
    """Of many problems of one kind the first are listed and the others counted."""
    odd = model(change={name: ("BF16", (1, 1)) for name in NAMES if ".experts." in name})
    found = problems(TAKE_ALL, r1=odd)
    assert len(found) == 7
    assert found[-1] == "and 30 more of this kind"


def test_several_problems_at_once() -> None:
    """Everything that is wrong is said at once, numbered."""
    with pytest.raises(PlanError) as e:
        plan_of(
            {"take": "r1", "layers": 7},
            {"take": "r1", "tensors": "*.nothing"},
            {"mix": {"r1": {"from": 0, "to": 1}}, "components": "all"},
            base=BF16,
            r1=BF16_OTHER,
        )
    lines = str(e.value).splitlines()
    assert lines[0] == "this can't be merged: 3 problems"
    assert [line.split(" ")[2:5] for line in lines[1:]] == [
        ["1.", "rule", "1:"],
        ["2.", "rule", "2"],
        ["3.", "rule", "3"],
    ]


def test_missing_and_unlike_at_once() -> None:
    """Units that are missing and units that are unlike are said together."""
    odd = model(mtp=False, change={GATE: ("BF16", (1, 1)), NORM: ("BF16", (1,))})
    assert len(problems(TAKE_ALL, r1=odd)) == 3


# ---------------------------------------------------------------------------------------------- deltas

HALF = {"mix": {"r1": 0.5}, "components": "all"}


def apart(distance: float, **others: float) -> dict[str, float]:
    """How far a parent is from the base in every unit, but for GATE and NORM."""
    return dict.fromkeys(NAMES, distance) | {{"gate": GATE, "norm": NORM}[word]: d for word, d in others.items()}


def shares_of(plan: Plan) -> dict[str, dict[str, float]]:
    return {row.unit: {part.parent: part.share for part in row.inputs} for row in plan.rows}


@given(
    st.sampled_from(
        [{"r1": 0.5}, {"r1": 1}, {"r1": 0.25, "x": 0.25}, {"x": 0.5, "r1": 0}, {"r1": {"from": 0, "to": 1}}]
    ),
    st.sampled_from([0, 1, 2, 3]),
    st.randoms(use_true_random=False),
    st.sampled_from(["keep", "bf16"]),
)
def test_a_unit_is_mixed_where_a_mixed_parent_is_farther_than_delta(
    mix: dict[str, Any], delta: float, random: Random, dtype: str
) -> None:
    """Rows are those of the rule without delta where max d > delta over its parents with a share, else those of the base."""
    parents: dict[str, Any] = {"base": FP8, "r1": FP8_OTHER, "x": BF16}
    rule = {"mix": mix, "layers": "0-2"}
    distances = {name: {unit: random.randrange(4) for unit in NAMES} for name in ("r1", "x")}
    mixed, alone = (rows_by_name(plan_of(*rules, output={"dtype": dtype}, **parents)) for rules in ([rule], []))
    for name, row in rows_by_name(
        plan_of({**rule, "delta": delta}, output={"dtype": dtype}, distances=distances, **parents)
    ).items():
        others = [part.parent for part in mixed[name].inputs if part.parent != "v3"]
        is_mixed = any(distances[parent][name] > delta for parent in others)
        expected = mixed[name] if is_mixed else replace(alone[name], rule=mixed[name].rule)
        assert row == expected


def test_a_delta_of_one_rule_is_no_matter_of_the_next() -> None:
    """A unit that a delta leaves to the base stays so: its rule has taken it, and no later rule gets it."""
    plan = plan_of(
        {**HALF, "delta": 1, "components": "routed_experts"},
        {"take": "r1", "components": "all"},
        base=BF16,
        r1=BF16_OTHER,
        distances={"r1": apart(0, gate=2)},
    )
    found = shares_of(plan)
    assert found[GATE] == {"v3": 0.5, "r1": 0.5}
    assert found[GATE.replace("gate_proj", "up_proj")] == {"v3": 1}
    assert found[NORM] == {"r1": 1}


def test_what_a_delta_takes_is_counted() -> None:
    """Units, tensors and bytes that are mixed and that are left to the base stand in the summary; elsewhere nothing does."""
    rule = {**HALF, "components": "routed_experts", "delta": 0.5}
    plan = plan_of(rule, base=FP8, r1=FP8_OTHER, distances={"r1": apart(0.5, gate=0.6)})
    experts, rest = plan.summaries
    unit = 72 * 200 + 2 * 4
    assert experts.delta == DeltaSummary(0.5, mixed=Amount(1, 2, unit), left=Amount(35, 70, 35 * unit))
    assert (experts.units, experts.nbytes, experts.kinds) == (36, 36 * unit, {"copy": 35, "mix": 1})
    assert rest.delta is None
    assert plan_of({**rule, "delta": 1}, base=FP8, r1=FP8_OTHER, distances={"r1": apart(1)}).reads["r1"] == 0


def test_a_delta_without_distances_is_refused() -> None:
    """Once for each parent, with the command that makes the map, and the flag that takes it."""
    moved = model("bf16", root="/my models/r1")
    rules: list[Mapping[str, Any]] = [
        {**HALF, "components": "routed_experts", "delta": 0.5},
        {"take": "x", "components": "router"},
        {"mix": {"r1": 0.5, "x": {"from": 0, "to": 0}}, "components": "attention", "delta": 0},
    ]
    expected = (
        "the delta of rule 1, 3 asks how far 'r1' is from the base 'v3', which is not known: make a map with "
        "`chimerakit compare /nowhere '/my models/r1' -o v3-r1.npz` and pass `--differences v3-r1.npz`"
    )
    assert problems(*rules, r1=moved, x=BF16) == [expected]
    assert plan_of(*rules, base=BF16, r1=moved, x=BF16, distances={"r1": apart(1)}).rows


@pytest.mark.parametrize("distance", [math.nan, math.inf])
def test_an_unknown_distance_is_refused_by_name(distance: float) -> None:
    """Planning does not guess: what is not finite or not in the map is named, with the selector that leaves it out."""
    rules = [{**HALF, "components": "routed_experts", "delta": 0.5}]
    (said,) = problems(*rules, distances={"r1": apart(1, gate=distance)})
    assert said.startswith(
        "the delta of rule 1 asks how far 'r1' is from the base 'v3', which is not known for 1 of its units, such as "
        f"{GATE}: its values are not finite; "
    )
    assert said.endswith(f"`take: v3`, `tensors: [{GATE}]`")
    known = {name: 1.0 for name in NAMES if ".experts.3." not in name}
    (said,) = problems(*rules, distances={"r1": known})
    assert "is not known for 9 of its units" in said
    assert "the map does not have it" in said


def test_a_unit_that_a_parent_lacks_is_missing_not_unknown() -> None:
    """What can't be compared because it is not there, or of another shape, is said once, as without a delta."""
    other = model(drop=lambda name: name == GATE, change={NORM: ("BF16", (1,))})
    known = {name: 1.0 for name in NAMES if name not in (GATE, NORM)}
    with_delta = problems({**HALF, "delta": 1}, r1=other, distances={"r1": known})
    assert with_delta == problems(HALF, r1=other)
    assert len(with_delta) == 2


def test_a_delta_gives_no_parent_to_a_unit_without_shares() -> None:
    """Shares that are all 0 say nothing, whatever the delta."""
    rule = {"mix": {"v3": 0, "r1": 0}, "normalize": False, "tensors": NORM, "delta": 5}
    assert problems(rule, distances={"r1": apart(1)}) == [f"{NORM}: all shares are 0"]


# ------------------------------------------------------------------------------- what a parent may lack


def apply_offer(rules: list[dict[str, Any]], said: str) -> list[dict[str, Any]]:
    """The rules with what a message offers, read from the message."""
    number = int(re.match(r"rule (\d+) takes", said)[1]) - 1  # type: ignore[index]
    if said.endswith("leave the rule out"):
        return [rule for i, rule in enumerate(rules) if i != number]
    selectors = {k: v for quoted in re.findall(r"`([^`]+)`", said) for k, v in yaml.safe_load(quoted).items()}
    if "put a rule before it" in said:
        like = rules[number] if said.endswith("the rest as in this rule") else {}
        return [*rules[:number], {k: v for k, v in like.items() if k != "mix"} | selectors, *rules[number:]]
    assert " add `" in said
    return [*rules[:number], rules[number] | selectors, *rules[number + 1 :]]


def layer_is(number: int) -> Callable[[str], bool]:
    return lambda name: number_after("layers", name) == number


@pytest.mark.parametrize(
    ("rule", "drop", "said"),
    [
        (
            {"components": "routed_experts"},
            layer_is(3),
            "rule 1 takes 12 units from 'r1' that it does not have, such as "
            "model.layers.3.mlp.experts.0.gate_proj.weight; add `mtp: false` to the rule to leave them out",
        ),
        ({"components": "routed_experts"}, layer_is(1), "put a rule before it that takes them from the base: "),
        ({"components": "routed_experts", "mtp": False}, layer_is(1), "; add `layers: [2]` to leave them out"),
        ({"layers": "0-2"}, layer_is(1), "; add `layers: [0, 2]` to leave them out"),
        (
            {"components": "routed_experts"},
            lambda name: number_after("experts", name) == 1,
            "; add `experts: [0, 2-3]` to leave them out",
        ),
        (
            {"components": ["routed_experts", "router"]},
            lambda name: number_after("experts", name) == 1,
            "; put a rule before it that takes them from the base: `take: v3`, `experts: [1]`, the rest as in this rule",
        ),
        (
            {"components": ["routed_experts", "shared_experts", "router"]},
            lambda name: "shared" in name,
            "; add `components: [routed_experts, router]` to leave them out",
        ),
        (
            {"components": "all"},
            lambda name: name == NORM,
            "rule 1 takes 1 units from 'r1' that it does not have, such as model.norm.weight; put a rule before it "
            "that takes them from the base: `take: v3`, `tensors: [model.norm.weight]`",
        ),
        ({"mtp": True}, layer_is(3), "; leave the rule out"),
    ],
)
@pytest.mark.parametrize("what", [{"take": "r1"}, {"mix": {"r1": 0.5}}])
def test_parent_that_lacks_units(
    what: dict[str, Any], rule: dict[str, Any], drop: Callable[[str], bool], said: str
) -> None:
    """A parent without what is taken from it is refused, and the selector that leaves it out is offered, and plans."""
    lacking = model(drop=drop)
    (message,) = problems(what | rule, r1=lacking)
    assert said in message
    better = apply_offer([what | rule], message)
    assert plan_of(*better, base=BF16, r1=lacking).rows


@given(
    st.lists(RULES, min_size=1, max_size=2),
    st.sets(
        st.sampled_from(
            ["mtp", "layers.1.", "layers.2.", "experts.0.", "experts.3.", "shared", "router", "up_proj", "norm"]
        ),
        min_size=1,
        max_size=2,
    ),
)
def test_offers_plan(rules: list[dict[str, Any]], lacks: set[str]) -> None:
    """Whatever a parent lacks, following what the messages offer leads to a plan: each rule needs it once at most."""

    def drop(name: str) -> bool:
        parts = {"mtp": "layers.3.", "router": "mlp.gate."}
        return any(parts.get(word, word) in name for word in lacks)

    parents: dict[str, Any] = {"base": BF16, "r1": model(drop=drop), "x": BF16_OTHER}
    for _ in [*rules, "and once more to see that it plans"]:
        try:
            plan_of(*rules, **parents)
        except PlanError as e:
            offers = [p for p in e.problems if "that it does not have" in p]
            assume(offers == list(e.problems) and not any(p.endswith(" more") for p in offers))
            for offer in reversed(offers):  # from the last rule, so that numbers stay
                rules = apply_offer(rules, offer)
        else:
            return
    raise AssertionError(rules)


# ------------------------------------------------------------------------------------ names and configs


def test_unknown_names() -> None:
    """A name that the table does not know is `other`, has its row, and can be selected."""
    extra: dict[str, tuple[str, tuple[int, ...]] | None] = {"model.surprise.weight": ("BF16", (3, 5))}
    plan = plan_of({"take": "r1", "components": "other"}, base=model(change=extra), r1=model(change=extra))
    row = rows_by_name(plan)["model.surprise.weight"]
    assert (row.rule, row.role.component, row.role.known) == (0, "other", False)
    assert "1 tensors have names that the family's table does not know: model.surprise.weight" in plan.notes


def test_globs_match_names_of_units() -> None:
    """A glob is matched with case against whole names."""
    rows = rows_by_name(
        plan_of({"take": "r1", "tensors": ["*.experts.[0-1].UP*", "model.norm*"]}, base=BF16, r1=BF16_OTHER)
    )
    assert [n for n, row in rows.items() if row.rule == 0] == [NORM]


def test_entries_are_all_kinds() -> None:
    """The models of these tests have every kind of tensor: all components, MTP, scales, ragged blocks."""
    entries = entries_of("fp8")
    assert {naive_component(name) for name, _, _ in entries} == set(COMPONENTS)
    assert any(shape[0] % 128 and shape[1] % 128 for _, dtype, shape in entries if dtype == "F8_E4M3")
    assert config_of("fp8")["quantization_config"]["weight_block_size"] == [128, 128]
