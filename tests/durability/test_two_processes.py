"""Two processes on one output folder: one works, the other says so and touches nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chimerakit.errors import OutputError
from chimerakit.merge import merge_parents
from tests.durability.kinds import KINDS, make_parents
from tests.merging import contents, receipts

ROOT = Path(__file__).parents[2]
COPY, SAME_BUT_SHA256, OTHER = KINDS["copy"], KINDS["copy"]._replace(sha256=True), KINDS["copy, by rule"]

PAUSED = """
import os, signal, sys
from pathlib import Path
from chimerakit.events import JobDone
from chimerakit.merge import merge_parents
from chimerakit.runners.local import Threads
from tests.durability.kinds import KINDS

def listener(event):
    if isinstance(event, JobDone) and event.job == 2:
        os.kill(os.getpid(), signal.SIGSTOP)

merge_parents(KINDS["copy"].plan(Path(sys.argv[1])), Path(sys.argv[2]), runner=Threads(1), listener=listener)
"""
"""A merge that stands still in the middle."""


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parents")
    make_parents(root, COPY.storage)
    return root


@contextmanager
def paused(parents: Path, child: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process in the middle of its merge."""
    process = subprocess.Popen([sys.executable, "-c", PAUSED, str(parents), str(child)], cwd=ROOT)
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_process_is_refused_until_the_first_has_ended(parents: Path, tmp_path: Path) -> None:
    """Whatever it wants to make there, with --force, too; the first goes on undisturbed."""
    child = tmp_path / "child"
    with paused(parents, child) as process:
        before = contents(child)
        for kind, force in ((COPY, False), (COPY, True), (SAME_BUT_SHA256, True), (OTHER, True)):
            with pytest.raises(OutputError, match="another process is working on this folder"):
                merge_parents(kind.plan(parents), child, sha256=kind.sha256, force=force)
        with pytest.raises(OutputError, match="holds an unfinished child of another plan"):
            OTHER.merge(parents, child)
        assert contents(child) == before
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 0
    assert COPY.merge(parents, child).jobs_run == 0
    COPY.merge(parents, tmp_path / "whole")
    assert contents(child) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock(parents: Path, tmp_path: Path) -> None:
    """The lock goes with its holder, whatever ends it."""
    child = tmp_path / "child"
    with paused(parents, child) as process:
        process.kill()
        process.wait()
        done = receipts(child)
        assert done
        assert COPY.merge(parents, child).jobs_reused == len(done)


def test_a_child_that_another_process_has_just_finished_is_not_made_again(
    parents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a look at the folder and the lock on it the other may have come to its end."""
    COPY.merge(parents, tmp_path / "child")
    monkeypatch.setattr("chimerakit.merge.is_finished", lambda _: False)
    with pytest.raises(OutputError, match="another process has finished this child just now"):
        COPY.merge(parents, tmp_path / "child")


@pytest.mark.slow
def test_of_many_processes_at_once_one_makes_the_child(parents: Path, tmp_path: Path) -> None:
    """The others are refused, or find it finished; never is there a child of two makers."""
    pair = [f"--parent={name}={parents / f'{name} {COPY.storage}'}" for name in ("v3", "r1")]
    command = [sys.executable, "-m", "chimerakit", "merge", "-q", *pair, "--base=v3", "--take=r1:routed_experts"]
    processes = [
        subprocess.Popen(
            [*command, f"--output={tmp_path / 'child'}"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    assert {code for _, code in ended} <= {0, 2}
    assert any(code == 0 for _, code in ended)
    assert all("another process " in said for said, code in ended if code)
    COPY.merge(parents, tmp_path / "whole")
    assert contents(tmp_path / "child") == contents(tmp_path / "whole")
