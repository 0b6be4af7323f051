"""What children of one sweep have in common: equal files, and what of them is new on the disk. Pure functions of plans."""

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from chimerakit.plan.ranges import equal_shards
from chimerakit.records import Plan
from chimerakit.stores.digest import digest_of


class Shared(Struct, frozen=True):
    """A file of a child that equals one of another child."""

    owner: str
    """The child that has it first."""
    file: str
    """What it is called there."""


class Disk(Struct, frozen=True):
    """What children take on the disk, in bytes of weight files."""

    whole: int
    """If nothing were shared."""
    linked: int
    """Files that equal a parent's."""
    shared: int
    """Files that equal another child's."""
    selected: int
    """What rules take, in one child: the largest of them."""
    unselected: int
    """What no rule takes and no parent's file has, in one child."""

    @property
    def new(self) -> int:
        """What is written."""
        return self.whole - self.linked - self.shared


def file_keys(plan: Plan) -> dict[str, str]:
    """A digest for each weight file of a child over everything that decides its bytes: equal ones are equal files.

    Files that have a unit in common with another file have none: they can't be had one without the other.
    """
    parts: dict[str, list[object]] = {
        s.name: [msgspec.structs.replace(s.header, file=""), s.nbytes] for s in plan.shards
    }
    torn: set[str] = set()
    for row in plan.rows:
        files = {tensor.file for tensor in row.outputs}
        if len(files) > 1:
            torn |= files
        inputs = [(i.parent, i.share, i.storage, [(t.file, t.start, t.nbytes) for t in i.tensors]) for i in row.inputs]
        outputs = [(t.name, t.dtype, t.shape, t.start, t.nbytes) for t in row.outputs]
        parts[row.outputs[0].file].append((row.kind, row.storage, row.if_equal, row.importance, inputs, outputs))
    return {name: digest_of(msgspec.json.encode(said)) for name, said in parts.items() if name not in torn}


def shared_files(plans: Mapping[str, Plan]) -> dict[str, dict[str, Shared]]:
    """For each child, in their order, the files that an earlier one has too."""
    first: dict[str, Shared] = {}
    found: dict[str, dict[str, Shared]] = {}
    for child, plan in plans.items():
        keys = file_keys(plan)
        found[child] = {file: first[key] for file, key in keys.items() if key in first}
        for file, key in keys.items():
            first.setdefault(key, Shared(child, file))
    return found


def disk_of(plans: Mapping[str, Plan], *, linked: bool, shared: bool) -> Disk:
    """What these children take. linked, shared: whether files that equal a parent's, or another child's, become links to it."""
    others = shared_files(plans) if shared else {child: {} for child in plans}
    whole = at_parents = at_children = selected = 0
    rest: dict[str, int] = {}
    for child, plan in plans.items():
        links = equal_shards(plan) if linked else {}
        whole += sum(shard.nbytes for shard in plan.shards)
        at_parents += sum(shard.nbytes for shard in plan.shards if shard.name in links)
        at_children += sum(s.nbytes for s in plan.shards if s.name in others[child] and s.name not in links)
        selected = max(selected, sum(row.nbytes for row in plan.rows if row.rule is not None))
        mine = sum(row.nbytes for row in plan.rows if row.rule is None and row.outputs[0].file not in links)
        rest[child] = mine
    return Disk(whole, at_parents, at_children, selected, max(rest.values(), default=0))
