"""Bytes that the disk need not hold twice: shared blocks, holes, hard links; and that no parent is ever changed by it."""

import fcntl
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from chimerakit.errors import OutputError
from chimerakit.merge import merge_parents
from chimerakit.verify import verify_child
from tests import synthetic
from tests.durability.disks import disk
from tests.durability.kinds import CONFIG, random_tensors
from tests.merging import MIX, R1T, contents, interrupt, merge, plan_of, stored

pytestmark = pytest.mark.usefixtures("impatient")

_FIEMAP = 0xC020660B
_SHARED, _LAST = 0x2000, 0x1


def shared_nbytes(file: Path) -> int:
    """Bytes of a file whose blocks are another's, too: the kernel's own word (ioctl FIEMAP)."""
    count, shared, start = 64, 0, 0
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        while True:
            request = bytearray(struct.pack("=QQLLLL", start, (1 << 63) - start, 1, 0, count, 0) + bytes(56 * count))
            fcntl.ioctl(opened.fileno(), _FIEMAP, request)
            found = struct.unpack_from("=L", request, 20)[0]
            if found == 0:
                return shared
            for number in range(found):
                logical, _, nbytes, _, _, flags = struct.unpack_from("=QQQQQL", request, 32 + 56 * number)
                shared += nbytes if flags & _SHARED else 0
                start = logical + nbytes
            if flags & _LAST:
                return shared


def taken_nbytes(folder: Path) -> int:
    """What is in use on a file system."""
    os.sync()
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def make_pair(root: Path, shards: int) -> dict[str, Path]:
    """Two parents of one layout, as two fine-tunes of one model are."""
    for seed, name in enumerate(("v3", "r1")):
        synthetic.write_checkpoint(
            root / name, random_tensors(seed, "fp8"), synthetic.config_of("fp8", CONFIG), shards=shards
        )
    return {name: root / name for name in ("v3", "r1")}


def identities(pair: dict[str, Path]) -> dict[Path, tuple[int, int, bytes]]:
    """Inode, time of the last change, and bytes of all files of the parents."""
    files = [file for root in pair.values() for file in root.iterdir()]
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns, file.read_bytes()) for file in files}


# ------------------------------------------------------------------------------------------- reflinks


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """A file system whose files can share blocks."""
    with disk(tmp_path / "disk", "xfs", "400m", "-m", "reflink=1") as root:
        yield root


@pytest.mark.slow
def test_a_copied_child_shares_its_blocks_with_its_parents(xfs: Path, tmp_path: Path) -> None:
    """It takes next to no space and has the bytes of a child on another disk."""
    pair = make_pair(xfs, shards=2)
    before = taken_nbytes(xfs)
    merge(pair, R1T, xfs / "child")
    weights = sorted((xfs / "child").glob("*.safetensors"))
    nbytes = sum(file.stat().st_size for file in weights)
    assert sum(map(shared_nbytes, weights)) > 0.9 * nbytes
    assert taken_nbytes(xfs) - before < 0.1 * nbytes
    merge(pair, R1T, tmp_path / "elsewhere")
    assert contents(xfs / "child") == contents(tmp_path / "elsewhere")


@pytest.mark.slow
def test_a_child_that_shares_needs_no_space_of_its_own(xfs: Path) -> None:
    """On a disk that could not hold the child a second time, a copy is made, and a mix is refused."""
    pair = make_pair(xfs, shards=3)
    size = sum(file.stat().st_size for file in pair["v3"].iterdir())
    free = os.statvfs(xfs)
    os.posix_fallocate(
        filler := os.open(xfs / "filler", os.O_CREAT | os.O_RDWR),
        0,
        free.f_bavail * free.f_frsize - (20 << 20) - size // 2,
    )
    os.close(filler)
    merge(pair, R1T, xfs / "child")
    assert verify_child(xfs / "child").ok
    with pytest.raises(OutputError, match="too little disk space"):
        merge(pair, MIX.replace("routed_experts", "all"), xfs / "mixed")


@pytest.mark.slow
def test_parents_do_not_change_with_a_child_that_shares_their_blocks(xfs: Path) -> None:
    """Whether it is made again, mixed over, written to or deleted."""
    pair = make_pair(xfs, shards=2)
    before = identities(pair)
    merge(pair, R1T, xfs / "child")
    merge(pair, R1T, xfs / "child", force=True)
    merge(pair, MIX, xfs / "child", force=True)
    merge(pair, R1T, xfs / "child", force=True)
    for file in (xfs / "child").glob("*.safetensors"):
        with file.open("r+b") as opened:
            opened.write(bytes(1 << 20))
    assert identities(pair) == before
    shutil.rmtree(xfs / "child")
    os.sync()
    assert identities(pair) == before


# ----------------------------------------------------------------------------------------------- holes

HOLE = "model.layers.1.mlp.experts.0.gate_proj.weight"


