"""The tour: merge the tiny trained parents by each recipe of their folder, prove the children, let all answer problems; then a
small sweep, and a page that shows all of it.

FAMILY/v3-like  r1-like  ...    the parents, in BF16 and in FP8
FAMILY/recipes/*.yaml           one child each, in the order of their names
FAMILY/problems.jsonl           problems that no parent was trained on
FAMILY/sweep.yaml               a recipe with ranges
FAMILY/to_gguf.py               makes GGUF files of the parents, for the tour of quantised ones
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from chimerakit.errors import CheckpointError
from chimerakit.evaluate.records import Measurement, Settings, Task
from chimerakit.evaluate.run import SAVED as EVALUATION
from chimerakit.evaluate.run import Subject, evaluate_models
from chimerakit.evaluate.tasks import load_task
from chimerakit.events import Listener, Said
from chimerakit.formats import open_checkpoint
from chimerakit.merge import merge_parents
from chimerakit.plan import make_plan
from chimerakit.recipe import load_ranges, load_recipe, locate_parents, say_rule
from chimerakit.records import Findings
from chimerakit.report import load_result, make_report
from chimerakit.report.evaluated import summary_of
from chimerakit.runners import Runner
from chimerakit.stores.part import write_file
from chimerakit.sweep import Keep, Sweep, Wish, sweep_children
from chimerakit.sweep.run import SAVED as SWEEP
from chimerakit.verify import verify_child

PARENTS = ("v3-like", "r1-like")
SETTINGS = Settings(max_tokens=160)
_ROUTER_TEXTS = 20
_QUANT = "Q4_K_M"
_IN_GGUF = ("r1t", "three-quarters")
"""Recipes that are shown with quantised parents."""


class DemoRow(Struct, frozen=True):
    """One model of the demo."""

    name: str
    recipe: str | None
    """What the child was made by; None for a parent."""
    proof: Findings | None
    measurement: Measurement


class Demo(Struct, frozen=True):
    """What the demo did and what it shows."""

    num_problems: int
    rows: tuple[DemoRow, ...]
    says: tuple[str, ...]
    page: str | None = None
    """Where the report lies."""

    @property
    def ok(self) -> bool:
        """Whether every child was proven."""
        return all(row.proof is None or row.proof.ok for row in self.rows)


def find_family(path: Path | None) -> Path:
    """The folder of the tiny family: the one given, or that of the checkout that this package runs from."""
    places = [path] if path is not None else [Path(__file__).parents[2] / "examples" / "tiny-family"]
    for place in places:
        if (place / "problems.jsonl").is_file():
            return place
    raise CheckpointError(
        "the tiny family is not there",
        where=places[0],
        expected="problems.jsonl, recipes/ and the parents' folders",
        do="it is not part of an installed package: clone the repository, and give --family examples/tiny-family",
    )


def run_demo(
    family: Path,
    output: Path,
    *,
    num_problems: int,
    runner: Runner,
    listener: Listener,
    only: Sequence[str] = (),
    gguf: bool = False,
) -> Demo:
    """Do everything; children go to `output`, one folder each. `only`: names of the models that shall answer, else all.

    gguf: with parents in Q4_K_M, which are made first; the engine is llama.cpp.
    """
    task = load_task(family / "task.yaml", count=num_problems)
    parents_by_name = dict(_make_gguf(family, output, listener)) if gguf else {name: family / name for name in PARENTS}
    given = {name.partition("-")[0]: path for name, path in parents_by_name.items()} if gguf else {}
    models = {name: path for name, path in parents_by_name.items() if not only or name in only}
    recipes, proofs = dict[str, str](), dict[str, Findings]()
    for file in sorted((family / "recipes").glob("*.yaml")):
        name = file.stem.partition("-")[2]
        if (only and name not in only) or (gguf and name not in _IN_GGUF):
            continue
        recipe, paths = locate_parents(load_recipe(file), given, file.parent)
        parents = {parent: open_checkpoint(path) for parent, path in paths.items()}
        merge_parents(make_plan(recipe, parents), output / name, runner=runner, force=True, listener=listener)
        proofs[name] = verify_child(output / name, parents, runner=runner, listener=listener)
        recipes[name] = "; ".join(say_rule(rule) for rule in recipe.rules)
        models[name] = output / name
    found = evaluate_models(
        [Subject(name, path) for name, path in models.items()],
        [task],
        output / ("evaluation-gguf" if gguf else "evaluation"),
        settings=SETTINGS,
        against=["r1-like"] if "r1-like" in models else None,
        router_texts=0 if gguf else _ROUTER_TEXTS,
        listener=listener,
    )
    rows = [DemoRow(m.model.name, recipes.get(m.model.name), proofs.get(m.model.name), m) for m in found.measurements]
    says = [*_conclusions(rows)]
    if gguf or only:
        return Demo(len(task.problems), tuple(rows), tuple(says))
    swept = _sweep(family, output, task, runner, listener)
    assert swept.evaluation is not None  # there was a task
    says += [f"In the sweep, {line}" for line in summary_of(swept.evaluation.differences)]
    page = output / "report.html"
    results = [output / "sweep" / SWEEP, output / "evaluation" / EVALUATION]
    write_file(page, make_report([load_result(result) for result in results]).encode())
    return Demo(len(task.problems), tuple(rows), tuple(says), str(page))


def _sweep(family: Path, output: Path, task: Task, runner: Runner, listener: Listener) -> Sweep:
    """The family's own sweep, in a folder of its own; the children's weights are not kept."""
    ranges = load_ranges(family / "sweep.yaml")
    first, paths = locate_parents(ranges.candidates()[0].recipe, {}, family)
    ranges = replace(ranges, data=ranges.data | {"parents": first.parents})
    wish = Wish((task,), SETTINGS, against=("r1",), keep=Keep(0))
    parents = {name: open_checkpoint(path) for name, path in paths.items()}
    return sweep_children(ranges, parents, output / "sweep", wish, runner=runner, listener=listener)


def _make_gguf(family: Path, output: Path, listener: Listener) -> Iterator[tuple[str, Path]]:
    """The parents in Q4_K_M, quantised by llama.cpp's code."""
    folder = output / "parents"
    folder.mkdir(parents=True, exist_ok=True)
    for name in PARENTS:
        file = folder / f"{name}-q4_k_m.gguf"
        listener(Said(f"{file.name}: made of {name}"))
        command = [sys.executable, str(family / "to_gguf.py"), str(family / name), str(file), "--type", _QUANT]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise CheckpointError(
                f"can't be made: {why}",
                where=file,
                do="pip install 'chimerakit[eval,gguf-quant]'",
            )
        yield file.stem, file


def _conclusions(rows: Sequence[DemoRow]) -> list[str]:
    """What the numbers say, made of the numbers."""
    by_name = {row.name: row.measurement for row in rows}
    said = []
    tensors = sum(sum(row.proof.passed.values()) for row in rows if row.proof is not None and row.proof.ok)
    children = [row for row in rows if row.proof is not None]
    proven = [row for row in children if row.proof is not None and row.proof.ok]
    said.append(f"{len(proven)} of {len(children)} children are proven against their parents ({tensors:,} statements).")
    if (r1 := next((m for name, m in by_name.items() if name.startswith("r1-like")), None)) is not None:
        for row in children:
            m = row.measurement
            tokens = m.output_tokens.value / r1.output_tokens.value - 1
            points = 100 * (m.accuracy.value - r1.accuracy.value)
            said.append(
                f"{row.name}: {tokens:+.0%} output tokens and {points:+.0f} points of accuracy "
                f"against r1-like; traces in {m.trace_rate.value:.0%} of the answers."
            )
    return said
