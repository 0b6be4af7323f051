"""The verbs that ask models: evaluate and sweep. They share how answers are asked for."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chimerakit.cli.ending import end
from chimerakit.cli.flags import (
    MAX_MEMORY,
    THREADS,
    AsJson,
    Differences,
    Jobs,
    MaxMemory,
    ParentPaths,
    Quiet,
    RunnerName,
    ranges_of,
    runner_of,
)
from chimerakit.defaults import MAX_TOKENS

if TYPE_CHECKING:
    from chimerakit.evaluate.records import Task

Count = Annotated[int | None, typer.Option("--count", min=1, help="The first problems of each task only.")]
ScorerName = Annotated[
    str | None,
    typer.Option("--scorer", help="exact, numeric, choice, boxed or regex:PATTERN, in place of the task's."),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Output tokens of an answer at most.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 is greedy.")]
TopP = Annotated[float, typer.Option("--top-p", help="Share of the likeliest tokens that is drawn from.")]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Answers to each problem.")]
Seed = Annotated[int, typer.Option("--seed", help="Of sampled answers.")]
Tags = Annotated[str, typer.Option("--tags", metavar="OPENS,CLOSES", help="What a reasoning trace is between.")]
AtOnce = Annotated[int, typer.Option("--at-once", min=1, help="Answers at a time.")]
TAGS = "<think>,</think>"


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="PATH, NAME=PATH, or NAME=http://HOST:PORT/v1#MODEL of a server."),
    ],
    task: Annotated[
        list[Path], typer.Option("--task", metavar="FILE", help="Problems: .jsonl, or .yaml that maps its fields.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where answers are kept; a later call goes on.")],
    count: Count = None,
    scorer: ScorerName = None,
    against: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Compare with this model; the first one unless said.")
    ] = None,
    max_tokens: MaxTokens = MAX_TOKENS,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    samples: Samples = 1,
    seed: Seed = 0,
    tags: Tags = TAGS,
    at_once: AtOnce = 32,
    router: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Let all models read N answers of the first --against, and ask their routers."
        ),
    ] = 0,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="The checkpoint that a server has loaded, so that results name it."),
    ] = None,
    key_from: Annotated[
        str, typer.Option(metavar="VARIABLE", help="The environment's variable with a server's key.")
    ] = "OPENAI_API_KEY",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one answer of a server.")] = 600.0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Let models answer problems: accuracy, output tokens, reasoning traces, differences. Call it again to go on."""
    from chimerakit.cli import evaluated
    from chimerakit.cli.progress import watching
    from chimerakit.evaluate import Options, evaluate_models

    tasks = tasks_of(task, scorer, count)
    with watching(quiet=quiet) as listener:
        found = evaluate_models(
            evaluated.subjects_of(models, checkpoint),
            tasks,
            output,
            settings=evaluated.settings_of(temperature, top_p, max_tokens, seed, tags),
            samples=samples,
            against=against,
            router_texts=router,
            options=Options(at_once=at_once, key_variable=key_from, timeout=timeout),
            listener=listener,
        )
    end(
        as_json,
        lambda: evaluated.evaluation_view(found, output),
        lambda: evaluated.print_evaluation(found, output),
    )


def sweep(
    recipe: Annotated[Path, typer.Argument(help="A recipe with ranges: mix: {r1: {sweep: [0, 0.5, 1]}}.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where everything goes; a later call goes on.")],
    parent: ParentPaths = None,
    task: Annotated[
        list[Path] | None,
        typer.Option("--task", metavar="FILE", help="Problems; without any, children are only made."),
    ] = None,
    count: Count = None,
    scorer: ScorerName = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Compare with this parent or child; with all parents unless said."),
    ] = None,
    max_tokens: MaxTokens = MAX_TOKENS,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    samples: Samples = 1,
    seed: Seed = 0,
    tags: Tags = TAGS,
    at_once: AtOnce = 32,
    keep: Annotated[
        str, typer.Option(help="Whose weights stay when they are measured: all, none, or best:N by accuracy.")
    ] = "all",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Children that are made at a time, at most, before they are measured.")
    ] = None,
    bisect: Annotated[
        str | None,
        typer.Option(
            metavar="FIGURE=VALUE",
            help="Look for where a figure crosses a value, as trace_rate=0.5, with few children.",
        ),
    ] = None,
    within: Annotated[float, typer.Option(help="With --bisect: how narrow the bracket shall be.")] = 0.02,
    differences: Differences = None,
    threads: Jobs = None,
    max_memory: MaxMemory = MAX_MEMORY,
    runner: RunnerName = THREADS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make the children of a recipe with ranges, measure them beside their parents, draw the curve. Call it again to go on."""
    from chimerakit.cli import evaluated, swept
    from chimerakit.cli.progress import watching
    from chimerakit.evaluate import Options
    from chimerakit.sweep import Wish, parse_keep, sweep_children

    wish = Wish(
        tasks=tuple(tasks_of(task or [], scorer, count)),
        settings=evaluated.settings_of(temperature, top_p, max_tokens, seed, tags),
        samples=samples,
        against=tuple(against or ()),
        keep=parse_keep(keep),
        batch=batch,
        goal=swept.goal_of(bisect, within),
        options=Options(at_once=at_once),
    )
    ranges, parents, distances_of = ranges_of(recipe, parent, differences)
    with watching(quiet=quiet) as listener:
        found = sweep_children(
            ranges,
            parents,
            output,
            wish,
            distances_of=distances_of,
            runner=runner_of(threads, max_memory, runner),
            listener=listener,
        )
    end(as_json, lambda: swept.sweep_view(found, output), lambda: swept.print_sweep(found, output))


def tasks_of(files: list[Path], scorer: str | None, count: int | None) -> "list[Task]":
    """The tasks in some files."""
    from chimerakit.evaluate import load_task

    return [load_task(file, scorer=scorer, count=count) for file in files]
