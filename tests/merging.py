"""What the tests of merging share: a merge in one call, and a child's bytes read without the code under test."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from chimerakit.events import Advanced, Event, Listener
from chimerakit.formats import open_checkpoint
from chimerakit.merge import Merged, merge_parents
from chimerakit.plan import make_plan
from chimerakit.recipe import parse_recipe
from chimerakit.records import Job, Plan
from chimerakit.runners.local import Threads
from chimerakit.stores.part import PartFile

R1T = "- {take: r1, components: routed_experts}"
MIX = "- {mix: {r1: 0.75}, components: routed_experts}"
MIX_ALL = "- {mix: {r1: 0.75}, components: all}"
Parents = Mapping[str, Path]


def plan_of(parents: Parents, rules: str, *, base: str = "v3", output: str = "", **options: Any) -> Plan:
    """The plan of a recipe with these rules."""
    text = f"parents: {{{', '.join(f'{n}: ' for n in parents)}}}\nbase: {base}\nrules:\n{rules}\n"
    recipe = parse_recipe(text + (f"output: {{{output}}}\n" if output else ""))
    return make_plan(recipe, {name: open_checkpoint(path) for name, path in parents.items()}, **options)


def merge(parents: Parents, rules: str, child: Path, *, output: str = "", **options: Any) -> Merged:
    """Plan and merge."""
    return merge_parents(plan_of(parents, rules, output=output), child, **options)


def make_parts(jobs: Iterable[Job], folder: Path) -> None:
    """The files that jobs will write, as a child makes them before jobs run."""
    for name, nbytes in {name: nbytes for job in jobs for name, nbytes in job.sizes.items()}.items():
        PartFile(folder / name, nbytes).close()


def stored(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """(dtype, shape, bytes) of every tensor of a checkpoint."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        data = file.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            found[name] = entry["dtype"], tuple(entry["shape"]), data[end + first : end + last]
    return found


def sha256_of(folder: Path) -> dict[str, str]:
    """sha256 of every tensor of a checkpoint."""
    return {name: hashlib.sha256(data).hexdigest() for name, (_, _, data) in stored(folder).items()}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def values(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], name: str) -> npt.NDArray[np.float64]:
    """A weight's values in float64: code * scale, exact."""
    dtypes = {
        "BF16": ml_dtypes.bfloat16,
        "F16": np.float16,
        "F32": np.float32,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    }

    def read(which: str) -> npt.NDArray[np.float64]:
        dtype, shape, data = tensors[which]
        return np.frombuffer(data, dtypes[dtype]).reshape(shape).astype(np.float64)

    found = read(name)
    if name + "_scale_inv" not in tensors:
        return found
    scales = read(name + "_scale_inv").repeat(128, 0).repeat(128, 1)
    return found * scales[: found.shape[0], : found.shape[1]]


def run_python(code: str, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A script in a process of its own, with the tests' folder on its path."""
    root = str(Path(__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


class LeftError(Exception):
    """What a listener raises when it has seen enough."""


def leave_after(nbytes: int) -> Listener:
    """A listener that leaves when so much is done."""
    seen = 0

    def listen(event: Event) -> None:
        nonlocal seen
        seen += event.amount if isinstance(event, Advanced) else 0
        if seen >= nbytes:
            raise LeftError

    return listen


def interrupt(plan: Plan, child: Path, *, after: int, **options: Any) -> set[int]:
    """Run a merge until it has written some bytes, then leave it; returns the jobs that have receipts."""
    with pytest.raises(LeftError):
        merge_parents(plan, child, runner=Threads(1), listener=leave_after(after), **options)
    return receipts(child)


def receipts(child: Path) -> set[int]:
    """Jobs of an unfinished child that are done."""
    return {int(p.stem) for p in child.glob(".chimerakit/receipts/*.json")}
