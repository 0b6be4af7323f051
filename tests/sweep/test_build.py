"""Children that are made together: each is what `merge` makes of its plan alone, and what they have in common is there once."""

import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from chimerakit.child import remove_child
from chimerakit.errors import NonFiniteError, OutputError, PlanError
from chimerakit.events import Advanced, Event
from chimerakit.formats import open_checkpoint
from chimerakit.merge import merge_parents
from chimerakit.plan import make_plan
from chimerakit.plan.memory import peak_memory
from chimerakit.recipe import parse_recipe
from chimerakit.records import Plan
from chimerakit.runners.local import Threads
from chimerakit.stores.local import Reader
from chimerakit.sweep.build import build_children
from chimerakit.sweep.sharing import disk_of
from chimerakit.verify import verify_child
from tests import gguf_files
from tests.durability.kinds import SEGMENT, make_parents

SHARES = (0, 0.25, 0.5, 1)


def parents_in(root: Path, storage: str = "fp8") -> dict[str, Path]:
    """Two unequal parents."""
    if not root.exists():
        make_parents(root, storage)
    return {name: root / f"{name} {storage}" for name in ("v3", "r1")}


def plans_of(
    parents: Mapping[str, Path], components: str = "routed_experts", output: str = "shards: by-rule", **more: Any
) -> dict[str, Plan]:
    """A plan for each share of r1."""
    opened = {name: open_checkpoint(path) for name, path in parents.items()}
    found = {}
    for share in SHARES:
        rules = f"- {{mix: {{r1: {share}}}, components: {components}}}"
        text = f"parents: {{v3: , r1: }}\nbase: v3\nrules:\n{rules}\noutput: {{{output}}}\n"
        found[f"r1-{share}"] = make_plan(parse_recipe(text), opened, segment_nbytes=SEGMENT, **more)
    return found


