"""Bytes that are moved together: copied tensors that lie side by side on both sides become one run.

A full-size merge copies a hundred thousand tensors, in a few hundred runs that only the bounds of jobs cut further.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from chimerakit.records import Plan, Row, Tensor


class Run(NamedTuple):
    """A range of a parent's file that becomes a range of the child's."""

    parent: str
    source: str
    """The parent's file."""
    start: int
    """Where the range begins there."""
    nbytes: int
    target: str
    """The child's file."""
    target_start: int
    tensors: Sequence[Tensor]
    """The child's tensors in it, in order, without gaps."""

    def slices(self, start: int, nbytes: int) -> Iterator[tuple[Tensor, int, int, int]]:
        """(tensor, from within it, from, to) for each tensor with bytes in a part of the range; all in bytes."""
        at, end = self.target_start + start, self.target_start + start + nbytes
        for number in range(bisect_right(self.tensors, at, key=lambda t: t.start) - 1, len(self.tensors)):
            tensor = self.tensors[number]
            if tensor.start >= end:
                return
            first, last = max(at, tensor.start), min(end, tensor.start + tensor.nbytes)
            if first < last:
                yield tensor, first - tensor.start, first - at, last - at


def copy_runs(rows: Iterable[Row]) -> list[Run]:
    """The fewest runs that move everything that these rows copy, in the order of the child's bytes."""
    return _join(
        (target, row.inputs[0].parent, source)
        for row in rows
        for source, target in zip(row.inputs[0].tensors, row.outputs, strict=True)
    )


def read_runs(checkpoint: str, tensors: Iterable[Tensor]) -> list[Run]:
    """The fewest ranges that hold these tensors, for those who only read."""
    return _join((tensor, checkpoint, tensor) for tensor in tensors)


_Move = tuple[Tensor, str, Tensor]
"""(the child's tensor, the parent's name, the parent's tensor)."""


def _join(moves: Iterable[_Move]) -> list[Run]:
    groups: list[list[_Move]] = []
    for move in sorted(moves, key=lambda move: (move[0].file, move[0].start, move[0].nbytes)):
        if not groups or not _follows(move, groups[-1][-1]):
            groups.append([])
        groups[-1].append(move)
    return [_run(group) for group in groups]


def _follows(move: _Move, last: _Move) -> bool:
    target, parent, source = move
    before, same, there = last
    return (
        parent == same
        and source.file == there.file
        and target.file == before.file
        and source.start == there.start + there.nbytes
        and target.start == before.start + before.nbytes
    )


def _run(group: list[_Move]) -> Run:
    target, parent, source = group[0]
    tensors = tuple(move[0] for move in group)
    nbytes = sum(tensor.nbytes for tensor in tensors)
    return Run(parent, source.file, source.start, nbytes, target.file, target.start, tensors)


def merged_ranges(rows: Iterable[Row]) -> list[tuple[str, int, int]]:
    """(file, start, bytes) of everything that these rows write, neighbours joined."""
    found: list[tuple[str, int, int]] = []
    for file, start, nbytes in sorted((t.file, t.start, t.nbytes) for row in rows for t in row.outputs):
        if found and found[-1][0] == file and found[-1][1] + found[-1][2] == start:
            _, start, before = found.pop()
            nbytes += before
        found.append((file, start, nbytes))
    return found


def equal_shards(plan: Plan) -> dict[str, tuple[str, str]]:
    """(parent, shard) for each weight file of the child that will equal a parent's whole shard, header included."""
    sources: dict[str, set[tuple[str, str] | None]] = {shard.name: set() for shard in plan.shards}
    for row in plan.rows:
        part = row.inputs[0]
        origins = part.tensors if row.kind == "copy" else (None,) * len(row.outputs)
        for origin, target in zip(origins, row.outputs, strict=True):
            is_in_place = origin is not None and origin.start == target.start
            sources[target.file].add((part.parent, origin.file) if is_in_place and origin is not None else None)
    shards = {(name, shard.name): shard for name, parent in plan.parents.items() for shard in parent.shards}
    found = {}
    for output in plan.shards:
        planned = shards.get((output.header.parent or "", output.header.shard or ""))
        source = sources[output.name].pop() if len(sources[output.name]) == 1 else None
        if planned is None or source is None:
            continue
        if (shards[source].header_digest, shards[source].nbytes) == (planned.header_digest, output.nbytes):
            found[output.name] = source
    return found
