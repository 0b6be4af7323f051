"""Plans -> children, several at a time: what they have in common is made once, and what they are made of is read once.

A file that equals one of an earlier child is a hard link to it; one that equals a parent's, to that. The others are made by
jobs; where several children have the same tensors in the same places, their jobs go together. Each child alone is what `merge`
would have made, manifest included, so it can be verified, gone on with and made again without the others.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from msgspec import Struct

from chimerakit.child import Child, tidy
from chimerakit.errors import OutputError, PlanError
from chimerakit.events import FileDone, JobDone, Listener, Report, Said, ignore, one_at_a_time
from chimerakit.execute import run_together
from chimerakit.manifest import read_manifest
from chimerakit.merge import check_encoders, check_finished
from chimerakit.output import check_output, is_finished, missing_nbytes
from chimerakit.plan import make_jobs
from chimerakit.plan.memory import needs_together
from chimerakit.plan.ranges import equal_shards
from chimerakit.receipts import Receipts
from chimerakit.records import Job, Made, Plan, Receipt
from chimerakit.runners import Runner, Workers
from chimerakit.runners.local import LOCAL
from chimerakit.runners.watched import run_watched
from chimerakit.stores.part import can_link, free_nbytes, has_links, make_folder
from chimerakit.sweep.sharing import Shared, shared_files


def build_children(
    plans: Mapping[str, Plan],
    folder: Path,
    *,
    runner: Runner = LOCAL,
    allow_nonfinite: bool = False,
    listener: Listener = ignore,
) -> None:
    """Make the children of some plans, each in a folder of its own below `folder`; those that are there are left alone.

    Raises what `merge_parents` does. Children that are not finished then are gone on with by the next call.
    """
    given = [(plan.roots, plan.imatrix) for plan in plans.values()]
    if any(each != given[0] for each in given):
        raise PlanError(["their parents, or what their quants are encoded by, are not the same"], "not one sweep")
    tell = one_at_a_time(listener)
    make_folder(folder)
    shared = shared_files(plans) if has_links(folder) else {name: {} for name in plans}
    todo = {name: plan for name, plan in plans.items() if not _is_there(plan, folder / name)}
    check_memory(todo, runner)
    linked = {name for name, plan in todo.items() if _can_link(plan, folder)}
    _check_space(todo, folder, shared, linked)
    for batch in _batches(todo, runner):
        with ExitStack() as stack:
            children = {
                name: stack.enter_context(
                    closing(
                        Child(
                            plan,
                            folder / name,
                            allow_nonfinite=allow_nonfinite,
                            link=name in linked,
                            shared=shared[name],
                        )
                    )
                )
                for name, plan in batch.items()
            }
            workers = runner.workers(needs_together(list(batch.values())))
            _Batch(batch, children, shared, folder, workers, tell).run(allow_nonfinite=allow_nonfinite)


def check_memory(plans: Mapping[str, Plan], runner: Runner) -> None:
    """Refuse children of which not one job at a time can run. Raises PlanError."""
    for name, plan in plans.items():
        try:
            runner.workers(needs_together([plan]))
        except PlanError as e:
            raise PlanError([f"{name}: {p}" for p in e.problems], "there is too little memory for this") from e


def link_is_possible(plan: Plan, folder: Path) -> bool:
    """Whether files of all parents can have second names in a folder, which may not exist yet."""
    return _can_link(plan, _nearest(folder))


def sharing_is_possible(folder: Path) -> bool:
    """Whether files in a folder, which may not exist yet, can have second names in it."""
    return has_links(_nearest(folder))


def _nearest(folder: Path) -> Path:
    """The folder, or the one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _can_link(plan: Plan, folder: Path) -> bool:
    files = [Path(parent.root, parent.shards[0].name).resolve() for parent in plan.parents.values() if parent.shards]
    return all(can_link(file, folder) for file in files)


def _is_there(plan: Plan, path: Path) -> bool:
    if not is_finished(path):
        return False
    tidy(path)
    check_output(plan, path)
    check_finished(plan, path)
    return True


