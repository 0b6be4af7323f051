"""Files, offsets, headers and segments of the child."""

import json
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from chimerakit.dtypes import STORAGE_TYPES
from chimerakit.formats import open_checkpoint
from chimerakit.merge import merge_parents
from chimerakit.plan import make_plan
from chimerakit.plan.layout import cut_segments
from chimerakit.records import Checkpoint, Plan, Row
from chimerakit.runners.local import Threads
from tests import synthetic
from tests.plan.models import checkpoint, model, plan_of, recipe_of

TAKE_EXPERTS = {"take": "r1", "components": "routed_experts"}
TAKE_ALL = {"take": "r1", "components": "all"}


def header_of(plan: Plan, file: str) -> dict[str, Any]:
    """The planned header of a file that is laid out anew."""
    (shard,) = [s for s in plan.shards if s.name == file]
    assert shard.header.text is not None
    assert 8 + len(shard.header.text.encode()) == shard.header.nbytes
    found = json.loads(shard.header.text)
    assert isinstance(found, dict)
    return found


def check_offsets(plan: Plan) -> None:
    """Each file's tensors follow each other from the header's end to the file's, and the new headers say so."""
    for shard in plan.shards:
        tensors = sorted(
            (t for row in plan.rows for t in row.outputs if t.file == shard.name), key=lambda t: (t.start, t.nbytes)
        )
        end = shard.header.nbytes
        for tensor in tensors:
            numel = 1
            for side in tensor.shape:
                numel *= side
            assert tensor.start == end
            assert 8 * tensor.nbytes == numel * STORAGE_TYPES[tensor.dtype].bits
            end += tensor.nbytes
        assert end == shard.nbytes
        if shard.header.text is not None:
            said = {k: v for k, v in json.loads(shard.header.text).items() if k != "__metadata__"}
            assert said == {
                t.name: {
                    "dtype": t.dtype,
                    "shape": list(t.shape),
                    "data_offsets": [t.start - shard.header.nbytes, t.start - shard.header.nbytes + t.nbytes],
                }
                for t in tensors
            }


@pytest.mark.parametrize("rules", [[], [TAKE_ALL], [{"mix": {"r1": 0.5}, "components": "all"}]])
@pytest.mark.parametrize("storage", ["bf16", "fp8", "e8m0"])
def test_kept_layout(storage: str, rules: list[Mapping[str, Any]]) -> None:
    """While nothing is stored otherwise, every file has the base's header and every tensor the base's place."""
    base, other = model(storage, shuffle=1), model(storage, shards=5, shuffle=2)
    plan = plan_of(*rules, base=base, r1=other)
    assert {t.name: t for row in plan.rows for t in row.outputs} == base.tensors
    assert [(s.name, s.nbytes) for s in plan.shards] == [(s.name, s.nbytes) for s in base.shards]
    for shard, original in zip(plan.shards, base.shards, strict=True):
        header = shard.header
        assert (header.parent, header.shard, header.text) == ("v3", original.name, None)
        assert header.nbytes == original.header_nbytes
    check_offsets(plan)


