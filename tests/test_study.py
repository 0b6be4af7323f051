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


def test_the_page_is_made_of_the_figures(figures: Any) -> None:
    """docs/study.md is what `study.py --render` writes."""
    spec = importlib.util.spec_from_file_location("study", FAMILY / "study.py")
    assert spec is not None
    assert spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    assert (ROOT / "docs" / "study.md").read_text() == study.render(figures)


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