def bytes_in(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def new_bytes(folder: Path, parents: Mapping[str, Path]) -> int:
    """Bytes of weight files on the disk that are nobody else's, each file counted once however many names it has."""
    theirs = {file.stat().st_ino for path in parents.values() for file in path.iterdir()}
    files = {file.stat().st_ino: file.stat().st_size for file in folder.rglob("*.safetensors")}
    return sum(size for inode, size in files.items() if inode not in theirs)


@pytest.mark.parametrize(
    ("storage", "components", "output"),
    [
        ("fp8", "routed_experts", "shards: by-rule"),
        ("fp8", "routed_experts", "shards: base"),
        ("bf16", "[attention, router]", "shards: by-rule"),
        ("fp8", "all", "shards: by-rule, dtype: bf16"),
        ("bf16", "shared_experts", "shards: by-rule, dtype: fp8-block"),
    ],
)
def test_each_is_what_merge_makes_of_its_plan_alone(storage: str, components: str, output: str, tmp_path: Path) -> None:
    """Byte for byte, manifest included; and every one of them is proven against its parents."""
    parents = parents_in(tmp_path / "parents", storage)
    plans = plans_of(parents, components, output)
    build_children(plans, tmp_path / "zoo", runner=Threads(3))
    for name, plan in plans.items():
        merge_parents(plan, tmp_path / "alone", runner=Threads(2), force=True)
        assert bytes_in(tmp_path / "zoo" / name) == bytes_in(tmp_path / "alone"), name
    opened = {name: open_checkpoint(path) for name, path in parents.items()}
    assert verify_child(tmp_path / "zoo" / "r1-0.25", opened).ok


def test_what_they_have_in_common_is_on_the_disk_once(tmp_path: Path) -> None:
    """New bytes are those of n selections and one rest, and nothing for files that are a parent's."""
    parents = parents_in(tmp_path / "parents")
    plans = plans_of(parents, "shared_experts")
    build_children(plans, tmp_path / "zoo")
    disk = disk_of(plans, linked=True, shared=True)
    assert new_bytes(tmp_path / "zoo", parents) == disk.new
    assert 0 < disk.selected < 0.1 * disk.whole / len(plans)
    assert disk.new <= 1.05 * (len(plans) * disk.selected + disk.unselected)
    kept = {"r1-0.5": plans["r1-0.5"]} | {f"more-{n}": plans["r1-0.25"] for n in range(3)}
    assert (
        disk_of(kept, linked=True, shared=True).new
        == disk_of(dict(list(plans.items())[:2]), linked=True, shared=True).new
    )


def test_files_that_no_rule_touches_are_the_parents(tmp_path: Path) -> None:
    """The base's shard without experts has a second name in every child, and none of its bytes are new."""
    parents = parents_in(tmp_path / "parents")
    plans = plans_of(parents, "router")
    build_children(plans, tmp_path / "zoo")
    inodes = {file.stat().st_ino for file in parents["v3"].glob("*.safetensors")}
    for name, plan in plans.items():
        links = [s.name for s in plan.shards if (tmp_path / "zoo" / name / s.name).stat().st_ino in inodes]
        assert links == [s.name for s in plan.shards if s.header.parent == "v3"]
    assert disk_of(plans, linked=True, shared=True).linked == sum(
        s.nbytes for p in plans.values() for s in p.shards if s.header.parent
    )


def test_parents_are_read_once_for_all_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four children read hardly more than one does; made one after the other they read four times as much."""
    parents = parents_in(tmp_path / "parents")
    plans = plans_of(parents, "routed_experts")
    lock, read = threading.Lock(), [0]
    real = Reader.read_into

    def counted(reader: Reader, buffer: Any, start: int) -> Any:
        with lock:
            read[0] += len(buffer)
        return real(reader, buffer, start)

    monkeypatch.setattr(Reader, "read_into", counted)

    def reads(plans: Mapping[str, Plan], folder: str) -> int:
        read[0] = 0
        build_children(plans, tmp_path / folder, runner=Threads(1))
        return read[0]

    middle = {name: plans[name] for name in ("r1-0.25", "r1-0.5")}
    one = reads({"r1-0.5": plans["r1-0.5"]}, "one")
    assert one > 10e6
    assert reads(middle, "two") <= 1.05 * one
    assert reads(plans, "all") <= 1.05 * one


def test_what_is_there_is_left_alone_and_shared(tmp_path: Path) -> None:
    """A second call adds children; they take the files that they share from those that an earlier one made."""
    parents = parents_in(tmp_path / "parents")
    plans = plans_of(parents, "router")
    build_children(dict(list(plans.items())[:2]), tmp_path / "zoo")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "zoo").rglob("*.safetensors")}
    build_children(plans, tmp_path / "zoo")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert new_bytes(tmp_path / "zoo", parents) == disk_of(plans, linked=True, shared=True).new
    shutil.rmtree(tmp_path / "zoo" / "r1-0")
    build_children(plans, tmp_path / "zoo")
    merge_parents(plans["r1-0"], tmp_path / "alone")
    assert bytes_in(tmp_path / "zoo" / "r1-0") == bytes_in(tmp_path / "alone")


class _Stop(Exception):
    pass


def interrupt(plans: Mapping[str, Plan], folder: Path, after: float) -> None:
    """Begin to build, and stop when so much is written."""
    total, done = disk_of(plans, linked=True, shared=True).new, [0]

    def stop(event: Event) -> None:
        if isinstance(event, Advanced):
            done[0] += event.amount
            if done[0] > after * total:
                raise _Stop

    with pytest.raises(_Stop):
        build_children(plans, folder, runner=Threads(2), listener=stop)


@pytest.mark.parametrize("after", [0.02, 0.3, 0.6, 0.95])
def test_interrupted_anywhere_it_goes_on_and_ends_in_the_same_bytes(after: float, tmp_path: Path) -> None:
    """Nothing that looks finished is not; what was written is not written again."""
    plans = plans_of(parents_in(tmp_path / "parents"))
    interrupt(plans, tmp_path / "zoo", after)
    build_children(plans, tmp_path / "zoo", runner=Threads(2))
    build_children(plans, tmp_path / "whole", runner=Threads(2))
    assert bytes_in(tmp_path / "zoo") == bytes_in(tmp_path / "whole")


@pytest.mark.parametrize("after", [0.2, 0.5, 0.9])
def test_files_with_other_names_are_written_anew_and_not_through_them(after: float, tmp_path: Path) -> None:
    """A snapshot of hard links is taken in the middle: the children end in the same bytes, and the snapshot is as it was."""
    plans = plans_of(parents_in(tmp_path / "parents"))
    interrupt(plans, tmp_path / "zoo", after)
    shutil.copytree(tmp_path / "zoo", tmp_path / "snapshot", copy_function=os.link)
    before = bytes_in(tmp_path / "snapshot")
    build_children(plans, tmp_path / "zoo", runner=Threads(2))
    build_children(plans, tmp_path / "whole", runner=Threads(2))
    assert bytes_in(tmp_path / "zoo") == bytes_in(tmp_path / "whole")
    assert bytes_in(tmp_path / "snapshot") == before


def test_a_full_disk_is_no_harm_where_nothing_is_to_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there takes no space that it has not."""
    from chimerakit import output
    from chimerakit.sweep import build

    plans = plans_of(parents_in(tmp_path / "parents"), "router")
    build_children(plans, tmp_path / "zoo")
    for module in (output, build):
        monkeypatch.setattr(module, "free_nbytes", lambda _: 0)
    build_children(plans, tmp_path / "zoo")


def test_a_child_with_folders_is_deleted_as_a_whole(tmp_path: Path) -> None:
    """Files of the base in folders of their own leave none of these behind; what is not the child's is not touched."""
    parents = parents_in(tmp_path / "parents")
    (parents["v3"] / "inference" / "kernels").mkdir(parents=True)
    (parents["v3"] / "inference" / "kernels" / "a.py").write_text("pass")
    plan = plans_of(parents, "router")["r1-0.5"]
    build_children({"one": plan}, tmp_path / "zoo")
    remove_child(tmp_path / "zoo" / "one")
    assert not (tmp_path / "zoo" / "one").exists()
    build_children({"one": plan}, tmp_path / "zoo")
    (tmp_path / "zoo" / "one" / "mine.txt").write_text("keep me")
    with pytest.raises(OutputError, match="something else"):
        remove_child(tmp_path / "zoo" / "one")
    assert (tmp_path / "zoo" / "one" / "chimerakit.json").exists()


def test_without_hard_links_each_child_has_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems that know none: nothing is shared, and the bytes are the same."""
    plans = plans_of(parents_in(tmp_path / "parents"), "router")
    build_children(plans, tmp_path / "linked")

    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    build_children(plans, tmp_path / "zoo")
    assert bytes_in(tmp_path / "zoo") == bytes_in(tmp_path / "linked")
    assert all(file.stat().st_nlink == 1 for file in (tmp_path / "zoo").rglob("*.safetensors"))
    promised = disk_of(plans, linked=False, shared=False)
    assert promised.new == promised.whole == new_bytes(tmp_path / "zoo", {})


def test_plans_of_other_parents_are_not_one_sweep(tmp_path: Path) -> None:
    """Their rows would be mixed up."""
    plans = plans_of(parents_in(tmp_path / "parents"))
    others = plans_of(parents_in(tmp_path / "others"))
    with pytest.raises(PlanError, match="not one sweep"):
        build_children({"a": plans["r1-0.25"], "b": others["r1-0.5"]}, tmp_path / "zoo")


def test_too_little_memory_makes_smaller_batches_or_is_refused(tmp_path: Path) -> None:
    """Children fit together as long as there is room for their buffers; for one there must be enough."""
    plans = plans_of(parents_in(tmp_path / "parents"))
    build_children(plans, tmp_path / "zoo", runner=Threads(max_memory=330 << 20))
    build_children(plans, tmp_path / "wide")
    assert bytes_in(tmp_path / "zoo") == bytes_in(tmp_path / "wide")
    with pytest.raises(PlanError, match="one job at a time takes"):
        build_children(plans, tmp_path / "none", runner=Threads(max_memory=100 << 20))


def test_too_little_memory_for_the_last_is_refused_before_the_first_is_made(tmp_path: Path) -> None:
    """The first needs none for panels, and goes alone."""
    parents = parents_in(tmp_path / "parents")
    plans = plans_of(parents)
    plans = {"copied": plans["r1-1"], "mixed": plans["r1-0.5"]}
    enough = peak_memory(plans["copied"], 1)
    assert enough < peak_memory(plans["mixed"], 1)
    with pytest.raises(PlanError, match=r"mixed: one job at a time takes"):
        build_children(plans, tmp_path / "zoo", runner=Threads(1, enough))
    assert not any((tmp_path / "zoo").iterdir())
    build_children({"copied": plans["copied"]}, tmp_path / "zoo", runner=Threads(1, enough))


def test_a_disk_that_is_too_small_for_all_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though each of them would fit."""
    from chimerakit import output
    from chimerakit.sweep import build

    plans = plans_of(parents_in(tmp_path / "parents"))
    one = max(plan.output_nbytes for plan in plans.values())
    for module in (output, build):
        monkeypatch.setattr(module, "free_nbytes", lambda _: one + (20 << 20))
    with pytest.raises(OutputError, match="too little disk space for 4 children"):
        build_children(plans, tmp_path / "zoo")
    assert not any((tmp_path / "zoo").iterdir())


def test_what_is_not_finite_stops_all_of_them_with_one_error(tmp_path: Path) -> None:
    """As in `merge`: the unit and the parent are named."""
    parents = parents_in(tmp_path / "parents", "bf16")
    tensor = open_checkpoint(parents["r1"]).tensors["model.layers.2.mlp.experts.3.up_proj.weight"]
    with (parents["r1"] / tensor.file).open("r+b") as file:
        file.seek(tensor.start)
        file.write(b"\xc0\x7f")
    with pytest.raises(NonFiniteError, match=r"experts\.3\.up_proj.*NaN or infinity in 'r1'"):
        build_children(plans_of(parents), tmp_path / "zoo")
    assert not list((tmp_path / "zoo").rglob("chimerakit.json"))


def test_children_by_rule_may_be_parents_of_others(tmp_path: Path) -> None:
    """Files that stay keep their names, and none is written over by one that would be called the same."""
    parents = parents_in(tmp_path / "parents")
    for generation, components in enumerate(("router", "attention", "shared_experts", "norm")):
        plan = plans_of(parents, components)["r1-0.5"]
        child = tmp_path / f"child-{generation}"
        merge_parents(plan, child)
        assert len({shard.name for shard in plan.shards}) == len(plan.shards)
        assert verify_child(child, {name: open_checkpoint(path) for name, path in parents.items()}).ok
        assert open_checkpoint(child).tensors.keys() == open_checkpoint(parents["v3"]).tensors.keys()
        parents = {"v3": child, "r1": parents["r1"]}


@pytest.mark.parametrize("output", ["", "dtype: q8_0"])
def test_quants_are_decoded_once_and_come_out_the_same(output: str, tmp_path: Path) -> None:
    """GGUF children of parents in several types: byte for byte what merge makes of each plan alone."""
    types = {"v3": {"exps": "Q4_K"}, "r1": {"ffn_down_exps": "Q6_K", "exps": "Q5_K"}}
    parents = {
        name: open_checkpoint(gguf_files.make(tmp_path / f"{name}.gguf", seed, types=types[name]))
        for seed, name in enumerate(("v3", "r1"), 1)
    }
    plans = {}
    for share in SHARES:
        rules = f"- {{mix: {{r1: {share}}}, components: [routed_experts, attention]}}"
        text = f"parents: {{v3: , r1: }}\nbase: v3\nrules:\n{rules}\n" + (f"output: {{{output}}}\n" if output else "")
        plans[f"r1-{share}"] = make_plan(parse_recipe(text), parents)
    build_children(plans, tmp_path / "zoo", runner=Threads(2), allow_nonfinite=True)
    for name, plan in plans.items():
        merge_parents(plan, tmp_path / "alone", force=True, allow_nonfinite=True)
        assert bytes_in(tmp_path / "zoo" / name) == bytes_in(tmp_path / "alone"), name
