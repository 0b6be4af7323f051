"""A difference map as a section, against sums written out."""

import math

import pytest

from chimerakit.compare import Choices, UnitDifference
from chimerakit.compare.states import States
from chimerakit.records import Role
from chimerakit.report.blocks import Chart, Figure, Listing, Map, Section, Spread, Table
from chimerakit.report.compared import show_map
from tests.report.results import difference, map_of, router, unpack


def expert(layer: int, number: int, projection: str, rms: float, **sums: int) -> UnitDifference:
    role = Role("routed_experts", layer, number, projection)
    return difference(f"layers.{layer}.experts.{number}.{projection}", role, rms, **sums)


UNITS = [
    difference("embed", Role("embedding"), 0.5),
    difference("norm.0", Role("norm", 0), 0.0),
    difference("norm.4", Role("norm", 4, mtp=True), 2e-3),
    expert(4, 7, "up", 3e-3),
    expert(4, 7, "down", 4e-3),
    expert(4, 9, "up", 1.0, nonfinite=1),
]


@pytest.fixture(scope="module")
def section() -> Section:
    return show_map(map_of(UNITS, problems={"odd": "the shapes differ"}, only_in={"a": ("lone",), "b": ()}), "m.npz")


def chart(section: Section, title: str) -> Chart:
    return next(block for block in section.blocks if isinstance(block, Chart) and block.title == title)


def cells(found: Chart, figure: str) -> list[list[float | str | None]]:
    """A figure of a map, row by row."""
    assert isinstance(found.data, Map)
    packed = unpack(next(f for f in found.data.figures if f.name == figure).cells)
    width = len(found.data.columns)
    return [packed[n : n + width] for n in range(0, len(packed), width)]


def figure_of(found: Chart, name: str) -> Figure:
    assert isinstance(found.data, Map)
    return next(f for f in found.data.figures if f.name == name)


def test_components_and_layers_have_their_places(section: Section) -> None:
    """One row for each component, one column for each layer that is there; outside layers at the left, MTP named."""
    data = chart(section, "Difference: components").data
    assert isinstance(data, Map)
    assert [row.name for row in data.rows] == ["embedding", "norm", "routed_experts"]
    assert [(c.tick, c.name) for c in data.columns] == [
        ("out", "outside layers"),
        ("0", "layer 0"),
        ("MTP", "layer 4 (MTP)"),
    ]
    assert cells(chart(section, "Difference: components"), "RMS") == [
        [0.5, None, None],
        [None, "mark 1", 0.002],
        [None, None, "mark 5"],
    ]


def test_an_expert_s_figures_are_over_its_matrices(section: Section) -> None:
    """The RMS of two matrices of 10 numbers is that of all 20; NaN or infinity is marked, not averaged."""
    found = chart(section, "Difference: experts")
    together = math.sqrt((10 * 3e-3**2 + 10 * 4e-3**2) / 20)
    assert cells(found, "RMS") == [[None, None, float(f"{together:.2e}")], [None, None, "mark 5"]]
    assert cells(found, "relative RMS") == cells(found, "RMS")  # the base's RMS is 1
    assert cells(found, "changed bytes")[0][2] == 0.5
    assert figure_of(found, "RMS").marks == {5: "NaN or infinity"}


def test_a_scale_is_logarithmic_where_numbers_differ_much(section: Section) -> None:
    """From 0.002 to 0.5 it is; where all are equal it is not."""
    found = chart(section, "Difference: components")
    assert (figure_of(found, "RMS").scale, figure_of(found, "RMS").ends) == ("log", (0.002, 0.5))
    assert figure_of(found, "changed bytes").scale == "linear"


def test_curves_say_which_bytes_a_delta_mixes(section: Section) -> None:
    """At every delta the share of the base's bytes whose RMS is larger; NaN and infinity count as farthest."""
    data = chart(section, "What a delta takes").data
    assert isinstance(data, Spread)
    for line in data.lines:
        own = [unit for unit in UNITS if line.name in ("all", unit.role.component)]
        for delta, share in zip(data.at, line.values, strict=True):
            farther = [unit for unit in own if unit.nonfinite or unit.rms > delta]
            assert share == pytest.approx(sum(u.nbytes_a for u in farther) / sum(u.nbytes_a for u in own), abs=1e-3)
    assert data.at[0] < 2e-3 < 0.5 < data.at[-1]


