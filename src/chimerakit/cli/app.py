"""The verbs: each asks the library one thing, tells what was found, and ends with its exit code."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from chimerakit._version import __version__
from chimerakit.cli import measuring
from chimerakit.cli.ending import end
from chimerakit.cli.flags import (
    MAX_MEMORY,
    THREADS,
    AsJson,
    Base,
    ByImatrix,
    Differences,
    Dtype,
    Jobs,
    MaxMemory,
    Mixes,
    ParentPaths,
    Quiet,
    RecipeFile,
    RunnerName,
    SplitMaxSize,
    Takes,
    check_new,
    is_for_several,
    opened_imatrix,
    parents_of,
    paths_of,
    plan_of,
    ranges_of,
    runner_of,
)
from chimerakit.errors import RecipeError

app = typer.Typer(
    name="chimerakit",
    help="Build, prove and measure Chimera models: children of Mixture-of-Experts parents, assembled tensor by tensor.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    split_max_size: SplitMaxSize = None,
    differences: Differences = None,
    matrix: ByImatrix = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The child's folder, to be checked too.")
    ] = None,
    threads: Jobs = None,
    max_memory: MaxMemory = MAX_MEMORY,
    as_json: AsJson = False,
    full: Annotated[bool, typer.Option("--full", help="With --json: every row and every byte range.")] = False,
) -> None:
    """The dry run: what each rule takes, what is read and written, and everything that is wrong. Reads headers only."""
    import gc

    from chimerakit.cli import show

    gc.disable()  # a plan is half a million objects without cycles, and the process ends with it

    if recipe is not None and is_for_several(recipe):
        from chimerakit.cli import swept
        from chimerakit.sweep import plan_children

        plans = plan_children(*ranges_of(recipe, parent, differences))
        zoo = swept.plans_view(plans, output)
        end(as_json, lambda: zoo, lambda: swept.print_plans(zoo))
    made = plan_of(recipe, parent, base, take, mix, dtype, differences, split_max_size, matrix)
    if output is not None:
        from chimerakit.merge import check_finished
        from chimerakit.output import check_output, is_finished

        check_output(made, output)
        if is_finished(output):
            check_finished(made, output)
    view = show.plan_view(made, output, runner_of(threads, max_memory))
    end(as_json or full, lambda: made if full else view, lambda: show.print_plan(view))


@app.command()
def merge(
    output: Annotated[Path, typer.Option("-o", "--output", help="The child's folder: empty, or an unfinished child.")],
    recipe: RecipeFile = None,
    parent: ParentPaths = None,
    base: Base = None,
    take: Takes = None,
    mix: Mixes = None,
    dtype: Dtype = None,
    split_max_size: SplitMaxSize = None,
    differences: Differences = None,
    matrix: ByImatrix = None,
    digest: Annotated[str, typer.Option(help="xxh3, or sha256 to record that too.")] = "xxh3",
    allow_nonfinite: Annotated[bool, typer.Option("--allow-nonfinite", help="Carry NaN and infinity along.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Delete the child that stands there and start over.")] = False,
    link: Annotated[
        bool,
        typer.Option("--link", help="Weight files that equal a parent's become hard links to it: one file, two names."),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="i/n", help="Do a fixed n-th of the jobs, the i-th from 0 on; --finish comes last."),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Check what all shards have done, and complete the child.")
    ] = False,
    threads: Jobs = None,
    max_memory: MaxMemory = MAX_MEMORY,
    runner: RunnerName = THREADS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make the child. Call it again after an interruption: it goes on and ends in the same bytes."""
    from chimerakit.cli import show
    from chimerakit.cli.progress import watching
    from chimerakit.merge import merge_parents
    from chimerakit.portions import finish_merge, merge_portion, parse_portion

    if digest not in ("xxh3", "sha256"):
        raise RecipeError(f"unknown digest {digest!r}", where="--digest", expected="xxh3 or sha256")
    if (shard is not None) + finish + force > 1:
        raise RecipeError("can't be used together", where="--shard, --finish, --force")
    portion, has_sha256 = None if shard is None else parse_portion(shard), digest == "sha256"
    who = runner_of(threads, max_memory, runner)
    made = plan_of(recipe, parent, base, take, mix, dtype, differences, split_max_size, matrix)
    if portion is not None:
        with watching(quiet=quiet) as listener:
            done = merge_portion(
                made,
                output,
                portion,
                runner=who,
                link=link,
                allow_nonfinite=allow_nonfinite,
                sha256=has_sha256,
                listener=listener,
            )
        end(as_json, lambda: done, lambda: show.print_portion(done, portion, output))
    finally_merge = finish_merge if finish else partial(merge_parents, force=force)
    with watching(quiet=quiet) as listener:
        merged = finally_merge(
            made,
            output,
            runner=who,
            link=link,
            allow_nonfinite=allow_nonfinite,
            sha256=has_sha256,
            listener=listener,
        )
    view = show.merge_view(output, merged)
    end(as_json, lambda: view, lambda: show.print_merge(view))


