"""The recipe language: YAML text -> Recipe, every mistake answered with the right word.

    parents: {v3: /models/V3, r1: /models/R1}
    base: v3
    rules:
      - take: r1
        components: routed_experts

    text.py      YAML -> data
    parse.py     data -> Recipe
    shares.py    what a mix may say, and what it comes to in one layer
    say.py       Recipe -> data, YAML, one line
    command.py   parents' places and rules from the command line
    ranges.py    recipes with ranges -> those of all children
    mergekit.py  the answer to a configuration of another tool

Scalars are read by YAML 1.2's core rules, so that `3:59` is no number of seconds, `no` no truth value, and `1e-3` a
number. Duplicate keys, anchors, aliases and tags are refused. What is written here holds intent only; which tensors a rule
takes is decided by the planner.
"""

from pathlib import Path
from typing import Any

from chimerakit.errors import CheckpointError, RecipeError
from chimerakit.recipe.command import locate_parents, recipe_from_flags, without_places
from chimerakit.recipe.mergekit import answer_mergekit, is_mergekit
from chimerakit.recipe.parse import recipe_from_data
from chimerakit.recipe.ranges import Axis, Candidate, Ranges, has_ranges, read_ranges, sweep_axis
from chimerakit.recipe.say import recipe_to_data, recipe_to_yaml, say_rule
from chimerakit.recipe.shares import SUM_TOLERANCE, check_shares, shares_at
from chimerakit.recipe.text import MAX_TEXT, load_yaml
from chimerakit.records import Recipe
from chimerakit.stores.local import read_file

__all__ = [
    "MAX_TEXT",
    "SUM_TOLERANCE",
    "Axis",
    "Candidate",
    "Ranges",
    "check_shares",
    "has_ranges",
    "load_ranges",
    "load_recipe",
    "locate_parents",
    "parse_recipe",
    "read_ranges",
    "recipe_from_data",
    "recipe_from_flags",
    "recipe_to_data",
    "recipe_to_yaml",
    "say_rule",
    "shares_at",
    "sweep_axis",
    "without_places",
]


def load_recipe(path: Path | str) -> Recipe:
    """The recipe in a file; parents' relative paths are meant from the file's folder."""
    return parse_recipe(_read(Path(path)), where=path)


def load_ranges(path: Path | str) -> Ranges:
    """The recipe with ranges in a file; one without any has one child."""
    return read_ranges(_parse(_read(Path(path)), path), path)


def parse_recipe(text: str, where: object = "recipe") -> Recipe:
    """The recipe that a text says."""
    data = _parse(text, where)
    if has_ranges(data):
        raise RecipeError("has ranges, so it is for several children", where=where, do=f"chimerakit sweep {where}")
    return recipe_from_data(data, where)


def _read(path: Path) -> str:
    if not path.is_file():
        raise RecipeError("there is no such recipe", where=path)
    if (nbytes := path.stat().st_size) > MAX_TEXT:
        raise RecipeError("is too long for a recipe", where=path, found=f"{nbytes} bytes")
    try:
        return read_file(path, MAX_TEXT).decode("utf-8")
    except UnicodeDecodeError as e:
        raise RecipeError(f"is not UTF-8 text (byte {e.start})", where=path) from e
    except CheckpointError as e:
        raise RecipeError(str(e).splitlines()[0]) from e


def _parse(text: str, where: object) -> Any:
    data = load_yaml(text, where)
    if is_mergekit(data):
        answer_mergekit(data, where)
    return data
