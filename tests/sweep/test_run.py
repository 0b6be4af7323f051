"""A sweep from its recipe to its figures, with an engine that only looks at a child's bytes; killed anywhere it goes on."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from chimerakit.child import locked
from chimerakit.compare import compare_checkpoints, save_map
from chimerakit.deltas import read_distances
from chimerakit.errors import OutputError, PlanError, RecipeError, TaskError
from chimerakit.evaluate import run
from chimerakit.evaluate.records import Ask, Generated, Problem, Scorer, Settings, Task
from chimerakit.formats import open_checkpoint
from chimerakit.manifest import read_manifest
from chimerakit.merge import merge_parents
from chimerakit.plan import make_plan
from chimerakit.plan.deltas import Distances
from chimerakit.plan.memory import peak_memory
from chimerakit.recipe import Ranges, parse_recipe, read_ranges
from chimerakit.recipe.text import load_yaml
from chimerakit.records import Checkpoint, Recipe
from chimerakit.report.saved import load_result
from chimerakit.runners.local import Threads
from chimerakit.sweep import Goal, Keep, Sweep, Wish, plan_children, sweep_children
from tests.durability.kinds import make_parents
from tests.effort import examples
from tests.evaluate.test_server import kept
from tests.sweep.test_build import bytes_in

TASK = Task("t", tuple(Problem(str(n), f"{n}", str(n)) for n in range(20)), Scorer("numeric"))
SHARES = "[0, 0.25, 0.5, 0.75, 1]"
GOAL = Goal("trace_rate", 0.5, 0.1)


class FakeEngine:
    """Answers by the share of r1 that a child's manifest tells: traces from 0.6 on, more often right the more of it."""

    def __init__(self, path: Path, log: Path | None = None):
        self._share = 1.0 if path.name.startswith("r1 ") else 0.0
        if (path / "chimerakit.json").exists():
            self._share = max((row.parents.get("r1", 0) for row in read_manifest(path).units), default=0)
        self._log = log

    def answer(self, asks: Sequence[Ask], settings: Settings) -> Iterator[tuple[Ask, Generated]]:
        """One by one, noted in the log before they are given back."""
        for ask in asks:
            if self._log is not None:
                with self._log.open("a") as file:
                    file.write(f"{self._share} {ask.problem}\n")
            trace = "<think>x</think>" if self._share > 0.6 else ""
            is_right = int(ask.problem) < 20 * (0.5 + self._share / 2)
            yield ask, Generated(f"{trace}{ask.question if is_right else -1}", 10 + int(50 * self._share), True)

    def close(self) -> None:
        """Nothing to let go."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What was asked, line by line."""
    log = tmp_path / "asked.log"
    monkeypatch.setattr(run, "load_backend", lambda path, at_once: FakeEngine(path, log))
    return log


def ranges_of(shares: str = SHARES, components: str = "routed_experts") -> Ranges:
    """A range of shares of r1."""
    rule = f"{{mix: {{r1: {{sweep: {shares}}}}}, components: {components}}}"
    return read_ranges(load_yaml(f"parents: {{v3: , r1: }}\nbase: v3\nrules: [{rule}]\n", "recipe"))


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """Two unequal parents."""
    root = tmp_path_factory.mktemp("parents")
    make_parents(root, "bf16")
    return {name: open_checkpoint(root / f"{name} bf16") for name in ("v3", "r1")}


def curve(found: Sweep) -> dict[str, tuple[float, float, float]]:
    """(accuracy, tokens, traces) of each model."""
    assert found.evaluation is not None
    return {
        m.model.name: (m.accuracy.value, m.output_tokens.value, m.trace_rate.value)
        for m in found.evaluation.measurements
    }


