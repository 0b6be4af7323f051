"""The verbs and their flags."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chimerakit._version import __version__
from chimerakit.errors import RecipeError

if TYPE_CHECKING:
    from chimerakit.records import Checkpoint, Plan

app = typer.Typer(
    name="chimerakit",
    help="Build, prove and measure Chimera models: children of Mixture-of-Experts parents, assembled tensor by tensor.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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

_MAX_MEMORY = "2GiB"
_UNITS = {"": 1, **{p + b: k**n for k, b in ((1000, "B"), (1024, "iB")) for n, p in enumerate("KMGT", 1)}, "B": 1}


def _version(is_asked: bool) -> None:
    if is_asked:
        print(f"chimerakit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    del version


@app.command()
def plan(
    recipe: RecipeFile = None,
    parent: ParentPaths = None,
    base: Base = None,
    take: Takes = None,
    mix: Mixes = None,
    dtype: Dtype = None,
    differences: Differences = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The child's folder, to be checked too.")
    ] = None,
    threads: Threads = None,
    max_memory: MaxMemory = _MAX_MEMORY,
    as_json: AsJson = False,
    full: Annotated[bool, typer.Option("--full", help="With --json: every row and every byte range.")] = False,
) -> None:
    """The dry run: what each rule takes, what is read and written, and everything that is wrong. Reads headers only."""
    import gc

    from chimerakit.cli import show

    gc.disable()  # a plan is half a million objects without cycles, and the process ends with it

    made = _make_plan(recipe, parent, base, take, mix, dtype, differences)
    if output is not None:
        from chimerakit.merge import check_finished
        from chimerakit.output import check_output, is_finished

        check_output(made, output)
        if is_finished(output):
            check_finished(made, output)
    view = show.plan_view(made, output, threads, _nbytes(max_memory, "--max-memory"))
    if as_json or full or not sys.stdout.isatty():
        show.print_json(made if full else view)
    else:
        show.print_plan(view)


@app.command()
def merge(
    output: Annotated[Path, typer.Option("-o", "--output", help="The child's folder: empty, or an unfinished child.")],
    recipe: RecipeFile = None,
    parent: ParentPaths = None,
    base: Base = None,
    take: Takes = None,
    mix: Mixes = None,
    dtype: Dtype = None,
    differences: Differences = None,
    digest: Annotated[str, typer.Option(help="xxh3, or sha256 to record that too.")] = "xxh3",
    allow_nonfinite: Annotated[bool, typer.Option("--allow-nonfinite", help="Carry NaN and infinity along.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Delete the child that stands there and start over.")] = False,
    link: Annotated[
        bool,
        typer.Option("--link", help="Weight files that equal a parent's become hard links to it: one file, two names."),
    ] = False,
    threads: Threads = None,
    max_memory: MaxMemory = _MAX_MEMORY,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make the child. Call it again after an interruption: it goes on and ends in the same bytes."""
    from chimerakit.cli import show
    from chimerakit.cli.progress import watching
    from chimerakit.merge import merge_parents

    if digest not in ("xxh3", "sha256"):
        raise RecipeError(f"unknown digest {digest!r}", where="--digest", expected="xxh3 or sha256")
    made = _make_plan(recipe, parent, base, take, mix, dtype, differences)
    with watching(quiet=quiet) as listener:
        merged = merge_parents(
            made,
            output,
            threads=threads,
            max_memory=_nbytes(max_memory, "--max-memory"),
            force=force,
            link=link,
            allow_nonfinite=allow_nonfinite,
            sha256=digest == "sha256",
            listener=listener,
        )
    view = show.merge_view(output, merged)
    if as_json or not sys.stdout.isatty():
        show.print_json(view)
    else:
        show.print_merge(view)


