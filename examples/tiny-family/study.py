"""Does what is told of DeepSeek's Chimeras hold on the tiny family? One command measures everything and writes the page.

    python examples/tiny-family/study.py                  about an hour on two cores; an interrupted one goes on (but for llama.cpp's
                                                          answers, and those of its server, which are asked again)
    python examples/tiny-family/study.py --render         the page again, out of docs/study.json

Sweeps of study/*.yaml on all 500 held-out problems, greedy, and of the routed experts sampled as well; routers; engines.
Answers lie in build/study, figures in docs/study.json (with every problem's outcome in the greedy sweeps), the page is docs/study.md.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from chimerakit.cli.progress import watching
from chimerakit.evaluate import Subject, evaluate_models, load_task
from chimerakit.evaluate.answers import read_answers
from chimerakit.evaluate.backends.llama_cpp import LlamaCpp
from chimerakit.evaluate.backends.server import Server
from chimerakit.evaluate.records import Difference, Evaluation, Measurement, Settings, Task
from chimerakit.evaluate.run import asks_of
from chimerakit.evaluate.score import score
from chimerakit.evaluate.statistics import Bootstrap
from chimerakit.events import Listener
from chimerakit.formats import open_checkpoint
from chimerakit.merge import merge_parents
from chimerakit.plan import make_plan
from chimerakit.recipe import Ranges, load_ranges, locate_parents, parse_recipe
from chimerakit.records import Checkpoint
from chimerakit.sweep import Goal, Keep, Sweep, Wish, plan_children, sweep_children

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))
import to_gguf  # noqa: E402 - a neighbour

JSON, PAGE = ROOT / "docs" / "study.json", ROOT / "docs" / "study.md"
GREEDY = Settings(max_tokens=160)
SAMPLED = Settings(max_tokens=160, temperature=0.6)
SAMPLES = 4
ENGINE_SHARES = (0.25, 0.5, 0.75)
ROUTER_TEXTS = 50
FIGURES = ("accuracy", "output_tokens", "trace_rate", "reasoning_tokens", "workable")
PARENTS = ("v3", "r1")
Zoo = dict[tuple[Any, ...], dict[str, Any]]
"""Children by what their weights are made of: each one's figures, by sweep and name."""


# ------------------------------------------------------------------------------------------- measuring


def measure(work: Path, listener: Listener) -> dict[str, Any]:
    """Everything that the page says."""
    task = load_task(HERE / "task.yaml")
    found: dict[str, Any] = {"sweeps": {}}
    for name in ("curves", "alone", "left-out", "routers"):
        swept = sweep(name, task, work / name, Wish((task,), GREEDY, against=PARENTS, keep=Keep(0)), listener)
        found["sweeps"][name] = told(swept, work / name, task, GREEDY)
    wish = Wish((task,), SAMPLED, SAMPLES, against=PARENTS, keep=Keep(0))
    found["sweeps"]["compact"] = told(sweep("compact", task, work / "compact", wish, listener))
    wish = Wish((task,), GREEDY, against=PARENTS, keep=Keep(0), goal=Goal("trace_rate", 0.5, 0.01))
    found["transition"] = msgspec.to_builtins(sweep("compact", task, work / "bisect", wish, listener).transition)
    found["routers"] = msgspec.to_builtins(ask_routers(task, work / "health", listener).routers)
    found["engines"] = compare_engines(task, work / "engines")
    return {
        "problems": len(task.problems),
        "greedy": msgspec.to_builtins(GREEDY),
        "sampled": msgspec.to_builtins(SAMPLED) | {"samples": SAMPLES},
        "machine": f"{platform.machine()}, CPU, float32",
        **found,
    }


def sweep(name: str, task: Task, output: Path, wish: Wish, listener: Listener) -> Sweep:
    """One of the study's sweeps."""
    ranges, parents = ranges_of(name)
    return sweep_children(ranges, parents, output, replace(wish, tasks=(task,)), listener=listener)


