"""Threads: results as they come, nothing begun after a failure or after the caller has left."""

import os
import threading
import time

import pytest

from chimerakit.runners.local import default_threads, run_threads


def test_every_job_is_run_once() -> None:
    """The results of all jobs come, in whatever order."""
    assert sorted(run_threads(lambda n: n * n, range(50), threads=4, stop=threading.Event())) == [
        n * n for n in range(50)
    ]


def test_no_jobs_give_no_results() -> None:
    """An empty sequence is no special case."""
    assert list(run_threads(lambda n: n, [], threads=2, stop=threading.Event())) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_as_many_jobs_run_at_a_time_as_there_are_threads(threads: int) -> None:
    """With `threads` jobs that wait for each other all arrive, and never one more."""
    barrier, lock, running, most = threading.Barrier(threads), threading.Lock(), 0, 0

    def job(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        barrier.wait(timeout=20)
        with lock:
            running -= 1

    list(run_threads(job, range(threads * 4), threads=threads, stop=threading.Event()))
    assert most == threads


def test_a_job_that_fails_stops_the_others() -> None:
    """Its error reaches the caller, running jobs see `stop`, and the waiting ones never begin."""
    stop, begun = threading.Event(), list[int]()

    def job(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise ValueError("of job 0")
        assert stop.wait(timeout=20)
        time.sleep(0.01)

    with pytest.raises(ValueError, match="of job 0"):
        list(run_threads(job, range(1000), threads=2, stop=stop))
    assert len(begun) < 1000
    after = len(begun)
    time.sleep(0.05)
    assert len(begun) == after


def test_a_caller_that_leaves_stops_the_jobs() -> None:
    """Closing the iterator sets `stop` and waits for what runs."""
    stop, begun, ended = threading.Event(), list[int](), list[int]()

    def job(number: int) -> int:
        begun.append(number)
        if number > 0:
            assert stop.wait(timeout=20)
            time.sleep(0.01)
        ended.append(number)
        return number

    results = run_threads(job, range(1000), threads=2, stop=stop)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert stop.is_set()
    assert len(begun) < 1000
    assert sorted(begun) == sorted(ended)


def test_the_default_is_what_the_process_may_use() -> None:
    """Cores that the process is not allowed on do not count."""
    assert default_threads() == len(os.sched_getaffinity(0)) + 2