def test_histograms_hold_what_lies_apart(section: Section) -> None:
    """The bins of a component sum to the share of its bytes that differs by a finite number; the rest is told."""
    data = chart(section, "What a delta takes").data
    assert isinstance(data, Spread)
    assert {row.name: (round(sum(row.values), 3), row.note) for row in data.rows} == {
        "embedding": (1.0, ""),
        "norm": (0.5, "50 % at 0"),
        "routed_experts": (0.667, ""),
    }


def test_what_is_not_compared_is_named(section: Section) -> None:
    """With the reason."""
    gaps = next(block for block in section.blocks if isinstance(block, Listing))
    assert gaps.is_wrong
    assert gaps.lines == (
        "odd: the shapes differ",
        "layers.4.experts.9.up: NaN or infinity in 1 of 10 pairs",
        "lone: only in a",
    )


def test_tables_hold_the_figures(section: Section) -> None:
    """One row for each component and one for all; deltas for shares of the bytes."""
    tables = {block.title: block for block in section.blocks if isinstance(block, Table)}
    assert tables["Components"].rows[0][:5] == ("embedding", "1", "20 B", "0.5", "50 %")
    assert [row[0] for row in tables["Components"].rows] == ["embedding", "norm", "routed_experts", "all"]
    assert tables["Deltas"].rows[0] == ("all", "inf", "0.5", "0.003", "0.002", "0")


def test_maps_of_equal_checkpoints_and_empty_ones_are_shown() -> None:
    """Nothing to draw a delta for; nothing to draw at all."""
    equal = show_map(map_of([difference("norm", Role("norm", 0), 0.0)]), "m.npz")
    assert [block.title for block in equal.blocks if isinstance(block, Chart)] == ["Difference: components"]
    assert not [block for block in show_map(map_of([]), "m.npz").blocks if isinstance(block, Chart)]


# --------------------------------------------------------------------------------------------- routers


def test_routers_are_drawn_expert_by_expert() -> None:
    """1 - cosine of each row, the size of changes; no figure where a row has none."""
    routers = (
        router(0, (1.0, 0.75), bias_changes=(-0.5, 0.25)),
        router(4, (None, 0.5), objection="no states of this layer"),
    )
    section = show_map(map_of(UNITS, routers=routers), "m.npz")
    found = chart(section, "Routers: experts")
    assert isinstance(found.data, Map)
    assert [row.name for row in found.data.rows] == ["expert 0", "expert 1"]
    assert [column.tick for column in found.data.columns] == ["out", "0", "MTP"]
    assert cells(found, "1 − cosine of rows") == [[None, "mark 1", "mark 3"], [None, 0.25, 0.5]]  # noqa: RUF001
    assert cells(found, "change of bias") == [[None, 0.5, None], [None, 0.25, None]]
    table = next(b for b in section.blocks if isinstance(b, Table) and b.title == "Routers: layers")
    assert table.rows[0] == ("0", "0.875", "0.75", "0.395285", "", "", "")
    wrong = [block.lines for block in section.blocks if isinstance(block, Listing) and block.is_wrong]
    assert ("layers.4.gate: no states of this layer",) in wrong


def test_choices_of_routers_are_told_with_what_they_were_asked_on() -> None:
    """Synthetic states are called that."""
    choices = Choices(tokens=4, top_k=1, shared=3, same=3, loads_a=(4, 0), loads_b=(3, 1))
    found = map_of(UNITS, routers=(router(0, (1.0, 1.0), choices=choices),), states=States("drawn", is_synthetic=True))
    section = show_map(found, "m.npz")
    assert cells(chart(section, "Routers: experts"), "relative change of load") == [
        [None, 0.25, None],
        [None, 1.0, None],
    ]
    assert cells(chart(section, "Routers: choices"), "share") == [[None, 0.75, None], [None, 0.75, None]]
    assert chart(section, "Routers: choices").says.endswith(" choose the same, on drawn, which are of no model.")
    table = next(b for b in section.blocks if isinstance(b, Table) and b.title == "Routers: layers")
    assert table.rows[0][4:] == ("75 %", "75 %", "expert 0")
    assert table.says == "Overlap: the share of chosen experts that both choose, on drawn, which are of no model."