@pytest.fixture
def sparse(tmp_path: Path) -> dict[str, Path]:
    """Parents with a tensor of 24 MiB that is a hole but for its first and last page."""
    for seed, name in enumerate(("v3", "r1")):
        tensors = random_tensors(seed, "bf16")
        large = np.zeros((24576, 512), ml_dtypes.bfloat16)
        large[:4], large[-4:] = tensors[HOLE][:4], tensors[HOLE][4:8]
        root = synthetic.write_checkpoint(
            tmp_path / name, tensors | {HOLE: large}, synthetic.config_of("bf16", CONFIG), shards=1
        )
        dig_holes(root / "model.safetensors")
    return {name: tmp_path / name for name in ("v3", "r1")}


def dig_holes(file: Path) -> None:
    """Write a file again without its pages of zeros."""
    data = file.read_bytes()
    file.unlink()
    with file.open("wb") as opened:
        for start in range(0, len(data), 1 << 16):
            piece = data[start : start + (1 << 16)]
            if any(piece):
                opened.seek(start)
                opened.write(piece)
        opened.truncate(len(data))
    assert file.stat().st_blocks * 512 < len(data) - (20 << 20)


def test_holes_are_kept(sparse: dict[str, Path], tmp_path: Path) -> None:
    """The child takes what its parents take, not what it seems to have; a second merge over the first does so, too."""
    child = tmp_path / "child"
    for force in (False, True):
        merge(sparse, R1T, child, force=force)
        taken = (child / "model.safetensors").stat().st_blocks * 512
        assert taken < (child / "model.safetensors").stat().st_size - (20 << 20)
        found, v3, r1 = stored(child), stored(sparse["v3"]), stored(sparse["r1"])
        assert found == {name: (r1 if ".mlp.experts." in name else v3)[name] for name in v3}
        assert verify_child(child).ok


# ------------------------------------------------------------------------------------------ hard links


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_pair(tmp_path_factory.mktemp("pair"), shards=12)


def linked(child: Path, pair: dict[str, Path]) -> dict[str, str]:
    """Weight files of a child that are a parent's file, and whose."""
    return {
        file.name: name
        for file in sorted(child.glob("*.safetensors"))
        for name, root in pair.items()
        if (root / file.name).exists() and file.samefile(root / file.name)
    }


def test_whole_equal_shards_become_hard_links_on_request(pair: dict[str, Path], tmp_path: Path) -> None:
    """Those that hold nothing of another parent, and no others; all files have the same bytes as without."""
    before = identities(pair)
    merge(pair, R1T, tmp_path / "child", link=True)
    merge(pair, R1T, tmp_path / "copied")
    assert linked(tmp_path / "copied", pair) == {}
    whole = {n: d for n, d in contents(tmp_path / "child").items() if n.endswith(".safetensors")}
    parents = {name: contents(root) for name, root in pair.items()}
    expected = {n: who for n, d in whole.items() for who, files in parents.items() if files[n] == d}
    assert linked(tmp_path / "child", pair) == expected
    assert len({*expected.values()}) == 2
    assert len(expected) < len(whole)
    assert contents(tmp_path / "child") == contents(tmp_path / "copied")
    assert verify_child(tmp_path / "child").ok
    assert identities(pair) == before


@pytest.mark.slow
@pytest.mark.parametrize("rules", [R1T, MIX])
@pytest.mark.parametrize("after", [None, 4 << 20])
def test_parents_do_not_change_when_a_linked_child_is_made_anew(
    rules: str, after: int | None, pair: dict[str, Path], tmp_path: Path
) -> None:
    """With --force and without --link, over a finished child and over one that was left half-way."""
    before, child = identities(pair), tmp_path / "child"
    if after is None:
        merge(pair, R1T, child, link=True)
    else:
        interrupt(plan_of(pair, R1T, segment_nbytes=1 << 20), child, after=after, link=True)
    assert linked(child, pair) or after
    merge(pair, rules, child, force=True)
    merge(pair, rules, tmp_path / "whole")
    assert contents(child) == contents(tmp_path / "whole")
    assert linked(child, pair) == {}
    assert identities(pair) == before


def test_an_interrupted_linked_child_is_gone_on_with(pair: dict[str, Path], tmp_path: Path) -> None:
    """With the same option only: without it, files that should be the child's own would be a parent's."""
    child = tmp_path / "child"
    plan = plan_of(pair, R1T, segment_nbytes=1 << 20)
    before = identities(pair)
    interrupt(plan, child, after=4 << 20, link=True)
    with pytest.raises(OutputError, match="was begun with other options"):
        merge_parents(plan, child)
    merge_parents(plan, child, link=True)
    merge(pair, R1T, tmp_path / "whole", link=True)
    assert contents(child) == contents(tmp_path / "whole")
    assert linked(child, pair) == linked(tmp_path / "whole", pair)
    assert identities(pair) == before
