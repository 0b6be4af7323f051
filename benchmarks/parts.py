"""What the parts of a merge cost, one by one and on one thread: CPU seconds for each GB of a child.

python -m benchmarks.parts BF16 FP8       folders with dense parents v3 and r1; files are written beside them and removed

Prints JSON. What a whole merge takes is put together of these, in `scale.py`.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
from benchmarks.timing import evict, warm

from chimerakit.execute import Inputs, make_units
from chimerakit.formats import open_checkpoint
from chimerakit.merge import merge_parents
from chimerakit.plan import make_jobs, make_plan
from chimerakit.recipe import recipe_from_flags
from chimerakit.sinks import Digests
from chimerakit.stores.direct import DirectReader
from chimerakit.stores.local import CHUNK
from chimerakit.stores.part import PartFile, Stage
from chimerakit.verify.parents import prove_job

GB = 1e9
ROUNDS = 3
MOST = 2 * 10**9
"""Bytes of each round."""


def cpu_of(work: Callable[[], int]) -> float:
    """CPU seconds for each GB, the best of some rounds: what disturbs only adds. `work` returns the bytes it went through."""
    found = []
    for _ in range(ROUNDS):
        begun = time.thread_time()
        nbytes = work()
        found.append((time.thread_time() - begun) / nbytes * GB)
    return min(found)


def read(folder: Path) -> int:
    buffer, done = memoryview(bytearray(CHUNK)), 0
    for path in sorted(folder.glob("*.safetensors")):
        with closing(DirectReader(path)) as reader:
            for start in range(0, reader.nbytes - CHUNK, CHUNK):
                reader.read_into(buffer, start)
                done += CHUNK
                if done >= MOST:
                    return done
    return done


def write(target: Path) -> int:
    stage, data = Stage(), memoryview(np.random.default_rng(0).bytes(CHUNK))
    with closing(PartFile(target, MOST)) as part:
        part.reserve(0, MOST)
        for start in range(0, MOST - CHUNK, CHUNK):
            room, at = memoryview(b""), 0
            while at < CHUNK:
                room = stage.room(part, start + at, CHUNK - at)
                room[:] = data[at : at + len(room)]
                at += len(room)
        stage.flush()
        part.sync()
        part.part.unlink()
    return MOST


def made(folder: Path, rule: str, *, is_mixed: bool) -> Callable[[], int]:
    """Units of a child out of parents in the page cache, read, mixed or not, digested, and not written; bytes are the child's."""
    parents = {name: open_checkpoint(folder / name) for name in ("v3", "r1")}
    rules = ([], [rule]) if is_mixed else ([rule], [])
    plan = make_plan(recipe_from_flags(tuple(parents), "v3", *rules, None), parents)
    rows = [row for row in plan.rows if (row.kind == "mix") == is_mixed]
    total = accumulate(row.nbytes for row in rows)
    rows = [row for row, nbytes in zip(rows, total, strict=True) if nbytes <= MOST // 2]

    def work() -> int:
        with Inputs(plan.roots, plan.signatures) as inputs:
            sink = Digests("", lambda _: None, sha256=False)
            list(make_units(rows, inputs, sink, allow_nonfinite=False))
        return sum(row.nbytes for row in rows)

    work()  # loads kernels
    return work


def proven(folder: Path, child: Path) -> Callable[[], int]:
    """A copied child held against its parents, all in the page cache; bytes are the child's."""
    parents = {name: open_checkpoint(folder / name) for name in ("v3", "r1")}
    plan = make_plan(recipe_from_flags(tuple(parents), "v3", ["r1:routed_experts"], [], None), parents)
    merge_parents(plan, child)
    warm(child)
    jobs = make_jobs(plan, child)[:4]

    def work() -> int:
        for job in jobs:
            prove_job(job, lambda _: None)
        return sum(job.nbytes for job in jobs)

    return work


def measure(bf16: Path, fp8: Path) -> Iterator[tuple[str, float]]:
    experts, child = "r1:routed_experts", bf16.parent / "proven"
    for folder in (bf16, fp8):
        warm(folder)
    yield "copying from the page cache", cpu_of(made(bf16, experts, is_mixed=False))
    yield "mixing BF16 of two parents", cpu_of(made(bf16, experts + "=0.75", is_mixed=True))
    yield "mixing FP8 of two parents", cpu_of(made(fp8, experts + "=0.75", is_mixed=True))
    yield "proving a copy", cpu_of(proven(bf16, child))
    shutil.rmtree(child)
    yield "reading from the page cache", cpu_of(partial(read, bf16 / "v3"))
    evict(bf16)
    yield "reading past the page cache", cpu_of(partial(read, bf16 / "v3"))
    yield "writing past the page cache", cpu_of(partial(write, bf16.parent / "written"))


if __name__ == "__main__":
    print(json.dumps(dict(measure(Path(sys.argv[1]), Path(sys.argv[2])))))
