"""Models that were measured as a section: the plane of accuracy and tokens, tables, answers side by side."""

from collections.abc import Iterator, Mapping, Sequence

from chimerakit.evaluate.records import Answer, Difference, Estimate, Evaluation, Example, Measurement
from chimerakit.report.blocks import Block, Chart, Dot, Listing, Plane, Ranged, Section, Table, rounded
from chimerakit.report.health import show_health
from chimerakit.report.words import say_lines, say_number, say_share, say_text

_AS_GOOD = -0.02
"""Accuracy that may be lost at most, by the interval's lower end, where a model is called as good as another."""
_LONGEST = 1500
"""Characters of an answer that are shown."""
_COLORS = 9


def show_evaluation(found: Evaluation, name: str) -> Section:
    """Everything that was measured."""
    tasks = ", ".join(dict.fromkeys(m.task for m in found.measurements))
    title = say_text(f"How {len({m.model.name for m in found.measurements})} models do on {tasks}")
    return Section("evaluate", title, name, tuple(facts_of(found)), tuple(blocks_of(found, {})))


def facts_of(found: Evaluation) -> Iterator[tuple[str, str]]:
    """What was asked, and how."""
    for measured in {m.task: m for m in found.measurements}.values():
        s = measured.settings
        how = "greedy" if s.temperature == 0 else f"temperature {s.temperature:g}, top-p {s.top_p:g}, seed {s.seed}"
        samples = f", {measured.samples} samples each" if measured.samples > 1 else ""
        yield "task", say_text(f"{measured.task}: {measured.problems} problems{samples}")
        yield "decoding", f"{how}, at most {s.max_tokens:,} tokens"
    yield "intervals", "95 %, by the bootstrap over problems"


def blocks_of(found: Evaluation, lines: Mapping[str, str]) -> Iterator[Block]:
    """Summary, planes, tables, oddities, routers, answers. lines: of children, what line they stand on in the plane."""
    yield Listing("In short", say_lines(summary_of(found.differences)))
    for task in dict.fromkeys(m.task for m in found.measurements):
        measured = [m for m in found.measurements if m.task == task]
        yield _plane(task, measured, lines)
        yield _measurements(task, measured)
        yield from _differences(task, [d for d in found.differences if d.task == task])
        yield from _oddities(measured)
    if found.routers is not None:
        yield from show_health(found.routers)
    yield from _examples(found.examples)


# ---------------------------------------------------------------------------------------------- in words


def summary_of(differences: Sequence[Difference]) -> list[str]:
    """For each model that others save tokens against: who is as good at fewest tokens, or who comes nearest."""
    found = []
    for task, against in dict.fromkeys((d.task, d.against) for d in differences):
        mine = [d for d in differences if (d.task, d.against) == (task, against) and d.token_ratio.high < 1]
        if good := [d for d in mine if d.accuracy.low >= _AS_GOOD]:
            best = min(good, key=lambda d: d.token_ratio.value)
            many = f" (of {len(mine)} with fewer tokens; each interval is of one model)" if len(mine) > 1 else ""
            found.append(f"{task}: {say_difference(best)}{many}.")
        elif mine:
            near = max(mine, key=lambda d: (d.accuracy.low, -d.token_ratio.value))
            found.append(
                f"{task}: nobody with fewer tokens is surely within {-100 * _AS_GOOD:g} points of {against}'s accuracy; nearest, "
                f"{say_difference(near)}."
            )
        else:
            found.append(f"{task}: nobody surely needs fewer tokens than {against}.")
    return found or ["One model: there is nothing to compare it with."]


def say_difference(found: Difference) -> str:
    """What a model keeps of another's accuracy, and what it saves."""
    ratio = found.token_ratio
    if ratio.value <= 1:
        tokens = f"{1 - ratio.value:.0%} [{_ends(1 - ratio.high, 1 - ratio.low)}] fewer tokens"
    else:
        tokens = f"{ratio.value - 1:.0%} [{_ends(ratio.low - 1, ratio.high - 1)}] more tokens"
    if found.kept is None:
        return f"{found.model} needs {tokens} than {found.against}"
    kept = f"{found.kept.value:.0%} [{_ends(found.kept.low, found.kept.high)}]"
    return f"{found.model} keeps {kept} of {found.against}'s accuracy with {tokens}"


def _ends(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f}"


# ---------------------------------------------------------------------------------------------- charts


