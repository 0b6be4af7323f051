"""A recipe with ranges -> the recipes of its children, each with a name and its place on every axis.

    mix: {r1: {sweep: [0, 0.25, 0.5]}}                          values
    mix: {r1: {sweep: {from: 0, to: 1, steps: 9}}}              the same, evenly spaced
    components: {sweep: {experts: routed_experts, all: all}}    values with names
    delta: {sweep: [0, 0.001], as: delta}                       an axis with a name; all that bear it move together

A range may stand wherever a value of a rule or of `output` may. Each is an axis, called by the key that it stands under; the
children are all combinations.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from chimerakit.errors import RecipeError
from chimerakit.recipe.parse import recipe_from_data
from chimerakit.records import Recipe

_KEY, _NAME = "sweep", "as"
_GRID = ("from", "to", "steps")
_VARIABLE = ("rules", "output")
"""Where ranges may stand."""
_MOST = 1000
"""Children."""
_LONGEST = 100
"""Characters of a child's name: files are called by it."""


class Axis(Struct, frozen=True):
    """What changes from child to child, and the values that it takes."""

    name: str
    values: dict[str, Any]
    """By label, as they would stand in a recipe."""

    @property
    def numbers(self) -> tuple[float, ...] | None:
        """The values, if all of them are numbers."""
        found = tuple(self.values.values())
        return None if any(not _is_number(value) for value in found) else found

    def place(self, label: str) -> float:
        """Where a value stands on an axis of numbers; one that was looked for in between, too."""
        return float(self.values.get(label, label))


class Candidate(Struct, frozen=True):
    """One child of a sweep."""

    name: str
    recipe: Recipe
    point: dict[str, str]
    """The label of its value on each axis."""
    data: dict[str, Any]
    """As a file would say it: what the recipe's record has by default stands here only if it was written."""


class Ranges(Struct, frozen=True):
    """A recipe with ranges, read."""

    data: dict[str, Any]
    """As parsed."""
    axes: tuple[Axis, ...]
    where: str = "recipe"

    def candidates(self) -> list[Candidate]:
        """All combinations of the axes' values. Raises RecipeError."""
        points = itertools.product(*(axis.values for axis in self.axes))
        return [self.at(dict(zip((axis.name for axis in self.axes), labels, strict=True))) for labels in points]

    def at(self, point: Mapping[str, str], more: Mapping[str, float] | None = None) -> Candidate:
        """The child at one point. more: numbers that are none of an axis's values."""
        given = more or {}
        values = {
            axis.name: given[axis.name] if axis.name in given else axis.values[point[axis.name]] for axis in self.axes
        }
        labels = {name: _label(value) if name in given else point[name] for name, value in values.items()}
        filled = {key: _filled(self.data[key], values) for key in _VARIABLE if key in self.data}
        data = self.data | filled
        return Candidate(_name(labels, values), recipe_from_data(data, self.where), labels, data)


def has_ranges(data: Any) -> bool:
    """Whether parsed YAML has a range anywhere in its rules or its output."""
    return any(True for _ in _found(_variable(data)))


def read_ranges(data: Any, where: object = "recipe") -> Ranges:
    """The axes of parsed YAML. Raises RecipeError."""
    axes: dict[str, Axis] = {}
    for key, said in _found(_variable(data)):
        axis = _axis(key, said, where)
        if axes.setdefault(axis.name, axis) != axis:
            raise RecipeError(
                f"two axes are called {axis.name!r} and have other values",
                where=where,
                do=f"name one: {{{_KEY}: ..., {_NAME}: NAME}}",
            )
    count = math.prod(len(axis.values) for axis in axes.values())
    if count > _MOST:
        raise RecipeError("has too many children", where=where, expected=f"at most {_MOST}", found=count)
    found = Ranges(data, tuple(axes.values()), str(where))
    names = [candidate.name for candidate in found.candidates()]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RecipeError(
            "two children have one name",
            where=where,
            found=min(twice),
            do=f"name the values: {{{_KEY}: {{NAME: VALUE, ...}}}}",
        )
    return found


