"""Running jobs while somebody watches: what workers do, told to a listener."""

from collections.abc import Callable, Iterator, Sequence

from chimerakit.events import Advanced, Finished, Listener, Report, Started
from chimerakit.runners import J, R, Workers


def run_watched(
    work: str, function: Callable[[J, Report], R], jobs: Sequence[J], *, workers: Workers, listener: Listener
) -> Iterator[R]:
    """Results as they come.

    The listener hears from all threads; see `events.one_at_a_time`.
    """
    listener(Started(work, sum(job.nbytes for job in jobs)))
    yield from workers.run(function, jobs, lambda nbytes: listener(Advanced(nbytes)))
    listener(Finished(work))
