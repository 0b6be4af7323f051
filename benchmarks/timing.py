"""Whole processes in turn: wall time, CPU time and peak memory of each, as the kernel counts them.

A process's peak begins at that of the process which started it, so whoever measures must stay small: nothing here, nor in
run.py, imports numpy.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class FailedError(Exception):
    """A command that was measured did not succeed."""


class Command(NamedTuple):
    """What is run, and what must be so before the clock starts."""

    argv: Sequence[str | Path]
    output: Path | None = None
    """Removed before each run."""
    reads: Sequence[Path] = ()
    """Folders whose files are brought into the page cache before each run."""
    env: Mapping[str, str] = {}
    memory: int = 0
    """Bytes that are touched before each run: memory that the host of a virtual machine took back costs seconds to get,
    and who runs first would pay."""
    is_cold: bool = False
    """Whether the files that it reads are put out of the page cache instead: what is measured is the disk."""


class Sample(NamedTuple):
    """One run."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds, user and system, of the process and those that it waited for."""
    peak: float
    """MB (10^6 bytes) of resident memory, of the largest process."""
    log: str
    """What it printed."""


class Figure(NamedTuple):
    """A median, and the range that it was taken from."""

    value: float
    low: float
    high: float


Measure = Callable[[Sample], float]
Pairs = Sequence[tuple[Sample, Sample]]


def wall(sample: Sample) -> float:
    return sample.wall


def cpu(sample: Sample) -> float:
    return sample.cpu


def peak(sample: Sample) -> float:
    return sample.peak


def run(command: Command, log: Path) -> Sample:
    """One run, after its conditions were made."""
    if command.output is not None:
        shutil.rmtree(command.output, ignore_errors=True)
    os.sync()
    for folder in command.reads:
        (evict if command.is_cold else warm)(folder)
    os.sync()
    if command.memory:
        subprocess.run([sys.executable, "-c", f"bytearray({command.memory}).replace(b'x', b'')"], check=True)
    argv = [str(word) for word in command.argv]
    opened = (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    start = time.perf_counter()
    pid = os.posix_spawnp(
        argv[0], argv, {**os.environ, **command.env}, file_actions=[opened, (os.POSIX_SPAWN_DUP2, 1, 2)]
    )
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - start
    said = log.read_text(errors="replace")
    if (code := os.waitstatus_to_exitcode(status)) != 0:
        raise FailedError(f"exit code {code} of {' '.join(argv)}: ...{said[-800:].strip()}")
    return Sample(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6, said)


def warm(folder: Path) -> None:
    """Read every file under a folder."""
    buffer = bytearray(4 << 20)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def evict(folder: Path) -> None:
    """Put every file under a folder, which is on the disk by now, out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def repeat(command: Command, times: int, log: Path, *, warm_up: bool = True) -> list[Sample]:
    """Runs of one command. The warm-up does not count."""
    return [run(command, log) for _ in range(times + warm_up)][warm_up:]


def alternate(ours: Command, theirs: Command, times: int, log: Path, *, warm_up: bool = True) -> Pairs:
    """Runs of two commands in turn. The warm-up of each, in which a disk is faster than it can stay, does not count."""
    return [(run(ours, log), run(theirs, log)) for _ in range(times + warm_up)][warm_up:]


def middle(samples: Sequence[Sample], measure: Measure) -> Figure:
    """The median over runs."""
    return _figure([measure(sample) for sample in samples])


def ratio(pairs: Pairs, measure: Measure, *, inverse: bool = False) -> Figure:
    """The median over pairs of ours / theirs, or of theirs / ours."""
    found = [measure(ours) / measure(theirs) for ours, theirs in pairs]
    return _figure([1 / one for one in found] if inverse else found)


def _figure(numbers: Sequence[float]) -> Figure:
    return Figure(statistics.median(numbers), min(numbers), max(numbers))
