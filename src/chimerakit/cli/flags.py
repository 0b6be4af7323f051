"""The flags that verbs share, and what they mean: flags -> recipes, parents, plans, numbers of bytes, places."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chimerakit.errors import OutputError, RecipeError

if TYPE_CHECKING:
    from chimerakit.plan.deltas import Distances
    from chimerakit.records import Checkpoint, Plan, Recipe

RecipeFile = Annotated[Path | None, typer.Argument(help="The recipe; without it, --base, --take and --mix say it.")]
ParentPaths = Annotated[
    list[str] | None, typer.Option("--parent", metavar="NAME=PATH", help="Where a parent lies. Once for each.")
]
Base = Annotated[str | None, typer.Option(help="Without a recipe: the parent that takes what no rule claims.")]
Takes = Annotated[
    list[str] | None,
    typer.Option("--take", metavar="NAME:COMPONENTS", help="Without a recipe: take whole, as r1:routed_experts."),
]
Mixes = Annotated[
    list[str] | None,
    typer.Option("--mix", metavar="NAME:COMPONENTS=SHARE", help="Without a recipe: mix, as r1:routed_experts=0.75."),
]
Dtype = Annotated[
    str | None, typer.Option(help="Without a recipe: how the child stores weights: keep, bf16, f16, f32, fp8-block.")
]
Differences = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="MAP.npz", help="Where rules have a delta: a map of the base and a parent. Once for each such parent."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output; also when that is no terminal.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Jobs at a time, at most; by default two more than cores.")]
MaxMemory = Annotated[
    str,
    typer.Option(metavar="SIZE", help="Memory that may be used, as 500MB or 1.5GiB; fewer jobs run at a time then."),
]

MAX_MEMORY = "2GiB"
_UNITS = {"": 1, **{p + b: k**n for k, b in ((1000, "B"), (1024, "iB")) for n, p in enumerate("KMGT", 1)}, "B": 1}


def plan_of(
    recipe: Path | None,
    parent: list[str] | None,
    base: str | None,
    take: list[str] | None,
    mix: list[str] | None,
    dtype: str | None,
    differences: list[Path] | None,
) -> "Plan":
    """The plan of a recipe, or of the flags that stand for one. RecipeError where they can't be read together."""
    from chimerakit.plan import make_plan
    from chimerakit.recipe import load_recipe, locate_parents, recipe_from_flags

    given = _paths_of(parent)
    if recipe is None:
        wanted = recipe_from_flags(tuple(given), base, take or (), mix or (), dtype)
        folder = Path()
    else:
        if flags := [n for n, v in (("--base", base), ("--take", take), ("--mix", mix), ("--dtype", dtype)) if v]:
            raise RecipeError(
                f"{', '.join(flags)} can't be used with a recipe", where="command line", do="edit the recipe"
            )
        wanted, folder = load_recipe(recipe), recipe.parent
    wanted, paths = locate_parents(wanted, given, folder)
    parents = _open_all(paths)
    return make_plan(wanted, parents, _distances_of(wanted, parents, differences))


def parents_of(parent: list[str] | None) -> "dict[str, Checkpoint]":
    """The parents that are given by name and place, opened."""
    return _open_all(_paths_of(parent))


def nbytes_of(max_memory: str) -> int:
    """A number of bytes as people write it."""
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([A-Za-z]*)", max_memory)
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if found is None or found[2].lower() not in units:
        raise RecipeError(
            "can't be read", where=f"--max-memory {max_memory}", expected="a size such as 500MB or 1.5GiB"
        )
    return int(float(found[1]) * units[found[2].lower()])


def check_new(file: Path, do: str) -> None:
    """Refuse a place for a file before work begins; do: what the user can do about it."""
    if file.exists() or not file.absolute().parent.is_dir():
        what = "is there already" if file.exists() else "its folder is not there"
        raise OutputError(what, where=file, do=do)


def _paths_of(parent: list[str] | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in parent or ():
        name, _, path = text.partition("=")
        if not name or not path:
            raise RecipeError("can't be read", where=f"--parent {text}", expected="--parent NAME=PATH")
        if name in found:
            raise RecipeError("is given twice", where=f"--parent {name}")
        found[name] = Path(path).expanduser()
    return found


def _open_all(paths: dict[str, Path]) -> "dict[str, Checkpoint]":
    from chimerakit.formats import open_checkpoint

    return {name: open_checkpoint(path) for name, path in paths.items()}


def _distances_of(
    recipe: "Recipe", parents: "dict[str, Checkpoint]", differences: list[Path] | None
) -> "Distances | None":
    """How far parents lie from the base, where maps of them are given."""
    if not differences:
        return None
    from chimerakit.deltas import read_distances

    return read_distances(recipe, parents, differences)
