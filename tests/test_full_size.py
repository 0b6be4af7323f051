"""DeepSeek-V3's size: the generator is held to the published numbers, and the tool to its promises at 689 GB."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors import safe_open

ROOT = Path(__file__).parent.parent
MAKE = ROOT / "examples" / "full-size" / "make.py"
RECIPE = ROOT / "recipes" / "deepseek-r1t.yaml"
TENSORS, NBYTES, FILE_NBYTES = 91_991, 688_574_839_360, 688_586_727_753
"""Of DeepSeek-V3 as published; the last are bytes of all its safetensors files."""


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("full_size", MAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["full_size"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def entries(generator: ModuleType) -> list[Any]:
    return [entry for _, entry in generator.layout(generator.CONFIG)]


def make(out: Path, *arguments: str) -> dict[str, Path]:
    """Both parents by the command of the README."""
    subprocess.run([sys.executable, str(MAKE), str(out), *arguments], check=True, capture_output=True)
    return {"v3": out / "v3", "r1": out / "r1"}


def allocated(folder: Path) -> int:
    """Bytes that a folder takes on the disk."""
    return sum(512 * file.stat().st_blocks for file in folder.rglob("*"))


def logical(folder: Path) -> int:
    """Bytes of a folder's weight files, holes counted."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def read_tensor(folder: Path, name: str) -> Any:
    """A tensor by the reference reader."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    with safe_open(folder / index["weight_map"][name], "pt") as file:
        return file.get_tensor(name)


# ------------------------------------------------------------------------------------------- generator


def test_the_layout_has_the_published_numbers(entries: list[Any]) -> None:
    """Tensors, bytes and elements of each dtype are those of DeepSeek-V3."""
    elements: Counter[str] = Counter()
    for entry in entries:
        elements[entry.dtype] += math.prod(entry.shape)
    assert len({entry.name for entry in entries}) == len(entries) == TENSORS
    assert elements == {"F8_E4M3": 680_571_043_840, "F32": 41_555_600, "BF16": 3_918_786_560}
    assert sum(entry.nbytes for entry in entries) == NBYTES


def test_the_shards_have_the_published_sizes(generator: ModuleType) -> None:
    """163 shards; the first and all together to the byte, the others to the tenth of a GiB of an `ls -lh`."""
    shards = generator.deal(generator.layout(generator.CONFIG))
    sizes = [len(generator.header(shard)) + sum(entry.nbytes for entry in shard) for shard in shards]
    said = dict.fromkeys(range(1, 164), 4.1) | dict.fromkeys((34, 56, 78, 100, 122), 1.7)
    said |= {1: 4.9, 12: 1.3, 141: 3.0, 160: 4.9, 163: 6.2}
    assert (sizes[0], sum(sizes)) == (5_234_139_343, FILE_NBYTES)
    assert {n: math.ceil(10 * size / 2**30) / 10 for n, size in enumerate(sizes, 1)} == said


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("model.embed_tokens.weight", "BF16", (129280, 7168)),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "F8_E4M3", (576, 7168)),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv", "F32", (5, 56)),
        ("model.layers.2.mlp.down_proj.weight", "F8_E4M3", (7168, 18432)),
        ("model.layers.3.mlp.gate.weight", "BF16", (256, 7168)),
        ("model.layers.60.mlp.gate.e_score_correction_bias", "F32", (256,)),
        ("model.layers.61.mlp.experts.255.down_proj.weight_scale_inv", "F32", (56, 16)),
        ("model.layers.61.eh_proj.weight", "BF16", (7168, 14336)),
        ("model.layers.61.shared_head.head.weight", "BF16", (129280, 7168)),
    ],
)
def test_tensors_are_named_and_shaped_as_published(
    entries: list[Any], name: str, dtype: str, shape: tuple[int, ...]
) -> None:
    """One of each kind, ragged and MTP ones among them."""
    assert (name, dtype, shape) in entries


def test_a_small_one_is_sparse_and_readable(tmp_path: Path) -> None:
    """The reference reader opens it; norms and some experts differ by parent; the rest is zeros and takes no disk."""
    parents = make(tmp_path, "--layers", "4", "--experts", "2")
    for name in ("model.norm.weight", "model.layers.3.mlp.experts.1.up_proj.weight_scale_inv"):
        v3, r1 = (read_tensor(parent, name) for parent in parents.values())
        assert v3.shape == r1.shape
        assert not v3.equal(r1)
    assert not read_tensor(parents["v3"], "model.layers.3.mlp.gate.weight").any()
    assert allocated(parents["v3"]) < 10 << 20 < 5 << 30 < logical(parents["v3"])


# ------------------------------------------------------------------------------------------- rehearsal


def chimerakit(*arguments: object) -> tuple[int, dict[str, Any], int]:
    """A command in a process of its own: exit code, what it says, and its peak memory in bytes."""
    code = (
        "import os, subprocess, sys\n"  # a small process in between: a child's peak begins at its parent's
        "run = subprocess.Popen([sys.executable, '-m', 'chimerakit', *sys.argv[1:]])\n"
        "_, status, usage = os.wait4(run.pid, 0)\n"
        "print(usage.ru_maxrss * 1024, file=sys.stderr)\n"
        "sys.exit(os.waitstatus_to_exitcode(status))\n"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), int(done.stderr.split()[-1])


@pytest.mark.slow
def test_the_published_recipe_at_full_size(tmp_path: Path) -> None:
    """Plan, merge and proof of 689 GB: holes stay holes, memory stays as promised, a flipped bit is found."""
    parents = make(tmp_path)
    said = [f"--parent={name}={path}" for name, path in parents.items()]
    child = tmp_path / "child"

    code, plan, peak = chimerakit("plan", RECIPE, *said, "-o", child)
    assert (code, plan["weight_files"]) == (0, 163)
    assert FILE_NBYTES <= plan["output_nbytes"] < FILE_NBYTES + (1 << 30)
    assert peak <= 250e6

    code, merged, peak = chimerakit("merge", RECIPE, *said, "-o", child, "--quiet")
    assert (code, set(merged["units"])) == (0, {"copied"})
    assert peak <= plan["peak_memory"]
    assert logical(child) == FILE_NBYTES
    assert allocated(child) < 100e6

    for arguments in ((child,), (child, *said)):
        code, found, peak = chimerakit("verify", *arguments, "--quiet")
        assert (code, found["ok"]) == (0, True)
        assert peak <= 400e6

    flip_in_a_hole(child / "model-00100-of-000163.safetensors")
    for arguments in ((child,), (child, *said)):
        code, found, _ = chimerakit("verify", *arguments, "--quiet")
        assert (code, found["ok"]) == (1, False)


def flip_in_a_hole(path: Path) -> None:
    """Set one bit where a file had no data."""
    with path.open("r+b") as file:
        at = os.lseek(file.fileno(), path.stat().st_size // 2, os.SEEK_HOLE)
        assert os.pread(file.fileno(), 1, at) == b"\0"
        os.pwrite(file.fileno(), b"\x10", at)
