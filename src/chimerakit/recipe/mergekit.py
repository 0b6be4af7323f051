"""A mergekit configuration given by mistake is answered with the recipe that says the same, where there is one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from chimerakit.errors import RecipeError
from chimerakit.recipe.parse import recipe_from_data
from chimerakit.recipe.say import recipe_to_yaml
from chimerakit.records import Recipe

_KEYS = ("merge_method", "models", "slices", "modules", "base_model")


def is_mergekit(data: object) -> bool:
    """Whether parsed YAML is a mergekit configuration."""
    return isinstance(data, dict) and not data.keys().isdisjoint(_KEYS)


def answer_mergekit(top: Mapping[str, Any], where: object) -> NoReturn:
    """Refuse a mergekit configuration, saying what it would be here where that can be said."""
    method = top.get("merge_method")
    build: Callable[[Mapping[str, Any]], Recipe | None] = {
        "linear": _from_linear,
        "passthrough": _from_passthrough,
    }.get(str(method), lambda _: None)
    try:
        recipe = build(top)
    except (RecipeError, TypeError, ValueError, AttributeError, LookupError):
        recipe = None
    if recipe is None:
        raise RecipeError(
            "is a mergekit configuration",
            where=where,
            expected="a recipe with parents, base and rules",
            found=f"merge_method: {method}",
            do="chimerakit takes tensors whole or mixes them linearly; no rule says exactly this",
        )
    says = "\n            ".join(recipe_to_yaml(recipe).splitlines())
    raise RecipeError(
        "is a mergekit configuration", where=where, do=f"the recipe that says the same:\n            {says}"
    )


def _from_linear(top: Mapping[str, Any]) -> Recipe | None:
    """A linear merge of whole models, weights as numbers, gradients of two ends, or substring filters."""
    models = top.get("models")
    if not isinstance(models, list) or not models:
        return None
    names = _mergekit_names(models)
    weights = [(m.get("parameters") or top.get("parameters") or {}).get("weight", 1.0) for m in models]
    base = next((n for n, path in names.items() if path == top.get("base_model")), "m1")
    normalize = bool((top.get("parameters") or {}).get("normalize", True))
    filters = dict.fromkeys(
        w["filter"] for ws in weights if isinstance(ws, list) for w in ws if isinstance(w, dict) and "filter" in w
    )
    rules: list[dict[str, Any]] = []
    for substring in [*(f for f in filters if f not in (None, "*")), None]:
        mix = {name: _mergekit_weight(ws, substring) for name, ws in zip(names, weights, strict=True)}
        if substring is not None:
            rules.append({"mix": mix, "normalize": normalize, "tensors": f"*{substring}*"})
            continue
        if any(isinstance(share, dict) for share in mix.values()):
            # A gradient knows layers only; there, what lies before them has the first value and what lies after, the last.
            ends = [{n: s[end] if isinstance(s, dict) else s for n, s in mix.items()} for end in ("from", "to")]
            rules.append({"mix": mix, "normalize": normalize, "tensors": "*.layers.*"})
            rules.append({"mix": ends[0], "normalize": normalize, "components": "embedding"})
            mix = ends[1]
        rules.append({"mix": mix, "normalize": normalize, "components": "all"})
    return _mergekit_recipe(top, names, base, rules)


def _from_passthrough(top: Mapping[str, Any]) -> Recipe | None:
    """One whole model as it is."""
    models = top.get("models")
    if not isinstance(models, list) or len(models) != 1 or models[0].get("parameters") or top.get("parameters"):
        return None
    return _mergekit_recipe(top, _mergekit_names(models), "m1", [{"take": "m1", "components": "all"}])


def _mergekit_recipe(
    top: Mapping[str, Any], names: Mapping[str, str], base: str, rules: Sequence[Mapping[str, Any]]
) -> Recipe:
    dtype = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}.get(str(top.get("out_dtype") or top.get("dtype")))
    output = {} if dtype is None else {"output": {"dtype": dtype}}
    return recipe_from_data({"parents": dict(names), "base": base, "rules": list(rules), **output})


def _mergekit_names(models: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    paths = [m["model"] for m in models]
    if not all(isinstance(path, str) for path in paths):
        raise ValueError(paths)
    return {f"m{i}": path for i, path in enumerate(paths, 1)}


def _mergekit_weight(weight: Any, substring: str | None) -> Any:
    if not isinstance(weight, list):
        return weight
    if all(isinstance(w, int | float) for w in weight) and len(weight) == 2:
        return {"from": weight[0], "to": weight[1]}
    for choice in weight:
        if choice.get("filter") in (substring, None, "*"):
            return choice["value"]
    raise ValueError(weight)