@app.command()
def verify(
    child: Annotated[Path, typer.Argument(help="The child's folder.")],
    parent: ParentPaths = None,
    matrix: ByImatrix = None,
    table: Annotated[
        bool, typer.Option("--table", help="Compare every unit with the parents'; needs no manifest.")
    ] = False,
    codes: Annotated[
        bool, typer.Option("--codes", help="With --table: compare stored codes without their scales.")
    ] = False,
    detail: Annotated[bool, typer.Option("--detail", help="With --table: per layer and expert.")] = False,
    threads: Jobs = None,
    max_memory: MaxMemory = MAX_MEMORY,
    runner: RunnerName = THREADS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check a child's bytes against its manifest; with --parent, prove them against the parents."""
    from chimerakit.cli import show
    from chimerakit.cli.progress import watching

    if (codes or detail) and not table:
        raise RecipeError("--codes and --detail belong to --table", where="verify")
    parents = parents_of(parent)
    if table:
        from chimerakit.table import verify_table

        if not parents:
            raise RecipeError("--table compares with parents", where="verify", do="--parent NAME=PATH for each")
        with watching(quiet=quiet) as listener:
            made = verify_table(
                child, parents, codes=codes, runner=runner_of(threads, max_memory, runner), listener=listener
            )
        end(
            as_json,
            lambda: show.table_view(made, detail=detail),
            lambda: show.print_table(made, detail=detail),
            ok=made.is_explained,
        )
    from chimerakit.verify import verify_child

    with watching(quiet=quiet) as listener:
        found = verify_child(
            child,
            parents or None,
            imatrix=opened_imatrix(matrix),
            runner=runner_of(threads, max_memory, runner),
            listener=listener,
        )
    end(as_json, lambda: show.findings_view(found), lambda: show.print_findings(found), ok=found.ok)


@app.command()
def explain(
    child: Annotated[Path, typer.Argument(help="The child: a folder, or one weight file.")],
    parent: ParentPaths = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="RECIPE.yaml", help="Write the recipe there.")
    ] = None,
    sample: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Look at about so much of the weights, as 1%; proves nothing.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    detail: Annotated[bool, typer.Option("--detail", help="Every unit.")] = False,
    threads: Jobs = None,
    max_memory: MaxMemory = MAX_MEMORY,
    runner: RunnerName = THREADS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the recipe that makes a child of these parents, from its weights alone."""
    from chimerakit.cli import explained
    from chimerakit.cli.progress import watching
    from chimerakit.explain import explain_child

    if output is not None:
        check_new(output, "choose another name for the recipe")
    share = None if sample is None else explained.parse_share(sample)
    parents = parents_of(parent)
    with watching(quiet=quiet) as listener:
        found = explain_child(
            child,
            parents,
            runner=runner_of(threads, max_memory, runner),
            sample=share,
            seed=seed,
            listener=listener,
        )
    if output is not None and found.recipe is not None:
        explained.save_recipe(found.recipe, output)
    end(
        as_json,
        lambda: explained.explanation_view(found, child, detail=detail),
        lambda: explained.print_explanation(found, detail=detail),
        ok=found.is_explained,
    )


@app.command()
def imatrix(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.gguf", help="The file to write.")],
    recipe: RecipeFile = None,
    parent: ParentPaths = None,
    base: Base = None,
    take: Takes = None,
    mix: Mixes = None,
    dtype: Dtype = None,
    differences: Differences = None,
    matrix: Annotated[
        list[str] | None,
        typer.Option(
            "--imatrix", metavar="NAME=PATH", help="A parent's importance matrix: GGUF, or a legacy .dat file."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put a GGUF child's importance matrix together from its parents', for llama-quantize."""
    from chimerakit.cli import blended
    from chimerakit.formats.imatrix import encode_imatrix, read_imatrix
    from chimerakit.imatrix import blend_imatrix
    from chimerakit.stores.part import write_file

    check_new(output, "choose another name for the importance matrix")
    given = {name: read_imatrix(path) for name, path in paths_of(matrix, "--imatrix").items()}
    found = blend_imatrix(plan_of(recipe, parent, base, take, mix, dtype, differences), given)
    write_file(output, encode_imatrix(found.imatrix))
    end(as_json, lambda: blended.imatrix_view(found, output), lambda: blended.print_imatrix(found, output))


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint: a folder, or one weight file.")],
    values: Annotated[
        bool, typer.Option("--values", help="Read every weight, for NaN, infinity and FP8 codes at their largest.")
    ] = False,
    detail: Annotated[
        bool, typer.Option("--detail", help="Per component and layer; with --json and --values every unit.")
    ] = False,
    threads: Jobs = None,
    max_memory: MaxMemory = MAX_MEMORY,
    runner: RunnerName = THREADS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what a checkpoint holds: components, layers, parameters, storage, what is odd, who made it. Reads headers only."""
    from chimerakit.cli import inspected
    from chimerakit.cli.progress import watching
    from chimerakit.inspect import inspect_checkpoint

    with watching(quiet=quiet) as listener:
        found = inspect_checkpoint(
            checkpoint,
            values=values,
            runner=runner_of(threads, max_memory, runner),
            listener=listener,
        )
    end(
        as_json,
        lambda: inspected.inspection_view(found, detail=detail),
        lambda: inspected.print_inspection(found, detail=detail),
        ok=found.ok,
    )


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
    states: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Ask both routers of each layer on these hidden states, which experts they choose."
        ),
    ] = None,
    synthetic_states: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The same on N drawn states, without a preferred direction.")
    ] = None,
    threads: Jobs = None,
    max_memory: MaxMemory = MAX_MEMORY,
    runner: RunnerName = THREADS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say how far two checkpoints lie apart, unit by unit: the difference map that a recipe's delta is held against."""
    from chimerakit.cli import compared
    from chimerakit.cli.progress import watching
    from chimerakit.compare import load_map
    from chimerakit.formats import open_checkpoint

    shares = compared.parse_shares(deltas)
    if saved is not None:
        if a is not None or output is not None:
            raise RecipeError("--map takes the place of checkpoints, and is saved already", where="compare")
        if states is not None or synthetic_states is not None:
            raise RecipeError(
                "--map holds what routers chose; they can't be asked again without weights", where="compare"
            )
        found = load_map(saved)
    elif a is None or b is None:
        raise RecipeError("takes two checkpoints, or --map", where="compare")
    else:
        with watching(quiet=quiet) as listener:
            found = compared.compare_into(
                output,
                open_checkpoint(a),
                open_checkpoint(b),
                states=compared.states_of(states, synthetic_states),
                runner=runner_of(threads, max_memory, runner),
                listener=listener,
            )
    end(
        as_json,
        lambda: compared.map_view(found, shares),
        lambda: compared.print_map(found, shares, detail=detail),
        ok=found.is_complete,
    )


