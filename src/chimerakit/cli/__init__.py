"""The command line: a short function for each verb, tables, progress, exit codes. The only room that prints or exits.

app.py        the verbs
flags.py      the flags they share -> records
show.py       records -> tables
compared.py   the same for difference maps
explained.py  the same for what a child is made of
inspected.py  the same for what a checkpoint holds
reported.py   saved results -> a page
progress.py   events -> a progress bar, or lines where nobody watches
stop.py       Ctrl-C and SIGTERM -> an end within two seconds
reference.py  docs/cli.md out of the help texts
"""

import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command line. Exit 0: done. 1: a finding says no. 2: the request was wrong. 130, 143: stopped."""
    from chimerakit.cli.stop import stop_on_signals

    stop_on_signals()
    from chimerakit.cli.app import app
    from chimerakit.errors import ChimerakitError, printable

    # Started with closed streams there is nobody to tell; the exit code still says what came of it.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - open until the end
    try:
        app()
    except ChimerakitError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except OSError as e:
        print(f"error: {printable(e.filename or 'input or output')}: {e.strerror or e}", file=sys.stderr)
        sys.exit(2)