def ranges_of(name: str) -> tuple[Ranges, dict[str, Checkpoint]]:
    """A sweep's recipe with ranges, and its parents."""
    file = HERE / "study" / f"{name}.yaml"
    ranges = load_ranges(file)
    first, paths = locate_parents(ranges.candidates()[0].recipe, {}, file.parent)
    ranges = replace(ranges, data=ranges.data | {"parents": first.parents})
    return ranges, {parent: open_checkpoint(path) for parent, path in paths.items()}


def told(swept: Sweep, output: Path | None = None, task: Task | None = None, settings: Settings = GREEDY) -> Any:
    """What a sweep showed: figures of every model, differences from both parents, and what became of each problem."""
    evaluation = swept.evaluation
    assert evaluation is not None
    points = {child.name: child.point for child in swept.children}
    return {
        m.model.name: {
            "point": points.get(m.model.name),
            **{figure: triple(getattr(m, figure)) for figure in FIGURES},
            "is_workable": m.is_workable,
            "against": {d.against: compared(d) for d in evaluation.differences if d.model == m.model.name},
            **({} if output is None or task is None else outcomes(output, m, task, settings)),
        }
        for m in evaluation.measurements
    }


def triple(found: Any) -> list[float] | None:
    """Value and interval."""
    return None if found is None else [round(x, 5) for x in (found.value, found.low, found.high)]


def compared(found: Difference) -> dict[str, Any]:
    """A paired difference."""
    return {name: triple(getattr(found, name)) for name in ("accuracy", "token_ratio", "kept")}


def outcomes(output: Path, measured: Measurement, task: Task, settings: Settings) -> dict[str, Any]:
    """Of each problem, in their order: right or wrong, with a trace or without, tokens."""
    said = read_answers(output / "evaluation" / measured.model.name / f"{task.name}.jsonl", task)
    problems = {problem.id: problem for problem in task.problems}
    answers = [
        score(ask, problems[ask.problem], said[ask.problem, 0], task.scorer, settings)
        for ask in asks_of(task, settings, 1)
    ]
    return {
        "right": "".join(str(int(a.is_correct)) for a in answers),
        "traced": "".join(str(int(a.has_trace)) for a in answers),
        "tokens": [a.output_tokens for a in answers],
    }


def ask_routers(task: Task, work: Path, listener: Listener) -> Evaluation:
    """V3-like's router over its own experts, over mixes, over R1-like's; R1-like's own."""
    parents = {name: open_checkpoint(HERE / f"{name}-like") for name in PARENTS}
    subjects = [Subject(name, HERE / f"{name}-like") for name in PARENTS]
    for share in (0.5, 0.75, 1):
        rules = f"[{{mix: {{r1: {share}}}, components: routed_experts}}]"
        recipe = parse_recipe(f"parents: {{v3: , r1: }}\nbase: v3\nrules: {rules}\n")
        merge_parents(make_plan(recipe, parents), work / "children" / f"experts-{share}", listener=listener)
        subjects.append(Subject(f"experts-{share}", work / "children" / f"experts-{share}"))
    few = replace(task, problems=task.problems[:ROUTER_TEXTS])
    return evaluate_models(
        subjects, [few], work, settings=GREEDY, against=["r1"], router_texts=ROUTER_TEXTS, listener=listener
    )


def compare_engines(task: Task, work: Path) -> dict[str, Any]:
    """The same child in transformers, in llama.cpp and behind its HTTP server: how many answers are the same, and the others."""
    work.mkdir(parents=True, exist_ok=True)
    files = {name: work / f"{name}.gguf" for name in PARENTS}
    for name, file in files.items():
        to_gguf.convert(HERE / f"{name}-like", file)
    asks = asks_of(task, GREEDY, 1)
    found = {}
    for share in ENGINE_SHARES:
        rules = f"[{{mix: {{r1: {share}}}, components: routed_experts}}]"
        recipe = parse_recipe(f"parents: {{v3: , r1: }}\nbase: v3\nrules: {rules}\n")
        folders = {"safetensors": {n: HERE / f"{n}-like" for n in PARENTS}, "gguf": files}
        for kind, places in folders.items():
            plan = make_plan(recipe, {name: open_checkpoint(place) for name, place in places.items()})
            merge_parents(plan, work / f"{kind}-{share}", force=True)
        subject = [Subject("child", work / f"safetensors-{share}")]
        evaluate_models(subject, [task], work / f"answers-{share}", settings=GREEDY)
        said = read_answers(work / f"answers-{share}" / "child" / f"{task.name}.jsonl", task)
        inside = LlamaCpp(work / f"gguf-{share}" / "model.gguf", at_once=4)
        answers = {"llama.cpp": dict(texts(inside.answer(asks, GREEDY)))}
        server = Server(f"{inside.serve(GREEDY.max_tokens)}/v1", None, at_once=4)
        answers["its HTTP server"] = dict(texts(server.answer(asks, GREEDY)))
        server.close()
        inside.close()
        found[str(share)] = {
            engine: [
                {"question": ask.question, "transformers": said[ask.problem, 0].text, "there": mine[ask.problem]}
                for ask in asks
                if mine[ask.problem] != said[ask.problem, 0].text
            ]
            for engine, mine in answers.items()
        }
    return found


