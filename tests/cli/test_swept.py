"""What a sweep will take and what it found, as a terminal shows it and as JSON; and what --bisect may say."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from chimerakit.cli.swept import goal_of, plans_view, print_plans, print_sweep, sweep_view
from chimerakit.errors import RecipeError
from chimerakit.evaluate.records import Evaluation, Settings
from chimerakit.evaluate.summary import by_problem, differ, measure
from chimerakit.recipe import Axis
from chimerakit.sweep import Goal, Sweep
from chimerakit.sweep.build import build_children
from chimerakit.sweep.records import Grown, Transition
from tests.evaluate.test_summary import MODEL, TASK, answer
from tests.sweep.test_build import new_bytes, parents_in, plans_of

SAYS = {
    "shared": "note: files here can't have second names",
    "linked": "note: parents lie where no hard links lead from here, so their files are copied, once for all children",
    "little": "note: nearly nothing can be shared",
}


def refuse(*_: Any) -> None:
    """What file systems without hard links do."""
    raise OSError(95, "Operation not supported")


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("trace_rate=0.5", Goal("trace_rate", 0.5, 0.02)),
        ("reasoning_tokens=4e1", Goal("reasoning_tokens", 40, 0.02)),
        ("majority=1", Goal("majority", 1, 0.02)),
        (None, None),
    ],
)
def test_a_goal_is_a_figure_and_a_value(text: str | None, goal: Goal | None) -> None:
    """Of every figure that has an interval."""
    assert goal_of(text, 0.02) == goal


@pytest.mark.parametrize(
    ("text", "within"),
    [
        ("trace_rate", 0.02),
        ("trace_rate=", 0.02),
        ("trace_rate=half", 0.02),
        ("trace_rate=nan", 0.02),
        ("trace_rate=inf", 0.02),
        ("=0.5", 0.02),
        ("beauty=0.5", 0.02),
        ("spread=0.5", 0.02),
        ("task=0.5", 0.02),
        ("trace_rate=0.5", 0.0),
        ("trace_rate=0.5", float("nan")),
    ],
)
def test_what_is_no_goal_is_refused_with_all_figures(text: str, within: float) -> None:
    """One error, that says what may stand there."""
    with pytest.raises(RecipeError, match=f"--bisect {text}: can't be read") as e:
        goal_of(text, within)
    assert "FIGURE=VALUE, of accuracy, majority, output_tokens, trace_rate" in str(e.value)
    assert "spread" not in str(e.value).partition("expected")[2]


def notes_of(capsys: pytest.CaptureFixture[str], view: dict[str, Any]) -> set[str]:
    """Which notes stand below the table."""
    print_plans(view)
    text = capsys.readouterr().out
    return {name for name, says in SAYS.items() if says in text}


def test_plan_promises_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With hard links, what no rule takes is there once, or is a parent's."""
    parents = parents_in(tmp_path / "parents")
    plans = plans_of(parents, "router")
    view = plans_view(plans, tmp_path / "to" / "come")
    build_children(plans, tmp_path / "zoo")
    assert view["disk"]["new"] == new_bytes(tmp_path / "zoo", parents) < 0.5 * view["disk"]["whole"]
    assert {name: child["plan"] for name, child in view["children"].items()} == {n: p.digest for n, p in plans.items()}
    assert not (tmp_path / "to").exists()
    assert notes_of(capsys, view) == set()
    print_plans(view)
    text = capsys.readouterr().out
    assert "4 children" in text
    assert "what no rule takes, once:" in text


def test_plan_promises_no_sharing_where_there_are_no_hard_links(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each child is a whole one, on the disk as in the plan."""
    plans = plans_of(parents_in(tmp_path / "parents"), "router")
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    view = plans_view(plans, tmp_path / "zoo")
    build_children(plans, tmp_path / "zoo")
    assert view["disk"]["new"] == view["disk"]["whole"] == new_bytes(tmp_path / "zoo", {})
    assert notes_of(capsys, view) == {"shared"}
    print_plans(view)
    assert "what no rule takes, a child:" in capsys.readouterr().out


def test_parents_on_another_disk_are_copied_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many bytes as are written there."""
    parents = parents_in(tmp_path / "parents")
    plans = plans_of(parents, "router")
    monkeypatch.setattr("chimerakit.sweep.build._can_link", lambda _plan, _folder: False)
    view = plans_view(plans, tmp_path / "zoo")
    build_children(plans, tmp_path / "zoo")
    assert view["disk"]["linked_to_parents"] == 0 < view["disk"]["shared_between_children"]
    assert view["disk"]["new"] == new_bytes(tmp_path / "zoo", parents)
    assert notes_of(capsys, view) == {"linked"}


def test_where_rules_take_everything_plan_says_that_nothing_is_shared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what plans note besides, once for all children."""
    plans = plans_of(parents_in(tmp_path / "parents"), "all")
    view = plans_view({n: replace(plans[n], notes=("odd\x1b[2J",)) for n in ("r1-0.25", "r1-0.5")}, tmp_path)
    assert notes_of(capsys, view) == {"little"}
    print_plans(view)
    text = capsys.readouterr().out
    assert text.count("note: odd") == 1
    assert "\x1b" not in text


def swept(*, is_measured: bool) -> Sweep:
    """A search with two children, or two that were only made."""
    answers = by_problem([answer(n, str(n)) for n in range(10)])
    names = ("r1-0", "r1-1")
    measured = tuple(measure(replace(MODEL, name=name), TASK, Settings(), answers) for name in names)
    difference = differ(*names, "t", answers, answers)
    assert difference is not None
    goal = Goal("trace_rate", 0.5, 1.0)
    return Sweep(
        recipe={},
        axes=(Axis("r1", {"0": 0, "1": 1}),),
        children=tuple(Grown(name, {"r1": name[3:]}, "", "digest", is_kept=True) for name in names),
        parents=(),
        base="v3",
        evaluation=Evaluation(measured, (difference,), ()) if is_measured else None,
        transition=Transition(goal, "r1", 0, 1, 0.1, 0.9, 2) if is_measured else None,
    )


def test_a_sweep_shows_figures_transition_and_where_all_is(capsys: pytest.CaptureFixture[str]) -> None:
    """As `evaluate` shows them; JSON has the same."""
    found = swept(is_measured=True)
    print_sweep(found, Path("out"))
    text = capsys.readouterr().out
    assert "t: 10 problems, greedy" in text
    assert "against r1-1" in text
    assert "trace_rate crosses 0.5 between r1 = 0 (0.1) and 1 (0.9), found with 2 children" in text
    assert "saved: out/sweep.json; show it: chimerakit report out/sweep.json -o PAGE.html" in text
    view = sweep_view(found, Path("out"))
    assert found.evaluation is not None
    assert (view["saved"], view["transition"]) == ("out/sweep.json", found.transition)
    assert (view["measurements"], len(view["differences"])) == (found.evaluation.measurements, 1)


def test_a_sweep_without_tasks_shows_where_its_children_are(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each."""
    found = swept(is_measured=False)
    print_sweep(found, Path("out"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["out/children/r1-0", "out/children/r1-1"]
    assert lines[2].startswith("saved: out/sweep.json")
    assert sweep_view(found, Path("out"))["measurements"] == ()
