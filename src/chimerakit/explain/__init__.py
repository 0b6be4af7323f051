"""A child + suspected parents -> the recipe that makes it, read out of the weights.

evidence.py   one unit: whose bytes it has, or which shares give them
rules.py      evidence -> actions -> a recipe
fold.py       the fewest rules that do to every unit what fits it
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from msgspec import Struct

from chimerakit.anatomy import Anatomy
from chimerakit.compare import compare_checkpoints
from chimerakit.errors import PlanError
from chimerakit.events import Listener, Report, ignore
from chimerakit.execute import Inputs
from chimerakit.explain.evidence import CHILD, Evidence, gives, look_at
from chimerakit.explain.rules import Measure, Model, Question, Resolve, find_recipe
from chimerakit.explain.settings import differences, find_plan
from chimerakit.formats import open_checkpoint
from chimerakit.plan.memory import MAX_MEMORY, scan_threads_within
from chimerakit.plan.panels import cut
from chimerakit.plan.select import units_in_question
from chimerakit.records import Checkpoint, Input, Plan, Recipe, Role, Row, Unit
from chimerakit.runners.local import default_threads
from chimerakit.scan import ScanUnit, objection_to, scan, scan_units

Verdict = Literal["equal", "mixed", "unexplained"]


class Explained(Struct, frozen=True):
    """What was found out about one unit of the child."""

    unit: str
    role: Role
    nbytes: int
    verdict: Verdict
    """equal: its bytes are a parent's, or a parent's values stored otherwise."""
    shares: dict[str, float]
    """equal: 1 for each parent that it is equal to. mixed: the recipe's shares, which give its bytes; without a recipe, the
    shortest decimals that do."""
    rule: int | None = None
    """The recipe's rule that takes it, counted from 0; None if the base does."""
    why: str = ""
    """unexplained: what is the matter, and how far the nearest mix is."""


class Explanation(Struct, frozen=True):
    """What a child is made of."""

    parents: tuple[str, ...]
    recipe: Recipe | None
    """With the fewest rules that give all units that can be explained; None if no parent can be the base."""
    units: tuple[Explained, ...]
    """In the child's order."""
    missing: dict[str, tuple[str, ...]]
    """Units of each parent that the child lacks."""
    unlike: tuple[str, ...]
    """Files and tensors that the recipe's child would have otherwise."""
    undetermined: tuple[str, ...]
    """What no byte of the child shows."""
    differences: dict[str, tuple[str, ...]]
    """In what else than weights the child differs from each parent."""

    @property
    def is_explained(self) -> bool:
        """Whether the recipe gives every unit of the child, and no other."""
        return self.recipe is not None and all(u.verdict != "unexplained" for u in self.units) and not self._lacks

    @property
    def _lacks(self) -> bool:
        return self.recipe is not None and bool(self.missing[self.recipe.base])


