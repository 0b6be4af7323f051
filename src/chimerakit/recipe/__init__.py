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
    mergekit.py  the answer to a configuration of another tool

Scalars are read by YAML 1.2's core rules, so that `3:59` is no number of seconds, `no` no truth value, and `1e-3` a
number. Duplicate keys, anchors, aliases and tags are refused. What is written here holds intent only; which tensors a rule
takes is decided by the planner.
"""

from pathlib import Path

from chimerakit.errors import CheckpointError, RecipeError
from chimerakit.recipe.command import locate_parents, recipe_from_flags, without_places
from chimerakit.recipe.mergekit import answer_mergekit, is_mergekit
from chimerakit.recipe.parse import recipe_from_data
from chimerakit.recipe.say import recipe_to_data, recipe_to_yaml, say_rule
from chimerakit.recipe.shares import SUM_TOLERANCE, check_shares, shares_at
from chimerakit.recipe.text import MAX_TEXT, load_yaml
from chimerakit.records import Recipe
from chimerakit.stores.local import read_file

__all__ = [
    "MAX_TEXT",
    "SUM_TOLERANCE",
    "check_shares",
    "load_recipe",
    "locate_parents",
    "parse_recipe",
    "recipe_from_data",
    "recipe_from_flags",
    "recipe_to_data",
    "recipe_to_yaml",
    "say_rule",
    "shares_at",
    "without_places",
]


def load_recipe(path: Path | str) -> Recipe:
    """The recipe in a file; parents' relative paths are meant from the file's folder."""
    path = Path(path)
    if not path.is_file():
        raise RecipeError("there is no such recipe", where=path)
    if (nbytes := path.stat().st_size) > MAX_TEXT:
        raise RecipeError("is too long for a recipe", where=path, found=f"{nbytes} bytes")
    try:
        text = read_file(path, MAX_TEXT).decode("utf-8")
    except UnicodeDecodeError as e:
        raise RecipeError(f"is not UTF-8 text (byte {e.start})", where=path) from e
    except CheckpointError as e:
        raise RecipeError(str(e).splitlines()[0]) from e
    return parse_recipe(text, where=path)


def parse_recipe(text: str, where: object = "recipe") -> Recipe:
    """The recipe that a text says."""
    data = load_yaml(text, where)
    if is_mergekit(data):
        answer_mergekit(data, where)
    return recipe_from_data(data, where)
