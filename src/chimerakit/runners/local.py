"""Threads on this machine. Kernels and file calls release the interpreter lock, so threads are enough."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


def default_threads() -> int:
    """Two more than the cores that this process may use, as always some wait for the disk."""
    return len(os.sched_getaffinity(0)) + 2


def run_threads(function: Callable[[J], R], jobs: Sequence[J], *, threads: int, stop: threading.Event) -> Iterator[R]:
    """Results as they come. When one job fails, or the caller leaves, `stop` is set and nothing new begins."""
    failures: list[BaseException] = []

    def run(job: J) -> R:
        if stop.is_set():
            raise CancelledError
        try:
            return function(job)
        except BaseException as e:
            failures.append(e)
            stop.set()
            raise

    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="job")
    try:
        for future in as_completed([pool.submit(run, job) for job in jobs]):
            yield future.result()
    except BaseException as e:
        stop.set()
        # Jobs that were stopped fail, too, and may be seen first; the one that stopped them is what is wrong.
        if failures and isinstance(e, Exception):
            raise failures[0] from None
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