def _check_space(
    todo: Mapping[str, Plan], folder: Path, shared: Mapping[str, Mapping[str, Shared]], linked: set[str]
) -> None:
    """Refuse before anything is written: each child, and what all of them take together."""
    promised = 0
    for name, plan in todo.items():
        check_encoders(plan)
        check_output(plan, folder / name, link=name in linked, shared=shared[name])
        left_out = {*(equal_shards(plan) if name in linked else ()), *shared[name]}
        free = free_nbytes(folder)
        missing = missing_nbytes(plan, folder / name, left_out, promised=promised)
        if missing > 0:
            raise OutputError(
                f"too little disk space for {len(todo)} children",
                where=folder,
                expected=f"{missing + free} bytes and more",
                found=f"{free} bytes free",
                do="make fewer at a time: --batch N with --keep",
            )
        promised += missing + free - promised


def _batches(todo: Mapping[str, Plan], runner: Runner) -> Iterator[dict[str, Plan]]:
    """As many children together as leave room for two jobs at a time, if there is such for one child."""
    batch: dict[str, Plan] = {}
    for name, plan in todo.items():
        alone = runner.room(needs_together([plan]))
        if batch and runner.room(needs_together([*batch.values(), plan])) < min(2, alone):
            yield batch
            batch = {}
        batch[name] = plan
    if batch:
        yield batch


class _Together(Struct, frozen=True):
    """Jobs of several children that make the same units."""

    children: tuple[str, ...]
    jobs: tuple[Job, ...]

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return sum(job.nbytes for job in self.jobs)


def _do_together(
    kept: Mapping[str, Receipts], together: _Together, report: Report
) -> tuple[_Together, tuple[Receipt, ...]]:
    mine = [kept[name] for name in together.children]
    for each in mine:
        each.check_place()
    if all(each.has(job) for each, job in zip(mine, together.jobs, strict=True)):
        found = [each.find(job, lambda _: None) for each, job in zip(mine, together.jobs, strict=True)]
        done = tuple(receipt for receipt in found if receipt is not None)
        if len(done) == len(mine):
            report(together.nbytes)
            return together, done
    receipts = run_together(together.jobs, report)
    for each, receipt in zip(mine, receipts, strict=True):
        each.check_place()
        each.save(receipt)
    return together, receipts


class _Written(Struct, frozen=True):
    """What is known of a child that has files which others have, too."""

    headers: Mapping[str, str]
    """Digest of each file's header."""
    made: Mapping[str, Made]
    """By unit."""


