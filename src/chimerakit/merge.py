"""Plan -> child: run the jobs that are left, finish the files, write the manifest."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from msgspec import Struct

from chimerakit.child import Child, tidy
from chimerakit.dtypes import QUANTS
from chimerakit.errors import OutputError
from chimerakit.events import FileDone, JobDone, Listener, Said, ignore, one_at_a_time
from chimerakit.execute import Inputs, make_units
from chimerakit.manifest import read_manifest
from chimerakit.output import check_output, is_finished
from chimerakit.plan import make_jobs
from chimerakit.plan.memory import needs_of
from chimerakit.plan.panels import BLOCKED_COLS
from chimerakit.receipts import do_job
from chimerakit.records import Job, Manifest, Plan, Receipt, Row
from chimerakit.runners import Runner, Workers
from chimerakit.runners.local import LOCAL
from chimerakit.runners.watched import run_watched
from chimerakit.sinks import Digests

_SAMPLED = 4


class Merged(Struct, frozen=True):
    """What a call of `merge_parents` did."""

    manifest: Manifest
    jobs_run: int
    jobs_reused: int
    """Jobs that an earlier call had done."""
    nbytes_written: int
    """Weight and header bytes that this call wrote."""


def merge_parents(
    plan: Plan,
    output: Path | str,
    *,
    runner: Runner = LOCAL,
    force: bool = False,
    allow_nonfinite: bool = False,
    sha256: bool = False,
    link: bool = False,
    listener: Listener = ignore,
) -> Merged:
    """Make the child of a plan in the folder `output`, or go on making it; the bytes are the same either way.

    runner: where its jobs are done. force: delete an earlier child that stands
    there and start over. allow_nonfinite: carry NaN and infinity along. sha256: record sha256 beside xxh3-128. link: weight
    files that equal a parent's whole file become hard links to it. Raises PlanError (memory), OutputError, CheckpointError,
    NonFiniteError; after the last two the child is unfinished, has no manifest, and the next call goes on.
    """
    output, tell = Path(output), one_at_a_time(listener)
    workers = runner.workers(needs_of(plan))
    check_output(plan, output, force=force, link=link)
    if not force and is_finished(output):
        return _is_there_already(plan, output, tell, sha256=sha256)
    check_encoders(plan)
    child = Child(plan, output, force=force, allow_nonfinite=allow_nonfinite, sha256=sha256, link=link)
    try:
        jobs = make_jobs(plan, output.resolve(), linked=child.linked, allow_nonfinite=allow_nonfinite, sha256=sha256)
        done = done_before(child, jobs, workers, tell)
        todo = [job for job in jobs if job.id not in done]
        receipts = done | _run(plan, child, todo, workers, tell)
        manifest = child.finish([receipts[job.id] for job in jobs])
        return Merged(manifest, len(todo), len(done), sum(job.nbytes for job in todo))
    finally:
        child.close()


def check_encoders(plan: Plan) -> None:
    """Refuse to begin what needs a package that is not installed. Raises MissingExtraError."""
    quants = {(r.storage, r.importance is not None) for r in plan.rows if r.kind != "copy" and r.storage in QUANTS}
    if quants:
        from chimerakit.numerics.ggml import check_libgguf, needs_libgguf

        if any(needs_libgguf(storage, with_importance=is_weighed) for storage, is_weighed in quants):
            check_libgguf()


def check_finished(plan: Plan, output: Path) -> None:
    """Refuse a finished child of other parents; plans know them by their headers, so some weights are looked at."""
    said = {made.unit: made.tensors for made in read_manifest(output).units}
    for row in _sample(plan):
        if _digests(row, plan) != said.get(row.unit):
            raise OutputError(
                "holds a finished child of parents with the same headers and other weights",
                where=output,
                found=f"another {row.unit}",
                do="--force makes it again; verify --parent shows what the child is",
            )


def _is_there_already(plan: Plan, output: Path, tell: Listener, *, sha256: bool) -> Merged:
    tidy(output)
    manifest = read_manifest(output)
    if sha256 and any(made.sha256 is None for made in manifest.units):
        raise OutputError("this child is there already, without sha256", where=output, do="--force makes it again")
    check_finished(plan, output)
    tell(Said(f"{output} is this child already; `chimerakit verify --parent ...` proves all of it"))
    return Merged(manifest, 0, len(plan.segments), 0)


def _sample(plan: Plan) -> list[Row]:
    """A few small units for each rule: other weights of the same shapes are other in nearly every unit."""
    found = []
    for rule in (None, *range(len(plan.recipe.rules))):
        rows = [row for row in plan.rows if row.rule == rule and row.outputs[0].shape[-1:] <= (BLOCKED_COLS,)]
        rows.sort(key=lambda row: row.nbytes)
        found += rows[len(rows) // 2 :][:_SAMPLED]
    return found


def _digests(row: Row, plan: Plan) -> dict[str, str]:
    """The digests that a unit's tensors must have. Units of a sample are so narrow that their bytes come in order."""
    sink = Digests("", lambda _: None, sha256=False)
    with Inputs(plan.roots, plan.signatures) as inputs:
        list(make_units((row,), inputs, sink, allow_nonfinite=True))
    return {t.name: sink.digest(t).xxh3 for t in row.outputs}


def done_before(child: Child, jobs: Sequence[Job], workers: Workers, tell: Listener) -> dict[int, Receipt]:
    """Receipts of the jobs that an earlier call did and whose bytes still hold."""
    begun = [job for job in jobs if child.receipts.has(job)]
    found = (
        run_watched("checking what is there", child.receipts.find, begun, workers=workers, listener=tell)
        if begun
        else ()
    )
    receipts = {receipt.job: receipt for receipt in found if receipt is not None}
    for receipt in receipts.values():
        tell(JobDone(receipt.job, receipt.nbytes, reused=True))
    return receipts


def _run(plan: Plan, child: Child, todo: Sequence[Job], workers: Workers, tell: Listener) -> dict[int, Receipt]:
    """Run jobs, and give each file its name when nothing is left to write into it."""
    child.reopen(todo)
    waiting = {shard.name: {job.id for job in todo if shard.name in job.sizes} for shard in plan.shards}
    _finish_shards(child, waiting, tell)

    work, receipts = partial(do_job, child.receipts), {}
    for receipt in run_watched("merging", work, todo, workers=workers, listener=tell):
        receipts[receipt.job] = receipt
        tell(JobDone(receipt.job, receipt.nbytes, reused=False))
        for ids in waiting.values():
            ids.discard(receipt.job)
        _finish_shards(child, waiting, tell)
    return receipts


def _finish_shards(child: Child, waiting: dict[str, set[int]], tell: Listener) -> None:
    for name in [name for name, ids in waiting.items() if not ids]:
        del waiting[name]
        child.finish_shard(name)
        tell(FileDone(name))