@app.command()
def verify(
    child: Annotated[Path, typer.Argument(help="The child's folder.")],
    parent: ParentPaths = None,
    table: Annotated[
        bool, typer.Option("--table", help="Compare every unit with the parents'; needs no manifest.")
    ] = False,
    codes: Annotated[
        bool, typer.Option("--codes", help="With --table: compare stored codes without their scales.")
    ] = False,
    detail: Annotated[bool, typer.Option("--detail", help="With --table: per layer and expert.")] = False,
    threads: Threads = None,
    max_memory: MaxMemory = _MAX_MEMORY,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check a child's bytes against its manifest; with --parent, prove them against the parents."""
    from chimerakit.cli import show
    from chimerakit.cli.progress import watching

    if (codes or detail) and not table:
        raise RecipeError("--codes and --detail belong to --table", where="verify")
    parents = _open_parents(_paths(parent))
    is_json = as_json or not sys.stdout.isatty()
    if table:
        from chimerakit.table import verify_table

        if not parents:
            raise RecipeError("--table compares with parents", where="verify", do="--parent NAME=PATH for each")
        with watching(quiet=quiet) as listener:
            found = verify_table(
                child,
                parents,
                codes=codes,
                threads=threads,
                max_memory=_nbytes(max_memory, "--max-memory"),
                listener=listener,
            )
        if is_json:
            show.print_json(show.table_view(found, detail=detail))
        else:
            show.print_table(found, detail=detail)
        raise typer.Exit(0 if found.is_explained else 1)
    from chimerakit.verify import verify_child

    with watching(quiet=quiet) as listener:
        findings = verify_child(
            child,
            parents or None,
            threads=threads,
            max_memory=_nbytes(max_memory, "--max-memory"),
            listener=listener,
        )
    if is_json:
        show.print_json(show.findings_view(findings))
    else:
        show.print_findings(findings)
    raise typer.Exit(0 if findings.ok else 1)


@app.command()
def explain(
    child: Annotated[Path, typer.Argument(help="The child: a folder, or one weight file.")],
    parent: ParentPaths = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="RECIPE.yaml", help="Write the recipe there.")
    ] = None,
    detail: Annotated[bool, typer.Option("--detail", help="Every unit.")] = False,
    threads: Threads = None,
    max_memory: MaxMemory = _MAX_MEMORY,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the recipe that makes a child of these parents, from its weights alone."""
    from chimerakit.cli import explained, show
    from chimerakit.cli.progress import watching
    from chimerakit.explain import explain_child

    explained.check_recipe_file(output)
    parents = _open_parents(_paths(parent))
    with watching(quiet=quiet) as listener:
        found = explain_child(
            child, parents, threads=threads, max_memory=_nbytes(max_memory, "--max-memory"), listener=listener
        )
    if output is not None and found.recipe is not None:
        explained.save_recipe(found.recipe, output)
    if as_json or not sys.stdout.isatty():
        show.print_json(explained.explanation_view(found, detail=detail))
    else:
        explained.print_explanation(found, detail=detail)
    raise typer.Exit(0 if found.is_explained else 1)


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint: a folder, or one weight file.")],
    values: Annotated[
        bool, typer.Option("--values", help="Read every weight, for NaN, infinity and FP8 codes at their largest.")
    ] = False,
    detail: Annotated[
        bool, typer.Option("--detail", help="Per component and layer; with --json and --values every unit.")
    ] = False,
    threads: Threads = None,
    max_memory: MaxMemory = _MAX_MEMORY,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what a checkpoint holds: components, layers, parameters, storage, what is odd, who made it. Reads headers only."""
    from chimerakit.cli import inspected, show
    from chimerakit.cli.progress import watching
    from chimerakit.inspect import inspect_checkpoint

    with watching(quiet=quiet) as listener:
        found = inspect_checkpoint(
            checkpoint,
            values=values,
            threads=threads,
            max_memory=_nbytes(max_memory, "--max-memory"),
            listener=listener,
        )
    if as_json or not sys.stdout.isatty():
        show.print_json(inspected.inspection_view(found, detail=detail))
    else:
        inspected.print_inspection(found, detail=detail)
    raise typer.Exit(0 if found.ok else 1)


