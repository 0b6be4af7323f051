"""Records -> tables on a terminal, or JSON, which needs no rich."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from chimerakit.errors import printable
from chimerakit.plan.encoding import encoded_weights, encoding_seconds
from chimerakit.plan.memory import needs_of, peak_memory
from chimerakit.plan.ranges import copy_runs
from chimerakit.records import Findings, Plan, RuleSummary
from chimerakit.runners import Runner
from chimerakit.stores.part import free_nbytes
from chimerakit.words import say_count, say_nbytes, say_seconds

if TYPE_CHECKING:
    from rich.table import Table

    from chimerakit.demo import Demo
    from chimerakit.merge import Merged
    from chimerakit.portions import MergedPortion, Portion
    from chimerakit.table import Table as ChildTable
    from chimerakit.table import TableSummary

MOST_SHOWN = 20


def print_json(record: object) -> None:
    """A record on standard output, with everything escaped that is not for reading: names come from files."""
    lines = msgspec.json.format(msgspec.json.encode(record), indent=2).decode().split("\n")
    for line in lines:
        sys.stdout.write((line if line.isprintable() else "".join(map(_json_printable, line))) + "\n")


def _json_printable(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


def print_grid(table: "Table", width: int | None = None) -> None:
    """A table on standard output; width: columns, those of the terminal unless said."""
    from rich.console import Console

    Console(width=width).print(table)


def make_grid(title: str, *columns: str) -> "Table":
    """A table whose first column is text and whose others are numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def add_row(table: "Table", *cells: object) -> None:
    """A row of a table, with everything escaped that is not for reading."""
    from rich.text import Text

    table.add_row(*(Text(printable(cell)) for cell in cells))


# --------------------------------------------------------------------------------------------- plan


class PlanView(Struct, frozen=True):
    """What a person wants to know of a plan."""

    plan: str
    family: str
    rules: tuple[RuleSummary, ...]
    parents: dict[str, dict[str, int]]
    """Bytes read, and bytes in all."""
    weight_files: int
    output_nbytes: int
    free_nbytes: int | None
    """Where the child shall go; None if no folder was named."""
    copy_ranges: int
    """Ranges of bytes that are moved, neighbours joined."""
    jobs: int
    jobs_at_a_time: int
    peak_memory: int
    """Bytes at most, with so many jobs at a time."""
    encoded: dict[str, int]
    """Weights that are rounded to each quant."""
    encoding_seconds: float
    """About how long that takes."""
    edits: dict[str, str]
    """Files that are not copies, and what was changed."""
    notes: tuple[str, ...]


def plan_view(plan: Plan, output: Path | None, runner: Runner) -> PlanView:
    """The view of a plan. Raises PlanError where the memory is not enough for one job."""
    threads = runner.workers(needs_of(plan)).count
    encoded = encoded_weights((row.kind, row.storage, row.outputs[0].shape) for row in plan.rows)
    return PlanView(
        plan=plan.digest,
        family=plan.family,
        rules=plan.summaries,
        parents={n: {"read": plan.reads[n], "in_all": c.nbytes} for n, c in plan.parents.items()},
        weight_files=len(plan.shards),
        output_nbytes=plan.output_nbytes,
        free_nbytes=None if output is None else free_nbytes(output),
        copy_ranges=sum(len(copy_runs(r for r in plan.rows[a:b] if r.kind == "copy")) for a, b in plan.segments),
        jobs=len(plan.segments),
        jobs_at_a_time=threads,
        peak_memory=peak_memory(plan, threads),
        encoded=dict(encoded),
        encoding_seconds=round(encoding_seconds(encoded, threads), 1),
        edits={f.name: f.edit for f in plan.files if f.edit is not None},
        notes=plan.notes,
    )