def texts(answers: Iterator[Any]) -> Iterator[tuple[str, str]]:
    """(problem, text)."""
    for ask, said in answers:
        yield ask.problem, said.text


# --------------------------------------------------------------------------------------------- telling


def render(d: Mapping[str, Any]) -> str:
    """The page."""
    return "\n".join(_lines(d)) + "\n"


def _lines(d: Mapping[str, Any]) -> Iterator[str]:
    curves, compact = d["sweeps"]["curves"], d["sweeps"]["compact"]
    zoo = zoo_of(d["sweeps"])
    yield "# Does it hold on the tiny family?"
    yield ""
    yield "<!-- Written by examples/tiny-family/study.py out of study.json; edit that. -->"
    yield ""
    yield (
        f"What is told of DeepSeek's Chimeras, asked of the [tiny family](../examples/tiny-family/README.md): {d['problems']} held-out "
        f"problems, {len(zoo)} different children, {d['machine']}. Greedy unless said; sampled means temperature "
        f"{d['sampled']['temperature']}, {d['sampled']['samples']} answers a problem, seed {d['sampled']['seed']}. Intervals are 95 %, "
        "by the bootstrap over problems; differences are paired. All figures, and what became of every problem in the greedy "
        "sweeps, stand in [study.json](study.json). One arithmetic task and 8.6 M weights: this shows what to look for and predicts nothing "
        "about large models; several of the family's traits were [chosen](../examples/tiny-family/README.md#how-it-was-made) to "
        "resemble what is told."
    )
    yield ""
    yield from _verdicts(d, curves, compact, zoo)
    yield from _section("The share of R1-like", _curve_tables(curves, d["transition"]))
    yield from _section("Sampled", _sampled(compact))
    yield from _section("Whose is the reasoning?", _attribution(d["sweeps"], curves))
    yield from _section("Which router?", _routers(d))
    yield from _section("Does every child work?", _workable(zoo))
    yield from _section("Is it the engine?", _engines(d))
    yield from _section(
        "Again",
        [
            "    python examples/tiny-family/study.py             # measures, and writes this page",
            "    python examples/tiny-family/study.py --render    # this page out of study.json",
            "",
            "Answers of transformers that build/study holds are not asked again; those of llama.cpp and of its server are.",
            "CI recomputes three of the children on 50 problems and holds them against study.json.",
        ],
    )


