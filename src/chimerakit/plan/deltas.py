"""Rules with a delta: such a rule mixes a unit only where a parent lies farther from the base than that.

How far parents lie is a question to weights, which planning does not read: it is given distances, and refuses where it
would have to guess.
"""

import math
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping

from chimerakit.anatomy import Anatomy
from chimerakit.plan.advice import way_out
from chimerakit.plan.claims import Claims, Lacks, claim_units, parts_of
from chimerakit.records import Recipe, Unit

Distances = Mapping[str, Mapping[str, float]]
"""For each parent how far its units lie from the base's, by unit: the RMS of the difference of their float32 values,
which is ||A - B||_F / sqrt(numel). NaN where values are not finite."""


def units_in_question(recipe: Recipe, base: Anatomy) -> dict[str, set[str]]:
    """For each parent the units whose distance from the base decides whether a rule with a delta mixes them."""
    parts = parts_of(recipe, base.num_layers)
    found: dict[str, set[str]] = defaultdict(set)
    for rule, unit in claim_units(recipe, base).in_order:
        if delta_of(recipe, rule) is not None:
            for name in parts(rule, unit.role.layer):
                found[name].add(unit.name)
    found.pop(recipe.base, None)
    return found


def delta_of(recipe: Recipe, rule: int | None) -> float | None:
    """The delta of a rule that has one; None for the base, which takes what no rule does."""
    return None if rule is None else recipe.rules[rule].delta


def settle(
    recipe: Recipe, rule: int | None, unit: Unit, parts: Mapping[str, float], distances: Distances
) -> Mapping[str, float] | list[str]:
    """A unit's shares once its rule's delta is heeded; or the parents of which nobody knows how far they are."""
    delta = delta_of(recipe, rule)
    if delta is None or not parts:
        return parts
    apart = {name: distances.get(name, {}).get(unit.name, math.nan) for name in parts if name != recipe.base}
    unknown = [name for name, distance in apart.items() if not math.isfinite(distance)]
    if unknown:
        return unknown
    return parts if max(apart.values(), default=0.0) > delta else {recipe.base: 1.0}


def undecided_units(
    recipe: Recipe, anatomies: Mapping[str, Anatomy], undecided: Lacks, claims: Claims, distances: Distances
) -> Iterable[str]:
    """What must be known before a delta can decide: a whole map, or the distance of single units."""
    base = recipe.base
    for parent in recipe.parents:
        lacks = {rule: units for (rule, name), units in undecided.items() if name == parent and rule is not None}
        if lacks and parent not in distances:
            folders = " ".join(shlex.quote(anatomies[name].checkpoint.place) for name in (base, parent))
            file = f"{base}-{parent}.npz"
            yield (
                f"the delta of rule {', '.join(str(rule + 1) for rule in sorted(lacks))} asks how far {parent!r} is from "
                f"the base {base!r}, which is not known: make a map with `chimerakit compare {folders} -o {file}` and "
                f"pass `--differences {file}`"
            )
            continue
        for rule, units in sorted(lacks.items()):
            first = next(iter(units))
            why = "its values are not finite" if first in distances[parent] else "the map does not have it"
            yield (
                f"the delta of rule {rule + 1} asks how far {parent!r} is from the base {base!r}, which is not known for "
                f"{len(units)} of its units, such as {first}: {why}; {way_out(units, claims.of_rule[rule], base)}"
            )
