"""One reading pass over the units of any number of checkpoints, as jobs: what verifying, explaining and comparing share.

A side is one checkpoint of the scan, under a name. What is asked of a unit is a function of its sides' bytes; this
module cuts the work into jobs, reads, decodes, and knows the cheapest question: which sides are byte-equal.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from chimerakit.anatomy import Anatomy
from chimerakit.dtypes import FP8_BLOCKS, MIXABLE, blocks_of
from chimerakit.events import Listener, Report, one_at_a_time
from chimerakit.execute import Inputs, Source
from chimerakit.plan import SEGMENT_NBYTES
from chimerakit.plan.panels import Panel, cut
from chimerakit.records import Checkpoint, Input, Role, Tensor, Unit
from chimerakit.runners import Workers
from chimerakit.runners.watched import run_watched
from chimerakit.stores.local import CHUNK
from chimerakit.stores.system import same_bytes

if TYPE_CHECKING:
    from chimerakit.numerics.cells import Ints
    from chimerakit.numerics.fp8 import F32
    from chimerakit.numerics.mix import Term

_FIRST_LOOK = 1 << 15
"""Bytes."""

A = TypeVar("A")
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

    @property
    def kind(self) -> tuple[tuple[int, ...], list[str]]:
        """The shape of its first side, and how each side stores it."""
        parts = list(self.sides.values())
        return parts[0].tensors[0].shape, [part.storage for part in parts]


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


class AskedJob(Struct, frozen=True):
    """Consecutive units, and what is known or asked of each; so that a worker is sent nothing of others."""

    job: ScanJob
    about: tuple[Any, ...]

    @property
    def nbytes(self) -> int:
        """Bytes to be read."""
        return self.job.nbytes


def scan_about(
    work: str,
    ask: Callable[[A, ScanUnit, Inputs, Report], R],
    about: Mapping[str, A],
    sides: Mapping[str, Checkpoint],
    units: Sequence[ScanUnit],
    *,
    workers: Workers,
    listener: Listener,
) -> Iterator[tuple[ScanUnit, R]]:
    """The same as `scan`, where `ask` is told something of its own about each unit, by name."""
    jobs = [AskedJob(job, tuple(about[unit.name] for unit in job.units)) for job in cut_jobs(sides, units)]
    tell = one_at_a_time(listener)
    for answers in run_watched(work, partial(_ask_about, ask), jobs, workers=workers, listener=tell):
        yield from answers


def _ask_about(
    ask: Callable[[A, ScanUnit, Inputs, Report], R], asked: AskedJob, report: Report
) -> list[tuple[ScanUnit, R]]:
    def ask_all(job: ScanJob, inputs: Inputs, report: Report) -> list[tuple[ScanUnit, R]]:
        units = zip(asked.about, job.units, strict=True)
        return [(unit, ask(about, unit, inputs, report)) for about, unit in units]

    return _read(ask_all, asked.job, report)


def scan(
    work: str,
    ask: Callable[[ScanUnit, Inputs, Report], R],
    sides: Mapping[str, Checkpoint],
    units: Sequence[ScanUnit],
    *,
    workers: Workers,
    listener: Listener,
) -> Iterator[tuple[ScanUnit, R]]:
    """Every unit with what `ask` says of it, in the order of completion."""
    for answers in scan_jobs(work, partial(_ask_all, ask), sides, units, workers=workers, listener=listener):
        yield from answers


def _ask_all(
    ask: Callable[[ScanUnit, Inputs, Report], R], job: ScanJob, inputs: Inputs, report: Report
) -> list[tuple[ScanUnit, R]]:
    return [(unit, ask(unit, inputs, report)) for unit in job.units]


def scan_jobs(
    work: str,
    ask: Callable[[ScanJob, Inputs, Report], R],
    sides: Mapping[str, Checkpoint],
    units: Sequence[ScanUnit],
    *,
    workers: Workers,
    listener: Listener,
) -> Iterator[R]:
    """What `ask` says of each job, for questions to many units at once."""
    return run_scan(work, ask, cut_jobs(sides, units), workers=workers, listener=listener)


def run_scan(
    work: str,
    ask: Callable[[ScanJob, Inputs, Report], R],
    jobs: Sequence[ScanJob],
    *,
    workers: Workers,
    listener: Listener,
) -> Iterator[R]:
    """The same for jobs that are cut already, of which some may have been done before."""
    return run_watched(work, partial(_read, ask), jobs, workers=workers, listener=one_at_a_time(listener))


def _read(ask: Callable[[ScanJob, Inputs, Report], R], job: ScanJob, report: Report) -> R:
    with Inputs(job.roots, job.signatures) as inputs:
        answer = ask(job, inputs, report)
        inputs.check_unchanged()
        return answer


# ---------------------------------------------------------------------------------------------- values


def objection_to(anatomy: Anatomy, unit: Unit) -> str:
    """Why a side's unit can't be decoded, if so; its bytes can always be compared."""
    if objection := anatomy.objection(unit):
        return objection
    if unit.storage not in MIXABLE:
        return f"values stored as {unit.storage} can't be compared"
    if unit.storage in FP8_BLOCKS:  # again, for models that no family describes
        expected = blocks_of(unit.shape)
        if len(expected) != 2 or unit.tensors[1].shape != expected:
            return f"FP8 blocks of {list(unit.shape)} can't have scales of {list(unit.tensors[1].shape)}"
    return ""


class Values:
    """The float32 values of some sides of a unit, panel by panel. They can be decoded and have the first side's shape."""

    def __init__(self, unit: ScanUnit, sides: Sequence[str], inputs: Inputs, report: Report):
        self.sides = sides
        self.storages = {name: unit.sides[name].storage for name in sides}
        self.dtypes = {name: unit.sides[name].tensors[0].dtype for name in sides}
        self._whole = cut(next(iter(unit.sides.values())).tensors[0].shape, self.storages.values())
        self._parts = {name: unit.sides[name] for name in sides}
        self._inputs = inputs
        self._report = report
        self._sources: dict[str, Source] = {}

    @property
    def are_fp8(self) -> bool:
        """Whether every side stores FP8 blocks."""
        return all(storage in FP8_BLOCKS for storage in self.storages.values())

    def panels(self) -> Iterator[Panel]:
        """All panels of the unit. Nothing is reported as done here; reporting that lets the job be stopped."""
        for panel in self._whole.panels():
            self._report(0)
            yield panel

    def term(self, side: str, panel: Panel) -> "Term":
        """A side's panel as it is stored."""
        if side not in self._sources:
            self._sources[side] = Source(self._parts[side], self._inputs, self._whole)
        self._sources[side].read(panel)
        return self._sources[side].term(panel, self._parts[side].share)

    def place(self, numbers: "Ints") -> "tuple[Panel, Ints]":
        """The panel that holds the first of some numbers of the unit, counted row by row; and which of its own they are."""
        row, col = numbers // self._whole.cols, numbers % self._whole.cols
        panel = next(p for p in self._whole.panels() if 0 <= row[0] - p.row < p.rows and 0 <= col[0] - p.col < p.cols)
        row, col = row - panel.row, col - panel.col
        inside = (row >= 0) & (row < panel.rows) & (col >= 0) & (col < panel.cols)
        return panel, (row * panel.cols + col)[inside]

    def of(self, side: str, panel: Panel) -> "F32":
        """A side's values in a panel: code x scale."""
        from chimerakit.numerics import mix

        return mix.decode(self.term(side, panel))


