"""What maps jobs: threads of this process, or a cluster. A runner takes any job function and knows nothing of merging.

    runner.workers(needs) -> workers;  workers.run(function, jobs, advance) -> results, as they come

Functions and jobs are plain data (functions of a module, or partials of them; records): they may run in another process, on
another machine, and more than once.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from chimerakit.events import Report
from chimerakit.plan.memory import Needs


class Sized(Protocol):
    """A job that knows how many bytes it goes through."""

    @property
    def nbytes(self) -> int:
        """Bytes."""


J = TypeVar("J", bound=Sized)
R = TypeVar("R")


class Workers(Protocol):
    """Those who do jobs that take so much memory each."""

    @property
    def count(self) -> int:
        """Jobs at a time, at most."""

    def run(self, function: Callable[[J, Report], R], jobs: Sequence[J], advance: Callable[[int], None]) -> Iterator[R]:
        """Results as they come. `function` gets a job, and a report to call with the bytes that it just did; `advance` is
        told them, from any thread. When a job fails, or the caller leaves, nothing new begins, what runs is stopped, and the
        first error is raised."""


class Runner(Protocol):
    """Where jobs can be done."""

    def room(self, needs: Needs) -> int:
        """How many jobs fit at a time; 0 where there is too little memory for one."""

    def workers(self, needs: Needs) -> Workers:
        """Those who do such jobs. Raises PlanError where there is too little memory for one."""
