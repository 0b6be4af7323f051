"""Ctrl-C and SIGTERM: the process ends within two seconds, says how to go on, and leaves nothing that looks finished."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chimerakit.verify import verify_child
from tests import synthetic
from tests.durability.kinds import CONFIG, random_tensors
from tests.merging import contents

ROOT = Path(__file__).parents[2]
SAID = "stopped; run the same command again to go on\n"
PATIENCE = 5.0
"""Seconds; two are promised on a machine that has nothing else to do."""
STOPS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]

STUCK = """
import os, sys, threading, time
from chimerakit.cli import main
fsync = os.fsync
def never(fd):
    if threading.current_thread() is threading.main_thread():
        return fsync(fd)
    os.write(1, b"waiting for the disk\\n")  # in one piece, whichever threads come here
    time.sleep(600)
os.fsync = os.fdatasync = never
sys.argv[0] = "chimerakit"
main()
"""
"""The command line on a disk that answers no sync of weights."""


LARGE = "model.layers.1.mlp.experts.0.gate_proj.weight"


def make_pair(root: Path, times: int) -> dict[str, Path]:
    """Two parents with one tensor that is so many times as large as it should be."""
    for seed, name in enumerate(("v3", "r1")):
        tensors = random_tensors(seed, "bf16")
        tensors[LARGE] = tensors[LARGE].reshape(-1).repeat(times).reshape(-1, 512)
        synthetic.write_checkpoint(root / name, tensors, synthetic.config_of("bf16", CONFIG), shards=2)
    return {name: root / name for name in ("v3", "r1")}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_pair(tmp_path_factory.mktemp("pair"), 1)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """With one tensor of 200 MiB: a job that takes long."""
    return make_pair(tmp_path_factory.mktemp("large"), 800)


def merge_command(pair: dict[str, Path], child: Path) -> list[str]:
    """A merge of experts, with progress in lines."""
    parents = [f"--parent={name}={path}" for name, path in pair.items()]
    return ["merge", *parents, "--base=v3", "--mix=r1:routed_experts=0.75", f"--output={child}", "--threads=2"]


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Ctrl-C is not ignored, also where the tests themselves run in the background of a shell: processes inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def started(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A process of python, killed in the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def has_written(process: "subprocess.Popen[str]", nbytes: int) -> bool:
    """Wait until a process has written this much; whether it still runs."""
    while process.poll() is None:
        try:
            counters = Path(f"/proc/{process.pid}/io").read_text()
        except OSError:  # it has just ended
            return False
        if int(counters.split("wchar: ")[1].split()[0]) >= nbytes:
            return True
        time.sleep(0.002)
    return False


def assert_stops(process: "subprocess.Popen[str]", child: Path, code: int) -> None:
    """Soon, with this exit code and one line."""
    begun = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, SAID)
    assert time.monotonic() - begun < PATIENCE
    left = contents(child)
    assert not {"chimerakit.json", "config.json", "model.safetensors.index.json"} & left.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_merge_stops_in_the_middle_of_a_large_job(
    large: dict[str, Path], number: int, code: int, tmp_path: Path
) -> None:
    """130 after Ctrl-C and 143 after SIGTERM; the next call finishes the child."""
    command = ["-m", "chimerakit", *merge_command(large, tmp_path / "child")]
    with started(*command) as process:
        if not has_written(process, 50 << 20):
            pytest.skip("this machine was done before the signal came")
        process.send_signal(number)
        assert_stops(process, tmp_path / "child", code)
    subprocess.run([sys.executable, *command, "-q"], check=True, capture_output=True)
    assert verify_child(tmp_path / "child").ok


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_merge_stops_although_its_disk_does_not_answer(
    pair: dict[str, Path], number: int, code: int, tmp_path: Path
) -> None:
    """Threads that wait for the disk are not waited for."""
    with started("-c", STUCK, *merge_command(pair, tmp_path / "child")) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting for the disk\n"
        process.send_signal(number)
        assert_stops(process, tmp_path / "child", code)


def test_a_second_ctrl_c_kills_at_once(pair: dict[str, Path], tmp_path: Path) -> None:
    """Who does not want to wait for an orderly end need not."""
    with started("-c", STUCK, *merge_command(pair, tmp_path / "child")) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        while "SigCgt" in (status := Path(f"/proc/{process.pid}/status").read_text()):
            caught = int(status.split("SigCgt:")[1].split()[0], 16)
            if not caught >> (signal.SIGINT - 1) & 1:  # the first was heard
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (-signal.SIGINT, "")


@pytest.mark.slow
def test_a_signal_that_is_ignored_stays_ignored(pair: dict[str, Path], tmp_path: Path) -> None:
    """What a shell runs in the background is not stopped by a Ctrl-C that was meant for another."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with started("-c", STUCK, *merge_command(pair, tmp_path / "child")) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
            assert process.poll() is None
            os.kill(process.pid, signal.SIGTERM)
            _, said = process.communicate(timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (process.returncode, said) == (143, SAID)
