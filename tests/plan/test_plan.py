"""The whole plan: what it refuses and notes, its digest, its jobs, its cost."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.anatomy import Anatomy
from chimerakit.errors import PlanError, RecipeError
from chimerakit.formats import open_checkpoint
from chimerakit.plan import make_jobs, make_plan
from chimerakit.recipe import parse_recipe
from chimerakit.records import Checkpoint, Job, Plan
from tests import synthetic
from tests.plan.models import checkpoint, entries_of, model, plan_of, recipe_of, rows_by_name
from tests.synthetic import CONFIG

EXPERTS = {"take": "r1", "components": "routed_experts"}
HALF = {"mix": {"r1": 0.5}, "components": "all"}
FP8, FP8_OTHER = model("fp8", shuffle=1), model("fp8", shards=2, shuffle=2)


def refused(base: Checkpoint, **others: Any) -> tuple[str, ...]:
    """What is wrong with these parents."""
    with pytest.raises(PlanError) as e:
        plan_of(EXPERTS, base=base, **others)
    return e.value.problems


def config_with(**values: Any) -> dict[str, Any]:
    """The usual config with other values; None takes a key away."""
    return {k: v for k, v in {**CONFIG, **values}.items() if v is not None}


# --------------------------------------------------------------------------------------------- parents


def test_parents_that_the_recipe_does_not_name() -> None:
    """Parents and recipe must name the same."""
    with pytest.raises(PlanError) as e:
        make_plan(recipe_of(EXPERTS), {"v3": FP8, "r2": FP8})
    assert e.value.problems == ("the recipe's parents are v3, r1; given: v3, r2",)
    with pytest.raises(PlanError, match="given: none"):
        make_plan(recipe_of(), {})


def test_other_architecture() -> None:
    """A parent of another architecture is refused by its model_type, with every other such parent."""
    llama = checkpoint([("a", "F32", (1,))], {"model_type": "llama"})
    nothing = checkpoint([("a", "F32", (1,))], {})
    assert refused(FP8, r1=llama, x=nothing, y=FP8_OTHER) == (
        "'r1' is of another architecture than the base: model_type llama, not deepseek_v3",
        "'x' is of another architecture than the base: model_type not said, not deepseek_v3",
    )
    assert refused(llama, r1=checkpoint([("a", "F32", (1,))], {"model_type": "qwen3"})) == (
        "'r1' is of another architecture than the base: model_type qwen3, not llama",
    )


def test_model_without_a_table() -> None:
    """A model that no table describes is merged by globs, its tensors being `other`."""
    parent = checkpoint([("a.weight", "BF16", (4, 4)), ("b.weight", "BF16", (4,))], {"model_type": "llama"})
    plan = plan_of({"mix": {"r1": 0.5}, "tensors": "a.*"}, base=parent, r1=parent)
    assert {n: (r.kind, r.role.component) for n, r in rows_by_name(plan).items()} == {
        "a.weight": ("mix", "other"),
        "b.weight": ("copy", "other"),
    }
    assert plan.family == "generic"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_hidden_layers": 4}, "num_hidden_layers: 4, not 3"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok: 8, not 2"),
        ({"scoring_func": "softmax"}, "scoring_func: 'softmax', not 'sigmoid'"),
        ({"norm_topk_prob": False}, "norm_topk_prob: False, not True"),
        ({"rope_theta": 50000}, "rope_theta: 50000, not 10000.0"),
        ({"rope_parameters": {"rope_theta": 50000.0, "rope_type": "default"}}, "rope_theta: 50000.0, not 10000.0"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 40}},
            "rope_scaling: {'rope_type': 'yarn', 'factor': 40}, not None",
        ),
        ({"rms_norm_eps": 1e-5, "n_group": 2}, "n_group: 2, not 1; rms_norm_eps: 1e-05, not 1e-06"),
    ],
)
def test_config_values_that_differ(values: dict[str, Any], said: str) -> None:
    """Config values that give tensors another meaning are refused, all listed; an absent one has the family's default."""
    other = model("fp8", config=CONFIG)
    other = msgspec.structs.replace(other, config=config_with(**values))
    assert refused(FP8, r1=other) == (
        f"'r1' has config values that give tensors another meaning than the base's: {said}",
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"scoring_func": None, "topk_method": None}),
        ({}, {"rope_theta": 10000, "rms_norm_eps": 1e-6, "rope_scaling": None}),
        ({"rope_theta": 10000.0}, {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 40}},
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", "factor": 40}},
        ),
        (
            {},
            {"max_position_embeddings": 5, "eos_token_id": 7, "torch_dtype": "float16", "num_nextn_predict_layers": 0},
        ),
    ],
)
def test_config_values_that_agree(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Two spellings of one value agree: absent and default, rope_scaling and rope_parameters; other keys don't matter."""
    base = msgspec.structs.replace(FP8, config=config_with(**ours))
    other = msgspec.structs.replace(FP8_OTHER, config=config_with(**theirs))
    assert plan_of(EXPERTS, base=base, r1=other).rows


def test_recipe_shown_for_a_mergekit_gradient() -> None:
    """The recipe that a mergekit configuration with a gradient is answered with plans, over a whole model."""
    with pytest.raises(RecipeError) as e:
        parse_recipe(
            "merge_method: linear\n"
            "models: [{model: A, parameters: {weight: [0, 1]}}, {model: B, parameters: {weight: [1, 0]}}]"
        )
    recipe = parse_recipe(str(e.value).split("says the same:\n")[1])
    rows = rows_by_name(make_plan(recipe, {"m1": FP8, "m2": FP8_OTHER}))
    names = "model.embed_tokens.weight", "model.layers.1.input_layernorm.weight", "lm_head.weight"
    assert [{i.parent: i.share for i in rows[n].inputs} for n in names] == [
        {"m2": 1},
        {"m1": 0.5, "m2": 0.5},
        {"m1": 1},
    ]


# ----------------------------------------------------------------------------------- summaries and notes


def test_summaries() -> None:
    """What each rule took is counted in units, tensors and bytes, of which MTP, and so is what each parent is read for."""
    bf16 = model("bf16")
    rules: list[Mapping[str, Any]] = [EXPERTS, {"mix": {"r1": 0.5}, "components": "router"}]
    plan = plan_of(*rules, base=FP8, r1=bf16)
    experts, routers, rest = plan.summaries
    assert (experts.says, routers.says, rest.says) == (
        "take: r1, components: routed_experts",
        "mix: {r1: 0.5}, components: router",
        "everything else from the base",
    )
    assert [s.rule for s in plan.summaries] == [0, 1, None]
    assert (experts.units, experts.tensors, experts.mtp_tensors, experts.kinds) == (36, 72, 24, {"convert": 36})
    assert experts.nbytes == 36 * 72 * 200 + 36 * 2 * 4
    assert experts.mtp_nbytes == experts.nbytes // 3
    assert (routers.units, routers.tensors, routers.kinds) == (6, 6, {"mix": 6})
    assert routers.nbytes == 3 * (4 * 200 * 2 + 4 * 4)
    assert sum(s.nbytes for s in plan.summaries) == sum(t.nbytes for t in FP8.tensors.values())
    assert plan.reads["r1"] == 36 * 72 * 200 * 2 + routers.nbytes
    assert plan.reads["v3"] == sum(t.nbytes for t in FP8.tensors.values()) - experts.nbytes


def test_notes() -> None:
    """Extra tensors, unknown names, left-out files, unused parents and differing templates are noted, not refused."""
    texts = {"tokenizer_config.json": "{}", "chat_template.jinja": "a"}
    base = model("bf16", mtp=False, change={"x.y": ("F32", (1,))}, texts=texts)
    other = model(
        "fp8",
        texts={"tokenizer_config.json": "{} ", "chat_template.jinja": "b"},
        left_out=("a.bin", "b.bin", "c.bin", "d.gguf"),
    )
    num_mtp = sum(".layers.3." in name for name, _, _ in entries_of("fp8"))
    assert plan_of({"take": "r1", "components": "router"}, base=base, r1=other, x=base).notes == (
        "1 tensors have names that the family's table does not know: x.y",
        f"'r1' has {num_mtp} tensors that the base lacks; the child will not have them: model.layers.3.input_layernorm.weight, "
        "model.layers.3.self_attn.q_a_proj.weight, model.layers.3.self_attn.q_a_proj.weight_scale_inv "
        f"and {num_mtp - 3} more",
        "'r1' has files that are no part of its checkpoint and are not copied: a.bin, b.bin, c.bin and 1 more",
        "'r1' differs from the base in chat_template.jinja and tokenizer_config.json; output: can choose whose the child gets",
        "nothing is taken from 'x'",
    )


def test_nothing_to_note() -> None:
    """Parents that are alike but for their values give no notes; a scale that the base does not need is no extra tensor."""
    assert plan_of(EXPERTS, base=model("bf16"), r1=FP8).notes == ()


# ---------------------------------------------------------------------------------------------- effort


def test_a_name_is_read_once_for_all_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parents have the same names: what a name says is found out for the base, not again for each of the others."""
    asked = Counter[str]()
    role = Anatomy.role
    monkeypatch.setattr(Anatomy, "role", lambda self, name: asked.update([name]) or role(self, name))
    plan = plan_of({"mix": {"r1": 0.5, "x": 0.25}, "components": "all"}, base=FP8, r1=FP8_OTHER, x=FP8)
    assert asked == Counter(row.unit for row in plan.rows)


# ---------------------------------------------------------------------------------------------- digest


def digest(*rules: Mapping[str, Any], base: Checkpoint = FP8, r1: Checkpoint = FP8_OTHER, **output: Any) -> str:
    return plan_of(*rules, base=base, r1=r1, x=FP8, output=output).digest


def test_digest_does_not_depend_on_the_place() -> None:
    """Where parents lie, and when they were written, does not change a plan's digest."""
    moved = model("fp8", shuffle=1, root="/elsewhere", mtime_ns=99)
    assert digest(HALF) == digest(HALF, base=moved)
    assert digest(HALF) == digest(HALF, base=msgspec.json.decode(msgspec.json.encode(FP8), type=Checkpoint))


def other_header() -> Checkpoint:
    """FP8_OTHER with another header digest in one shard."""
    first, *others = FP8_OTHER.shards
    return msgspec.structs.replace(FP8_OTHER, shards=(msgspec.structs.replace(first, header_digest="0" * 32), *others))


@pytest.mark.parametrize(
    "other",
    [
        lambda: digest({"mix": {"r1": 0.25}, "components": "all"}),
        lambda: digest({"mix": {"r1": 0.5}, "components": "router"}),
        lambda: digest({"mix": {"r1": 0.5, "x": 0.25}, "components": "all"}),
        lambda: digest(HALF, dtype="bf16"),
        lambda: digest(HALF, shards="by-rule"),
        lambda: digest(HALF, r1=other_header()),
        lambda: digest(HALF, r1=model("fp8", shards=2, shuffle=3)),
        lambda: digest(HALF, base=model("fp8", shuffle=1, files={"config.json": 101})),
        lambda: digest(),
    ],
)
def test_digest_depends_on_the_rest(other: Callable[[], str]) -> None:
    """Shares, rules, output, and the parents' headers and files change it."""
    assert other() != digest(HALF)


def test_digest_depends_on_the_order_of_shares() -> None:
    """The order of the shares is the order of summation, and with it the bytes."""
    mixes = {"r1": 0.5, "x": 0.25}, {"x": 0.25, "r1": 0.5}
    first, second = (digest({"mix": mix, "components": "all"}) for mix in mixes)
    assert first != second


def test_another_map_is_another_plan_exactly_if_a_row_is_another() -> None:
    """Distances decide about rows and show in nothing else; another delta is another recipe, which the manifest holds."""

    def plan(delta: float, **apart: float) -> Plan:
        rule = {"mix": {"r1": 0.5}, "components": "head", "mtp": False, "delta": delta}
        return plan_of(rule, base=FP8, r1=FP8_OTHER, distances={"r1": {"lm_head.weight": 0.5, **apart}})

    far, farther, near = plan(0.25), plan(0.25, **{"lm_head.weight": 0.75}), plan(0.25, **{"lm_head.weight": 0.25})
    assert far == farther
    assert far.rows != near.rows
    assert far.digest != near.digest
    assert plan(0.375).rows == far.rows
    assert plan(0.375).digest != far.digest


def test_digest_does_not_depend_on_hash_order() -> None:
    """Another process, in which sets and texts have other hashes, plans the same digest."""
    code = "from tests.plan.test_plan import HALF, digest; print(digest(HALF, dtype='bf16', shards='by-rule'))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {digest(HALF, dtype="bf16", shards="by-rule")}


# ------------------------------------------------------------------------------------------------ jobs

SOME_RULES = st.lists(
    st.sampled_from([EXPERTS, {"mix": {"r1": 0.5}, "components": "router"}, {"take": "r1", "mtp": True}]),
    unique_by=str,
)
STORAGES = st.sampled_from(["bf16", "fp8", "ue8m0", "e8m0"])


@given(
    rules=SOME_RULES,
    storages=st.tuples(STORAGES, STORAGES),
    layouts=st.tuples(st.integers(1, 4), st.none() | st.integers(0, 9)),
    dtype=st.sampled_from(["keep", "bf16", "fp8-block"]),
    shards=st.sampled_from(["base", "by-rule"]),
    segment=st.integers(1, 1 << 20),
)
def test_jobs_write_every_byte_once(
    rules: list[Mapping[str, Any]],
    storages: tuple[str, str],
    layouts: tuple[int, int | None],
    dtype: str,
    shards: str,
    segment: int,
) -> None:
    """The ranges of all jobs cover each file from 0 to its end without gap or overlap, headers once, and say where to read."""
    base = model(storages[0], shards=layouts[0], shuffle=layouts[1], root="/base")
    parents = {"v3": base, "r1": model(storages[1], shuffle=5, root="/other", mtime_ns=7)}
    plan = make_plan(recipe_of(*rules, dtype=dtype, shards=shards), parents, segment_nbytes=segment)
    jobs = make_jobs(plan, Path("/child"))
    written: dict[str, list[tuple[int, int]]] = {s.name: [] for s in plan.shards}
    for job in jobs:
        assert job.nbytes == sum(nbytes for _, _, _, nbytes in job.ranges())
        for _, file, start, nbytes in job.ranges():
            written[file].append((start, nbytes))
    for shard in plan.shards:
        end = 0
        for start, nbytes in sorted(written[shard.name]):
            assert start == end
            end += nbytes
        assert end == shard.nbytes
    assert [job.id for job in jobs] == list(range(len(jobs)))
    assert tuple(row for job in jobs for row in job.rows) == plan.rows
    for job in jobs:
        read = {(i.parent, t.file) for row in job.rows for i in row.inputs for t in i.tensors}
        read |= {(h.parent, h.shard) for h in job.headers if h.parent is not None and h.shard is not None}
        assert {(parent, file) for parent, files in job.signatures.items() for file in files} == read
        assert job.roots == {parent: parents[parent].root for parent, _ in read}
        for parent, file in read:
            (original,) = [s for s in parents[parent].shards if s.name == file]
            assert job.signatures[parent][file] == (original.nbytes, original.mtime_ns)
        assert job.sizes == {
            s.name: s.nbytes for s in plan.shards if any(s.name == file for _, file, _, _ in job.ranges())
        }


def test_job_options() -> None:
    """What a call allows or asks for is written in each job."""
    plan = plan_of(base=FP8)
    (plain, *_) = make_jobs(plan, Path("/child"))
    (other, *_) = make_jobs(plan, Path("/child"), allow_nonfinite=True, sha256=True)
    assert (plain.output, plain.allow_nonfinite, plain.sha256) == ("/child", False, False)
    assert (other.allow_nonfinite, other.sha256) == (True, True)


@pytest.mark.parametrize("output", [{}, {"dtype": "bf16", "shards": "by-rule"}])
def test_records_travel_as_json(output: dict[str, Any]) -> None:
    """Plans and jobs come back from JSON as they were, the order of everything kept."""
    plan = plan_of(
        EXPERTS,
        {**HALF, "mix": {"r1": {"from": 0.25, "to": 1}}, "layers": "0-2"},
        base=FP8,
        r1=FP8_OTHER,
        output=output,
    )
    again = msgspec.json.decode(msgspec.json.encode(plan), type=Plan)
    assert again == plan
    assert msgspec.json.encode(again) == msgspec.json.encode(plan)
    for job in make_jobs(plan, Path("/child")):
        assert msgspec.json.decode(msgspec.json.encode(job), type=Job) == job


# ------------------------------------------------------------------------------------------------ cost


def calls_of(work: Callable[[], object]) -> int:
    """How many functions a piece of work calls, Python's own included."""
    count = 0

    def profile(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("output", [{}, {"dtype": "bf16"}, {"shards": "by-rule"}])
def test_planning_is_linear(output: dict[str, Any]) -> None:
    """Twice the layers are about twice the rows and no more than about twice the calls, missing units included."""
    rules: list[Mapping[str, Any]] = [EXPERTS, {"mix": {"r1": {"from": 0, "to": 1}}, "components": "attention"}]

    def cost(layers: int) -> tuple[int, int]:
        config = {**CONFIG, "num_hidden_layers": layers}
        base, other = model("fp8", config=config, shards=4), model("fp8", config=config, shuffle=1)
        recipe, parents = recipe_of(*rules, **output), {"v3": base, "r1": other}
        rows: list[int] = []
        calls = calls_of(lambda: rows.append(len(make_plan(recipe, parents).rows)))
        return rows[0], calls

    few, many = cost(16), cost(32)
    assert 1.8 < many[0] / few[0] < 2.1
    assert many[1] / few[1] < 2.2


def test_refusing_is_linear() -> None:
    """A parent that lacks half of everything is refused in about twice the calls for twice the layers."""

    def cost(layers: int) -> int:
        config = {**CONFIG, "num_hidden_layers": layers}
        other = model("bf16", config=config, drop=lambda name: "up_proj" in name or "experts.1." in name)
        recipe, parents = recipe_of(HALF), {"v3": model("bf16", config=config), "r1": other}

        def work() -> None:
            with pytest.raises(PlanError):
                make_plan(recipe, parents)

        return calls_of(work)

    assert cost(32) / cost(16) < 2.2


def test_digest_does_not_depend_on_files_that_are_not_copied(tmp_path: Path) -> None:
    """A note beside another parent's weights changes nothing of the child."""
    paths = {"v3": synthetic.make(tmp_path / "v3", 1), "r1": synthetic.make(tmp_path / "r1", 2)}
    recipe = recipe_of({"take": "r1", "components": "router"})
    before = make_plan(recipe, {name: open_checkpoint(path) for name, path in paths.items()})
    (paths["r1"] / "notes.txt").write_text("hi")
    after = make_plan(recipe, {name: open_checkpoint(path) for name, path in paths.items()})
    assert before.digest == after.digest


def test_a_base_without_tensors_is_refused(tmp_path: Path) -> None:
    """There would be nothing to make."""
    root = synthetic.make(tmp_path / "v3", 1, shards=1)
    (root / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(PlanError, match="the base 'v3' has no tensors"):
        make_plan(recipe_of(parents="v3"), {"v3": open_checkpoint(root)})
