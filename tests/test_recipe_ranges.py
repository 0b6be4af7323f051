"""Recipes with ranges: every combination is a child with a name, and whatever can't be read is one clear error."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chimerakit.errors import RecipeError
from chimerakit.recipe import load_ranges, parse_recipe, read_ranges, sweep_axis
from chimerakit.recipe.text import load_yaml
from chimerakit.records import COMPONENTS, Gradient

HEAD = "parents: {v3: , r1: }\nbase: v3\n"


def ranges(rules: str, output: str = "") -> Any:
    """The ranges of some rules."""
    return read_ranges(load_yaml(HEAD + f"rules: {rules}\n" + output, "recipe"))


def test_a_range_of_shares_is_a_child_for_each() -> None:
    """Called by parent and share, with the recipe that the share alone would give."""
    found = ranges("[{mix: {r1: {sweep: [0, 0.25, 1]}}, components: routed_experts}]")
    assert [c.name for c in found.candidates()] == ["r1-0", "r1-0.25", "r1-1"]
    for candidate, share in zip(found.candidates(), (0, 0.25, 1), strict=True):
        text = HEAD + f"rules: [{{mix: {{r1: {share}}}, components: routed_experts}}]\n"
        assert candidate.recipe == parse_recipe(text)


def test_a_grid_is_evenly_spaced() -> None:
    """Both ends are in it, exactly."""
    (axis,) = ranges("[{mix: {r1: {sweep: {from: 0, to: 1, steps: 5}}}, components: all}]").axes
    assert axis.numbers == (0, 0.25, 0.5, 0.75, 1)
    assert sweep_axis([axis]) == axis


def test_ranges_multiply() -> None:
    """Shares, sets of components, deltas: every combination, the last axis fastest."""
    found = ranges(
        "[{mix: {r1: {sweep: [0.5, 1]}}, components: {sweep: [routed_experts, [router, norm], all]}, "
        "delta: {sweep: [0, 1e-3]}}]"
    )
    names = [c.name for c in found.candidates()]
    wanted = itertools.product(("r1-0.5", "r1-1"), ("routed_experts", "router+norm", "all"), ("delta-0", "delta-0.001"))
    assert names == ["_".join(each) for each in wanted]
    last = found.candidates()[-1]
    assert (last.recipe.rules[0].components, last.recipe.rules[0].delta) == (COMPONENTS, 0.001)
    assert last.point == {"r1": "1", "components": "all", "delta": "0.001"}
    assert sweep_axis(found.axes) is None


def test_values_may_have_names() -> None:
    """Which the children are called by."""
    found = ranges(
        "[{take: r1, components: {sweep: {experts: routed_experts, ffn: [routed_experts, shared_experts]}}}]"
    )
    assert [c.name for c in found.candidates()] == ["experts", "ffn"]


def test_axes_of_one_name_move_together() -> None:
    """So two rules can have the same share."""
    share = "{sweep: [0.25, 0.75], as: share}"
    found = ranges(
        f"[{{mix: {{r1: {share}}}, components: router}}, {{mix: {{r1: {{from: 0, to: {share}}}}}, layers: 0-5}}]"
    )
    assert [c.name for c in found.candidates()] == ["share-0.25", "share-0.75"]
    first, second = found.candidates()[1].recipe.rules
    assert first.mix == {"r1": 0.75}
    assert second.mix == {"r1": Gradient(0, 0.75)}


def test_outputs_have_ranges_too() -> None:
    """As other values have."""
    found = ranges("[{take: r1, components: all}]", "output: {dtype: {sweep: [keep, bf16]}}\n")
    assert [(c.name, c.recipe.output.dtype) for c in found.candidates()] == [("keep", "keep"), ("bf16", "bf16")]


def test_a_recipe_without_ranges_has_one_child() -> None:
    """So whatever sweeps takes any recipe."""
    (only,) = ranges("[{take: r1, components: all}]").candidates()
    assert (only.name, only.point) == ("child", {})


def test_a_place_between_the_values() -> None:
    """For those who look for something: named as others are."""
    found = ranges("[{mix: {r1: {sweep: [0, 1]}}, components: all}]").at({}, {"r1": 0.375})
    assert (found.name, found.recipe.rules[0].mix) == ("r1-0.375", {"r1": 0.375})


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ("[{mix: {r1: {sweep: []}}, components: all}]", "is no range"),
        ("[{mix: {r1: {sweep: 5}}, components: all}]", "is no range"),
        ("[{mix: {r1: {sweep: [1], more: 2}}, components: all}]", "is no range"),
        ("[{mix: {r1: {sweep: [0.5, 0.5]}}, components: all}]", "a value stands twice"),
        ("[{mix: {r1: {sweep: {from: 0, to: x, steps: 3}}}, components: all}]", "is no grid"),
        ("[{mix: {r1: {sweep: {from: 0, to: 1, steps: 1}}}, components: all}]", "is no grid"),
        ("[{mix: {r1: {sweep: {from: 0, to: .inf, steps: 3}}}, components: all}]", "is no grid"),
        ("[{mix: {r1: {sweep: {from: 0, to: 1, steps: 2000}}}, components: all}]", "is no grid"),
        ("[{mix: {r1: {sweep: [0.5], as: 3}}, components: all}]", "is no range"),
        ("[{mix: {r1: {sweep: [a]}}, components: all}]", "a share must be a number"),
        ("[{mix: {r1: {sweep: {'../x': 1}}}, components: all}]", "is no range"),
        ("[{mix: {r1: 1}, components: {sweep: {..: all}}}]", "is no range"),
        ("[{mix: {r1: {sweep: {from: 0, to: 1e-9, steps: 5}}}, components: all}]", "too near"),
        (
            "[{mix: {r1: {sweep: [0.5]}}, layers: 1}, {mix: {r1: {sweep: [0.6]}}, layers: 2}]",
            "two axes are called 'r1'",
        ),
        (
            "[{mix: {r1: {sweep: {from: 0, to: 1, steps: 100}}}, delta: {sweep: {from: 0, to: 1, steps: 100}}, layers: 1}]",
            "has too many children",
        ),
    ],
)
def test_what_is_no_range_is_refused(rules: str, says: str) -> None:
    """With the place that is wrong."""
    with pytest.raises(RecipeError, match=says):
        ranges(rules)


@pytest.mark.parametrize("text", ["parents: {sweep: , r1: }\nbase: sweep\n", "parents: {a: }\nbase: {sweep: [a]}\n"])
def test_ranges_stand_in_rules_and_output_only(text: str) -> None:
    """A parent may be called sweep; a base is no range."""
    if "base: sweep" in text:
        assert read_ranges(load_yaml(text, "recipe")).candidates()[0].recipe.base == "sweep"
    else:
        with pytest.raises(RecipeError):
            read_ranges(load_yaml(text, "recipe"))


def test_a_recipe_with_ranges_is_for_several_children(tmp_path: Path) -> None:
    """Whoever makes one child refuses it, and says what to do."""
    text = HEAD + "rules: [{mix: {r1: {sweep: [0, 1]}}, components: all}]\n"
    with pytest.raises(RecipeError, match="chimerakit sweep"):
        parse_recipe(text)
    (tmp_path / "r.yaml").write_text(text)
    assert len(load_ranges(tmp_path / "r.yaml").candidates()) == 2


@given(
    st.dictionaries(
        st.sampled_from("abcdef"), st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True), max_size=3
    )
)
def test_there_are_as_many_children_as_combinations(axes: dict[str, list[int]]) -> None:
    """Each with a name of its own, and each value on each axis where it was."""
    rules = [f"{{mix: {{r1: 1}}, delta: {{sweep: {values}, as: {name}}}, layers: 1}}" for name, values in axes.items()]
    found = ranges("[" + ", ".join(rules) + "]")
    points = [tuple(c.point.values()) for c in found.candidates()]
    assert points == list(itertools.product(*(map(str, values) for values in axes.values())))
    assert len({c.name for c in found.candidates()}) == len(points)
    for candidate, point in zip(found.candidates(), points, strict=True):
        assert [rule.delta for rule in candidate.recipe.rules] == [float(value) for value in point]
