"""Events -> a progress bar on standard error with bytes and the time that is left; plain lines where nobody watches."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from chimerakit.cli.stop import GO_ON, StoppedError
from chimerakit.errors import printable
from chimerakit.events import Advanced, Event, Finished, Listener, Said, Started, ignore
from chimerakit.words import say_nbytes

_EVERY = 10.0
"""Seconds between two plain lines."""


@contextmanager
def watching(*, quiet: bool) -> Iterator[Listener]:
    """A listener for the time of some work; says how to go on when the user stops it."""
    try:
        if quiet:
            yield ignore
        elif sys.stderr.isatty():
            with _bar() as progress:
                yield _Bar(progress)
        else:
            yield _Lines()
    except StoppedError:
        print(GO_ON, file=sys.stderr, flush=True)
        raise


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Amount(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class _Amount(ProgressColumn):
    """How much of how much, and how fast."""

    def render(self, task: Task) -> Text:
        done, total, speed = int(task.completed), int(task.total or 0), task.speed or 0
        if task.fields["unit"] == "bytes":
            return Text(f"{say_nbytes(done)} of {say_nbytes(total)}, {say_nbytes(int(speed))}/s")
        return Text(f"{done} of {total} {task.fields['unit']}")


class _Bar:
    """One bar for each piece of work; lines above it."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._task = self._progress.add_task(event.work, total=event.total, unit=event.unit)
        elif isinstance(event, Advanced) and self._task is not None:
            self._progress.advance(self._task, event.amount)
        elif isinstance(event, Finished) and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        elif isinstance(event, Said):
            self._progress.console.print(printable(event.text), markup=False, highlight=False)


class _Lines:
    """A line now and then, for logs."""

    def __init__(self) -> None:
        self._started = Started("", 0)
        self._done, self._last = 0, 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._started, self._done, self._last = event, 0, time.monotonic()
        elif isinstance(event, Advanced):
            self._done += event.amount
            if time.monotonic() - self._last > _EVERY:
                self._last = time.monotonic()
                total = max(1, self._started.total)
                amount = f"{self._done:,} of {total:,} {self._started.unit} ({self._done / total:.0%})"
                print(f"{self._started.work}: {amount}", file=sys.stderr, flush=True)
        elif isinstance(event, Said):
            print(printable(event.text), file=sys.stderr, flush=True)
