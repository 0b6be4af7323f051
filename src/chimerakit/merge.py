"""Plan -> child: run the jobs that are left, finish the files, write the manifest."""

import threading
from pathlib import Path

from msgspec import Struct

from chimerakit.child import Child, check_output, clean_up, is_finished, read_manifest
from chimerakit.events import Advanced, Event, FileDone, Finished, JobDone, Listener, Said, Started, ignore
from chimerakit.execute import run_job
from chimerakit.plan import make_jobs
from chimerakit.records import Job, Manifest, Plan, Receipt
from chimerakit.runners.local import default_threads, run_threads


class Merged(Struct, frozen=True):
    """What a call of `merge_parents` did."""

    manifest: Manifest
    jobs_run: int
    jobs_reused: int
    """Jobs that an earlier call had done."""
    nbytes_written: int
    """Weight and header bytes that this call wrote."""


class _StoppedError(Exception):
    """Another job failed, or the user left; never seen outside."""


def merge_parents(
    plan: Plan,
    output: Path | str,
    *,
    threads: int | None = None,
    force: bool = False,
    allow_nonfinite: bool = False,
    sha256: bool = False,
    listener: Listener = ignore,
) -> Merged:
    """Make the child of a plan in the folder `output`, or go on making it; the bytes are the same either way.

    force: delete an earlier child that stands there and start over. allow_nonfinite: carry NaN and infinity along.
    sha256: record sha256 beside xxh3-128. Raises OutputError, CheckpointError, NonFiniteError; then the child is
    unfinished, has no manifest, and the next call goes on.
    """
    output = Path(output)
    tell = _one_at_a_time(listener)
    check_output(plan, output, force=force)
    if not force and is_finished(output):
        clean_up(output)
        tell(Said(f"{output} is this child already; `chimerakit verify` checks its bytes"))
        return Merged(read_manifest(output), 0, len(plan.segments), 0)
    child = Child(plan, output, force=force, allow_nonfinite=allow_nonfinite, sha256=sha256)
    try:
        return _make(plan, child, threads or default_threads(), tell, allow_nonfinite=allow_nonfinite, sha256=sha256)
    finally:
        child.close()


def _make(plan: Plan, child: Child, threads: int, tell: Listener, *, allow_nonfinite: bool, sha256: bool) -> Merged:
    jobs = make_jobs(plan, child.path.resolve(), allow_nonfinite=allow_nonfinite, sha256=sha256)
    stop = threading.Event()

    def report(nbytes: int) -> None:
        if stop.is_set():
            raise _StoppedError
        tell(Advanced(nbytes))

    tell(Started("merging", sum(job.nbytes for job in jobs)))
    receipts = dict[int, Receipt]()
    for job in jobs:
        if (receipt := child.receipt_of(job, lambda _: None)) is not None:
            receipts[job.id] = receipt
            tell(Advanced(job.nbytes))
            tell(JobDone(job.id, job.nbytes, reused=True))
    todo = [job for job in jobs if job.id not in receipts]
    child.reopen(todo)
    waiting = {shard.name: {job.id for job in todo if shard.name in job.sizes} for shard in plan.shards}
    _finish_shards(child, waiting, tell)

    def work(job: Job) -> Receipt:
        receipt = run_job(job, report)
        child.save(receipt)
        return receipt

    for receipt in run_threads(work, todo, threads=threads, stop=stop):
        receipts[receipt.job] = receipt
        tell(JobDone(receipt.job, receipt.nbytes, reused=False))
        for ids in waiting.values():
            ids.discard(receipt.job)
        _finish_shards(child, waiting, tell)
    manifest = child.finish([receipts[job.id] for job in jobs])
    tell(Finished("merging"))
    return Merged(manifest, len(todo), len(jobs) - len(todo), sum(job.nbytes for job in todo))


def _finish_shards(child: Child, waiting: dict[str, set[int]], tell: Listener) -> None:
    for name in [name for name, ids in waiting.items() if not ids]:
        del waiting[name]
        child.finish_shard(name)
        tell(FileDone(name))


def _one_at_a_time(listener: Listener) -> Listener:
    lock = threading.Lock()

    def tell(event: Event) -> None:
        with lock:
            listener(event)

    return tell
