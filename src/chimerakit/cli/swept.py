"""Sweeps -> tables on a terminal, or JSON: what they will take, and what they found."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chimerakit.cli.evaluated import print_measurements
from chimerakit.cli.show import add_row, make_grid, print_grid
from chimerakit.errors import RecipeError, printable
from chimerakit.evaluate.records import Estimate, Measurement
from chimerakit.records import Plan
from chimerakit.sweep import Goal, Sweep, disk_of
from chimerakit.sweep.build import link_is_possible, sharing_is_possible
from chimerakit.sweep.records import say_transition
from chimerakit.sweep.run import SAVED
from chimerakit.words import say_nbytes

_LITTLE = 0.25
"""A share of bytes that is hardly worth sharing."""


def goal_of(text: str | None, within: float) -> Goal | None:
    """FIGURE=VALUE. Raises RecipeError."""
    if text is None:
        return None
    metric, _, value = text.partition("=")
    figures = [name for name, kind in Measurement.__annotations__.items() if kind in (Estimate, Estimate | None)]
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if metric not in figures or not math.isfinite(number) or not within > 0:
        raise RecipeError(
            "can't be read",
            where=f"--bisect {text}",
            expected=f"FIGURE=VALUE, of {', '.join(figures)}, and --within > 0",
        )
    return Goal(metric, number, within)


def plans_view(plans: Mapping[str, Plan], folder: Path | None) -> dict[str, Any]:
    """What the children of a sweep take, as data."""
    one = next(iter(plans.values()))
    linked, shared = link_is_possible(one, folder or Path()), sharing_is_possible(folder or Path())
    disk = disk_of(plans, linked=linked, shared=shared)
    return {
        "children": {name: {"plan": plan.digest, "nbytes": plan.output_nbytes} for name, plan in plans.items()},
        "disk": {
            "new": disk.new,
            "whole": disk.whole,
            "linked_to_parents": disk.linked,
            "shared_between_children": disk.shared,
            "selected_of_a_child": disk.selected,
            "unselected_once": disk.unselected,
            "links_to_parents_are_possible": linked,
            "links_between_children_are_possible": shared,
        },
        "notes": list(dict.fromkeys(note for plan in plans.values() for note in plan.notes)),
    }


def print_plans(view: dict[str, Any]) -> None:
    """The same as a table."""
    disk, children = view["disk"], view["children"]
    grid = make_grid(f"{len(children)} children", "child", "size")
    for name, child in children.items():
        add_row(grid, name, say_nbytes(child["nbytes"]))
    print_grid(grid)
    print()
    print(f"new on the disk:            {say_nbytes(disk['new'])} of {say_nbytes(disk['whole'])}")
    print(f"  what rules take, a child: {say_nbytes(disk['selected_of_a_child'])}")
    often = "once:   " if disk["links_between_children_are_possible"] else "a child:"
    print(f"  what no rule takes, {often} {say_nbytes(disk['unselected_once'])}")
    print(f"  links to parents' files:  {say_nbytes(disk['linked_to_parents'])}")
    print(f"  links between children:   {say_nbytes(disk['shared_between_children'])}")
    if not disk["links_between_children_are_possible"]:
        print(
            "note: files here can't have second names (hard links), so nothing is shared: each child has files of its own"
        )
    elif not disk["links_to_parents_are_possible"]:
        print("note: parents lie where no hard links lead from here, so their files are copied, once for all children")
    if disk["links_between_children_are_possible"] and disk["whole"] - disk["new"] < _LITTLE * disk["whole"]:
        print(
            "note: nearly nothing can be shared: most bytes are in files that the rules touch, and each child has its own"
        )
    for note in view["notes"]:
        print(printable(f"note: {note}"))


def sweep_view(found: Sweep, output: Path) -> dict[str, Any]:
    """What was found, as data; answers stand in the folder."""
    evaluation = found.evaluation
    return {
        "saved": str(output / SAVED),
        "children": found.children,
        "measurements": () if evaluation is None else evaluation.measurements,
        "differences": () if evaluation is None else evaluation.differences,
        "transition": found.transition,
    }


def print_sweep(found: Sweep, output: Path) -> None:
    """The same as tables."""
    if found.evaluation is None:
        for child in found.children:
            print(printable(f"{output / 'children' / child.name}"))
    else:
        print_measurements(found.evaluation)
    if found.transition is not None:
        print(printable(say_transition(found.transition)))
    print(printable(f"saved: {output / SAVED}; show it: chimerakit report {output / SAVED} -o PAGE.html"))
