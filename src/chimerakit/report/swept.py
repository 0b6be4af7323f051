"""A sweep as a section: its curves and its transition, the plane, its children's recipes."""

from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from chimerakit.evaluate.records import Estimate, Measurement
from chimerakit.recipe import Axis, parse_recipe, say_rule, sweep_axis
from chimerakit.report.blocks import Block, Chart, Curve, Curves, Line, Listing, RecipeText, Section
from chimerakit.report.evaluated import blocks_of, facts_of, ranged
from chimerakit.report.words import say_lines, say_text
from chimerakit.sweep.bisect import crossing
from chimerakit.sweep.records import Grown, Sweep, say_transition

_FIGURES: tuple[tuple[str, str, bool], ...] = (
    ("accuracy", "accuracy", True),
    ("output_tokens", "output tokens", False),
    ("trace_rate", "traces", True),
    ("reasoning_tokens", "tokens of a trace", False),
    ("workable", "workable", True),
)
"""(figure, what it is called, whether it is a share)."""
_MOST_RECIPES = 40
_COLORS = 9


def show_sweep(found: Sweep, name: str) -> Section:
    """Curves first, then what `evaluate` shows, then the recipes."""
    axis = sweep_axis(found.axes) or (found.axes[0] if len(found.axes) == 1 and found.axes[0].numbers else None)
    facts = [("children", str(len(found.children))), ("parents", say_text(", ".join(found.parents)))]
    blocks: list[Block] = []
    if found.evaluation is not None:
        facts += facts_of(found.evaluation)
        lines = {child.name: _line_of(child, found.axes, axis) for child in found.children}
        blocks += blocks_of(found.evaluation, lines)
        if axis is not None:
            blocks[1:1] = _curves(found, axis)
    if found.transition is not None:
        blocks.insert(1, Listing("The transition", (say_text(say_transition(found.transition)),)))
    blocks += _recipes(found)
    axes = " and ".join(a.name for a in found.axes) or "nothing"
    return Section("sweep", say_text(f"A sweep over {axes}"), name, tuple(facts), tuple(blocks))


def _line_of(child: Grown, axes: tuple[Axis, ...], axis: Axis | None) -> str:
    """The curve that a child is on: its values on all other axes."""
    others = [child.point[a.name] for a in axes if axis is None or a.name != axis.name]
    return ", ".join(others) or "children"


def _curves(found: Sweep, axis: Axis) -> Iterator[Chart]:
    """A chart for each task: every figure along the axis, parents as levels."""
    assert found.evaluation is not None
    for number, task in enumerate(dict.fromkeys(m.task for m in found.evaluation.measurements)):
        measured = {m.model.name: m for m in found.evaluation.measurements if m.task == task}
        views = [
            Curve(name, tuple(_lines(found, axis, measured, figure)), is_percent)
            for figure, name, is_percent in _FIGURES
        ]
        marked, says = _transition(found if number == 0 else replace(found, transition=None), axis, measured)
        yield Chart(
            say_text(f"{task}: along {axis.name}"),
            "Bands are 95 % intervals; broken lines are the parents.",
            Curves(
                across=say_text(axis.name),
                views=tuple(view for view in views if any(not line.is_level for line in view.lines)),
                marked=marked,
                says=say_text(says),
            ),
        )


def _transition(
    found: Sweep, axis: Axis, measured: Mapping[str, Measurement]
) -> tuple[tuple[float, float] | None, str]:
    """Where the figure that was looked for crosses its value; else where half of the first line's answers have a trace."""
    at = found.transition
    if at is not None:
        return (at.low, at.high), f"{at.goal.metric} crosses {at.goal.value:g}"
    first = _line_of(found.children[0], found.axes, axis)
    known = {
        axis.place(child.point[axis.name]): measured[child.name].trace_rate.value
        for child in found.children
        if _line_of(child, found.axes, axis) == first
    }
    return crossing(known, 0.5), f"half of the answers have a trace ({first})"


def _lines(found: Sweep, axis: Axis, measured: Mapping[str, Measurement], figure: str) -> Iterator[Line]:
    names = list(dict.fromkeys(_line_of(child, found.axes, axis) for child in found.children))
    for number, name in enumerate(names):
        points = []
        for child in found.children:
            value: Estimate | None = getattr(measured[child.name], figure)
            if _line_of(child, found.axes, axis) == name and value is not None:
                points.append((axis.place(child.point[axis.name]), ranged(value)))
        if points:
            yield Line(say_text(name), number % _COLORS, tuple(sorted(points)))
    for parent in found.parents:
        value = getattr(measured[parent], figure)
        if value is not None:
            yield Line(
                say_text(parent), -1, ((axis.place(found.children[0].point[axis.name]), ranged(value)),), is_level=True
            )


def _recipes(found: Sweep) -> Iterator[Block]:
    """Each child's recipe; of many children only as many as anybody reads."""
    for child in found.children[:_MOST_RECIPES]:
        rules = say_lines([*map(say_rule, parse_recipe(child.recipe).rules)])
        kept = "" if child.is_kept else " Its weights were deleted; this makes them again."
        says = say_text(f"Plan {child.plan}.{kept}")
        yield RecipeText(say_text(f"Recipe of {child.name}"), says, rules, child.recipe)
    if len(found.children) > _MOST_RECIPES:
        yield Listing("More recipes", (f"{len(found.children) - _MOST_RECIPES} more, which the saved result holds",))
