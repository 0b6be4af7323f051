"""What models answered -> tables on a terminal, or JSON; and models as they are named on the command line."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chimerakit.cli.flags import paths_of
from chimerakit.cli.show import add_row, make_grid, print_grid, terminal_width
from chimerakit.errors import RecipeError, printable
from chimerakit.evaluate.records import Difference, Estimate, Evaluation, Measurement, Routers, Settings
from chimerakit.evaluate.run import SAVED, Subject

_ADDRESS = re.compile(r"https?://", re.IGNORECASE)


def subjects_of(models: Sequence[str], checkpoints: list[str] | None) -> list[Subject]:
    """Models as they are written: PATH, NAME=PATH, NAME=ADDRESS#SERVED. checkpoints: what servers have loaded."""
    paths = paths_of(checkpoints, "--checkpoint")
    found = []
    for text in models:
        name, has_name, place = text.partition("=")
        if not has_name or _ADDRESS.match(text):
            name, place = "", text
        if _ADDRESS.match(place):
            address, _, served = place.partition("#")
            name = name or re.sub(r"[^\w.+-]", "-", served or address.partition("://")[2]).strip("-.")
            found.append(Subject(name, paths.pop(name, None), address, served or None))
        else:
            path = Path(place)
            found.append(Subject(name or path.resolve().name.removesuffix(".gguf"), path))
    if paths:
        raise RecipeError("is no server's model", where=f"--checkpoint {next(iter(paths))}")
    return found


def settings_of(temperature: float, top_p: float, max_tokens: int, seed: int, tags: str) -> Settings:
    """How answers are decoded. Raises RecipeError."""
    if not 0 <= temperature <= 10 or not 0 < top_p <= 1:
        raise RecipeError("temperature is 0 to 10, top-p above 0 and at most 1", where=f"{temperature}, {top_p}")
    opens, comma, closes = tags.partition(",")
    if not comma or not opens or not closes or opens == closes:
        raise RecipeError("can't be read", where=f"--tags {tags}", expected="OPENS,CLOSES, as <think>,</think>")
    return Settings(temperature, top_p, max_tokens, seed, opens, closes)


def evaluation_view(found: Evaluation, output: Path) -> dict[str, Any]:
    """What was measured, as data; answers stand in the folder."""
    return {
        "saved": str(output / SAVED),
        "measurements": found.measurements,
        "differences": found.differences,
        "routers": found.routers,
    }


def print_evaluation(found: Evaluation, output: Path) -> None:
    """A table for each task, differences below it, and what is not as it should be."""
    print_measurements(found)
    print()
    print(printable(f"saved: {output / SAVED}; show it: chimerakit report {output / SAVED} -o PAGE.html"))


def print_measurements(found: Evaluation) -> None:
    """The same, without where it stands."""
    for task in dict.fromkeys(each.task for each in found.measurements):
        measured = [each for each in found.measurements if each.task == task]
        _print_measured(task, measured)
        _print_differences([each for each in found.differences if each.task == task])
        for each in measured:
            for says in _oddities(each):
                print(printable(f"note: {each.model.name}: {says}"))
    if found.routers is not None:
        _print_routers(found.routers)


def _print_measured(task: str, measured: Sequence[Measurement]) -> None:
    first = measured[0]
    how = "greedy" if first.settings.temperature == 0 else f"temperature {first.settings.temperature:g}"
    samples = f", {first.samples} samples each" if first.samples > 1 else ""
    title = f"{task}: {first.problems} problems, {how}{samples}; 95 % intervals over problems"
    columns = [
        "model",
        "accuracy",
        "output tokens",
        "traces",
        "tokens of a trace",
        "tokens per right answer",
        "workable",
    ]
    if first.samples > 1:
        columns[2:2] = ["majority"]
    grid = make_grid(title, *columns)
    for each in measured:
        cells = [
            each.model.name,
            say_share(each.accuracy),
            say_number(each.output_tokens),
            say_share(each.trace_rate),
            say_number(each.reasoning_tokens),
            say_number(each.tokens_per_correct),
            ("yes" if each.is_workable else "NO") + f" ({each.workable.value:.0%})",
        ]
        if first.samples > 1:
            cells[2:2] = [say_share(each.majority)]
        add_row(grid, *cells)
    print_grid(grid, terminal_width())


def _print_differences(differences: Sequence[Difference]) -> None:
    for against in dict.fromkeys(each.against for each in differences):
        grid = make_grid(
            f"against {against}, on the same problems", "model", "accuracy", "keeps", "output tokens", "in all"
        )
        for each in differences:
            if each.against == against:
                add_row(
                    grid,
                    each.model,
                    _say(each.accuracy, lambda x: f"{100 * x:+.1f}") + " points",
                    say_share(each.kept),
                    _say(each.output_tokens, lambda x: f"{x:+.1f}"),
                    _say(each.token_ratio, lambda x: f"{x - 1:+.0%}"),
                )
        print()
        print_grid(grid, terminal_width())


def _print_routers(found: Routers) -> None:
    """For each model what its least healthy layer does; all layers stand in the saved result."""
    title = f"routers on {found.source}, {found.tokens:,} tokens; of each the layer where it is least"
    others = [health.model for health in found.health]
    columns = [f"same as {name}" for name in others]
    grid = make_grid(title, "model", "perplexity", "evenness", "dead experts", "overloaded", *columns)
    for health in found.health:
        layers = health.layers
        add_row(
            grid,
            health.model,
            _say(found.perplexity[health.model], lambda x: f"{x:.4g}"),
            f"{min(layer.evenness for layer in layers):.1%}",
            max(layer.dead for layer in layers),
            max(layer.overloaded for layer in layers),
            *("" if n == health.model else f"{min(layer.overlap[n] for layer in layers):.1%}" for n in others),
        )
    print()
    print_grid(grid, terminal_width())


def _oddities(found: Measurement) -> list[str]:
    """What nobody expects of a model that works."""
    shares = {
        "of the answers did not end within the limit": found.truncated,
        "of the answers end in a loop": found.looping,
        "of the answers close a trace that nobody opened": found.closed_only,
        "of the answers open a trace twice": found.opened_twice,
        "of the answers have an empty trace": found.empty,
        "of the traces are never closed": 1 - found.closed,
    }
    return [f"{share:.1%} {says}" for says, share in shares.items() if share > 0]


def say_share(found: Estimate | None) -> str:
    """A share with its interval, in percent."""
    return "" if found is None else f"{found.value:.1%} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def say_number(found: Estimate | None) -> str:
    """A number with its interval."""
    return "" if found is None else _say(found, lambda x: f"{x:.1f}")


def _say(found: Estimate, say: Callable[[float], str]) -> str:
    return f"{say(found.value)} [{say(found.low)}, {say(found.high)}]"