def _variable(data: Any) -> list[Any]:
    """The parts of a recipe in which ranges may stand."""
    return [data.get(key) for key in _VARIABLE] if isinstance(data, dict) else []


def _is_range(data: Any) -> bool:
    return isinstance(data, dict) and _KEY in data


def _found(data: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(key that it stands under, range), in the order of the text."""
    if _is_range(data):
        yield key, data
    elif isinstance(data, dict):
        for name, value in data.items():
            yield from _found(value, str(name))
    elif isinstance(data, list):
        for value in data:
            yield from _found(value, key)


def _filled(data: Any, values: Mapping[str, Any], key: str = "") -> Any:
    """The same with a value in the place of each range."""
    if _is_range(data):
        return values[str(data.get(_NAME, key))]
    if isinstance(data, dict):
        return {name: _filled(value, values, str(name)) for name, value in data.items()}
    return [_filled(value, values, key) for value in data] if isinstance(data, list) else data


def _axis(key: str, said: Mapping[str, Any], where: object) -> Axis:
    name, range_ = said.get(_NAME, key), said[_KEY]
    if set(said) - {_KEY, _NAME} or not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w.-]{0,39}", name):
        raise RecipeError(
            "is no range", where=f"{where}: {key}", expected="{sweep: [...], as: NAME}", found=_short(said)
        )
    place = f"{where}: {name}"
    if isinstance(range_, dict) and set(range_) == set(_GRID):
        values = _grid(range_, place)
    elif isinstance(range_, dict):
        values = {str(label): value for label, value in range_.items()}
    elif isinstance(range_, list):
        values = {_label(value): value for value in range_}
        if len(values) != len(range_):
            raise RecipeError("a value stands twice", where=place, found=_short(range_))
    else:
        values = {}
    if not values or any(not re.fullmatch(r"[\w+-][\w.+-]*", label) for label in values):
        raise RecipeError(
            "is no range", where=place, expected="[VALUE, ...], {NAME: VALUE, ...} or {from: 0, to: 1, steps: 5}",
            found=_short(range_),
        )  # fmt: skip
    return Axis(name, values)


def _grid(said: Mapping[str, Any], where: str) -> dict[str, Any]:
    first, last, steps = (said[key] for key in _GRID)
    if not _is_number(first) or not _is_number(last) or not isinstance(steps, int) or not 2 <= steps <= _MOST:
        raise RecipeError("is no grid", where=where, expected="{from: 0, to: 1, steps: 5}", found=_short(dict(said)))
    numbers = [last if n == steps - 1 else first + (last - first) * n / (steps - 1) for n in range(steps)]
    found = {_label(number): number for number in numbers}
    if len(found) != steps:
        raise RecipeError("its values are too near to be told apart", where=where, found=_short(dict(said)))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _label(value: Any) -> str:
    """A value as a word."""
    if _is_number(value):
        return repr(round(float(value), 6)).removesuffix(".0")
    if isinstance(value, list):
        return "+".join(_label(each) for each in value)
    if isinstance(value, dict):
        return "_".join(f"{name}-{_label(each)}" for name, each in value.items())
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-") or "none"


def _name(labels: Mapping[str, str], values: Mapping[str, Any]) -> str:
    """What a child is called: numbers with their axis, words alone."""
    parts = [f"{axis}-{label}" if _is_number(values[axis]) else label for axis, label in labels.items()]
    return "_".join(parts)[:_LONGEST] or "child"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def sweep_axis(axes: Sequence[Axis]) -> Axis | None:
    """The one axis of numbers, along which curves go and transitions are looked for; None if there is not exactly one."""
    found = [axis for axis in axes if axis.numbers is not None and len(axis.values) > 1]
    return found[0] if len(found) == 1 else None
