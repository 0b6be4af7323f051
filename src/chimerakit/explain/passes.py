"""The passes over the weights of a child and its suspected parents; everything else of explaining is arithmetic on evidence."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from chimerakit.anatomy import Anatomy
from chimerakit.compare import measure_units
from chimerakit.errors import PlanError
from chimerakit.events import Listener, Report
from chimerakit.execute import Inputs
from chimerakit.explain.actions import Question
from chimerakit.explain.again import CHILD, Given, gives, made_of_shares
from chimerakit.explain.evidence import Evidence
from chimerakit.explain.look import doubt, look_at, outline
from chimerakit.explain.sample import Sampled, cut_row, cut_unit, draw, nbytes_on
from chimerakit.numerics.cells import Bound
from chimerakit.plan.memory import needs_of_scan
from chimerakit.plan.panels import largest_panel
from chimerakit.records import Checkpoint, Row, Unit
from chimerakit.runners import Runner
from chimerakit.scan import ScanUnit, objection_to, scan_about, scan_units

A = TypeVar("A")
T = TypeVar("T")


class Passes:
    """The child and its parents, unit by unit; what was asked once is not read again."""

    def __init__(
        self,
        child: Checkpoint,
        parents: Mapping[str, Checkpoint],
        runner: Runner,
        listener: Listener,
        sample: tuple[float, int] | None = None,
    ):
        if CHILD in parents:
            raise PlanError([f"a parent can't be called {CHILD!r} here"], _REFUSED)
        self.child = child
        self._sides = {CHILD: child, **parents}
        self._anatomies = {name: Anatomy(checkpoint) for name, checkpoint in self._sides.items()}
        if problems := list(self._problems()):
            raise PlanError(problems, _REFUSED)
        self._units = {name: anatomy.units() for name, anatomy in self._anatomies.items()}
        self._mine = {unit.name: unit for unit in scan_units(self._units) if CHILD in unit.sides}
        whole = dict.fromkeys(self._mine)
        self._spans = whole if sample is None else draw(list(self._mine.values()), CHILD, *sample)
        self._sample = sample
        self.num_layers = self._anatomies[CHILD].num_layers
        most = largest_panel(unit.kind for unit in self._mine.values())
        self._runner = runner
        self._workers = runner.workers(needs_of_scan(len(self._mine), most, len(self._sides)))
        self._listener = listener
        self._answers: dict[Question, bool] = {}
        self._nonfinite = set[str]()
        self._seen: dict[str, Evidence] = {}
        self._outlines: dict[str, tuple[Bound, ...]] = {}
        self._distances: dict[tuple[str, str, frozenset[str]], Mapping[str, float]] = {}

    def _problems(self) -> list[str]:
        places = {checkpoint.place for checkpoint in self._sides.values()}
        families = sorted({anatomy.family.name for anatomy in self._anatomies.values()})
        problems = {
            "no parent is given": len(self._sides) == 1,
            "a checkpoint is given twice": len(places) < len(self._sides),
            f"child and parents are of several architectures: {', '.join(families)}": len(families) > 1,
        }
        return [problem for problem, is_so in problems.items() if is_so]

    def missing(self) -> dict[str, tuple[str, ...]]:
        """Units of each parent that the child lacks."""
        return {n: tuple(u for u in own if u not in self._mine) for n, own in self._units.items() if n != CHILD}

    def lacks(self, base: str, evidence: Sequence[Evidence]) -> int:
        """How many units, of those that something explains, a parent can't be the base of, as it has none of the name."""
        return sum(bool(e.equal or e.mixture) and e.unit not in self._units[base] for e in evidence)

    def look(self) -> list[Evidence]:
        """What each unit of the child says, or of the sample, in the child's order."""
        names = [name for name in self._mine if name in self._spans]
        objections = {name: self._objections(self._mine[name]) for name in names}
        found = self._scan("looking at units", _look, objections)
        self._seen = {name: replace(each, nbytes=nbytes_on(CHILD, [self._mine[name]])) for name, each in found.items()}
        self._nonfinite |= {name for name, each in found.items() if each.nonfinite}
        return list(self._seen.values())

    def doubt(self, evidence: Sequence[Evidence]) -> list[Evidence]:
        """The same, as another encoder made the child: shares that give the bytes of a small unit may do so by chance."""
        given = {found.unit: found for found in evidence if found.mixture is not None and not found.others}
        doubted = self._scan("looking at small units", doubt, given)
        return [doubted.get(found.unit, found) for found in evidence]

    def sampled(self) -> Sampled | None:
        """What is looked at, if it is not all."""
        if self._sample is None:
            return None
        units = [cut_unit(self._mine[name], span) for name, span in self._spans.items()]
        everything = self._mine.values()
        nbytes, all_nbytes = nbytes_on(CHILD, units), nbytes_on(CHILD, everything)
        return Sampled(*self._sample, len(units), len(everything), nbytes, all_nbytes)

    def resolve(self, questions: Sequence[Question]) -> Mapping[Question, bool]:
        """Whether shares give units, found out by making them again; in memory where an outline tells that they don't."""
        waiting: dict[str, list[Question]] = {}
        for question in questions:
            if question not in self._answers:
                if _is_outside(question, self._seen[question[0]].readable, self._outlines.get(question[0], ())):
                    self._answers[question] = False
                else:
                    waiting.setdefault(question[0], []).append(question)
        asked = {
            name: _Asked(tuple(some), self._seen[name], self._outlines.get(name)) for name, some in waiting.items()
        }
        for name, (bounds, made) in self._scan("making units again", _resolve, asked).items():
            self._outlines[name] = bounds
            self._answers |= {
                question: question in made and self._is_given(name, made[question]) for question in waiting[name]
            }
        return self._answers

    def _is_given(self, unit: str, made: Given) -> bool:
        """Whether what was made is the unit; it is noted if that has NaN."""
        if made.is_given and made.nonfinite:
            self._nonfinite.add(unit)
        return made.is_given

    def check(self, rows: Mapping[str, Row], evidence: Sequence[Evidence]) -> dict[str, str]:
        """Of each unit, why a plan does not give its bytes; nothing if it does: nothing is believed of how its recipe was
        found.

        rows: those of the plan. What is copied from a parent with the child's bytes was read; what was made again in the
        same way is known; everything else is made now.
        """
        doubtful, says = dict[str, Row](), dict.fromkeys((found.unit for found in evidence), "")
        for each in evidence:
            whole, span = rows.get(each.unit), self._spans[each.unit]
            if whole is None:
                says[each.unit] = "the recipe's base has no such unit"
                continue
            row, unit = cut_row(whole, span), cut_unit(self._mine[each.unit], span)
            if [(t.dtype, t.shape) for t in row.outputs] != [(t.dtype, t.shape) for t in unit.sides[CHILD].tensors]:
                says[each.unit] = f"the recipe stores it as {row.storage}"
            elif (copied := _copied(row, each)) is None:
                if not self._is_known(row, unit, each):
                    doubtful[each.unit] = row
            elif copied not in each.equal:
                says[each.unit] = f"the recipe copies it from {copied!r}, whose bytes are others"
        for name, made in self._scan("making units again", gives, doubtful).items():
            says[name] = "" if self._is_given(name, made) else "the recipe does not give it"
        return says

    def nonfinite(self, rows: Mapping[str, Row], evidence: Sequence[Evidence]) -> int:
        """How many units that a plan makes of numbers hold NaN or infinity."""
        found = (each for each in evidence if each.unit in self._nonfinite and each.unit in rows)
        return sum(_copied(rows[each.unit], each) is None for each in found)

    def _is_known(self, row: Row, unit: ScanUnit, found: Evidence) -> bool:
        """Whether a unit was made again in the way that a row would make it, and came out."""
        shares = {part.parent: part.share for part in row.inputs}
        asked = made_of_shares(unit, shares)
        if (row.kind, row.storage) != (asked.kind, asked.storage) or (row.if_equal and _is_of_equals(row, found)):
            return False
        mixture = found.mixture
        if mixture is not None and not mixture.encoder and _as_added(mixture.shares) == _as_added(shares):
            return True
        return self._answers.get((unit.name, tuple(shares.items())), False)

    def measure(self, base: str, parent: str, units: Collection[str]) -> Mapping[str, float]:
        """How far units of a parent lie from the base's."""
        key = base, parent, frozenset(units)
        if key not in self._distances:
            self._distances[key] = measure_units(
                self._sides[base],
                self._sides[parent],
                units,
                runner=self._runner,
                listener=self._listener,
            )
        return self._distances[key]

    def _scan(self, work: str, ask: Callable[[T, ScanUnit, Inputs, Report], A], about: Mapping[str, T]) -> dict[str, A]:
        """The answers for units, in their order; `ask` is given what is about each."""
        units = [cut_unit(self._mine[name], self._spans[name]) for name in about]
        if not units:
            return {}
        answers = scan_about(work, ask, about, self._sides, units, workers=self._workers, listener=self._listener)
        found = {unit.name: answer for unit, answer in answers}
        return {name: found[name] for name in about}

    def _objections(self, unit: ScanUnit) -> dict[str, str]:
        """Why the values of each side can't be had, if so."""
        shape = self._units[CHILD][unit.name].shape
        return {side: self._objection(side, self._units[side][unit.name], shape) for side in unit.sides}

    def _objection(self, side: str, unit: Unit, shape: tuple[int, ...]) -> str:
        if objection := objection_to(self._anatomies[side], unit):
            return objection
        return "" if unit.shape == shape else f"its shape is {list(unit.shape)}, the child's {list(shape)}"


