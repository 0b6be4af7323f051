"""Which bytes of a GGUF child go where: files, offsets, headers.

The child has as many files as the base, with the same tensors in each, or is split anew by size. A file of which nothing
changes keeps its header byte for byte; without rules the child's files equal the base's.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from chimerakit.dtypes import nbytes_of
from chimerakit.formats.gguf import split_name, stack_of
from chimerakit.formats.gguf_header import (
    ALIGNMENT,
    DEFAULT_ALIGNMENT,
    encode_field,
    encode_infos,
    encode_opening,
    padded,
)
from chimerakit.plan.drafts import Draft
from chimerakit.plan.keys import keys_of_base, plan_keys
from chimerakit.plan.layout import Layout, rows_of
from chimerakit.records import Checkpoint, Header, HeaderPart, ImatrixFile, OutputShard, Recipe, Tensor

_STEM = "model"
"""What the child's files are called."""


class _Stack(NamedTuple):
    """One tensor of a file: a unit, or the units of all experts, which lie together."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    slices: tuple[Tensor, ...]
    """In order; the base's own records where nothing is converted."""


class _File(NamedTuple):
    stacks: list[_Stack]
    original: str | None
    """The base's file with the same tensors."""


def place_gguf(
    recipe: Recipe, parents: Mapping[str, Checkpoint], drafts: Sequence[Draft], imatrix: ImatrixFile | None
) -> Layout:
    """Give every tensor of the child a file and an offset."""
    base = parents[recipe.base]
    stacks = _stacks(base, drafts)
    limit = recipe.output.split_max_size
    files = _as_base(base, stacks) if limit is None else _by_size(base, stacks, limit)
    keys = plan_keys(recipe, parents, drafts, imatrix)
    is_said = keys == keys_of_base(recipe, base)
    shards, moved = list[OutputShard](), dict[str, Tensor]()
    for number, file in enumerate(files):
        name = split_name(_STEM, number + 1, len(files))
        if file.original is not None and _is_kept(base, file) and (number > 0 or is_said):
            shard, placed = _keep(recipe.base, base, file, name)
        else:
            head = [key.part(parents) for key in keys] if number == 0 else []
            head += [_new(encode_field(*split)) for split in _splits(number, len(files), len(stacks))]
            alignment = _alignment(base) if number == 0 else DEFAULT_ALIGNMENT
            shard, placed = _lay_out(name, file.stacks, head, alignment)
        shards.append(shard)
        moved.update((t.name, t) for t in placed)
    return Layout(rows_of(drafts, moved, shards), tuple(shards), is_base=False)


def _stacks(base: Checkpoint, drafts: Sequence[Draft]) -> list[_Stack]:
    """The child's tensors in the base's order."""
    made = {draft.name: draft.tensors[0] for draft in drafts}
    groups: dict[str, list[Tensor]] = {}
    for name in base.tensors:
        groups.setdefault(stack_of(name) or name, []).append(made[name])
    return [
        _Stack(
            name,
            found[0].dtype,
            found[0].shape if found[0].name == name else (len(found), *found[0].shape),
            tuple(found),
        )
        for name, found in groups.items()
    ]


def _as_base(base: Checkpoint, stacks: Iterable[_Stack]) -> list[_File]:
    files = {shard.name: _File([], shard.name) for shard in base.shards}
    for stack in stacks:
        files[base.tensors[stack.slices[0].name].file].stacks.append(stack)
    return list(files.values())


def _by_size(base: Checkpoint, stacks: Iterable[_Stack], limit: int) -> list[_File]:
    """Files of at most so many bytes of tensors, unless one is larger: as llama-gguf-split cuts them."""
    files, size = [_File([], None)], 0
    for stack in stacks:
        nbytes = padded(nbytes_of(stack.dtype, stack.shape) or 0, _alignment(base))
        if files[-1].stacks and size + nbytes > limit:
            files.append(_File([], None))
            size = 0
        files[-1].stacks.append(stack)
        size += nbytes
    return files


def _is_kept(base: Checkpoint, file: _File) -> bool:
    return all(base.tensors[t.name] is t for stack in file.stacks for t in stack.slices)


def _keep(name_of_base: str, base: Checkpoint, file: _File, name: str) -> tuple[OutputShard, list[Tensor]]:
    original = next(shard for shard in base.shards if shard.name == file.original)
    header = Header(name, original.header_nbytes, parent=name_of_base, shard=original.name)
    placed = [Tensor(t.name, t.dtype, t.shape, name, t.start, t.nbytes) for stack in file.stacks for t in stack.slices]
    return OutputShard(name, original.nbytes, header), placed


def _splits(number: int, count: int, num_tensors: int) -> list[tuple[str, str, int]]:
    """The keys that tell which part of a model a file is."""
    if count == 1:
        return []
    return [("split.no", "u16", number), ("split.count", "u16", count), ("split.tensors.count", "i32", num_tensors)]


def _lay_out(
    name: str, stacks: Sequence[_Stack], keys: Sequence[HeaderPart], alignment: int
) -> tuple[OutputShard, list[Tensor]]:
    """A new file and its tensors with their places. keys: each a part."""
    infos, offsets = encode_infos(((s.name, s.dtype, s.shape) for s in stacks), alignment)
    parts = [_new(encode_opening(len(stacks), len(keys))), *keys, _new(infos)]
    nbytes = sum(part.nbytes for part in parts)
    start = padded(nbytes, alignment)
    parts = _joined([*parts, _new(bytes(start - nbytes))])
    placed, end = list[Tensor](), start
    for stack, offset in zip(stacks, offsets, strict=True):
        end = start + offset
        for t in stack.slices:
            size = nbytes_of(t.dtype, t.shape) or 0
            placed.append(Tensor(t.name, t.dtype, t.shape, name, end, size))
            end += size
    return OutputShard(name, start + padded(end - start, alignment), Header(name, start, parts=tuple(parts))), placed


def _joined(parts: Iterable[HeaderPart]) -> list[HeaderPart]:
    """The fewest parts that say the same: neighbours in one file, and new bytes, are one."""
    found = list[HeaderPart]()
    for part in parts:
        last = found[-1] if found else None
        if last is None or (last.parent, last.shard) != (part.parent, part.shard):
            found.append(part)
        elif part.parent is None:
            found[-1] = _new(last.data + part.data)
        elif last.start + last.nbytes == part.start:
            found[-1] = HeaderPart(last.nbytes + part.nbytes, last.parent, last.shard, last.start)
        else:
            found.append(part)
    return [part for part in found if part.nbytes]


def _new(data: bytes) -> HeaderPart:
    return HeaderPart(len(data), data=data)


def _alignment(base: Checkpoint) -> int:
    return int(base.config.get(ALIGNMENT, DEFAULT_ALIGNMENT))