class _Batch:
    """Children that are made together."""

    def __init__(
        self,
        plans: Mapping[str, Plan],
        children: Mapping[str, Child],
        shared: Mapping[str, Mapping[str, Shared]],
        folder: Path,
        workers: Workers,
        tell: Listener,
    ):
        self._plans = plans
        self._children = children
        self._shared = shared
        self._folder = folder
        self._workers = workers
        self._tell = tell
        self._receipts: dict[str, dict[int, Receipt]] = {name: {} for name in plans}
        self._waiting: dict[str, dict[str, set[int]]] = {}
        """By child and file: the jobs that it waits for."""
        self._written: dict[str, _Written] = {}

    def run(self, *, allow_nonfinite: bool) -> None:
        """Make what no earlier child has, link what one has, and finish all of them."""
        jobs = {
            name: make_jobs(
                plan,
                (self._folder / name).resolve(),
                linked=self._children[name].linked,
                allow_nonfinite=allow_nonfinite,
            )
            for name, plan in self._plans.items()
        }
        own = {name: [job for job in jobs[name] if not job.sizes.keys() <= self._shared[name].keys()] for name in jobs}
        self._make(own)
        for name, child in self._children.items():
            for file, there in self._shared[name].items():
                if file not in child.linked:
                    child.link_file(file, self._folder / there.owner / there.file)
                child.finish_shard(file)
            receipts = [self._receipts[name].get(job.id) or self._receipt_of(name, job) for job in jobs[name]]
            child.finish(receipts)
            self._tell(Said(f"{name} is made"))

    def _make(self, own: Mapping[str, Sequence[Job]]) -> None:
        for name, jobs in own.items():
            # What has another name could not be written without changing that too; before receipts are asked what still holds.
            self._children[name].unlink_files(file for job in jobs for file in job.sizes)
            self._look(name, jobs)
        todo = {name: [job for job in jobs if job.id not in self._receipts[name]] for name, jobs in own.items()}
        for name, jobs in todo.items():
            child = self._children[name]
            child.reopen(jobs)
            files = [shard.name for shard in self._plans[name].shards if shard.name not in self._shared[name]]
            self._waiting[name] = {file: {job.id for job in jobs if file in job.sizes} for file in files}
            self._finish_shards(name)
        groups: dict[object, list[tuple[str, Job]]] = defaultdict(list)
        for name, jobs in todo.items():
            for job in jobs:
                groups[_place_of(job)].append((name, job))
        work = [_Together(*(tuple(each) for each in zip(*group, strict=True))) for group in groups.values()]
        title = f"making {len(todo)} children" if len(todo) > 1 else f"making {next(iter(todo), '')}"
        do = partial(_do_together, {name: child.receipts for name, child in self._children.items()})
        for together, receipts in run_watched(title, do, work, workers=self._workers, listener=self._tell):
            for name, receipt in zip(together.children, receipts, strict=True):
                self._receipts[name][receipt.job] = receipt
                self._tell(JobDone(receipt.job, receipt.nbytes, reused=False))
                for ids in self._waiting[name].values():
                    ids.discard(receipt.job)
                self._finish_shards(name)

    def _look(self, name: str, jobs: Sequence[Job]) -> None:
        """What an earlier call did."""
        child = self._children[name]
        if begun := [job for job in jobs if child.receipts.has(job)]:
            found = run_watched(
                f"checking what is there of {name}",
                child.receipts.find,
                begun,
                workers=self._workers,
                listener=self._tell,
            )
            self._receipts[name] = {receipt.job: receipt for receipt in found if receipt is not None}

    def _finish_shards(self, name: str) -> None:
        """Give files their names that nothing is left to be written into."""
        for file in [file for file, ids in self._waiting[name].items() if not ids]:
            del self._waiting[name][file]
            self._children[name].finish_shard(file)
            self._tell(FileDone(f"{name}/{file}"))

    def _receipt_of(self, name: str, job: Job) -> Receipt:
        """The receipt of a job that needs not run, as another child's files hold what it would make."""
        shared = self._shared[name]
        owner = self._known(shared[next(iter(job.sizes))].owner)
        headers = {header.file: owner.headers[shared[header.file].file] for header in job.headers}
        return Receipt(job.id, job.nbytes, headers, tuple(owner.made[row.unit] for row in job.rows))

    def _known(self, owner: str) -> _Written:
        """What a child's files hold: by its receipts, or by its manifest if it was there before."""
        if owner not in self._written:
            if owner in self._plans:
                receipts = self._receipts[owner].values()
                headers = {file: digest for receipt in receipts for file, digest in receipt.headers.items()}
                made = {made.unit: made for receipt in receipts for made in receipt.made}
            else:
                manifest = read_manifest(self._folder / owner)
                headers = {file: weights.header for file, weights in manifest.weights.items()}
                made = {
                    row.unit: Made(row.unit, row.outcome, row.tensors, row.sha256, row.rms_error, row.nonfinite)
                    for row in manifest.units
                }
            self._written[owner] = _Written(headers, made)
        return self._written[owner]


def _place_of(job: Job) -> object:
    """What jobs have in common that can go together: the same tensors in the same places."""
    return (
        tuple((row.unit, row.storage, row.outputs) for row in job.rows),
        tuple(h.file for h in job.headers),
        job.linked,
    )