def explain_child(
    child: Path | str,
    parents: Mapping[str, Checkpoint],
    *,
    threads: int | None = None,
    max_memory: int = MAX_MEMORY,
    listener: Listener = ignore,
) -> Explanation:
    """Find the recipe that makes a child of these parents, from their weights alone.

    The recipe gives every byte of the units that are explained: each was made again. threads: jobs at a time, at most;
    as many as max_memory (bytes) allows. Raises PlanError for parents of another architecture, one given twice, one
    named "child", or if one job needs more memory.
    """
    sides = {CHILD: open_checkpoint(child), **parents}
    family = _Family(sides, parents)
    scan_with = partial(scan, sides=sides, threads=family.threads(max_memory, threads), listener=listener)

    def look(unit: ScanUnit, inputs: Inputs, report: Report) -> Evidence:
        return look_at(unit, family.problems_of(unit), inputs, report)

    found = {unit.name: evidence for unit, evidence in scan_with("looking at units", look, units=family.mine())}
    evidence = [found[unit.name] for unit in family.mine()]

    answers: dict[Question, bool] = {}

    def resolve(questions: Sequence[Question]) -> Mapping[Question, bool]:
        waiting: dict[str, list[Question]] = {}
        for question in questions:
            if question not in answers:
                waiting.setdefault(question[0], []).append(question)

        def answer(unit: ScanUnit, inputs: Inputs, report: Report) -> list[tuple[Question, bool]]:
            return [(q, gives(unit, dict(q[1]), inputs, report)) for q in waiting[unit.name]]

        if waiting:
            asked = [family.unit(name) for name in waiting]
            for _, answered in scan_with("making units again", answer, units=asked):
                answers.update(answered)
        return answers

    distances: dict[tuple[str, str, frozenset[str]], dict[str, float]] = {}

    def measure(base: str, parent: str, units: Collection[str]) -> Mapping[str, float]:
        key = (base, parent, frozenset(units))
        if key not in distances:
            compared = compare_checkpoints(
                parents[base], parents[parent], only=units, threads=threads, max_memory=max_memory, listener=listener
            )
            distances[key] = {unit.unit: unit.distance for unit in compared.units}
        return distances[key]

    model = Model(tuple(parents), family.num_layers)
    unlike = {name: tuple(differences(sides[CHILD], parent)) for name, parent in parents.items()}
    recipes = [r for base in parents if (r := find_recipe(evidence, model, base, resolve, measure)) is not None]
    plan, notes = _best_plan(recipes, sides[CHILD], parents, unlike, measure)
    rows = {} if plan is None else {row.unit: row for row in plan.rows}
    stored = {unit.name: unit.sides[CHILD] for unit in family.mine()}
    broken = _broken(rows, evidence, stored, resolve)
    return Explanation(
        parents=tuple(parents),
        recipe=None if plan is None else plan.recipe,
        units=tuple(_explained(e, rows.get(e.unit), broken.get(e.unit, "")) for e in evidence),
        missing=family.missing(),
        unlike=tuple(notes),
        undetermined=tuple(_undetermined(evidence)),
        differences=unlike,
    )


class _Family:
    """The child and its parents, unit by unit."""

    def __init__(self, sides: Mapping[str, Checkpoint], parents: Mapping[str, Checkpoint]):
        roots = {Path(checkpoint.root).resolve(): name for name, checkpoint in sides.items()}
        problems = [f"a parent can't be called {CHILD!r} here"] if CHILD in parents else []
        problems += [] if len(roots) == len(sides) else ["a checkpoint is given twice"]
        self._anatomies = {name: Anatomy(checkpoint) for name, checkpoint in sides.items()}
        names = {anatomy.family.name for anatomy in self._anatomies.values()}
        problems += (
            [f"child and parents are of several architectures: {', '.join(sorted(names))}"] if len(names) > 1 else []
        )
        problems += [] if parents else ["no parent is given"]
        if problems:
            raise PlanError(problems, "this can't be explained")
        self._units = {name: anatomy.units() for name, anatomy in self._anatomies.items()}
        self._mine = {unit.name: unit for unit in scan_units(self._units) if CHILD in unit.sides}
        self.num_layers = self._anatomies[CHILD].num_layers

    def mine(self) -> list[ScanUnit]:
        """The child's units, as every side that has them stores them."""
        return list(self._mine.values())

    def unit(self, name: str) -> ScanUnit:
        """One of them."""
        return self._mine[name]

    def missing(self) -> dict[str, tuple[str, ...]]:
        """Units of each parent that the child lacks."""
        return {n: tuple(u for u in own if u not in self._mine) for n, own in self._units.items() if n != CHILD}

    def problems_of(self, unit: ScanUnit) -> dict[str, str]:
        """Why the values of each side can't be had, if so."""
        shape = self._units[CHILD][unit.name].shape
        return {side: self._problem(side, self._units[side][unit.name], shape) for side in unit.sides}

    def _problem(self, side: str, unit: Unit, shape: tuple[int, ...]) -> str:
        if objection := objection_to(self._anatomies[side], unit):
            return objection
        return "" if unit.shape == shape else f"its shape is {list(unit.shape)}, the child's {list(shape)}"

    def threads(self, max_memory: int, threads: int | None) -> int:
        """Jobs at a time."""
        shapes = [unit.shape for unit in self._units[CHILD].values()]
        most = max((cut(shape, is_blocked=len(shape) == 2).most for shape in shapes), default=0)
        return scan_threads_within(len(self._mine), most, len(self._units), max_memory, threads or default_threads())


