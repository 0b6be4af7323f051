"""The records of a sweep, in the order in which they come about: frozen, to and from JSON."""

from typing import Any

from msgspec import Struct

from chimerakit.evaluate.records import Evaluation, Measurement, Model
from chimerakit.recipe import Axis


class Grown(Struct, frozen=True):
    """One child of a sweep."""

    name: str
    point: dict[str, str]
    """The label of its value on each axis."""
    recipe: str
    """As YAML: it makes the child again, bit for bit."""
    plan: str
    """The digest of its plan."""
    is_kept: bool
    """Whether its weights are still there."""


class Goal(Struct, frozen=True):
    """What is looked for: where a figure crosses a value."""

    metric: str
    """A figure of a measurement that has an interval: trace_rate, accuracy, output_tokens, ..."""
    value: float
    within: float
    """How far apart the two sides may lie at last."""


class Transition(Struct, frozen=True):
    """Where a figure crosses a value: between two children next to each other."""

    goal: Goal
    axis: str
    low: float
    high: float
    """The two sides on the axis."""
    at_low: float
    at_high: float
    """The figure there."""
    children: int
    """That were measured to find it."""


def say_transition(found: Transition) -> str:
    """A transition in a sentence."""
    goal = found.goal
    return (
        f"{goal.metric} crosses {goal.value:g} between {found.axis} = {found.low:g} ({found.at_low:.3g}) and {found.high:g} "
        f"({found.at_high:.3g}), found with {found.children} children"
    )


class Sweep(Struct, frozen=True, tag_field="what", tag="sweep"):
    """A finished sweep: children, how they did, and the parents beside them."""

    recipe: dict[str, Any]
    """With its ranges."""
    axes: tuple[Axis, ...]
    children: tuple[Grown, ...]
    parents: tuple[str, ...]
    base: str
    evaluation: Evaluation | None
    """None if there was no task."""
    transition: Transition | None = None
    format: int = 1


class Progress(Struct, frozen=True):
    """What a sweep's folder says of itself while it goes on."""

    children: dict[str, str]
    """The digest of the plan of each child that was begun."""
    gone: dict[str, Model]
    """Of children whose weights were deleted after they were measured: whose answers they gave."""


def figure(measurement: Measurement, metric: str) -> float | None:
    """A figure of a measurement; None where it has none."""
    found = getattr(measurement, metric)
    return None if found is None else float(found.value)
