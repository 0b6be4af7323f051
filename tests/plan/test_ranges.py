"""Copied bytes as few long ranges: held against moving tensor by tensor."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.plan.ranges import copy_runs, equal_shards, merged_ranges, read_runs
from chimerakit.records import Input, Role, Row, Tensor
from tests.plan.models import model, plan_of

FP8, FP8_OTHER = model("fp8"), model("fp8", shards=2)
EXPERTS = {"take": "r1", "components": "routed_experts"}
Files = dict[str, bytes]


def tensor(name: str, file: str, start: int, nbytes: int) -> Tensor:
    return Tensor(name, "U8", (nbytes,), file, start, nbytes)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[Row], dict[str, Files], int]:
    """Rows of units with one or two tensors, each from some parent; where they lie is drawn for every side."""
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12))
    names = [f"t{i}" for i in range(len(sizes))]

    def place(shuffle: bool) -> tuple[dict[str, Tensor], dict[str, int]]:
        order = draw(st.permutations(range(len(sizes)))) if shuffle else range(len(sizes))
        ends = {"x": 8, "y": 16}
        placed = {}
        for i in order:
            file = draw(st.sampled_from("xy")) if shuffle else "x"
            placed[names[i]] = tensor(names[i], file, ends[file], sizes[i])
            ends[file] += sizes[i]
        return placed, ends

    parents, files = {}, {}
    for name in ("v3", "r1"):
        parents[name], ends = place(draw(st.booleans()))
        seed = np.random.default_rng(len(name) + len(sizes) + (name == "r1"))
        files[name] = {file: seed.bytes(end) for file, end in ends.items()}
    targets, ends = place(draw(st.booleans()))
    rows, at = [], 0
    while at < len(names):
        unit = names[at : at + draw(st.integers(1, 2))]
        at += len(unit)
        parent = draw(st.sampled_from(("v3", "r1")))
        part = Input(parent, 1.0, "U8", tuple(parents[parent][n] for n in unit))
        rows.append(Row(unit[0], Role("other"), None, "copy", (part,), "U8", tuple(targets[n] for n in unit)))
    return rows, files, max(ends.values())


@given(layouts())
def test_runs_move_what_moving_each_tensor_moves(case: tuple[list[Row], dict[str, Files], int]) -> None:
    """Moving runs leaves the bytes that moving tensors leaves, each byte once, with no two runs that could be one."""
    rows, files, size = case
    slow = {file: bytearray(size) for file in "xy"}
    for row in rows:
        part = row.inputs[0]
        for source, target in zip(part.tensors, row.outputs, strict=True):
            data = files[part.parent][source.file][source.start : source.start + source.nbytes]
            slow[target.file][target.start : target.start + target.nbytes] = data
    fast = {file: bytearray(size) for file in "xy"}
    runs = copy_runs(rows)
    for run in runs:
        data = files[run.parent][run.source][run.start : run.start + run.nbytes]
        fast[run.target][run.target_start : run.target_start + run.nbytes] = data
    assert fast == slow
    assert sorted(t.name for run in runs for t in run.tensors) == sorted(t.name for row in rows for t in row.outputs)
    assert sum(run.nbytes for run in runs) == sum(row.nbytes for row in rows)
    for one, other in pairwise(runs):
        is_same = (one.parent, one.source, one.target) == (other.parent, other.source, other.target)
        follows = (other.start, other.target_start) == (one.start + one.nbytes, one.target_start + one.nbytes)
        assert not (is_same and follows)


@given(layouts(), st.data())
def test_slices_of_a_run_are_its_tensors_bytes(
    case: tuple[list[Row], dict[str, Files], int], data: st.DataObject
) -> None:
    """Any part of a run falls into pieces of tensors without gap or overlap, each where it lies in its tensor."""
    run = data.draw(st.sampled_from(copy_runs(case[0])))
    start = data.draw(st.integers(0, run.nbytes))
    nbytes = data.draw(st.integers(0, run.nbytes - start))
    at = 0
    for piece, within, first, last in run.slices(start, nbytes):
        assert first == at < last
        assert piece.start + within == run.target_start + start + first
        assert 0 <= within < within + last - first <= piece.nbytes
        at = last
    assert at == nbytes


@given(layouts())
def test_ranges_that_are_written_cover_every_output_once(case: tuple[list[Row], dict[str, Files], int]) -> None:
    """Neighbours are joined, nothing is counted twice."""
    rows = case[0]
    covered = {(file, byte) for file, start, nbytes in merged_ranges(rows) for byte in range(start, start + nbytes)}
    assert covered == {(t.file, b) for row in rows for t in row.outputs for b in range(t.start, t.start + t.nbytes)}
    assert sum(nbytes for _, _, nbytes in merged_ranges(rows)) == len(covered)
    assert sum(run.nbytes for run in read_runs("child", [t for row in rows for t in row.outputs])) == len(covered)


def test_an_untouched_shard_is_a_parents_whole_shard() -> None:
    """Without rules all shards are the base's; with experts taken, those without experts; by-rule, the same."""
    shards = [shard.name for shard in plan_of(base=FP8).shards]
    assert equal_shards(plan_of(base=FP8, r1=FP8_OTHER)) == {name: ("v3", name) for name in shards}
    assert equal_shards(plan_of({"take": "r1", "components": "all"}, base=FP8, r1=FP8)) == {
        name: ("r1", name) for name in shards
    }
    plan = plan_of(EXPERTS, base=FP8, r1=FP8_OTHER)
    touched = {t.file for row in plan.rows if row.rule is not None for t in row.outputs}
    assert len(touched) > 0
    assert equal_shards(plan) == {name: ("v3", name) for name in shards if name not in touched}
    assert equal_shards(plan_of(EXPERTS, base=FP8, r1=FP8_OTHER, output={"shards": "by-rule"})) == equal_shards(plan)


@pytest.mark.parametrize("rule", [{"mix": {"r1": 0.5}, "components": "all"}])
def test_a_shard_that_is_computed_equals_no_parents(rule: dict[str, object]) -> None:
    """What is mixed or converted is nobody's whole file."""
    assert equal_shards(plan_of(rule, base=FP8, r1=FP8)) == {}
    assert equal_shards(plan_of(base=FP8, output={"dtype": "bf16"})) == {}
