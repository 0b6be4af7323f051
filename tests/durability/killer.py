"""A process that begins children and is killed, again and again: KIND PARENTS OUTPUT MOMENTS.

A moment is one of

    bytes F          when this part of all bytes is written
    call F           before or after a call to the operating system, at this part of all of them
    time F           from outside, when this part of a whole merge's time is over
    before EVENT N   before a file or folder of the name N is renamed to, made or removed (EVENT as Python's audit has it)
    after EVENT N    after that

Child number i is OUTPUT/i.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from chimerakit.events import Advanced, Event
from tests.durability.kinds import KINDS, Kind

Moment = list[Any]
Hook = Callable[[FrameType, str, Any], None]


def die() -> None:
    """As if by SIGKILL from outside."""
    os.kill(os.getpid(), signal.SIGKILL)


def watch(hook: Hook | None) -> None:
    """Let a function see every call of all threads that begin from now on, and of this one."""
    threading.setprofile(hook)
    sys.setprofile(hook)


def is_system_call(event: str, function: object) -> bool:
    """Whether a thread enters or leaves the operating system."""
    return event in ("c_call", "c_return") and getattr(function, "__module__", "") in ("posix", "fcntl")


def count_calls(work: Callable[[], object]) -> int:
    """How often the operating system is entered or left."""
    seen: list[None] = []
    watch(lambda _, event, function: seen.append(None) if is_system_call(event, function) else None)
    work()
    watch(None)
    return len(seen)


def die_at_call(number: int) -> None:
    """Arrange for death at a call to the operating system, on its way in or out."""
    calls = count()
    watch(lambda _, event, function: die() if is_system_call(event, function) and next(calls) >= number else None)


def die_at_event(when: str, wanted: str, name: str) -> None:
    """Arrange for death before or after something is done to a file."""
    is_armed = False

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal is_armed
        place = arguments[1] if event == "os.rename" else arguments[0] if arguments else None
        if event == wanted and isinstance(place, str | os.PathLike) and Path(place).name == name:
            is_armed = True
            if when == "before":
                die()

    watch(
        lambda _, event, function: (
            die() if is_armed and event == "c_return" and is_system_call(event, function) else None
        )
    )
    sys.addaudithook(hear)


def live_until(moment: Moment, kind: Kind, parents: Path, child: Path, calls: int) -> None:
    """Merge, and die at the moment."""
    total, seen = sum(shard.nbytes for shard in kind.plan(parents).shards), 0

    def listener(event: Event) -> None:
        nonlocal seen
        seen += event.amount if isinstance(event, Advanced) else 0
        if moment[0] == "bytes" and seen >= moment[1] * total:
            die()

    if moment[0] == "call":
        die_at_call(int(moment[1] * calls))
    if moment[0] in ("before", "after"):
        die_at_event(*moment)
    kind.merge(parents, child, listener=listener)


def was_killed(moment: Moment, kind: Kind, parents: Path, child: Path, calls: int, seconds: float) -> bool:
    """Fork a process that merges; whether it died before it was done."""
    pid = os.fork()
    if pid == 0:
        live_until(moment, kind, parents, child, calls)
        os._exit(0)
    if moment[0] == "time":
        time.sleep(moment[1] * seconds)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, moment
    return False


def main(name: str, root: str, folder: str, moments: str) -> None:
    """Make one whole child, then one dead one for each list of moments; those after the first hit a resumed merge."""
    kind, parents, output = KINDS[name], Path(root), Path(folder)
    vars(os)["fsync"] = lambda _: None  # nothing loses power here
    kind.merge(parents, output / "warm")
    calls = count_calls(lambda: kind.merge(parents, output / "whole"))
    begun = time.monotonic()
    kind.merge(parents, output / "timed")
    seconds = time.monotonic() - begun
    for number, (first, *more) in enumerate(json.loads(moments)):
        child = output / str(number)
        while not was_killed(first, kind, parents, child, calls, seconds):
            assert first[0] not in ("before", "after"), f"{first} never came"
            first[1] *= 0.9
            shutil.rmtree(child)
        for moment in more:
            was_killed(moment, kind, parents, child, calls, seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
