"""What happened, as records. The library tells; only the command line draws.

A listener is any callable that takes an event. It is called from worker threads, one call at a time.
"""

import threading
from collections.abc import Callable
from typing import Literal

from msgspec import Struct


class Started(Struct, frozen=True):
    """Long work begins."""

    work: str
    """What is being done, in a word or two."""
    total: int
    """How much there is to go through."""
    unit: Literal["bytes", "answers", "children"] = "bytes"
    """What `total` and `Advanced` count."""


class Advanced(Struct, frozen=True):
    """Some of it is done."""

    amount: int
    tokens: int = 0
    """Of answers: the tokens that they are."""


class JobDone(Struct, frozen=True):
    """One job is done; `reused` if an earlier call had done it and its bytes still hold."""

    job: int
    nbytes: int
    reused: bool


class FileDone(Struct, frozen=True):
    """One file of the child has its final name."""

    name: str


class Finished(Struct, frozen=True):
    """The work that the last `Started` announced is complete."""

    work: str


class Said(Struct, frozen=True):
    """A line that a person watching would like to read."""

    text: str


Event = Started | Advanced | JobDone | FileDone | Finished | Said
Listener = Callable[[Event], None]

Report = Callable[[int], None]
"""Told the bytes that a job has just done; may raise to stop the job."""


def one_at_a_time(listener: Listener) -> Listener:
    """A listener that any number of threads may call, and that hears one event at a time."""
    lock = threading.Lock()

    def tell(event: Event) -> None:
        with lock:
            listener(event)

    return tell


def ignore(_: Event) -> None:
    """The listener that does nothing."""