app.command()(measuring.evaluate)
app.command()(measuring.sweep)


@app.command()
def demo(
    family: Annotated[
        Path | None, typer.Option(help="The tiny trained family; found by itself in a checkout of the repository.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the children go.")] = Path("demo-out"),
    problems: Annotated[int, typer.Option(min=1, help="Held-out problems that each model answers.")] = 200,
    gguf: Annotated[bool, typer.Option("--gguf", help="With the parents in Q4_K_M, in llama.cpp.")] = False,
    threads: Jobs = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    quiet: Quiet = False,
) -> None:
    """Merge the tiny trained parents in several ways, prove the children, and let them answer problems."""
    from chimerakit.cli import show
    from chimerakit.cli.progress import watching
    from chimerakit.demo import find_family, run_demo
    from chimerakit.runners.local import Threads

    with watching(quiet=quiet) as listener:
        shown = run_demo(
            find_family(family), output, num_problems=problems, runner=Threads(threads), listener=listener, gguf=gguf
        )
    if as_json:
        show.print_json({"ok": shown.ok, "demo": shown})
    else:
        show.print_demo(shown)
    raise typer.Exit(0 if shown.ok else 1)


@app.command()
def report(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PAGE.html", help="The page.")],
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RESULT...",
            help="What compare -o, evaluate -o and sweep -o saved, or explain --json --detail > FILE, or inspect the same way.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show saved results in one HTML page that opens offline."""
    from chimerakit.cli import reported

    reported.check_request(results or (), output)
    view = reported.save_page(results or (), output)
    end(as_json, lambda: view, lambda: reported.print_page(view))
