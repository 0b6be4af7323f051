"""The flags that verbs share, and what they mean: flags -> recipes, parents, plans, numbers of bytes, places."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chimerakit.errors import OutputError, RecipeError
from chimerakit.words import parse_nbytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from chimerakit.plan.deltas import Distances
    from chimerakit.recipe import Ranges
    from chimerakit.records import Checkpoint, ImatrixFile, Plan, Recipe
    from chimerakit.runners import Runner

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
    str | None,
    typer.Option(
        help="Without a recipe: how the child stores weights: keep, bf16, f16, f32, fp8-block; GGUF: q8_0, q4_k, ..."
    ),
]
ByImatrix = Annotated[
    Path | None,
    typer.Option("--imatrix", metavar="FILE", help="GGUF: the importance matrix that quants are encoded by."),
]
SplitMaxSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="GGUF: cut the child into files of at most so many bytes of weights, such as 48GB."
    ),
]
Differences = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="MAP.npz", help="Where rules have a delta: a map of the base and a parent. Once for each such parent."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output; also when that is no terminal.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Jobs at a time, at most; by default two more than cores.")]
MaxMemory = Annotated[
    str,
    typer.Option(metavar="SIZE", help="Memory that may be used, as 500MB or 1.5GiB; fewer jobs run at a time then."),
]

RunnerName = Annotated[
    str,
    typer.Option(
        "--runner",
        metavar="threads|ray[:ADDRESS]",
        help="Who does the jobs: this machine, or a Ray cluster (docs/machines.md).",
    ),
]

MAX_MEMORY = "2GiB"
THREADS = "threads"


def plan_of(
    recipe: Path | None,
    parent: list[str] | None,
    base: str | None,
    take: list[str] | None,
    mix: list[str] | None,
    dtype: str | None,
    differences: list[Path] | None,
    split_max_size: str | None = None,
    imatrix: Path | None = None,
) -> "Plan":
    """The plan of a recipe, or of the flags that stand for one. RecipeError where they can't be read together."""
    from msgspec.structs import replace

    from chimerakit.plan import make_plan
    from chimerakit.recipe import load_recipe, locate_parents, recipe_from_flags

    given = paths_of(parent)
    if recipe is None:
        wanted = recipe_from_flags(tuple(given), base, take or (), mix or (), dtype)
        folder = Path()
    else:
        if flags := [n for n, v in (("--base", base), ("--take", take), ("--mix", mix), ("--dtype", dtype)) if v]:
            raise RecipeError(
                f"{', '.join(flags)} can't be used with a recipe", where="command line", do="edit the recipe"
            )
        wanted, folder = load_recipe(recipe), recipe.parent
    if split_max_size is not None:
        limit = nbytes_of(split_max_size, "--split-max-size")
        if not limit:
            raise RecipeError("is no size", where=f"--split-max-size {split_max_size}", expected="more than 0")
        wanted = replace(wanted, output=replace(wanted.output, split_max_size=limit))
    wanted, paths = locate_parents(wanted, given, folder)
    parents = _open_all(paths)
    distances = _distances_of(wanted, parents, differences)
    return make_plan(wanted, parents, distances, imatrix=opened_imatrix(imatrix))


def is_for_several(recipe: Path) -> bool:
    """Whether a recipe has ranges."""
    from chimerakit.recipe import load_ranges

    return bool(load_ranges(recipe).axes)


def ranges_of(
    recipe: Path, parent: list[str] | None, differences: list[Path] | None
) -> "tuple[Ranges, dict[str, Checkpoint], Callable[[Recipe], Distances | None]]":
    """A recipe with ranges, its parents, and how far they lie from the base, for rules with a delta."""
    from msgspec.structs import replace

    from chimerakit.recipe import load_ranges, locate_parents

    ranges = load_ranges(recipe)
    first, paths = locate_parents(ranges.candidates()[0].recipe, paths_of(parent), recipe.parent)
    parents = _open_all(paths)
    ranges = replace(ranges, data=ranges.data | {"parents": first.parents})
    return ranges, parents, lambda wanted: _distances_of(wanted, parents, differences)


def opened_imatrix(path: Path | None) -> "ImatrixFile | None":
    """An importance matrix file that is given, opened."""
    from chimerakit.formats.imatrix import open_imatrix

    return None if path is None else open_imatrix(path)


def parents_of(parent: list[str] | None) -> "dict[str, Checkpoint]":
    """The parents that are given by name and place, opened."""
    return _open_all(paths_of(parent))


def runner_of(threads: int | None, max_memory: str, name: str = THREADS) -> "Runner":
    """Who does the jobs. RecipeError for a name that nobody has; MissingExtraError."""
    if name == THREADS:
        from chimerakit.runners.local import Threads

        return Threads(threads, nbytes_of(max_memory))
    kind, _, address = name.partition(":")
    if kind != "ray":
        raise RecipeError("is no runner", where=f"--runner {name}", expected="threads, ray, or ray:ADDRESS")
    from chimerakit.runners.ray import Ray

    if threads is not None:
        raise RecipeError("belongs to threads", where="--threads", do="a cluster decides by its CPUs: leave it out")
    return Ray(address or None, nbytes_of(max_memory))


def nbytes_of(text: str, flag: str = "--max-memory") -> int:
    """A number of bytes as people write it."""
    found = parse_nbytes(text)
    if found is None:
        raise RecipeError("can't be read", where=f"{flag} {text}", expected="a size such as 500MB or 1.5GiB")
    return found


def check_new(file: Path, do: str) -> None:
    """Refuse a place for a file before work begins; do: what the user can do about it."""
    if file.exists() or not file.absolute().parent.is_dir():
        what = "is there already" if file.exists() else "its folder is not there"
        raise OutputError(what, where=file, do=do)


def paths_of(given: list[str] | None, flag: str = "--parent") -> dict[str, Path]:
    """Names and places as `NAME=PATH` gives them."""
    found: dict[str, Path] = {}
    for text in given or ():
        name, _, path = text.partition("=")
        if not name or not path:
            raise RecipeError("can't be read", where=f"{flag} {text}", expected=f"{flag} NAME=PATH")
        if name in found:
            raise RecipeError("is given twice", where=f"{flag} {name}")
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
