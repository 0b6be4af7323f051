"""Runners that tests use: one that ships everything to somewhere else and back, in this process; and one scenario for all."""

import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from msgspec import Struct

from chimerakit.compare import DrawnStates, compare_checkpoints
from chimerakit.compare.saved import encode_map
from chimerakit.events import Report
from chimerakit.explain import explain_child
from chimerakit.formats import open_checkpoint
from chimerakit.inspect import inspect_checkpoint
from chimerakit.merge import merge_parents
from chimerakit.plan.memory import Needs
from chimerakit.runners import J, R, Runner, Workers
from chimerakit.runners.ray import Ray, RayWorkers
from chimerakit.sweep.build import build_children
from chimerakit.table import verify_table
from chimerakit.verify import verify_child
from tests.durability.kinds import Kind
from tests.merging import plan_of

MIX = Kind("fp8", "- {mix: {r1: 0.75}, components: routed_experts}", segment=1 << 20)


class Shipped(Struct, frozen=True):
    """A runner whose workers get copies of functions and jobs, and give copies back: all of it is plain data, or this fails."""

    count: int = 3

    def room(self, needs: Needs) -> int:
        return self.count

    def workers(self, needs: Needs) -> "Shipped":
        return self

    def run(self, function: Callable[[J, Report], R], jobs: Sequence[J], advance: Callable[[int], None]) -> Iterator[R]:
        for job in reversed(jobs):
            there: tuple[Callable[[J, Report], R], J] = pickle.loads(pickle.dumps((function, job)))
            back: R = pickle.loads(pickle.dumps(there[0](there[1], advance)))
            yield back


class Slowed(Struct, frozen=True):
    """A runner whose jobs take a while, and leave a file for each time that one begins and ends."""

    runner: Runner
    folder: Path
    seconds: float

    def room(self, needs: Needs) -> int:
        return self.runner.room(needs)

    def workers(self, needs: Needs) -> "SlowedWorkers":
        return SlowedWorkers(self.runner.workers(needs), self.folder, self.seconds)


class SlowedWorkers(Struct, frozen=True):
    """The workers of a runner that is slowed."""

    workers: Workers
    folder: Path
    seconds: float

    @property
    def count(self) -> int:
        return self.workers.count

    def run(self, function: Callable[[J, Report], R], jobs: Sequence[J], advance: Callable[[int], None]) -> Iterator[R]:
        return self.workers.run(partial(_slowly, function, self.folder, self.seconds), jobs, advance)


def _slowly(function: Callable[[J, Report], R], folder: Path, seconds: float, job: J, report: Report) -> R:
    mark = f"{where()}-{os.getpid()}-{time.monotonic_ns()}"
    (folder / f"begun-{mark}").touch()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)
        report(0)
    found = function(job, report)
    (folder / f"ended-{mark}").touch()
    return found


class Weighed(Struct, frozen=True):
    """A runner whose processes leave a file for each job: the most memory that they had, and what was asked for it."""

    runner: Ray
    folder: Path

    def room(self, needs: Needs) -> int:
        return self.runner.room(needs)

    def workers(self, needs: Needs) -> "WeighedWorkers":
        return WeighedWorkers(self.runner.workers(needs), self.folder)


class WeighedWorkers(Struct, frozen=True):
    """The workers of a runner that is weighed."""

    workers: RayWorkers
    folder: Path

    @property
    def count(self) -> int:
        return self.workers.count

    def run(self, function: Callable[[J, Report], R], jobs: Sequence[J], advance: Callable[[int], None]) -> Iterator[R]:
        return self.workers.run(partial(_weighed, function, self.folder, self.workers.memory), jobs, advance)


def _weighed(function: Callable[[J, Report], R], folder: Path, memory: int, job: J, report: Report) -> R:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    found = function(job, report)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    (folder / f"{1024 * int(line.split()[1])}-{memory}-{time.monotonic_ns()}").touch()
    return found


def where() -> str:
    """The machine of a cluster that this runs on."""
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else "here"


def parents_in(root: Path) -> dict[str, Path]:
    """The parents that `make_parents(root, "fp8")` made."""
    return {name: root / f"{name} fp8" for name in ("v3", "r1")}


def everything(parents: Path, folder: Path, runner: Runner) -> dict[str, object]:
    """What all verbs that take a runner make of two parents: children as bytes, findings as records."""
    pair = {name: open_checkpoint(path) for name, path in parents_in(parents).items()}
    child = folder / "child"
    merged = merge_parents(MIX.plan(parents), child, sha256=True, runner=runner)
    zoo = {
        f"r1-{share}": plan_of(parents_in(parents), f"- {{mix: {{r1: {share}}}, components: attention}}")
        for share in (0.25, 0.5)
    }
    build_children(zoo, folder / "zoo", runner=runner)
    return {
        "manifest": merged.manifest,
        "bytes": {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        },
        "verified": verify_child(child, runner=runner),
        "proven": verify_child(child, pair, runner=runner),
        "table": verify_table(child, pair, runner=runner),
        "explained": explain_child(child, pair, runner=runner),
        "compared": encode_map(compare_checkpoints(*pair.values(), states=DrawnStates(20), runner=runner)),
        "inspected": inspect_checkpoint(parents_in(parents)["v3"], values=True, runner=runner),
    }
