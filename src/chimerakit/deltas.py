"""How far parents lie from the base, for recipes with a delta: read from difference maps, or measured again.

A plan may rest on a map, as long as headers, config and a sample of weights are those of these checkpoints. A proof may
not: it measures, what is in question only.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from chimerakit.anatomy import Anatomy
from chimerakit.compare import DifferenceMap, distances, load_map, measure_units
from chimerakit.errors import MapError
from chimerakit.events import Listener, ignore
from chimerakit.plan.deltas import units_in_question
from chimerakit.records import Checkpoint, Recipe
from chimerakit.runners import Runner
from chimerakit.runners.local import LOCAL


def read_distances(
    recipe: Recipe, parents: Mapping[str, Checkpoint], maps: Sequence[Path | str]
) -> dict[str, dict[str, float]]:
    """For `make_plan`: what difference maps say, each of the base and whichever parent it turns out to be of.

    Raises MapError for a file that is no map, one that is of no parent with the base, or a second one of the same.
    """
    found: dict[str, dict[str, float]] = {}
    given: dict[str, Path | str] = {}
    for path in maps:
        fitting = _fitting(load_map(path), recipe.base, parents)
        if not fitting:
            raise MapError(
                "is of other checkpoints",
                where=path,
                expected=f"the base {recipe.base!r} and one of {', '.join(n for n in parents if n != recipe.base)}",
                do=f"chimerakit compare {parents[recipe.base].place} PARENT -o MAP.npz",
            )
        for name, apart in fitting.items():
            if name in given:
                raise MapError(f"is a second map of {recipe.base!r} and {name!r}", where=path, found=given[name])
            found[name], given[name] = apart, path
    return found


def _fitting(found: DifferenceMap, base: str, parents: Mapping[str, Checkpoint]) -> dict[str, dict[str, float]]:
    """The parents that a map is of, with the base; several only where one checkpoint has several names."""
    fitting = {}
    for name, parent in parents.items():
        if name != base:
            with suppress(MapError):
                fitting[name] = distances(found, parents[base], parent)
    return fitting


def measure_distances(
    recipe: Recipe,
    parents: Mapping[str, Checkpoint],
    *,
    runner: Runner = LOCAL,
    listener: Listener = ignore,
) -> dict[str, dict[str, float]]:
    """For `make_plan`: the same from the weights of the units that a delta decides on; nothing is read if there is none.

    runner: where jobs are done. Raises PlanError (memory), CheckpointError.
    """
    base = parents[recipe.base]
    found = {}
    for name, units in units_in_question(recipe, Anatomy(base)).items():
        found[name] = measure_units(base, parents[name], units, runner=runner, listener=listener)
    return found
