"""A recipe with ranges -> children -> measurements -> the curve; every step can be interrupted and gone on with.

OUT/progress.json       children that were begun, and those whose weights are deleted again
OUT/recipes/NAME.yaml   each child's recipe
OUT/children/NAME       the children
OUT/manifests/NAME.json of those whose weights are deleted
OUT/evaluation/...      answers and what they show; see `evaluate`
OUT/sweep.json          everything, when it is complete
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from chimerakit.child import locked, remove_child
from chimerakit.errors import OutputError, RecipeError, TaskError
from chimerakit.evaluate.records import Evaluation, Measurement, Settings, Task
from chimerakit.evaluate.run import Options, Subject, answer_tasks, check_request, count_missing, evaluate_models
from chimerakit.events import Advanced, Finished, Listener, Said, Started, ignore
from chimerakit.manifest import MANIFEST
from chimerakit.output import is_finished, read_begun
from chimerakit.plan import make_plan
from chimerakit.plan.deltas import Distances
from chimerakit.recipe import Axis, Candidate, Ranges, recipe_to_yaml, sweep_axis
from chimerakit.records import Checkpoint, Plan, Recipe
from chimerakit.runners import Runner
from chimerakit.runners.local import LOCAL
from chimerakit.stores.local import read_file
from chimerakit.stores.part import make_folder, write_file
from chimerakit.sweep.bisect import crossing, middle
from chimerakit.sweep.build import build_children, check_memory
from chimerakit.sweep.keep import Keep, to_drop
from chimerakit.sweep.records import Goal, Grown, Progress, Sweep, Transition, figure

SAVED = "sweep.json"
_PROGRESS = "progress.json"
_MAX_PROGRESS = 1 << 26
_MAX_MANIFEST = 1 << 28
DistancesOf = Callable[[Recipe], Distances | None]
"""How far parents lie from the base, for recipes with a delta."""


class Wish(Struct, frozen=True):
    """What is measured of the children, and what becomes of them."""

    tasks: tuple[Task, ...] = ()
    """Without any they are only made."""
    settings: Settings = Settings()
    samples: int = 1
    against: tuple[str, ...] = ()
    """Parents or children that the others are compared with; all parents unless said."""
    keep: Keep = Keep()
    batch: int | None = None
    """Children that are made at a time, at most; all unless said."""
    goal: Goal | None = None
    options: Options = Options()


def plan_children(
    ranges: Ranges, parents: Mapping[str, Checkpoint], distances_of: DistancesOf = lambda _: None
) -> dict[str, Plan]:
    """The plan of every child. Raises RecipeError, PlanError."""
    recipes = {candidate.name: _laid_out(candidate, parents) for candidate in ranges.candidates()}
    return {name: make_plan(recipe, parents, distances_of(recipe)) for name, recipe in recipes.items()}


def _laid_out(candidate: Candidate, parents: Mapping[str, Checkpoint]) -> Recipe:
    """The recipe with shards by rule unless it says otherwise, wherever the range stands. GGUF has no such layout."""
    recipe, says = candidate.recipe, (candidate.data.get("output") or {}).get("shards")
    if says is not None or parents[recipe.base].format != "safetensors":
        return recipe
    return replace(recipe, output=replace(recipe.output, shards="by-rule"))


def sweep_children(
    ranges: Ranges,
    parents: Mapping[str, Checkpoint],
    output: Path,
    wish: Wish = Wish(),  # noqa: B008 - frozen
    *,
    distances_of: DistancesOf = lambda _: None,
    runner: Runner = LOCAL,
    listener: Listener = ignore,
) -> Sweep:
    """Make every child of a recipe with ranges, or those that a goal asks for, and measure them with their parents.

    What `output` holds of the same sweep is not made again, nor asked again. Raises what planning, merging and evaluating do.
    """
    _check(ranges, parents, wish)
    make_folder(output)
    with locked(output):
        return _sweep(ranges, parents, output, wish, distances_of, runner, listener)


def _sweep(
    ranges: Ranges,
    parents: Mapping[str, Checkpoint],
    output: Path,
    wish: Wish,
    distances_of: DistancesOf,
    runner: Runner,
    listener: Listener,
) -> Sweep:
    zoo = _Zoo(ranges, parents, output, wish, distances_of, runner, listener)
    if wish.goal is None:
        candidates = ranges.candidates()
        zoo.plan(candidates)
        size = wish.batch or len(candidates)
        listener(Started("sweep", len(candidates), "children"))
        for first in range(0, len(candidates), size):
            zoo.grow([candidate.name for candidate in candidates[first : first + size]])
        listener(Finished("sweep"))
        return zoo.finish(None)
    return zoo.finish(_find(zoo, ranges, wish.goal))


def _check(ranges: Ranges, parents: Mapping[str, Checkpoint], wish: Wish) -> None:
    """Refuse before anything is planned, what else would be refused when all is made and answered."""
    if wish.goal is not None:
        _check_goal(ranges, parents, wish, wish.goal)
    names = {candidate.name for candidate in _surely_made(ranges, wish.goal)}
    if both := names & set(parents):
        raise RecipeError("is the name of a parent and of a child", where=min(both))
    places = {name: Path(parent.place) for name, parent in parents.items()}
    if wish.tasks:  # as `evaluate` would, in the end
        subjects = [Subject(name, place) for name, place in places.items()]
        subjects += [Subject(name, next(iter(places.values()))) for name in sorted(names)]
        check_request(subjects, wish.tasks, wish.settings, wish.samples, wish.against)
    if not wish.tasks and (wish.goal is not None or wish.keep.best is not None):
        raise RecipeError("without a task nothing is measured", where="sweep", do="--task FILE")


def _check_goal(ranges: Ranges, parents: Mapping[str, Checkpoint], wish: Wish, goal: Goal) -> None:
    """Refuse what can't be looked for, and comparisons with children that the search may never come to."""
    axis = sweep_axis(ranges.axes)
    if axis is None or len(ranges.axes) > 1:
        raise RecipeError(
            "a transition is looked for along one range of numbers",
            where=ranges.where,
            found=", ".join(each.name for each in ranges.axes) or "no range",
        )
    if goal.metric == "majority" and wish.samples < 2:
        raise RecipeError(
            "one answer to a problem has no majority", where="goal: majority", do="ask for samples, with a temperature"
        )
    sure = [*parents, *(candidate.name for candidate in _surely_made(ranges, goal))]
    if unsure := [name for name in wish.against if name not in sure]:
        raise TaskError(
            "may not be there: a search makes the ends of the range, and what it comes to between them",
            where=f"against {unsure[0]}",
            expected=", ".join(sure),
        )


