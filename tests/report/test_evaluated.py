"""Evaluations and sweeps as sections: every figure stands where it belongs, and the words follow from the figures."""

from typing import Any

import pytest

from chimerakit.evaluate.records import (
    Answer,
    Difference,
    Estimate,
    Evaluation,
    Example,
    LayerHealth,
    Measurement,
    Model,
    RouterHealth,
    Routers,
    Settings,
)
from chimerakit.recipe import Axis
from chimerakit.report import Named, make_report
from chimerakit.report.blocks import Chart, Curves, Listing, Map, Plane, RecipeText, Section, Table
from chimerakit.report.evaluated import say_difference, show_evaluation, summary_of
from chimerakit.report.swept import show_sweep
from chimerakit.sweep.records import Goal, Grown, Sweep, Transition
from tests.report.results import unpack

EVIL = "<script>alert(1)</script>\x1b[2J"


def about(value: float, spread: float = 0.01) -> Estimate:
    """A number with an interval around it."""
    return Estimate(value, value - spread, value + spread)


def measured(name: str, accuracy: float, tokens: float, traces: float, **more: Any) -> Measurement:
    """A model's figures."""
    shares = dict.fromkeys(("closed_only", "opened_twice", "empty", "opened_by_prompt", "truncated", "looping"), 0.0)
    given: dict[str, Any] = {
        "model": Model(name, "w", "t", "transformers"),
        "task": "t",
        "settings": Settings(),
        "problems": 100,
        "samples": 1,
        "accuracy": about(accuracy),
        "majority": None,
        "spread": None,
        "output_tokens": about(tokens, 1),
        "trace_rate": about(traces, 0),
        "reasoning_tokens": about(tokens - 2, 1) if traces else None,
        "tokens_per_correct": about(tokens / accuracy, 1),
        "workable": about(1, 0),
        "closed": 1.0,
        **shares,
        "seconds": 1.0,
        "tokens_per_second": 10.0,
    }
    return Measurement(**given | more)


def differs(model: str, points: float, ratio: float, against: str = "r1") -> Difference:
    """A paired difference."""
    return Difference(model, against, "t", 100, about(points), about(-5, 1), about(ratio), about(1 + points))


def answer(text: str, **more: Any) -> Answer:
    """What a model said."""
    flags = dict.fromkeys(("is_closed_only", "is_opened_twice", "is_empty", "is_truncated", "is_looping"), False)
    given: dict[str, Any] = {
        "problem": "1",
        "sample": 0,
        "said": "9",
        "is_correct": True,
        "output_tokens": 7,
        "reasoning_tokens": 3,
        "has_trace": True,
        "is_closed": True,
        "is_opened_by_prompt": False,
        **flags,
        "seconds": 1.0,
        "reasoning": "because",
        "text": text,
    }
    return Answer(**given | more)


ROUTERS = Routers(
    "10 answers of r1 to t",
    10,
    100,
    (
        RouterHealth("v3", (LayerHealth(3, (10, 30, 0, 40), 0.8, 1, 0, 0.05, {"r1": 0.9}, {"r1": 0.95}),)),
        RouterHealth("r1", (LayerHealth(3, (20, 20, 20, 20), 1.0, 0, 0, 0.07, {"v3": 0.9}, {"v3": 0.85}),)),
    ),
    {"v3": about(1.5), "r1": about(1.1)},
)
EVALUATION = Evaluation(
    measurements=(
        measured("v3", 0.8, 25, 0),
        measured("r1", 0.97, 63, 1),
        measured("c-0.5", 0.97, 33, 0.7, looping=0.02),
    ),
    differences=(differs("v3", -0.17, 0.4), differs("c-0.5", 0.0, 0.52)),
    examples=(Example("t", "1", "3+4", "7", {"v3": answer("7"), "r1": answer(EVIL)}),),
    routers=ROUTERS,
)


def sweep_of(**more: Any) -> Sweep:
    """Two children on one axis."""
    recipe = "parents: {v3: , r1: }\nbase: v3\nrules:\n- {take: r1, components: routed_experts}\n"
    children = tuple(Grown(f"c-{p}", {"r1": p}, recipe, "d", is_kept=p == "0.5") for p in ("0", "0.5"))
    evaluation = Evaluation((*EVALUATION.measurements, measured("c-0", 0.8, 25, 0)), EVALUATION.differences, ())
    axes = (Axis("r1", {"0": 0, "0.5": 0.5}),)
    return Sweep(**{
        "recipe": {}, "axes": axes, "children": children, "parents": ("v3", "r1"), "base": "v3",
        "evaluation": evaluation, **more,
    })  # fmt: skip


@pytest.fixture
def section() -> Section:
    return show_evaluation(EVALUATION, "x.json")


def block(section: Section, title: str) -> Any:
    """The block of a title."""
    return next(b for b in section.blocks if b.title == title)


def test_the_plane_has_every_model_with_its_intervals(section: Section) -> None:
    """By output tokens and accuracy."""
    plane = block(section, "t: accuracy and tokens").data
    assert isinstance(plane, Plane)
    assert [(d.name, d.across, d.up) for d in plane.dots] == [
        ("v3", (25, 24, 26), (0.8, 0.79, 0.81)),
        ("r1", (63, 62, 64), (0.97, 0.96, 0.98)),
        ("c-0.5", (33, 32, 34), (0.97, 0.96, 0.98)),
    ]