# ---------------------------------------------------------------------------------------- equal bytes


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


def is_hole(side: str, tensor: Tensor, inputs: Inputs) -> bool:
    """Whether no byte of a tensor takes space on the disk, so that all of them are zeros."""
    return inputs.reader(side, tensor.file).is_hole(tensor.start, tensor.nbytes)


def _equal_among(sides: Mapping[str, Input], inputs: Inputs, report: Report) -> set[Pair]:
    """The pairs with the same bytes among sides whose tensors have the same dtypes and shapes; reports what it reads."""
    pairs = set(combinations(sides, 2))
    tensors = next(iter(sides.values())).tensors
    found = dict[str, memoryview]()
    size = _FIRST_LOOK  # sides that differ do so early, as a rule
    for number, tensor in enumerate(tensors):
        done = 0
        if pairs and all(is_hole(name, side.tensors[number], inputs) for name, side in sides.items()):
            continue
        while done < tensor.nbytes and pairs:
            nbytes = min(size, CHUNK, tensor.nbytes - done)
            for name in {name for pair in pairs for name in pair}:
                there = sides[name].tensors[number]
                found[name] = inputs.memory(f"bytes of {name}", nbytes)[:nbytes].data
                inputs.reader(name, there.file).read_into(found[name], there.start + done)
                report(nbytes)
            pairs = {(a, b) for a, b in pairs if same_bytes(found[a], found[b])}
            done += nbytes
            size *= 4
    return pairs
