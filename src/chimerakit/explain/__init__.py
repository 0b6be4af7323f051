"""A child + suspected parents -> the recipe that makes it, read out of the weights.

passes.py     the passes over weights: looking at units, making them again, measuring
look.py       one unit: whose bytes it has, or which shares give them; evidence.py is what is known then
again.py      making a unit again, and comparing
encoders.py   whose arithmetic it is
sample.py     a few rows of some units, in place of all
actions.py    evidence -> what rules may do, and to which units
rules.py      evidence + actions -> a recipe
fold.py       the fewest rules that do to every unit what fits it
settings.py   how the child is stored and laid out, and whose its other files are
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from msgspec import Struct

from chimerakit.anatomy import Anatomy
from chimerakit.errors import PlanError
from chimerakit.events import Listener, ignore
from chimerakit.explain.actions import Model
from chimerakit.explain.encoders import decide, is_other
from chimerakit.explain.evidence import Evidence, Mixture
from chimerakit.explain.passes import Passes
from chimerakit.explain.rules import find_recipe
from chimerakit.explain.sample import Sampled
from chimerakit.explain.settings import Digest, differences, find_plan
from chimerakit.formats import open_checkpoint
from chimerakit.numerics.cells import Interval
from chimerakit.plan.deltas import units_in_question
from chimerakit.records import Checkpoint, Plan, Recipe, Role, Row
from chimerakit.runners import Runner
from chimerakit.runners.local import LOCAL
from chimerakit.stores.digest import digest_file

Verdict = Literal["equal", "mixed", "estimated", "unexplained"]


class Explained(Struct, frozen=True):
    """What was found out about one unit of the child."""

    unit: str
    role: Role
    nbytes: int
    verdict: Verdict
    """equal: its bytes are a parent's, or a parent's values stored otherwise. mixed: the shares give its bytes. estimated:
    another encoder made it of about these shares."""
    shares: dict[str, float]
    """equal: 1 for each parent that it is equal to. Otherwise the recipe's shares; without a recipe, the shortest decimals
    that do."""
    ranges: dict[str, Interval] = {}
    """mixed and estimated: how far each share may go by the numbers that were looked at."""
    encoder: str = ""
    """estimated: how it seems to round."""
    rule: int | None = None
    """The recipe's rule that takes it, counted from 0; None if the base does."""
    why: str = ""
    """estimated and unexplained: what is the matter, and how far the nearest mix is."""

    @property
    def is_given(self) -> bool:
        """Whether its bytes can be made again."""
        return self.verdict in ("equal", "mixed")


class Estimate(Struct, frozen=True):
    """What units that another encoder made of the same shares have in common."""

    rule: int | None
    encoder: str
    units: int
    shares: dict[str, float]
    ranges: dict[str, Interval]
    """How far each share may go, by the numbers of all of them; empty intervals if they don't agree."""


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
    nonfinite: int = 0
    """Units that the recipe makes of numbers and that hold NaN or infinity: it merges with --allow-nonfinite only."""
    sample: Sampled | None = None
    """What was looked at, if not everything; `units` are those."""

    @property
    def is_explained(self) -> bool:
        """Whether the recipe gives every unit of the child that was looked at, and no other."""
        return self.recipe is not None and all(u.is_given for u in self.units) and not self._lacks

    def estimates(self) -> list[Estimate]:
        """The estimated units, those of the same rule, shares and encoder together."""
        groups: dict[tuple[int, str, tuple[tuple[str, float], ...]], list[Explained]] = {}
        for unit in self.units:
            if unit.verdict == "estimated":
                rule = -1 if unit.rule is None else unit.rule
                groups.setdefault((rule, unit.encoder, tuple(unit.shares.items())), []).append(unit)
        return [
            Estimate(None if rule < 0 else rule, encoder, len(units), dict(shares), _common_ranges(units))
            for (rule, encoder, shares), units in sorted(groups.items())
        ]

    @property
    def _lacks(self) -> bool:
        return self.recipe is not None and bool(self.missing[self.recipe.base])


def explain_child(
    child: Path | str,
    parents: Mapping[str, Checkpoint],
    *,
    runner: Runner = LOCAL,
    sample: float | None = None,
    seed: int = 0,
    listener: Listener = ignore,
) -> Explanation:
    """Find the recipe that makes a child of these parents, from their weights alone.

    The recipe gives every byte of the units that are explained: each was made again. runner: where jobs are
    done. sample: the share (0 to 1) of all bytes to look at, drawn with the seed: then
    nothing is proven of the rest, and no rule has a delta. Raises PlanError for parents of another architecture, one given
    twice, one named "child", or if one job needs more memory.
    """
    drawn = None if sample is None else (sample, seed)
    passes = Passes(open_checkpoint(child), parents, runner, listener, drawn)
    digest = cache(lambda path: digest_file(path).xxh3)
    seen = passes.look()
    evidence = decide(passes.doubt(seen) if is_other(seen) else seen)
    unlike = {name: tuple(differences(passes.child, parent, digest)) for name, parent in parents.items()}
    model = Model(tuple(parents), passes.num_layers)
    measure = passes.measure if sample is None else None
    found = (find_recipe(evidence, model, base, passes.resolve, measure) for base in parents)
    recipes = sorted(
        (recipe for recipe in found if recipe is not None),
        key=lambda recipe: (passes.lacks(recipe.base, evidence), len(recipe.rules)),
    )
    plan, notes = _best_plan(recipes, passes, parents, unlike, digest)
    rows = {} if plan is None else {row.unit: row for row in plan.rows}
    broken = passes.check(rows, evidence) if rows else {}
    return Explanation(
        parents=tuple(parents),
        recipe=None if plan is None else plan.recipe,
        units=tuple(_explained(e, rows.get(e.unit), broken.get(e.unit)) for e in evidence),
        missing=passes.missing(),
        unlike=tuple(notes),
        undetermined=tuple(_undetermined(evidence)),
        differences=unlike,
        nonfinite=passes.nonfinite(rows, evidence),
        sample=passes.sampled(),
    )