def _plane(task: str, measured: Sequence[Measurement], lines: Mapping[str, str]) -> Chart:
    names = list(dict.fromkeys(lines.values()))
    dots = [
        Dot(
            name=say_text(m.model.name),
            color=names.index(lines[m.model.name]) % _COLORS if m.model.name in lines else -1,
            across=ranged(m.output_tokens),
            up=ranged(m.accuracy),
            is_large=m.model.name not in lines,
            line=say_text(lines.get(m.model.name, "")),
        )
        for m in measured
    ]
    says = "Each model by its output tokens and its accuracy, with intervals: up and to the left is better."
    return Chart(say_text(f"{task}: accuracy and tokens"), says, Plane("output tokens", "accuracy", tuple(dots), True))


def ranged(found: Estimate) -> Ranged:
    """An estimate as a chart has it."""
    return rounded(found.value), rounded(found.low), rounded(found.high)


# ---------------------------------------------------------------------------------------------- tables


def _measurements(task: str, measured: Sequence[Measurement]) -> Table:
    has_samples = any(m.samples > 1 for m in measured)
    columns = ["model", "accuracy", "output tokens", "traces", "tokens of a trace", "per right answer", "workable"]
    rows = []
    for m in measured:
        row = [
            say_text(m.model.name),
            say_shares(m.accuracy),
            say_numbers(m.output_tokens),
            say_shares(m.trace_rate),
            say_numbers(m.reasoning_tokens),
            say_numbers(m.tokens_per_correct),
            f"{'yes' if m.is_workable else 'no'} ({say_share(m.workable.value)})",
        ]
        if has_samples:
            row += [say_shares(m.majority), "" if m.spread is None else f"{m.spread:.2g}"]
        rows.append(tuple(row))
    if has_samples:
        columns += ["majority", "spread"]
    return Table(say_text(f"{task}: models"), tuple(columns), tuple(rows))


def _differences(task: str, differences: Sequence[Difference]) -> Iterator[Block]:
    for against in dict.fromkeys(d.against for d in differences):
        rows = [
            (
                say_text(d.model),
                f"{100 * d.accuracy.value:+.1f} [{100 * d.accuracy.low:.1f}, {100 * d.accuracy.high:.1f}]",
                say_shares(d.kept),
                f"{d.token_ratio.value - 1:+.0%} [{_ends(d.token_ratio.low - 1, d.token_ratio.high - 1)}]",
            )
            for d in differences
            if d.against == against
        ]
        columns = ("model", "points of accuracy", "keeps", "output tokens")
        says = f"Paired differences on the same {differences[0].problems} problems."
        yield Table(say_text(f"{task}: against {against}"), columns, tuple(rows), says)


def _oddities(measured: Sequence[Measurement]) -> Iterator[Block]:
    """What nobody expects of a model that works, where there is any."""
    columns = ("model", "not ended", "looping", "closed only", "opened twice", "empty", "never closed")
    rows = []
    for m in measured:
        shares = (m.truncated, m.looping, m.closed_only, m.opened_twice, m.empty, 1 - m.closed)
        if any(shares):
            rows.append((say_text(m.model.name), *map(say_share, shares)))
    if rows:
        says = "Shares of answers; of traces in the last column. Models without any are left out."
        yield Table("What is odd", columns, tuple(rows), says)


def say_shares(found: Estimate | None) -> str:
    """A share with its interval, in percent."""
    return "" if found is None else f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def say_numbers(found: Estimate | None) -> str:
    """A number with its interval."""
    if found is None:
        return ""
    return f"{say_number(found.value)} [{say_number(found.low)}, {say_number(found.high)}]"


# ---------------------------------------------------------------------------------------------- answers


def _examples(examples: Sequence[Example]) -> Iterator[Block]:
    """Problems on which models differ most, as each answered them."""
    for example in examples:
        rows = [
            (say_text(name), "right" if a.is_correct else "wrong", f"{a.output_tokens:,}", _cut(_said(a)))
            for name, a in example.answers.items()
        ]
        title = say_text(f"{example.task}: {example.question}")
        says = say_text(f"Problem {example.problem}; the answer is {example.answer}.")
        yield Table(title, ("model", "", "tokens", "said"), tuple(rows), says, words=(0, 1, 3), is_folded=True)


def _said(answer: Answer) -> str:
    trace = f"[trace: {answer.reasoning}] " if answer.has_trace else ""
    return trace + answer.text


def _cut(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:_LONGEST]) + (" ..." if len(text) > _LONGEST else "")
