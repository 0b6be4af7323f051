"""A merge by several processes that know nothing of each other: each does a portion of the jobs, the last call finishes.

    merge_portion(plan, output, Portion(0, 3))   on one machine;  Portion(1, 3), Portion(2, 3) on others, at once or not
    finish_merge(plan, output)                   when all have ended

They meet in the child's folder only, which lies on a file system that all of them see. Which jobs a portion has follows from
the plan. Any of them may be interrupted, or done twice, at once or again: receipts say what is done.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from msgspec import Struct

from chimerakit.child import Child
from chimerakit.errors import OutputError, RecipeError
from chimerakit.events import JobDone, Listener, Said, ignore, one_at_a_time
from chimerakit.merge import Merged, check_encoders, check_finished, done_before, merge_parents
from chimerakit.output import check_output, is_finished
from chimerakit.plan import make_jobs
from chimerakit.plan.memory import needs_of
from chimerakit.receipts import do_job, numbers_kept
from chimerakit.records import Job, Plan
from chimerakit.runners import Runner
from chimerakit.runners.local import LOCAL
from chimerakit.runners.watched import run_watched

_FILES = 4
"""Weight files for each portion, at least, so that portions go by files."""
_SHOWN = 10


class Portion(Struct, frozen=True):
    """The index-th, from 0 on, of so many portions."""

    index: int
    count: int


class MergedPortion(Struct, frozen=True):
    """What a call of `merge_portion` did."""

    jobs_run: int
    jobs_reused: int
    """Jobs that an earlier call had done."""
    jobs_in_all: int
    """Of the whole merge."""
    nbytes_written: int


def parse_portion(text: str) -> Portion:
    """`i/n` as `--shard` takes it. Raises RecipeError."""
    index, _, count = text.partition("/")
    if not all(part.isascii() and part.isdigit() for part in (index, count)) or int(index) >= int(count):
        raise RecipeError("can't be read", where=f"--shard {text}", expected="i/n with i from 0 to n - 1, as 0/8")
    return Portion(int(index), int(count))


def portion_of(jobs: Sequence[Job], portion: Portion) -> list[Job]:
    """The jobs of one of several portions of about as many bytes each; every job is in exactly one.

    Where there are files enough, jobs that begin in one file are in one portion: then few files are written by two machines (those in
    which the scale of a unit of the file before lies), which not every network file system bears well.
    """
    files = [next(iter(job.sizes)) for job in jobs]
    is_by_file = len(set(files)) >= _FILES * portion.count
    groups: dict[object, list[Job]] = {}
    for number, (job, file) in enumerate(zip(jobs, files, strict=True)):
        groups.setdefault(file if is_by_file else number, []).append(job)
    total, before, found = sum(job.nbytes for job in jobs), 0, list[Job]()
    for group in groups.values():
        nbytes = sum(job.nbytes for job in group)
        middle = (2 * before + nbytes) * portion.count // max(1, 2 * total)
        if min(middle, portion.count - 1) == portion.index:  # it belongs to the portion that its middle lies in
            found += group
        before += nbytes
    return found


def merge_portion(
    plan: Plan,
    output: Path | str,
    portion: Portion,
    *,
    runner: Runner = LOCAL,
    allow_nonfinite: bool = False,
    sha256: bool = False,
    link: bool = False,
    listener: Listener = ignore,
) -> MergedPortion:
    """Do a portion of a merge's jobs, or go on doing it; the child is not finished by that, even if nothing is missing.

    Options, all alike in all portions, and errors: as for `merge_parents`.
    """
    output, tell = Path(output), one_at_a_time(listener)
    workers = runner.workers(needs_of(plan))
    check_output(plan, output, link=link)
    if is_finished(output):
        check_finished(plan, output)
        tell(Said(f"{output} is this child already"))
        return MergedPortion(0, len(plan.segments), len(plan.segments), 0)
    check_encoders(plan)
    child = Child(plan, output, allow_nonfinite=allow_nonfinite, sha256=sha256, link=link, together=True)
    try:
        jobs = make_jobs(plan, output.resolve(), linked=child.linked, allow_nonfinite=allow_nonfinite, sha256=sha256)
        mine = portion_of(jobs, portion)
        done = done_before(child, mine, workers, tell)
        todo = [job for job in mine if job.id not in done]
        child.reopen(todo)
        for receipt in run_watched("merging", partial(do_job, child.receipts), todo, workers=workers, listener=tell):
            tell(JobDone(receipt.job, receipt.nbytes, reused=False))
        return MergedPortion(len(todo), len(done), len(jobs), sum(job.nbytes for job in todo))
    finally:
        child.close()


def finish_merge(
    plan: Plan,
    output: Path | str,
    *,
    runner: Runner = LOCAL,
    allow_nonfinite: bool = False,
    sha256: bool = False,
    link: bool = False,
    listener: Listener = ignore,
) -> Merged:
    """Finish a child whose portions are all done: every byte is held against its receipt, and what does not hold is made again.

    Raises OutputError, before a weight is read, where jobs are not done; and what `merge_parents` does.
    """
    output = Path(output)
    if not is_finished(output):
        _check_done(plan, output, link=link)
    return merge_parents(
        plan, output, runner=runner, allow_nonfinite=allow_nonfinite, sha256=sha256, link=link, listener=listener
    )


def _check_done(plan: Plan, output: Path, *, link: bool) -> None:
    """Refuse to finish what has jobs that nobody did."""
    check_output(plan, output, link=link)
    kept = numbers_kept(output)
    if missing := [number for number in range(len(plan.segments)) if number not in kept]:
        some = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
        raise OutputError(
            "not every job is done",
            where=output,
            expected=f"{len(plan.segments)} jobs",
            found=f"{len(missing)} missing: {some}",
            do="run the shards that failed again; or merge without --finish, which does the rest here",
        )
