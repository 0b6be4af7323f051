"""One reading pass over the units of any number of checkpoints, as jobs: what verifying, explaining and comparing share.

A side is one checkpoint of the scan, under a name. What is asked of a unit is a function of its sides' bytes; this
module cuts the work into jobs, reads, and knows the cheapest question: which sides are byte-equal.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

from msgspec import Struct

from chimerakit.events import Listener, Report, one_at_a_time
from chimerakit.execute import Inputs
from chimerakit.plan import SEGMENT_NBYTES
from chimerakit.records import Checkpoint, Input, Role, Unit
from chimerakit.runners.local import default_threads
from chimerakit.runners.watched import run_watched
from chimerakit.stores.local import CHUNK
from chimerakit.stores.system import same_bytes

R = TypeVar("R")
Pair = tuple[str, str]


class ScanUnit(Struct, frozen=True):
    """One unit as every side that has it stores it."""

    name: str
    role: Role
    sides: dict[str, Input]

    @property
    def nbytes(self) -> int:
        """Bytes on all sides."""
        return sum(t.nbytes for side in self.sides.values() for t in side.tensors)


class ScanJob(Struct, frozen=True):
    """Consecutive units, and where their bytes lie."""

    id: int
    roots: dict[str, str]
    signatures: dict[str, dict[str, tuple[int, int]]]
    units: tuple[ScanUnit, ...]

    @property
    def nbytes(self) -> int:
        """Bytes to be read."""
        return sum(unit.nbytes for unit in self.units)


def scan_units(units: Mapping[str, Mapping[str, Unit]]) -> list[ScanUnit]:
    """Units of several checkpoints by name, in the order of the first that has them."""
    names = dict.fromkeys(name for side in units.values() for name in side)
    found = []
    for name in names:
        sides = {side: own[name] for side, own in units.items() if name in own}
        role = next(iter(sides.values())).role
        found.append(ScanUnit(name, role, {s: Input(s, 1.0, u.storage, u.tensors) for s, u in sides.items()}))
    return found


def cut_jobs(
    sides: Mapping[str, Checkpoint], units: Sequence[ScanUnit], *, segment_nbytes: int = SEGMENT_NBYTES
) -> list[ScanJob]:
    """Jobs of a size worth telling about."""
    groups: list[list[ScanUnit]] = []
    size = None
    for unit in units:
        if size is None or size + unit.nbytes > segment_nbytes:
            groups.append([])
            size = 0
        groups[-1].append(unit)
        size += unit.nbytes
    roots = {name: c.root for name, c in sides.items()}
    signatures = {name: c.signatures for name, c in sides.items()}
    return [ScanJob(number, roots, signatures, tuple(group)) for number, group in enumerate(groups)]


def scan(
    work: str,
    ask: Callable[[ScanUnit, Inputs, Report], R],
    sides: Mapping[str, Checkpoint],
    units: Sequence[ScanUnit],
    *,
    threads: int | None,
    listener: Listener,
) -> Iterator[tuple[ScanUnit, R]]:
    """Every unit with what `ask` says of it, in the order of completion."""

    def ask_all(job: ScanJob, inputs: Inputs, report: Report) -> list[tuple[ScanUnit, R]]:
        return [(unit, ask(unit, inputs, report)) for unit in job.units]

    for answers in scan_jobs(work, ask_all, sides, units, threads=threads, listener=listener):
        yield from answers


def scan_jobs(
    work: str,
    ask: Callable[[ScanJob, Inputs, Report], R],
    sides: Mapping[str, Checkpoint],
    units: Sequence[ScanUnit],
    *,
    threads: int | None,
    listener: Listener,
) -> Iterator[R]:
    """What `ask` says of each job, for questions to many units at once."""

    def run(job: ScanJob, report: Report) -> R:
        with Inputs(job.roots, job.signatures) as inputs:
            answer = ask(job, inputs, report)
            inputs.check_unchanged()
            return answer

    jobs = cut_jobs(sides, units)
    return run_watched(work, run, jobs, threads=threads or default_threads(), listener=one_at_a_time(listener))


def equal_pairs(unit: ScanUnit, inputs: Inputs, report: Report) -> set[Pair]:
    """The question: which pairs of sides have the same bytes. Reads a side no further than it may be somebody's equal.

    Reports what it reads, and in the end what it need not read, so that all of the unit is reported.
    """
    alike: dict[tuple[tuple[str, tuple[int, ...]], ...], list[str]] = {}
    for name, side in unit.sides.items():
        alike.setdefault(tuple((t.dtype, t.shape) for t in side.tensors), []).append(name)
    found: set[Pair] = set()
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        report(nbytes)

    for names in alike.values():
        found |= _equal_among({name: unit.sides[name] for name in names}, inputs, count)
    report(unit.nbytes - done)
    return found


def _equal_among(sides: Mapping[str, Input], inputs: Inputs, report: Report) -> set[Pair]:
    """The pairs with the same bytes among sides whose tensors have the same dtypes and shapes; reports what it reads."""
    pairs = set(combinations(sides, 2))
    tensors = next(iter(sides.values())).tensors
    most = min(CHUNK, max(t.nbytes for t in tensors))
    buffers = {name: memoryview(bytearray(most)) for name in sides}
    for number, tensor in enumerate(tensors):
        for done in range(0, tensor.nbytes, CHUNK):
            pieces = {name: buffers[name][: tensor.nbytes - done] for pair in pairs for name in pair}
            for name, piece in pieces.items():
                there = sides[name].tensors[number]
                inputs.reader(name, there.file).read_into(piece, there.start + done)
                report(len(piece))
            pairs = {(a, b) for a, b in pairs if same_bytes(pieces[a], pieces[b])}
    return pairs
