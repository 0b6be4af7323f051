"""Difference maps -> tables on a terminal, or JSON."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from chimerakit.cli.flags import check_new
from chimerakit.cli.routed import print_routers, router_gaps, router_view
from chimerakit.cli.show import MOST_SHOWN, add_row, make_grid, print_grid, terminal_width
from chimerakit.compare import (
    FIGURES,
    DifferenceMap,
    DifferenceSummary,
    DrawnStates,
    RecordedStates,
    Sums,
    Threshold,
    compare_checkpoints,
    open_states,
    save_map,
    summarize_map,
    thresholds,
)
from chimerakit.errors import RecipeError, printable
from chimerakit.words import say_nbytes

if TYPE_CHECKING:
    from chimerakit.events import Listener
    from chimerakit.records import Checkpoint
    from chimerakit.runners import Runner

PARTIAL = ".partial"
"""Ends the name of a file that holds what is done of a map."""
_WIDTH = 90
"""Columns of the widest table: on a narrower terminal its lines wrap, which reads better than words cut to pieces."""


def compare_into(
    output: Path | None,
    a: "Checkpoint",
    b: "Checkpoint",
    *,
    states: RecordedStates | DrawnStates | None,
    runner: "Runner",
    listener: "Listener",
) -> DifferenceMap:
    """Make a map, and save it where it is asked for; after an interruption, go on."""
    compare = partial(compare_checkpoints, states=states, runner=runner, listener=listener)
    if output is None:
        return compare(a, b)
    check_new(output, "choose another name; what is there can be shown: compare --map")
    done = output.with_name(output.name + PARTIAL)
    found = compare(a, b, partial=done)
    save_map(found, output)
    done.unlink()
    return found


def states_of(file: Path | None, tokens: int | None) -> RecordedStates | DrawnStates | None:
    """What `--states` and `--synthetic-states` ask routers on."""
    if file is not None and tokens is not None:
        raise RecipeError("--states and --synthetic-states are two kinds of states: give one", where="compare")
    if tokens is not None:
        return DrawnStates(tokens)
    return None if file is None else open_states(file)


def parse_shares(text: str | None) -> tuple[float, ...]:
    """Shares as `--deltas` takes them: numbers from 0 to 1 with commas between them."""
    try:
        shares = tuple(map(float, text.split(","))) if text is not None else ()
    except ValueError:
        shares = (math.nan,)
    if not all(0 <= share <= 1 for share in shares):
        raise RecipeError("can't be read", where=f"--deltas {text}", expected="shares from 0 to 1, as 0.1,0.5")
    return shares


def map_view(found: DifferenceMap, shares: Sequence[float]) -> dict[str, Any]:
    """Everything that a map says, with figures besides sums."""
    return {
        "is_complete": found.is_complete,
        "a": found.a,
        "b": found.b,
        "components": [_with_figures(s) for s in summarize_map(found)],
        "layers": [_with_figures(s) for s in summarize_map(found, by="layer")],
        "experts": [_with_figures(s) for s in summarize_map(found, by="expert") if s.expert is not None],
        "units": [_with_figures(unit) for unit in found.units],
        "deltas": thresholds(found, shares),
        "routers": [router_view(router) for router in found.routers],
        "states": found.states,
        "only_in": found.only_in,
        "problems": found.problems,
    }


def _with_figures(sums: Sums) -> dict[str, Any]:
    return {**msgspec.structs.asdict(sums), **{figure: getattr(sums, figure) for figure in FIGURES}}


def print_map(found: DifferenceMap, shares: Sequence[float], *, detail: bool) -> None:
    """The map rolled up: a row for each component; with `detail` also for each layer of it, and for each router."""
    _print_summaries(summarize_map(found))
    if detail:
        print()
        _print_summaries(summarize_map(found, by="layer"))
    if found.routers:
        print()
        print_routers(found, detail=detail)
    if shares:
        print()
        _print_thresholds(thresholds(found, shares))
    _print_gaps(found)


def _print_summaries(summaries: Sequence[DifferenceSummary]) -> None:
    has_layer = any(s.layer is not None for s in summaries)
    grid = make_grid(
        "",
        *(("component", "layer") if has_layer else ("component",)),
        *("units", "bytes", "RMS", "rel.\nRMS", "cosine", "max\nabs", "unlike\nbytes", "unlike\nvalues"),
    )
    for s in summaries:
        add_row(
            grid,
            s.component,
            *(("" if s.layer is None else s.layer,) if has_layer else ()),
            s.units,
            say_nbytes(s.nbytes_a),
            _number(s.rms, ".2g"),
            _number(s.relative_rms, ".2%"),
            _number(s.cosine, ".4f"),
            _number(s.largest, ".2g"),
            _number(s.changed_bytes, ".1%"),
            _number(s.changed_values, ".1%"),
        )
    print_grid(grid, max(_WIDTH, terminal_width()))


def _print_thresholds(found: Sequence[Threshold]) -> None:
    grid = make_grid("", "component", "mixed at most", "delta", "units mixed", "bytes mixed")
    for t in found:
        add_row(
            grid,
            t.component or "all",
            f"{100 * t.share:.4g} % of {t.of}",
            f"{t.delta:.4g}",
            f"{t.units} of {t.all_units}",
            f"{say_nbytes(t.nbytes)} of {say_nbytes(t.all_nbytes)}",
        )
    print_grid(grid, terminal_width())


def _print_gaps(found: DifferenceMap) -> None:
    """What could not be compared, by name."""
    nonfinite = {u.unit: f"NaN or infinity in {u.nonfinite} of {u.weights} pairs" for u in found.units if u.nonfinite}
    gaps = [f"{unit}: {why}" for unit, why in (*found.problems.items(), *nonfinite.items())]
    gaps += router_gaps(found.routers)
    gaps += [f"{unit}: only in {side}" for side, units in found.only_in.items() for unit in units]
    for gap in gaps[:MOST_SHOWN]:
        print(printable(f"not compared: {gap}"))
    if len(gaps) > MOST_SHOWN:
        print(f"and {len(gaps) - MOST_SHOWN} more (--json shows all)")


def _number(value: float, how: str) -> str:
    return "-" if math.isnan(value) else format(value, how)