def _best_plan(
    recipes: Sequence[Recipe],
    child: Checkpoint,
    parents: Mapping[str, Checkpoint],
    differences: Mapping[str, Sequence[str]],
    measure: Measure,
) -> tuple[Plan | None, list[str]]:
    """Of the recipes with the fewest rules that can be planned, the plan that gives the most of the child's files; and what
    it does not give."""
    plans, refusals = list[tuple[Plan, list[str]]](), list[str]()
    for recipe in sorted(recipes, key=lambda recipe: len(recipe.rules)):
        if plans and len(recipe.rules) > len(plans[0][0].recipe.rules):
            break
        try:
            questions = units_in_question(recipe, Anatomy(parents[recipe.base]))
            distances = {name: measure(recipe.base, name, units) for name, units in questions.items()}
            plans.append(find_plan(recipe, child, parents, distances))
        except PlanError as e:
            refusals += [f"{recipe.base!r} can't be the base: {problem}" for problem in e.problems]
    if not plans:
        return None, refusals
    return min(plans, key=lambda found: (len(found[1]), len(differences[found[0].recipe.base])))


def _broken(
    rows: Mapping[str, Row], evidence: Sequence[Evidence], child: Mapping[str, Input], resolve: Resolve
) -> dict[str, str]:
    """Units that the plan does not give after all, and why: nothing is believed of how the recipe was found."""
    questions, found = dict[str, Question](), dict[str, str]()
    for each in evidence:
        row, mine = rows.get(each.unit), child[each.unit]
        if row is None and rows:
            found[each.unit] = "the recipe's base has no such unit"
        if row is None or not (each.equal or each.mixture):
            continue
        shares = tuple((part.parent, part.share) for part in row.inputs)
        copied = _copied(row, each)
        if copied is not None:
            if copied not in each.equal:
                found[each.unit] = f"the recipe copies it from {copied!r}, whose bytes are others"
        elif row.storage != mine.storage or [(t.dtype, t.shape) for t in row.outputs] != [
            (t.dtype, t.shape) for t in mine.tensors
        ]:
            found[each.unit] = f"the recipe stores it as {row.storage}"
        elif each.mixture is None or tuple(each.mixture.shares.items()) != shares:
            first = ((row.inputs[0].parent, 1.0),)
            questions[each.unit] = (each.unit, first if _is_of_equals(row, each) else shares)
    answers = resolve(list(questions.values()))
    return {n: "the recipe does not give it" for n, question in questions.items() if not answers[question]} | found


def _is_of_equals(row: Row, found: Evidence) -> bool:
    """Whether a mix comes down to its first parent, as all have the same bytes."""
    first, *others = (part.parent for part in row.inputs)
    are_alike = all((first, other) in found.alike or (other, first) in found.alike for other in others)
    return row.if_equal is not None and are_alike


def _copied(row: Row, found: Evidence) -> str | None:
    """The parent whose bytes a row moves; None if it computes."""
    if row.kind == "copy" or (row.if_equal == "copy" and _is_of_equals(row, found)):
        return row.inputs[0].parent
    return None


def _explained(found: Evidence, row: Row | None, broken: str) -> Explained:
    """The evidence in the recipe's words: of several ways to give a unit's bytes, the one that its rule takes."""
    verdict: Verdict = "unexplained"
    shares: dict[str, float] = {}
    if (found.equal or found.mixture is not None) and not broken:
        shares = dict.fromkeys(found.equal, 1.0) if found.mixture is None else found.mixture.shares
        if row is not None and row.kind == "mix" and not {part.parent for part in row.inputs} <= set(found.equal):
            shares = {part.parent: part.share for part in row.inputs}
        verdict = "equal" if set(shares) <= set(found.equal) or list(shares.values()) == [1.0] else "mixed"
    rule = None if row is None else row.rule
    return Explained(found.unit, found.role, found.nbytes, verdict, shares, rule, found.why or broken)


def _undetermined(evidence: Sequence[Evidence]) -> Iterator[str]:
    """What may have been otherwise, with the same bytes."""
    agreeing = Counter(found.equal for found in evidence if len(found.equal) > 1)
    for parents, count in agreeing.items():
        yield f"{count} units have the same bytes in {' and '.join(parents)}: which of them gave these, nothing shows"
