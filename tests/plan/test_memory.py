"""The bound on memory: what the plan promises, and what processes that merge tensors of 2 GiB really take."""

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGUFWriter

from chimerakit.dtypes import nbytes_of
from chimerakit.errors import PlanError
from chimerakit.plan.memory import MAX_MEMORY, needs_of, peak_memory
from chimerakit.runners.local import Threads
from tests import gguf_files, llama_cpp, synthetic
from tests.merging import MIX_ALL, run_python
from tests.plan.models import model, plan_of

HALF = {"mix": {"r1": 0.5}, "components": "all"}
MB = 1_000_000


def test_more_jobs_take_more_memory_and_mixing_more_than_copying() -> None:
    """The promise grows with the jobs at a time, and is small."""
    copying, mixing = plan_of(base=model("fp8")), plan_of(HALF, base=model("fp8"), r1=model("fp8", shards=2))
    assert peak_memory(copying, 1) < peak_memory(copying, 4) < 200 * MB
    assert peak_memory(copying, 2) < peak_memory(mixing, 2) < peak_memory(mixing, 3) < 600 * MB


@pytest.mark.parametrize("storage", ["bf16", "fp8"])
def test_memory_does_not_depend_on_the_size_of_tensors(storage: str) -> None:
    """A matrix of a terabyte takes what one of a gigabyte takes, but for the scales of its blocks."""
    name, found = "model.layers.0.mlp.down_proj.weight", []
    for rows in (1 << 16, 1 << 26):
        shapes: dict[str, Any] = {name: ("F8_E4M3" if storage == "fp8" else "BF16", (rows, 1 << 14))}
        if storage == "fp8":
            shapes[name + "_scale_inv"] = ("F32", (rows // 128, 128))
        parent = model(storage, change=shapes)
        found.append(peak_memory(plan_of(HALF, base=parent, r1=parent), 1))
    scales = 3 * 4 * ((1 << 26) - (1 << 16)) // 128 * 128 if storage == "fp8" else 0
    assert found[1] - found[0] == scales


def test_fewer_jobs_run_where_memory_is_short() -> None:
    """As many as fit, at most what was asked for; one job that does not fit is refused with both numbers."""
    plan = plan_of(HALF, base=model("fp8"), r1=model("fp8", shards=2))
    for jobs in (1, 2, 7):
        assert Threads(100, peak_memory(plan, jobs)).room(needs_of(plan)) == jobs
        assert Threads(1, peak_memory(plan, jobs)).room(needs_of(plan)) == 1
        assert Threads(100, peak_memory(plan, jobs + 1) - 1).room(needs_of(plan)) == jobs
    assert peak_memory(plan, Threads(1000).workers(needs_of(plan)).count) <= MAX_MEMORY
    least = peak_memory(plan, 1)
    with pytest.raises(PlanError) as refused:
        Threads(1, least - 1).workers(needs_of(plan))
    assert str(refused.value) == (
        "there is too little memory for this: 1 problem\n"
        f"  1. one job at a time takes up to {least / MB:.0f} MB; {(least - 1) / MB:.0f} MB are allowed"
    )


# ---------------------------------------------------------------------------------------- real processes

MEASURE = """
import json, sys
from pathlib import Path
from chimerakit.plan.memory import needs_of, peak_memory
from chimerakit.merge import merge_parents
from chimerakit.runners.local import Threads
from tests.merging import plan_of

v3, r1, child, rules, most = sys.argv[1:]
plan = plan_of({"v3": Path(v3), "r1": Path(r1)}, rules)
runner = Threads(100, int(most))
threads = runner.room(needs_of(plan))
merged = merge_parents(plan, child, runner=runner)
# Not ru_maxrss: that starts at the peak of the process which started this one.
line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
outcomes = sorted({unit.outcome for unit in merged.manifest.units})
print(json.dumps([1024 * int(line.split()[1]), peak_memory(plan, threads), plan.output_nbytes, outcomes]))
"""
EXPERT = "model.layers.1.mlp.experts.0.up_proj.weight"
STACKED = "model.layers.1.mlp.experts.up_proj"
TYPES: dict[str, Any] = {"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn}


def big_checkpoint(root: Path, seed: int, name: str, dtype: str, shape: tuple[int, ...], *, is_dense: bool) -> Path:
    """A tensor of 2 GiB and twenty of 29 MB; its first weights are random, the others too, or a hole in the file."""
    width = np.dtype(TYPES[dtype]).itemsize
    shapes = {name: shape} | {f"model.layers.1.mlp.experts.{n}.down_proj.weight": (2048, 7168) for n in range(20)}
    header, pieces, end = dict[str, Any](), list[tuple[int, bytes]](), 0
    rng = np.random.default_rng(seed)
    for tensor, sides in shapes.items():
        nbytes = width * int(np.prod(sides))
        header[tensor] = {"dtype": dtype, "shape": sides, "data_offsets": [end, end + nbytes]}
        weights = rng.normal(size=1 << 18).astype(TYPES[dtype]).tobytes()
        repeats = nbytes // len(weights) if is_dense else 1
        pieces += [(end + i * len(weights), weights) for i in range(repeats)]
        end += nbytes
        if dtype == "F8_E4M3":
            blocks = [-(-side // 128) for side in sides]
            scales = np.full(blocks, 0.01 + seed * 0.001, np.float32).tobytes()
            header[f"{tensor}_scale_inv"] = {"dtype": "F32", "shape": blocks, "data_offsets": [end, end + len(scales)]}
            pieces.append((end, scales))
            end += len(scales)
    root.mkdir()
    text = json.dumps(header).encode()
    with (root / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start, piece in pieces:
            file.seek(8 + len(text) + start)
            file.write(piece)
        file.truncate(8 + len(text) + end)
    config = synthetic.CONFIG | {"n_routed_experts": 1000}
    config = synthetic.config_of("fp8" if dtype == "F8_E4M3" else "bf16", config, mtp=False)
    (root / "config.json").write_text(json.dumps(config))
    return root


def big_gguf(path: Path, seed: int, dtype: str, shape: tuple[int, ...], *, is_dense: bool) -> Path:
    """A stack of experts that is large; the first weights of each are random, the others too, or a hole in the file."""
    writer = GGUFWriter(path, "deepseek2")
    for key, value in (gguf_files.keys_of() | {"deepseek2.expert_count": shape[0]}).items():
        gguf_files.add_key(writer, key, value)
    nbytes = nbytes_of(dtype, shape) or 0
    kind = gguf_files.type_of(dtype)
    writer.add_tensor_info("blk.1.ffn_down_exps.weight", shape, np.dtype(np.float32), nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    weights = np.random.default_rng(seed).normal(size=(1 << 6, 1 << 12)).astype(np.float32)
    data = llama_cpp.encode(weights, dtype).tobytes()
    with path.open("ab") as file:
        file.write(bytes(-file.tell() % 32))
        start = file.tell()
        file.truncate(start + nbytes)
    with path.open("r+b") as file:
        for at in range(0, nbytes, len(data) if is_dense else nbytes // shape[0]):
            file.seek(start + at)
            file.write(data)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "shape", "rules", "most"),
    [
        pytest.param(EXPERT, "BF16", (1 << 17, 1 << 13), "- {take: r1, components: all}", 130, id="copies"),
        pytest.param(EXPERT, "BF16", (1 << 17, 1 << 13), MIX_ALL, 400, id="bf16"),
        pytest.param(STACKED, "BF16", (256, 2048, 2048), MIX_ALL, 400, id="stacked experts"),
        pytest.param(EXPERT, "F8_E4M3", (1 << 18, 1 << 13), MIX_ALL, 400, id="fp8"),
        pytest.param(EXPERT, "F8_E4M3", (1 << 13, 1 << 18), MIX_ALL, 500, id="fp8, very wide"),
    ],
)
def test_memory_stays_within_what_was_allowed(
    name: str, dtype: str, shape: tuple[int, ...], rules: str, most: int, tmp_path: Path
) -> None:
    """The whole process, for a tensor of 2 GiB, stays below the plan's promise, which stays below the bound (MB)."""
    parents = [
        big_checkpoint(tmp_path / parent, seed, name, dtype, shape, is_dense="take" in rules and parent == "r1")
        for seed, parent in enumerate(("v3", "r1"))
    ]
    check_memory(parents, tmp_path / "child", rules, most, 2 << 30)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "shape", "rules", "most"),
    [
        pytest.param("Q4_K", (8, 1 << 16, 1 << 13), "- {take: r1, components: all}", 130, id="copies"),
        pytest.param("Q8_0", (8, 1 << 14, 1 << 13), MIX_ALL, 700, id="q8_0"),
        pytest.param("Q4_K", (2, 1 << 14, 1 << 13), MIX_ALL, 700, id="q4_k"),
        pytest.param("Q4_K", (2, 1 << 8, 1 << 19), MIX_ALL, 700, id="q4_k, very wide"),
    ],
)
def test_memory_of_quants_stays_within_what_was_allowed(
    dtype: str, shape: tuple[int, ...], rules: str, most: int, tmp_path: Path
) -> None:
    """The same for stacks of experts in GGUF: 2.4 GB picked; 1.1 GB and 150 MB decoded, mixed and encoded."""
    parents = [
        big_gguf(tmp_path / f"{parent}.gguf", seed, dtype, shape, is_dense="take" in rules and parent == "r1")
        for seed, parent in enumerate(("v3", "r1"))
    ]
    check_memory(parents, tmp_path / "child", rules, most, nbytes_of(dtype, shape) or 0)


def check_memory(parents: list[Path], child: Path, rules: str, most: int, least_nbytes: int) -> None:
    """Merge in a process of its own, which may take so many MB; afterwards nothing large is left."""
    try:
        done = run_python(MEASURE, *parents, child, rules, most * MB)
        assert done.returncode == 0, done.stderr
        peak, planned, nbytes, outcomes = json.loads(done.stdout)
    finally:
        for path in (*parents, child):
            if path.is_file():
                path.unlink()
            shutil.rmtree(path, ignore_errors=True)
    assert nbytes > least_nbytes
    assert outcomes == ["copied" if "take" in rules else "mixed"]
    assert peak <= planned <= most * MB
