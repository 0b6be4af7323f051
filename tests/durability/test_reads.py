"""Parents that can't be read, or are not what they were when the plan was made: file and place are named."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chimerakit.errors import ChangedError, CheckpointError
from chimerakit.events import Advanced, Event, JobDone
from chimerakit.merge import merge_parents
from chimerakit.records import Plan
from chimerakit.runners.local import Threads
from tests import synthetic
from tests.merging import MIX_ALL, R1T, contents, plan_of, receipts

pytestmark = pytest.mark.usefixtures("impatient")

SEGMENT = 200_000
Pair = dict[str, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    synthetic.make(root / "v3", 1, "fp8", shards=3)
    synthetic.make(root / "r1", 2, "fp8", shards=1)
    return root


@pytest.fixture
def parents(made: Path, tmp_path: Path) -> Pair:
    """Parents that a test may change."""
    return {name: Path(shutil.copytree(made / name, tmp_path / name)) for name in ("v3", "r1")}


def shard_of(parents: Pair) -> Path:
    """The one weight file of r1: every job that takes anything from r1 reads it."""
    return parents["r1"] / "model.safetensors"


@pytest.mark.parametrize("rules", [R1T, pytest.param(MIX_ALL, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["r1/model.safetensors", "v3/tokenizer.json"])
def test_a_parent_that_cant_be_read_is_named_with_the_byte(
    rules: str, name: str, parents: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO in the middle of a merge: what is done stays, and with a disk that reads again the next call finishes."""
    plan, child, broken = plan_of(parents, rules, segment_nbytes=SEGMENT), tmp_path / "child", tmp_path / name
    begin, real = broken.stat().st_size // 2, os.preadv

    def preadv(fd: int, buffers: Any, offset: int, *flags: int) -> int:
        if Path(f"/proc/self/fd/{fd}").readlink() == broken and offset + sum(map(len, buffers)) > begin:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset, *flags)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", preadv)
        with pytest.raises(CheckpointError) as refusal:
            merge_parents(plan, child, runner=Threads(1))
    assert str(refusal.value).startswith(f"{broken}: can't be read at byte ")
    assert ": Input/output error" in str(refusal.value)
    assert not {"chimerakit.json", "config.json"} & contents(child).keys()
    done = receipts(child)
    assert done
    assert merge_parents(plan, child).jobs_reused == len(done)
    merge_parents(plan, tmp_path / "whole")
    assert contents(child) == contents(tmp_path / "whole")


def _truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def _touch(file: Path) -> None:
    os.utime(file, ns=(1, 1))


def _replace(file: Path) -> None:
    """By one of the same size, as a download that is run again does it."""
    shutil.copyfile(file, file.with_name("new"))
    file.with_name("new").replace(file)


def _edit(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(-3, os.SEEK_END)
        opened.write(b"abc")


CHANGES: list[Callable[[Path], None]] = [_truncate, _touch, _replace, _edit]


@pytest.mark.parametrize("change", CHANGES)
def test_a_parent_that_changes_between_plan_and_merge_is_refused(
    change: Callable[[Path], None], parents: Pair, tmp_path: Path
) -> None:
    """Before any of its weights is used, with the file and what to do."""
    plan = plan_of(parents, R1T, segment_nbytes=SEGMENT)
    change(shard_of(parents))
    assert_changed(plan, tmp_path / "child", shard_of(parents), "has changed since the plan was made")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rules", [pytest.param(R1T, marks=pytest.mark.slow), MIX_ALL])
def test_a_parent_that_changes_between_jobs_is_refused(
    rules: str, change: Callable[[Path], None], parents: Pair, tmp_path: Path
) -> None:
    """The next job that reads it finds out, or the one that has just begun to."""
    plan = plan_of(parents, rules, segment_nbytes=SEGMENT)
    left = [lambda: change(shard_of(parents))]

    def listener(event: Event) -> None:
        if isinstance(event, JobDone) and left:
            left.pop()()

    assert_changed(
        plan,
        tmp_path / "child",
        shard_of(parents),
        "has changed since the plan was made",
        "was changed while it was read",
        listener=listener,
    )


@pytest.mark.parametrize("change", [_touch, _edit])
@pytest.mark.parametrize("rules", [R1T, MIX_ALL])
def test_a_parent_that_is_written_to_while_it_is_read_is_refused(
    rules: str, change: Callable[[Path], None], parents: Pair, tmp_path: Path
) -> None:
    """What a job has read may be of two versions then: it leaves no receipt."""
    plan = plan_of(parents, rules)  # one job for each file

    def listener(event: Event) -> None:
        if isinstance(event, Advanced) and shard_of(parents) in open_files():
            change(shard_of(parents))

    assert_changed(plan, tmp_path / "child", shard_of(parents), "was changed while it was read", listener=listener)
    assert not receipts(tmp_path / "child")


def open_files() -> set[Path]:
    """What this process has open."""
    return {link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}


def assert_changed(plan: Plan, child: Path, file: Path, *says: str, **options: Any) -> None:
    """Refused with the file's name and a hint; nothing looks finished."""
    with pytest.raises(ChangedError) as refusal:
        merge_parents(plan, child, runner=Threads(1), **options)
    assert str(refusal.value).splitlines()[0] in {f"{file}: {what}" for what in says}
    assert "  to do:    plan again; start the child over with --force if the change was meant" in str(refusal.value)
    assert not {"chimerakit.json", "config.json"} & contents(child).keys()