def _surely_made(ranges: Ranges, goal: Goal | None) -> list[Candidate]:
    """The children that there will be, whatever is measured: all, or of a search those at both ends."""
    if goal is None:
        return ranges.candidates()
    (axis,) = ranges.axes
    return [ranges.at({}, {axis.name: place}) for place in _ends(axis)]


def _ends(axis: Axis) -> list[float]:
    numbers = axis.numbers or ()
    return [min(numbers), max(numbers)]


def _find(zoo: "_Zoo", ranges: Ranges, goal: Goal) -> Transition | None:
    """Look at the ends of the axis, and then always in the middle of the narrowest pair that has the transition between."""
    (axis,) = ranges.axes
    known: dict[float, float] = {}
    wanted = _ends(axis)
    if (between := middle((wanted[0], wanted[1]), goal.within)) is not None:  # it may mix where both ends only copy
        zoo.check_memory([ranges.at({}, {axis.name: place}) for place in (*wanted, between)])
    while wanted:
        candidates = [ranges.at({}, {axis.name: place}) for place in wanted]
        zoo.plan(candidates)
        measured = zoo.grow([candidate.name for candidate in candidates])
        for place, candidate in zip(wanted, candidates, strict=True):
            value = figure(measured[candidate.name], goal.metric)
            if value is None:
                raise RecipeError("has no such figure", where=f"{candidate.name}: {goal.metric}")
            known[place] = value
        pair = crossing(known, goal.value)
        following = None if pair is None else middle(pair, goal.within)
        wanted = [] if following is None else [following]
    pair = crossing(known, goal.value)
    if pair is None:
        return None
    low, high = pair
    return Transition(goal, axis.name, low, high, known[low], known[high], len(known))


