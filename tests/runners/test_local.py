"""Threads: results as they come, nothing begun after a failure or after the caller has left."""

import os
import threading
import time

import pytest
from msgspec import Struct

from chimerakit.errors import PlanError
from chimerakit.events import Report
from chimerakit.plan.memory import Needs
from chimerakit.runners.local import Threads, ThreadWorkers

NEEDS = Needs(process=100, records=20, job=10)


class Number(Struct, frozen=True):
    """A job."""

    value: int
    nbytes: int = 1


def numbers(count: int) -> list[Number]:
    return [Number(value) for value in range(count)]


def nobody(_: int) -> None:
    """Nobody listens."""


def test_every_job_is_run_once() -> None:
    """The results of all jobs come, in whatever order."""
    results = ThreadWorkers(4).run(lambda job, _: job.value**2, numbers(50), nobody)
    assert sorted(results) == [n * n for n in range(50)]


def test_no_jobs_give_no_results() -> None:
    """An empty sequence is no special case."""
    assert list(ThreadWorkers(2).run(lambda job, _: job.value, numbers(0), nobody)) == []


def test_what_jobs_report_is_told() -> None:
    """All bytes that all jobs report arrive."""
    told = list[int]()

    def job(number: Number, report: Report) -> None:
        report(number.value)
        report(1)

    list(ThreadWorkers(3).run(job, numbers(10), told.append))
    assert sum(told) == sum(range(10)) + 10


@pytest.mark.parametrize("threads", [1, 3])
def test_as_many_jobs_run_at_a_time_as_there_are_threads(threads: int) -> None:
    """With `threads` jobs that wait for each other all arrive, and never one more."""
    barrier, lock, running, most = threading.Barrier(threads), threading.Lock(), 0, 0

    def job(_: Number, report: Report) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        barrier.wait(timeout=20)
        with lock:
            running -= 1

    list(ThreadWorkers(threads).run(job, numbers(threads * 4), nobody))
    assert most == threads


def test_a_job_that_fails_stops_the_others() -> None:
    """Its error reaches the caller, running jobs end at their next report, and the waiting ones never begin."""
    begun, went_on = list[int](), list[int]()

    def job(number: Number, report: Report) -> None:
        begun.append(number.value)
        if number.value == 0:
            raise ValueError("of job 0")
        until = time.monotonic() + 20
        while time.monotonic() < until:
            time.sleep(0.01)
            report(0)
        went_on.append(number.value)

    with pytest.raises(ValueError, match="of job 0"):
        list(ThreadWorkers(2).run(job, numbers(1000), nobody))
    assert len(begun) < 1000
    assert not went_on
    after = len(begun)
    time.sleep(0.05)
    assert len(begun) == after


def test_a_caller_that_leaves_stops_the_jobs() -> None:
    """Closing the iterator ends what runs, and waits for it."""
    begun, ended = list[int](), list[int]()

    def job(number: Number, report: Report) -> int:
        begun.append(number.value)
        try:
            while number.value > 0:
                time.sleep(0.01)
                report(0)
        finally:
            ended.append(number.value)
        return number.value

    results = ThreadWorkers(2).run(job, numbers(1000), nobody)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert len(begun) < 1000
    assert sorted(begun) == sorted(ended)


def test_the_default_is_what_the_process_may_use() -> None:
    """Cores that the process is not allowed on do not count."""
    assert Threads().room(NEEDS) == len(os.sched_getaffinity(0)) + 2


def test_memory_bounds_how_many_jobs_run() -> None:
    """As many as fit beside the process and its records; none is refused with both numbers."""
    assert Threads(9, 159).room(NEEDS) == 3
    assert Threads(2, 159).workers(NEEDS).count == 2
    assert Threads(9, 129).room(NEEDS) == 0
    with pytest.raises(PlanError, match="one job at a time takes up to 0 MB; 0 MB are allowed"):
        Threads(9, 129).workers(NEEDS)
