"""The study's page says what its figures say, and some of its points are recomputed."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from chimerakit.evaluate import Subject, load_task
from chimerakit.evaluate.records import Settings
from chimerakit.evaluate.run import answer_tasks
from tests.merging import merge

ROOT = Path(__file__).parent.parent
FAMILY = ROOT / "examples" / "tiny-family"
COUNT = 50


@pytest.fixture(scope="module")
def figures() -> Any:
    """What the study measured."""
    return json.loads((ROOT / "docs" / "study.json").read_text())


@pytest.fixture(scope="module")
def study() -> Any:
    """The program."""
    spec = importlib.util.spec_from_file_location("study", FAMILY / "study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_of_the_figures(figures: Any, study: Any) -> None:
    """docs/study.md is what `study.py --render` writes."""
    assert (ROOT / "docs" / "study.md").read_text() == study.render(figures)


def test_a_child_counts_once_in_however_many_sweeps_it_is(figures: Any, study: Any) -> None:
    """Sixty were measured: nine of them are others sampled, one is under another name, and one has all of R1-like's weights."""
    rows = [row for sweep in figures["sweeps"].values() for row in sweep.values() if row["point"] is not None]
    zoo = study.zoo_of(figures["sweeps"])
    assert (len(rows), len(zoo)) == (60, 60 - 9 - 1 - 1)
    assert ["curves r1-1_experts", "routers router-0", "compact r1-1"] in [list(each) for each in zoo.values()]
    assert not any("curves r1-1_all" in each for each in zoo.values())


def test_a_child_that_fails_in_one_of_its_sweeps_does_not_work(figures: Any, study: Any) -> None:
    """The sampled one, here."""
    changed = json.loads(json.dumps(figures))
    changed["sweeps"]["compact"]["r1-0.5"] |= {"is_workable": False, "workable": [0.9, 0.88, 0.92]}
    page = study.render(changed)
    assert "| Nearly every child works | 48 of 49 | holds |" in page
    assert "- compact r1-0.5: 90.0 [88.0, 92.0] %" in page


@pytest.mark.parametrize(
    ("rates", "says", "holds"),
    [
        ([0, 0.01, 0.99, 0.99, 1], "below 5 % at 0.25, above 95 % at 0.5", True),
        ([0, 0.01, 0.4, 0.99, 1], "below 5 % at 0.25, above 95 % at 0.75", False),
        ([0, 0.3, 0.5, 0.99, 1], "below 5 % at 0, above 95 % at 0.75", False),
        ([0, 0.01, 0.99, 0.99, 0], "below 5 % at 1, above 95 % at 0.5; one half is passed 2 times", False),
        ([0, 0.01, 0.99, 0.4, 0.99], "below 5 % at 0.25, above 95 % at 0.5; one half is passed 3 times", False),
        ([1, 0.99, 0.5, 0.01, 0], "below 5 % at 1, above 95 % at 0; they disappear", False),
        ([0, 0.01, 0.4, 0.9, 0.95], "never above 95 %", False),
        ([0.06, 0.4, 0.99, 1, 1], "never below 5 %", False),
    ],
)
def test_traces_appear_suddenly_only_if_they_stay(rates: list[float], says: str, holds: bool, study: Any) -> None:
    """One crossing, in the right order, in a short way."""
    assert study.sudden([(share / 4, rate) for share, rate in enumerate(rates)]) == (says, holds)


def test_a_page_is_written_where_no_child_reasons(figures: Any, study: Any) -> None:
    """And its verdict says so."""
    changed = json.loads(json.dumps(figures))
    for row in changed["sweeps"]["curves"].values():
        row["trace_rate"] = [0.9, 0.9, 0.9]
    assert "| Traces appear suddenly | never below 5 % | does not hold |" in study.render(changed)


def test_the_routers_are_compared_on_the_same_problems(figures: Any, study: Any) -> None:
    """Intervals that lie side by side overlap where a paired difference shows that one is worse by more than two points."""
    changed = json.loads(json.dumps(figures))
    theirs, own = (changed["sweeps"]["routers"][name] for name in ("router-0", "router-1"))
    places = [n for n, right in enumerate(own["right"]) if right == "1"][:15]
    theirs["right"] = "".join("0" if n in places else right for n, right in enumerate(own["right"]))
    theirs["accuracy"] = [0.932, 0.91, 0.952]
    assert theirs["accuracy"][2] >= own["accuracy"][1]
    (line,) = [line for line in study.render(changed).splitlines() if line.startswith("| V3's router")]
    assert "R1-like's own: -3.0 [-4.6, -1.6] points | does not hold |" in line


def test_the_figures_are_those_of_the_outcomes(figures: Any) -> None:
    """Accuracy, tokens and traces of every greedy model follow from what became of each problem."""
    for name in ("curves", "alone", "left-out", "routers"):
        for row in figures["sweeps"][name].values():
            assert len(row["right"]) == len(row["traced"]) == len(row["tokens"]) == figures["problems"] == 500
            assert row["accuracy"][0] == pytest.approx(row["right"].count("1") / 500, abs=1e-5)
            assert row["trace_rate"][0] == pytest.approx(row["traced"].count("1") / 500, abs=1e-5)
            assert row["output_tokens"][0] == pytest.approx(sum(row["tokens"]) / 500, abs=1e-5)


def test_engines_agree_on_nearly_every_answer(figures: Any) -> None:
    """At least 98 % on each of three lambdas, in llama.cpp and behind its server; the others are listed."""
    assert len(figures["engines"]) == 3
    for engines in figures["engines"].values():
        assert set(engines) == {"llama.cpp", "its HTTP server"}
        assert all(len(unlike) <= 0.02 * figures["problems"] for unlike in engines.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("share", ["0.5", "0.75", "1"])
def test_a_point_of_the_study_is_recomputed(figures: Any, share: str, tmp_path: Path) -> None:
    """On the first problems: as many right, as many traces, as many tokens, but for one on another processor."""
    parents = {name: FAMILY / f"{name}-like" for name in ("v3", "r1")}
    merge(parents, f"- {{mix: {{r1: {share}}}, components: routed_experts}}", tmp_path / "child")
    task = load_task(FAMILY / "task.yaml", count=COUNT)
    subject, settings = Subject("child", tmp_path / "child"), Settings(max_tokens=160)
    found = answer_tasks(subject, [task], tmp_path / "out", settings, 1).answers[task.name]
    wanted = figures["sweeps"]["curves"][f"r1-{share}_experts"]
    mine = [found[problem.id][0] for problem in task.problems]
    unlike = [
        answer.problem
        for number, answer in enumerate(mine)
        if (answer.is_correct, answer.has_trace, answer.output_tokens)
        != (wanted["right"][number] == "1", wanted["traced"][number] == "1", wanted["tokens"][number])
    ]
    assert len(unlike) <= 0.02 * COUNT, unlike