def _section(title: str, lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    yield from lines
    yield ""


def _share(found: Sequence[float] | None) -> str:
    return "" if found is None else f"{100 * found[0]:.1f} [{100 * found[1]:.1f}, {100 * found[2]:.1f}]"


def _number(found: Sequence[float] | None) -> str:
    return "" if found is None else f"{found[0]:.1f} [{found[1]:.1f}, {found[2]:.1f}]"


def _points(found: Sequence[float]) -> str:
    return f"{100 * found[0]:+.1f} [{100 * found[1]:+.1f}, {100 * found[2]:+.1f}]"


def _less(ratio: Sequence[float]) -> str:
    return f"{100 * (ratio[0] - 1):+.0f} % [{100 * (ratio[1] - 1):+.0f}, {100 * (ratio[2] - 1):+.0f}]"


HEAD = "| accuracy, % | output tokens | traces, % | tokens of a trace | against r1-like: points | tokens |"


def _cells(row: Mapping[str, Any]) -> str:
    against = row["against"].get("r1")
    more = ["", ""] if against is None else [_points(against["accuracy"]), _less(against["token_ratio"])]
    cells = [_share(row["accuracy"]), _number(row["output_tokens"]), _share(row["trace_rate"])]
    return "| " + " | ".join([*cells, _number(row["reasoning_tokens"]), *more]) + " |"


def _table(rows: Sequence[tuple[str, Mapping[str, Any]]], first: str = "model") -> Iterator[str]:
    yield f"| {first} {HEAD}"
    yield "|---" * 7 + "|"
    for name, row in rows:
        yield f"| {name} {_cells(row)}"


def _on(curves: Mapping[str, Any], selection: str) -> list[tuple[float, Mapping[str, Any]]]:
    """The children of a curve with their lambda, from V3-like on."""
    rows = [
        (float(row["point"]["r1"]), row)
        for row in curves.values()
        if row["point"] is not None and row["point"].get("components", selection) == selection
    ]
    return [(0.0, curves["v3"]), *sorted(rows, key=lambda each: each[0])]


SELECTIONS = {"experts": "routed experts", "moe": "routed and shared experts and router", "all": "everything"}


def _curve_tables(curves: Mapping[str, Any], transition: Mapping[str, Any] | None) -> Iterator[str]:
    yield from _table([("v3-like", curves["v3"]), ("r1-like", curves["r1"])])
    for selection, says in SELECTIONS.items():
        yield ""
        yield f"Lambda of R1-like in {says}, the rest V3-like's:"
        yield ""
        yield from _table([(f"{share:g}", row) for share, row in _on(curves, selection)], "lambda")
    if transition is not None:
        yield ""
        yield (
            f"`chimerakit sweep --bisect trace_rate=0.5` over the routed experts: traces pass one half between lambda "
            f"{transition['low']:g} ({100 * transition['at_low']:.0f} %) and {transition['high']:g} "
            f"({100 * transition['at_high']:.0f} %), found with {transition['children']} children."
        )


def _sampled(compact: Mapping[str, Any]) -> Iterator[str]:
    yield "The routed experts again:"
    yield ""
    yield from _table(
        [(f"{share:g}", row) for share, row in _on(compact, "experts")] + [("r1-like", compact["r1"])], "lambda"
    )


def _attribution(sweeps: Mapping[str, Any], curves: Mapping[str, Any]) -> Iterator[str]:
    yield "One component from R1-like, the rest V3-like's:"
    yield ""
    alone = {name: row for name, row in sweeps["alone"].items() if row["point"] is not None}
    yield from _table([*alone.items(), ("routed_experts", dict(_on(curves, "experts"))[1.0])], "from R1-like")
    yield ""
    yield "Everything from R1-like, one component V3-like's:"
    yield ""
    left = {name: row for name, row in sweeps["left-out"].items() if row["point"] is not None}
    yield from _table([(name.removeprefix("without-"), row) for name, row in left.items()], "from V3-like")


def _routers(d: Mapping[str, Any]) -> Iterator[str]:
    rows = d["sweeps"]["routers"]
    names = {"router-0": "V3-like's", "router-0.5": "the mean of both", "router-1": "R1-like's own"}
    yield "R1-like's routed experts, everything else V3-like's, under three routers:"
    yield ""
    yield from _table([(says, rows[name]) for name, says in names.items()], "router")
    routers = d["routers"]
    yield ""
    yield (
        f"What routers do on {routers['source']} ({routers['tokens']:,} tokens, `evaluate --router`): the share of chosen experts that "
        "R1-like chooses too, for the same token; and how much of its own choice each router keeps on R1-like's states."
    )
    yield ""
    yield "| model | layer | same as r1-like, % | kept on its states, % | evenness of loads, % | dead | overloaded | margin | perplexity |"
    yield "|---" * 9 + "|"
    for each in routers["health"]:
        low = routers["perplexity"][each["model"]]
        for number, layer in enumerate(each["layers"]):
            same, kept = (layer[what].get("r1") for what in ("overlap", "steady"))
            cells = [
                each["model"],
                str(layer["layer"]),
                "" if same is None else f"{100 * same:.1f}",
                "" if kept is None else f"{100 * kept:.1f}",
                f"{100 * layer['evenness']:.1f}",
                str(layer["dead"]),
                str(layer["overloaded"]),
                f"{layer['margin']:.3f}",
                f"{low['value']:.4f} [{low['low']:.4f}, {low['high']:.4f}]" if number == 0 else "",
            ]
            yield "| " + " | ".join(cells) + " |"


def zoo_of(sweeps: Mapping[str, Any]) -> Zoo:
    """All children, by what their weights are made of: several sweeps may have one, and that which is a parent again is none."""
    found: Zoo = {}
    for sweep_name, rows in sweeps.items():
        plans = plan_children(*ranges_of(sweep_name))
        for name in (name for name, row in rows.items() if row["point"] is not None):
            made = tuple(
                (row.unit, tuple((part.parent, part.share) for part in row.inputs if part.share))
                for row in sorted(plans[name].rows, key=lambda row: row.unit)
            )
            if len({parts for _, parts in made}) > 1 or len(made[0][1]) > 1:
                found.setdefault(made, {})[f"{sweep_name} {name}"] = rows[name]
    return found


def _which_work(zoo: Zoo) -> list[bool]:
    """Of each child, in every sweep that it is in."""
    return [all(row["is_workable"] for row in rows.values()) for rows in zoo.values()]


def _workable(zoo: Zoo) -> Iterator[str]:
    good = _which_work(zoo)
    yield (
        f"{sum(good)} of {len(good)} children end by themselves, without a loop and with an answer that can be read, on at least 95 % "
        "of the problems. Counted are different weights, in all sweeps that they are in; a child that has all of one parent's is none. "
        "In more than one sweep are: " + "; ".join(" = ".join(rows) for rows in zoo.values() if len(rows) > 1) + "."
    )
    for rows in zoo.values():
        for name, row in rows.items():
            if not row["is_workable"]:
                yield f"- {name}: {_share(row['workable'])} %"


def _engines(d: Mapping[str, Any]) -> Iterator[str]:
    yield "Greedy answers of children of the routed experts in BF16, against transformers in float32; the others are listed."
    yield ""
    yield "| lambda | engine | the same |"
    yield "|---|---|---|"
    for share, engines in d["engines"].items():
        for engine, unlike in engines.items():
            yield f"| {share} | {engine} | {d['problems'] - len(unlike)} of {d['problems']} |"
    listed = [(s, e, u) for s, engines in d["engines"].items() for e, unlike in engines.items() for u in unlike]
    if listed:
        yield ""
    for share, engine, unlike in listed:
        yield f"- {share}, {engine}, `{unlike['question']}`: `{unlike['transformers']}` there `{unlike['there']}`"


def _verdicts(d: Mapping[str, Any], curves: Mapping[str, Any], compact: Mapping[str, Any], zoo: Zoo) -> Iterator[str]:
    """What is told, and what is found: each made of the figures."""
    experts = dict(_on(curves, "experts"))
    half, most, whole = experts[0.5], experts[0.75], experts[1.0]
    sampled = [share for share, _ in _on(compact, "experts") if share]
    good = [
        (share, row)
        for share, row in experts.items()
        if share in sampled and row["against"]["r1"]["accuracy"][1] >= -0.02
    ]
    yield "| told | found | |"
    yield "|---|---|---|"

    def line(told: str, found: str, holds: bool) -> str:
        return f"| {told} | {found} | {'holds' if holds else 'does not hold'} |"

    if good:
        share, best = min(good, key=lambda each: each[1]["against"]["r1"]["token_ratio"][0])
        against = best["against"]["r1"]
        says = (
            f"lambda {share:g}: {_points(against['accuracy'])} points, {_less(against['token_ratio'])} tokens; sampled, "
            + _sampled_at(compact, share)
        )
        yield line("A child has R1's accuracy with 40 % fewer tokens", says, against["token_ratio"][2] <= 0.6)
    else:
        yield line("A child has R1's accuracy with 40 % fewer tokens", "no child does", False)
    yield line(
        "The routed experts carry the reasoning",
        f"alone they bring traces in {_share(whole['trace_rate'])} % of the answers; without them "
        f"{_share(d['sweeps']['left-out']['without-routed_experts']['trace_rate'])} %",
        whole["trace_rate"][0] > 0.95 and d["sweeps"]["left-out"]["without-routed_experts"]["trace_rate"][0] < 0.05,
    )
    rates = [(share, row["trace_rate"][0]) for share, row in experts.items()]
    yield line("Traces appear suddenly", *sudden(rates))
    yield line(
        "At 50 % R1 there are no traces",
        f"{_share(half['trace_rate'])} % of the answers have one",
        half["trace_rate"][0] < 0.05,
    )
    yield line(
        "At 75 % R1 there are, and they are more compact",
        f"{_share(most['trace_rate'])} %, of {_number(most['reasoning_tokens'])} tokens; R1-like's are of "
        f"{_number(curves['r1']['reasoning_tokens'])}",
        most["trace_rate"][0] > 0.95 and most["reasoning_tokens"][2] < curves["r1"]["reasoning_tokens"][1],
    )
    works = _which_work(zoo)
    yield line("Nearly every child works", f"{sum(works)} of {len(works)}", sum(works) >= 0.95 * len(works))
    routers = d["sweeps"]["routers"]
    theirs, own = routers["router-0"], routers["router-1"]
    paired = paired_points(theirs["right"], own["right"])
    yield line(
        "V3's router will do for R1's experts",
        f"accuracy {_share(theirs['accuracy'])} under V3-like's, {_share(own['accuracy'])} under R1-like's own: "
        f"{_points(paired)} points",
        paired[1] >= -0.02,
    )
    yield ""
    yield (
        "*Holds* means here, of the routed experts and greedy: the paired interval of accuracy is above -2 points and that of tokens below "
        "-40 % (the child with fewest tokens is shown, of those that were sampled, too); traces in more than 95 % of the answers, or in "
        "fewer than 5 %; from fewer to more within 0.35 of lambda, passing one half once; traces shorter, intervals apart; 95 % of the "
        "children; the paired interval of accuracy under V3-like's router, against that under R1-like's, is above -2 points."
    )
    yield ""


def sudden(rates: Sequence[tuple[float, float]]) -> tuple[str, bool]:
    """Whether traces go from fewer than 5 % to more than 95 % in a short way, passing one half once; in words, too."""
    few, many = [s for s, r in rates if r < 0.05], [s for s, r in rates if r > 0.95]
    if not few or not many:
        return f"never {'below 5 %' if not few else 'above 95 %'}", False
    passes = sum((a < 0.5) != (b < 0.5) for (_, a), (_, b) in pairwise(rates))
    low, high = max(few), min(many)
    says = f"below 5 % at {low:g}, above 95 % at {high:g}"
    if passes != 1 or low > high:
        return f"{says}; one half is passed {passes} times" if passes > 1 else f"{says}; they disappear", False
    return says, high - low <= 0.35


def paired_points(mine: str, theirs: str) -> list[float]:
    """The difference of accuracy on the same problems, with its interval, from which of them are right."""
    found = Bootstrap(len(mine)).mean([int(a) - int(b) for a, b in zip(mine, theirs, strict=True)])
    return [found.value, found.low, found.high]


def _sampled_at(compact: Mapping[str, Any], share: float) -> str:
    found = dict(_on(compact, "experts")).get(share)
    if found is None:
        return "not measured"
    against = found["against"]["r1"]
    return f"{_points(against['accuracy'])} points, {_less(against['token_ratio'])}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the tiny family and write docs/study.md.")
    parser.add_argument("--render", action="store_true", help="only write the page, out of docs/study.json")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "study", help="where answers are kept")
    options = parser.parse_args()
    if not options.render:
        with watching(quiet=False) as listener:
            found = measure(options.work, listener)
        JSON.write_text(json.dumps(found, separators=(",", ":")).replace('"point":', '\n"point":') + "\n")
    PAGE.write_text(render(json.loads(JSON.read_text())))


if __name__ == "__main__":
    main()