def test_children_are_made_measured_and_compared_with_their_parents(
    asked: Path, parents: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """The curve goes from one parent to the other, each child once; and it is saved as it is told."""
    found = sweep_children(ranges_of(), parents, tmp_path / "out", Wish((TASK,)))
    assert curve(found) == {
        "v3": (0.5, 10, 0),
        "r1": (1, 60, 1),
        "r1-0": (0.5, 10, 0),
        "r1-0.25": (0.65, 22, 0),
        "r1-0.5": (0.75, 35, 0),
        "r1-0.75": (0.9, 47, 1),
        "r1-1": (1, 60, 1),
    }
    assert found.evaluation is not None
    assert {d.against for d in found.evaluation.differences} == {"v3", "r1"}
    assert load_result(tmp_path / "out" / "sweep.json").found == found
    assert len(asked.read_text().splitlines()) == 7 * 20
    assert sweep_children(ranges_of(), parents, tmp_path / "out", Wish((TASK,))) == found
    assert len(asked.read_text().splitlines()) == 7 * 20


def test_more_problems_and_more_children_are_added(asked: Path, parents: dict[str, Checkpoint], tmp_path: Path) -> None:
    """What is there is neither made nor asked again."""
    few = Task("t", TASK.problems[:5], TASK.scorer)
    sweep_children(ranges_of("[0, 1]"), parents, tmp_path / "out", Wish((few,)))
    before = len(asked.read_text().splitlines())
    found = sweep_children(ranges_of(), parents, tmp_path / "out", Wish((TASK,)))
    assert len(found.children) == 5
    lines = asked.read_text().splitlines()
    assert len(lines) == 7 * 20
    assert before == 4 * 5


@pytest.mark.parametrize("batch", [None, 2])
def test_only_the_best_keep_their_weights(
    batch: int | None, asked: Path, parents: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """Of the others the recipe and the manifest stay, and make them again, bit for bit; their answers are not asked again."""
    wish = Wish((TASK,), keep=Keep(2), batch=batch)
    found = sweep_children(ranges_of(), parents, tmp_path / "out", wish)
    assert [c.name for c in found.children if c.is_kept] == ["r1-0.75", "r1-1"]
    assert sorted(p.name for p in (tmp_path / "out" / "children").iterdir()) == ["r1-0.75", "r1-1"]
    gone = tmp_path / "out" / "recipes" / "r1-0.25.yaml"
    merge_parents(make_plan(parse_recipe(gone.read_text()), parents), tmp_path / "again")
    manifest = (tmp_path / "out" / "manifests" / "r1-0.25.json").read_bytes()
    assert (tmp_path / "again" / "chimerakit.json").read_bytes() == manifest
    asked_before = asked.read_text()
    assert sweep_children(ranges_of(), parents, tmp_path / "out", wish) == found
    assert asked.read_text() == asked_before
    assert len(list((tmp_path / "out" / "children").iterdir())) == 2


def test_a_deleted_child_that_is_asked_more_is_made_again(
    asked: Path, parents: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """And deleted again."""
    few = Task("t", TASK.problems[:5], TASK.scorer)
    sweep_children(ranges_of("[0.25]"), parents, tmp_path / "out", Wish((few,), keep=Keep(0)))
    assert not list((tmp_path / "out" / "children").iterdir())
    found = sweep_children(ranges_of("[0.25]"), parents, tmp_path / "out", Wish((TASK,), keep=Keep(0)))
    assert curve(found)["r1-0.25"] == (0.65, 22, 0)
    assert not list((tmp_path / "out" / "children").iterdir())
    assert len(asked.read_text().splitlines()) == 3 * 20


def test_a_transition_is_found_with_few_children(asked: Path, parents: dict[str, Checkpoint], tmp_path: Path) -> None:
    """The engine opens traces above 0.6: the bracket holds it, and so does a second call, without a question."""
    wish = Wish((TASK,), goal=Goal("trace_rate", 0.5, 0.01), keep=Keep(0))
    found = sweep_children(ranges_of("[0, 1]"), parents, tmp_path / "out", wish)
    at = found.transition
    assert at is not None
    assert at.low <= 0.6 < at.high
    assert at.high - at.low <= 0.01
    assert (at.at_low, at.at_high, at.children) == (0, 1, 9)
    assert [c.name for c in found.children][:2] == ["r1-0", "r1-0.5"]
    before = asked.read_text()
    assert sweep_children(ranges_of("[0, 1]"), parents, tmp_path / "out", wish) == found
    assert asked.read_text() == before


def test_no_transition_is_said_to_be_none(asked: Path, parents: dict[str, Checkpoint], tmp_path: Path) -> None:
    """Two children tell it."""
    del asked
    wish = Wish((TASK,), goal=Goal("output_tokens", 500, 0.01))
    found = sweep_children(ranges_of("[0, 1]"), parents, tmp_path / "out", wish)
    assert found.transition is None
    assert len(found.children) == 2


def test_without_a_task_children_are_only_made(parents: dict[str, Checkpoint], tmp_path: Path) -> None:
    """No engine is needed."""
    found = sweep_children(ranges_of("[0.5]", "router"), parents, tmp_path / "out")
    assert found.evaluation is None
    assert (tmp_path / "out" / "children" / "r1-0.5" / "chimerakit.json").is_file()


def test_one_process_at_a_time_works_in_a_folder(asked: Path, parents: dict[str, Checkpoint], tmp_path: Path) -> None:
    """Another one could delete what the first is asking."""
    del asked
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(OutputError, match="another process is working on this folder"):
        sweep_children(ranges_of("[0.5]"), parents, tmp_path / "out", Wish((TASK,)))


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (Wish((TASK,), samples=4), "greedy samples are all the same"),
        (Wish((TASK,), against=("nobody",)), "is none of the models"),
        (Wish((TASK, TASK)), "two tasks have one name"),
        (Wish((Task("../x", TASK.problems, TASK.scorer),)), "a task's name is a word"),
        (Wish((TASK,), goal=GOAL, against=("r1-0.25",)), "may not be there: a search makes the ends"),
        (Wish((TASK,), goal=GOAL, against=("r1-1", "r1-0.3")), r"against r1-0\.3"),
    ],
)
def test_what_would_be_refused_in_the_end_is_refused_at_once(
    wish: Wish, says: str, parents: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """Before anything is made."""
    with pytest.raises(TaskError, match=says):
        sweep_children(ranges_of(), parents, tmp_path / "out", wish)
    assert not (tmp_path / "out").exists()


def test_a_search_compares_with_parents_and_with_both_ends(
    asked: Path, parents: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """They are there wherever it goes, also where the recipe calls the ends otherwise."""
    del asked
    wish = Wish((TASK,), goal=GOAL, against=("r1-0", "r1-1", "r1"))
    found = sweep_children(ranges_of("{none: 0, all: 1}"), parents, tmp_path / "out", wish)
    assert found.evaluation is not None
    assert {d.against for d in found.evaluation.differences} == set(wish.against)


def test_too_little_memory_for_a_later_batch_is_refused_before_the_first(
    asked: Path, parents: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """Also where a search begins with ends that are only copied; what is there already needs none."""
    enough = peak_memory(plan_children(ranges_of("[1]"), parents)["r1-1"], 1)
    for shares, wish in (("[1, 0.5]", Wish((TASK,), batch=1)), ("[0, 1]", Wish((TASK,), goal=GOAL))):
        out = tmp_path / shares
        with pytest.raises(PlanError, match=r"r1-0\.5: one job at a time takes"):
            sweep_children(ranges_of(shares), parents, out, wish, runner=Threads(1, enough))
        assert not asked.exists()
        assert not (out / "children").exists()
        found = sweep_children(ranges_of(shares), parents, out, wish)
        assert sweep_children(ranges_of(shares), parents, out, wish, runner=Threads(1, enough)) == found
        asked.unlink()


@pytest.mark.parametrize(
    ("output", "layouts"),
    [
        (
            "{sweep: {a: {shards: base}, b: {dtype: keep}, c: {shards: by-rule}}, as: layout}",
            ["base", "by-rule", "by-rule"],
        ),
        ("{shards: {sweep: [base, by-rule]}}", ["base", "by-rule"]),
        ("{shards: base}", ["base"]),
        ("{dtype: keep}", ["by-rule"]),
    ],
)
def test_shards_are_laid_out_as_the_childs_own_recipe_says(
    output: str, layouts: list[str], parents: dict[str, Checkpoint]
) -> None:
    """By rule only where it says nothing, wherever the range stands."""
    text = f"parents: {{v3: , r1: }}\nbase: v3\nrules: [{{take: r1, components: router}}]\noutput: {output}\n"
    plans = plan_children(read_ranges(load_yaml(text, "recipe")), parents)
    assert [plan.recipe.output.shards for plan in plans.values()] == layouts


def test_a_folder_of_another_sweep_is_refused(asked: Path, parents: dict[str, Checkpoint], tmp_path: Path) -> None:
    """A child of the same name that is another one is not mixed up with it."""
    del asked
    sweep_children(ranges_of("[0.5]"), parents, tmp_path / "out", Wish((TASK,)))
    with pytest.raises(OutputError, match=r"another child that is called r1-0\.5"):
        sweep_children(ranges_of("[0.5]", "attention"), parents, tmp_path / "out", Wish((TASK,)))
    (tmp_path / "out" / "progress.json").write_text("what?")
    with pytest.raises(OutputError, match="something else than a sweep"):
        sweep_children(ranges_of("[0.5]"), parents, tmp_path / "out", Wish((TASK,)))


@pytest.mark.parametrize(
    ("shares", "wish", "says"),
    [
        ("[0, 1]", Wish(goal=GOAL), "without a task nothing is measured"),
        ("[0, 1]", Wish(keep=Keep(1)), "without a task nothing is measured"),
        ("{a: 0, b: {from: 0, to: 1}}", Wish((TASK,), goal=GOAL), "one range of numbers"),
        ("[0, 1]", Wish((TASK,), goal=Goal("majority", 0.5, 0.1)), "one answer to a problem has no majority"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(
    shares: str, wish: Wish, says: str, parents: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """One error, and no folder."""
    with pytest.raises(RecipeError, match=says):
        sweep_children(ranges_of(shares), parents, tmp_path / "out", wish)
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------- killed

SCRIPT = """
import sys, time
from pathlib import Path
from chimerakit.evaluate import run
from chimerakit.formats import open_checkpoint
from chimerakit.sweep import Keep, Wish, sweep_children
from tests.sweep.test_run import TASK, FakeEngine, ranges_of
root, out = map(Path, sys.argv[1:])
run.load_backend = lambda path, at_once: FakeEngine(path, out.parent / "asked.log")
parents = {name: open_checkpoint(root / f"{name} bf16") for name in ("v3", "r1")}
print("go", flush=True)
sweep_children(ranges_of(), parents, out, Wish((TASK,), keep=Keep(2), batch=2))
"""


def test_killed_at_any_moment_no_answer_is_lost_and_none_asked_twice(
    asked: Path, parents: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """In the end children, answers and figures are those of a sweep that nobody interrupted."""
    root = Path(parents["v3"].root).parent
    wanted = sweep_children(ranges_of(), parents, tmp_path / "whole" / "out", Wish((TASK,), keep=Keep(2), batch=2))
    (tmp_path / "killed").mkdir()
    log, out = tmp_path / "killed" / "asked.log", tmp_path / "killed" / "out"
    command = [sys.executable, "-c", SCRIPT, str(root), str(out)]
    rng = random.Random(0)
    kills = 0
    for _ in range(examples(quick=6, ci=25, prove=200)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL, -signal.SIGTERM), err
        kills += process.returncode != 0
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert kills > 0
    found = load_result(out / "sweep.json").found
    assert isinstance(found, Sweep)
    assert curve(found) == curve(wanted)
    assert found.children == wanted.children
    assert bytes_in(out / "children") == bytes_in(tmp_path / "whole" / "out" / "children")
    answers = [line for line in log.read_text().splitlines() if line]
    there = [(problem, file.parent.name) for file in (out / "evaluation").rglob("*.jsonl") for problem in kept(file)]
    assert len(there) == len(set(there)) == 7 * 20
    assert len(answers) - 7 * 20 <= kills  # one that was being given when the process died is asked again
    del asked


def test_deltas_have_ranges(parents: dict[str, Checkpoint], tmp_path: Path) -> None:
    """Each child mixes where its own delta says: everything that differs, or nothing."""
    save_map(compare_checkpoints(parents["v3"], parents["r1"]), tmp_path / "map.npz")
    rule = "{mix: {r1: 0.5}, components: routed_experts, delta: {sweep: [0, 1e9]}}"
    ranges = read_ranges(load_yaml(f"parents: {{v3: , r1: }}\nbase: v3\nrules: [{rule}]\n", "recipe"))

    def distances_of(recipe: Recipe) -> Distances:
        return read_distances(recipe, parents, [tmp_path / "map.npz"])

    found = sweep_children(ranges, parents, tmp_path / "out", distances_of=distances_of)
    assert [child.name for child in found.children] == ["delta-0", "delta-1000000000"]
    outcomes = {
        child.name: {row.outcome for row in read_manifest(tmp_path / "out" / "children" / child.name).units}
        for child in found.children
    }
    assert outcomes == {"delta-0": {"copied", "mixed"}, "delta-1000000000": {"copied"}}
