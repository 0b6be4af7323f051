"""Full, read-only and failing disks: refused before work or told at once, and gone on from afterwards."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chimerakit.errors import OutputError
from chimerakit.events import Event, JobDone
from chimerakit.merge import merge_parents
from chimerakit.plan import make_jobs
from chimerakit.runners.local import Threads
from tests.durability.disks import disk, mounted, remount
from tests.durability.kinds import KINDS, Kind, make_parents
from tests.merging import contents, receipts

ROOT = Path(__file__).parents[2]
COPY = KINDS["copy"]
SPARE = 16 << 20
"""What a merge wants to stay free beside the child."""


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parents")
    make_parents(root, COPY.storage)
    return root


@pytest.fixture(scope="module")
def whole(parents: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a child that met with no accident."""
    child = tmp_path_factory.mktemp("whole") / "child"
    COPY.merge(parents, child)
    return contents(child)


BLIND = """
import os, sys
import chimerakit.output
chimerakit.output.free_nbytes = lambda _: 1 << 60
from chimerakit.cli import main
sys.argv[0] = "chimerakit"
main()
"""
"""The command line, when the space that it saw is gone a moment later."""


def merge(parents: Path, child: Path, *, script: str | None = None) -> "subprocess.CompletedProcess[str]":
    """COPY on the command line."""
    command = [sys.executable, *(("-m", "chimerakit") if script is None else ("-c", script)), "merge", "--quiet"]
    command += [f"--parent={name}={parents / f'{name} {COPY.storage}'}" for name in ("v3", "r1")]
    command += ["--base=v3", "--take=r1:routed_experts", f"--output={child}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def looks_finished(child: Path) -> bool:
    """Whether a loader, or a user, could take it for a model."""
    return any((child / name).exists() for name in ("chimerakit.json", "config.json", "model.safetensors.index.json"))


@pytest.mark.slow
def test_a_disk_that_is_too_small_is_refused_before_work(parents: Path, tmp_path: Path) -> None:
    """With both numbers, exit code 2, and nothing written."""
    with disk(tmp_path / "disk", "tmpfs", "8m") as small:
        done = merge(parents, small / "child")
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {small / 'child'}: too little disk space\n  expected: ")
        assert f"found:    {8 << 20} bytes free" in done.stderr
        assert not list(small.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_disk_that_fills_up_is_one_clear_error_and_can_be_gone_on_from(
    kind: str, parents: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Somebody else takes the space after it was seen. With space again the same command ends in the same bytes."""
    size = sum(map(len, whole.values())) + SPARE + (32 << 20)
    with disk(tmp_path / "disk", kind, str(size)) as small:
        free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
        with (small / "somebody's").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - (len(whole) << 19))
        done = merge(parents, small / "child", script=BLIND)
        assert done.returncode == 2
        first, *rest = done.stderr.splitlines()
        assert first.startswith(f"error: {small / 'child'}/")
        assert first.endswith(": no space left")
        assert rest == ["  to do:    free some space and run the same command again"]
        assert not looks_finished(small / "child")
        (small / "somebody's").unlink()
        done = merge(parents, small / "child")
        assert done.returncode == 0, done.stderr
        assert contents(small / "child") == whole


@pytest.mark.slow
def test_a_disk_that_fills_up_between_two_jobs_keeps_what_is_done(
    parents: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Jobs with receipts are not written again."""
    size = sum(map(len, whole.values())) + SPARE + (4 << 20)
    plan = COPY.plan(parents)
    with disk(tmp_path / "disk", "tmpfs", str(size)) as small:
        greedy = small / "somebody's"

        def fill(event: Event) -> None:
            if isinstance(event, JobDone) and not greedy.exists():
                free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
                with greedy.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, free - (2 << 20))

        with pytest.raises(OutputError, match="no space left"):
            merge_parents(plan, small / "child", runner=Threads(1), listener=fill)
        done = receipts(small / "child")
        assert 0 < len(done) < len(plan.segments)
        greedy.unlink()
        assert merge_parents(plan, small / "child").jobs_reused == len(done)
        assert contents(small / "child") == whole


@pytest.mark.slow
def test_a_disk_without_room_for_names_is_told(parents: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Inodes run out though bytes are free."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64m,nr_inodes=9", "tmpfs") as small:
        done = merge(parents, small / "child")
        assert done.returncode == 2
        assert ": no space left\n  to do:    free some space" in done.stderr
        assert not looks_finished(small / "child")
        remount(small, "nr_inodes=100")
        assert merge(parents, small / "child").returncode == 0


@pytest.mark.slow
def test_a_read_only_disk_is_told(parents: Path, tmp_path: Path) -> None:
    """A new child is refused, an unfinished one is not touched, and a finished one is said to be there."""
    with disk(tmp_path / "disk", "tmpfs", "64m") as place:
        assert merge(parents, place / "finished").returncode == 0
        (place / "unfinished").mkdir()
        begin(COPY, parents, place / "unfinished")
        before = contents(place)
        remount(place, "ro")
        for name, code in (("new", 2), ("unfinished", 2), ("finished", 0)):
            done = merge(parents, place / name)
            assert done.returncode == code
            assert ("Read-only file system" in done.stderr) == bool(code)
            assert done.stderr.count("\n") == bool(code)
        assert contents(place) == before
        remount(place, "rw")
        assert merge(parents, place / "unfinished").returncode == 0


def begin(kind: Kind, parents: Path, child: Path) -> None:
    """Leave an unfinished child as the command line would: one job for each file."""
    kind = kind._replace(segment=256 << 20)

    def leave(event: Event) -> None:
        if isinstance(event, JobDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_parents(kind.plan(parents), child, runner=Threads(1), listener=leave)


def failing(patch: pytest.MonkeyPatch, number: int, *names: str, after: int) -> None:
    """Let these calls fail for the child's weight files, when they have succeeded so many times."""
    left = after

    def wrap(function: Callable[..., object]) -> Callable[..., object]:
        def call(fd: int, *arguments: object) -> object:
            nonlocal left
            if Path(f"/proc/self/fd/{fd}").readlink().name.endswith(".safetensors.part"):
                left -= 1
                if left < 0:
                    raise OSError(number, os.strerror(number))
            return function(fd, *arguments)

        return call

    for name in names:
        patch.setattr(os, name, wrap(getattr(os, name)))


WRITES = ("write", "writev", "pwrite", "pwritev", "copy_file_range", "sendfile")
SYNCS = ("fsync", "fdatasync")


@pytest.mark.parametrize(
    ("number", "calls", "says"),
    [
        (errno.ENOSPC, WRITES, "no space left\n  to do:    free some space and run the same command again"),
        (errno.EDQUOT, WRITES, "no space left\n  to do:    free some space and run the same command again"),
        (
            errno.EIO,
            WRITES,
            "can't be written: Input/output error\n  to do:    look after the disk and run the same command again",
        ),
        (
            errno.EIO,
            SYNCS,
            "can't be written: Input/output error\n  to do:    look after the disk and run the same command again",
        ),
        (errno.ENOSPC, SYNCS, "no space left\n  to do:    free some space and run the same command again"),
    ],
    ids=["full", "quota", "write fails", "sync fails", "sync finds no space"],
)
def test_a_job_that_could_not_be_written_has_no_receipt(
    number: int,
    calls: tuple[str, ...],
    says: str,
    parents: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file is named. The job runs again with the next call, also after a sync that failed: what it had written is
    not taken for stored, though it can be read."""
    plan, child = COPY.plan(parents), tmp_path / "child"
    with monkeypatch.context() as patch:
        failing(patch, number, *calls, after=3)
        with pytest.raises(OutputError) as refusal:
            merge_parents(plan, child, runner=Threads(1))
    assert str(refusal.value).startswith(f"{child}/model-")
    assert str(refusal.value).endswith(f".safetensors.part: {says}")
    assert not looks_finished(child)
    done = receipts(child)
    assert len(done) < 4
    merged = merge_parents(plan, child, runner=Threads(1))
    assert merged.nbytes_written == sum(job.nbytes for job in make_jobs(plan, child) if job.id not in done)
    assert contents(child) == whole


@pytest.mark.slow
def test_a_disk_that_loses_what_it_took_is_told(parents: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """A real failed sync: the disk below the child's file system is full, which shows when bytes are synced. With space
    there, and the file system mounted again, the same command ends in the same bytes."""
    with disk(tmp_path / "below", "tmpfs", "8m") as below:
        with disk(below / "disk", "ext4", "96m", "-E", "nodiscard") as place:
            done = merge(parents, place / "child")
            assert done.returncode == 2
            # Which of the two is told depends on whether data or the file system's own records found no space below.
            assert re.search(
                r"\.safetensors\.part: (no space left\n  to do:    free some space|can't be written: Input/output error\n"
                r"  to do:    look after the disk) and run the same command again\n$",
                done.stderr,
            )
            assert not looks_finished(place / "child")
        remount(below, "size=200m")
        with mounted(below / "again", "-o", "loop", below / "disk.ext4") as place:
            done = merge(parents, place / "child")
            assert (done.returncode, done.stderr) == (0, "")
            assert contents(place / "child") == whole
