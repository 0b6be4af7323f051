"""The command line in one process that stays: not each of many calls has to start Python and to load kernels.

What a call does to its process, such as signals and exit, is tested with processes of their own.
"""

import atexit
import contextlib
import gc
import io
import json
import os
import select
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SECONDS = 120
"""After which a call is given up."""


def call(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """What `chimerakit` says to these arguments in a folder, with its output piped."""
    process = _process()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([str(cwd), *arguments]) + "\n")
    process.stdin.flush()
    is_answered, _, _ = select.select([process.stdout], [], [], SECONDS)
    answer = process.stdout.readline() if is_answered else ""
    assert answer, f"no answer to {arguments}"
    return subprocess.CompletedProcess(arguments, *json.loads(answer))


@cache
def _process() -> "subprocess.Popen[str]":
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cli.server"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate)
    return process


def _answer(cwd: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    from chimerakit.cli import main

    os.chdir(cwd)
    sys.argv, code = ["chimerakit", *arguments], 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
        except BaseException:  # noqa: BLE001 - as Python ends a process of its own
            traceback.print_exc()
            code = 1
    gc.enable()  # a process that ends with one plan needs none
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(*json.loads(line))) + "\n")
        sys.stdout.flush()