# ------------------------------------------------------------------------------- what is asked of units


class _Asked(Struct, frozen=True):
    """What is to be found out of one unit."""

    questions: tuple[Question, ...]
    seen: Evidence
    outline: tuple[Bound, ...] | None
    """What a few of its numbers allow, if that is known."""


def _look(objections: Mapping[str, str], unit: ScanUnit, inputs: Inputs, report: Report) -> Evidence:
    return look_at(unit, objections, inputs, report)


def _resolve(
    mine: _Asked, unit: ScanUnit, inputs: Inputs, report: Report
) -> tuple[tuple[Bound, ...], dict[Question, Given]]:
    bounds = _outline(mine.seen, unit, inputs, report) if mine.outline is None else mine.outline
    return bounds, {
        question: gives(made_of_shares(unit, dict(question[1])), unit, inputs, report)
        for question in mine.questions
        if not _is_outside(question, mine.seen.readable, bounds)
    }


def _outline(seen: Evidence, unit: ScanUnit, inputs: Inputs, report: Report) -> tuple[Bound, ...]:
    """What a few numbers of a unit allow, if it is a parent's; rules ask of many such whether they might be mixes."""
    equal = next((parent for parent in seen.equal if parent in seen.readable), None)
    return () if equal is None else outline(unit, equal, seen.readable, inputs, report)


def _is_outside(question: Question, parents: Sequence[str], bounds: Sequence[Bound]) -> bool:
    """Whether numbers tell that shares do not give a unit."""
    shares = dict(question[1])
    at = [shares.get(parent, 0.0) for parent in parents]
    return not all(bound.allows(at) for bound in bounds)


def _as_added(shares: Mapping[str, float]) -> list[tuple[str, float]]:
    """Shares in the order in which they are added up, as far as it makes a difference: that of the first two makes none."""
    order = list(shares.items())
    return sorted(order[:2]) + order[2:]


def _copied(row: Row, found: Evidence) -> str | None:
    """The parent whose bytes a row moves; None if it computes."""
    is_copy = row.kind == "copy" or (row.if_equal == "copy" and _is_of_equals(row, found))
    return row.inputs[0].parent if is_copy else None


def _is_of_equals(row: Row, found: Evidence) -> bool:
    """Whether all parents of a row have the same bytes."""
    first, *others = (part.parent for part in row.inputs)
    return all((first, other) in found.alike or (other, first) in found.alike for other in others)


_REFUSED = "this can't be explained"