def test_the_summary_says_who_is_as_good_with_fewest_tokens() -> None:
    """By the interval's lower end; nobody else is called so."""
    (line,) = summary_of([differs("a", -0.005, 0.6), differs("b", 0.01, 0.7), differs("c", -0.015, 0.3)])
    assert (
        line
        == "t: a keeps 100% [98 to 100] of r1's accuracy with 40% [39 to 41] fewer tokens (of 3 with fewer tokens; each interval is of one model)."
    )
    (line,) = summary_of([differs("c", -0.015, 0.3)])
    assert line.startswith("t: nobody with fewer tokens is surely within 2 points of r1's accuracy; nearest, ")
    assert "c keeps 98% [98 to 100]" in line
    (line,) = summary_of([differs("a", 0.1, 1.5)])
    assert line == "t: nobody surely needs fewer tokens than r1."
    assert summary_of([]) == ["One model: there is nothing to compare it with."]
    assert say_difference(differs("a", 0.1, 1.5)).endswith("with 50% [49 to 51] more tokens")


def test_tables_tell_what_is_odd_and_leave_out_what_is_not(section: Section) -> None:
    """One model loops."""
    odd = block(section, "What is odd")
    assert isinstance(odd, Table)
    assert [(row[0], row[2]) for row in odd.rows] == [("c-0.5", "2 %")]
    against = block(section, "t: against r1")
    assert [row[0] for row in against.rows] == ["v3", "c-0.5"]
    assert against.rows[1][1:] == ("+0.0 [-1.0, 1.0]", "100.0 % [99.0, 101.0]", "-48% [-49 to -47]")


def test_routers_are_heat_maps(section: Section) -> None:
    """Loads against the mean of their layer; never chosen is marked; pairs of models by what they share."""
    loads = block(section, "Routers: load").data
    assert isinstance(loads, Map)
    assert [figure.name for figure in loads.figures] == ["v3", "r1"]
    assert unpack(loads.figures[0].cells) == [0.5, 1.5, "mark 1", 2.0]
    choices = block(section, "Routers: the same choices").data
    assert [row.tick for row in choices.rows] == ["v3, r1", "r1, v3"]
    assert [unpack(figure.cells) for figure in choices.figures] == [[0.9, 0.9], [0.95, 0.85]]


def test_answers_stand_side_by_side(section: Section) -> None:
    """With their traces; whoever wrote them writes nothing to the reader's screen, and no markup."""
    answers = block(section, "t: 3+4")
    assert [row[:3] for row in answers.rows] == [("v3", "right", "7"), ("r1", "right", "7")]
    assert answers.rows[0][3] == "[trace: because] 7"
    page = make_report([Named("x.json", EVALUATION)])
    assert "<script>alert" not in page
    assert "\x1b" not in page


def test_curves_go_along_the_axis_with_parents_as_levels() -> None:
    """One view for each figure; where half of the answers have a trace is marked, or what was looked for."""
    section = show_sweep(sweep_of(), "s.json")
    curves = block(section, "t: along r1").data
    assert isinstance(curves, Curves)
    views = {view.name: view for view in curves.views}
    assert list(views) == ["accuracy", "output tokens", "traces", "tokens of a trace", "workable"]
    child, *levels = views["output tokens"].lines
    assert list(child.points) == [(0, (25, 24, 26)), (0.5, (33, 32, 34))]
    assert [(line.name, line.is_level) for line in levels] == [("v3", True), ("r1", True)]
    assert list(curves.marked or ()) == [0, 0.5]
    at = Transition(Goal("accuracy", 0.9, 0.1), "r1", 0.25, 0.3, 0.88, 0.91, 5)
    section = show_sweep(sweep_of(transition=at), "s.json")
    assert block(section, "t: along r1").data.marked == (0.25, 0.3)
    said = block(section, "The transition")
    assert isinstance(said, Listing)
    assert said.lines == ("accuracy crosses 0.9 between r1 = 0.25 (0.88) and 0.3 (0.91), found with 5 children",)


def test_recipes_are_there_and_say_whether_weights_are() -> None:
    """So that each child can be made again."""
    recipes = [b for b in show_sweep(sweep_of(), "s.json").blocks if isinstance(b, RecipeText)]
    assert [r.title for r in recipes] == ["Recipe of c-0", "Recipe of c-0.5"]
    assert "deleted" in recipes[0].says
    assert "deleted" not in recipes[1].says
    assert recipes[0].rules == ("take: r1, components: routed_experts",)


def test_a_sweep_without_measurements_shows_its_recipes() -> None:
    """And no empty chart."""
    section = show_sweep(sweep_of(evaluation=None), "s.json")
    assert not any(isinstance(b, Chart) for b in section.blocks)


def test_a_page_of_a_large_zoo_is_small() -> None:
    """A hundred children with long answers: under 2 MB."""
    names = [f"child-{n}" for n in range(100)]
    many = Evaluation(
        tuple(measured(name, 0.9, 50 + n, 1) for n, name in enumerate(names)),
        tuple(differs(name, 0.0, 0.9) for name in names),
        tuple(Example("t", str(p), "?", "7", {n: answer("x" * 5000) for n in names}) for p in range(6)),
    )
    assert len(make_report([Named("x.json", many)])) < 2_000_000
