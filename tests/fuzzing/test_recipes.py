"""Nearly right recipes: a recipe that says itself again, or one clear RecipeError; and soon."""

import json
import time

from chimerakit.errors import RecipeError
from chimerakit.recipe import parse_recipe, recipe_from_data, recipe_to_data, recipe_to_yaml, say_rule
from chimerakit.records import Recipe
from tests.fuzzing import LEAST_ACCEPTED, is_clear, recipes, reproducible, seeds

_SECONDS = 5
"""Of one core: a thousand times what a recipe takes, so that only a trap takes longer."""


def parse(text: str) -> Recipe | None:
    """The recipe that a text says, None if it is refused."""
    try:
        return parse_recipe(text)
    except RecipeError as e:
        refusal = str(e)
    assert is_clear(refusal), refusal
    return None


def check_saying(recipe: Recipe) -> None:
    """A recipe said as YAML, as data and through JSON is the same recipe, and each rule is one line."""
    text = recipe_to_yaml(recipe)
    assert parse_recipe(text) == recipe
    assert recipe_from_data(json.loads(json.dumps(recipe_to_data(recipe)))) == recipe
    assert all(len(say_rule(rule).splitlines()) == 1 for rule in recipe.rules)


def test_recipes_say_themselves_again_or_are_refused_with_one_clear_error() -> None:
    """Of random texts each is a recipe whose saying parses to it, or a RecipeError of a few printable lines."""
    accepted, all_seeds = 0, seeds(quick=200, ci=4_000, prove=30_000)
    for seed in all_seeds:
        text = recipes.make(seed)
        with reproducible(seed, text):
            before = time.process_time()
            recipe = parse(text)
            assert time.process_time() - before < _SECONDS
            if recipe is not None:
                accepted += 1
                check_saying(recipe)
    assert accepted >= LEAST_ACCEPTED * len(all_seeds)


def test_every_style_of_yaml_says_the_same() -> None:
    """A right recipe is accepted in block and flow style, plain and quoted, as what its data says."""
    for seed in seeds(quick=50, ci=500, prove=5_000):
        data, text = recipes.plain(seed)
        with reproducible(seed, text):
            assert parse_recipe(text) == recipe_from_data(data)