class _Zoo:
    """Children while they are made, measured, and deleted again."""

    def __init__(
        self,
        ranges: Ranges,
        parents: Mapping[str, Checkpoint],
        output: Path,
        wish: Wish,
        distances_of: DistancesOf,
        runner: Runner,
        listener: Listener,
    ):
        self._ranges = ranges
        self._parents = parents
        self._output = output
        self._wish = wish
        self._distances_of = distances_of
        self._runner = runner
        self._listener = listener
        self._candidates: dict[str, Candidate] = {}
        self._recipes: dict[str, Recipe] = {}
        self._plans: dict[str, Plan] = {}
        self._measured: dict[str, Measurement] = {}
        self._progress = _load_progress(output / _PROGRESS)

    @property
    def _answers(self) -> Path:
        return self._output / "evaluation"

    def _child(self, name: str) -> Path:
        return self._output / "children" / name

    # ----------------------------------------------------------------------------------------- children

    def plan(self, candidates: Sequence[Candidate]) -> None:
        """Plan children, before any of them is made; refuse those of another sweep."""
        for candidate in candidates:
            recipe, plan = self._planned(candidate)
            if self._progress.children.get(candidate.name, plan.digest) != plan.digest:
                raise OutputError(
                    f"holds another child that is called {candidate.name}",
                    where=self._output,
                    do="choose another folder for another sweep",
                )
            self._candidates[candidate.name] = candidate
            self._recipes[candidate.name], self._plans[candidate.name] = recipe, plan
        self.check_memory(candidates)
        make_folder(self._output / "recipes")
        for candidate in candidates:
            text = recipe_to_yaml(self._recipes[candidate.name])
            write_file(self._output / "recipes" / f"{candidate.name}.yaml", text.encode())
        digests = {candidate.name: self._plans[candidate.name].digest for candidate in candidates}
        self._save(replace(self._progress, children=self._progress.children | digests))

    def check_memory(self, candidates: Sequence[Candidate]) -> None:
        """Refuse children that are to be made, now or later, if there is too little memory for one of them."""
        todo = [candidate for candidate in candidates if not self._is_there(candidate.name)]
        check_memory({candidate.name: self._planned(candidate)[1] for candidate in todo}, self._runner)

    def _planned(self, candidate: Candidate) -> tuple[Recipe, Plan]:
        if candidate.name not in self._plans:
            recipe = _laid_out(candidate, self._parents)
            return recipe, make_plan(recipe, self._parents, self._distances_of(recipe))
        return self._recipes[candidate.name], self._plans[candidate.name]

    def grow(self, names: Sequence[str]) -> Mapping[str, Measurement]:
        """Make children that are not measured yet, measure them, and delete those that are not to be kept."""
        done = [name for name in names if self._is_done(name)]
        todo = [name for name in names if name not in done]
        self._save(replace(self._progress, gone={n: m for n, m in self._progress.gone.items() if n not in todo}))
        for name in todo:
            if (begun := read_begun(self._child(name))) is not None and not begun.plan:  # it was being deleted
                remove_child(self._child(name))
        there = {name: plan for name, plan in self._plans.items() if is_finished(self._child(name))}
        build_children(
            there | {name: self._plans[name] for name in todo},
            self._output / "children",
            runner=self._runner,
            listener=self._listener,
        )
        for name in names:
            if self._wish.tasks:
                self._measure(name)
            self._listener(Advanced(1))
        self._drop()
        return self._measured

    def _is_there(self, name: str) -> bool:
        """Whether nothing is to be made of a child: it is finished, or was measured and deleted."""
        return is_finished(self._child(name)) or self._is_done(name)

    def _is_done(self, name: str) -> bool:
        """Whether a child was measured and deleted, and has all answers that are asked for now."""
        model, wish = self._progress.gone.get(name), self._wish
        return (
            model is not None
            and bool(wish.tasks)
            and not count_missing(model, wish.tasks, self._answers, wish.settings, wish.samples)
        )

    def _measure(self, name: str) -> None:
        wish = self._wish
        found = answer_tasks(
            self._subject(name),
            wish.tasks,
            self._answers,
            wish.settings,
            wish.samples,
            options=wish.options,
            listener=self._listener,
        )
        self._measured[name] = found.measurements[wish.tasks[0].name]

    def _subject(self, name: str) -> Subject:
        gone = self._progress.gone.get(name)
        return Subject(name, gone=gone) if gone is not None else Subject(name, self._child(name))

    def _drop(self) -> None:
        """Delete what is not to be kept: first said, then the manifest is put aside, then the weights go."""
        for name in to_drop(self._wish.keep, self._measured):
            path = self._child(name)
            if name not in self._progress.gone:
                make_folder(self._output / "manifests")
                manifest = read_file(path / MANIFEST, _MAX_MANIFEST)
                write_file(self._output / "manifests" / f"{name}.json", manifest)
                gone = self._progress.gone | {name: self._measured[name].model}
                self._save(replace(self._progress, gone=gone))
            if path.exists():
                remove_child(path)
                self._listener(Said(f"{name} is deleted; its recipe makes it again"))

    def _save(self, progress: Progress) -> None:
        if progress != self._progress or not (self._output / _PROGRESS).exists():
            self._progress = progress
            write_file(self._output / _PROGRESS, msgspec.json.encode(progress))

    # ------------------------------------------------------------------------------------------- results

    def finish(self, transition: Transition | None) -> Sweep:
        """Measure the parents too, compare all, and say what was found."""
        evaluation = self._evaluate() if self._wish.tasks else None
        found = Sweep(
            recipe=self._ranges.data,
            axes=self._ranges.axes,
            children=tuple(self._grown(name) for name in self._sorted()),
            parents=tuple(self._parents),
            base=next(iter(self._recipes.values())).base,
            evaluation=evaluation,
            transition=transition,
        )
        write_file(self._output / SAVED, msgspec.json.format(msgspec.json.encode(found), indent=1))
        return found

    def _evaluate(self) -> Evaluation:
        wish = self._wish
        parents = [Subject(name, Path(parent.place)) for name, parent in self._parents.items()]
        return evaluate_models(
            [*parents, *map(self._subject, self._sorted())],
            wish.tasks,
            self._answers,
            settings=wish.settings,
            samples=wish.samples,
            against=wish.against or tuple(self._parents),
            options=wish.options,
            listener=self._listener,
        )

    def _sorted(self) -> list[str]:
        """Children in the order of the axes; those found by a search by their places."""
        axes = self._ranges.axes

        def place(name: str) -> tuple[float, ...]:
            point = self._candidates[name].point
            return tuple(
                axis.place(point[axis.name]) if axis.numbers is not None else list(axis.values).index(point[axis.name])
                for axis in axes
            )

        return sorted(self._candidates, key=place)

    def _grown(self, name: str) -> Grown:
        return Grown(
            name=name,
            point=self._candidates[name].point,
            recipe=recipe_to_yaml(self._recipes[name]),
            plan=self._plans[name].digest,
            is_kept=name not in self._progress.gone,
        )


def _load_progress(file: Path) -> Progress:
    if not file.is_file():
        return Progress({}, {})
    try:
        return msgspec.json.decode(read_file(file, _MAX_PROGRESS), type=Progress)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise OutputError("holds something else than a sweep", where=file.parent, do="choose another folder") from e
