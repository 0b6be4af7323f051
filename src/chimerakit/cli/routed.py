"""Routers of a difference map -> lines and a table on a terminal, or JSON."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from chimerakit.cli.show import add_row, make_grid, print_grid, terminal_width
from chimerakit.compare import Choices, DifferenceMap, RouterDifference
from chimerakit.errors import printable

_FIGURES = {
    "least_cosine": ".4f",
    "median_cosine": ".4f",
    "largest_norm_change": ".2%",
    "largest_bias_change": ".2g",
    "bias_rms": ".2g",
}
"""What is said of a router besides its choices, in the order of tables, and how."""
_LEAST_SHOWN = 3
"""Layers that are named as those in which routers agree least."""
_LAYERS_SHOWN = 5
"""Layers that are named before it is said how many more there are."""
_WIDTH = 100
"""Columns of the table at its widest; on a narrower terminal its lines wrap."""


def router_view(router: RouterDifference) -> dict[str, Any]:
    """A router, with figures besides counts."""
    figures = {figure: getattr(router, figure) for figure in _FIGURES}
    choices = router.choices
    return {
        **msgspec.structs.asdict(router),
        **figures,
        "choices": None
        if choices is None
        else {**msgspec.structs.asdict(choices), "overlap": choices.overlap, "same_tokens": choices.same_tokens},
    }


def print_routers(found: DifferenceMap, *, detail: bool) -> None:
    """In a few lines how far routers differ, and where most; with `detail` a row for each of them."""
    if detail:
        _print_router_rows(found.routers)
        print()
    cosines = [r.least_cosine for r in found.routers if r.least_cosine is not None]
    changes = [r.largest_bias_change for r in found.routers if r.largest_bias_change is not None]
    line = f"gates of {len(found.routers)} layers"
    line += f": cosines of their rows are {min(cosines):.4f} or more" if cosines else ""
    line += f"; biases change by at most {max(changes):.2g}" if changes else ""
    print(line)
    asked = [(r.choices, r.layer) for r in found.routers if r.choices is not None]
    if not asked or found.states is None:
        return
    chosen = sum(choices.tokens * choices.top_k for choices, _ in asked)
    shared = sum(choices.shared for choices, _ in asked)
    print(printable(f"of {chosen} experts chosen by each, both choose {shared / chosen:.2%}, on {found.states.source}"))
    if shared < chosen:
        least = sorted(asked, key=lambda each: each[0].overlap)[:_LEAST_SHOWN]
        print("they agree least in " + ", ".join(f"layer {layer} ({c.overlap:.2%})" for c, layer in least))


def _print_router_rows(routers: Sequence[RouterDifference]) -> None:
    is_asked = any(router.choices for router in routers)
    grid = make_grid(
        "",
        *("gate of\nlayer", "least\ncosine", "median\ncosine", "norm\nchange", "bias\nchange", "its\nRMS"),
        *(("both\nchoose", "same\nsets", "largest shift of load") if is_asked else ()),
    )
    for router in routers:
        add_row(
            grid,
            router.layer,
            *(_figure(getattr(router, figure), how) for figure, how in _FIGURES.items()),
            *(_choice_cells(router.choices) if is_asked else ()),
        )
    print_grid(grid, max(_WIDTH, terminal_width()))


def _choice_cells(choices: Choices | None) -> tuple[str, ...]:
    if choices is None:
        return "-", "-", "-"
    expert = choices.most_shifted
    before, after = (loads[expert] / choices.tokens for loads in (choices.loads_a, choices.loads_b))
    return f"{choices.overlap:.2%}", f"{choices.same_tokens:.2%}", f"expert {expert}: {before:.2%} to {after:.2%}"


def _figure(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def router_gaps(routers: Iterable[RouterDifference]) -> list[str]:
    """Why routers were not asked though there are states, and in which layers."""
    found: dict[str, list[int]] = {}
    for router in routers:
        if router.objection:
            found.setdefault(router.objection, []).append(router.layer)
    return [f"choices of routers, {_say_layers(layers)}: {why}" for why, layers in found.items()]


def _say_layers(layers: Sequence[int]) -> str:
    """Some layers, in few words."""
    shown = ", ".join(map(str, layers[:_LAYERS_SHOWN]))
    return (
        f"layers {shown} and {len(layers) - _LAYERS_SHOWN} more" if len(layers) > _LAYERS_SHOWN else f"layers {shown}"
    )
