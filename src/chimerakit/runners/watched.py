"""Running jobs while somebody watches: events for a listener, and a way to stop in the middle of a job."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from chimerakit.events import Advanced, Finished, Listener, Report, Started
from chimerakit.runners.local import run_threads

R = TypeVar("R")


class Sized(Protocol):
    """A job that knows how many bytes it goes through."""

    @property
    def nbytes(self) -> int:
        """Bytes."""


J = TypeVar("J", bound=Sized)


class _StoppedError(Exception):
    """Another job failed, or the user left; never seen outside."""


def run_watched(
    work: str, function: Callable[[J, Report], R], jobs: Sequence[J], *, threads: int, listener: Listener
) -> Iterator[R]:
    """Results as they come. `function` gets a job and a report to call with the bytes that it just did.

    The listener hears from all threads; see `events.one_at_a_time`.
    """
    stop = threading.Event()

    def report(nbytes: int) -> None:
        if stop.is_set():
            raise _StoppedError
        listener(Advanced(nbytes))

    listener(Started(work, sum(job.nbytes for job in jobs)))
    yield from run_threads(lambda job: function(job, report), jobs, threads=threads, stop=stop)
    listener(Finished(work))
