"""Where two checkpoints differ: one reading pass gives the difference map, on which a recipe's delta is decided.

Compared are the values, code x scale in float32, of every unit that both have with the same shape, and the stored bytes where
both store alike. A panel whose bytes are equal is decoded once. Everything else is listed with the reason.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path

import msgspec
from msgspec import Struct

from chimerakit.anatomy import Anatomy
from chimerakit.compare.asking import compare_routers
from chimerakit.compare.difference import (
    FIGURES,
    DifferenceMap,
    DifferenceSummary,
    Identity,
    Sums,
    Threshold,
    UnitDifference,
    summarize_map,
    thresholds,
)
from chimerakit.compare.routers import Choices, RouterDifference
from chimerakit.compare.saved import load_map, save_map
from chimerakit.compare.states import AnyStates, DrawnStates, RecordedStates, States, open_states, panel_nbytes
from chimerakit.errors import MapError
from chimerakit.events import Listener, Report, Said, ignore
from chimerakit.execute import Inputs
from chimerakit.manifest import parent_record
from chimerakit.plan.memory import needs_of_scan
from chimerakit.plan.panels import largest_panel
from chimerakit.records import Checkpoint, Component, Tensor, Unit
from chimerakit.runners import Runner, Workers
from chimerakit.runners.local import LOCAL
from chimerakit.scan import ScanJob, ScanUnit, Values, cut_jobs, objection_to, run_scan, scan_units
from chimerakit.stores.digest import digest_of, digest_range
from chimerakit.stores.journal import Journal
from chimerakit.stores.local import Readers

__all__ = [
    "FIGURES",
    "Choices",
    "DifferenceMap",
    "DifferenceSummary",
    "DrawnStates",
    "Identity",
    "RecordedStates",
    "RouterDifference",
    "States",
    "Sums",
    "Threshold",
    "UnitDifference",
    "compare_checkpoints",
    "distances",
    "load_map",
    "measure_units",
    "open_states",
    "save_map",
    "summarize_map",
    "thresholds",
]

A, B = "a", "b"
_PARTIAL_FORMAT = 1
_LOOKED_AT = 1 << 16
"""Bytes of each tensor by which a checkpoint is known again."""


def compare_checkpoints(
    a: Checkpoint,
    b: Checkpoint,
    *,
    states: AnyStates | None = None,
    partial: Path | None = None,
    runner: Runner = LOCAL,
    listener: Listener = ignore,
) -> DifferenceMap:
    """The difference map of a base and another checkpoint; every weight byte of both is read once, those of routers twice.

    states: what the routers are asked on, each for the experts that it chooses; None asks nothing. partial: a file to which results are appended as they come, and from which a second call goes on; the caller removes it
    when it has the map. runner: where jobs are done; the map is the same wherever. Raises PlanError (memory), CheckpointError (also for states that fit no router), OutputError (the partial
    file).
    """
    pair = _Pair(a, b)
    identities = [_identity(checkpoint, pair.units[side].values()) for side, checkpoint in pair.sides.items()]
    with nullcontext() if partial is None else closing(Journal(partial)) as journal:
        routers = pair.compare_routers(states, runner, listener)  # first: bad states are told before long work
        found = pair.compare(journal, runner, listener)
    return DifferenceMap(
        a=identities[0],
        b=identities[1],
        units=tuple(found),
        only_in={"a": _only(pair.there, A), "b": _only(pair.there, B)},
        problems=pair.problems,
        routers=tuple(routers),
        states=None if states is None else states.said,
    )


def measure_units(
    a: Checkpoint,
    b: Checkpoint,
    names: Collection[str],
    *,
    runner: Runner = LOCAL,
    listener: Listener = ignore,
) -> dict[str, float]:
    """How far some units lie apart, as `distances` says it of a map; nothing of the others is read.

    Units that can't be compared are left out. runner, errors: as for `compare_checkpoints`.
    """
    found = _Pair(a, b, names).compare(None, runner, listener)
    return {unit.unit: unit.distance for unit in found}


class _Pair:
    """Two checkpoints, unit by unit. names: of the units that are meant; None for all."""

    def __init__(self, a: Checkpoint, b: Checkpoint, names: Collection[str] | None = None):
        self.sides = {A: a, B: b}
        self._anatomies = {side: Anatomy(checkpoint) for side, checkpoint in self.sides.items()}
        self.units = {side: anatomy.units() for side, anatomy in self._anatomies.items()}
        self.there = [unit for unit in scan_units(self.units) if names is None or unit.name in names]
        both = [unit for unit in self.there if len(unit.sides) == 2]
        objections = {u.name: _problem(self._anatomies, {s: self.units[s][u.name] for s in self.sides}) for u in both}
        self.problems = {name: problem for name, problem in objections.items() if problem}
        self._todo = [unit for unit in both if unit.name not in self.problems]

    def compare(self, journal: Journal | None, runner: Runner, listener: Listener) -> list[UnitDifference]:
        """All units that can be compared, in their order."""
        most = largest_panel(unit.kind for unit in self._todo)
        workers = runner.workers(needs_of_scan(len(self.there), most, 2))
        jobs = cut_jobs(self.sides, self._todo)
        found = {unit.unit: unit for unit in _compare(jobs, journal, workers, listener)}
        return [found[unit.name] for unit in self._todo]

    def compare_routers(self, states: AnyStates | None, runner: Runner, listener: Listener) -> list[RouterDifference]:
        """The routers of all layers that can be compared."""
        return compare_routers(self.sides, self._anatomies, self._todo, states, runner=runner, listener=listener)


def _only(there: Iterable[ScanUnit], side: str) -> tuple[str, ...]:
    return tuple(unit.name for unit in there if set(unit.sides) == {side})


def _problem(anatomies: Mapping[str, Anatomy], unit: Mapping[str, Unit]) -> str:
    """Why a unit that both have can't be compared, if so."""
    objections = {side: objection_to(anatomies[side], own) for side, own in unit.items()}
    if any(objections.values()):
        return "; ".join(f"{side}: {objection}" for side, objection in objections.items() if objection)
    if unit[A].shape != unit[B].shape:
        return f"the shapes differ: {list(unit[A].shape)} in a, {list(unit[B].shape)} in b"
    return ""


