"""Explanations -> tables on a terminal, a recipe in a file, or JSON."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from chimerakit._version import __version__
from chimerakit.cli.show import MOST_SHOWN, add_row, make_grid, print_grid, terminal_width
from chimerakit.errors import RecipeError, printable
from chimerakit.explain import Explanation
from chimerakit.explain.sample import Sampled
from chimerakit.recipe import recipe_to_data, recipe_to_yaml, say_rule
from chimerakit.records import Recipe
from chimerakit.report.saved import head_of
from chimerakit.report.words import say_estimate, say_nonfinite, say_way, say_ways, ways_of
from chimerakit.stores.part import write_file
from chimerakit.words import say_nbytes


def parse_share(text: str) -> float:
    """A share as `--sample` takes it: 1%, or 0.01."""
    number, is_percent = (text[:-1], True) if text.endswith("%") else (text, False)
    try:
        share = float(number) / (100 if is_percent else 1)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise RecipeError(
            "can't be read", where=f"--sample {text}", expected="more than 0 and at most all, as 1% or 0.01"
        )
    return share


def save_recipe(recipe: Recipe, output: Path) -> None:
    """Write a recipe for `chimerakit merge`."""
    write_file(output, recipe_to_yaml(recipe).encode())


def explanation_view(found: Explanation, child: Path, *, detail: bool) -> dict[str, Any]:
    """The explanation of a child as data; with `detail` every unit, so that `chimerakit report` can show it."""
    return {
        **head_of("explanation", __version__, detail=detail),
        "child": str(child),
        "parents": found.parents,
        "is_explained": found.is_explained,
        "recipe": None if found.recipe is None else recipe_to_data(found.recipe),
        "components": ways_of(found.units),
        "estimates": found.estimates(),
        "unlike": found.unlike,
        "undetermined": found.undetermined,
        "differences": found.differences,
        "nonfinite": found.nonfinite,
        "sample": None if found.sample is None else {**asdict(found.sample), "at_most": found.sample.at_most},
        "missing": found.missing,
        "units": [unit for unit in found.units if detail or not unit.is_given],
    }


def print_explanation(found: Explanation, *, detail: bool) -> None:
    """The table that people printed by hand, the recipe, and what no recipe says."""
    _print_units(found, detail=detail)
    if found.recipe is not None:
        _print_recipe(found.recipe)
    if found.nonfinite:
        print(f"note: {say_nonfinite(found.nonfinite)}")
    if found.sample is not None:
        print(_say_sample(found.sample))
    for estimate in found.estimates():
        print(printable(f"estimate: {say_estimate(estimate)}; another program made them ({estimate.encoder})"))
    for verdict in ("estimated", "unexplained"):
        _print_some([f"{verdict}: {unit.unit}: {unit.why}" for unit in found.units if unit.verdict == verdict])
    for parent, names in found.missing.items():
        if names:
            print(printable(f"the child lacks {len(names)} units of {parent!r}, such as {names[0]}"))
    _print_some([f"note: {says}" for says in (*found.unlike, *found.undetermined)])
    for parent, says_all in found.differences.items():
        for says in says_all:
            print(printable(f"differs from {parent}: {says}"))


def _print_some(lines: Sequence[str]) -> None:
    for line in lines[:MOST_SHOWN]:
        print(printable(line))
    if len(lines) > MOST_SHOWN:
        print(f"and {len(lines) - MOST_SHOWN} more (--json shows all)")


def _say_sample(sample: Sampled) -> str:
    return (
        f"a sample: {sample.units} of {sample.all_units} units in {say_nbytes(sample.nbytes)} of "
        f"{say_nbytes(sample.all_nbytes)} (seed {sample.seed}). It proves nothing; were more than {sample.at_most:.2%} of "
        "all units otherwise there, it would have shown one with 95 % confidence"
    )


def _print_units(found: Explanation, *, detail: bool) -> None:
    grid = make_grid("", *(["unit"] if detail else ["component", "units"]), "bytes", "the child is")
    if detail:
        for unit in found.units:
            add_row(grid, unit.unit, say_nbytes(unit.nbytes), say_way(unit))
    else:
        for component, ways in ways_of(found.units).items():
            nbytes = sum(unit.nbytes for unit in found.units if unit.role.component == component)
            add_row(grid, component, sum(ways.values()), say_nbytes(nbytes), say_ways(ways))
    print_grid(grid, terminal_width())


def _print_recipe(recipe: Recipe) -> None:
    print("\nThe recipe:")
    print(f"  {recipe.base} is the base" + ("" if recipe.rules else ", and all of the child"))
    for number, rule in enumerate(recipe.rules, 1):
        print(printable(f"  {number}. {say_rule(rule)}"))
