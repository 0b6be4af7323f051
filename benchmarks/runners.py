"""The same merge by the threads of one process and by Ray on the same machine, in turn; what counts is the call, with Ray started.

python -m benchmarks.runners PARENTS CHILD PAIRS FLAG       FLAG as in `chimerakit merge`: --take=r1:routed_experts
python -m benchmarks.runners jobs COUNT                     jobs that do nothing

Prints seconds of each as JSON. The first pair does not count: in it both load their kernels, and Ray its processes.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.timing import warm

from chimerakit.events import Report
from chimerakit.formats import open_checkpoint
from chimerakit.merge import merge_parents
from chimerakit.plan import make_plan
from chimerakit.plan.memory import Needs
from chimerakit.recipe import recipe_from_flags
from chimerakit.runners import Runner
from chimerakit.runners.local import LOCAL
from chimerakit.runners.ray import Ray


def measure(folder: Path, child: Path, pairs: int, flag: str) -> dict[str, list[float]]:
    """Seconds of each run that counts."""
    kind, _, rule = flag.removeprefix("--").partition("=")
    parents = {name: open_checkpoint(folder / name) for name in ("v3", "r1")}
    recipe = recipe_from_flags(
        tuple(parents), "v3", [rule] if kind == "take" else (), [rule] if kind == "mix" else (), None
    )
    plan = make_plan(recipe, parents)
    runners: dict[str, Runner] = {"threads": LOCAL, "ray": Ray()}
    found: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(pairs + 1):
        for name, runner in runners.items():
            shutil.rmtree(child, ignore_errors=True)
            os.sync()
            for parent in parents:
                warm(folder / parent)
            begun = time.perf_counter()
            merge_parents(plan, child, runner=runner)
            found[name].append(time.perf_counter() - begun)
    return {name: seconds[1:] for name, seconds in found.items()}


class Nothing(NamedTuple):
    """A job."""

    nbytes: int = 0


def do_nothing(job: Nothing, report: Report) -> None:
    report(job.nbytes)


def hand_out(count: int) -> float:
    """Seconds for each of so many jobs that do nothing, by Ray."""
    workers = Ray().workers(Needs(process=0, records=0, job=1 << 20))
    for number in (50, count):  # the first ones start processes
        begun = time.perf_counter()
        assert len(list(workers.run(do_nothing, [Nothing()] * number, lambda _: None))) == number
    return (time.perf_counter() - begun) / count


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[0] == "jobs":
        print(json.dumps(hand_out(int(words[1]))))
    else:
        print(json.dumps(measure(Path(words[0]), Path(words[1]), int(words[2]), words[3])))