# --------------------------------------------------------------------------------------------- units


def _compare(
    jobs: Sequence[ScanJob], journal: Journal | None, workers: Workers, listener: Listener
) -> Iterator[UnitDifference]:
    """All units of all jobs; those of jobs that an earlier call did as it left them."""
    kept = {} if journal is None else _kept(jobs, journal)
    if kept:
        listener(Said(f"{len(kept)} of {len(jobs)} jobs were done before"))
    todo = [job for job in jobs if job.id not in kept]
    for answer in kept.values():
        yield from answer
    for job, answer in run_scan("comparing", _compare_job, todo, workers=workers, listener=listener):
        if journal is not None:
            journal.append(msgspec.json.encode(_Line.of(job, msgspec.json.encode(answer))))
        yield from answer


def _compare_job(job: ScanJob, inputs: Inputs, report: Report) -> tuple[ScanJob, list[UnitDifference]]:
    return job, [_compare_unit(unit, inputs, report) for unit in job.units]


def _compare_unit(unit: ScanUnit, inputs: Inputs, report: Report) -> UnitDifference:
    from chimerakit.numerics.compare import DECODING, Differences, unlike_bytes

    values, found = Values(unit, (A, B), inputs, report), Differences()
    alike = unlike = 0
    for panel in values.panels():
        a, b = values.term(A, panel), values.term(B, panel)
        here = unlike_bytes(a, b)
        if here is not None:
            alike, unlike = alike + panel_nbytes(a), unlike + here
        found.add_stored(a, a if here == 0 else b, (panel.rows, panel.cols), inputs.memory("decoding", DECODING))
        report(panel_nbytes(a) + panel_nbytes(b))
    nbytes_a, nbytes_b = (sum(t.nbytes for t in unit.sides[side].tensors) for side in (A, B))
    squared_norm_a, squared_norm_b = found.squared_norms
    return UnitDifference(
        unit=unit.name,
        role=unit.role,
        storages=(values.storages[A], values.storages[B]),
        weights=found.num_values,
        nonfinite=found.num_nonfinite,
        unlike_values=found.num_unlike,
        squared_difference=found.squared_difference,
        inner_product=found.inner_product,
        squared_norm_a=squared_norm_a,
        squared_norm_b=squared_norm_b,
        largest=found.largest,
        nbytes_a=nbytes_a,
        nbytes_b=nbytes_b,
        alike_bytes=alike,
        unlike_bytes=unlike,
    )


