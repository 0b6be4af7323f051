"""Attempts: the command line on a hostile file, with what it said, its processor time, and the memory that it took.

All run in one process of their own, since a start costs more than most attacks: a line of JSON with the arguments in, a
line with the outcome out. The peak of resident memory is the kernel's, reset before each attempt.
"""

import contextlib
import ctypes
import gc
import io
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.fuzzing import is_clear

SECONDS = 1.0
"""Processor time in which an attack is over."""
FLAT = 48 << 20
"""Bytes that an attempt may take beside what the process had: what any small request takes, with room for noise."""
_MOST = 8 << 30
"""Bytes of address space of the process, so that no failing test takes the machine down."""


class Attempt(NamedTuple):
    """What came of an attack."""

    code: int
    """The exit code."""
    out: str
    err: str
    seconds: float
    """Of processor time."""
    peak: int
    """Bytes of resident memory at most, over those before it."""

    @property
    def shown(self) -> str:
        """Everything that reaches a terminal."""
        return self.out + self.err

    def check_refused(self, *words: str, flat: int = FLAT) -> None:
        """It ended in one clear error with these words, soon, in flat memory."""
        assert self.code == 2, self
        assert all(word in self.err for word in words), self.err[:2000]
        assert is_clear(self.err.removeprefix("error: ").rstrip("\n")), self.err[:2000]
        self.check_cheap(flat)

    def check_cheap(self, flat: int = FLAT) -> None:
        """It was over soon and took little memory."""
        assert self.seconds < SECONDS, self
        assert self.peak < flat, self


class Attacker:
    """The process that attempts are made in."""

    def __init__(self) -> None:
        root = Path(__file__).parent.parent.parent
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks.attempt"],
            cwd=root,
            env={
                **os.environ,
                "TERM": "dumb",
                "COLUMNS": "200",
                "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: object, terminal: bool = False) -> Attempt:
        """Run the command line with these arguments. terminal: as if somebody looked, with tables in place of JSON."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([terminal, *map(str, arguments)]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the process died of {arguments}"
        return Attempt(*json.loads(answer))

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)


def _resident(which: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


class _Shown(io.StringIO):
    """What is written, to a terminal or not."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def _attempt(terminal: bool, *arguments: str) -> Attempt:
    from chimerakit.cli import main

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what an attempt before gave back must not hide what this one takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again here
    sys.argv, code = ["chimerakit", *arguments], 0
    before, start = _resident("VmRSS"), time.process_time()
    with (
        contextlib.redirect_stdout(_Shown(terminal=terminal)) as out,
        contextlib.redirect_stderr(_Shown(terminal=False)) as err,
    ):
        try:
            main()
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
        except Exception as e:  # noqa: BLE001 - a crash is told as what it is: no refusal
            code = 1
            err.write(f"crashed: {e!r}\n")
    return Attempt(code, out.getvalue(), err.getvalue(), time.process_time() - start, _resident("VmHWM") - before)


def _serve() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST, _MOST))
    _attempt(False, "plan", "--parent", "a=/nonexistent")  # what a first request loads is no attack's doing
    _attempt(False, "verify", "/nonexistent")
    gc.freeze()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_attempt(*json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
