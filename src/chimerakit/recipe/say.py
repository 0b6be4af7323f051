"""Recipe -> its own language; parsing that gives the recipe back."""

from collections.abc import Sequence
from typing import Any

import yaml

from chimerakit.recipe.parse import OUTPUT_KEYS
from chimerakit.recipe.text import Dumper
from chimerakit.records import COMPONENTS, Gradient, Output, Recipe, Rule


def recipe_to_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe in its own language; parsing it gives the recipe back."""
    data: dict[str, Any] = {"parents": dict(recipe.parents), "base": recipe.base}
    if recipe.rules:
        data["rules"] = [_rule_to_data(rule) for rule in recipe.rules]
    default = Output()
    output = {k: getattr(recipe.output, k) for k in OUTPUT_KEYS if getattr(recipe.output, k) != getattr(default, k)}
    if output:
        data["output"] = output
    return data


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe as text."""
    return str(yaml.dump(recipe_to_data(recipe), Dumper=Dumper, sort_keys=False, default_flow_style=None, width=100))


def _rule_to_data(rule: Rule) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if rule.take is not None:
        data["take"] = rule.take
    if rule.mix is not None:
        data["mix"] = {
            name: {"from": share.start, "to": share.stop} if isinstance(share, Gradient) else share
            for name, share in rule.mix.items()
        }
    if rule.normalize is not None:
        data["normalize"] = rule.normalize
    if rule.delta is not None:
        data["delta"] = rule.delta
    if rule.components is not None:
        data["components"] = "all" if rule.components == COMPONENTS else _one_or_list(rule.components)
    for key in ("layers", "experts"):
        if (spans := getattr(rule, key)) is not None:
            data[key] = _one_or_list([str(s) for s in spans])
    if rule.tensors is not None:
        data["tensors"] = _one_or_list(rule.tensors)
    if rule.mtp is not None:
        data["mtp"] = rule.mtp
    return data


def _one_or_list(items: Sequence[str]) -> str | list[str]:
    return items[0] if len(items) == 1 else list(items)


def say_rule(rule: Rule) -> str:
    """A rule in one line."""
    data = _rule_to_data(rule)
    return str(yaml.dump(data, Dumper=Dumper, sort_keys=False, default_flow_style=True, width=10**6)).strip()[1:-1]
