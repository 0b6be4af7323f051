"""Threads of this process. Kernels and file calls release the interpreter lock, so threads are enough."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed

from msgspec import Struct

from chimerakit.events import Report
from chimerakit.plan.memory import MAX_MEMORY, Needs, check_room
from chimerakit.runners import J, R


class Threads(Struct, frozen=True):
    """The runner of this machine: `threads` jobs at a time (by default two more than the cores that this process may use, as
    always some wait for the disk), and no more than `max_memory` (bytes of the whole process) has room for."""

    threads: int | None = None
    max_memory: int = MAX_MEMORY

    def room(self, needs: Needs) -> int:
        """How many jobs fit at a time; 0 where there is too little memory for one."""
        most = self.threads or len(os.sched_getaffinity(0)) + 2
        return max(0, min(most, (self.max_memory - needs.process - needs.records) // needs.job))

    def workers(self, needs: Needs) -> "ThreadWorkers":
        """Threads for such jobs. Raises PlanError where there is too little memory for one."""
        check_room(self.room(needs), needs.process + needs.records + needs.job, self.max_memory)
        return ThreadWorkers(self.room(needs))


LOCAL = Threads()
"""As many as this machine has cores for."""


class _StoppedError(Exception):
    """Another job failed, or the user left; never seen outside."""


class ThreadWorkers(Struct, frozen=True):
    """So many threads."""

    count: int

    def run(self, function: Callable[[J, Report], R], jobs: Sequence[J], advance: Callable[[int], None]) -> Iterator[R]:
        """Results as they come; a job that runs when another one fails stops at its next report."""
        stop, failures = threading.Event(), list[BaseException]()

        def report(nbytes: int) -> None:
            if stop.is_set():
                raise _StoppedError
            advance(nbytes)

        def run(job: J) -> R:
            if stop.is_set():
                raise CancelledError
            try:
                return function(job, report)
            except BaseException as e:
                failures.append(e)
                stop.set()
                raise

        pool = ThreadPoolExecutor(self.count, thread_name_prefix="job")
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
