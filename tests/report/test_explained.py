"""An explanation as a section: whose bytes stand where, in numbers and in words."""

from typing import Any

import pytest

from chimerakit.explain import Estimate, Explained
from chimerakit.explain.sample import Sampled
from chimerakit.numerics.cells import Interval
from chimerakit.recipe import parse_recipe
from chimerakit.records import Role
from chimerakit.report.blocks import Chart, Listing, Map, RecipeText, Section, Spread, Table
from chimerakit.report.explained import show_explanation
from tests.report.results import EVIL, explained, explanation_of, unpack

MIX = {"v3": 0.25, "r1": 0.75}
RECIPE = {
    "parents": {"v3": None, "r1": None},
    "base": "v3",
    "rules": [{"mix": {"r1": 0.75}, "components": "attention"}],
}


def expert(layer: int, number: int, shares: dict[str, float], **fields: Any) -> Explained:
    role = Role("routed_experts", layer, number)
    return explained(f"{layer}.experts.{number}", "routed_experts", layer, shares, role=role, **fields)


UNITS = [
    explained("embed", "embedding", None, {"v3": 1.0}),
    explained("0.norm", "norm", 0, {"v3": 1.0, "r1": 1.0}),
    explained("0.attn.q", "attention", 0, MIX, nbytes=300),
    explained("0.attn.o", "attention", 0, {"v3": 1.0}),
    explained("0.attn.norm", "attention", 0, {"v3": 1.0, "r1": 1.0}, nbytes=9999),
    expert(1, 5, {"r1": 1.0}),
    expert(1, 8, {}, verdict="unexplained", why="the nearest mix gives all but 3"),
    expert(2, 5, {"v3": 0.4, "r1": 0.6}, verdict="estimated", encoder="torch's cast", why="all but 2 %"),
]


@pytest.fixture(scope="module")
def section() -> Section:
    found = explanation_of(
        UNITS,
        is_explained=False,
        recipe=RECIPE,
        missing={"v3": ("lost",), "r1": ()},
        unlike=("config.json: another",),
        estimates=(Estimate(0, "torch's cast", 3, {"r1": 0.6}, {"r1": Interval(0.59, 0.61)}),),
        undetermined=("2 units have the same bytes",),
        differences={"r1": ("chat template: only the child's",), "v3": ()},
    )
    return show_explanation(found, "x.json")


def charts(section: Section) -> dict[str, Chart]:
    return {block.title: block for block in section.blocks if isinstance(block, Chart)}


def map_of(chart: Chart) -> Map:
    assert isinstance(chart.data, Map)
    return chart.data


def test_a_cell_is_the_mean_share_of_its_bytes(section: Section) -> None:
    """Of units that can be told apart: 300 bytes at 0.75 and 100 at 0; where parents agree, a mark; where nothing
    explains a unit, another."""
    data = map_of(charts(section)["Whose bytes: components"])
    assert [row.name for row in data.rows] == ["embedding", "norm", "attention", "routed_experts"]
    assert [column.tick for column in data.columns] == ["out", "0", "1", "2"]
    (figure,) = data.figures
    assert (figure.name, figure.labels) == ("share of r1", ("v3", "half", "r1"))
    assert figure.marks == {4: "parents agree", 5: "unexplained"}
    none = [None] * 4
    cells = unpack(figure.cells)
    assert [cells[n : n + 4] for n in range(0, 16, 4)] == [
        ["mark 1", *none[1:]],
        [None, "mark 4", None, None],
        [None, 0.562, None, None],  # 0.5625 to three digits
        [None, None, "mark 5", 0.6],
    ]


def test_experts_have_a_map_of_their_own(section: Section) -> None:
    """Its columns are those of the components', so that they stand under each other."""
    data = map_of(charts(section)["Whose bytes: experts"])
    assert [row.name for row in data.rows] == ["expert 5", "expert 8"]
    assert data.columns == map_of(charts(section)["Whose bytes: components"]).columns
    assert unpack(data.figures[0].cells) == [None, None, 1.0, 0.6, None, None, "mark 5", None]


def test_a_cell_says_how_its_units_are_made(section: Section) -> None:
    """In words, with the reason where a unit is unexplained."""
    data = map_of(charts(section)["Whose bytes: components"])
    assert data.texts == (
        "1 unit = v3",
        "1 unit = v3 = r1",
        "1 unit 0.25 v3 + 0.75 r1; 1 unit = v3; 1 unit = v3 = r1",
        "1 unit = r1; 1 unit unexplained: 1.experts.8: the nearest mix gives all but 3",
        "1 unit about 0.4 v3 + 0.6 r1",
    )


