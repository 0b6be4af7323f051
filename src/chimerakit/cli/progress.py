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
        tokens = task.fields["tokens"]
        said = f", {tokens:,} tokens, {tokens / max(task.elapsed or 0, 1):,.0f}/s" if tokens else ""
        return Text(f"{done} of {total} {task.fields['unit']}{said}")


class _Bar:
    """A bar for each piece of work, one below the other where work is part of other work; lines above them."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._running: list[tuple[TaskID, int]] = []
        """Bars with their tokens; the last one is what is being done now."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            task = self._progress.add_task(event.work, total=event.total, unit=event.unit, tokens=0)
            self._running.append((task, 0))
        elif isinstance(event, Advanced) and self._running:
            task, tokens = self._running.pop()
            self._running.append((task, tokens + event.tokens))
            self._progress.update(task, advance=event.amount, tokens=tokens + event.tokens)
        elif isinstance(event, Finished) and self._running:
            self._progress.remove_task(self._running.pop()[0])
        elif isinstance(event, Said):
            self._progress.console.print(printable(event.text), markup=False, highlight=False)


class _Lines:
    """A line now and then, for logs."""

    def __init__(self) -> None:
        self._running: list[tuple[Started, int]] = []
        """Work with how much of it is done; the last one is what is being done now."""
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._running.append((event, 0))
            self._last = time.monotonic()
        elif isinstance(event, Advanced) and self._running:
            started, done = self._running.pop()
            done += event.amount
            self._running.append((started, done))
            if time.monotonic() - self._last > _EVERY:
                self._last = time.monotonic()
                total = max(1, started.total)
                print(
                    f"{started.work}: {done:,} of {total:,} {started.unit} ({done / total:.0%})",
                    file=sys.stderr,
                    flush=True,
                )
        elif isinstance(event, Finished) and self._running:
            self._running.pop()
        elif isinstance(event, Said):
            print(printable(event.text), file=sys.stderr, flush=True)
