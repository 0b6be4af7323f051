"""What the command line adds to a recipe: where parents lie, and rules given as flags."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from chimerakit.errors import RecipeError
from chimerakit.recipe.parse import check_parent, recipe_from_data
from chimerakit.records import Recipe

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9._-]+)?")


def without_places(recipe: Recipe) -> Recipe:
    """The recipe with nothing but hub names as parents: what a child may say of where it comes from."""
    names = {n: w if w is not None and _HUB_NAME.fullmatch(w) else None for n, w in recipe.parents.items()}
    return msgspec.structs.replace(recipe, parents=names)


def locate_parents(recipe: Recipe, given: Mapping[str, Path], folder: Path) -> tuple[Recipe, dict[str, Path]]:
    """Where each parent lies, and the recipe without paths of this machine.

    given: from the command line, and it wins; folder: where the recipe's own relative paths are meant from. A hub name
    stays in the recipe (it says what the parent is), but can't be read from.
    """
    for name in given:
        check_parent(name, recipe.parents, "--parent")
    paths, names = dict[str, Path](), dict[str, str | None]()
    for name, written in recipe.parents.items():
        here = None if written is None else folder / os.path.expanduser(written)  # noqa: PTH111 - leaves ~nobody as it is
        is_there = here is not None and os.path.exists(here)  # noqa: PTH110 - False for what can't be a path
        if name in given:
            paths[name] = given[name]
            is_hub_name = written is not None and not is_there and _HUB_NAME.fullmatch(written)
            names[name] = written if is_hub_name else None
        elif here is not None and is_there:
            paths[name], names[name] = here, None
        elif written is not None and _HUB_NAME.fullmatch(written):
            raise RecipeError(
                f"the parent {name!r} is {written!r}, which is no folder here; parents on a hub can't be read yet",
                where="parents",
                do=f"download it and say where it is: --parent {name}=PATH",
            )
        else:
            raise RecipeError(
                f"where is the parent {name!r}?",
                where="parents",
                found="nothing said" if written is None else f"{here}: no such file or folder",
                do=f"--parent {name}=PATH",
            )
    return msgspec.structs.replace(recipe, parents=names), paths


def recipe_from_flags(
    parents: Sequence[str], base: str | None, takes: Sequence[str], mixes: Sequence[str], dtype: str | None
) -> Recipe:
    """The recipe that `--parent --base --take --mix --dtype` say: first all takes, then all mixes, each as given.

    takes: "PARENT:COMPONENTS"; mixes: "PARENT:COMPONENTS=SHARE"; components are joined by commas.
    """
    if base is None and len(parents) == 1:
        base = parents[0]
    if base is None:
        raise RecipeError("which parent is the base?", where="command line", expected="--base NAME", found="no --base")
    rules = [_flag_rule("--take", text, r"(?P<parent>[^:]+):(?P<what>[^=]+)", "r1:routed_experts") for text in takes]
    rules += [
        _flag_rule("--mix", text, r"(?P<parent>[^:]+):(?P<what>[^=]+)=(?P<share>.+)", "r1:routed_experts=0.75")
        for text in mixes
    ]
    data = {
        "parents": dict.fromkeys(parents),
        "base": base,
        "rules": rules,
        "output": {} if dtype is None else {"dtype": dtype},
    }
    return recipe_from_data(data, "command line")


def _flag_rule(flag: str, text: str, pattern: str, example: str) -> dict[str, Any]:
    match = re.fullmatch(pattern, text)
    if match is None:
        raise RecipeError("can't be read", where=f"{flag} {text}", expected=f"{flag} {example}")
    rule: dict[str, Any] = {"components": match["what"].split(",")}
    if flag == "--take":
        return {"take": match["parent"], **rule}
    try:
        share = float(match["share"])
    except ValueError as e:
        raise RecipeError("the share is no number", where=f"{flag} {text}", expected=f"{flag} {example}") from e
    return {"mix": {match["parent"]: share}, **rule}
