"""What a section of the page is made of. Charts are drawn by page.js, which gets these records as JSON."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from msgspec import Struct

from chimerakit.records import COMPONENTS, Component
from chimerakit.report.cells import Cell, Mark, pack_cells, pack_codes

Place = tuple[int, int]
"""(row, column) of a cell."""
_WIDE = 20
"""Numbers that differ by more than this factor are shown on a logarithmic scale."""
_MANY = 1 << 9
"""Texts of cells that a page holds."""


class Table(Struct, frozen=True):
    """Rows under headings; the first column names them."""

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    says: str = ""
    words: tuple[int, ...] = (0,)
    """Columns that hold words: set flush left."""
    is_folded: bool = False
    """Whether it is shown only when somebody asks."""


class Listing(Struct, frozen=True):
    """Statements."""

    kind: ClassVar[str] = "listing"
    title: str
    lines: tuple[str, ...]
    is_wrong: bool = False


class RecipeText(Struct, frozen=True):
    """A recipe in words, and as it would be merged."""

    kind: ClassVar[str] = "recipe"
    title: str
    says: str
    rules: tuple[str, ...]
    yaml: str


class Figure(Struct, frozen=True, omit_defaults=True):
    """One number for each cell of a map."""

    name: str
    scale: Literal["log", "linear"]
    ramp: Literal["magnitude", "share"]
    ends: tuple[float, float]
    """Numbers at the ends of the colours."""
    cells: str
    """Packed, row after row."""
    marks: dict[int, str]
    """What each mark in the cells means here."""
    labels: tuple[str, ...] = ()
    """At the ends and in the middle, in place of numbers."""
    is_percent: bool = False


class Label(Struct, frozen=True, array_like=True):
    """A row or a column."""

    tick: str
    """At the axis."""
    name: str
    """In a sentence."""


class Map(Struct, frozen=True, tag="map", omit_defaults=True):
    """Rows x columns of cells, in one or several figures to be switched."""

    down: str
    """What rows are."""
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    figures: tuple[Figure, ...]
    texts: tuple[str, ...] = ()
    text_of: str = ""
    """For each cell, packed: which text it has, counted from 1; 0 is none."""


class Series(Struct, frozen=True, omit_defaults=True):
    """Numbers of one thing."""

    name: str
    color: int
    """Of the page's colours, counted from 0."""
    values: tuple[float, ...]
    note: str = ""


class View(Struct, frozen=True):
    """One way to stack bars."""

    name: str
    unit: str
    series: tuple[Series, ...]


class Bars(Struct, frozen=True, tag="bars"):
    """A stacked bar for each column."""

    columns: tuple[Label, ...]
    views: tuple[View, ...]


class Spread(Struct, frozen=True, tag="spread"):
    """How numbers are spread: a histogram for each row; above, curves over the same axis."""

    across: str
    scale: Literal["log", "linear"]
    edges: tuple[float, ...]
    """Of the bins."""
    of: str
    """What bars are shares of."""
    rows: tuple[Series, ...]
    """Shares, one for each bin."""
    at: tuple[float, ...] = ()
    """Where curves have their numbers."""
    lines: tuple[Series, ...] = ()
    says: str = ""
    """What a curve is."""


Ranged = tuple[float, float, float]
"""A number with the ends of its interval."""


class Dot(Struct, frozen=True, omit_defaults=True):
    """One thing in a plane."""

    name: str
    color: int
    across: Ranged
    up: Ranged
    is_large: bool = False
    """Whether it stands out, with its name beside it."""
    line: str = ""
    """Dots of one line are joined, in their order."""


class Plane(Struct, frozen=True, tag="plane"):
    """Things by two numbers, each with its interval."""

    across: str
    up: str
    dots: tuple[Dot, ...]
    is_percent: bool = False
    """Whether the numbers upwards are shares."""


class Line(Struct, frozen=True, omit_defaults=True):
    """Numbers along an axis, with their intervals."""

    name: str
    color: int
    points: tuple[tuple[float, Ranged], ...]
    """(place, number)."""
    is_level: bool = False
    """Whether it is one number for the whole axis."""