def print_plan(view: PlanView) -> None:
    """The plan as tables."""
    rules = make_grid(f"Plan {view.plan[:12]} ({view.family})", "rule", "tensors", "bytes", "of which MTP", "how")
    for rule in view.rules:
        number = "   " if rule.rule is None else f"{rule.rule + 1}. "
        how = ", ".join(f"{count} {kind}" for kind, count in rule.kinds.items())
        add_row(
            rules,
            number + rule.says,
            rule.tensors,
            say_nbytes(rule.nbytes),
            f"{rule.mtp_tensors}: {say_nbytes(rule.mtp_nbytes)}",
            how,
        )
    print_grid(rules)
    _print_deltas(view.rules)
    parents = make_grid("", "parent", "read", "in all")
    for name, sizes in view.parents.items():
        add_row(parents, name, say_nbytes(sizes["read"]), say_nbytes(sizes["in_all"]))
    print_grid(parents)
    free = "" if view.free_nbytes is None else f" ({say_nbytes(view.free_nbytes)} are free there)"
    print(f"\nchild: {view.weight_files} weight files, {say_nbytes(view.output_nbytes)} on disk{free}")
    print(f"copied: {view.copy_ranges} ranges of bytes; {view.jobs} jobs, {view.jobs_at_a_time} at a time")
    print(f"peak memory: {say_nbytes(view.peak_memory)} at most")
    if view.encoded:
        said = ", ".join(f"{say_count(count)} weights in {dtype}" for dtype, count in view.encoded.items())
        print(f"encoded: {said}: about {say_seconds(view.encoding_seconds)} with a core for each job")
    for name, edit in view.edits.items():
        print(printable(f"edited: {name}: {edit}"))
    for note in view.notes:
        print(printable(f"note: {note}"))


def _print_deltas(rules: Sequence[RuleSummary]) -> None:
    """What rules with a delta mix, and what they leave to the base."""
    with_delta = [(rule.rule, rule.delta) for rule in rules if rule.rule is not None and rule.delta is not None]
    if not with_delta:
        return
    grid = make_grid("", "where a parent differs from the base", "mixed tensors", "bytes", "left to the base", "bytes")
    for number, found in with_delta:
        mixed, left = found.mixed, found.left
        cells = mixed.tensors, say_nbytes(mixed.nbytes), left.tensors, say_nbytes(left.nbytes)
        add_row(grid, f"{number + 1}. by more than {found.delta:g}", *cells)
    print_grid(grid)


# -------------------------------------------------------------------------------------------- merge


class MergeView(Struct, frozen=True):
    """What a person wants to know of a merge."""

    child: str
    plan: str
    units: dict[str, int]
    """For each outcome."""
    jobs_run: int
    jobs_reused: int
    nbytes_written: int
    largest_rms_error: float | None
    nonfinite: int


def merge_view(output: Path, merged: "Merged") -> MergeView:
    """The view of a merge."""
    units = merged.manifest.units
    outcomes = [made.outcome for made in units]
    return MergeView(
        child=str(output),
        plan=merged.manifest.plan,
        units={o: outcomes.count(o) for o in sorted(set(outcomes))},
        jobs_run=merged.jobs_run,
        jobs_reused=merged.jobs_reused,
        nbytes_written=merged.nbytes_written,
        largest_rms_error=max((m.rms_error for m in units if m.rms_error is not None), default=None),
        nonfinite=sum(made.nonfinite for made in units),
    )


def print_merge(view: MergeView) -> None:
    """The outcome of a merge in a few lines."""
    units = ", ".join(f"{count} {outcome}" for outcome, count in view.units.items())
    print(printable(f"{view.child}: {units} units; {say_nbytes(view.nbytes_written)} written"))
    if view.jobs_reused:
        print(f"{view.jobs_reused} of {view.jobs_run + view.jobs_reused} jobs had been done before")
    if view.largest_rms_error is not None:
        print(f"largest rounding error of a unit: {view.largest_rms_error:.3%} of its RMS")
    if view.nonfinite:
        print(f"{view.nonfinite} values are NaN or infinite")
    print("prove it: chimerakit verify " + printable(view.child) + " --parent NAME=PATH ...")


def print_portion(done: "MergedPortion", portion: "Portion", output: Path) -> None:
    """What was done of a merge, and what comes then."""
    jobs = done.jobs_run + done.jobs_reused
    print(printable(f"{output}: {jobs} of {done.jobs_in_all} jobs are done; {say_nbytes(done.nbytes_written)} written"))
    if done.jobs_reused:
        print(f"{done.jobs_reused} of them had been done before")
    print(f"when all {portion.count} shards are done: the same command with --finish in place of --shard")