# ---------------------------------------------------------------------------------------- going on


class _Line(Struct, frozen=True):
    """What one job found, as it is kept."""

    job: int
    seal: str
    """xxh3-128 of what the job is about and of what it found: one of other files, or torn, does not fit."""
    found: msgspec.Raw

    @classmethod
    def of(cls, job: ScanJob, found: bytes) -> "_Line":
        """Seal what a job found, given as text."""
        files = {t.file for unit in job.units for side in unit.sides.values() for t in side.tensors}
        signatures = {
            side: {name: signature for name, signature in own.items() if name in files}
            for side, own in job.signatures.items()
        }
        about = msgspec.json.encode((_PARTIAL_FORMAT, signatures, job.units))
        return cls(job.id, digest_of(about + found), msgspec.Raw(found))


def _kept(jobs: Sequence[ScanJob], journal: Journal) -> dict[int, list[UnitDifference]]:
    """What earlier calls found, of the jobs whose lines are whole and about these very files."""
    kept = {}
    for text in journal.lines():
        try:
            line = msgspec.json.decode(text, type=_Line)
            if 0 <= line.job < len(jobs) and line == _Line.of(jobs[line.job], bytes(line.found)):
                kept[line.job] = msgspec.json.decode(line.found, type=list[UnitDifference])
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return kept


# ------------------------------------------------------------------------------------- of whom it is


def distances(found: DifferenceMap, a: Checkpoint, b: Checkpoint) -> dict[str, float]:
    """What a delta is held against: RMS by the unit's name, infinite for a unit with NaN or infinity.

    Raises MapError if the map is not of these two checkpoints, in either order; a few small tensors are read to see that.
    """
    objections = [_objection(found, *pair) for pair in ((a, b), (b, a))]
    if all(objections):
        raise MapError(
            "the difference map is of other checkpoints",
            expected=f"{a.root} and {b.root}",
            found=objections[0],
            do="make one of these: chimerakit compare A B -o MAP.npz",
        )
    return {unit.unit: unit.distance for unit in found.units}


def _objection(found: DifferenceMap, a: Checkpoint, b: Checkpoint) -> str:
    """In what a checkpoint is not the one of the map, if so."""
    for identity, checkpoint in ((found.a, a), (found.b, b)):
        if parent_record(checkpoint.shards, checkpoint.config) != identity.record:
            return f"other weight files, headers or config than those of {checkpoint.root}"
        if _identity(checkpoint, Anatomy(checkpoint).units().values()) != identity:
            return f"other weights than those of {checkpoint.root}, under the same headers"
    return ""


def _identity(checkpoint: Checkpoint, units: Iterable[Unit]) -> Identity:
    """A checkpoint, by its headers and by the smallest and the largest unit of each component in each layer.

    Small ones are norms and biases, which few who train change; large ones are what nearly everybody changes.
    """
    groups: dict[tuple[Component, int | None], list[Unit]] = {}
    for unit in sorted(units, key=lambda unit: (unit.nbytes, unit.name)):
        groups.setdefault((unit.role.component, unit.role.layer), []).append(unit)
    tensors = {t.name: t for group in groups.values() for unit in (group[0], group[-1]) for t in unit.tensors}.values()
    return Identity(parent_record(checkpoint.shards, checkpoint.config), _fingerprint(checkpoint, tensors))


def _fingerprint(checkpoint: Checkpoint, tensors: Iterable[Tensor]) -> dict[str, str]:
    found = {}
    with Readers() as readers:
        for tensor in tensors:
            reader = readers.get(Path(checkpoint.root, tensor.file), checkpoint.signatures[tensor.file])
            found[tensor.name] = digest_range(reader, tensor.start, min(tensor.nbytes, _LOOKED_AT)).xxh3
    return dict(sorted(found.items()))