class Curve(Struct, frozen=True, omit_defaults=True):
    """One figure along an axis."""

    name: str
    lines: tuple[Line, ...]
    is_percent: bool = False


class Curves(Struct, frozen=True, tag="curves", omit_defaults=True):
    """Figures along one axis, to be switched."""

    across: str
    views: tuple[Curve, ...]
    marked: tuple[float, float] | None = None
    """Where something happens."""
    says: str = ""
    """What happens there."""


class Chart(Struct, frozen=True):
    """A drawing with a title and a sentence on how to read it."""

    kind: ClassVar[str] = "chart"
    title: str
    says: str
    data: Map | Bars | Spread | Plane | Curves


Block = Table | Listing | RecipeText | Chart


class Section(Struct, frozen=True):
    """Everything about one result."""

    verb: str
    title: str
    name: str
    """Of the result's file."""
    facts: tuple[tuple[str, str], ...]
    blocks: tuple[Block, ...]


def make_figure(
    name: str,
    cells: Mapping[Place, Cell],
    shape: Place,
    marks: Mapping[Mark, str],
    *,
    is_percent: bool = False,
    ends: tuple[float, float] | None = None,
) -> Figure:
    """A figure of magnitudes. Without given ends the scale is that of the numbers, logarithmic where they differ much; marks
    that nothing has are left out."""
    numbers = [cell for cell in cells.values() if isinstance(cell, float) and 0 < cell < math.inf]
    ends = ends or (min(numbers, default=1.0), max(numbers, default=1.0))
    is_log = 0 < ends[0] < ends[1] / _WIDE
    return Figure(
        name=name,
        scale="log" if is_log else "linear",
        ramp="magnitude",
        ends=ends,
        cells=pack_grid(cells, shape),
        marks=_used(marks, cells),
        is_percent=is_percent,
    )


def make_shares(
    name: str, cells: Mapping[Place, Cell], shape: Place, marks: Mapping[Mark, str], labels: tuple[str, str, str]
) -> Figure:
    """A figure of shares from 0 to 1."""
    packed = pack_grid(cells, shape)
    return Figure(name, "linear", "share", (0.0, 1.0), packed, _used(marks, cells), labels)


def pack_grid(cells: Mapping[Place, Cell], shape: Place) -> str:
    """Cells row after row; those that are not there as such."""
    rows, columns = shape
    return pack_cells(cells.get((row, column)) for row in range(rows) for column in range(columns))


def _used(marks: Mapping[Mark, str], cells: Mapping[Place, Cell]) -> dict[int, str]:
    values = cells.values()
    there = {cell for cell in values if isinstance(cell, Mark)}
    there |= {Mark.ZERO for cell in values if isinstance(cell, float) and cell <= 0}
    there |= {Mark.INFINITE for cell in values if cell == math.inf}
    there |= {Mark.UNDEFINED for cell in values if isinstance(cell, float) and math.isnan(cell)}
    return {int(mark): says for mark, says in marks.items() if mark in there}


def pack_texts(texts: Mapping[Place, str], shape: Place) -> tuple[tuple[str, ...], str]:
    """Texts of cells, each once, and which cell has which. What is beyond a few hundred texts is left out."""
    found = list(dict.fromkeys(texts.values()))[:_MANY]
    numbers = {text: number for number, text in enumerate(found, 1)}
    rows, columns = shape
    places = ((row, column) for row in range(rows) for column in range(columns))
    return tuple(found), pack_codes(numbers.get(texts.get(place, ""), 0) for place in places)


def color_of(component: Component) -> int:
    """The number of a component's colour: the same in every chart."""
    return COMPONENTS.index(component)


def bins(values: Sequence[float], edges: Sequence[float], weights: Sequence[float], whole: float) -> tuple[float, ...]:
    """The share of the whole in each bin between edges; a value on an edge counts above it, what is outside at the ends."""
    found = [0.0] * (len(edges) - 1)
    for value, weight in zip(values, weights, strict=True):
        found[max(0, min(bisect_right(edges, value) - 1, len(found) - 1))] += weight
    return tuple(rounded(number / whole) for number in found)


def rounded(value: float) -> float:
    """Four significant digits, so that a page is short."""
    return float(f"{value:.4g}")
