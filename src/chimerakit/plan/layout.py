"""Which bytes of the child go where: files, offsets, headers, jobs.

A file whose tensors are those of the base's file keeps its header byte for byte, so an untouched shard equals its
parent's file. Any other file is laid out anew, as the reference writer would do it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from chimerakit.dtypes import nbytes_of
from chimerakit.formats.safetensors import header_bytes, storage_order
from chimerakit.plan.drafts import Draft
from chimerakit.records import Checkpoint, Header, OutputShard, Recipe, Row, Tensor


class Layout(Struct, frozen=True):
    """Rows with their places, and the files that they fill."""

    rows: tuple[Row, ...]
    shards: tuple[OutputShard, ...]
    is_base: bool
    """Whether every tensor is in the file that the base has it in, so that the base's index holds."""


def place(recipe: Recipe, parents: Mapping[str, Checkpoint], drafts: Sequence[Draft]) -> Layout:
    """Give every tensor of the child a file and an offset."""
    base = parents[recipe.base]
    files = _by_rule(recipe, base, drafts) if recipe.output.shards == "by-rule" else _as_base(base, drafts)
    originals = {shard.name: shard for shard in base.shards}
    num_originally = Counter(tensor.file for tensor in base.tensors.values())

    shards, moved = [], dict[str, Tensor]()
    for name, tensors in files.items():
        original = originals.get(name)
        is_kept = len(tensors) == num_originally[name] and all(base.tensors.get(t.name) is t for t in tensors)
        if original is not None and is_kept:
            header = Header(name, original.header_nbytes, parent=recipe.base, shard=name)
            shards.append(OutputShard(name, original.nbytes, header))
        else:
            shard, placed = _lay_out(name, tensors, (original or base.shards[0]).metadata)
            shards.append(shard)
            moved.update((t.name, t) for t in placed)

    rows = rows_of(drafts, moved, shards)
    is_base = sum(map(len, files.values())) == len(base.tensors) and all(
        name in base.tensors and base.tensors[name].file == tensor.file for name, tensor in moved.items()
    )
    return Layout(rows, tuple(shards), is_base)


def rows_of(drafts: Iterable[Draft], moved: Mapping[str, Tensor], shards: Iterable[OutputShard]) -> tuple[Row, ...]:
    """Drafts with their places, in the order of the files. moved: tensors that are not where the base has them."""
    order = {shard.name: number for number, shard in enumerate(shards)}
    rows = (_row(draft, moved) for draft in drafts)
    return tuple(sorted(rows, key=lambda row: (order[row.outputs[0].file], row.outputs[0].start)))


def _lay_out(
    name: str, tensors: Iterable[Tensor], metadata: Mapping[str, str] | None
) -> tuple[OutputShard, list[Tensor]]:
    """A new file as the reference writer would make it, and its tensors with their places."""
    ordered = storage_order((t.name, t.dtype, t.shape) for t in tensors)
    data = header_bytes(ordered, metadata)
    end = len(data)
    placed = []
    for tensor_name, dtype, shape in ordered:
        size = nbytes_of(dtype, shape) or 0
        placed.append(Tensor(tensor_name, dtype, shape, name, end, size))
        end += size
    return OutputShard(name, end, Header(name, len(data), text=data[8:].decode())), placed


def cut_segments(rows: Sequence[Row], segment_nbytes: int) -> tuple[tuple[int, int], ...]:
    """Rows of each job: consecutive units of one file, up to a size; a larger unit is a job by itself."""
    cuts, size = [0], 0
    for number, row in enumerate(rows):
        is_other_file = number > 0 and row.outputs[0].file != rows[number - 1].outputs[0].file
        nbytes = row.nbytes
        if number > cuts[-1] and (is_other_file or size + nbytes > segment_nbytes):
            cuts.append(number)
            size = 0
        size += nbytes
    return tuple(zip(cuts, [*cuts[1:], len(rows)], strict=True)) if rows else ()


def _row(draft: Draft, moved: Mapping[str, Tensor]) -> Row:
    outputs = tuple(moved.get(t.name, t) for t in draft.tensors) if moved else draft.tensors
    return Row(
        unit=draft.name,
        role=draft.role,
        rule=draft.rule,
        kind=draft.kind,
        inputs=draft.inputs,
        storage=draft.storage,
        outputs=outputs,
        if_equal=draft.if_equal,
        importance=draft.importance,
    )


def _as_base(base: Checkpoint, drafts: Sequence[Draft]) -> dict[str, list[Tensor]]:
    """Every tensor in the base's file; a scale that the base does not have goes beside its weight."""
    files: dict[str, list[Tensor]] = {shard.name: [] for shard in base.shards}
    for draft in drafts:
        home = base.tensors[draft.name].file
        for tensor in draft.tensors:
            known = base.tensors.get(tensor.name)
            files[home if known is None else known.file].append(tensor)
    emptied = {t.file for t in base.tensors.values()}  # a shard that held nothing but scales; not one that was empty
    return {name: tensors for name, tensors in files.items() if tensors or name not in emptied}


def _by_rule(recipe: Recipe, base: Checkpoint, drafts: Sequence[Draft]) -> dict[str, list[Tensor]]:
    """The base's files that no rule touches, as they are; what else the base gives and what each rule takes in files of their
    own, none larger than the base's largest unless one unit is."""
    kept = _untouched(base, drafts)
    limit = max(shard.nbytes for shard in base.shards)
    files: dict[str, list[Tensor]] = {shard.name: [] for shard in base.shards if shard.name in kept}
    taken: dict[int | None, list[Draft]] = {rule: [] for rule in [None, *range(len(recipe.rules))]}
    for draft in drafts:
        if draft.tensors[0].file in kept and draft.tensors[0] is base.tensors.get(draft.name):
            for tensor in draft.tensors:
                files[tensor.file].append(tensor)
        else:
            taken[draft.rule].append(draft)
    groups: list[list[Tensor]] = []
    for of_rule in taken.values():
        size = None
        for draft in of_rule:
            nbytes = sum(t.nbytes for t in draft.tensors)
            if size is None or size + nbytes > limit:
                groups.append([])
                size = 0
            groups[-1].extend(draft.tensors)
            size += nbytes
    if len(groups) == 1 and not files:
        return {"model.safetensors": groups[0]}
    stems = ["by-rule", *(f"by-rule-{n}" for n in range(2, len(kept) + 2))] if kept else ["model"]
    named = [[f"{s}-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)] for s in stems]
    free = next(
        names for names in named if kept.isdisjoint(names)
    )  # each file that stays can be in the way of one stem only
    return files | dict(zip(free, groups, strict=True))


def _untouched(base: Checkpoint, drafts: Sequence[Draft]) -> set[str]:
    """The base's files of which no rule takes anything, and of which nothing is stored otherwise."""
    kept = {tensor.file for tensor in base.tensors.values()}
    found = {t.name for draft in drafts for t in draft.tensors}
    kept -= {tensor.file for name, tensor in base.tensors.items() if name not in found}
    units = [{t.file for t in draft.tensors} for draft in drafts]
    is_own = [d.rule is None and all(t is base.tensors.get(t.name) for t in d.tensors) for d in drafts]
    kept -= {file for files, own in zip(units, is_own, strict=True) if not own for file in files}
    while torn := {file for files in units if not files <= kept for file in files & kept}:  # a scale in another file
        kept -= torn
    return kept