# ------------------------------------------------------------------------------------------- verify


def findings_view(findings: Findings) -> dict[str, object]:
    """The findings as data, with the verdict."""
    return {"ok": findings.ok, **msgspec.structs.asdict(findings)}


def print_findings(findings: Findings) -> None:
    """What holds, and what does not."""
    for says, count in findings.passed.items():
        print(f"{count:>8,}  {says}")
    for finding in findings.failed[:MOST_SHOWN]:
        print(printable(f"  FAILED  {finding.subject}: {finding.says}"))
    if len(findings.failed) > MOST_SHOWN:
        print(f"          and {len(findings.failed) - MOST_SHOWN} more (--json shows all)")
    verdict = (
        "holds"
        if findings.ok
        else f"does NOT hold: {len(findings.failed)} finding{'s' if len(findings.failed) > 1 else ''}"
    )
    print(printable(f"{findings.subject}: {verdict} ({say_nbytes(findings.nbytes)} of weights)"))


def table_view(table: "ChildTable", *, detail: bool) -> dict[str, object]:
    """The table as data; with `detail` every unit."""
    from chimerakit.table import summarize

    return {
        "parents": table.parents,
        "codes": table.codes,
        "is_explained": table.is_explained,
        "components": summarize(table),
        "missing": table.missing,
        "units": table.rows if detail else [row for row in table.rows if row.verdict == "unexplained"],
    }


def print_table(table: "ChildTable", *, detail: bool) -> None:
    """The table that people printed by hand: for each component, how many units of which pair agree."""
    from chimerakit.table import summarize

    summaries = summarize(table)
    what = "codes" if table.codes else "values"
    print(f"Units whose {what} agree (|a - b| <= 1e-5 + 1e-5 |b|), of all units:")
    _print_summaries(summaries)
    if detail:
        print()
        _print_summaries(summarize(table, by="expert"))
    for row in [row for row in table.rows if row.verdict == "unexplained"][:MOST_SHOWN]:
        print(printable(f"unexplained: {row.unit}: {row.why}"))
    for parent, names in table.missing.items():
        if names:
            print(printable(f"the child lacks {len(names)} units of {parent!r}, such as {names[0]}"))


def _print_summaries(summaries: "Sequence[TableSummary]") -> None:
    pairs = list(summaries[0].close) if summaries else []
    has_layer = any(s.layer is not None for s in summaries)
    grid = make_grid(
        "", *(["component", "layer", "expert"] if has_layer else ["component"]), "units", *pairs, "the child is"
    )
    for s in summaries:
        where = [
            s.component,
            *(("" if s.layer is None else s.layer, "" if s.expert is None else s.expert) if has_layer else ()),
        ]
        verdict = "; ".join(v if count == s.units else f"{v} ({count})" for v, count in s.verdicts.items())
        add_row(grid, *where, s.units, *(f"{count}/{s.units}" for count in s.close.values()), verdict)
    print_grid(grid, terminal_width())


def terminal_width() -> int:
    """Wide enough for a table even where the terminal says nothing."""
    try:
        return max(80, os.get_terminal_size(sys.stdout.fileno()).columns)
    except OSError:
        return 120


# --------------------------------------------------------------------------------------------- demo


def print_demo(demo: "Demo") -> None:
    """The demo's table, and what it shows."""
    grid = make_grid(
        f"{demo.num_problems} held-out problems, greedy", "model", "accuracy", "output tokens", "traces", "proven"
    )
    for row in demo.rows:
        m = row.measurement
        proven = "" if row.proof is None else ("yes" if row.proof.ok else "NO")
        add_row(
            grid,
            row.name,
            f"{m.accuracy.value:.0%}",
            f"{m.output_tokens.value:.1f}",
            f"{m.trace_rate.value:.0%}",
            proven,
        )
    print_grid(grid, terminal_width())
    print()
    for line in demo.says:
        print(printable(line))
    if demo.page is not None:
        print()
        print(printable(f"Everything in one page, to be opened in a browser: {demo.page}"))