def _best_plan(
    recipes: Sequence[Recipe],
    passes: Passes,
    parents: Mapping[str, Checkpoint],
    differences: Mapping[str, Sequence[str]],
    digest: Digest,
) -> tuple[Plan | None, list[str]]:
    """Of the first recipes that can be planned, and that have as few rules, the plan that gives the most of the child's files;
    and what it does not give."""
    plans, refusals = list[tuple[Plan, list[str]]](), list[str]()
    for recipe in recipes:
        if plans and len(recipe.rules) > len(plans[0][0].recipe.rules):
            break
        try:
            questions = units_in_question(recipe, Anatomy(parents[recipe.base]))
            distances = {name: passes.measure(recipe.base, name, units) for name, units in questions.items()}
            plans.append(find_plan(recipe, passes.child, parents, distances, digest))
        except PlanError as e:
            refusals += [f"{recipe.base!r} can't be the base: {problem}" for problem in e.problems]
    if not plans:
        return None, refusals
    return min(plans, key=lambda found: (len(found[1]), len(differences[found[0].recipe.base])))


def _explained(found: Evidence, row: Row | None, broken: str | None) -> Explained:
    """The evidence in the recipe's words.

    broken: why the recipe's row does not give the unit's bytes; nothing if it does; None without a recipe.
    """
    mixture, rule = found.mixture, None if row is None else row.rule
    if row is not None and not broken:
        shares = {part.parent: part.share for part in row.inputs}
    elif broken is None and (found.equal or (mixture is not None and not mixture.encoder)):
        shares = dict.fromkeys(found.equal, 1.0) if mixture is None else mixture.shares
    elif mixture is not None and mixture.encoder and (row is not None or broken is None):
        return _estimated(found, mixture, row)
    else:
        why = found.why or broken or ""
        return Explained(found.unit, found.role, found.nbytes, "unexplained", {}, rule=rule, why=why)
    same = next((same for same in (found.equal, found.converted) if set(shares) <= set(same)), None)
    if same is not None or list(shares.values()) == [1.0]:
        shares = shares if same is None else dict.fromkeys(same, 1.0)
        return Explained(found.unit, found.role, found.nbytes, "equal", shares, rule=rule)
    ranges = _finite(mixture) if mixture is not None and not mixture.encoder else {}
    return Explained(found.unit, found.role, found.nbytes, "mixed", shares, ranges, rule=rule)


def _estimated(found: Evidence, mixture: Mixture, row: Row | None) -> Explained:
    """What another encoder made, with the recipe's shares."""
    is_mix = row is not None and row.kind == "mix"
    shares = {part.parent: part.share for part in row.inputs} if row is not None and is_mix else mixture.shares
    return Explained(
        found.unit,
        found.role,
        found.nbytes,
        "estimated",
        shares,
        _finite(mixture),
        mixture.encoder,
        None if row is None else row.rule,
        found.why,
    )


def _finite(mixture: Mixture) -> dict[str, Interval]:
    return {parent: room for parent, room in mixture.ranges.items() if all(map(math.isfinite, room))}


def _common_ranges(units: Sequence[Explained]) -> dict[str, Interval]:
    named = dict.fromkeys(parent for unit in units for parent in unit.ranges)
    there = {parent: [unit.ranges[parent] for unit in units if parent in unit.ranges] for parent in named}
    return {
        parent: Interval(max(room.low for room in ranges), min(room.high for room in ranges))
        for parent, ranges in there.items()
    }


def _undetermined(evidence: Sequence[Evidence]) -> Iterator[str]:
    """What may have been otherwise, with the same bytes."""
    for parents, count in Counter(found.equal for found in evidence if len(found.equal) > 1).items():
        yield f"{count} units have the same bytes in {' and '.join(parents)}: which of them gave these, nothing shows"
    for parents, count in Counter(found.converted for found in evidence if len(found.converted) > 1).items():
        alike = f"{count} units of {' and '.join(parents)} have the same bytes once stored as the child's"
        yield f"{alike}: which of them gave these, nothing shows"