def test_the_recipe_is_told_and_can_be_merged(section: Section) -> None:
    """In words, and as a text that parses to the same recipe."""
    block = next(b for b in section.blocks if isinstance(b, RecipeText))
    assert block.says == "v3 is the base: the first rule that matches a unit takes it, and the base the rest."
    assert block.rules == ("mix: {r1: 0.75}, components: attention",)
    assert parse_recipe(block.yaml).rules[0].mix == {"r1": 0.75}


def test_shares_are_counted_where_units_are_mixed(section: Section) -> None:
    """One row for each component with mixes; all of a component's mixed units are in its bins."""
    data = charts(section)["Shares in what is mixed"].data
    assert isinstance(data, Spread)
    assert {row.name: row.note for row in data.rows} == {"attention": "1 unit", "routed_experts": "1 unit"}
    for row, share in zip(data.rows, (0.75, 0.6), strict=True):
        (bin_,) = (n for n, value in enumerate(row.values) if value)
        assert row.values[bin_] == 1
        assert data.edges[bin_] <= share + 1e-9
        assert share < data.edges[bin_ + 1] + 1e-9


def test_findings_are_listed(section: Section) -> None:
    """What is unexplained as wrong; what is missing, otherwise, undetermined, and what parents differ in besides."""
    found = {block.title: block for block in section.blocks if isinstance(block, Listing)}
    assert found["Unexplained"].is_wrong
    assert found["Unexplained"].lines == ("1.experts.8: the nearest mix gives all but 3",)
    assert found["Estimated: made by another program"].lines == ("3 units of rule 1: 0.59 to 0.61 r1 (torch's cast)",)
    assert found["Units that the child lacks"].lines == ("lost, which v3 has",)
    assert found["In what else the child differs from r1"].lines == ("chat template: only the child's",)
    assert "In what else the child differs from v3" not in found


def test_the_table_has_a_row_for_each_component(section: Section) -> None:
    """Units, bytes, and in how many ways they are made."""
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert table.rows[0] == ("embedding", "1", "100 B", "= v3")
    assert table.rows[3] == ("routed_experts", "3", "300 B", "= r1 (1); unexplained (1); about 0.4 v3 + 0.6 r1 (1)")


def test_of_three_parents_each_has_its_figure() -> None:
    """With its own share."""
    units = [explained("q", "attention", 0, {"v3": 0.5, "r1": 0.3, "q": 0.2})]
    found = show_explanation(explanation_of(units, parents=("v3", "r1", "q")), "x.json")
    figures = map_of(charts(found)["Whose bytes: components"]).figures
    assert [(figure.name, unpack(figure.cells)) for figure in figures] == [
        ("share of v3", [0.5]),
        ("share of r1", [0.3]),
        ("share of q", [0.2]),
    ]


def test_a_child_that_nothing_explains_is_shown() -> None:
    """No recipe, no parents, no units: what there is to say is said."""
    found = show_explanation(explanation_of([], parents=(), recipe=None, is_explained=False), "x.json")
    assert ("recipe", "none found") in found.facts
    assert not charts(found)


def test_a_sample_is_told_as_one() -> None:
    """How much was looked at, and that the rest is not proven."""
    sample = Sampled(share=0.01, seed=7, units=10, all_units=1000, nbytes=5000, all_nbytes=10**6)
    found = show_explanation(explanation_of(UNITS, sample=sample), "x.json")
    says = "10 of 1,000 units, 5.0 kB of 1.0 MB, seed 7: nothing is proven of the rest"
    assert ("a sample", says) in found.facts


def test_a_child_s_place_is_not_told() -> None:
    """A page may be shown around: of a path only the last name is in it."""
    found = show_explanation(explanation_of(UNITS, child="/home/somebody/r1t"), "x.json")
    assert found.title == "What r1t is made of"
    assert "somebody" not in repr(found)


def test_texts_of_files_hold_no_control_characters() -> None:
    """Wherever a name can stand."""
    units = [explained(EVIL, "attention", 0, {}, verdict="unexplained", why=EVIL)]
    found = show_explanation(explanation_of(units, child=EVIL, unlike=(EVIL,), differences={"v3": (EVIL,)}), "x.json")
    assert "\x1b" not in str(found)
    assert "\u202e" not in str(found)