@pytest.mark.parametrize(
    ("storage", "dtype", "weights", "scales"),
    [
        ("fp8", "bf16", "BF16", False),
        ("ue8m0", "f16", "F16", False),
        ("e8m0", "f32", "F32", False),
        ("bf16", "fp8-block", "F8_E4M3", True),
        ("f32", "bf16", "BF16", False),
    ],
)
@pytest.mark.parametrize("shuffle", [None, 3])
def test_converted_layout(storage: str, dtype: str, weights: str, scales: bool, shuffle: int | None) -> None:
    """Stored otherwise, tensors stay in the base's files; types and sizes change, and scales vanish or appear beside their weights."""
    base = model(storage, shuffle=shuffle)
    plan = plan_of(base=base, output={"dtype": dtype})
    placed = {t.name: t for row in plan.rows for t in row.outputs}
    linear = [n for n, _, kind in synthetic.layout() if kind == "linear"]
    assert {placed[n].dtype for n in linear} == {weights}
    assert [n for n in placed if n.endswith("_scale_inv")] == (
        [f"{r.unit}_scale_inv" for r in plan.rows if r.unit in linear] if scales else []
    )
    for name, tensor in placed.items():
        weight = name.removesuffix("_scale_inv")
        assert tensor.file == base.tensors[weight].file
        if name == weight:
            assert tensor.shape == base.tensors[name].shape
        else:
            assert tensor.shape == tuple(-(-side // 128) for side in base.tensors[weight].shape)
    check_offsets(plan)


def test_untouched_shard_beside_rewritten_ones() -> None:
    """A file without a converted tensor keeps its header while others are laid out anew."""
    plain = [("model.norm.weight", "BF16", (200,)), ("lm_head.weight", "BF16", (96, 200))]
    linear = [("model.layers.0.self_attn.o_proj.weight", "BF16", (200, 64))]
    base = checkpoint([*plain, *linear], synthetic.CONFIG, shards=2)
    first, second = plan_of(base=base, output={"dtype": "fp8-block"}).shards
    assert (first.header.parent, first.header.text, first.nbytes) == ("v3", None, base.shards[0].nbytes)
    assert second.header.parent is None
    assert second.header.text is not None


def test_shard_of_scales_vanishes() -> None:
    """A file that held nothing but scales is gone when the weights need none."""
    name = "model.layers.0.self_attn.o_proj.weight"
    entries = [(name, "F8_E4M3", (200, 64)), (name + "_scale_inv", "F32", (2, 1))]
    base = checkpoint(entries, synthetic.CONFIG, shards=2)
    plan = plan_of(base=base, output={"dtype": "bf16"})
    assert [s.name for s in plan.shards] == ["model-00001-of-000002.safetensors"]
    assert header_of(plan, "model-00001-of-000002.safetensors") == {
        "__metadata__": {"format": "pt"},
        name: {"dtype": "BF16", "shape": [200, 64], "data_offsets": [0, 25600]},
    }
    (index,) = [f for f in plan.files if f.name.endswith("index.json")]
    assert json.loads(index.text or "")["weight_map"] == {name: "model-00001-of-000002.safetensors"}


def test_header_text() -> None:
    """A header that is laid out anew is, byte for byte, metadata, the widest types first, then names, padded to 8 bytes."""
    entries = [
        ("model.norm.weight", "BF16", (2,)),
        ("model.layers.1.mlp.gate.e_score_correction_bias", "F32", (4,)),
        ("lm_head.weight", "BF16", (1, 3)),
    ]
    plan = plan_of(base=checkpoint(entries, synthetic.CONFIG, shards=1), output={"dtype": "f16"})
    text = (
        '{"__metadata__":{"format":"pt"},'
        '"model.layers.1.mlp.gate.e_score_correction_bias":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
        '"lm_head.weight":{"dtype":"F16","shape":[1,3],"data_offsets":[16,22]},'
        '"model.norm.weight":{"dtype":"F16","shape":[2],"data_offsets":[22,26]}}'
    )
    (shard,) = plan.shards
    assert shard.header.text == text + " " * (-len(text) % 8)
    assert shard.nbytes == 8 + len(shard.header.text) + 26


# ------------------------------------------------------------------------------------------- by rule


def test_shards_by_rule() -> None:
    """`shards: by-rule` puts what each rule takes, scales included, in files of its own, none larger than the base's largest."""
    base, other = model("fp8", shards=6), model("fp8", shuffle=1)
    rules = [TAKE_EXPERTS, {"take": "r1", "components": "attention"}]
    plan = plan_of(*rules, base=base, r1=other, output={"shards": "by-rule"})
    rule_of_file: dict[str, set[int | None]] = {}
    for row in plan.rows:
        assert len({t.file for t in row.outputs}) == 1
        rule_of_file.setdefault(row.outputs[0].file, set()).add(row.rule)
    assert all(len(rules_there) == 1 for rules_there in rule_of_file.values())
    assert {rule for rules_there in rule_of_file.values() for rule in rules_there} == {None, 0, 1}
    count = len(plan.shards)
    assert [s.name for s in plan.shards] == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    limit = max(s.nbytes for s in base.shards)
    assert all(s.nbytes - s.header.nbytes <= limit for s in plan.shards)
    assert count <= 6 + 3
    check_offsets(plan)


def test_by_rule_links_between_children() -> None:
    """Children of a sweep share the files that their rules do not touch: names, sizes and headers are equal."""
    base, other = model(shards=6), model(shuffle=1)
    plans = [
        plan_of({"mix": {"r1": share}, "components": "router"}, base=base, r1=other, output={"shards": "by-rule"})
        for share in (0.25, 0.75)
    ]
    assert plans[0].shards == plans[1].shards
    untouched = [[r for r in plan.rows if r.rule is None] for plan in plans]
    assert untouched[0] == untouched[1]


def test_by_rule_without_rules() -> None:
    """Where one file would do, it has the name of a single file."""
    plan = plan_of(base=model(shards=1), output={"shards": "by-rule"})
    assert [s.name for s in plan.shards] == ["model.safetensors"]
    check_offsets(plan)


@given(
    base=st.tuples(st.sampled_from(["bf16", "fp8", "e8m0"]), st.integers(1, 5), st.none() | st.integers(0, 9)),
    dtype=st.sampled_from(["keep", "bf16", "f32", "fp8-block"]),
    shards=st.sampled_from(["base", "by-rule"]),
    rules=st.lists(st.sampled_from([TAKE_EXPERTS, {"mix": {"r1": 0.5}, "components": "attention"}]), unique_by=str),
)
def test_any_layout(base: tuple[str, int, int | None], dtype: str, shards: str, rules: list[Mapping[str, Any]]) -> None:
    """Whatever is asked for, files are filled without gaps, and rows are sorted by file and place."""
    storage, count, shuffle = base
    plan = plan_of(
        *rules,
        base=model(storage, shards=count, shuffle=shuffle),
        r1=model("bf16"),
        output={"dtype": dtype, "shards": shards},
    )
    check_offsets(plan)
    order = [s.name for s in plan.shards]
    places = [(order.index(r.outputs[0].file), r.outputs[0].start) for r in plan.rows]
    assert places == sorted(places)
    assert len(set(places)) == len(places)
    assert Counter(t.name for r in plan.rows for t in r.outputs).most_common(1)[0][1] == 1


# ----------------------------------------------------------------------------------------- segments

ROWS = plan_of(base=model("fp8", shuffle=4)).rows


@given(st.integers(1, 400_000), st.integers(0, len(ROWS)))
def test_segments(size: int, count: int) -> None:
    """Segments cover the rows once and in order, are of one file, and as large as fits, or one unit."""
    rows = ROWS[:count]
    segments = cut_segments(rows, size)
    assert [n for first, last in segments for n in range(first, last)] == list(range(count))
    parts: list[tuple[Row, ...]] = [rows[first:last] for first, last in segments]
    for part in parts:
        assert len({row.outputs[0].file for row in part}) == 1
        assert len(part) == 1 or sum(row.nbytes for row in part) <= size
    for part, following in pairwise(parts):
        is_same_file = part[0].outputs[0].file == following[0].outputs[0].file
        assert not is_same_file or sum(row.nbytes for row in (*part, following[0])) > size


# ------------------------------------------------------------------------------- what is really written


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """FP8 and BF16 checkpoints on disk."""
    root = tmp_path_factory.mktemp("parents")
    return {
        "fp8": synthetic.make(root / "fp8", 1, "fp8", shuffle=1),
        "bf16": synthetic.make(root / "bf16", 2, "bf16", shards=2),
    }


@pytest.mark.parametrize(
    ("base", "output"),
    [
        ("fp8", {"dtype": "keep"}),
        ("fp8", {"dtype": "bf16"}),
        ("bf16", {"dtype": "fp8-block"}),
        ("bf16", {"dtype": "f32", "shards": "by-rule"}),
    ],
)
def test_written_files_are_as_planned(
    base: str, output: Mapping[str, str], parents: Mapping[str, Path], tmp_path: Path
) -> None:
    """Merging writes files of the planned sizes; a reader that is not ours finds in them what the plan says, and would have written the same header."""
    checkpoints: dict[str, Checkpoint] = {
        "v3": open_checkpoint(parents[base]),
        "r1": open_checkpoint(parents["bf16" if base == "fp8" else "fp8"]),
    }
    plan = make_plan(recipe_of(TAKE_EXPERTS, **output), checkpoints)
    merge_parents(plan, tmp_path / "child", runner=Threads(1))
    check_offsets(plan)
    for shard in plan.shards:
        path = tmp_path / "child" / shard.name
        assert path.stat().st_size == shard.nbytes
        tensors = load_file(path)
        assert {name: tuple(t.shape) for name, t in tensors.items()} == {
            t.name: t.shape for row in plan.rows for t in row.outputs if t.file == shard.name
        }
        if shard.header.parent is None:
            save_file(tensors, tmp_path / "again", {"format": "pt"})
            assert (tmp_path / "again").read_bytes() == path.read_bytes()
        else:
            original = (parents[base] / shard.name).read_bytes()
            assert path.read_bytes()[: shard.header.nbytes] == original[: shard.header.nbytes]
    for file in plan.files:
        assert (tmp_path / "child" / file.name).stat().st_size == file.nbytes
    written = sum(f.stat().st_size for f in (tmp_path / "child").rglob("*") if f.is_file())
    unplanned = sum((tmp_path / "child" / name).stat().st_size for name in ("chimerakit.json", "README.md"))
    assert written - unplanned == plan.output_nbytes


def test_a_first_unit_without_bytes_gets_a_file(tmp_path: Path) -> None:
    """Tensors of no elements are legal, also as the first of a by-rule file."""
    tensors = {"empty": np.zeros((0, 4), np.float32), "full": np.ones(4, np.float32)}
    root = synthetic.write_checkpoint(tmp_path / "a", tensors, synthetic.config_of("bf16"), shards=1)
    plan = make_plan(recipe_of(parents="base", shards="by-rule"), {"base": open_checkpoint(root)})
    merge_parents(plan, tmp_path / "child")
    assert set(open_checkpoint(tmp_path / "child").tensors) == {"empty", "full"}