@app.command()
def compare(
    a: Annotated[Path | None, typer.Argument(help="The base: a folder, or one weight file.")] = None,
    b: Annotated[Path | None, typer.Argument(help="The other one.")] = None,
    saved: Annotated[
        Path | None, typer.Option("--map", metavar="MAP.npz", help="Instead of both: a map that was made before.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="MAP.npz", help="Save the map; an interrupted one goes on.")
    ] = None,
    detail: Annotated[bool, typer.Option("--detail", help="Also per component and layer.")] = False,
    deltas: Annotated[
        str | None, typer.Option(metavar="SHARES", help="Say at which delta these shares would be mixed, as 0.1,0.5.")
    ] = None,
    threads: Threads = None,
    max_memory: MaxMemory = _MAX_MEMORY,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say how far two checkpoints lie apart, unit by unit: the difference map that a recipe's delta is held against."""
    from chimerakit.cli import compared, show
    from chimerakit.cli.progress import watching
    from chimerakit.compare import load_map
    from chimerakit.formats import open_checkpoint

    shares = compared.parse_shares(deltas)
    if saved is not None:
        if a is not None or output is not None:
            raise RecipeError("--map takes the place of checkpoints, and is saved already", where="compare")
        found = load_map(saved)
    elif a is None or b is None:
        raise RecipeError("takes two checkpoints, or --map", where="compare")
    else:
        with watching(quiet=quiet) as listener:
            found = compared.compare_into(
                output,
                open_checkpoint(a),
                open_checkpoint(b),
                threads=threads,
                max_memory=_nbytes(max_memory, "--max-memory"),
                listener=listener,
            )
    if as_json or not sys.stdout.isatty():
        show.print_json(compared.map_view(found, shares))
    else:
        compared.print_map(found, shares, detail=detail)
    raise typer.Exit(0 if found.is_complete else 1)


@app.command()
def demo(
    family: Annotated[
        Path | None, typer.Option(help="The tiny trained family; found by itself in a checkout of the repository.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the children go.")] = Path("demo-out"),
    problems: Annotated[int, typer.Option(min=1, help="Held-out problems that each model answers.")] = 200,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    quiet: Quiet = False,
) -> None:
    """Merge the tiny trained parents in several ways, prove the children, and let them answer problems."""
    from chimerakit.cli import show
    from chimerakit.cli.progress import watching
    from chimerakit.demo import find_family, run_demo

    with watching(quiet=quiet) as listener:
        shown = run_demo(find_family(family), output, num_problems=problems, threads=threads, listener=listener)
    if as_json:
        show.print_json({"ok": shown.ok, "demo": shown})
    else:
        show.print_demo(shown)
    raise typer.Exit(0 if shown.ok else 1)


# ---------------------------------------------------------------------------------- flags -> records


def _make_plan(
    recipe: Path | None,
    parent: list[str] | None,
    base: str | None,
    take: list[str] | None,
    mix: list[str] | None,
    dtype: str | None,
    differences: list[Path] | None,
) -> "Plan":
    from chimerakit.plan import make_plan
    from chimerakit.recipe import load_recipe, locate_parents, recipe_from_flags

    given = _paths(parent)
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
    parents = _open_parents(paths)
    if not differences:
        return make_plan(wanted, parents)
    from chimerakit.deltas import read_distances

    return make_plan(wanted, parents, read_distances(wanted, parents, differences))


def _nbytes(text: str, flag: str) -> int:
    """A number of bytes as people write it."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", text)
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if found is None or found[2].lower() not in units:
        raise RecipeError("can't be read", where=f"{flag} {text}", expected="a size such as 500MB or 1.5GiB")
    return int(float(found[1]) * units[found[2].lower()])


def _paths(parent: list[str] | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in parent or ():
        name, _, path = text.partition("=")
        if not name or not path:
            raise RecipeError("can't be read", where=f"--parent {text}", expected="--parent NAME=PATH")
        if name in found:
            raise RecipeError("is given twice", where=f"--parent {name}")
        found[name] = Path(path).expanduser()
    return found


def _open_parents(paths: dict[str, Path]) -> "dict[str, Checkpoint]":
    from chimerakit.formats import open_checkpoint

    return {name: open_checkpoint(path) for name, path in paths.items()}
